"""Models to the hub, against a hub that keeps what it is sent in memory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import save_file

from broadsheet.cli import app as cli
from broadsheet.console import InputError
from broadsheet.models import card
from broadsheet.models.pushing import push, push_saved

OWN = "# Words of my own\n"


class Hub:
    """The calls that `push` makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self.commits = 0
        self.private: bool | None = None
        self.refuses: int | None = None

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> str:
        if self.refuses:
            response: Any = SimpleNamespace(status_code=self.refuses, headers={}, request=None)
            raise HfHubHTTPError("no", response=response)
        self.private = private
        return f"https://hub/{repository}"

    def file_exists(self, repository: str, name: str) -> bool:
        return name in self.files

    def hf_hub_download(self, repository: str, name: str) -> str:
        path = self.folder / "downloaded"
        path.write_bytes(self.files[name])
        return str(path)

    def create_commit(self, repository: str, operations: list[Any], *, commit_message: str) -> None:
        self.commits += 1
        for each in operations:
            given = each.path_or_fileobj
            self.files[each.path_in_repo] = given if isinstance(given, bytes) else Path(given).read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


def saved(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
    (folder / "modules.json").write_text("[]")
    card.write(folder, paper="gem", base="default")
    return folder


def test_a_saved_model_is_sent_whole_in_one_commit_under_the_name_of_its_repository(tmp_path: Path, hub: Hub) -> None:
    folder = saved(tmp_path / "out")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "runs").mkdir()
    (folder / "runs" / "events").write_text("of the training")
    (folder / ".lock").write_text("")
    assert push(folder, "someone/gem") == "https://hub/someone/gem"
    assert sorted(hub.files) == ["1_Pooling/config.json", "README.md", "model.safetensors", "modules.json"]
    assert (hub.commits, hub.private) == (1, True)
    text = hub.files["README.md"].decode()
    assert card.is_ours(text)
    assert "# gem\n" in text
    assert "embed.load('someone/gem')" in text
    assert "embed.load('out')" in (folder / "README.md").read_text("utf-8"), "the folder's own card stays"


def test_a_card_that_somebody_wrote_is_kept_there_and_sent_as_it_is(tmp_path: Path, hub: Hub) -> None:
    folder = saved(tmp_path / "out")
    hub.files["README.md"] = OWN.encode()
    push(folder, "someone/gem")
    assert hub.files["README.md"].decode() == OWN
    hub.files.clear()
    (folder / "README.md").write_text(OWN)
    push(folder, "someone/gem")
    assert hub.files["README.md"].decode() == OWN


def test_what_is_saved_for_it_goes_the_same_way(hub: Hub) -> None:
    assert push_saved(saved, "someone/gem", private=False) == "https://hub/someone/gem"
    assert "model.safetensors" in hub.files
    assert hub.private is False


@pytest.mark.parametrize("name", ["gem", "someone/gem@main", "a/b/c", ""])
def test_a_name_that_is_none_is_refused(tmp_path: Path, hub: Hub, name: str) -> None:
    with pytest.raises(InputError, match="someone/name"):
        push(saved(tmp_path / "out"), name)


def test_what_is_no_saved_model_is_refused_before_anything_is_made(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        push(tmp_path / "missing", "someone/gem")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no weights"):
        push(tmp_path / "empty", "someone/gem")
    (saved(tmp_path / "out") / "optimizer.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"optimizer\.pt, which may hold a program"):
        push(tmp_path / "out", "someone/gem")
    assert hub.private is None


def test_a_hub_that_refuses_or_is_not_there_is_one_line(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "out")
    hub.refuses = 403
    with pytest.raises(InputError, match=r"refuses someone/gem \(403\); set HF_TOKEN"):
        push(folder, "someone/gem")

    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "create_repo", unreachable)
    monkeypatch.setattr(sys, "argv", ["broadsheet", "push", str(folder), "someone/gem"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "cannot reach the hub" in capsys.readouterr().err

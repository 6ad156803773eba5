"""Evidence that is older than its code is named: which files a paper rests on, and whether they changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_checkout import git

from broadsheet.page import checkout, evidence, papers, staleness

SOURCES = {
    "stage/gem.py": "from broadsheet.stage import Base\nfrom broadsheet.data import rows\nfrom . import near\n",
    "stage/__init__.py": 'from broadsheet.page.discovery import Exports\n_e = Exports(__name__, {"base": ("Base",)})\n',
    "stage/base.py": "import broadsheet.data.rows as r\n\nclass Base:\n    pass\n",
    "stage/near.py": "def late():\n    from ..cache import home\n    from broadsheet import models\n",
    "stage/other.py": "",
    "stage/trials/gem.py": (
        "from typing import TYPE_CHECKING\nfrom broadsheet.report import words\nNAME = 'broadsheet.named:Thing'\n"
        "if TYPE_CHECKING:\n    from broadsheet.stage import other\nelse:\n    from broadsheet.named import more\n"
    ),
    "data/__init__.py": "",
    "data/rows.py": "import json\nfrom broadsheet.console import say\nfrom broadsheet.data import catalogue\n",
    "data/catalogue.py": "from broadsheet.named import more\n",
    "models/__init__.py": "from broadsheet.models.loading import load\n",
    "models/loading.py": "",
    "cache.py": "",
    "console.py": "",
    "named.py": "from broadsheet.missing import nothing\n",
    "report/words.py": "",
}
GEM = {"stage/gem.py", "stage/base.py", "stage/near.py", "data/rows.py", "cache.py", "models/__init__.py"}
GEM |= {"models/loading.py", "stage/trials/gem.py", "named.py"}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of a small `broadsheet` with the paper gem, and its evidence folder in place of ours."""
    folder = tmp_path / "checkout"
    for name, text in SOURCES.items():
        path = folder / "src" / "broadsheet" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "speed.py").write_text("from broadsheet.data import rows\n")
    (folder / "evidence").mkdir()
    git(tmp_path, "init", "-q", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "Begin")
    monkeypatch.setattr(evidence, "folder", lambda: folder / "evidence")
    entries = ["broadsheet.stage.gem:GEM", "broadsheet.stage.trials.gem:GEMTrial"]
    monkeypatch.setattr(staleness, "_entries", lambda name: entries if name == "gem" else [])
    return folder


def record(folder: Path, name: str, commit: str | None, command: str = "broadsheet try gem --record") -> None:
    made = {"command": command, "provenance": {"date": "x", **({"commit": commit} if commit else {})}}
    (folder / "evidence" / f"{name}.json").write_text(json.dumps(made))


def change(folder: Path, name: str) -> None:
    path = folder / "src" / "broadsheet" / name
    path.write_text(path.read_text() + "# more\n")


def test_a_paper_rests_on_all_that_its_files_import(repository):
    found = staleness.rests_on("gem", repository)
    assert {path.relative_to(repository / "src" / "broadsheet").as_posix() for path in found} == GEM


def test_evidence_is_stale_once_a_file_that_it_rests_on_changed(repository):
    head = git(repository, "rev-parse", "HEAD")
    record(repository, "gem", head)
    assert staleness.stale("gem", repository) == ""
    for name in ("stage/other.py", "console.py", "report/words.py", "stage/__init__.py"):
        change(repository, name)
    assert staleness.stale("gem", repository) == ""
    change(repository, "data/rows.py")
    assert staleness.stale("gem", repository) == f"recorded at {head[:9]}; src/broadsheet/data/rows.py changed since"
    git(repository, "commit", "-q", "-a", "-m", "Go on")
    change(repository, "stage/gem.py")
    assert staleness.stale("gem", repository) == (
        f"recorded at {head[:9]}; src/broadsheet/stage/gem.py and 1 other file changed since"
    )
    change(repository, "cache.py")
    assert "stage/gem.py and 2 other files changed" in staleness.stale("gem", repository)
    git(repository, "commit", "-q", "-a", "-m", "Go on")
    record(repository, "gem", git(repository, "rev-parse", "HEAD"))
    assert staleness.stale("gem", repository) == ""


def test_a_new_import_counts_from_then_on(repository):
    record(repository, "gem", git(repository, "rev-parse", "HEAD"))
    change(repository, "stage/other.py")
    assert staleness.stale("gem", repository) == ""
    path = repository / "src" / "broadsheet" / "stage" / "near.py"
    path.write_text(path.read_text() + "from broadsheet.stage.other import more\n")
    assert "src/broadsheet/stage/near.py and 1 other file changed" in staleness.stale("gem", repository)


def test_a_benchmark_rests_on_its_script(repository):
    head = git(repository, "rev-parse", "HEAD")
    record(repository, "gem.benchmark", head, "python benchmarks/speed.py --record")
    assert staleness.rests_on("gem.benchmark", repository) == {
        repository / "benchmarks" / "speed.py",
        repository / "src" / "broadsheet" / "data" / "rows.py",
    }
    (repository / "benchmarks" / "speed.py").write_text("")
    assert staleness.stale("gem.benchmark", repository).endswith("; benchmarks/speed.py changed since")


def test_what_cannot_be_compared_is_said(repository, monkeypatch):
    head = git(repository, "rev-parse", "HEAD")
    record(repository, "gem", None)
    assert staleness.stale("gem", repository) == "recorded before commits were kept"
    record(repository, "gem", f"{head}+")
    assert staleness.stale("gem", repository) == f"recorded at {head[:9]} with changes that were not committed"
    record(repository, "gem", "12" * 20)
    assert staleness.stale("gem", repository) == "recorded at 121212121, which this checkout does not hold"
    assert staleness.stale("nothing", repository) == ""
    record(repository, "fresh", head)
    assert staleness.all_stale(repository) == {"gem": "recorded at 121212121, which this checkout does not hold"}
    monkeypatch.setattr(checkout, "root", lambda: None)
    assert staleness.stale("gem") == ""


TRIED = [paper for paper in papers.ours() if paper.entry and paper.trial]


@pytest.mark.parametrize("paper", TRIED, ids=lambda paper: paper.id)
def test_every_paper_rests_on_its_own_files_and_the_shared_bases(paper):
    source = Path(papers.__file__).parents[2]
    found = {path.relative_to(source).as_posix() for path in staleness.rests_on(paper.id, source.parent)}
    own = {entry.partition(":")[0].replace(".", "/") + ".py" for entry in (*paper.entry, paper.trial)}
    assert own <= found
    assert {"broadsheet/trial/base.py", "broadsheet/trial/engine.py", "broadsheet/options.py"} <= found
    assert not {
        name for name in found if name.startswith(("broadsheet/cli/", "broadsheet/report/", "broadsheet/page/"))
    }

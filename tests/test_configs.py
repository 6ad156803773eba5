"""Options from files and from the environment: what the command line gives comes first, and nothing is guessed."""

from __future__ import annotations

import json

import pytest

from broadsheet.cli.trials import without_files
from broadsheet.configs import given, read_config
from broadsheet.console import InputError

KNOWN = ("model", "data", "device", "top_k", "quick", "sizes")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", 'top-k = 5\nsizes = [1, 2]\nmodel = "m"\nquick = true\n'),
        ("a.yaml", "top_k: 5\nsizes: [1, 2]\nmodel: m\nquick: true\ndata:\n"),
        ("a.json", json.dumps({"top_k": 5, "sizes": [1, 2], "model": "m", "quick": True})),
        (
            "report.json",
            json.dumps(
                {
                    "paper": "gem",
                    "provenance": {},
                    "options": {"top_k": 5, "sizes": [1, 2], "model": "m", "quick": True},
                }
            ),
        ),
    ],
)
def test_a_file_gives_the_options_that_the_command_line_leaves_out(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    values, spelled = given(["--config", str(path)], KNOWN)
    assert values == {"top_k": "5", "sizes": "1,2", "model": "m", "quick": True}
    assert sorted(spelled) == ["--model=m", "--quick", "--sizes=1,2", "--top-k=5"]
    values, spelled = given([f"--config={path}", "--model", "other", "--no-quick"], KNOWN)
    assert values == {"top_k": "5", "sizes": "1,2", "model": "other", "no_quick": True}
    assert sorted(spelled) == ["--sizes=1,2", "--top-k=5"]


def test_the_environment_comes_last_and_only_for_options_that_there_are(monkeypatch, tmp_path):
    monkeypatch.setenv("BROADSHEET_MODEL", "from the environment")
    monkeypatch.setenv("BROADSHEET_CORPUS", "corpus.jsonl")
    monkeypatch.setenv("BROADSHEET_DEVICE", "")
    values, spelled = given([], KNOWN)
    assert values == {"model": "from the environment", "data": "corpus.jsonl"}
    assert spelled == ["--model=from the environment", "--data=corpus.jsonl"]
    assert given([], ("data",))[0] == {"data": "corpus.jsonl"}
    path = tmp_path / "a.toml"
    path.write_text('model = "from the file"')
    assert given(["--config", str(path)], KNOWN)[0]["model"] == "from the file"
    assert given(["--model", "typed"], KNOWN)[0]["model"] == "typed"
    assert given([], (), {"top-k": 3})[0] == {"top_k": "3"}, "the command's own table of the root's --config"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "expected a file ending in .toml"),
        ("a.toml", "top_k = ", "a.toml: "),
        ("a.yaml", "a: [1", "a.yaml: "),
        ("a.json", "[1, 2]", "expected options, such as model"),
        ("a.toml", "top_k = {a = 1}", "got --top-k {'a': 1} in --config; expected text, a number"),
        ("missing.toml", None, "cannot read --config"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as refused:
        given(["--config", str(path)], KNOWN)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_must_be_named():
    with pytest.raises(InputError, match="got --config without a value"):
        given(["--config"], KNOWN)
    with pytest.raises(InputError, match="expected a file ending in"):
        read_config(__import__("pathlib").Path("x"))


def test_the_command_that_is_kept_spells_its_options_out():
    assert without_files(["try", "gem", "--config", "a.toml", "--quick"]) == ["try", "gem", "--quick"]
    assert without_files(["try", "gem", "--config=a.toml"]) == ["try", "gem"]

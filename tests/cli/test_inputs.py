"""No command writes over what it reads, `--force` or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROWS = [{"id": "a", "query": "one", "text": "one two three four", "documents": ["one", "two"], "labels": [1, 0]}] * 3
COMMANDS = {
    "apply lastde": ["apply", "lastde", "{data}", "--out", "{data}", "--force"],
    "apply fullrank": ["apply", "fullrank", "{data}", "--out", "{data}", "--force"],
    "apply clear": ["apply", "clear", "{data}", "--out", "{data}", "--force"],
    "a folder that holds it": ["apply", "gem", "{data}", "--out", "{folder}", "--force"],
    "another input of a recipe": [
        "apply",
        "fineweb2",
        "pydocs:stdlib",
        "--reference",
        "{data}",
        "--out",
        "{data}",
        "--force",
    ],
    "profile": ["profile", "{data}", "--card", "{data}", "--force"],
    "profile, benchmark": ["profile", "pydocs:stdlib", "--benchmark", "{data}", "--card", "{data}", "--force"],
    "encode": ["encode", "{data}", "--out", "{data}", "--force"],
    "encode, folder": ["encode", "{data}", "--out", "{folder}", "--force"],
    "rerank": ["rerank", "{data}", "--out", "{data}", "--force"],
    "label": ["label", "{data}", "--out", "{data}", "--force"],
    "index": ["index", "{data}", "--out", "{data}"],
    "index, folder": ["index", "{data}", "--out", "{folder}"],
    "hear": ["hear", "listen", "--batch", "{data}", "--out", "{data}", "--model", "{folder}", "--force"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_read_is_not_written_over(run, tmp_path: Path, name: str) -> None:
    data = tmp_path / "set" / "rows.jsonl"
    data.parent.mkdir()
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    before = data.read_bytes()
    words = [word.format(data=data, folder=data.parent) for word in COMMANDS[name]]
    status, _, error = run(*words)
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith("broadsheet: ")
    assert [path.name for path in data.parent.iterdir()] == ["rows.jsonl"]
    assert data.read_bytes() == before

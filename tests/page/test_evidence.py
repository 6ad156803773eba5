"""Evidence is read once as long as its file stays as it is, and anew when it changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from broadsheet.page import evidence


def test_a_file_is_parsed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    assert evidence.read("gem", tmp_path) is None
    evidence.record("gem", {"value": 1, "rows": []}, tmp_path)
    first = evidence.read("gem", tmp_path)
    assert first is not None
    assert (evidence.read("gem", tmp_path) or {})["rows"] is first["rows"]
    evidence.record("gem", {"value": 2, "rows": []}, tmp_path)
    again = evidence.read("gem", tmp_path)
    assert again is not None
    assert (first["value"], again["value"]) == (1, 2)
    (tmp_path / "gem.json").unlink()
    assert evidence.read("gem", tmp_path) is None


def test_a_value_set_by_one_reader_is_not_read_by_another(tmp_path: Path) -> None:
    evidence.record("gem", {"value": 1}, tmp_path)
    first = evidence.read("gem", tmp_path)
    assert first is not None
    first["value"] = 2
    assert evidence.read("gem", tmp_path) == {"value": 1}


def test_a_file_of_equal_size_that_was_written_later_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "gem.json"
    for value in (1, 2):
        path.write_text(json.dumps({"value": value}), encoding="utf-8")
        os.utime(path, ns=(value, value))
        found = evidence.read("gem", tmp_path)
        assert found is not None
        assert found["value"] == value

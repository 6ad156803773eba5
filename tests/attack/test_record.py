"""What an attack records: what was withstood, by kind and target, and what was not."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from attacks import Attack, Record

from broadsheet.page import evidence


def report(name: str, failed: bool, *noted: list[Any], when: str = "call") -> Any:
    return SimpleNamespace(nodeid=name, failed=failed, when=when, user_properties=[("attack", each) for each in noted])


def test_counts_of_all_workers_are_added_and_failures_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    record = Record()
    for each in (
        report("a", False, ["kills", "gem", 2], ["kills", "gem", 1]),
        report("b", True, ["kills", "salt", 1]),
        report("c", True, when="setup"),
    ):
        record.pytest_runtest_logreport(each)
    record.pytest_sessionfinish(SimpleNamespace(testscollected=3))
    found = json.loads((tmp_path / "attack.benchmark.json").read_text())
    assert found["kinds"] == {"kills": {"gem": 3, "salt": 1}}
    assert found["failed"] == ["b", "c"]


def test_nothing_is_recorded_where_nothing_was_attacked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)
    Record().pytest_sessionfinish(SimpleNamespace(testscollected=3))
    assert not list(tmp_path.iterdir())


def test_all_is_done_in_an_attack_alone() -> None:
    noted: list[Any] = []
    assert Attack(False, lambda *each: noted.append(each)).of(1, 9) == 1
    whole = Attack(True, lambda *each: noted.append(each))
    assert whole.of(1, 9) == 9
    whole.count("kills", "gem", 3)
    assert noted == [("attack", ["kills", "gem", 3])]

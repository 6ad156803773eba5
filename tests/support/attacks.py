"""How large an attack is, and what came of it: `--attack` makes all of it, `--record-attack` records the figures.

Knows: counts that tests note, by kind and target, across workers. Does not know: what any attack does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

COMMAND = "python benchmarks/attack.py --record"
_NOTE = "attack"


class Attack:
    """Given to a test by the fixture `attack`."""

    def __init__(self, whole: bool, note: Callable[[str, object], None]) -> None:
        self.whole = whole
        self._note = note

    def of(self, few: int, many: int) -> int:
        """`few` in every run of the tests, `many` in an attack."""
        return many if self.whole else few

    def count(self, kind: str, target: str, number: int = 1) -> None:
        """Note that so many attacks of a kind were withstood."""
        self._note(_NOTE, [kind, target, number])


@pytest.fixture
def attack(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Attack:
    """How much is to be done, and a note of what was."""
    return Attack(request.config.getoption("--attack"), record_property)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--attack", action="store_true", help="make whole attacks (minutes)")
    parser.addoption("--record-attack", action="store_true", help="record their figures as evidence")


class Record:
    """On the process that sees all reports: adds up what was withstood, and which tests failed."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when == "call":
            for name, noted in report.user_properties:
                if name == _NOTE:
                    kind, target, number = noted
                    self.counts[kind, target] += number

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        from broadsheet.page import evidence

        if not self.counts or session.testscollected == 0:
            return
        kinds: dict[str, dict[str, int]] = {}
        for (kind, target), number in sorted(self.counts.items()):
            kinds.setdefault(kind, {})[target] = number
        record: dict[str, Any] = {"command": COMMAND, "kinds": kinds, "failed": sorted(set(self.failed))}
        record["provenance"] = evidence.provenance(seed=0)
        evidence.record("attack.benchmark", record, evidence.folder())


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-attack") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(), "attack record")

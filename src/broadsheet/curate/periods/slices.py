"""Slices of time: which works belong to which period, and at most so many of one author in each.

Knows: years, dates of birth and death, authors, titles. Does not know: texts, where years come from.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from datatrove.data import Document

from broadsheet.console import InputError
from broadsheet.curate.base import Decision, Step
from broadsheet.curate.files import PLACE, RankStatistics
from broadsheet.curate.periods.dating import YEAR, year_of_date

PERIOD = "period"


@dataclass(frozen=True)
class Period:
    """Years from `start` to before `end`."""

    start: int
    end: int

    def __contains__(self, year: int) -> bool:
        return self.start <= year < self.end

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


def periods(bounds: Sequence[int]) -> list[Period]:
    """The periods between bounds.

    Raises:
        InputError: fewer than two bounds, or they do not rise.

    Example:
        >>> [str(period) for period in periods([1750, 1820, 1850])]
        ['1750-1820', '1820-1850']
    """
    if len(bounds) < 2 or any(a >= b for a, b in pairwise(bounds)):
        raise InputError(f"got bounds {list(bounds)}; expected two years or more, each later than the one before")
    return [Period(start, end) for start, end in pairwise(bounds)]


class SliceByDate(Step):
    """Put each work into its period: `metadata["period"]`. Needs a year, from `AttributeDate`.

    Dropped are works `outside_periods`; `outside_life`: not written after the year of birth and up to that of death;
    of `unreadable_life`; and, where asked for, of `unknown_life`.

    Args:
        bounds: years; a period goes from one to before the next.
        born, died: fields of the author's, a year or a date. Where one is absent the other alone is asked.
        need_life: drop works without both, as the authors do, whose works all have them.
        others: as of a `Step`.

    Raises:
        InputError: the bounds do not rise.
    """

    name = "slices"

    def __init__(
        self,
        bounds: Sequence[int],
        born: str = "born",
        died: str = "died",
        need_life: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.periods, self.born, self.died, self.need_life = periods(bounds), born, died, need_life

    def decide(self, documents: list[Document]) -> list[Decision]:
        return [self._decide(document) for document in documents]

    def _decide(self, document: Document) -> Decision:
        year = document.metadata[YEAR]
        period = next((each for each in self.periods if year in each), None)
        if period is None:
            return False, "outside_periods"
        told = [document.metadata.get(name) for name in (self.born, self.died)]
        known = [each for each in told if each not in (None, "")]
        if self.need_life and len(known) < 2:
            return False, "unknown_life"
        if any(year_of_date(each) is None for each in known):
            return False, "unreadable_life"
        born, died = (year_of_date(each) if each not in (None, "") else None for each in told)
        if (born is not None and year <= born) or (died is not None and year > died):  # born < year ≤ died
            return False, "outside_life"
        document.metadata[PERIOD] = str(period)
        return True


class Works(RankStatistics):
    """The first pass of the limit by author: which works there are. Documents pass through.

    Writes `<folder>/<rank>.json`: for each document its place, author, title, period and year.

    Args:
        folder: for what the ranks find.
        title, author: fields of the metadata.
    """

    name = "works"

    def __init__(self, folder: str | Path, title: str = "title", author: str = "author") -> None:
        super().__init__(folder)
        self.title, self.author = title, author

    def empty(self) -> Any:
        return []

    def note(self, found: Any, document: Document) -> None:
        told = document.metadata
        author, title = (str(told.get(name) or "") for name in (self.author, self.title))
        found.append([told[PLACE], author, title or document.id, told[PERIOD], told[YEAR]])


def beyond(works: Iterable[Sequence[Any]], most: int, seed: int = 0) -> dict[int, str]:
    """The places of documents that have to go, and why, whatever the order of the works.

    A work, an author's title, is in one period alone: that of its first year. Of an author with more works in a period
    than `most`, a random sample of the sorted titles stays. Works without an author are not limited.

    Args:
        works: as `Works` writes them, of all ranks.
        most: works of an author in a period.
        seed: of the samples.
    """
    first: dict[tuple[str, str], tuple[int, str]] = {}
    titles: dict[tuple[str, str], set[str]] = defaultdict(set)
    rows = [row for row in works if row[1]]
    for _, author, title, period, year in rows:
        first[author, title] = min(first.get((author, title), (year, period)), (year, period))
    for (author, title), (_, period) in first.items():
        titles[author, period].add(title)
    kept = {
        key: set(random.Random(f"{seed} {key}").sample(sorted(some), min(most, len(some))))
        for key, some in titles.items()
    }
    gone = {}
    for place, author, title, period, _ in rows:
        if first[author, title][1] != period:
            gone[place] = "in_an_earlier_period"
        elif title not in kept[author, period]:
            gone[place] = "beyond_authors_limit"
    return gone


class AuthorLimit(Step):
    """Drop what `beyond` names.

    Args:
        gone: places in the corpus, with the reason.
        others: as of a `Step`.
    """

    name = "works of an author"

    def __init__(self, gone: dict[int, str], **others: Any) -> None:
        super().__init__(**others)
        self.gone = gone

    def decide(self, documents: list[Document]) -> list[Decision]:
        reasons = [self.gone.get(document.metadata[PLACE]) for document in documents]
        return [True if reason is None else (False, reason) for reason in reasons]

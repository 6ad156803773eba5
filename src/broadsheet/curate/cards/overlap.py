"""Which items of a benchmark a dataset holds: so many words of an item in a row, whatever case, signs and numbers.

Knows: words, n-grams, benchmarks. Does not know: cards.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash
from datatrove.data import Document

from broadsheet.console import InputError
from broadsheet.curate.cards.steps import RowReader, Tables, added
from broadsheet.curate.files import RankStatistics, parts
from broadsheet.curate.minhash import grams, plain_words

WORDS = 13  # in a row, by which an item is known (Brown et al. 2020, arXiv:2005.14165, App. C)
FEWEST = 8  # of an item that is shorter, and is looked for as a whole


class BenchmarkIndex:
    """The n-grams of a benchmark's items.

    Args:
        spec: rows, as of `RowReader`; the text of an item is that of its row.
        words: in a row, by which an item is known.
        text_field: of the rows.

    Attributes:
        items: how many there are. short: of them, how many have fewer than 8 words, and cannot be looked for.

    Raises:
        InputError: as the rows are opened; it holds none.
    """

    def __init__(self, spec: str, words: int = WORDS, text_field: str = "text") -> None:
        self.items, self.short = 0, 0
        self._places: dict[int, dict[int, list[int]]] = {}
        for document in RowReader(spec, text_field).run():
            found = plain_words(document.text)
            n = min(words, len(found))
            if n < min(FEWEST, words):
                self.short += 1
            else:
                for gram in set(grams(found, n)):
                    self._places.setdefault(n, {}).setdefault(xxhash.xxh64_intdigest(gram), []).append(self.items)
            self.items += 1
        if not self.items:
            raise InputError(f"the benchmark {spec} holds no rows")

    def found_in(self, text: str) -> set[int]:
        """The numbers of the items that a text holds."""
        words = plain_words(text)
        held: set[int] = set()
        for n, places in self._places.items():
            for digest in map(xxhash.xxh64_intdigest, grams(words, n)):
                held.update(places.get(digest, ()))
        return held


class BenchmarkOverlap(RankStatistics):
    """Count the documents that hold an item of a benchmark, and the items that are held.

    Args:
        folder: for the ranks' files.
        benchmark, words, text_field: as of `BenchmarkIndex`.
    """

    name = "overlap with a benchmark"

    def __init__(self, folder: str | Path, benchmark: str, words: int = WORDS, text_field: str = "text") -> None:
        super().__init__(folder)
        self.benchmark, self.words, self.text_field = benchmark, words, text_field

    @cached_property
    def index(self) -> BenchmarkIndex:
        """Of the benchmark; made once in each process."""
        return BenchmarkIndex(self.benchmark, self.words, self.text_field)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "index"}

    def __deepcopy__(self, memo: dict[int, Any]) -> BenchmarkOverlap:
        made = type(self)(self.folder, self.benchmark, self.words, self.text_field)
        made.__dict__["index"] = self.index
        return made

    def note(self, found: Tables, document: Document) -> None:
        held = self.index.found_in(document.text)
        if held:
            found.setdefault("documents", Counter())["hold an item"] += 1
            found.setdefault("items", Counter()).update(map(str, held))

    def result(self, ranks: int) -> HeldItems:
        """What all ranks found."""
        told = added(parts(self.folder, ranks))
        return HeldItems(
            self.benchmark,
            self.words,
            self.index.items,
            self.index.short,
            len(told.get("items", ())),
            told.get("documents", Counter())["hold an item"],
        )


@dataclass(frozen=True)
class HeldItems:
    """What a dataset holds of a benchmark.

    Args:
        benchmark: as it was named. words: in a row, by which an item is known.
        items: of the benchmark. short: of them, too short to be looked for.
        held: items that are in the dataset. documents: of the dataset that hold one.
    """

    benchmark: str
    words: int
    items: int
    short: int
    held: int
    documents: int

    @property
    def share(self) -> float:
        """Of the items that can be looked for, those that are held; 0 where none can."""
        return self.held / max(1, self.items - self.short)

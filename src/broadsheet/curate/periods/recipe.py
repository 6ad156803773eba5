"""What `broadsheet apply diachronic` runs: dated works to slices of time with their splits, and the words that changed.

Knows: passes, statistics between them, files. Does not know: rules of dates, splits or scores.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from broadsheet.apply.base import Source
from broadsheet.cache import atomic_write
from broadsheet.console import InputError, say
from broadsheet.curate.recipe import CurateRecipe, Passes, row
from broadsheet.options import option

if TYPE_CHECKING:
    from datatrove.data import Document

    from broadsheet.curate.diachronic import Diachronic

PERIODS, CHANGES = "periods.json", "changes.csv"
_LONGEST = 50_000_000  # characters of a work


@dataclass
class DiachronicRecipe(CurateRecipe):
    """Works with their years to a folder for each slice, `1750-1820/train.jsonl`, `test.jsonl` and `dev.jsonl`.

    A document is a work, with its year, its title, and its author's years of birth and death; paragraphs end at empty
    lines. Beside the slices stand `periods.json` (works and words of each), `changes.csv` (words by how their log-odds
    move over the periods: no model is asked), and why works went.
    """

    paper: ClassVar[str] = "diachronic"
    lacks: ClassVar[tuple[str, ...]] = ("model", "device", "dtype")

    seed: int = option(42, "Of samples of an author's works, and of splits.", least=0)
    bounds: str | None = option(
        None,
        "Years; a slice goes from one to before the next. By default 1750,1820,1850,1880,1910,1940.",
        metavar="YEARS",
    )
    year_field: str = option("year", "The field that holds the year of writing.")
    teacher: str | None = option(
        None, "A model that names the year of works without one: default, a folder, or endpoint:NAME.", metavar="MODEL"
    )
    need_life: bool = option(False, "Drop works without their author's years of birth and death.")
    report: int = option(200, "Changed words in changes.csv; 0 writes none.", least=0)

    def title(self) -> str:
        return "Slices of time"

    def settings(self) -> dict[str, Any]:
        self.method_made()  # what cannot be is refused before anything is written
        return super().settings()

    def method_made(self) -> Diachronic:
        """The method with these options.

        Raises:
            InputError: one is out of range.
        """
        from broadsheet.curate.diachronic import Diachronic

        found = self.configured(Diachronic, **({"bounds": _years(self.bounds)} if self.bounds else {}))
        self.check_calls([Diachronic])
        return found

    def curate(self, source: Source, passes: Passes) -> Iterator[Document]:
        from broadsheet.curate.files import CorpusReader, ShardReader, ShardWriter, once, parts
        from broadsheet.curate.periods.dating import AttributeDate
        from broadsheet.curate.periods.slices import AuthorLimit, SliceByDate, Works, beyond
        from broadsheet.curate.periods.splits import ParagraphWords, WordBudgetSplit, assigned
        from broadsheet.curate.readable import Readable

        method, work, tasks = self.method_made(), passes.folder, passes.tasks
        reader = CorpusReader(source.spec, source.on_error, source.text_field, source.id_field)
        dated = [Readable(_LONGEST), AttributeDate(self.year_field, self.teacher)]
        sliced = SliceByDate(method.bounds, need_life=self.need_life)
        passes.run("1 slices", [reader, *dated, sliced, Works(work / "works"), ShardWriter(work / "sliced")])
        gone = once(
            work / "gone.json",
            lambda: sorted(beyond(_all(parts(work / "works", tasks)), method.works, self.seed).items()),
        )
        limit = AuthorLimit(dict(gone))
        counted = ParagraphWords(work / "paragraphs")
        passes.run("2 works", [ShardReader(work / "sliced"), limit, counted, ShardWriter(work / "kept")])
        paragraphs = _all(parts(work / "paragraphs", tasks))
        level: Any = method.split_level
        once(work / "splits.json", lambda: assigned(paragraphs, method.budgets, level, self.seed))
        split = WordBudgetSplit(work / "splits.json")
        writer = ShardWriter(work / "pieces", "${period} ${split} ${rank}.jsonl")
        passes.run("3 splits", [ShardReader(work / "kept"), split, writer])
        return iter(())  # they are written by `write`, a split at a time

    def write(self, documents: Iterator[Document], folder: Path, passes: Passes) -> tuple[int, int]:
        from broadsheet.curate.files import PLACE, ShardReader, parts
        from broadsheet.curate.periods.counts import counted
        from broadsheet.curate.periods.slices import periods
        from broadsheet.curate.periods.splits import SPLITS

        told: dict[str, dict[str, Any]] = {}
        learnt, written = {}, 0
        paragraphs = _all(parts(passes.folder / "paragraphs", passes.tasks))
        for name in map(str, periods(self.method_made().bounds)):
            own = [words for _, period, words in paragraphs if period == name]
            splits: dict[str, dict[str, int]] = {}
            for split in SPLITS:
                shards = ShardReader(passes.folder / "pieces", f"{name} {split} ${{rank}}.jsonl")
                read = [each for rank in range(passes.tasks) for each in shards.run(rank=rank)]
                read.sort(key=lambda each: each.metadata[PLACE])
                splits[split] = {"paragraphs": len(read), "words": sum(len(each.text.split()) for each in read)}
                written += len(read)
                if split == "train":
                    learnt[name] = counted(each.text for each in read)
                if read:
                    with atomic_write(folder / name / f"{split}.jsonl") as file:
                        file.writelines(row(each) for each in read)
            left = sum(map(sum, own)) - sum(each["words"] for each in splits.values())
            told[name] = {"works": len(own), **splits, "words beyond the budgets": left}
        with atomic_write(folder / PERIODS) as file:
            json.dump(told, file, indent=1)
        if written:
            self._report(folder, {name: counts for name, counts in learnt.items() if counts})
            say(_line(told))
        works = sum(each["works"] for each in told.values()) if written else 0
        return works, works

    def _report(self, folder: Path, learnt: Mapping[str, Counter[str]]) -> None:
        """The words whose log-odds move most over the periods that have text."""
        from broadsheet.curate.periods.counts import trend

        if not self.report or len(learnt) < 2:
            return
        total: Counter[str] = sum(learnt.values(), Counter())
        words = sorted(word for word, count in total.items() if count >= _LEAST)
        if not words:
            return
        scores = dict(zip(words, trend(list(learnt.values()), words).tolist(), strict=True))
        words = sorted(words, key=lambda word: (-abs(scores[word]), word))[: self.report]
        with atomic_write(folder / CHANGES) as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["word", "z", *learnt])
            rows.writerows([word, f"{scores[word]:.2f}", *(each[word] for each in learnt.values())] for word in words)


_LEAST = 5  # occurrences of a word in the report


def _all(ranks: list[list[Any]]) -> list[Any]:
    return [each for rank in ranks for each in rank]


def _years(told: str) -> tuple[int, ...]:
    """Years between commas.

    Raises:
        InputError: it is something else.
    """
    try:
        return tuple(int(each) for each in told.split(","))
    except ValueError:
        raise InputError(f"got --bounds {told!r}; expected years between commas, as in 1750,1820,1850") from None


def _line(told: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{name}: {each['works']:,} works, {each['train']['words']:,} words" for name, each in told.items()
    )

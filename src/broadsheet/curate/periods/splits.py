"""Splits by a budget of words: paragraphs, or whole works, in random order, taken while they fit.

Knows: paragraphs, words between spaces, budgets. Does not know: dates. A paragraph ends at an empty line.

Split by paragraph, as the authors do, and parts of one book come to lie in `train` and `test`: a model of the period
then knows the book, and some of what looks like the period is its author. Split by work to leave that out.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from broadsheet.console import InputError
from broadsheet.curate.files import PLACE, RankStatistics, parsed
from broadsheet.curate.periods.slices import PERIOD

Level = Literal["paragraph", "work"]
SPLITS = ("train", "test", "dev")  # in the order in which they are filled
SPLIT, LEFT = "split", -1
_EMPTY_LINE = re.compile(r"\n\s*\n")


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, with single spaces; those without a word are none."""
    return [found for each in _EMPTY_LINE.split(text) if (found := " ".join(each.split()))]


def fill(words: Sequence[int], budgets: Sequence[int]) -> list[list[int]]:
    """Which pieces each split takes, in their order: a piece that still fits, and else the next split may have it.

    Args:
        words: of each piece; one without words is taken nowhere.
        budgets: of each split, in words.

    Returns:
        for each budget the places of its pieces, rising.
    """
    taken, left = [], range(len(words))
    for budget in budgets:
        some, rest, spent = [], [], 0
        for place in left:
            if 0 < words[place] <= budget - spent:
                some.append(place)
                spent += words[place]
            else:
                rest.append(place)
        taken.append(some)
        left = rest  # type: ignore[assignment]
    return taken


class ParagraphWords(RankStatistics):
    """The first pass of a split: how many words each paragraph has. Documents pass through.

    Writes `<folder>/<rank>.json`: for each document its place, its period, and the words of its paragraphs.

    Args:
        folder: for the ranks' counts.
    """

    name = "words of paragraphs"

    def empty(self) -> Any:
        return []

    def note(self, found: Any, document: Document) -> None:
        words = [each.count(" ") + 1 for each in paragraphs(document.text)]
        found.append([document.metadata[PLACE], document.metadata[PERIOD], words])


def assigned(
    documents: Iterable[Sequence[Any]], budgets: Sequence[int], level: Level = "paragraph", seed: int = 42
) -> dict[str, list[list[int]]]:
    """Where each paragraph goes, in each period by itself: the same for the same documents, whatever their ranks.

    Args:
        documents: as `ParagraphWords` writes them, of all ranks.
        budgets: words of `SPLITS`.
        level: what is taken whole.
        seed: of the order in which pieces are taken, and of that in which they then stand.

    Returns:
        by place of the document, for each paragraph its split and its position there; `LEFT` of both where none.

    Raises:
        InputError: there is no such level; a budget is below 0.
    """
    if level not in get_args(Level) or min(budgets) < 0:
        raise InputError(f"got level {level!r}, budgets {list(budgets)}; expected paragraph or work, and words from 0")
    of_period: dict[str, list[tuple[int, list[int]]]] = defaultdict(list)
    found: dict[str, list[list[int]]] = {}
    for place, period, words in sorted(documents, key=lambda each: each[0]):
        of_period[period].append((place, words))
        found[str(place)] = [[LEFT, LEFT] for _ in words]
    for period, works in of_period.items():
        drawn = random.Random(f"{seed} {period}")
        if level == "work":
            pieces = [[(place, i) for i in range(len(words))] for place, words in works]
        else:
            pieces = [[(place, i)] for place, words in works for i in range(len(words))]
        sizes = dict(works)
        drawn.shuffle(pieces)
        taken = fill([sum(sizes[place][i] for place, i in piece) for piece in pieces], budgets)
        for split, places in enumerate(taken):
            drawn.shuffle(places)
            whole = (paragraph for place in places for paragraph in pieces[place])
            for position, (place, i) in enumerate(whole):
                found[str(place)][i] = [split, position]
    return found


class WordBudgetSplit(PipelineStep):
    """Cut each document into its paragraphs: a document each, with `metadata["split"]`; what fits nowhere is dropped.

    A paragraph's `place` is its position in its split; its id is the document's, with the number of the paragraph.

    Args:
        places: as `assigned` gives them, or a JSON file that holds them.
    """

    type = "✂️ - SPLIT"
    name = "splits"

    def __init__(self, places: Mapping[str, list[list[int]]] | str | Path) -> None:
        super().__init__()
        self.places = places

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        places = self._read()
        for document in data:
            self.stat_update("total")
            found = zip(paragraphs(document.text), places[str(document.metadata[PLACE])], strict=True)
            for i, (text, (split, position)) in enumerate(found):
                if split == LEFT:
                    self.stat_update("beyond_budgets")
                    continue
                self.stat_update("forwarded")
                metadata = {**document.metadata, SPLIT: SPLITS[split], PLACE: position}
                yield Document(text, f"{document.id}#{i}", metadata=metadata)

    def _read(self) -> Mapping[str, list[list[int]]]:
        if isinstance(self.places, Mapping):
            return self.places
        path = Path(self.places)
        read: dict[str, list[list[int]]] = parsed(path, path.read_bytes())
        return read

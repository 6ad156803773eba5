"""Lists to train on: rows of a query, its documents and their ranking or labels, and the order they are learnt in.

Knows: files, rows, seeds. Does not know: prompts, tokenizers, tensors.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from broadsheet.cache import atomic_write
from broadsheet.console import InputError, say
from broadsheet.data import rows
from broadsheet.data.retrieval.lists import RankList
from broadsheet.data.rows import OnError
from broadsheet.data.schemas import Ranked
from broadsheet.data.sources import InvalidRow

Row = Mapping[str, Any]
Order = Literal["first_stage", "shuffled"]


def read_rows(spec: str | Path, on_error: OnError = "stop") -> list[dict[str, Any]]:
    """Lists to train on or to label: rows of `Ranked`, as `rows.read` takes them.

    Raises:
        InputError: there are none, or one is no list, named with its line.
    """
    found = rows.read(spec, Ranked, on_error).some("lists")
    return [{name: _plain(value) for name, value in vars(row).items() if value is not None} for row in found]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def training_rows(
    lists: Iterable[RankList], *, order: Order = "shuffled", seed: int = 0, epoch: int = 0
) -> list[dict[str, Any]]:
    """Rows `query`, `documents`, `labels`, `ranking` to train a reranker on.

    Args:
        lists: their candidates become `documents`.
        order: `"shuffled"` by seed, epoch and query, so that the place of a passage tells nothing about it; or
            `"first_stage"`, as a reranker will be given them, where a model may learn to trust the first places.
        seed, epoch: of the shuffling.

    Returns:
        Rows whose `ranking` holds indices into `documents`: the more relevant first, those alike in first-stage order.
    """
    rows = []
    for each in lists:
        places = list(range(len(each.ids)))
        if order == "shuffled":
            random.Random(f"{seed}/{epoch}/{each.id}").shuffle(places)
        labels = [each.labels[i] for i in places]
        ranking = sorted(range(len(places)), key=lambda i: (-labels[i], places[i]))
        documents = [each.documents[i] for i in places]
        rows.append({"query": each.query, "documents": documents, "labels": labels, "ranking": ranking})
    return rows


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows as JSONL, under a temporary name until they are all there."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def check_row(row: Any, place: str) -> None:
    """Raises InputError unless `row` has a query, at least two documents, and a `ranking` or `labels` for them."""
    if isinstance(found := rows.made(Ranked, row), InvalidRow):
        raise InputError(found.at(place))


@dataclass(frozen=True)
class ListItem:
    """A list as one prompt shows it: `documents` in that order, the rank each should have, their relevance.

    `order` is the ranking to be written: positions, best first, those alike in the order shown.
    """

    query: str
    documents: list[Any]
    ranks: list[int]
    relevance: list[float]

    @property
    def order(self) -> list[int]:
        return sorted(range(len(self.ranks)), key=lambda i: self.ranks[i])


class ListDataset:
    """Lists in the order and the shape they are trained on: item `p` follows from (seed, epoch, index) alone.

    Epochs lie one behind another, so that its plain order is the order of training and a resumed run sees what an
    uninterrupted one would have seen.

    Args:
        rows: see `check_row`. A `ranking` goes before `labels`; documents it does not name are last, all alike. Rows
            that tell no two documents apart are left out, and their number is reported.
        epochs: times that each list comes, in a new order and shape.
        sizes: (least, most) passages of a list, drawn anew each time; None = all. Lists are cut to that many: of
            labelled ones a relevant document stays in.
        shuffle: share of the lists whose documents are shuffled; the others keep their order (the first stage's). With
            1 a model cannot lean on the place of a passage, with 0 it learns the order it will be given.
        negatives: which documents are left in besides: `"random"`, or `"first"`, those ranked highest by the first
            stage, the hardest.
        seed: of everything drawn.

    Raises:
        InputError: a row is no list to train on, or none is left; a parameter is out of range.
    """

    in_order = True  # for `training.fit`: no other shuffling

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        epochs: int = 1,
        sizes: tuple[int, int] | None = None,
        shuffle: float = 1.0,
        negatives: Literal["random", "first"] = "random",
        seed: int = 0,
    ) -> None:
        if epochs < 1:
            raise InputError(f"got epochs {epochs}; expected 1 or more")
        if sizes is not None and not 2 <= sizes[0] <= sizes[1]:
            raise InputError(f"got sizes {sizes}; expected (least, most) passages with 2 ≤ least ≤ most")
        if not 0 <= shuffle <= 1:
            raise InputError(f"got shuffle {shuffle}; expected a share from 0 to 1")
        if negatives not in ("random", "first"):
            raise InputError(f"got negatives {negatives!r}; expected 'random' or 'first'")
        self.lists: list[ListItem] = []
        for number, row in enumerate(rows, start=1):
            check_row(row, f"row {number}")
            item = list_item(row)
            if len(set(item.ranks)) > 1:
                self.lists.append(item)
        if left_out := len(rows) - len(self.lists):
            say(f"{left_out:,} of {len(rows):,} lists tell no two documents apart: left out")
        if not self.lists:
            raise InputError(f"got {len(rows)} lists, none of which tells two documents apart; nothing to train on")
        self.epochs, self.sizes, self.shuffle, self.negatives, self.seed = epochs, sizes, shuffle, negatives, seed
        self._order: tuple[int, list[int]] = (-1, [])
        self._rows = rows

    def identity(self) -> list[dict[str, Any]]:
        """The rows that lists are made of, as JSON."""
        return [dict(row) for row in self._rows]

    def __len__(self) -> int:
        return len(self.lists) * self.epochs

    def __getitem__(self, position: int) -> ListItem:
        if not 0 <= position < len(self):
            raise IndexError(position)
        epoch, place = divmod(position, len(self.lists))
        if self._order[0] != epoch:
            order = list(range(len(self.lists)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._order = epoch, order
        index = self._order[1][place]
        draw = random.Random(f"{self.seed}/{epoch}/{index}")
        whole = self.lists[index]
        kept = list(range(len(whole.documents)))
        if self.sizes is not None:
            size = draw.randint(*self.sizes)
            if size < len(kept):
                kept = self._subset(whole, size, draw)
        if draw.random() < self.shuffle:
            draw.shuffle(kept)
        return ListItem(
            whole.query,
            [whole.documents[i] for i in kept],
            _dense([whole.ranks[i] for i in kept]),
            [whole.relevance[i] for i in kept],
        )

    def _subset(self, whole: ListItem, size: int, draw: random.Random) -> list[int]:
        """`size` documents in their order; where some are alike, with one of the best and one of another rank."""
        indices = range(len(whole.documents))
        if self.negatives == "random" and len(set(whole.ranks)) == len(indices):
            return sorted(draw.sample(indices, size))
        best = draw.choice([i for i in indices if whole.ranks[i] == min(whole.ranks)])
        others = [i for i in indices if whole.ranks[i] != whole.ranks[best]]
        forced = {best, others[0] if self.negatives == "first" else draw.choice(others)}
        rest = [i for i in indices if i not in forced]
        more = rest[: size - len(forced)] if self.negatives == "first" else draw.sample(rest, size - len(forced))
        return sorted(forced.union(more))


def list_item(row: Row) -> ListItem:
    """A checked row as it stands."""
    documents = list(row["documents"])
    n = len(documents)
    if row.get("ranking") is not None:
        places = {document: place for place, document in enumerate(row["ranking"])}
        ranks = [places.get(i, len(places)) for i in range(n)]
        labels = row.get("labels")
        relevance = [float(n - 1 - rank) for rank in ranks] if labels is None else [float(x) for x in labels]
    else:
        relevance = [float(x) for x in row["labels"]]
        ranks = [sum(other > one for other in relevance) for one in relevance]
    return ListItem(row["query"], documents, ranks, relevance)


def _dense(ranks: list[int]) -> list[int]:
    """Ranks within a part of a list: how many of it stand before."""
    return [sum(other < one for other in ranks) for one in ranks]

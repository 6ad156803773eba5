"""Contexts of a path of documents: joined in their order, cut to equal lengths, and shuffled as contexts.

Knows: tokens of documents, an order of them. Does not know: where the order comes from, models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broadsheet.cache import fingerprint
from broadsheet.console import InputError


class Contexts(Sequence[dict[str, Tensor]]):
    """Rows for a `Trainer`: `{"input_ids": (length,), "labels": (length,)}`, documents side by side as on their path.

    Contexts are shuffled, documents within them are not: a batch then holds all kinds of text, a context one. Attention
    goes from one document to those before it, and positions go on.

    Args:
        documents: the tokens of each, with whatever ends it.
        path: places of documents, in the order of reading; one may come several times.
        length: tokens of a context.
        seed: of the order of contexts; None: that of the path.
        drop_last: leave out what fills no context at the end; else the last one is shorter, for a collator that pads.

    Raises:
        InputError: there is no whole context.

    Example:
        >>> from broadsheet.curate import Contexts
        >>> rows = Contexts([[1, 2, 0], [3, 0], [4, 5, 6, 0]], path=[2, 0, 1], length=4, seed=None)
        >>> [row["input_ids"].tolist() for row in rows], rows.spans(1)
        ([[4, 5, 6, 0], [1, 2, 0, 3]], [(0, 0, 3), (1, 0, 1)])
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        path: Sequence[int] | NDArray[np.int64],
        length: int,
        *,
        seed: int | None = 0,
        drop_last: bool = True,
    ) -> None:
        self.path = np.asarray(path, np.int64)
        self.length = length
        self._ends = np.cumsum([len(documents[i]) for i in self.path], dtype=np.int64)
        rows = [np.asarray(documents[i], np.int64) for i in self.path]
        self.stream = torch.from_numpy(np.concatenate([*rows, np.zeros(0, np.int64)]))
        count = len(self.stream) // length if drop_last else -(-len(self.stream) // length)
        if not count:
            raise InputError(f"got {len(self.stream):,} tokens; expected a context of {length:,} at least")
        self.order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        begin = int(self.order[place]) * self.length
        ids = self.stream[begin : begin + self.length]
        return {"input_ids": ids, "labels": ids}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

    def spans(self, place: int) -> list[tuple[int, int, int]]:
        """What a context holds: of each document its place, and the first of its tokens and the one after its last."""
        begin = int(self.order[place]) * self.length
        end = min(begin + self.length, len(self.stream))
        found = []
        for i in range(int(np.searchsorted(self._ends, begin, "right")), len(self.path)):
            first = int(self._ends[i - 1]) if i else 0
            if first >= end:
                break
            last = int(self._ends[i])
            if last > first:
                found.append((int(self.path[i]), max(begin, first) - first, min(end, last) - first))
        return found

    def identity(self) -> Any:
        """What tells these rows from others."""
        return [self.length, fingerprint(self.stream.tolist()), fingerprint(self.order.tolist())]

"""A store of key/value blocks that only grows, on the device or off it, and copies of those that are in use.

Knows: keys and values of one padding-free batch, and which blocks are wanted. Does not know: queries, positions, why a
block is wanted.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor

from broadsheet.attend.memory import Bytes


class Blocks:
    """Blocks of equally many tokens. A block never changes, so that rows which continue one text share theirs.

    Keys and values come and go as pairs: (rows, 2, kv_heads, tokens, head_dim), keys first.

    Args:
        rows: how many.
        block_size: tokens in a block.
        choosers: how many parts of a row want blocks of their own: 1, or the number of query heads.
        max_loaded: keep the blocks in the host's memory (pinned, if they come from CUDA) and, between two calls, copies
            of at most `max_loaded` for each chooser on the device, the least recently used one being dropped (InfLLM,
            Step 6); None keeps all blocks on the device.

    Attributes:
        loads: blocks copied from the host so far.
    """

    def __init__(self, rows: int, block_size: int, choosers: int = 1, max_loaded: int | None = None) -> None:
        self.block_size, self.choosers, self.max_loaded = block_size, choosers, max_loaded
        self.loads = 0
        # Of each row, its blocks: (2, kv_heads, block_size, head_dim).
        self._store: list[list[Tensor]] = [[] for _ in range(rows)]
        # Of each row and chooser, the copies by number of block, the least recently used one first.
        self._loaded = [[OrderedDict[int, Tensor]() for _ in range(choosers)] for _ in range(rows)]

    def __len__(self) -> int:
        """Blocks of a row."""
        return len(self._store[0])

    def add(self, pair: Tensor) -> None:
        """Add tokens that make whole blocks: (rows, 2, kv_heads, tokens, head_dim)."""
        for store, of_row in zip(self._store, pair, strict=True):
            for block in of_row.split(self.block_size, 2):
                if self.max_loaded is not None and block.is_cuda:
                    store.append(torch.empty(block.shape, dtype=block.dtype, pin_memory=True).copy_(block))
                else:
                    store.append(block.clone(memory_format=torch.contiguous_format))

    def load(self, wanted: Tensor, before: Tensor, behind: Tensor) -> Tensor:
        """Blocks side by side, in the order given, between tokens that are not in blocks.

        Args:
            wanted: (rows, choosers, blocks).
            before, behind: pairs on the device.

        Returns:
            A pair; its heads are the key heads, or all query heads where each of them chooses for itself.
        """
        found = []
        for row, of_row in enumerate(wanted.tolist()):
            for chooser, numbers in enumerate(of_row):
                blocks = self._fetch(row, chooser, numbers, before.device)
                found.append(
                    torch.cat((self._share(before[row], chooser), *blocks, self._share(behind[row], chooser)), -2)
                )
        # (rows * choosers, 2, heads of a chooser, …) -> (rows, 2, heads, …)
        all_found = found[0][None] if len(found) == 1 else torch.stack(found)
        return all_found.unflatten(0, (-1, self.choosers)).transpose(1, 2).flatten(2, 3)

    def select(self, rows: Tensor) -> Self:
        """Those of these rows, in this order; rows may repeat. Later use does not touch the old one."""
        chosen = copy.copy(self)
        chosen._store = [list(self._store[row]) for row in rows.tolist()]
        chosen._loaded = [[of_chooser.copy() for of_chooser in self._loaded[row]] for row in rows.tolist()]
        return chosen

    def bytes(self) -> Bytes:
        """Bytes on the device and off it; what rows share is counted once."""
        store = _bytes(block for row in self._store for block in row)
        loaded = _bytes(copied for row in self._loaded for of_chooser in row for copied in of_chooser.values())
        return Bytes(store, 0) if self.max_loaded is None else Bytes(loaded, store)

    def _fetch(self, row: int, chooser: int, numbers: list[int], device: torch.device) -> list[Tensor]:
        """Blocks on the device, (2, heads of a chooser, block_size, head_dim) each."""
        store = self._store[row]
        if self.max_loaded is None:
            return [self._share(store[number], chooser) for number in numbers]
        loaded = self._loaded[row][chooser]
        for number in numbers:
            if number not in loaded:
                share = self._share(store[number], chooser)
                loaded[number] = torch.empty_like(share, device=device).copy_(share, non_blocking=True)
                self.loads += 1
            loaded.move_to_end(number)
        found = [loaded[number] for number in numbers]
        while len(loaded) > self.max_loaded:  # only after `found` holds those of this step
            loaded.popitem(last=False)
        return found

    def _share(self, pair: Tensor, chooser: int) -> Tensor:
        """What a chooser reads of a row's (2, kv_heads, tokens, head_dim): all, or the key head of a query head."""
        if self.choosers == 1:
            return pair
        head = chooser * pair.shape[1] // self.choosers
        return pair[:, head : head + 1]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in {id(each): each for each in tensors}.values())

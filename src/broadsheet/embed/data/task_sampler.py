"""Batches that hold one task, so that a query's negatives, on every device, are of the same task.

Knows: sizes of data sets, processes. Does not know: rows, losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler
from sentence_transformers.util.distributed import get_world_size

from broadsheet.console import say


def one_task_batches(
    sizes: Sequence[int], batch_size: int, *, processes: int = 1, seed: int = 0, epoch: int = 0
) -> list[list[int]]:
    """The batches of an epoch, as row indices of the concatenated data sets.

    Every data set is shuffled and cut into blocks of `processes` batches; an incomplete block is left out; the blocks
    are shuffled. The batches of a block follow each other: several processes work on one block at a time. A function
    of its arguments alone, hence the same in every process.

    Example:
        >>> one_task_batches([2, 3], 2)  # one of the three is left out
        [[4, 2], [0, 1]]
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    block = batch_size * processes
    blocks: list[list[int]] = []
    first = 0
    for size in sizes:
        order = (torch.randperm(size, generator=generator) + first).tolist()
        blocks += [order[i : i + block] for i in range(0, size - block + 1, block)]
        first += size
    shuffled = [blocks[i] for i in torch.randperm(len(blocks), generator=generator).tolist()]
    return [part[i : i + batch_size] for part in shuffled for i in range(0, block, batch_size)]


class OneTaskBatchSampler(MultiDatasetDefaultBatchSampler):
    """The batch sampler for a dict of data sets: `fit(…, multi_dataset_batch_sampler=OneTaskBatchSampler)`.

    sentence-transformers' own samplers fill a batch from one data set too, but with several processes the batches of a
    step come from different ones, whose keys gathered losses then mix; and they keep incomplete batches.

    Attributes:
        dropped_: number of rows that an epoch leaves out, by index of the data set; reported once.

    Source: arXiv:2310.07554; authors' code FlagOpen/FlagEmbedding, research/llm_embedder ("epoch" batches).
    """

    def __init__(self, dataset: Any, batch_samplers: Any, generator: Any = None, seed: int = 0) -> None:
        super().__init__(dataset, batch_samplers, generator, seed)
        self.sizes = [len(each) for each in dataset.datasets]
        block = self.batch_size * get_world_size()
        self.dropped_ = [size % block for size in self.sizes]
        self.length = sum(size // block for size in self.sizes) * get_world_size()
        if any(self.dropped_):
            say(
                f"a batch holds one task: {sum(self.dropped_):,} of {sum(self.sizes):,} rows are left out of each epoch"
            )

    def __iter__(self) -> Iterator[list[int]]:
        yield from one_task_batches(
            self.sizes, self.batch_size, processes=get_world_size(), seed=self.seed, epoch=self.epoch
        )

    def __len__(self) -> int:
        return self.length

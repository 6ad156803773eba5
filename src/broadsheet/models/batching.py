"""Batches that fit: grouping texts of mixed length by padded tokens, and halving a batch that does not fit.

Knows lengths and out-of-memory errors; does not know models or tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from broadsheet.console import say

T = TypeVar("T")
R = TypeVar("R")


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group items so that each batch, padded to its longest item, holds at most `budget` tokens.

    Args:
        lengths: tokens of each item.
        budget: padded tokens per batch; an item longer than that makes a batch of its own.

    Returns:
        Batches of indices into `lengths`, every index once, longest items first: so padding is least, and a batch that
        does not fit into memory shows at the start.

    Example:
        >>> token_budget_batches([3, 9, 4], budget=10)
        [[1], [2, 0]]
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def halve_on_oom(run: Callable[[Sequence[T]], Sequence[R]], batch: Sequence[T]) -> list[R]:
    """Run `run(batch)`; when memory runs out, run its two halves instead, and so on.

    Args:
        run: maps a batch to one result per item; called again on parts of the batch, so it must not keep state.
        batch: at least one item.

    Returns:
        One result per item, in the order of `batch`.

    Raises:
        MemoryError, torch.OutOfMemoryError, RuntimeError: a single item does not fit; or whatever else `run` raises.

    Example:
        >>> halve_on_oom(lambda texts: [len(text) for text in texts], ["a", "bc"])
        [1, 2]
    """
    try:
        return list(run(batch))
    except (MemoryError, RuntimeError) as error:
        if len(batch) == 1 or not _out_of_memory(error):
            raise
    # Outside the handler, so that the failed attempt's tensors, held by the traceback, are freed first.
    _release()
    middle = len(batch) // 2
    say(f"a batch of {len(batch)} does not fit into memory: halving it")
    return halve_on_oom(run, batch[:middle]) + halve_on_oom(run, batch[middle:])


def _out_of_memory(error: Exception) -> bool:
    """CUDA has a class for it; torch on CPU and MPS raises a RuntimeError that says so."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _release() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Several processes that train together: who is first, what they agree on, and losses over the batches of all.

Knows tensors, and the processes of `torch.distributed` if there are any. Does not know models.

Data-parallel training averages gradients over processes. A mean over rows is then right only if every process has as
many; `global_mean` is right for any numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from broadsheet.console import InputError

T = TypeVar("T")


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and messages."""
    return world() == 1 or dist.get_rank() == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world() > 1:
        dist.barrier()


def from_first(value: T) -> T:
    """The first process's value, in all of them."""
    if world() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value summed over all processes."""
    if world() == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return [float(value) for value in summed]


def summed(values: Tensor) -> Tensor:
    """A tensor of each process, summed over all; without gradients."""
    values = values.detach()
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


@contextmanager
def entered_by_first(place: AbstractContextManager[T]) -> Iterator[T]:
    """`place`, entered by the first process alone; the others get what it gave.

    Raises:
        InputError: in all processes, where the first one was refused.
    """
    if world() == 1:
        with place as only:
            yield only
        return
    held: Any = None
    refusal = ""
    if is_first():
        try:
            held = place.__enter__()
        except InputError as error:
            refusal = str(error)
    held, refusal = from_first((held, refusal))
    if refusal or held is None:
        raise InputError(refusal)
    try:
        yield held
        wait_for_all()  # a process that fails does not come here, and the launcher ends the others
    finally:
        if is_first():
            place.__exit__(None, None, None)


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes in order, with gradients to where they came from, and the place of one's own first row.

    Args:
        rows: (n, …); n may differ between processes, and be 0.
    """
    if world() == 1:
        return rows, 0
    from sentence_transformers.util.distributed import all_gather

    counts = all_gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    filled = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])  # all_gather wants one shape
    everything = all_gather(filled, with_grad=True).view(len(counts), max(counts), *rows.shape[1:])
    whole = torch.cat([part[:count] for part, count in zip(everything, counts, strict=True)])
    return whole, sum(counts[: dist.get_rank()])


def global_mean(total: Tensor, count: int | Tensor) -> Tensor:
    """A sum over this process's part, to be minimised as the mean over all parts; 0 where there is none.

    The value is multiplied by the number of processes, which the averaging of gradients takes back.
    """
    everywhere = torch.as_tensor(count, device=total.device)
    if world() > 1:
        from sentence_transformers.util.distributed import all_gather

        everywhere = all_gather(everywhere[None]).sum()
    return total * world() / everywhere.clamp(min=1)

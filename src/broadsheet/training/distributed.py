"""Losses over the batches of several processes, exactly as one process would compute them over all rows.

Knows tensors, and the processes of `torch.distributed` if there are any. Does not know models.

Data-parallel training averages gradients over processes. A mean over rows is then right only if every process has as
many; `global_mean` is right for any numbers.
"""

from __future__ import annotations

import torch
from sentence_transformers.util.distributed import all_gather, get_rank, get_world_size
from torch import Tensor


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes in order, with gradients to where they came from, and the place of one's own first row.

    Args:
        rows: (n, …); n may differ between processes, and be 0.
    """
    if get_world_size() == 1:
        return rows, 0
    counts = all_gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    filled = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])])  # all_gather wants one shape
    everything = all_gather(filled, with_grad=True).view(len(counts), max(counts), *rows.shape[1:])
    whole = torch.cat([part[:count] for part, count in zip(everything, counts, strict=True)])
    return whole, sum(counts[: get_rank()])


def global_mean(total: Tensor, count: int | Tensor) -> Tensor:
    """A sum over this process's part, to be minimised as the mean over all parts; 0 where there is none.

    The value is multiplied by the number of processes, which the averaging of gradients takes back.
    """
    everywhere = torch.as_tensor(count, device=total.device)
    processes = get_world_size()
    if processes > 1:
        everywhere = all_gather(everywhere[None]).sum()
    return total * processes / everywhere.clamp(min=1)

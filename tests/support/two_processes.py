"""Processes of a gloo group in these tests: how they begin and how they end."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from forks import context


def both(work: Callable[..., None], *given: Any) -> None:
    """Run `work(rank, *given)` as ranks 0 and 1; an error of either is raised."""
    several(2, work, *given)


def several(count: int, work: Callable[..., None], *given: Any) -> None:
    """Run `work(rank, *given)` as so many ranks; an error of any is raised."""
    context()
    torch.multiprocessing.start_processes(work, given, nprocs=count, start_method="forkserver")


def leave() -> None:
    """Wait for the other process, and end at once with status 0; results are on disk by now.

    Torn down in the ordinary way, a process now and then waits forever for threads of a group whose peer has gone.
    """
    dist.barrier()
    os._exit(0)

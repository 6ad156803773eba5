"""Processes of a gloo group, and others, in these tests: how they begin and how they end."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

import torch
import torch.distributed as dist

# What the server imports once, so that a process begins in no time.
IMPORTED = [
    "peft",
    "pytest",
    "sentence_transformers",
    "transformers.models.llama.modeling_llama",
    "broadsheet.training",
]


def context() -> ForkServerContext:
    """Of new processes: forks of a server that has imported the libraries and has no threads to lose."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    return multiprocessing.get_context("forkserver")


def both(work: Callable[..., None], *given: Any) -> None:
    """Run `work(rank, *given)` as ranks 0 and 1; an error of either is raised."""
    context()
    torch.multiprocessing.start_processes(work, given, nprocs=2, start_method="forkserver")


def leave() -> None:
    """Wait for the other process, and end at once with status 0; results are on disk by now.

    Torn down in the ordinary way, a process now and then waits forever for threads of a group whose peer has gone.
    """
    dist.barrier()
    os._exit(0)

"""How a process of a gloo group ends in these tests."""

from __future__ import annotations

import os

import torch.distributed as dist


def leave() -> None:
    """Wait for the other process, and end at once with status 0; results are on disk by now.

    Torn down in the ordinary way, a process now and then waits forever for threads of a group whose peer has gone.
    """
    dist.barrier()
    os._exit(0)

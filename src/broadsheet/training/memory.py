"""Memory of a training: what it keeps for itself, what is free, and what a forward pass keeps for the backward one.

Knows: glibc's allocator, the card's, torch's saved tensors. By default glibc gives large buffers back to the system as
soon as they are free; each step then pays for fresh pages, a fault for every 4 kB of them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

_TRIM, _MAPPED = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of mallopt(3)
_ALL = 2**31 - 1
_USUAL = (
    32 << 20
)  # bytes, the most that glibc's own threshold for mappings grows to; that for trimming is twice as high
_inside = 0


@contextmanager
def kept() -> Iterator[None]:
    """Inside, memory on the CPU that is freed stays with the process; afterwards what is free is given back.

    Example:
        with kept():
            for batch in batches:
                step(batch)
    """
    global _inside
    libc = _glibc()
    if libc is None:
        yield
        return
    _inside += 1
    libc.mallopt(_MAPPED, _ALL)
    libc.mallopt(_TRIM, _ALL)
    try:
        yield
    finally:
        _inside -= 1
        if not _inside:
            libc.mallopt(_MAPPED, _USUAL)
            libc.mallopt(_TRIM, 2 * _USUAL)
            libc.malloc_trim(0)


def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


_CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def free(device: torch.device) -> int:
    """Bytes that can still be had: of the card, or of the machine and the container on it."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    found: int = psutil.virtual_memory().available
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text("utf-8")) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or "max": no limit
        return found
    return max(0, min(found, limit - used))


def for_backward(work: Callable[[], Any], weights: Iterable[Tensor]) -> int:
    """Bytes that `work()` keeps for its backward pass, beside the weights; what it gives is let go of."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold its own graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(sizes.values())

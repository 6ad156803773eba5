"""Memory that a training keeps for itself: what one step frees, the next one asks for again.

Knows: glibc's allocator. Elsewhere nothing changes. By default glibc gives large buffers back to the system as soon as
they are free; each step then pays for fresh pages, a fault for every 4 kB of them.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

"""Seconds and bytes of one piece of work.

Knows: the clock, the CUDA allocator where torch uses it, the kernel's high-water mark of resident memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def measure(work: Callable[[Any], Any], given: Any) -> tuple[Any, float, int]:
    """The result of `work(given)`, its seconds, and the peak bytes: the allocator's on CUDA, else resident memory."""
    with _peak_memory() as peak:
        start = time.perf_counter()
        result = work(given)
        if cuda := cuda_in_use():
            cuda.synchronize()
        seconds = time.perf_counter() - start
    return result, seconds, peak[0]


def cuda_in_use() -> Any:
    """torch.cuda where it is in use, without importing torch for it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() and torch.cuda.is_initialized() else None


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Fill a one-element list with the peak bytes while the body ran.

    On Linux the kernel's own high-water mark is reset and read; elsewhere resident memory at the end stands for it.
    """
    import psutil

    peak = [0]
    if cuda := cuda_in_use():
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        yield peak
        peak[0] = cuda.max_memory_allocated()
        return
    mark = Path("/proc/self/clear_refs")
    if mark.exists():
        mark.write_text("5")
        yield peak
        lines = Path("/proc/self/status").read_text().splitlines()
        peak[0] = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    else:
        yield peak
        peak[0] = psutil.Process().memory_info().rss

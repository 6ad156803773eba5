"""The evidence folder: what commands measured, one JSON file each, never typed by hand.

Knows: JSON files, versions, the machine. Does not know: what was measured.
"""

from __future__ import annotations

import json
import math
import os
import platform
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from broadsheet.cache import atomic_write
from broadsheet.clock import cuda_in_use
from broadsheet.page import checkout


def folder() -> Path:
    """Where recorded evidence lies: beside the sources in a checkout, inside the package once installed."""
    package = Path(__file__).parents[1]
    checkout = package.parents[1] / "evidence"
    return checkout if checkout.is_dir() else package / "evidence"


def read(name: str, where: Path | None = None) -> dict[str, Any] | None:
    """The evidence of that name, in `where` or broadsheet's `folder()`; None where nothing was recorded.

    A file is parsed once, as long as it does not change. The dict is the caller's own, but not what lies in it: that is
    shared, and not to be changed.
    """
    path = (where or folder()) / f"{name}.json"
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return dict(_parsed(path, state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=256)
def _parsed(path: Path, changed: int, size: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def versions() -> dict[str, str]:
    """What a number may depend on: of Python, of broadsheet, and of the libraries that compute it."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("broadsheet", "torch", "transformers", "numpy", "scipy", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def provenance(**facts: Any) -> dict[str, Any]:
    """Where a result comes from: commit, versions, machine and date, and the `facts` given (seeds, fingerprints).

    `commit` is that of the checkout that ran, with `+` where files differ from it; None outside a checkout.
    """
    import psutil

    machine: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    if cuda := cuda_in_use():
        machine["gpu"] = cuda.get_device_name()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": checkout.commit(),
        "versions": versions(),
        "machine": machine,
        **facts,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def record(name: str, result: dict[str, Any], folder: Path) -> Path:
    """Write what a command measured as `<folder>/<name>.json`: the only way a number gets into the evidence."""
    path = folder / f"{name}.json"
    with atomic_write(path) as file:
        json.dump(finite(result), file, indent=1, ensure_ascii=False)
        file.write("\n")
    return path


def finite(value: Any) -> Any:
    """The same JSON value with NaN and infinities as null, which strict JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

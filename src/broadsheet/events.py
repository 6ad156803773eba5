"""What happens in a run, told to a file as it happens: for a page or a script that follows it.

    broadsheet try lastde --quick --events run.jsonl

Knows: one JSON object a line, `{"n", "at", "event", …}`. Does not know: what is told, who reads. `n` counts from 1,
also over runs that go on in one file; `at` is in seconds since 1970. Told are: `said` (a line for people), `progress`
(what, done, of), `block` (what the arms of a trial have made so far: values, and no verdict, since a verdict that is
looked at again and again will once be there by chance), `result` (where it lies), `ended` (how, and why).
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_lock = threading.Lock()
_file: IO[bytes] | None = None
_count = 0


def followed() -> bool:
    """Whether anybody follows."""
    return _file is not None


def tell(event: str, **what: Any) -> None:
    """Tell that something has happened; nothing where nobody follows. Numbers that are not finite become null."""
    global _count
    with _lock:
        if _file is None:
            return
        _count += 1
        line = {"n": _count, "at": round(time.time(), 3), "event": event, **_finite(what)}
        with suppress(OSError):  # a full disk ends the telling of it, not the run
            _file.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")


@contextmanager
def to(path: Path | None) -> Iterator[None]:
    """Tell what happens to the end of a file until the block ends; what is there already stays. None: to nobody.

    Raises:
        OSError: the file cannot be written.
    """
    global _file, _count
    if path is None:
        yield
        return
    with path.open("ab+", buffering=0) as file:
        file.seek(0)
        before = file.read()
        if before and not before.endswith(b"\n"):  # of a run that was killed in the middle of a line
            file.truncate(before.rfind(b"\n") + 1)
        with _lock:
            _file, _count = file, before.count(b"\n")
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt) or getattr(error, "exit_code", None) == 130
            why = str(error) if isinstance(error, ValueError) else type(error).__name__
            tell("ended", how="stopped" if stopped else "failed", why="" if stopped else why)
            raise
        else:
            tell("ended", how="done")
        finally:
            with _lock:
                _file = None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""A process that dies: file operations below a folder are counted, and from the chosen one on nothing happens any more.

As after a real kill, no clean-up code reaches the disk, and the file that was being written is cut in the middle.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Killed(BaseException):
    """Not an `Exception`: nothing catches it on its way out."""


class Death:
    """Counts file operations below `folder`; at number `at` the process is dead."""

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder = str(folder)
        self.at = at
        self.count = 0
        self.dead = False
        self._writing: str | None = None

    def see(self, event: str, args: tuple[Any, ...]) -> None:
        """An event of the interpreter's audit."""
        if event not in _EVENTS or not args or isinstance(args[0], int):
            return
        path = os.fsdecode(args[0])
        if (path.startswith(os.sep) and not path.startswith(self.folder)) or path.endswith(".lock"):
            return
        if event == "open":
            mode, flags = args[1], args[2]
            if not (set(mode) & set("wax+") if mode else flags & _WRITES):
                return
        if not self.dead:
            self.count += 1
            self.dead = self.at is not None and self.count > self.at
            if self.dead:
                self._tear()
        if self.dead:
            raise Killed
        if event == "open":
            self._writing = path

    def _tear(self) -> None:
        global _death
        if self._writing and Path(self._writing).is_file():
            _death = None
            with Path(self._writing).open("r+b") as file:
                file.truncate(Path(self._writing).stat().st_size // 2)
            _death = self


_death: Death | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _death is not None:
        _death.see(event, args)


sys.addaudithook(_audit)  # it cannot be taken away again, but sees nothing outside `dying`


@contextmanager
def dying(folder: Path, at: int | None = None) -> Iterator[Death]:
    """Inside, the process dies at operation `at` below `folder` (from 0); None: it lives, and they are counted."""
    global _death
    _death = Death(folder, at)
    try:
        yield _death
    finally:
        _death = None

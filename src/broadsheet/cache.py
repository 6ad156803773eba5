"""The cache folder, and the three habits that keep it trustworthy: lock, write aside then rename, name by content.

Everything kept between runs lies under `home()`. A file or folder that stands under its final name is whole: it was
written under a temporary name in the same folder, flushed to disk, and renamed. A killed run leaves only temporaries,
which the next run removes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from broadsheet.console import InputError, say

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def home() -> Path:
    """The cache folder: `$BROADSHEET_HOME`, by default `~/.cache/broadsheet`. Made on first use.

    Raises:
        InputError: the folder cannot be made or written.
    """
    folder = Path(os.environ.get("BROADSHEET_HOME") or "~/.cache/broadsheet").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the cache folder {folder}: {error.strerror}; set BROADSHEET_HOME to a writable folder"
        ) from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write to the cache folder {folder}; set BROADSHEET_HOME to a writable folder")
    return folder


def fingerprint(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of `value` as canonical JSON (keys sorted, no spaces).

    Raises:
        TypeError: `value` holds something JSON cannot express.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock named after `path` (`<path>.lock`) across processes; says so when it has to wait."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        say(f"waiting for another broadsheet that is preparing {path.name} …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success flush it to disk and rename it to `path`, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success rename it to `path` (replacing what stood there), else remove it.

    Call it under `locked(path)`: leftovers of killed runs are swept here.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(made: Path, path: Path) -> None:
    """Put a finished folder in the place of what stands at `path`, of which nothing is half there at any moment.

    Where the system can exchange two names in one step, `path` is never missing either. Elsewhere a process killed
    within leaves what stood there beside it, as `.<name>.replaced`, and `restore_folder` puts it back.
    """
    aside = path.with_name(f".{path.name}.replaced")
    if path.is_file():
        path.unlink()
    if not path.exists():
        made.rename(path)
    elif _exchange(made, path):
        shutil.rmtree(made)
    else:
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        made.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Undo what a process left that was killed in `replace_folder`."""
    aside = path.with_name(f".{path.name}.replaced")
    if aside.exists() and not path.exists():
        aside.rename(path)


def remove_folder(path: Path) -> None:
    """Remove a folder, of which nothing is half there at any moment: it first loses its name. None there is no error.

    A process killed within leaves it beside, as `.<name>.removed`, until the next time.
    """
    aside = path.with_name(f".{path.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(FileNotFoundError):
        path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)

"""The answers on disk: one SQLite file from request digests to JSON.

Knows: digests and JSON. Does not know: prompts, models, keys; none of them is written. The file is in write-ahead mode:
several processes may use it at once, and a process killed in the middle leaves it whole with all it had committed.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from broadsheet.cache import locked
from broadsheet.console import InputError, say

T = TypeVar("T")

_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PATIENCE = 60.0  # seconds that one process waits for another


def digest(value: Any) -> str:
    """SHA-256 of `value` as canonical JSON (keys sorted, no spaces), in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The answers at `path`, open for the length of a `with` block; `path=None` keeps them in memory for that long.

    A file that is not a database, or a damaged one, is reported, moved aside, and begun anew.

    Example:
        with Store(home() / "teacher" / "cache.sqlite") as store:
            store.put({"00ff": {"text": "Paris"}})
            store.get(["00ff", "1234"])  # {"00ff": {"text": "Paris"}}
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Store:
        self._run(lambda connection: None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The values of those `keys` that are there."""
        wanted = list(dict.fromkeys(keys))

        def select(connection: sqlite3.Connection) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for start in range(0, len(wanted), 500):  # SQLite bounds the number of ? in a statement
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = connection.execute(f"SELECT key, value FROM answers WHERE key IN ({marks})", part)
                found.update((key, json.loads(value)) for key, value in rows)
            return found

        return self._run(select)

    def put(self, values: Mapping[str, Any]) -> None:
        """Commit `values`; a key that is already there keeps its value, so that every reader sees the same answer."""
        rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in values.items()]

        def insert(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)

        self._run(insert)

    def _run(self, action: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return action(self._open())
        except sqlite3.DatabaseError as error:
            if self._path is None or error.sqlite_errorcode & 0xFF not in _CORRUPT:
                raise self._unusable(error) from None
        self._close()
        self._move_aside(self._path)
        try:
            return action(self._open())
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            if self._path:
                try:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise InputError(
                        f"cannot make {self._path.parent}: {error.strerror}; "
                        "set BROADSHEET_HOME to a writable folder or pass cache=False"
                    ) from None
            # Waits for another process's write, which takes milliseconds.
            self._connection = sqlite3.connect(self._path or ":memory:", timeout=_PATIENCE)
            _write_ahead(self._connection)
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
            )
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _move_aside(self, path: Path) -> None:
        with locked(path):
            try:
                if self._open().execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
                    return  # another process has begun it anew meanwhile
            except sqlite3.DatabaseError:
                pass
            self._close()
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(aside)
            for suffix in ("-wal", "-shm"):  # they belong to the damaged file and would damage the new one
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            say(f"the teacher's cache {path} is damaged; moved it to {aside.name} and began a new one")

    def _unusable(self, error: sqlite3.Error) -> InputError:
        return InputError(f"cannot use the teacher's cache {self._path}: {error}; mend that or pass cache=False")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Change to write-ahead mode. It is the one statement that fails at once while another process does the same."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)

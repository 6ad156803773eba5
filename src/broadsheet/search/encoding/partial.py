"""What may be written to a folder that several processes fill, and what can be resumed.

Knows: `OUT`, the folder `OUT.partial` beside it with a folder for each shard, locks, and a record of what all are made
from. Does not know: what a shard holds, but for the file that is written last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from broadsheet import cache
from broadsheet.console import InputError

_RECORD = "made_from.json"


class Partial:
    """The work on one folder, as this process sees it.

    Args:
        out: the folder that will stand.
        shard: this process's part, from 0, and of how many.
        last: the file that makes a folder whole, written last.
        made_from: all that the result depends on, as JSON values: `{"settings": {…}, thing: …, …}`.
    """

    def __init__(self, out: Path, shard: tuple[int, int], last: str, config: dict[str, Any]) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.name}.partial")
        self.shards = [self.folder / f"shard-{part}-of-{shard[1]}" for part in range(shard[1])]
        self.shard = self.shards[shard[0]]
        self.last = last
        self.config = json.loads(json.dumps(config))  # as it will be read back

    @contextmanager
    def claimed(self, force: bool) -> Iterator[Path]:
        """Inside, this process alone writes the shard's folder, which is yielded.

        Raises:
            InputError: `out` stands, or is something else; the work was begun from something else; another process is
                at the shard; or the file system refuses.
        """
        with self._writing():
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with cache.locked(self.folder):
                self._claim(force)
                lock = self._lock(self.shard)
                if force:
                    shutil.rmtree(self.shard, ignore_errors=True)
                self.shard.mkdir(exist_ok=True)
            try:
                yield self.shard
            finally:
                lock.release()

    def finish(self, merge: Callable[[list[Path], Path], None]) -> bool:
        """Put finished shards together and the result at `out`; False where other shards are not finished.

        Args:
            merge: called with the shards' folders and an empty one to fill, where there are several.
        """
        with self._writing(), cache.locked(self.folder):
            if self._record().get("replaces", self._stamp()) != self._stamp() or not self.folder.exists():
                return True  # another process did
            if not all((shard / self.last).exists() for shard in self.shards):
                return False
            whole = self.shards[0]
            if len(self.shards) > 1:
                whole = self.folder / "whole"
                shutil.rmtree(whole, ignore_errors=True)
                whole.mkdir()
                merge(self.shards, whole)
            cache.replace_folder(whole, self.out)
            shutil.rmtree(self.folder)
        self.folder.with_name(f"{self.folder.name}.lock").unlink(missing_ok=True)
        return True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the file system refuses into an InputError."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"cannot write {self.out}: {reason}; make room and repeat (what is done is kept), or choose another "
                "folder"
            ) from None

    def _claim(self, force: bool) -> None:
        cache.restore_folder(self.out)
        stands = self._stamp()
        if stands is None and self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise InputError(f"{self.out} exists and has no {self.last}; choose another name")
        record = self._record()
        if not record or record["replaces"] != stands:
            record = {}  # nothing is begun, or its result stands and a process was killed while it cleared away
            if self.folder.exists():
                shutil.rmtree(self.folder)
        if stands and not (force or record):
            raise InputError(f"{self.out} exists; choose another folder, or --force to replace it")
        changes = self._changes(record["made_from"]) if record else []
        if changes and not force:
            raise InputError(
                f"{self.folder} was begun with {'; '.join(changes)}: resume with the same, or start over with --force"
            )
        if changes:
            for lock in self.folder.glob("*.lock"):
                self._lock(lock.with_suffix("")).release()
            shutil.rmtree(self.folder)
        if not record or force:
            with cache.atomic_write(self.folder / _RECORD) as file:
                json.dump({"made_from": self.config, "replaces": stands}, file)

    def _stamp(self) -> list[int] | None:
        """What tells the folder at `out` from any other that stands there earlier or later."""
        try:
            found = (self.out / self.last).stat()
        except OSError:
            return None
        return [found.st_ino, found.st_mtime_ns]

    def _record(self) -> dict[str, Any]:
        """What the work is made from, and the folder it will replace; empty where none is begun."""
        path = self.folder / _RECORD
        try:
            record = json.loads(path.read_text("utf-8"))
            return {key: record[key] for key in ("made_from", "replaces")}
        except FileNotFoundError:
            return {}  # nothing is written before the record
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} is damaged; remove {self.folder} to start over") from None

    def _changes(self, before: dict[str, Any]) -> list[str]:
        """How what the work was begun from differs from what is asked for now, in words."""
        old, new = before["settings"], self.config["settings"]
        changes = [f"{key} {old.get(key)!r}, now {new[key]!r}" for key in new if old.get(key) != new[key]]
        others = [key for key in self.config if key != "settings" and before.get(key) != self.config[key]]
        return changes + [f"another {key}" for key in others]

    def _lock(self, shard: Path) -> FileLock:
        lock = FileLock(f"{shard}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another broadsheet is writing {shard.name} of {self.out}; wait for it") from None
        return lock

"""A function mapped over a corpus into a JSONL file, through kills, full disks and Ctrl-C, no line lost or doubled.

Knows: documents, batches, and how far the output has come. Does not know: what the function computes.

While it runs, `OUT.partial` grows a batch at a time beside `OUT.partial.json`, which says what it is made from. At the
end the one is flushed to disk and renamed to `OUT`, the other removed. `OUT.partial.lock` keeps a second process away.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from broadsheet.cache import atomic_write
from broadsheet.console import InputError, interruptible, progress, say
from broadsheet.data.rows import Rows


class Identified(Protocol):
    """A document, or another row that has an id."""

    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=Identified)


@dataclass(frozen=True)
class Summary:
    """What a call of `map_corpus` did.

    Args:
        out: the file it writes.
        documents: lines there are now, those of earlier calls included.
        resumed: lines that earlier calls had left.
        seconds: what this call took to read, compute and write.
        finished: False after Ctrl-C; the same call then resumes.
    """

    out: Path
    documents: int
    resumed: int
    seconds: float
    finished: bool

    @property
    def documents_per_second(self) -> float:
        """Documents that this call computed, per second of it."""
        return (self.documents - self.resumed) / self.seconds


def map_corpus(
    corpus: Rows[T],
    out: Path,
    function: Callable[[list[T]], Sequence[Mapping[str, Any]]],
    *,
    batch_size: int,
    settings: dict[str, Any],
    force: bool = False,
) -> Summary:
    """Write one JSON line per document, `{"id": ..., **result}`, in corpus order, or resume a call that was cut off.

    Whole batches of `batch_size` lines are kept and the rest is computed again: a resumed call forms the batches of an
    uninterrupted one, so its file is the same byte for byte. The first Ctrl-C stops after the batch under way, the
    second at once.

    Args:
        corpus: iterated once; its ids are checked against the lines that are kept.
        out: where the finished file will stand.
        function: a batch of documents to as many results, each a mapping of JSON values without the key `id`. NaN and
            infinities are written as null.
        batch_size: documents per call of `function`; the last batch may be smaller.
        settings: all that the results depend on besides the documents, as JSON values.
        force: replace a finished `out`, and start over rather than resume. To resume a forced call that was cut off,
            leave `force` out.

    Raises:
        InputError: `out` is finished already, was begun from other settings or another corpus, is being written by
            another process, or cannot be written (what is done is kept); or the corpus cannot be read on.
        ValueError: `function` returned another number of results than it got documents.

    Example:
        map_corpus(load("corpus.jsonl"), Path("lengths.jsonl"), lambda batch: [{"n": len(d.text)} for d in batch],
                   batch_size=64, settings={"method": "length"})
    """
    partial = out.with_name(f"{out.name}.partial")
    with _alone(out, partial), interruptible() as interrupted:
        _claim(out, partial, {"settings": settings, "corpus": corpus.identity()}, force)
        started = time.perf_counter()
        documents = iter(corpus)
        done = resumed = _resume(partial, documents, batch_size)
        finished = False
        with partial.open("ab", buffering=0) as file, progress("docs/s", corpus.count, done=done) as bar:
            while not (finished or interrupted.is_set()):
                batch = list(islice(documents, batch_size))
                if batch:
                    _append(file.fileno(), partial, batch, function(batch))
                finished = len(batch) < batch_size
                done += len(batch)
                speed = (done - resumed) / (time.perf_counter() - started)
                bar.update(bar.task_ids[0], completed=done, description=f"{speed:,.1f} docs/s")
        if finished:
            _finish(out, partial)
    summary = Summary(out, done, resumed, time.perf_counter() - started, finished)
    if not finished:
        remedy = "the same command without --force" if force else "the same command"
        say(f"stopped after {done:,} documents; {remedy} resumes there")
    elif done:
        say(f"{out}: {done:,} documents, {summary.documents_per_second:,.1f} docs/s")
    else:
        say(f"{out}: empty, as the corpus holds no documents")
    return summary


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into an InputError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot write {path}: {reason}; make room and repeat (what is done is kept), or choose another --out"
        ) from None


@contextmanager
def _alone(out: Path, partial: Path) -> Iterator[None]:
    """Keep other processes from `out`; the lock file stays while there is something to resume."""
    from filelock import FileLock, Timeout

    if out.is_dir():
        raise InputError(f"{out} is a folder; --out takes the name of a file")
    lock = FileLock(f"{partial}.lock")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another broadsheet is writing {out}; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()
        if not partial.exists():
            Path(lock.lock_file).unlink(missing_ok=True)


def _record(partial: Path) -> Path:
    """The file that says what `partial` is made from."""
    return partial.with_name(f"{partial.name}.json")


def _claim(out: Path, partial: Path, config: dict[str, Any], force: bool) -> None:
    """See that `partial` can be resumed, or start a new one.

    Raises:
        InputError: `out` stands finished, or `partial` is made from something else.
    """
    config = json.loads(json.dumps(config))  # as it will be read back: tuples are lists
    going_on = partial.exists() and not force
    recorded = _read_record(partial) if going_on else {}
    if out.exists() and not force and not recorded.get("forced"):
        raise InputError(f"{out} exists; choose another --out, or --force to replace it")
    if not going_on:
        with writing(partial):
            partial.unlink(missing_ok=True)
            with atomic_write(_record(partial)) as file:
                json.dump(config | {"forced": force}, file)
            partial.touch()
        return
    before, now = recorded.get("settings", {}), config["settings"]
    changes = [
        f"{key} {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if recorded.get("corpus") != config["corpus"]:
        changes.append("another corpus")
    if changes:
        raise InputError(
            f"{partial} was begun with {'; '.join(changes)}: resume with the same, or start over with --force"
        )


def _read_record(partial: Path) -> dict[str, Any]:
    try:
        recorded: dict[str, Any] = json.loads(_record(partial).read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{_record(partial)} is missing or damaged, so {partial} cannot be resumed; --force starts over"
        ) from None
    return recorded


def _resume(partial: Path, documents: Iterator[Identified], batch_size: int) -> int:
    """Cut `partial` to whole batches, draw the documents they hold from `documents`, and return how many those are.

    Raises:
        InputError: the lines are not those documents'.
    """
    lines = kept = offset = end = 0
    with partial.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            lines += 1
            offset += len(line)
            if lines % batch_size == 0:
                kept, end = lines, offset
        file.seek(0)
        matching = sum(_id(line) == document.id for line, document in zip(islice(file, kept), documents, strict=False))
    if matching != kept:
        raise InputError(
            f"{kept - matching:,} of {kept:,} lines of {partial} are not the corpus's documents; --force starts over"
        )
    with writing(partial):
        os.truncate(partial, end)
    if kept:
        say(f"{partial}: resuming after {kept:,} documents")
    return kept


def _id(line: bytes) -> str | None:
    """The id on a line; None on a damaged one (a file system may leave zeros when the power fails)."""
    try:
        identifier: str = json.loads(line)["id"]
    except ValueError:
        return None
    return identifier


def _append(descriptor: int, partial: Path, batch: Sequence[Identified], results: Sequence[Mapping[str, Any]]) -> None:
    if len(results) != len(batch):
        raise ValueError(f"got {len(results)} results for {len(batch)} documents; expected one each")
    lines = memoryview(b"".join(_line(document.id, result) for document, result in zip(batch, results, strict=True)))
    with writing(partial):
        while lines:
            lines = lines[os.write(descriptor, lines) :]


def _line(identifier: str, result: Mapping[str, Any]) -> bytes:
    record: dict[str, Any] = {"id": identifier}
    for key, value in result.items():
        record[key] = None if isinstance(value, float) and not math.isfinite(value) else value
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can write
        return json.dumps(record, allow_nan=False).encode() + b"\n"


def _finish(out: Path, partial: Path) -> None:
    with writing(out):
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(out)
        _record(partial).unlink()

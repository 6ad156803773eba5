"""The folder of a vector index: files that never change, and one small file that says which of them count.

Knows: files, their sizes and checksums, and what was committed. Does not know: what a vector or a text means.

`index.json` names every file of the index with its size and SHA-256; replacing it, in one step, is the commit. A file
it names is never written again: a new state is new files beside the old ones, and what no longer counts is removed
afterwards. So a process killed at any moment, or a power failure, leaves the old state or the new one, never a half of
each, and a reader is never waited for. `index.copy.json` says the same once more, for the day the first is damaged.

The folder `segment-N` with N the next number is work in progress: it is not named yet, and the next writer goes on
with it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from broadsheet.cache import atomic_write, sha256_file
from broadsheet.console import InputError

NAME, COPY = "index.json", "index.copy.json"
FORMAT = "broadsheet index 1"
_OURS = re.compile(r"segment-\d+|keywords-\d+|graph-\d+\.faiss|deleted-\d+\.npy|\.index.*\.tmp")


@dataclass(frozen=True)
class StoredFile:
    """A file of the index: its name below the folder, its size in bytes, and its SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Segment:
    """Documents that were added together: rows `first` to `first + rows`, counted through the whole index.

    Args:
        vectors: the NumPy file of their vectors, (rows, dimensions).
        documents: the Arrow file of their ids and texts, in the same order.
    """

    first: int
    rows: int
    vectors: StoredFile
    documents: StoredFile


@dataclass(frozen=True)
class Graph:
    """The approximate index over the first `rows` rows.

    Args:
        file: of faiss.
        rows: it covers.
        fitted: rows there were when its quantizer was fitted to them.
        width: candidates it looks at.
        recall: of the 10 nearest, at that width, of vectors that it did not hold yet.
    """

    file: StoredFile
    rows: int
    fitted: int
    width: int
    recall: float


@dataclass(frozen=True)
class Manifest:
    """What counts. A change is a new manifest with `generation` one higher.

    Args:
        embedder: what made the vectors: `source` to load it by, `fingerprint`, `dimensions`, `similarity`; the first
            two are None where vectors came without one.
        settings: what the index was created with.
        next_segment: the number of the segment that is added next.
        deleted: the NumPy file of rows that no longer count, sorted.
        keywords: the files of the BM25 index over the first `keyword_rows` rows.
    """

    embedder: dict[str, Any]
    settings: dict[str, Any]
    generation: int = 0
    next_segment: int = 1
    segments: tuple[Segment, ...] = ()
    deleted: StoredFile | None = None
    graph: Graph | None = None
    keywords: tuple[StoredFile, ...] = ()
    keyword_rows: int = field(default=0)

    @property
    def rows(self) -> int:
        """Rows there are, deleted ones included."""
        return sum(segment.rows for segment in self.segments)

    def files(self, *, data: bool = True) -> list[StoredFile]:
        """Every file; without those of the segments if not `data`."""
        found = [file for segment in self.segments for file in (segment.vectors, segment.documents)] if data else []
        found += [self.deleted] if self.deleted else []
        found += [self.graph.file] if self.graph else []
        return [*found, *self.keywords]

    @classmethod
    def of(cls, row: dict[str, Any]) -> Manifest:
        """From JSON.

        Raises:
            KeyError, TypeError, ValueError: it is not what `asdict` wrote.
        """
        row = dict(row)
        row["segments"] = tuple(
            Segment(int(each["first"]), int(each["rows"]), _stored(each["vectors"]), _stored(each["documents"]))
            for each in row["segments"]
        )
        if graph := row["graph"]:
            row["graph"] = Graph(**graph | {"file": _stored(graph["file"])})
        row["deleted"] = _stored(row["deleted"]) if row["deleted"] else None
        row["keywords"] = tuple(_stored(each) for each in row["keywords"])
        return cls(**row)


def _stored(row: dict[str, Any]) -> StoredFile:
    stored = StoredFile(**row)
    name = PurePosixPath(stored.name)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{stored.name} lies outside the index")
    return stored


def occupied(folder: Path) -> str | None:
    """Why no new index can be made in `folder`; None if it can. What a killed creation left is no hindrance."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "is a file; choose another name"
    if (folder / NAME).is_file():
        return "is an index already; open it"
    left = {f"{NAME}.lock"}
    if any(entry.name not in left and not _OURS.fullmatch(entry.name) for entry in folder.iterdir()):
        return "is not empty; choose another folder"
    return None


def read(folder: Path) -> Manifest:
    """The manifest of the index in `folder`.

    Raises:
        InputError: there is no index, its manifest is damaged, or another version wrote it.
    """
    path = folder / NAME
    if not path.is_file():
        made = "`broadsheet index DATA --out DIR` makes one"
        if folder.is_dir() and (folder / COPY).is_file():
            raise damaged(path, "it is missing")
        if folder.is_dir():
            raise InputError(f"{folder} is no index: it holds no {NAME}; {made}")
        raise InputError(f"no index at {folder}; {made}" if not folder.exists() else f"{folder} is no index; {made}")
    found = _parse(path)
    if isinstance(found, str):
        raise damaged(path, found)
    return found


def read_copy(folder: Path) -> Manifest:
    """The manifest that the files agree with: `index.json`, or its copy where that has fewer faults.

    Raises:
        InputError: neither can be read.
    """
    why, found = "both are missing", []
    for path in (folder / NAME, folder / COPY):
        if not path.is_file():
            continue
        if isinstance(told := _parse(path), Manifest):
            found.append(told)
        else:
            why = told
    if not found:
        raise InputError(
            f"neither {folder / NAME} nor {COPY} can be read ({why}); index the documents anew into another folder"
        )
    if len(found) == 1 or found[0] == found[1]:
        return found[0]
    return min(found, key=lambda each: _faults(folder, each))  # the first, where they are alike


def _faults(folder: Path, manifest: Manifest) -> int:
    """How many entries of a manifest are not as it says."""
    firsts = np.cumsum([0, *(segment.rows for segment in manifest.segments)])[:-1]
    apart = sum(segment.first != first for segment, first in zip(manifest.segments, firsts, strict=True))
    return apart + sum(fault(folder, file, whole=True) is not None for file in manifest.files())


def check_copy(folder: Path, manifest: Manifest) -> None:
    """See that `index.copy.json` says what `manifest` says.

    Raises:
        InputError: it is missing, damaged, or another's.
    """
    path = folder / COPY
    if not path.is_file():
        raise damaged(path, "it is missing")
    if isinstance(told := _parse(path), str):
        raise damaged(path, told)
    if told != manifest:
        raise damaged(path, f"it does not say what {NAME} says")


def _parse(path: Path) -> Manifest | str:
    """The manifest in a file, or what is wrong with it."""
    try:
        row = json.loads(path.read_text("utf-8"))
        wanted = row.pop("format")
    except (ValueError, KeyError, AttributeError):
        return "it is no JSON of an index"
    if wanted != FORMAT:
        raise InputError(f"{path} has format {wanted!r}; this version reads {FORMAT!r}: update broadsheet")
    try:
        return Manifest.of(row)
    except (KeyError, TypeError, ValueError) as error:
        return f"an entry is wrong: {error}"


def damaged(path: Path, reason: str) -> InputError:
    """The one line about a file that cannot be used."""
    folder = path.parent if path.name in (NAME, COPY) else _root(path)
    return InputError(f"{path} is damaged: {reason}; `broadsheet index {folder} --rebuild` makes it anew from the rest")


def _root(path: Path) -> Path:
    """The folder of the index that `path` belongs to."""
    return next((above for above in path.parents if (above / NAME).exists() or (above / COPY).exists()), path.parent)


def stored(folder: Path, path: Path) -> StoredFile:
    """A file that was just written: flushed to disk, measured and summed."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return StoredFile(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_file(path))


def fault(folder: Path, file: StoredFile, *, whole: bool) -> str | None:
    """What is wrong with a file that the manifest names: its size or, with `whole`, any byte; None if nothing is."""
    path = folder / file.name
    if not path.is_file():
        return "it is missing"
    if (size := path.stat().st_size) != file.bytes:
        return f"it has {size:,} bytes where {file.bytes:,} were written"
    if whole and sha256_file(path) != file.sha256:
        return "its contents are not what was written"
    return None


def verify(folder: Path, files: Iterable[StoredFile], *, whole: bool) -> None:
    """See that files are as the manifest says.

    Raises:
        InputError: one is not; it is named.
    """
    for file in files:
        if reason := fault(folder, file, whole=whole):
            raise damaged(folder / file.name, reason)


def commit(folder: Path, manifest: Manifest) -> None:
    """Make `manifest` what counts, in one step, and remove what it does not name."""
    _sync_folders(folder, manifest)
    _write(folder / NAME, manifest)
    settle(folder, manifest)


def settle(folder: Path, manifest: Manifest) -> None:
    """What follows a commit, for `manifest` that counts: its copy is written, and what it does not name is removed."""
    copy = folder / COPY
    if not copy.exists() or _parse(copy) != manifest:
        _write(copy, manifest)
    sweep(folder, manifest)


def _write(path: Path, manifest: Manifest) -> None:
    with atomic_write(path) as file:
        json.dump({"format": FORMAT, **asdict(manifest)}, file, indent=1, ensure_ascii=False)
        file.write("\n")
    _sync(path.parent)


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove our files that `manifest` does not name, but for the segment in progress."""
    named = {folder / file.name for file in manifest.files()}
    above = {parent for path in named for parent in path.parents}
    progress = folder / f"segment-{manifest.next_segment}"
    for entry in sorted(folder.iterdir()):
        if _OURS.fullmatch(entry.name) and entry != progress:
            _sweep(entry, named, above)


def _sweep(entry: Path, named: set[Path], above: set[Path]) -> None:
    if entry in named:
        return
    if entry in above:
        for below in sorted(entry.iterdir()):
            _sweep(below, named, above)
    elif entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _sync_folders(folder: Path, manifest: Manifest) -> None:
    for path in sorted({(folder / file.name).parent for file in manifest.files()} | {folder}):
        if path.is_dir():
            _sync(path)


def _sync(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

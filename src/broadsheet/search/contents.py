"""An index as it was committed once: vectors, documents, graph and keywords, mapped from the disk as they are needed.

Knows: the files of one manifest. Does not know: embedders, changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broadsheet.search import store
from broadsheet.search.documents import Documents
from broadsheet.search.exact import Floats, Rows
from broadsheet.search.graph import Neighbours
from broadsheet.search.keywords import Keywords
from broadsheet.search.store import Manifest, Segment

_READ_WHOLE = 1 << 28  # bytes of vectors that are read at once to see that they are what was written
BLOCK = 8192  # rows at a time: some 20 MB at usual dimensions


class Contents:
    """What `manifest` names in `folder`. Sizes are verified at once, and vectors whole where they are 256 MB or less.

    Checksums of the other files are verified as they are opened. Larger vectors are verified by `check` alone, since to
    read them all would take longer than a search.

    Raises:
        InputError: a file is damaged; it is named.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        store.verify(folder, manifest.files(), whole=False)
        stored = [segment.vectors for segment in manifest.segments]
        if sum(file.bytes for file in stored) <= _READ_WHOLE:
            store.verify(folder, stored, whole=True)
        self.vectors = [_vectors(folder, segment, self.dimensions) for segment in manifest.segments]
        self._firsts = np.array([segment.first for segment in manifest.segments], np.int64)

    @property
    def dimensions(self) -> int:
        """Of a vector."""
        return int(self.manifest.embedder["dimensions"])

    @cached_property
    def deleted(self) -> Rows:
        """The rows that do not count any more, sorted."""
        file = self.manifest.deleted
        if file is None:
            return np.zeros(0, np.int64)
        store.verify(self.folder, [file], whole=True)
        rows: Rows = np.load(self.folder / file.name, allow_pickle=False)
        return rows

    @cached_property
    def dead(self) -> NDArray[np.bool_]:
        """For every row whether it does not count any more."""
        dead = np.zeros(self.manifest.rows, bool)
        dead[self.deleted] = True
        return dead

    @property
    def size(self) -> int:
        """How many documents count."""
        return self.manifest.rows - len(self.deleted)

    @cached_property
    def documents(self) -> list[Documents]:
        """The documents of each segment."""
        return [_documents(self.folder, segment) for segment in self.manifest.segments]

    @cached_property
    def graph(self) -> Neighbours | None:
        """The approximate index, where there is one."""
        graph = self.manifest.graph
        if graph is None:
            return None
        store.verify(self.folder, [graph.file], whole=True)
        path = self.folder / graph.file.name
        try:
            found = Neighbours.load(path)
        except ValueError as error:
            raise store.damaged(path, str(error)) from None
        if len(found) != graph.rows or found.dimensions != self.dimensions:
            raise store.damaged(path, f"it holds {len(found):,} rows where {graph.rows:,} were written")
        return found

    @cached_property
    def keywords(self) -> Keywords | None:
        """The BM25 index, where there is one."""
        files = self.manifest.keywords
        if not files:
            return None
        store.verify(self.folder, files, whole=True)
        return Keywords.load((self.folder / files[0].name).parent, self.manifest.keyword_rows)

    def blocks(self, first: int = 0) -> Iterator[tuple[int, Floats]]:
        """All vectors from row `first` on, deleted ones included: the number of a block's first row, and the block."""
        for segment, vectors in zip(self.manifest.segments, self.vectors, strict=True):
            for start in range(max(0, first - segment.first), segment.rows, BLOCK):
                yield segment.first + start, np.asarray(vectors[start : start + BLOCK], np.float32)

    def gather(self, rows: Rows) -> Floats:
        """The vectors of rows, (rows, dimensions)."""
        found = np.empty((len(rows), self.dimensions), np.float32)
        for number, mine in self._by_segment(rows):
            found[mine] = self.vectors[number][rows[mine] - self._firsts[number]]
        return found

    def texts(self, rows: Sequence[int]) -> list[tuple[str, str]]:
        """Id and text of each row that is named, in that order."""
        wanted = np.asarray(rows, np.int64)
        found: list[tuple[str, str]] = [("", "")] * len(wanted)
        for number, mine in self._by_segment(wanted):
            try:
                got = self.documents[number].rows(wanted[mine] - self._firsts[number])
            except ValueError as error:
                raise store.damaged(self.documents[number].path, str(error)) from None
            for place, pair in zip(np.flatnonzero(mine), got, strict=True):
                found[place] = pair
        return found

    def _by_segment(self, rows: Rows) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Each segment that holds some of the rows, with a mask of which those are."""
        numbers = np.searchsorted(self._firsts, rows, side="right") - 1
        for number in np.unique(numbers):
            yield int(number), numbers == number

    def live(self) -> dict[str, tuple[int, bytes]]:
        """Row and content hash of every document that counts, by id."""
        found = {}
        for segment, documents in zip(self.manifest.segments, self.documents, strict=True):
            try:
                entries = zip(documents.ids(), documents.hashes(), strict=True)
            except ValueError as error:
                raise store.damaged(documents.path, str(error)) from None
            for row, (identifier, content) in enumerate(entries, segment.first):
                if not self.dead[row]:
                    found[identifier] = (row, content)
        return found


def _vectors(folder: Path, segment: Segment, dimensions: int) -> NDArray[np.floating]:
    path = folder / segment.vectors.name
    try:
        vectors: NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise store.damaged(path, " ".join(str(error).split())[:150]) from None
    if vectors.shape != (segment.rows, dimensions):
        raise store.damaged(path, f"its shape is {vectors.shape} where {(segment.rows, dimensions)} was written")
    return vectors


def _documents(folder: Path, segment: Segment) -> Documents:
    path = folder / segment.documents.name
    try:
        documents = Documents(path)
    except ValueError as error:
        raise store.damaged(path, str(error)) from None
    if len(documents) != segment.rows:
        raise store.damaged(path, f"it holds {len(documents):,} documents where {segment.rows:,} were written")
    return documents

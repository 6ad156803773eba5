"""Documents in a compact file: ids, texts and content hashes, some hundred to a compressed block, any one at hand.

Knows: one Arrow file. Does not know: vectors, or which documents still count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from broadsheet.cache import atomic_write, sha256_file
from broadsheet.data.corpora import Corpus, Document, RowLocation

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 256  # documents that are compressed together: few, as a whole block is unpacked for one hit
_HASH = 16  # bytes


def content_hash(document: Document) -> bytes:
    """16 bytes that change when id or text does (BLAKE2b).

    Raises:
        UnicodeEncodeError: one holds half a surrogate pair.
    """
    content = document.id.encode() + b"\0" + document.text.encode()
    return hashlib.blake2b(content, digest_size=_HASH).digest()


def write(path: Path, documents: Iterable[Document]) -> int:
    """Write documents as `path`, whole or not at all; how many there were. Metadata is left out."""
    import pyarrow as pa
    from pyarrow import ipc

    schema = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("hash", pa.binary(_HASH))])
    count = 0
    with (
        atomic_write(path, "wb") as file,
        ipc.new_file(file, schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer,
    ):
        block: list[Document] = []
        for document in documents:
            block.append(document)
            count += 1
            if len(block) == BLOCK:
                writer.write_batch(_batch(block, schema))
                block = []
        if block:
            writer.write_batch(_batch(block, schema))
    return count


def _batch(block: list[Document], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [
        pa.array([document.id for document in block], pa.string()),
        pa.array([document.text for document in block], pa.large_string()),
        pa.array([content_hash(document) for document in block], pa.binary(_HASH)),
    ]
    return pa.record_batch(columns, schema=schema)


def salvage(path: Path) -> tuple[list[int], list[Document]]:
    """What is left of a damaged file: the numbers of the rows whose documents are as they were written, and these.

    Each document is verified by its own hash; blocks that cannot be read are passed over. Where the end of the file is
    damaged, its blocks are read from the beginning.
    """
    rows: list[int] = []
    found: list[Document] = []
    for number, batch in _blocks(path):
        for place, row in enumerate(zip(*(column.to_pylist() for column in batch.columns), strict=True)):
            with suppress(ValueError, TypeError, AttributeError):
                document = _verified(*row)
                rows.append(number * BLOCK + place)
                found.append(document)
    return rows, found


def _blocks(path: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The blocks of a damaged file that can be read, by their numbers."""
    import pyarrow as pa
    from pyarrow import ipc

    strange = (pa.ArrowException, OSError, ValueError)
    try:
        data = pa.memory_map(str(path)).read_buffer()
    except strange:
        return
    try:
        file = ipc.open_file(data)
        blocks = file.num_record_batches
    except strange:
        with suppress(*strange, StopIteration):
            stream = ipc.open_stream(data.slice(8))  # a file is a stream between its mark and its footer
            for number in count():
                batch = stream.read_next_batch()
                batch.validate(full=True)
                yield number, batch
        return
    for number in range(blocks):
        with suppress(*strange):
            batch = file.get_batch(number)
            batch.validate(full=True)
            yield number, batch


class Documents:
    """What `write` wrote, mapped from the disk. A document is verified by its hash as it is read.

    Raises:
        ValueError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import ipc

        self.path = path
        with _damage():
            self._file = ipc.open_file(pa.memory_map(str(path)))
            blocks = self._file.num_record_batches  # all are full but the last
            self._count = (blocks - 1) * BLOCK + self._file.get_batch(blocks - 1).num_rows if blocks else 0

    def __len__(self) -> int:
        return int(self._count)

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """Id and text of each row that is named, in the order of `numbers`."""
        wanted = np.asarray(numbers, np.int64)
        found: dict[int, tuple[str, str]] = {}
        for block in np.unique(wanted // BLOCK).tolist():
            columns = self._block(block)
            for number in wanted[wanted // BLOCK == block].tolist():
                document = _verified(*(column[number % BLOCK].as_py() for column in columns))
                found[number] = document.id, document.text
        return [found[number] for number in wanted.tolist()]

    def ids(self) -> list[str]:
        """The id of every row."""
        return self._column(0)

    def hashes(self) -> list[bytes]:
        """The content hash of every row."""
        return self._column(2)

    def __iter__(self) -> Iterator[Document]:
        for block in range(self._file.num_record_batches):
            for row in zip(*(column.to_pylist() for column in self._block(block)), strict=True):
                yield _verified(*row)

    def _column(self, number: int) -> list[Any]:
        blocks = range(self._file.num_record_batches)
        return [value for block in blocks for value in self._block(block)[number].to_pylist()]

    def _block(self, number: int) -> list[pa.Array]:
        with _damage():
            batch = self._file.get_batch(number)
            batch.validate(full=True)  # damaged offsets would lead outside the file
        columns: list[pa.Array] = batch.columns
        return columns


@contextmanager
def _damage() -> Iterator[None]:
    """Whatever Arrow says of a damaged file, as a ValueError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())[:150]) from None


def _verified(identifier: str, text: str, content: bytes) -> Document:
    document = Document(identifier, text)
    if content_hash(document) != content:
        raise ValueError("a document is not what was written")
    return document


class IndexedCorpus(Corpus):
    """What `write` wrote, as a corpus."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), "stop", "text", "id")
        self._documents = Documents(path)
        self.count = len(self._documents)

    def identity(self) -> dict[str, Any]:
        return {"stored": [self.count, self._documents.path.stat().st_size]}

    def fingerprint(self) -> str:
        return sha256_file(self._documents.path)[:16]

    def describe(self) -> str:
        return f"{self.spec}: {self.count:,} documents"

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        for document in self._documents:
            yield RowLocation(document.id, document.id), {"id": document.id, "text": document.text}

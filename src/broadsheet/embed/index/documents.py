"""Documents in a compact file: ids, texts and content hashes, a few hundred to a compressed block, any one at hand.

Knows: one Parquet file. Does not know: vectors, or which documents still count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from broadsheet.cache import atomic_write
from broadsheet.corpora import Document

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 256  # documents that are compressed together: small, as one of them is unpacked for a hit
_HASH = 16  # bytes


def content_hash(text: str) -> bytes:
    """16 bytes that change when the text does (BLAKE2b)."""
    return hashlib.blake2b(text.encode(), digest_size=_HASH).digest()


def write(path: Path, documents: Iterable[Document]) -> int:
    """Write documents as `path`, whole or not at all; how many there were. Metadata is left out."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("id", pa.string()), ("text", pa.large_string()), ("hash", pa.binary(_HASH))])
    count = 0
    with (
        atomic_write(path, "wb") as file,
        parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=False, write_page_checksum=True, write_statistics=False
        ) as writer,
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
        pa.array([content_hash(document.text) for document in block], pa.binary(_HASH)),
    ]
    return pa.record_batch(columns, schema=schema)


class Documents:
    """What `write` wrote, mapped from the disk. Checksums are verified as it is read.

    Raises:
        OSError, ValueError: it is damaged (pyarrow's own errors are of these kinds).
    """

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self.path = path
        self._file = parquet.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """Id and text of each row that is named, in the order of `numbers`."""
        wanted = np.asarray(numbers, np.int64)
        blocks = np.searchsorted(self._starts, wanted, side="right") - 1
        found: dict[int, tuple[str, str]] = {}
        for block in np.unique(blocks):
            table = self._file.read_row_group(int(block), columns=["id", "text"])
            for number in wanted[blocks == block]:
                place = int(number - self._starts[block])
                found[int(number)] = (table["id"][place].as_py(), table["text"][place].as_py())
        return [found[number] for number in wanted.tolist()]

    def ids(self) -> list[str]:
        """The id of every row."""
        ids: list[str] = self._file.read(columns=["id"])["id"].to_pylist()
        return ids

    def hashes(self) -> list[bytes]:
        """The content hash of every row."""
        hashes: list[bytes] = self._file.read(columns=["hash"])["hash"].to_pylist()
        return hashes

    def __iter__(self) -> Iterator[Document]:
        for block in range(self._file.num_row_groups):
            table = self._file.read_row_group(block, columns=["id", "text"])
            for identifier, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
                yield Document(identifier, text)

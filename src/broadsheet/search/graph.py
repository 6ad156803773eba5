"""The approximate search: faiss's HNSW graph over vectors of a byte a dimension.

Knows: rows of vectors by number. Does not know: documents, files that count, exact scores (whoever calls scores the
candidates again).

Why faiss, and why so: see docs/search.md, which `benchmarks/search.py` measured.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broadsheet.console import InputError

Floats = NDArray[np.float32]
LINKS = 16  # of a vector to its neighbours, twice as many on the lowest level
BUILD_WIDTH = 128  # candidates looked at for each vector that is added
WIDTHS = (32, 64, 128, 256, 512, 1024)


class Neighbours:
    """An HNSW graph for inner products of numbered rows.

    Args:
        sample: vectors like those that will be added, (rows, dimensions): each dimension's range is split into 256.

    Raises:
        InputError: faiss is not installed.
    """

    def __init__(self, sample: Floats) -> None:
        faiss = _faiss()
        quantizer = faiss.ScalarQuantizer.QT_8bit
        graph = faiss.IndexHNSWSQ(sample.shape[1], quantizer, LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = BUILD_WIDTH
        graph.train(np.ascontiguousarray(sample, np.float32))
        self._index: Any = faiss.IndexIDMap(graph)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def dimensions(self) -> int:
        """Of a vector."""
        return int(self._index.d)

    def add(self, blocks: Iterable[tuple[NDArray[np.int64], Floats]]) -> None:
        """Add rows: the numbers of a block's, and the block, (rows, dimensions)."""
        for rows, block in blocks:
            self._index.add_with_ids(np.ascontiguousarray(block, np.float32), np.ascontiguousarray(rows, np.int64))

    def search(
        self, queries: Floats, k: int, width: int, without: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """The numbers of about the `k` nearest rows of each query.

        Args:
            queries: (queries, dimensions).
            k: rows wanted.
            width: candidates that are looked at (`efSearch`), at least `k`.
            without: rows that do not count.

        Returns:
            (queries, k), best first; −1 where there are no more.
        """
        faiss = _faiss()
        options: dict[str, Any] = {"efSearch": max(width, k)}
        if without is not None and len(without):
            dead = faiss.IDSelectorBatch(without)
            options["sel"] = faiss.IDSelectorNot(dead)
        found: NDArray[np.int64] = self._index.search(
            np.ascontiguousarray(queries, np.float32), k, params=faiss.SearchParametersHNSW(**options)
        )[1]
        return found

    def save(self, path: Path) -> None:
        """Write it to a file."""
        with path.open("wb") as file:
            file.write(memoryview(_faiss().serialize_index(self._index)))

    @classmethod
    def load(cls, path: Path) -> Neighbours:
        """What `save` wrote.

        Raises:
            ValueError: the file is damaged; faiss says where.
        """
        faiss = _faiss()
        made = cls.__new__(cls)
        try:
            made._index = faiss.read_index(os.fspath(path))
        except RuntimeError as error:
            raise ValueError(" ".join(str(error).split())[-200:]) from None
        if not (
            isinstance(made._index, faiss.IndexIDMap)
            and isinstance(faiss.downcast_index(made._index.index), faiss.IndexHNSWSQ)
        ):
            raise ValueError(f"it holds a {type(made._index).__name__}")
        return made


def require() -> None:
    """See that faiss is there, before hours of work.

    Raises:
        InputError: it is not installed.
    """
    _faiss()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise InputError("the approximate index needs faiss: pip install -e '.[search]'") from None
    return faiss

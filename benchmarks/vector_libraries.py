"""Libraries that search vectors, each behind the same two functions, for `benchmarks/search.py`.

Knows: how each library is built, asked, written and opened. Does not know: what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np

K = 10
LINKS, BUILD_WIDTH = 16, 128  # of every graph
WIDTHS = (32, 64, 128, 256, 512)
LANCE_NEEDS = ("lancedb", "lance-namespace", "lance-namespace-urllib3-client", "deprecation", "overrides")
Search = Callable[[np.ndarray, int], np.ndarray]


@dataclass
class Library:
    """One way to search.

    Args:
        name: of the way.
        packages: what is installed for it, besides what broadsheet needs anyway.
        build: vectors and a folder to the function that searches: queries and a width to row numbers, (queries, any).
        rescored: whether it keeps less than float32, so that its candidates are scored again.
        reopen: opens what `build` wrote into a folder, for the damaged copies.
    """

    name: str
    packages: tuple[str, ...]
    build: Callable[[np.ndarray, Path], Search]
    rescored: bool = False
    widths: tuple[int, ...] = WIDTHS
    reopen: Callable[[Path, int], Search] | None = None


def faiss_index(key: str, rescored: bool) -> Library:
    """A faiss index by its factory's key."""

    def opened(index: Any) -> Search:
        import faiss

        wide = 3 * K if rescored else K

        def search(queries: np.ndarray, width: int) -> np.ndarray:
            if "HNSW" in key:
                options = faiss.SearchParametersHNSW(efSearch=max(width, wide))
            else:
                options = faiss.SearchParametersIVF(nprobe=width)
            found: np.ndarray = index.search(queries, wide, params=options)[1]
            return found

        return search

    def build(vectors: np.ndarray, folder: Path) -> Search:
        import faiss

        index = faiss.index_factory(vectors.shape[1], key, faiss.METRIC_INNER_PRODUCT)
        if "HNSW" in key:
            index.hnsw.efConstruction = BUILD_WIDTH
        index.train(vectors)
        index.add(vectors)
        faiss.write_index(index, str(folder / "index.faiss"))
        return opened(index)

    def reopen(folder: Path, dimensions: int) -> Search:
        import faiss

        return opened(faiss.read_index(str(folder / "index.faiss")))

    return Library(f"faiss {key}", ("faiss-cpu",), build, rescored, reopen=reopen)


def usearch_index(dtype: str, rescored: bool) -> Library:
    """A usearch graph."""

    def opened(index: Any) -> Search:
        def search(queries: np.ndarray, width: int) -> np.ndarray:
            index.expansion_search = width
            keys: np.ndarray = np.atleast_2d(index.search(queries, 3 * K if rescored else K).keys).astype(np.int64)
            return keys

        return search

    def build(vectors: np.ndarray, folder: Path) -> Search:
        from usearch.index import Index

        index = Index(ndim=vectors.shape[1], metric="ip", dtype=dtype, connectivity=LINKS, expansion_add=BUILD_WIDTH)
        index.add(np.arange(len(vectors)), vectors)
        index.save(str(folder / "index.usearch"))
        return opened(index)

    def reopen(folder: Path, dimensions: int) -> Search:
        from usearch.index import Index

        return opened(Index.restore(str(folder / "index.usearch"), view=True))

    return Library(f"usearch {dtype}", ("usearch", "numkong"), build, rescored, reopen=reopen)


def voyager_index() -> Library:
    """A voyager graph."""

    def opened(index: Any) -> Search:
        def search(queries: np.ndarray, width: int) -> np.ndarray:
            found: np.ndarray = index.query(queries, k=K, query_ef=width)[0].astype(np.int64)
            return found

        return search

    def build(vectors: np.ndarray, folder: Path) -> Search:
        import voyager

        index = voyager.Index(voyager.Space.InnerProduct, vectors.shape[1], M=LINKS, ef_construction=BUILD_WIDTH)
        index.add_items(vectors)
        index.save(str(folder / "index.voyager"))
        return opened(index)

    def reopen(folder: Path, dimensions: int) -> Search:
        import voyager

        return opened(voyager.Index.load(str(folder / "index.voyager")))

    return Library("voyager float32", ("voyager",), build, reopen=reopen)


def hnswlib_index() -> Library:
    """An hnswlib graph."""

    def opened(index: Any) -> Search:
        def search(queries: np.ndarray, width: int) -> np.ndarray:
            index.set_ef(width)
            found: np.ndarray = index.knn_query(queries, K)[0].astype(np.int64)
            return found

        return search

    def build(vectors: np.ndarray, folder: Path) -> Search:
        import hnswlib

        index = hnswlib.Index("ip", vectors.shape[1])
        index.init_index(len(vectors), ef_construction=BUILD_WIDTH, M=LINKS)
        index.add_items(vectors)
        index.save_index(str(folder / "index.hnswlib"))
        return opened(index)

    def reopen(folder: Path, dimensions: int) -> Search:
        import hnswlib

        index = hnswlib.Index("ip", dimensions)
        index.load_index(str(folder / "index.hnswlib"))
        return opened(index)

    return Library("hnswlib float32", ("hnswlib",), build, reopen=reopen)


def lance_index(kind: str) -> Library:
    """A LanceDB table with an index; its candidates are refined by its own vectors."""

    def build(vectors: np.ndarray, folder: Path) -> Search:
        import lancedb
        import pyarrow as pa

        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        table = lancedb.connect(str(folder)).create_table(
            "t", pa.table({"id": np.arange(len(vectors)), "vector": column})
        )
        settings: dict[str, Any] = {"distance_type": "dot"}
        if kind == "IvfPq":
            settings |= {"num_partitions": 128, "num_sub_vectors": vectors.shape[1] // 8}
        else:
            settings |= {"num_partitions": 1, "m": LINKS, "ef_construction": BUILD_WIDTH}
        table.create_index("vector", config=getattr(lancedb.index, kind)(**settings))

        def search(queries: np.ndarray, width: int) -> np.ndarray:
            found = np.full((len(queries), K), -1)
            for i, query in enumerate(queries):
                asked = table.search(query).distance_type("dot").limit(K).refine_factor(3).select(["id", "_distance"])
                asked = asked.nprobes(width) if kind == "IvfPq" else asked.nprobes(1).ef(max(width, 3 * K))
                ids = asked.to_arrow()["id"].to_numpy()
                found[i, : len(ids)] = ids
            return found

        return search

    return Library(f"LanceDB {kind}", LANCE_NEEDS, build, widths=(32, 64, 128))


LIBRARIES = [
    faiss_index(f"HNSW{LINKS},SQ8", rescored=True),
    faiss_index(f"HNSW{LINKS},Flat", rescored=False),
    faiss_index("IVF256,SQ8", rescored=True),
    usearch_index("i8", rescored=True),
    usearch_index("bf16", rescored=True),
    usearch_index("f32", rescored=False),
    voyager_index(),
    hnswlib_index(),
    lance_index("HnswSq"),
    lance_index("IvfPq"),
]


def open_and_ask(name: str, folder: str) -> None:
    """In a process of its own: open an index and search it."""
    library = next(each for each in LIBRARIES if each.name == name)
    assert library.reopen
    queries = np.load(Path(folder) / "queries.npy")
    library.reopen(Path(folder), queries.shape[1])(queries, 64)


def installed(packages: tuple[str, ...]) -> dict[str, Any] | None:
    """Version and size of what is installed; None where something is missing."""
    size, version = 0, ""
    for package in packages:
        try:
            found = distribution(package)
        except PackageNotFoundError:
            return None
        version = version or found.version
        size += sum(Path(str(file.locate())).stat().st_size for file in found.files or [] if file.locate().exists())  # type: ignore[attr-defined]
    return {"version": version, "bytes": size}

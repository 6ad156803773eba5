"""Which library should search the vectors of an index: `python benchmarks/search.py`.

One run, the same vectors and queries for all, each library as a reader would install it (what is not installed is left
out, and said): faiss (HNSW and IVF, plain and of a byte a dimension), usearch, voyager, hnswlib, LanceDB, and exact
search. Wherever a library keeps less than float32, its candidates are scored again by the stored vectors, as the index
does. Measured are

- recall@10 against exact search, at growing widths, up to the first that reaches 0.95; copies as near count as found;
- queries a second, all at once and one at a time, at each;
- building, and what it takes on disk besides the vectors;
- what the library and what it needs take once installed;
- what it does with a damaged file: twelve copies with twenty bytes changed, each opened and searched in a process.

Vectors are the first words of the documentation through the first layers of the default model (real ones, whose
computation takes a minute, once), and clusters drawn at random; or those of an index: `--index DIR`.
`--record` keeps the result as evidence/search.benchmark.json.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from layer import least_seconds
from vector_libraries import LIBRARIES, K, Library, installed

from broadsheet.cache import atomic_write, fingerprint, home
from broadsheet.data import corpora
from broadsheet.data.corpora import Document
from broadsheet.page import evidence
from broadsheet.search import VectorIndex, exact

WANTED = 0.95
CHILD = "import sys; sys.path.insert(0, sys.argv[1]); import vector_libraries as v; v.open_and_ask(*sys.argv[2:])"


def scores(vectors: np.ndarray, queries: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The exact scores of the best of what was found, (queries, K)."""
    return exact.rescored(queries, found, lambda rows: vectors[rows], K)[1]


def measured(
    library: Library, vectors: np.ndarray, queries: np.ndarray, best: np.ndarray, repeats: int, harm: bool
) -> dict[str, Any]:
    """Build it, and ask it at growing widths until enough is found."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        search = library.build(vectors, folder)
        row: dict[str, Any] = {"build_seconds": time.perf_counter() - started}
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        row["bytes"] = size - vectors.nbytes * library.name.startswith("LanceDB")
        row["widths"] = {}
        for width in library.widths:

            def ask(some: np.ndarray, width: int = width) -> np.ndarray:
                found = search(some, width)
                return scores(vectors, some, found) if library.rescored else found

            found = search(queries, width)
            reached = exact.recall(scores(vectors, queries, found), best)
            seconds = least_seconds(
                {
                    "batch": lambda ask=ask: ask(queries[:200]),
                    "single": lambda ask=ask: [ask(query[None]) for query in queries[:100]],
                },
                repeats,
            )
            row["widths"][width] = {
                "recall": reached,
                "batch_per_second": len(queries[:200]) / seconds["batch"],
                "single_seconds": seconds["single"] / len(queries[:100]),
            }
            if reached >= WANTED:
                break
        if harm and library.reopen is not None:
            row["damaged"] = damaged(library, folder, queries)
    return row


def damaged(library: Library, folder: Path, queries: np.ndarray, copies: int = 12) -> dict[str, int]:
    """What becomes of damaged copies, opened and searched in processes of their own."""
    [path] = folder.iterdir()
    sound = path.read_bytes()
    ends = {"refuses": 0, "answers": 0, "crashes": 0, "hangs": 0}
    np.save(folder / "queries.npy", queries[:20])
    for seed in range(copies):
        rng = random.Random(seed)
        data = bytearray(sound)
        for _ in range(20):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), library.name, str(folder)]
        try:
            status = subprocess.run(command, capture_output=True, check=False, timeout=60).returncode
            ends["crashes" if status < 0 else "refuses" if status else "answers"] += 1
        except subprocess.TimeoutExpired:
            ends["hangs"] += 1
    return ends


def ours(vectors: np.ndarray, queries: np.ndarray, best: np.ndarray, repeats: int) -> dict[str, Any]:
    """The index itself, through its files: added, opened, asked by vectors, checked."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "index"
        texts = (Document(str(i), f"document number {i}") for i in range(len(vectors)))
        started = time.perf_counter()
        VectorIndex.create(folder, dimensions=vectors.shape[1], similarity="dot").add(texts, vectors)
        row: dict[str, Any] = {"build_seconds": time.perf_counter() - started}

        def opened() -> VectorIndex:
            index = VectorIndex.open(folder)
            index.search(queries[:1], K)
            return index

        index = opened()
        seconds = least_seconds(
            {
                "open": opened,
                "batch": lambda: index.search(queries, K),
                "single": lambda: [index.search(query[None], K) for query in queries[:100]],
                "exact": lambda: [index.search(query[None], K, exact=True) for query in queries[:20]],
            },
            repeats,
        )
        hits = index.search(queries, K)
        found = np.array([[int(hit.id) for hit in each] for each in hits])
        checked = index.check()
        return row | {
            "recall": exact.recall(scores(vectors, queries, found), best),
            "check_recall": checked.recall,
            "width": checked.width,
            "bytes": index.bytes,
            "open_seconds": seconds["open"],
            "batch_per_second": len(queries) / seconds["batch"],
            "single_seconds": seconds["single"] / min(100, len(queries)),
            "exact_single_seconds": seconds["exact"] / min(20, len(queries)),
        }


def clusters(count: int, dimensions: int = 576, seed: int = 0) -> np.ndarray:
    """Unit vectors around a thousand centres, with as much spread in 32 directions as between the centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(1000, dimensions)).astype(np.float32)
    spread = rng.normal(size=(32, dimensions)).astype(np.float32) / np.sqrt(np.float32(32))
    made = centres[rng.integers(0, 1000, count)] + rng.normal(size=(count, 32)).astype(np.float32) @ spread
    made += 0.1 * rng.normal(size=made.shape).astype(np.float32)
    return unit(made)


def documentation(count: int, words: int, layer: int) -> np.ndarray:
    """The first words of `pydocs` through the first layers of the default model, computed once."""
    corpus = corpora.load("pydocs")
    key = fingerprint([corpus.fingerprint(), count, words, layer])
    path = home() / "benchmarks" / f"search-{key}.npy"
    if not path.exists():
        from broadsheet import embed

        beginnings = dict.fromkeys(" ".join(document.text.split()[:words]) for document in shuffled(corpus))
        texts = list(islice(beginnings, count))
        vectors = embed.embedder("default", layer=layer, dtype="bfloat16").encode_document(texts)
        with atomic_write(path, "wb") as file:
            np.save(file, vectors)
    return unit(np.load(path))


def shuffled(corpus: corpora.Corpus) -> Iterator[Document]:
    """All documents, in an order that is always the same."""
    documents = list(corpus)
    random.Random(0).shuffle(documents)
    return iter(documents)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Float32, of length 1."""
    vectors = np.asarray(vectors, np.float32)
    made: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return made


def compared(vectors: np.ndarray, queries: np.ndarray, only: str, repeats: int, harm: bool) -> dict[str, Any]:
    """Every library on the same vectors."""
    none = np.zeros(len(vectors), bool)

    def exactly(some: np.ndarray) -> np.ndarray:
        return exact.nearest(some, [(0, vectors)], K, none)[1]

    best = exactly(queries)
    seconds = least_seconds(
        {"batch": lambda: exactly(queries), "single": lambda: [exactly(query[None]) for query in queries[:20]]}, repeats
    )
    rows: dict[str, Any] = {
        "exact": {
            "batch_per_second": len(queries) / seconds["batch"],
            "single_seconds": seconds["single"] / min(20, len(queries)),
        }
    }
    print(f"{len(vectors):,} vectors of {vectors.shape[1]} dimensions, {len(queries):,} queries")
    print(
        f"  {'exact':18} recall 1.000           {rows['exact']['batch_per_second']:8,.0f} q/s, "
        f"{1000 * rows['exact']['single_seconds']:6.2f} ms one at a time"
    )
    for library in LIBRARIES:
        if only not in library.name or installed(library.packages) is None:
            print(f"  {library.name}: left out")
            continue
        row = rows[library.name] = measured(library, vectors, queries, best, repeats, harm)
        width, found = list(row["widths"].items())[-1]
        print(
            f"  {library.name:18} recall {found['recall']:.3f} at width {width:3} "
            f"{found['batch_per_second']:7,.0f} q/s, {1000 * found['single_seconds']:6.2f} ms one at a time, "
            f"built in {row['build_seconds']:5.1f} s, {row['bytes'] / 1e6:5.1f} MB; damaged: {row.get('damaged', '–')}",
            flush=True,
        )
    if not only:
        row = rows["VectorIndex"] = ours(vectors, queries, best, repeats)
        print(f"  VectorIndex        {row}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=20_000, help="of each kind")
    parser.add_argument("--queries", type=int, default=500, help="further vectors of the same kind")
    parser.add_argument("--words", type=int, default=8, help="of a document that is embedded")
    parser.add_argument("--layer", type=int, default=2, help="of the default model")
    parser.add_argument("--index", default="", help="real vectors: those of this index instead")
    parser.add_argument("--kind", choices=["documentation", "clusters"], default=None, help="only these vectors")
    parser.add_argument("--only", default="", help="libraries whose name holds this")
    parser.add_argument("--repeats", type=int, default=3, help="of what is timed; the least counts")
    parser.add_argument("--released", nargs="*", default=[], metavar="PACKAGE=MONTH", help="as the package index says")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()

    total = arguments.vectors + arguments.queries
    kinds: dict[str, Callable[[], np.ndarray]] = {
        "documentation": lambda: documentation(total, arguments.words, arguments.layer),
        "clusters": lambda: clusters(total),
    }
    if arguments.index:
        contents = VectorIndex.open(arguments.index)._contents
        rows = np.flatnonzero(~contents.dead)
        del kinds["documentation"]
        kinds[f"those of {arguments.index}"] = lambda: unit(
            contents.gather(np.random.default_rng(0).permutation(rows)[:total])
        )
    results = {}
    for kind, make in kinds.items():
        if arguments.kind in (None, kind):
            print(kind)
            vectors = make()
            queries, rest = vectors[: arguments.queries], np.ascontiguousarray(vectors[arguments.queries :])
            results[kind] = compared(rest, queries, arguments.only, arguments.repeats, harm=not results) | {
                "vectors": len(rest),
                "dimensions": rest.shape[1],
                "queries": len(queries),
            }
    if arguments.record:
        result = {
            "results": results,
            "packages": {each.name: installed(each.packages) for each in LIBRARIES},
            "package_names": {each.name: each.packages[0] for each in LIBRARIES},
            "released": dict(entry.split("=", 1) for entry in arguments.released),
            "wanted_recall": WANTED,
            "words": arguments.words,
            "layer": arguments.layer,
            "threads": os.cpu_count(),
            "command": " ".join(["python", *sys.argv]),
            "provenance": evidence.provenance(data=arguments.index or "pydocs", seed=0),
        }
        print(evidence.record("search.benchmark", result, evidence.folder()))


if __name__ == "__main__":
    main()

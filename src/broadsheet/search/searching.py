"""Searching an index that stands in a folder: by vectors, by words, or by both.

Knows: what was committed, the embedder its vectors come from, and how rankings are joined. Does not know: changes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from broadsheet.console import InputError
from broadsheet.search import exact, recall, store, updating
from broadsheet.search.contents import Contents
from broadsheet.search.exact import Floats
from broadsheet.search.fusion import reciprocal_rank_fusion
from broadsheet.search.store import Manifest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Mode = Literal["dense", "bm25", "hybrid"]
FUSED = 100  # documents of each search that are fused


@dataclass(frozen=True)
class Hit:
    """A document that a search found; the scale of `score` is the search's own (cosine, BM25, fused ranks)."""

    id: str
    score: float
    text: str

    def snippet(self, width: int = 160) -> str:
        """The text on one line, cut to `width` characters."""
        line = " ".join(self.text.split())
        return line if len(line) <= width else f"{line[: width - 1].rstrip()}…"


@dataclass(frozen=True)
class Check:
    """How the index's search compares with exact search.

    Args:
        recall: the share of the exact best `k` that was found, over all queries; a copy as near counts as found.
        k, queries, documents: of the comparison.
        width: candidates the graph looks at; None where there is no graph, and every search is exact.
        seconds, exact_seconds: a query, all asked at once.
    """

    recall: float
    k: int
    queries: int
    documents: int
    width: int | None
    seconds: float
    exact_seconds: float


class Searchable:
    """What can be asked of an index; `VectorIndex` can change it too."""

    def __init__(self, folder: Path, contents: Contents, embedder: SentenceTransformer | None) -> None:
        self.folder = folder
        self._contents = contents
        self._embedder: SentenceTransformer | None = None
        if embedder is not None:
            self._check_embedder(embedder)
            self._embedder = embedder

    @classmethod
    def open(cls, folder: str | Path, embedder: SentenceTransformer | None = None) -> Self:
        """An index that stands in `folder`, as it is now.

        Args:
            folder: what `create` made.
            embedder: the one its vectors came from; by default it is loaded by name when it is first needed.

        Raises:
            InputError: there is no index, a file of it is damaged, or it was built with another embedder.
        """
        folder = Path(folder).expanduser()
        return cls(folder, opened(folder), embedder)

    def refresh(self) -> bool:
        """See what was committed since the index was opened; whether anything was."""
        before = self.manifest.generation
        self._contents = opened(self.folder)
        return self.manifest.generation != before

    # What it holds

    def __len__(self) -> int:
        return self._contents.size

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._contents.live()

    @property
    def manifest(self) -> Manifest:
        """What the folder says of itself."""
        return self._contents.manifest

    @property
    def dimensions(self) -> int:
        """Of a vector."""
        return self._contents.dimensions

    @property
    def bytes(self) -> int:
        """What the files take on disk."""
        return sum(file.bytes for file in self.manifest.files())

    def ids(self) -> list[str]:
        """The ids of all documents, in the order in which they were added."""
        live = self._contents.live()
        return sorted(live, key=lambda identifier: live[identifier][0])

    @property
    def embedder(self) -> SentenceTransformer:
        """What the vectors come from, loaded by its name if it has to be.

        Raises:
            InputError: the index has none, or what goes by its name now is another.
        """
        if self._embedder is None:
            source = self.manifest.embedder.get("source")
            if not source:
                raise InputError(f"{self.folder} does not say what embeds its texts; give the embedder, or vectors")
            from broadsheet.embed import base

            embedder = base.load(source, dtype=self.manifest.embedder.get("dtype"))
            self._check_embedder(embedder)
            self._embedder = embedder
        return self._embedder

    def _check_embedder(self, embedder: SentenceTransformer) -> None:
        wanted = self.manifest.embedder
        found = identity(embedder)
        if found["dimensions"] != wanted["dimensions"]:
            raise InputError(
                f"the embedder makes vectors of {found['dimensions']} dimensions; {self.folder} holds "
                f"{wanted['dimensions']}: give the embedder it was built with, or index into another folder"
            )
        if wanted["fingerprint"] and found["fingerprint"] != wanted["fingerprint"]:
            name = wanted.get("source") or wanted.get("model") or "another"
            raise InputError(
                f"{self.folder} was built with {name} (fingerprint {wanted['fingerprint']}), this embedder is another "
                f"({found['fingerprint']}): give that one, or index into another folder"
            )

    # Searching

    def search(
        self,
        queries: Sequence[str] | NDArray[Any],
        k: int = 10,
        *,
        mode: Mode = "dense",
        exact: bool = False,
    ) -> list[list[Hit]]:
        """The best documents for each query, best first.

        Args:
            queries: texts; or vectors, (queries, dimensions), for `mode="dense"`.
            k: documents a query; all there are, if there are fewer. By BM25 alone only those that share a word with it.
            mode: `"dense"` by vectors, `"bm25"` by words, `"hybrid"` by both: the 100 best of each, joined by
                reciprocal-rank fusion.
            exact: look at every vector, and use no graph.

        Raises:
            InputError: an empty query, `k` below 1, another number of dimensions, an empty index, or a mode that it
                was not made for.
        """
        texts = self._texts(queries)
        if mode not in get_args(Mode):
            raise InputError(f"got mode {mode!r}; expected one of {', '.join(get_args(Mode))}")
        if k < 1:
            raise InputError(f"got {k} documents to find; expected 1 or more")
        if mode != "dense" and texts is None:
            raise InputError(f"got vectors; mode {mode!r} needs texts")
        vectors = None if mode == "bm25" else self._vectors(queries)
        try:
            return self._search(vectors, texts if mode != "dense" else None, k, exact)
        except InputError:
            if not self.refresh():  # a writer may have removed what was not open yet
                raise
        return self._search(vectors, texts if mode != "dense" else None, k, exact)

    def _search(self, vectors: Floats | None, texts: list[str] | None, k: int, exact: bool) -> list[list[Hit]]:
        contents = self._contents
        if not contents.size:
            begun = (updating.pending(self.folder, self.manifest) / updating.DOCUMENTS).exists()
            remedy = "repeat the `broadsheet index` that was cut off" if begun else "`broadsheet index` fills it"
            raise InputError(f"{self.folder} holds no documents; {remedy}")
        both = vectors is not None and texts is not None
        depth = min(max(k, FUSED) if both else k, contents.size)
        rankings = []
        if vectors is not None:
            rankings.append(self._dense(vectors, depth, exact))
        if texts is not None:
            rankings.append(self._by_words(texts, depth))
        ranked = rankings[0]
        if both:
            fused = ([[row for row, _ in each] for each in pair] for pair in zip(*rankings, strict=True))
            ranked = [reciprocal_rank_fusion(pair)[:k] for pair in fused]
        return self._hits(ranked)

    def check(
        self, queries: Sequence[str] | NDArray[Any] | None = None, k: int = 10, *, sample: int = 500, seed: int = 1
    ) -> Check:
        """Verify every byte of the index, and measure the recall of its search against exact search.

        Args:
            queries: texts or vectors; by default the vectors of a sample of documents, each searched without itself.
            k: documents a query.
            sample: how many documents.
            seed: of their choice.

        Raises:
            InputError: a file is damaged (it is named), or the index is empty.
        """
        contents = self._contents
        store.verify(self.folder, contents.manifest.files(), whole=True)
        store.check_copy(self.folder, contents.manifest)
        if contents.size < 2:
            raise InputError(f"{self.folder} holds {contents.size} documents; a recall needs 2 at least")
        given = queries is not None
        if queries is None:
            vectors, own = recall.sample(contents, sample, seed)
        else:
            self._texts(queries)
            vectors = self._vectors(queries)
            own = np.full(len(vectors), -2)
        k = min(k, contents.size - (not given))
        started = time.perf_counter()
        best = recall.nearest(contents, vectors, own, k)
        exact_seconds = seconds = (time.perf_counter() - started) / len(vectors)
        reached, width = 1.0, None
        if contents.graph is not None and contents.manifest.graph is not None:
            width = contents.manifest.graph.width
            started = time.perf_counter()
            found = recall.found(contents, contents.graph, vectors, own, k, width)
            seconds = (time.perf_counter() - started) / len(vectors)
            reached = exact.recall(found, best)
        return Check(reached, k, len(vectors), contents.size, width, seconds, exact_seconds)

    def _texts(self, queries: Sequence[str] | NDArray[Any]) -> list[str] | None:
        """The queries if they are texts, None if they are vectors.

        Raises:
            InputError: there is none, or one is empty.
        """
        if isinstance(queries, str):
            raise InputError("got one text; expected a list of queries")
        if not len(queries):
            raise InputError("got no queries; expected one at least")
        if not isinstance(queries[0], str):
            return None
        texts = [str(query) for query in queries]
        if not all(text.strip() for text in texts):
            raise InputError("got an empty query; expected words to look for")
        return texts

    def _vectors(self, queries: Sequence[str] | NDArray[Any]) -> Floats:
        if isinstance(queries[0], str):
            vectors = self.embedder.encode_query(list(queries), convert_to_numpy=True, show_progress_bar=False)
        else:
            vectors = np.asarray(queries)
        return self._prepared(vectors, "queries")

    def _prepared(self, vectors: Any, what: str) -> Floats:
        """Vectors as they are stored: float32, of length 1 where cosine is meant."""
        found: Floats = np.asarray(vectors, np.float32)
        if found.ndim != 2 or found.shape[1] != self.dimensions:
            raise InputError(
                f"got {what} of shape {found.shape}; {self.folder} holds vectors of {self.dimensions} dimensions"
            )
        if not np.isfinite(found).all():
            raise InputError(f"got {what} with NaN or infinite values; expected finite vectors")
        if self.manifest.embedder["similarity"] == "cosine":
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return found

    def _dense(self, queries: Floats, k: int, exactly: bool) -> list[list[tuple[int, float]]]:
        contents = self._contents
        wide = recall.candidates(k)
        # A list that is long against the index is no nearest-neighbour search: a graph would miss its end.
        if exactly or contents.manifest.graph is None or contents.graph is None or wide > contents.size // 8:
            rows, scores = exact.nearest(queries, contents.blocks(), k, contents.dead)
        else:
            width = contents.manifest.graph.width
            candidates = contents.graph.search(queries, wide, width, contents.deleted)
            rows, scores = exact.rescored(queries, candidates, contents.gather, k)
        return [
            [(int(row), float(score)) for row, score in zip(mine, its, strict=True) if row >= 0]
            for mine, its in zip(rows, scores, strict=True)
        ]

    def _by_words(self, texts: list[str], k: int) -> list[list[tuple[int, float]]]:
        index = self._contents.keywords
        if index is None:
            raise InputError(f"{self.folder} was made without keywords; search it by vectors (mode dense)")
        dead = self._contents.dead
        wanted = k + len(self._contents.deleted)
        return [[pair for pair in index.matches(text, wanted) if not dead[pair[0]]][:k] for text in texts]

    def _hits(self, ranked: list[list[tuple[int, float]]]) -> list[list[Hit]]:
        rows = sorted({row for each in ranked for row, _ in each})  # at once: a block of texts is unpacked once
        texts = dict(zip(rows, self._contents.texts(rows), strict=True))
        return [[Hit(texts[row][0], score, texts[row][1]) for row, score in each] for each in ranked]


def opened(folder: Path) -> Contents:
    """What counts in `folder`; read again where a writer replaced it meanwhile."""
    manifest = store.read(folder)
    while True:
        try:
            return Contents(folder, manifest)
        except InputError:
            newer = store.read(folder)
            if newer.generation == manifest.generation:
                raise
            manifest = newer


def identity(embedder: SentenceTransformer) -> dict[str, Any]:
    """What an embedder is recorded by: its fingerprint, dimensions, name, similarity, and what it is made of."""
    from broadsheet.search.encoding.identity import identity as of

    kinds = {str(weight.dtype).removeprefix("torch.") for weight in embedder.parameters()}
    return of(embedder) | {"dtype": kinds.pop() if len(kinds) == 1 else None}

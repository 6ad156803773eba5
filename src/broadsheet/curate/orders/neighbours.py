"""The nearest neighbours of documents by cosine: exact by matrix products, approximate by faiss, and the graph of both.

Knows: rows of vectors. Does not know: texts, what the vectors stand for, what the graph is used for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from broadsheet.console import InputError, say

Matrix = Any  # (rows, dimensions) float32: an array of numpy, or a CSR array of scipy
Places = NDArray[np.int64]
Floats = NDArray[np.float32]
NONE = -1
EXACT = 50_000  # rows up to which all are compared with all
_CELLS = 2**24  # cosines at once: 64 MB
_LISTED = 8  # candidates of faiss for each neighbour that is kept, whose cosines are computed exactly
_REDUCED = 256  # dimensions of sparse rows for faiss
_SAMPLE = 20_000  # rows that these are learnt from, and columns at most
_TRAINING = 256 * 39  # rows from which faiss learns the 256 centroids of a byte


@dataclass(frozen=True)
class NeighbourGraph:
    """The k nearest neighbours of each row, the nearest first; of equals the earlier row first.

    Args:
        ids: (rows, k) int32, `NONE` where there are fewer. A row is no neighbour of its own.
        cosines: (rows, k) float32 beside them.
    """

    ids: NDArray[np.int32]
    cosines: Floats

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, similarity: NDArray[Any], k: int) -> NeighbourGraph:
        """That of a whole (rows, rows) matrix of similarities; −inf is no neighbour."""
        return cls(*_nearest(np.array(similarity, np.float32), np.arange(len(similarity)), k))

    def undirected(self) -> Edges:
        """An edge between a and b where a is a neighbour of b, or b of a."""
        n, k = self.ids.shape
        known = self.ids.ravel() != NONE
        one = np.repeat(np.arange(n), k)[known]
        other, weights = self.ids.ravel()[known].astype(np.int64), self.cosines.ravel()[known]
        one, other = np.concatenate([one, other]), np.concatenate([other, one])
        weights = np.concatenate([weights, weights])
        order = np.lexsort((-weights, other, one))  # of both directions the higher first: they differ by rounding
        one, other, weights = one[order], other[order], weights[order]
        first = np.r_[True, (np.diff(one) != 0) | (np.diff(other) != 0)][: len(one)]
        one, other, weights = one[first], other[first], weights[first]
        order = np.lexsort((other, -weights, one))
        starts = np.searchsorted(one[order], np.arange(n + 1))
        return Edges(starts, other[order].astype(np.int32), weights[order])


@dataclass(frozen=True)
class Edges:
    """An undirected graph, row by row: the neighbours of a row, those with the highest weight first.

    Args:
        starts: (rows + 1,) where each row's begin.
        others: (edges × 2,) int32, the rows at the other end.
        weights: (edges × 2,) float32 beside them.
    """

    starts: Places
    others: NDArray[np.int32]
    weights: Floats

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def degrees(self) -> Places:
        """(rows,) edges of each row."""
        return np.diff(self.starts)

    def of(self, row: int) -> NDArray[np.int32]:
        """The neighbours of a row."""
        return self.others[self.starts[row] : self.starts[row + 1]]

    def joins(self, one: Places, other: Places) -> NDArray[np.bool_]:
        """Whether there is an edge between the rows of each pair."""
        known = np.repeat(np.arange(len(self)), self.degrees) * len(self) + self.others
        return np.isin(np.asarray(one, np.int64) * len(self) + other, known)


def nearest(vectors: Matrix, k: int, *, exact_up_to: int = EXACT, nprobe: int = 64, seed: int = 0) -> NeighbourGraph:
    """The k nearest neighbours of each row: exact where there are no more rows than that, else by faiss.

    Args:
        vectors: (rows, dimensions) of unit length, or 0: such a row has no neighbours. Where a cosine is exactly 0
            nothing is shared, and that is no neighbour either.
        nprobe: of faiss's lists that are searched; there are twice the square root of the rows. 64 of 32,768 in the
            paper on in-context pretraining.
        seed: of faiss's training.

    Raises:
        InputError: k is below 1; faiss is needed and not installed.

    Example:
        >>> nearest(np.eye(3, dtype=np.float32)[[0, 0, 1]], 1).ids.tolist()
        [[1], [0], [-1]]
    """
    if k < 1:
        raise InputError(f"got k {k}; expected 1 neighbour or more")
    if vectors.shape[0] <= exact_up_to:
        return exact(vectors, k)
    lists = round(2 * vectors.shape[0] ** 0.5)
    return approximate(vectors, k, lists=lists, nprobe=min(nprobe, lists), seed=seed)


def exact(vectors: Matrix, k: int) -> NeighbourGraph:
    """The k nearest neighbours of each row among all: rows × rows cosines, a block at a time."""
    rows = vectors.shape[0]
    size = max(1, _CELLS // max(1, rows))
    ids, cosines = np.full((rows, k), NONE, np.int32), np.zeros((rows, k), np.float32)
    turned = vectors.T.tocsr() if sparse.issparse(vectors) else vectors.T
    for begin in range(0, rows, size):
        end = min(begin + size, rows)
        found = vectors[begin:end] @ turned
        block = np.asarray(found.toarray() if sparse.issparse(found) else found, np.float32)
        block[block == 0] = -np.inf
        ids[begin:end], cosines[begin:end] = _nearest(block, np.arange(begin, end), k)
    return NeighbourGraph(ids, cosines)


def approximate(
    vectors: Matrix, k: int, *, lists: int, nprobe: int, bytes_each: int | None = None, seed: int = 0
) -> NeighbourGraph:
    """The k nearest neighbours of each row, among those that faiss's IVF-PQ finds; their cosines are exact.

    Args:
        vectors: as `nearest` takes them; sparse ones are searched in fewer dimensions.
        lists, nprobe: parts that the rows are put in, and how many of them are looked at for each row.
        bytes_each: of a row in the index; by default one for every three dimensions or so, as 256 for 768.
        seed: of the training.

    Raises:
        InputError: faiss is not installed, or there are fewer rows than it can learn from.
    """
    faiss = _faiss()
    rows, least = vectors.shape[0], max(256, lists)
    if rows < least:
        raise InputError(f"got {rows:,} rows for an index of {lists:,} lists; expected {least:,} or more: compare all")
    searched = np.ascontiguousarray(_dense(vectors, seed), np.float32)
    width = searched.shape[1]
    parts = bytes_each or next(m for m in range(max(1, width // 3), 0, -1) if width % m == 0)
    # np: not polysemous, whose training takes minutes and serves Hamming distances alone.
    index = faiss.index_factory(width, f"IVF{lists},PQ{parts}np", faiss.METRIC_INNER_PRODUCT)
    index.nprobe = nprobe
    index.cp.seed = index.pq.cp.seed = seed + 1
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # else it warns on the terminal
    drawn = np.random.default_rng(seed).permutation(rows)[: max(_TRAINING, 48 * lists)]
    index.train(searched[np.sort(drawn)])
    index.add(searched)
    ids, cosines = np.full((rows, k), NONE, np.int32), np.zeros((rows, k), np.float32)
    for begin in range(0, rows, 4096):
        places = np.arange(begin, min(begin + 4096, rows))
        _, found = index.search(searched[places], min(rows, _LISTED * k + 1))
        ids[places], cosines[places] = _kept(vectors, places, found, k)
    return NeighbourGraph(ids, cosines)


def _kept(vectors: Matrix, places: Places, found: Places, k: int) -> tuple[NDArray[np.int32], Floats]:
    """Of the candidates that faiss found, those with the highest exact cosines."""
    found = np.sort(found, axis=1)  # of equals the earlier row comes first, as among all
    pairs = (np.repeat(places, found.shape[1]), np.maximum(found, 0).ravel())
    cosines = cosine(vectors, *pairs).reshape(found.shape)
    cosines[(found < 0) | (found == places[:, None]) | (cosines == 0)] = -np.inf
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(cosines, order, 1)
    none = np.isneginf(best)
    padded = np.full((len(places), k), NONE, np.int32), np.zeros((len(places), k), np.float32)
    padded[0][:, : best.shape[1]] = np.where(none, NONE, np.take_along_axis(found, order, 1))
    padded[1][:, : best.shape[1]] = np.where(none, 0, best)
    return padded


def cosine(vectors: Matrix, one: Places, other: Places) -> Floats:
    """(pairs,) cosines of the rows of each pair; the rows are of unit length."""
    found = np.zeros(len(one), np.float32)
    for begin in range(0, len(one), 65_536):
        part = slice(begin, begin + 65_536)
        a, b = vectors[one[part]], vectors[other[part]]
        found[part] = a.multiply(b).sum(1) if sparse.issparse(a) else np.einsum("ij,ij->i", a, b)
    return found


def _nearest(cosines: Floats, own: Places, k: int) -> tuple[NDArray[np.int32], Floats]:
    """Of (rows, all) cosines the k highest each, without the rows' own; −inf is no neighbour."""
    cosines[np.arange(len(own)), own] = -np.inf
    count = min(k, cosines.shape[1])
    best = np.argpartition(-cosines, count - 1, axis=1)[:, :count] if count else np.zeros((len(own), 0), np.int64)
    found = np.take_along_axis(cosines, best, 1)
    order = np.lexsort((best, -found), axis=1)
    best, found = np.take_along_axis(best, order, 1), np.take_along_axis(found, order, 1)
    none = np.isneginf(found)
    ids, kept = np.full((len(own), k), NONE, np.int32), np.zeros((len(own), k), np.float32)
    ids[:, :count], kept[:, :count] = np.where(none, NONE, best), np.where(none, 0, found)
    return ids, kept


def _dense(vectors: Matrix, seed: int) -> Floats:
    """The rows as an array; sparse ones in the dimensions that tell most of them, learnt from a part of the rows."""
    if not sparse.issparse(vectors):
        return np.asarray(vectors)
    from sklearn.decomposition import TruncatedSVD

    rows = vectors.shape[0]
    say(f"{rows:,} sparse rows are searched in {_REDUCED} dimensions; cosines are those of the whole rows")
    sample = vectors[np.sort(np.random.default_rng(seed).permutation(rows)[:_SAMPLE])]
    counts = np.bincount(sample.indices, minlength=vectors.shape[1])
    shared = np.sort(np.argsort(-counts, kind="stable")[: min(_SAMPLE, int((counts > 1).sum()))])
    width = min(_REDUCED, len(shared) - 1, sample.shape[0] - 1)
    learnt = TruncatedSVD(width, n_iter=2, random_state=seed).fit(sample[:, shared])
    reduced = learnt.transform(vectors[:, shared])
    lengths = np.linalg.norm(reduced, axis=1, keepdims=True)
    return np.asarray(reduced / np.maximum(lengths, 1e-12))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise InputError("so many documents need faiss: pip install -e '.[curate]'") from None
    return faiss

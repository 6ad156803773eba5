"""Exact search by inner product, a block of vectors at a time; and the recall of any other search against it.

Knows: float32 matrices, rows by number. Does not know: files, documents, graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
_TIE = 1e-5  # scores nearer than this are the same: float32 sums differ with the order of their terms


def nearest(
    queries: Floats, blocks: Iterable[tuple[int, Floats]], k: int, dead: NDArray[np.bool_]
) -> tuple[Rows, Floats]:
    """The `k` rows with the largest inner products, exactly.

    Args:
        queries: (queries, dimensions).
        blocks: the number of a block's first row, and the block, (rows, dimensions).
        k: at most the number of rows that count.
        dead: for every row whether it does not count.

    Returns:
        Rows and scores, (queries, k) each, best first, ties in the order of the rows (but for which of them come last).
    """
    best = np.full((len(queries), 0), -np.inf, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    for first, block in blocks:
        scores = queries @ block.T
        scores[:, dead[first : first + len(block)]] = -np.inf
        numbers = np.arange(first, first + len(block))
        if len(block) > k:
            places = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores, numbers = np.take_along_axis(scores, places, 1), numbers[places]
        else:
            numbers = np.broadcast_to(numbers, scores.shape)
        rows, best = top(np.concatenate([rows, numbers], 1), np.concatenate([best, scores], 1), k)
    return rows, best


def top(rows: Rows, scores: Floats, k: int) -> tuple[Rows, Floats]:
    """The `k` best of each line, best first, ties in the order of the rows."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def rescored(queries: Floats, candidates: Rows, gather: Callable[[Rows], Floats], k: int) -> tuple[Rows, Floats]:
    """Candidates by exact scores.

    Args:
        queries: (queries, dimensions).
        candidates: (queries, candidates), −1 where there is none.
        gather: the vectors of rows.
        k: how many are kept of each line.

    Returns:
        Rows and scores, (queries, k) each, best first; where there are fewer, row −1 with score −∞.
    """
    scores = np.full(candidates.shape, -np.inf, np.float32)
    for i, line in enumerate(candidates):
        real = line >= 0
        scores[i, real] = gather(line[real]) @ queries[i]
    return top(candidates, scores, k)


def recall(found: Floats, exact: Floats) -> float:
    """The share of the exact best whose place a search filled with one as good, over all queries.

    Scores are compared, not numbers: of two copies of a text either one is right.

    Args:
        found: exact scores of what the search found, (queries, k), −∞ where it found nothing.
        exact: scores of the exact best, (queries, k), best first.
    """
    good = (found >= exact[:, -1:] - _TIE) & np.isfinite(found)
    return float(good.mean())

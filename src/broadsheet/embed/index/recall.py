"""How well the approximate search of an index does, and how wide it has to look to do well enough.

Knows: the contents of an index. Does not know: embedders, what is done about it.
"""

from __future__ import annotations

import numpy as np

from broadsheet.embed.index import exact
from broadsheet.embed.index.contents import Contents
from broadsheet.embed.index.exact import Floats, Rows
from broadsheet.embed.index.graph import WIDTHS, Neighbours

WANTED = 0.98  # of the 10 nearest
_SAMPLE = 200  # vectors that the width is chosen on


def candidates(k: int) -> int:
    """How many candidates of the graph are scored exactly where `k` are wanted: a byte a dimension blurs them."""
    return 3 * k


def width(contents: Contents, graph: Neighbours) -> tuple[int, float]:
    """The least width that finds `WANTED` of the 10 nearest of a sample of the vectors, and what it finds."""
    queries, own = sample(contents, _SAMPLE, seed=0)
    best = nearest(contents, queries, own, 10)
    reached = 0.0
    for wide in WIDTHS:
        reached = exact.recall(found(contents, graph, queries, own, 10, wide), best)
        if reached >= WANTED:
            break
    return wide, reached


def sample(contents: Contents, size: int, seed: int) -> tuple[Floats, Rows]:
    """Vectors that count, drawn without replacement, and their rows."""
    rows = np.flatnonzero(~contents.dead)
    own = np.sort(np.random.default_rng(seed).permutation(rows)[:size])
    return contents.gather(own), own


def nearest(contents: Contents, queries: Floats, own: Rows, k: int) -> Floats:
    """Scores of the `k` nearest of each query, (queries, k), best first, without the query's own row."""
    most = min(k + 1, contents.size)
    rows, scores = exact.nearest(queries, contents.blocks(), most, contents.dead)
    return _without(rows, scores, own, k)


def found(contents: Contents, graph: Neighbours, queries: Floats, own: Rows, k: int, width: int) -> Floats:
    """The same by the graph, −∞ where it found nothing."""
    candidate = graph.search(queries, candidates(k + 1), width, contents.deleted)
    rows, scores = exact.rescored(queries, candidate, contents.gather, k + 1)
    return _without(rows, scores, own, k)


def _without(rows: Rows, scores: Floats, own: Rows, k: int) -> Floats:
    scores = np.where(rows == own[:, None], -np.inf, scores)
    return -np.sort(-scores, axis=1)[:, :k]

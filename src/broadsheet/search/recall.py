"""How well the approximate search of an index does, and how wide it has to look to do well enough.

Knows: the contents of an index. Does not know: embedders, what is done about it.
"""

from __future__ import annotations

import numpy as np

from broadsheet.search import exact
from broadsheet.search.contents import Contents
from broadsheet.search.exact import Floats, Rows
from broadsheet.search.graph import WIDTHS, Neighbours

WANTED = 0.98  # of the 10 nearest
_SAMPLE = 200  # vectors that the width is chosen on, at most
_SHARE = 10  # one in so many new ones


def candidates(k: int) -> int:
    """How many candidates of the graph are scored exactly where `k` are wanted: a byte a dimension blurs them."""
    return 3 * k


def held_back(contents: Contents, new: Rows) -> Rows:
    """Some of the new rows that count, drawn at random: for `width`, before the graph takes them in as well."""
    rows = new[~contents.dead[new]]
    most = min(_SAMPLE, -(-len(rows) // _SHARE)) if len(rows) > 1 else 0
    return np.sort(np.random.default_rng(0).permutation(rows)[:most])


def width(contents: Contents, graph: Neighbours, queries: Rows) -> tuple[int, float]:
    """The least width that finds `WANTED` of the 10 nearest of rows that the graph does not hold, and what it finds.

    A graph finds what it holds by its own links. Asked for that, it looks better than it is.
    """
    if not len(queries):
        return WIDTHS[0], 1.0
    vectors = contents.gather(queries)
    away = contents.dead.copy()
    away[queries] = True
    best = exact.nearest(vectors, contents.blocks(), min(10, int((~away).sum())), away)[1]
    reached = 0.0
    for wide in WIDTHS:
        reached = exact.recall(found(contents, graph, vectors, queries, best.shape[1], wide), best)
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

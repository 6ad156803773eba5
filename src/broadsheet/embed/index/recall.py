"""How well the approximate search of an index does, and how wide it has to look to do well enough.

Knows: the contents of an index. Does not know: embedders, what is done about it.
"""

from __future__ import annotations

import numpy as np

from broadsheet.embed.index import exact
from broadsheet.embed.index.contents import Contents
from broadsheet.embed.index.exact import Floats
from broadsheet.embed.index.graph import WIDTHS, Neighbours

WANTED = 0.98  # of the 10 nearest
_SAMPLE = 200  # draws that the width is chosen on
_AROUND = 11  # neighbours that a draw is made from


def candidates(k: int) -> int:
    """How many candidates of the graph are scored exactly where `k` are wanted: a byte a dimension blurs them."""
    return 3 * k


def width(contents: Contents, graph: Neighbours) -> tuple[int, float]:
    """The least width that finds `WANTED` of the 10 nearest of vectors like those of the index, and what it finds."""
    queries = drawn(contents, _SAMPLE, seed=0)
    best = nearest(contents, queries, 10)
    reached = 0.0
    for wide in WIDTHS:
        reached = exact.recall(found(contents, graph, queries, 10, wide), best)
        if reached >= WANTED:
            break
    return wide, reached


def sample(contents: Contents, size: int, seed: int) -> Floats:
    """Vectors that count, drawn without replacement, (size, dimensions)."""
    rows = np.flatnonzero(~contents.dead)
    return contents.gather(np.sort(np.random.default_rng(seed).permutation(rows)[:size]))


def drawn(contents: Contents, size: int, seed: int) -> Floats:
    """New vectors like those that count, each drawn around one of them, (size, dimensions).

    What is in a graph is found by its own links, so a graph that is asked for its own vectors looks better than it is.
    A draw is normal, with the mean and the covariance of a vector's nearest (itself among them): so it lies as far
    from each of them as they lie from one another, as a text of the same kind would that the index does not hold.
    """
    centres = sample(contents, size, seed)
    rows, _ = exact.nearest(centres, contents.blocks(), min(_AROUND, contents.size), contents.dead)
    random = np.random.default_rng(seed)
    made = np.empty_like(centres)
    for i, line in enumerate(rows):
        near = contents.gather(line)
        mean = near.mean(0)
        made[i] = mean + random.standard_normal(len(near), np.float32) @ (near - mean) / np.sqrt(np.float32(len(near)))
    return made


def nearest(contents: Contents, queries: Floats, k: int) -> Floats:
    """Scores of the `k` nearest of each query, (queries, k), best first."""
    return exact.nearest(queries, contents.blocks(), min(k, contents.size), contents.dead)[1]


def found(contents: Contents, graph: Neighbours, queries: Floats, k: int, width: int) -> Floats:
    """The same by the graph, −∞ where it found nothing."""
    candidate = graph.search(queries, candidates(k), width, contents.deleted)
    return exact.rescored(queries, candidate, contents.gather, k)[1]

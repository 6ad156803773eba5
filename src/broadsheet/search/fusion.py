"""Several rankings of the same documents made into one.

Knows: documents by any name, best first. Does not know: what ranked them, nor its scores.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[T]], *, k: int = 60, weights: Sequence[float] | None = None
) -> list[tuple[T, float]]:
    """Each document scores the sum of `weight / (k + place)` over the rankings that hold it, places from 1.

    Scores of different searches need no common scale, which is why this is the plain way to join BM25 and vectors.
    Ties stand in the order of the first ranking, then of the second, and so on.

    Args:
        rankings: documents by name, best first, each at most once.
        k: how little the first places stand out (60 in the paper).
        weights: of the rankings; 1 each by default.

    Raises:
        ValueError: as many weights as rankings are wanted, and `k` not below 0.

    Example:
        >>> reciprocal_rank_fusion([["a", "b"], ["b", "c"]])[0][0]
        'b'

    Source: Cormack, Clarke and Büttcher, SIGIR 2009, "Reciprocal Rank Fusion outperforms Condorcet".
    """
    if k < 0:
        raise ValueError(f"got k {k}; expected 0 or more")
    weights = [1.0] * len(rankings) if weights is None else list(weights)
    if len(weights) != len(rankings):
        raise ValueError(f"got {len(weights)} weights for {len(rankings)} rankings; expected one each")
    scores: dict[T, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for place, name in enumerate(ranking, start=1):
            scores[name] = scores.get(name, 0.0) + weight / (k + place)
    return sorted(scores.items(), key=lambda entry: -entry[1])

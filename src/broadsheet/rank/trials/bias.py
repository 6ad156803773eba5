"""How much a reranker's order hangs on the order it was given: the same candidates, shuffled.

Knows: orders. Does not know: models, texts, relevance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PositionBias:
    """What shuffling the input changed.

    Attributes:
        agreement: Kendall's τ between the order from the given input and the one from the shuffled input, over the
            candidates: 1 where the input's order does not matter, about 0 where it is all that matters.
        same_first: 1 where both put the same candidate first, else 0.
        follows: Kendall's τ between the shuffled input and the order made of it: 1 for a reranker that returns what it
            is given, about 0 for one that ignores the places.
        first_from: the place in the shuffled input of what came first, 0 to 1 (0.5 on average without a bias).
    """

    agreement: float
    same_first: float
    follows: float
    first_from: float


def position_bias(given: Sequence[int], shuffle: Sequence[int], from_shuffled: Sequence[int]) -> PositionBias:
    """Compare two orders of the same n candidates.

    Args:
        given: the order made of the candidates as they were (their indices, best first).
        shuffle: the shuffled input: which candidate stood at each place.
        from_shuffled: the order made of that input, as places in it, best first.

    Raises:
        ValueError: the three are not permutations of the same length.

    Example:
        >>> position_bias([0, 1, 2], [2, 0, 1], [1, 2, 0]).agreement  # candidate 0 is at place 1: the same order
        1.0
    """
    n = len(given)
    if any(sorted(order) != list(range(n)) for order in (given, shuffle, from_shuffled)):
        raise ValueError(f"got orders {given!r}, {shuffle!r}, {from_shuffled!r}; expected permutations of one length")
    if n < 2:
        return PositionBias(1.0, 1.0, 0.0, 0.5)
    unshuffled = [shuffle[place] for place in from_shuffled]
    return PositionBias(
        agreement=kendall(given, unshuffled),
        same_first=float(given[0] == unshuffled[0]),
        follows=kendall(list(range(n)), from_shuffled),
        first_from=from_shuffled[0] / (n - 1),
    )


def kendall(one: Sequence[int], other: Sequence[int]) -> float:
    """Kendall's τ of two orders of the same items: the share of pairs in the same order, minus that of the others.

    Example:
        >>> kendall([0, 1, 2], [2, 1, 0])
        -1.0
    """
    n = len(one)
    if n < 2:
        return 1.0
    places = np.empty(n)
    places[list(other)] = np.arange(n)
    ordered = places[list(one)]
    agree = np.sign(ordered[None, :] - ordered[:, None])[np.triu_indices(n, 1)]
    return float(agree.mean())

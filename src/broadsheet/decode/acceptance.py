"""How likely the target writes a proposed token, learned from what it wrote so far.

Every proposal falls into a bin by its evidence: how long the context it was copied from agrees, or how often the
table saw it. A bin starts from a guess and follows the hits counted in it, recent ones weighing more. Whether a token
was drafted does not matter: each token the target writes is a trial of all that could have been proposed there.
"""

from __future__ import annotations

from bisect import bisect_right

Bin = tuple[int, ...]
COPIED, TABLED = 0, 1  # the first number of a bin: where its proposals come from

_LENGTHS = (3, 4, 6, 10, 16, 32)
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
_TOTALS = (1, 2, 4, 16)
_GUESS_WEIGHT = 8.0  # trials that the guess counts for
_MEMORY = 0.99  # what is left of a count after one more trial: the last hundred trials decide


class Acceptance:
    """Hit rates by bin. Empty, it gives the guesses."""

    def __init__(self) -> None:
        self._counts: dict[Bin, tuple[float, float]] = {}

    def chance(self, place: Bin, guess: float) -> float:
        """The share of hits in a bin, `guess` standing in for its first trials."""
        hits, trials = self._counts.get(place, (0.0, 0.0))
        return (hits + guess * _GUESS_WEIGHT) / (trials + _GUESS_WEIGHT)

    def observe(self, place: Bin, hit: bool) -> None:
        """Count a trial."""
        hits, trials = self._counts.get(place, (0.0, 0.0))
        self._counts[place] = (hits * _MEMORY + hit, trials * _MEMORY + 1)

    def fork(self) -> Acceptance:
        """A copy that learns on its own."""
        twin = Acceptance()
        twin._counts = self._counts.copy()
        return twin


def copied(common: int, rank: int, rivals: int) -> tuple[Bin, float]:
    """Bin and guess of a token copied from a context that has `common` last tokens in common with this one.

    Args:
        rank: 0 for the longest agreement among the places that the pair occurs at.
        rivals: other tokens found at those places.
    """
    guess = (1 - 1 / (common + 1)) * (0.7 if rivals else 1.0) if rank == 0 else 0.08
    return (COPIED, min(rank, 1), min(rivals, 1), bisect_right(_LENGTHS, common)), guess


def tabled(share: float, total: int, copying: bool) -> tuple[Bin, float]:
    """Bin and guess of a token from the table.

    Args:
        share: of its pair's values.
        total: how often the corpus had the pair; 0 when adaptation alone brought it.
        copying: whether another token can be copied here.
    """
    seen = max(total, 2)  # an adapted pair counts as much as one that was seen twice
    guess = share * seen / (seen + 4) * 0.8 * (0.2 if copying else 1.0)
    return (TABLED, copying, bisect_right(_TOTALS, total), bisect_right(_SHARES, share)), guess

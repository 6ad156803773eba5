"""How long a step of the target takes by the number of tokens it reads, and how many make decoding fastest.

Knows: seconds by size, expected gains. Does not know: models, drafts. On many machines a step over a few tokens costs
hardly more than one over a single token, on others nearly as much as several: so it is measured, on the model, dtype,
device and context at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from broadsheet.console import InputError

SIZES = (1, 2, 4, 8, 16, 32, 64)  # tokens in a step, the root included
_MARGIN = 1.02  # the least gain, as a factor, for which a draft is verified


class StepCost:
    """Seconds of a step by its size.

    Args:
        seconds: tokens read at once → seconds; must have the size 1.

    Raises:
        InputError: no seconds for the size 1, or times that are not positive.

    Example:
        >>> StepCost({1: 0.03, 8: 0.06}).best_draft_size([1.0, 1.9, 2.6, 3.1, 3.4, 3.6, 3.7, 3.8])
        7
        >>> StepCost({1: 0.03, 8: 0.06}).best_draft_size([1.0, 1.2, 1.3, 1.3, 1.3, 1.3, 1.3, 1.3])
        0
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        if 1 not in seconds or min(seconds) < 1 or min(seconds.values()) <= 0:
            raise InputError(
                f"got step seconds {dict(seconds)}; expected positive ones by step size, size 1 among them"
            )
        self.seconds = dict(sorted(seconds.items()))

    @property
    def largest(self) -> int:
        """The most draft tokens that a step of a known size can read."""
        return max(self.seconds) - 1

    @property
    def least_chance(self) -> float:
        """A node below this chance can never pay: the cheapest further token of a step, in single steps."""
        sizes = list(self.seconds.items())
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(sizes)]
        return max(0.01, min(slopes, default=0.0) / self.seconds[1])

    def best_draft_size(self, expected: Sequence[float]) -> int:
        """How many draft tokens to verify, 0 for a plain step, so that expected tokens per second are highest.

        Args:
            expected: `expected[n]` tokens are expected from a step that verifies the best n draft tokens.
        """
        best, rate = 0, _MARGIN * expected[0] / self.seconds[1]
        for size, seconds in self.seconds.items():
            if 1 < size <= len(expected) and expected[size - 1] / seconds > rate:
                best, rate = size - 1, expected[size - 1] / seconds
        return best


def measure(step: Callable[[int], None], sizes: Sequence[int] = SIZES, rounds: int = 3) -> StepCost:
    """Time `step(size)`: the shortest of some interleaved rounds, since a disturbance only adds to a timing.

    Args:
        step: reads that many tokens, and returns when the device is done.
        sizes: the size 1 among them.
    """
    seconds = dict.fromkeys(sizes, float("inf"))
    for _ in range(rounds):
        for size in sizes:
            start = time.perf_counter()
            step(size)
            seconds[size] = min(seconds[size], time.perf_counter() - start)
    seconds[1] = min(seconds.values())  # reading less never takes longer: where it seems so, the timing was disturbed
    return StepCost(seconds)

"""Power: the smallest effect a measurement could have seen, and the items or training runs that a given effect needs.

Knows: standard errors, degrees of freedom, counts. Does not know: metrics, arms, trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from broadsheet.trial.stats import CONFIDENCE, MIN_UNITS, POWER, power_factor


@dataclass(frozen=True)
class Needed:
    """What would show an effect with 80 % power.

    Attributes:
        units: items (or clusters, or blocks) in all, with the training runs there are; None where no number would do.
        runs: training runs of each arm in all, with the units there are; None where no number would do, and where
            nothing was trained.
    """

    units: int | None
    runs: int | None = None


def detectable_effect(
    error: float,
    half_width: float,
    freedom: float,
    floor: float = 0.0,
    growth: Callable[[float], float] = lambda effect: 1.0,
    wobble: float = 0.0,
) -> float:
    """The smallest true effect whose interval clears the noise floor in 80 of 100 repetitions.

    Args:
        error: standard error of the difference.
        half_width: of the 95 % interval, on its wider side.
        freedom: degrees of freedom of `error`.
        wobble: by what share the half width of another sample may differ from this one's.
        growth: by what factor errors are larger where there is such an effect (`rate_growth`, `rank_growth`).
    """
    from scipy.special import stdtrit

    # The estimate varies by the error, and the interval's end by the wobble of its half width.
    reach = half_width + float(stdtrit(freedom, POWER)) * math.hypot(error, wobble * half_width)
    effect = floor + reach
    if not math.isfinite(effect):
        return effect
    for _ in range(50):  # the effect at which the interval, as wide as it is there, is just cleared
        effect = (effect + floor + reach * growth(effect)) / 2
    return effect


def rate_growth(rate: float, n: int) -> Callable[[float], float]:
    """Of a share (an AUROC, a true-positive rate) that rises from `rate`.

    Its variance goes as p (1 − p) where items are counted, and as φ(Φ⁻¹(p))² where the threshold that they are counted
    at is drawn too, as that of a true-positive rate: the larger of the two is taken. Half of the difference's variance
    is the baseline's, which stays. Shares are kept half an item from 0 and 1.
    """
    from scipy.special import ndtri

    def variances(share: float) -> tuple[float, float]:
        share = min(max(share, 0.5 / n), 1 - 0.5 / n)
        return share * (1 - share), math.exp(-(float(ndtri(share)) ** 2))

    before = variances(rate)

    def growth(effect: float) -> float:
        larger = max(after / start for after, start in zip(variances(rate + effect), before, strict=True))
        return math.sqrt((1 + larger) / 2)

    return growth


def rank_growth(correlation: float, n: int) -> Callable[[float], float]:
    """Of a correlation that rises: its standard error goes as 1 − ρ². Half of the variance is the baseline's."""

    def error(rho: float) -> float:
        return 1 - min(abs(rho), 1 - 1 / n) ** 2

    return lambda effect: math.sqrt((1 + (error(correlation + effect) / error(correlation)) ** 2) / 2)


@lru_cache(maxsize=10_000)
def binary_effect(disagreements: int, n: int) -> float:
    """The smallest difference of two paired shares that the exact McNemar test finds with 80 % power.

    Args:
        disagreements: items on which the arms differed, of `n`. An effect δ comes half from items that only the
            baseline had right, and half from others, which add δn/2 disagreements; there are at least δn.

    Returns:
        The difference, at most 1; infinite for fewer than 6 items, which can show nothing.
    """
    if n < 6:
        return math.inf
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        rate = min(1.0, max(disagreements / n + middle / 2, middle))
        low, high = (low, middle) if _binary_power(middle, rate, n) >= POWER else (middle, high)
    return high


def _binary_power(effect: float, rate: float, n: int) -> float:
    """Power of the exact McNemar test at a difference `effect`, where the arms differ on a share `rate` of n items."""
    from scipy.special import bdtrc, gammaln

    spread = 6 * math.sqrt(n * rate * (1 - rate)) + 1
    counts = np.arange(max(0, int(n * rate - spread)), min(n, int(n * rate + spread)) + 1)
    needed = np.array([_wins_needed(int(count)) for count in counts])
    logs = gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a rate of 1: all items differ
        logs = (
            logs
            + np.where(counts > 0, counts * np.log(rate), 0)
            + np.where(n > counts, (n - counts) * np.log1p(-rate), 0)
        )
    won = np.where(needed <= counts, bdtrc(np.minimum(needed, counts) - 1, counts, (1 + effect / rate) / 2), 0.0)
    return float(np.exp(logs) @ won)


@lru_cache(maxsize=100_000)
def _wins_needed(disagreements: int) -> int:
    """The fewest wins that the exact test calls, of so many disagreements; one more than all where none would do."""
    from scipy.stats import binom

    return int(binom.isf((1 - CONFIDENCE) / 2, disagreements, 0.5)) + 1


def needed(
    effect: float, unit_error: float, units: int, *, run_error: float = 0.0, runs: int = 1, floor: float = 0.0
) -> Needed:
    """The units, and the training runs, with which an effect would be seen with 80 % power.

    Args:
        effect: more than 0, on the scale of the errors (the log for ratios).
        unit_error, run_error: standard errors from the choice of `units` units and from `runs` training runs an arm.
        floor: the noise floor, which the interval has to clear too.
    """
    reach = effect - floor
    if not reach > 0 or not math.isfinite(unit_error):
        return Needed(None)

    def seen(n: int, k: int) -> bool:
        parts = [(unit_error * math.sqrt(units / n), n - 1.0)]
        if run_error:
            parts.append((run_error * math.sqrt(runs / k), 2.0 * (k - 1)))
        total = sum(error**2 for error, _ in parts)
        below = sum(error**4 / freedom for error, freedom in parts)
        return power_factor(total**2 / below if below else n - 1) * math.sqrt(total) <= reach

    return Needed(
        _least(lambda n: seen(n, runs), MIN_UNITS), _least(lambda k: seen(units, k), 2) if run_error else None
    )


def _least(enough: Callable[[int], bool], start: int, most: int = 10_000_000) -> int | None:
    """The smallest number from `start` for which `enough` holds; None where not even `most` does."""
    if not enough(most):
        return None
    low, high = start - 1, start
    while not enough(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high

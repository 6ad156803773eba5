"""Power: the smallest effect a measurement could have seen, and the items or training runs that a given effect needs.

Knows: standard errors, degrees of freedom, counts, what units add to a mean. Does not know: metrics, arms, trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from broadsheet.trial.stats import (
    CONFIDENCE,
    MIN_UNITS,
    POWER,
    Floats,
    joined_freedom,
    power_factor,
    resampled_weights,
)

TELLING = 6  # units that must differ before their signs can tell anything: 2 · ½⁶ < 5 % < 2 · ½⁵


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


def detectable_effect(reach: float, floor: float = 0.0, growth: Callable[[float], float] = lambda effect: 1.0) -> float:
    """The smallest true effect whose interval clears the noise floor in 80 of 100 repetitions.

    Args:
        reach: how far from 0 it lies without a noise floor, if errors stay as they are (`known_reach`, `drawn_reach`).
        growth: by what factor errors are larger where there is such an effect (`rate_growth`, `rank_growth`).
    """
    effect = floor + reach
    if not math.isfinite(effect):
        return effect
    for _ in range(50):  # the effect at which the interval, as wide as it is there, is just cleared
        effect = (effect + floor + reach * growth(effect)) / 2
    return effect


def known_reach(error: float, half_width: float, freedom: float, wobble: float = 0.0) -> float:
    """How far an effect lies from 0 that is seen in 80 of 100 repetitions, where estimates are about normal.

    Args:
        error: standard error of the difference.
        half_width: of the 95 % interval, on its wider side.
        freedom: degrees of freedom of `error`.
        wobble: by what share the half width of another sample may differ from this one's.
    """
    from scipy.special import stdtrit

    # The estimate varies by the error, and the interval's end by the wobble of its half width.
    return half_width + float(stdtrit(freedom, POWER)) * math.hypot(error, wobble * half_width)


def drawn_reach(
    units: Floats,
    width: float,
    *,
    runs: Sequence[Floats] = (),
    seed: int = 0,
    samples: int = 1000,
) -> float:
    """The same for a mean of units, whatever their distribution: by drawing samples from them.

    Each resample stands for another sample. Its mean is off by what an estimate may be off by, and its spread, skew and
    training runs give the two ends that its own interval would have (`Draws.interval`). The reach is what 80 % of the
    samples need, in the direction in which an effect is harder to see. So it holds what no formula of two moments does:
    where a few large values carry the spread, intervals are now narrow, now wide, and wide just where the mean is off.

    Resamples spread less than a sample does of what it was drawn from, and those of heavy tails much less: the reach is
    taken times the spread of the units over the resamples' median spread, and times `width` over what the same reading
    of the units as they are gives.

    It rests on tails that the units show. What fewer than one in n units has, most samples of n do not: two large wins
    in a hundred, among 20 items, are not seen coming, and an effect of the stated size is then found 6 times in ten,
    from 50 items on 8 times. Where one tail alone is long, an effect in the harder direction is found 7 times in ten at
    20 items; 8 times from 200 on where it is exponential, and still 77 times in 100 at 1,000 where it is log-normal.

    Args:
        units: (n,) of which the difference is the mean.
        width: of the 95 % interval.
        runs: as `Draws` has them; the arms' runs are taken to spread alike.
        seed, samples: of the drawing.
    """
    centred = units - units.mean()
    n, scale = len(units), float(centred.std())
    if scale <= 1e-12 * abs(float(units.mean())) and not any(run.var() > 0 for run in runs):
        return width  # the same difference each time
    powers = np.stack([(centred / (scale or 1.0)) ** power for power in (1, 2, 3)], axis=1)
    moments = [np.ones((1, n)) @ powers / n]  # the units as they are, then the samples
    moments += [weights @ powers / n for weights in resampled_weights(n, n, samples, seed)]
    off, second, third = np.concatenate(moments).T
    spread = np.sqrt(np.maximum(second - off**2, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = np.where(spread > 0, (third - 3 * off * second + 2 * off**3) / spread**3, 0.0) / math.sqrt(n)
    parts = [((scale * spread) ** 2 / (n - 1), n - 1)]
    off = scale * off
    generator = np.random.default_rng([seed, n])
    # Two or three runs cannot tell which arm's spread more.
    alike = sum(float(run.var(ddof=1)) * (len(run) - 1) for run in runs) / max(1, sum(len(run) - 1 for run in runs))
    for run in runs:
        own, part, freedom = float(run.var(ddof=1)) / len(run), alike / len(run), len(run) - 1
        off[1:] += math.sqrt(part) * generator.normal(size=samples)
        parts.append((np.append(own, part * generator.chisquare(freedom, size=samples) / freedom), freedom))
    below, above = _sides(parts, skew)
    errors = np.sqrt(sum(part for part, _ in parts))
    needed = max(float(np.quantile(each[1:], POWER)) for each in (below - off, above + off))
    middle = float(np.median(errors[1:]))
    if middle == 0:  # two units, or one that differs from all others: most samples show no spread
        return math.inf
    return needed * float(errors[0]) / middle * width / float(below[0] + above[0])


def _sides(parts: Sequence[tuple[Floats, int]], skew: Floats) -> tuple[Floats, Floats]:
    """How far an interval reaches below and above its estimate, as `Draws.interval` has it by standard errors.

    Args:
        parts: (samples,) squared standard errors with their degrees of freedom: from units, from each arm's runs.
        skew: (samples,) of the estimate.
    """
    from scipy.special import stdtrit

    total = np.sum([part for part, _ in parts], axis=0)
    t = stdtrit(joined_freedom(parts[0], parts[1:]), (1 + CONFIDENCE) / 2)
    bend = (2 * t * t + 1) / 6
    ends = [(t + np.maximum(0, sign * skew) * bend) * np.sqrt(total) for sign in (-1, 1)]
    return ends[0], ends[1]


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
    effect: float,
    unit_error: float,
    units: int,
    *,
    run_error: float = 0.0,
    runs: int = 1,
    floor: float = 0.0,
    tests: int = 1,
    resamples: int | None = None,
) -> Needed:
    """The units, and the training runs, with which an effect would be seen with 80 % power.

    Args:
        effect: more than 0, on the scale of the errors (the log for ratios).
        unit_error, run_error: standard errors from the choice of `units` units and from `runs` training runs an arm.
        floor: the noise floor, which the interval has to clear too.
        tests: claims that are tested together.
        resamples: of the bootstrap that gives the p-value; None where none does. See `resolved`.
    """
    reach = effect - floor
    if not reach > 0 or not math.isfinite(unit_error):
        return Needed(None)

    def seen(n: int, k: int) -> bool:
        own, repeated = unit_error**2 * units / n, run_error**2 * runs / k
        freedom = joined_freedom((own, n - 1.0), [(repeated, 2.0 * (k - 1))] if run_error else [])
        return power_factor(float(freedom), tests) * math.sqrt(own + repeated) <= reach

    start = MIN_UNITS if resamples is None else resolved(tests, resamples)
    return Needed(_least(lambda n: seen(n, runs), start), _least(lambda k: seen(units, k), 2) if run_error else None)


def resolved(tests: int, resamples: int) -> int:
    """The units from which a bootstrap can tell an effect, however large, beyond chance where so many are tested.

    If no resample reaches 0, p is that of half a resample in as many, read as a percentile of few units
    (`Draws.p_value`). With 6 units and 4,000 resamples it is 0.02: three claims tested together need 7.
    """
    from scipy.special import ndtri, stdtr

    beyond = float(ndtri(0.5 / (resamples + 1)))

    def enough(n: int) -> bool:
        return tests * 2 * float(stdtr(n - 1, beyond / math.sqrt(n / (n - 1)))) < 1 - CONFIDENCE

    return _least(enough, TELLING) or TELLING


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

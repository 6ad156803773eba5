"""Verdicts: two arms compared on the same items, the rule that names the outcome, and what a paper's claims come to.

Knows: numbers per item from two arms, in the same order, and seconds per block. Does not know: where they come from, or
how a result is told (`sentences`). Plain words and equations are in docs/verdicts.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from broadsheet.console import InputError
from broadsheet.trial.power import (
    TELLING,
    binary_effect,
    detectable_effect,
    drawn_reach,
    known_reach,
    rank_growth,
    rate_growth,
)
from broadsheet.trial.stats import (
    CONFIDENCE,
    MIN_UNITS,
    RESAMPLES,
    SURE,
    Draws,
    Floats,
    Interval,
    Statistic,
    bootstrap,
    checked,
    clopper_pearson,
    error_bound,
    is_binary,
    mean,
    over_runs,
    spread,
    wobble,
)

Scale = Literal["difference", "ratio"]
Verdict = Literal["helps", "hurts", "no measurable difference", "not measured"]

TIMED = "paired t on log ratios"  # the test of timed blocks
_NO_WIDTH = 1e-9  # of the difference: rounding


@dataclass(frozen=True)
class Comparison:
    """One metric, one pair of arms: by how much `arm` differs from `baseline`, and the verdict.

    Args:
        metric: as printed, e.g. `"AUROC"`.
        baseline, arm: names of the two arms.
        difference: arm − baseline in the metric's unit; for scale `"ratio"`, arm / baseline.
        scale: how `difference` is to be read.
        test: `"exact McNemar"`, `"paired bootstrap"`, the same `"of log ratios"`, or, of timed blocks,
            `"paired t on log ratios"`.
        n: what the interval counts: paired items, clusters of them, or timed blocks.
        noise_floor: |baseline − baseline run again|; for ratios |log ratio|.
        minimum_detectable_effect: the smallest true effect found with 80 % power at two-sided 5 %, on the scale of
            `difference` (a ratio above 1 for scale `"ratio"`).
        verdict: by `verdict()`.
        p_value: two-sided, that the truth lies within the noise floor.
        unit: printed after the numbers.
        higher_is_better: the direction of `"helps"`.
        baseline_value, arm_value: the two estimates themselves, where they have a meaning of their own.
        counted: what `n` counts, where that is not the trial's items: `"documents"`.
        runs: training runs of the baseline and of the arm; 1 for what was trained once, or not at all.
        unit_error, run_error: standard errors from the choice of units and from the training runs, on the scale of
            the test (of the log for ratios).
        unit_error_bound: what `unit_error` stays below in 9 of 10 cases, since so many units may tell it wrong; None
            for times, and where it was not kept.
        ceiling: the best value the metric can take, where it has one.
        margin: how much worse still counts as no worse; a share (0.05 is 5 %) for ratios.
        no_worse, equivalent: what two one-sided tests at 5 % say of the margin; None without one.
        items: that were asked, where `n` may count clusters of them.
        better, worse: items on which the arm is better or worse, where items have a value each.
        left_out: blocks whose time does not count, since the baseline disagreed with itself on them each time.
        chance: what guessing gives on the metric, where that is known.
        at_chance: the arm's own interval reaches down to that, whatever the baseline's does.
    """

    metric: str
    baseline: str
    arm: str
    difference: Interval
    scale: Scale
    test: str
    n: int
    noise_floor: float
    minimum_detectable_effect: float
    verdict: Verdict
    p_value: float | None = None
    unit: str = ""
    higher_is_better: bool = True
    baseline_value: float | None = None
    arm_value: float | None = None
    counted: str = ""
    runs: tuple[int, int] = (1, 1)
    unit_error: float | None = None
    unit_error_bound: float | None = None
    run_error: float = 0.0
    ceiling: float | None = None
    margin: float | None = None
    no_worse: bool | None = None
    equivalent: bool | None = None
    items: int | None = None
    better: int | None = None
    worse: int | None = None
    left_out: int = 0
    chance: float | None = None
    at_chance: bool = False

    def turned(self) -> Interval:
        """The difference with up for better, of the log for a ratio."""
        ends = (self.difference.estimate, self.difference.low, self.difference.high)
        if self.scale == "ratio":
            ends = tuple(math.log(end) if end > 0 else -math.inf for end in ends)  # type: ignore[assignment]
        estimate, low, high = ends
        return Interval(estimate, low, high) if self.higher_is_better else Interval(-estimate, -high, -low)


def compare_samples(
    a: ArrayLike,
    b: ArrayLike,
    *,
    metric: str,
    baseline: str,
    arm: str,
    statistic: Statistic = mean,
    binary: bool = False,
    higher_is_better: bool = True,
    noise_floor: float = 0.0,
    scale: Scale = "difference",
    clusters: Sequence[Hashable] | None = None,
    counted: str = "",
    runs: bool = False,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    margin: float | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    unit: str = "",
) -> Comparison:
    """Compare two arms on the same items: statistic(b) − statistic(a), paired.

    Args:
        a, b: (n, ...) values of the baseline and of the arm; row i of both is the same item. With `runs`,
            (training runs, n, ...), and the arms may have different numbers of them.
        metric, baseline, arm, unit: names, as printed.
        statistic: what is computed over the items of each arm.
        binary: values are 0/1 and the statistic is their mean: an exact McNemar test, where items stand alone and
            nothing was trained twice. Otherwise a paired bootstrap.
        higher_is_better: the direction of `helps`.
        noise_floor: how far the baseline lay from itself when run again, in the metric's unit; |log ratio| for a ratio.
        scale: `"ratio"` compares b / a, by the mean of the items' log ratios: for times and sizes.
        clusters: the name of each item's cluster, where items belong together (questions of one document). Clusters
            are drawn whole, and `n` counts them.
        counted: what a cluster is, in the plural.
        bounds: the metric's range. Its better end is the ceiling; errors of a share or a correlation change with it.
        margin: as in `Comparison`.
        seed, resamples: of the bootstrap.

    Raises:
        InputError: no items, unequal shapes, NaN, `binary` values other than 0 and 1, or a ratio of values that are
            not positive.

    Example:
        >>> a, b = [0, 0, 1, 0] * 10, [1, 0, 1, 1] * 10
        >>> compare_samples(a, b, metric="accuracy", baseline="A", arm="B", binary=True).verdict
        'helps'
    """
    asked = _Asked(
        metric=metric,
        baseline=baseline,
        arm=arm,
        statistic=statistic,
        binary=binary,
        higher_is_better=higher_is_better,
        noise_floor=noise_floor,
        scale=scale,
        clusters=clusters,
        counted=counted,
        bounds=bounds,
        margin=margin,
        unit=unit,
    )
    a, b = _paired(asked, a, b, runs)
    exact = binary and clusters is None and len(a) == len(b) == 1
    return _told(asked, a, b, _counted(asked, a[0], b[0]) if exact else _drawn(asked, a, b, seed, resamples))


@dataclass(frozen=True)
class _Asked:
    """What `compare_samples` was asked, as its arguments say."""

    metric: str
    baseline: str
    arm: str
    statistic: Statistic
    binary: bool
    higher_is_better: bool
    noise_floor: float
    scale: Scale
    clusters: Sequence[Hashable] | None
    counted: str
    bounds: tuple[float, float]
    margin: float | None
    unit: str

    @property
    def direction(self) -> int:
        """1 where more is better, else −1."""
        return 1 if self.higher_is_better else -1

    @property
    def band(self) -> float | None:
        """The margin on the scale of the test."""
        return math.log1p(self.margin) if self.margin is not None and self.scale == "ratio" else self.margin


def _paired(asked: _Asked, a: ArrayLike, b: ArrayLike, runs: bool) -> tuple[Floats, Floats]:
    """Both arms' values as (training runs, n, ...), on the scale of the test; errors as `compare_samples` raises."""
    a, b = checked(a, asked.baseline), checked(b, asked.arm)
    if not runs:
        a, b = a[None], b[None]
    if a.shape[1:] != b.shape[1:]:
        raise InputError(
            f"{asked.metric}: {asked.baseline} has values {a.shape[1:]} and {asked.arm} {b.shape[1:]}; both need one "
            "row per shared item"
        )
    if asked.binary and not (is_binary(a.ravel()) and is_binary(b.ravel()) and a.ndim == 2):
        raise InputError(
            f"{asked.metric}: a binary metric has one 0 or 1 per item; leave out binary=True for other values"
        )
    if asked.scale == "ratio":
        if a.ndim > 2 or min(a.min(), b.min()) <= 0:
            raise InputError(
                f"{asked.metric}: a ratio compares one positive number per item; got {min(a.min(), b.min()):g}"
            )
        a, b = np.log(a), np.log(b)
    return a, b


def _counted(asked: _Asked, a: Floats, b: Floats) -> _Found:
    """The exact test of 0/1 values (n,) of items that stand alone."""
    wins, losses = (int((each > 0).sum()) for each in (b - a, a - b))
    return _mcnemar(wins, losses, len(a), asked.noise_floor, asked.band, asked.direction)


def _drawn(asked: _Asked, a: Floats, b: Floats, seed: int, resamples: int) -> _Found:
    """The paired bootstrap of values (training runs, n, ...)."""
    statistic = asked.statistic
    draws = bootstrap(
        lambda weights: over_runs(b, statistic, weights) - over_runs(a, statistic, weights),
        a.shape[1],
        runs=spread(a, b, statistic=statistic),
        clusters=asked.clusters,
        seed=seed,
        resamples=resamples,
    )
    units = _units(b.mean(0) - a.mean(0), asked.clusters) if a.ndim == 2 and statistic is mean else None
    growth = _growth(statistic, asked.bounds, _estimate(statistic, a), draws.units, asked.direction)
    found = _resampled(draws, units, float(asked.binary), asked.noise_floor, asked.band, asked.direction, growth, seed)
    return replace(found, test="paired bootstrap of log ratios") if asked.scale == "ratio" else found


def _estimate(statistic: Statistic, values: Floats) -> float:
    """Of one arm (training runs, n, ...), on its items as they are."""
    return float(over_runs(values, statistic, np.ones((1, values.shape[1])))[0])


def _told(asked: _Asked, a: Floats, b: Floats, found: _Found) -> Comparison:
    """What was found, off the scale of the test, beside what was asked."""
    values = [_estimate(asked.statistic, each) for each in (a, b)]
    difference, detectable = found.difference, found.detectable
    if asked.scale == "ratio":
        values = [math.exp(value) for value in values]
        difference = Interval(*(_exp(end) for end in (difference.estimate, difference.low, difference.high)))
        detectable = _exp(detectable)
    moved = asked.direction * (b.mean(0) - a.mean(0)) if a.ndim == 2 else None
    ceiling = asked.bounds[1 if asked.higher_is_better else 0]
    return Comparison(
        metric=asked.metric,
        baseline=asked.baseline,
        arm=asked.arm,
        difference=difference,
        scale=asked.scale,
        test=found.test,
        n=found.n,
        noise_floor=asked.noise_floor,
        minimum_detectable_effect=detectable,
        verdict=verdict(difference, asked.scale, asked.higher_is_better, asked.noise_floor),
        p_value=found.p_value,
        unit=asked.unit,
        higher_is_better=asked.higher_is_better,
        baseline_value=values[0],
        arm_value=values[1],
        counted=asked.counted if asked.clusters is not None else "",
        runs=(len(a), len(b)),
        unit_error=found.unit_error,
        unit_error_bound=found.unit_error_bound,
        run_error=found.run_error,
        ceiling=ceiling if math.isfinite(ceiling) else None,
        margin=asked.margin,
        no_worse=found.no_worse,
        equivalent=found.equivalent,
        items=a.shape[1],
        better=None if moved is None else int((moved > 0).sum()),
        worse=None if moved is None else int((moved < 0).sum()),
    )


def compare_seconds(
    a_seconds: ArrayLike,
    b_seconds: ArrayLike,
    *,
    baseline: str,
    arm: str,
    metric: str = "items/s",
    noise_floor: float = 0.0,
    margin: float | None = None,
    left_out: int = 0,
) -> Comparison:
    """Compare the speed of two arms from blocks timed in turn: seconds(baseline) / seconds(arm); 2.0 is twice as fast.

    Args:
        a_seconds, b_seconds: (blocks,) seconds of the baseline and of the arm; entry i of both is the same block.
        baseline, arm, metric: names, as printed.
        noise_floor: |log ratio| of the baseline's time to its own when run again.
        margin: the share that still counts as no slower.
        left_out: blocks that were timed and do not count.

    Raises:
        InputError: no blocks, unequal lengths, NaN, or a time that is not positive.

    Example:
        >>> compare_seconds([2.0, 2.1, 1.9, 2.0, 2.0], [1.0, 1.0, 1.1, 1.0, 1.1], baseline="loop", arm="fast").verdict
        'helps'
    """
    from scipy.special import stdtr, stdtrit

    a, b = checked(a_seconds, baseline), checked(b_seconds, arm)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(
            f"{metric}: {baseline} has times {a.shape} and {arm} {b.shape}; both need one per shared block"
        )
    if min(a.min(), b.min()) <= 0:
        raise InputError(
            f"{metric}: got a time of {min(a.min(), b.min())} s; a block takes more than 0 s, give larger blocks"
        )
    logs = np.log(a / b)
    n, centre = len(logs), float(logs.mean())
    error, p_value, no_worse, equivalent = math.inf, None, None, None
    low, high, detectable = -math.inf, math.inf, math.inf
    if n >= MIN_UNITS:
        error = float(logs.std(ddof=1)) / math.sqrt(n)
        half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
        low, high = centre - half, centre + half
        detectable = detectable_effect(known_reach(error, half, n - 1), noise_floor)
        gap = abs(centre) - noise_floor
        p_value = (2 * float(stdtr(n - 1, -gap / error)) if error > 0 else 0.0) if gap > 0 else 1.0
        if margin is not None:
            narrow = float(stdtrit(n - 1, CONFIDENCE)) * error
            no_worse, equivalent = _within(Interval(centre, centre - narrow, centre + narrow), math.log1p(margin), 1)
    difference = Interval(math.exp(centre), _exp(low), _exp(high))
    return Comparison(
        metric=metric,
        baseline=baseline,
        arm=arm,
        difference=difference,
        scale="ratio",
        test=TIMED,
        n=n,
        noise_floor=noise_floor,
        minimum_detectable_effect=_exp(detectable),
        verdict=verdict(difference, "ratio", True, noise_floor),
        p_value=p_value,
        unit_error=error,
        margin=margin,
        no_worse=no_worse,
        equivalent=equivalent,
        left_out=left_out,
    )


def verdict(difference: Interval, scale: Scale, higher_is_better: bool, noise_floor: float) -> Verdict:
    """The one rule that every verdict of broadsheet follows.

    Take the 95 % interval of arm − baseline (of log(arm / baseline) for a ratio), its sign turned so that up is better,
    and the band [−noise_floor, +noise_floor] within which the baseline differs from itself.

    - `"helps"`: the whole interval lies above the band.
    - `"hurts"`: the whole interval lies below the band.
    - `"no measurable difference"`: anything else; the minimum detectable effect says what would have been found.
    - `"not measured"`: the estimate or an end of the interval is NaN or infinite, as with fewer than five items or a
      failed arm; or the interval has no width though the arms differ, which nothing can rest on.
    """
    low, high = difference.low, difference.high
    if scale == "ratio":
        low, high = (math.log(end) if end > 0 else -math.inf for end in (low, high))
    if not all(map(math.isfinite, (difference.estimate, low, high))):
        return "not measured"
    if not higher_is_better:
        low, high = -high, -low
    if low != 0 and high - low <= _NO_WIDTH * abs(low):
        return "not measured"
    if low > noise_floor:
        return "helps"
    if high < -noise_floor:
        return "hurts"
    return "no measurable difference"


@dataclass(frozen=True)
class _Found:
    """What a test of `n` units gives, on its own scale."""

    test: str
    n: int
    difference: Interval
    p_value: float | None
    detectable: float
    unit_error: float
    unit_error_bound: float
    run_error: float = 0.0
    no_worse: bool | None = None
    equivalent: bool | None = None


def _within(narrow: Interval, margin: float | None, direction: int) -> tuple[bool | None, bool | None]:
    """No worse, and equivalent, by a margin: two one-sided tests at 5 %, read off the 90 % interval."""
    if margin is None:
        return None, None
    low, high = (narrow.low, narrow.high) if direction > 0 else (-narrow.high, -narrow.low)
    return low > -margin, -margin < low and high < margin


def _growth(
    statistic: Statistic, bounds: tuple[float, float], value: float, n: int, direction: int
) -> Callable[[float], float]:
    """How errors change with an improvement: known of shares and correlations, taken to stay the same for others."""
    if statistic is mean or bounds not in ((0, 1), (-1, 1)):
        return lambda effect: 1.0
    grown = rate_growth(value, n) if bounds == (0, 1) else rank_growth(value, n)
    return lambda effect: grown(direction * effect)


def _resampled(
    draws: Draws,
    units: Floats | None,
    span: float,
    floor: float,
    margin: float | None,
    direction: int,
    growth: Callable[[float], float],
    seed: int,
) -> _Found:
    """The bootstrap's answer.

    Args:
        units: (n,) what each unit adds to a mean difference; None for other statistics.
        span: the most that a unit may differ by, of values that say yes or no; of others, which are alike to the last
            digit where they are alike, 0.
    """
    whole, narrow, p_value = draws.interval(), draws.interval(2 * CONFIDENCE - 1), draws.p_value(floor)
    few = units is not None and int(np.count_nonzero(units)) < TELLING and math.isfinite(whole.low)
    if units is not None and few and (largest := float(np.abs(units).max()) or span):
        # So few signs tell nothing: the truth is within ± the largest difference, on as many units as may differ.
        reach = clopper_pearson(int(np.count_nonzero(units)), len(units))[1] * largest
        whole, narrow = (Interval(w.estimate, min(w.low, -reach), max(w.high, reach)) for w in (whole, narrow))
        p_value = 1.0
    if whole.low != 0 and math.isfinite(whole.low) and whole.high - whole.low <= _NO_WIDTH * abs(whole.low):
        # The same difference each time: as exact McNemar has it for as many wins, of which each is worth that much.
        whole, narrow = (_one_sided(whole.estimate, draws.units, c) for c in (CONFIDENCE, 2 * CONFIDENCE - 1))
        p_value = min(1.0, 2.0 ** (1 - draws.units)) if abs(whole.estimate) > floor else 1.0
    if units is None:
        half = max(whole.estimate - whole.low, whole.high - whole.estimate)
        reach = known_reach(draws.standard_error, half, draws.freedom, wobble(draws.drawn))
    else:
        reach = drawn_reach(units, whole.high - whole.low, runs=draws.runs, seed=seed)
    detectable = detectable_effect(reach, floor, growth)
    no_worse, equivalent = _within(narrow, margin, direction)
    return _Found(
        "paired bootstrap",
        draws.units,
        whole,
        p_value if draws.units >= MIN_UNITS else None,
        detectable if draws.units >= MIN_UNITS else math.inf,
        draws.unit_error,
        error_bound(draws.unit_error, draws.units, wobble(draws.drawn, units)),
        draws.run_error,
        no_worse if draws.units >= MIN_UNITS else None,
        equivalent if draws.units >= MIN_UNITS else None,
    )


def _one_sided(difference: float, n: int, confidence: float) -> Interval:
    """The interval of a difference that n units all show alike: so many of all may differ, and be won, at the least."""
    share = clopper_pearson(n, n, confidence)[0]
    ends = sorted((difference * (2 * share - 1) * (share if share > 0.5 else 1.0), difference))
    return Interval(difference, *ends)


def _units(differences: Floats, clusters: Sequence[Hashable] | None) -> Floats:
    """What each unit adds to the mean difference, times the number of units: (items,) to (units,)."""
    if clusters is None:
        return differences
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    sums = np.bincount([names[name] for name in clusters], weights=differences, minlength=len(names))
    return sums * len(names) / len(differences)


def _mcnemar(wins: int, losses: int, n: int, floor: float, margin: float | None, direction: int) -> _Found:
    """Exact McNemar test: the difference of two paired shares with its interval, p-value, and detectable effect.

    The difference is (2π − 1) r, with r the share of the n items on which the arms disagree and π the share of those
    that the arm wins. The interval joins the exact intervals of π and r, each end at its farthest. It excludes 0 just
    when the interval of π excludes ½, that is when p < 0.05; with no disagreement it is ±(1 − 0.025^(1/n)).
    """
    from scipy.special import bdtr

    disagreements = wins + losses

    def interval(confidence: float) -> Interval:
        won_low, won_high = clopper_pearson(wins, disagreements, confidence)
        rate_low, rate_high = clopper_pearson(disagreements, n, confidence)
        low, high = 2 * won_low - 1, 2 * won_high - 1
        return Interval(
            (wins - losses) / n,
            low * (rate_high if low < 0 else rate_low),
            high * (rate_high if high > 0 else rate_low),
        )

    p_value = min(1.0, 2 * float(bdtr(min(wins, losses), disagreements, 0.5)))
    if abs(wins - losses) / n <= floor:
        p_value = 1.0
    no_worse, equivalent = _within(interval(2 * CONFIDENCE - 1), margin, direction)
    return _Found(
        "exact McNemar",
        n,
        interval(CONFIDENCE),
        p_value,
        binary_effect(disagreements, n) + floor,
        math.sqrt(max(disagreements, 1)) / n,
        math.sqrt(clopper_pearson(disagreements, n, 2 * SURE - 1)[1] / n),
        0.0,
        no_worse,
        equivalent,
    )


def holm(p_values: Sequence[float | None]) -> list[float]:
    """p-values corrected for being tested together (Holm): each at most 1, none below the one before it in order.

    What was not measured counts as 1, and as one of the tests.

    Example:
        >>> holm([0.01, 0.04])
        [0.02, 0.04]
    """
    known = [1.0 if p is None or math.isnan(p) else p for p in p_values]
    adjusted, largest = [0.0] * len(known), 0.0
    for rank, place in enumerate(sorted(range(len(known)), key=known.__getitem__)):
        largest = max(largest, min(1.0, (len(known) - rank) * known[place]))
        adjusted[place] = largest
    return adjusted


def margins(given: Sequence[str], known: Iterable[str] = ()) -> dict[str, float]:
    """`["nDCG@10=0.01"]` as metric to margin.

    Args:
        given: what was written, split at commas: a part without a number belongs to the name that ends in the next one.
        known: metrics, whose names are taken as they are spelled there, however blanks stand behind commas.

    Raises:
        InputError: it is no name and a number above 0.
    """
    spelled = {_joined(name): name for name in known}
    found = {}
    begun = ""
    for number, part in enumerate(given, 1):
        each = begun + part
        if "=" not in part and number < len(given):
            begun = f"{each}, "
            continue
        begun = ""
        metric, _, size = each.rpartition("=")
        try:
            found[spelled.get(_joined(metric), metric.strip())] = float(size)
        except ValueError:
            size = "0"
        if not metric.strip() or not float(size) > 0:
            raise InputError(f"got --margin {each}; expected a metric and a number above 0, such as nDCG@10=0.01")
    return found


def _joined(name: str) -> str:
    """A name without blanks around its commas: `"loss beyond 8,192"`, `"F1,matches"`."""
    return ",".join(part.strip() for part in name.split(","))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf

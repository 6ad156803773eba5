"""The statistics behind every verdict: paired intervals, exact tests, detectable effects, and the rule that names them.

Knows: numbers per item from two arms, in the same order, and seconds per block. Does not know: where they come from, or
how a result is shown. Plain words and equations are in docs/verdicts.md.

A *statistic* is a function of the items' values `(n, ...)` and resampling weights `(resamples, n)` to `(resamples,)`.
Weights of one give the estimate, multinomial weights a bootstrap resample; a weight of k counts an item k times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from broadsheet.console import InputError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]
Scale = Literal["difference", "ratio"]
Verdict = Literal["helps", "hurts", "no measurable difference", "not measured"]

CONFIDENCE = 0.95
POWER = 0.80
# Weights held at once: 16 MB of float64, whatever the number of items.
_WEIGHTS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One metric, one pair of arms: by how much `arm` differs from `baseline`, and the verdict.

    Args:
        metric: as printed, e.g. `"AUROC"`.
        baseline, arm: names of the two arms.
        difference: arm − baseline in the metric's unit; for scale `"ratio"`, arm / baseline.
        scale: how `difference` is to be read.
        test: `"exact McNemar"`, `"paired bootstrap"` or `"paired t on log ratios"`.
        n: paired items, or timed blocks.
        noise_floor: |baseline − baseline run again|; for ratios |log ratio|.
        minimum_detectable_effect: the smallest true effect found with 80 % power at two-sided 5 %, on the scale of
            `difference` (a ratio above 1 for scale `"ratio"`).
        verdict: by `verdict()`.
        p_value: two-sided, where the test has one.
        unit: printed after the numbers.
        higher_is_better: the direction of `"helps"`.
        baseline_value, arm_value: the two estimates themselves, where they have a meaning of their own.
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


def mean(values: Floats, weights: Floats) -> Floats:
    """Weighted mean: values (n,), weights (resamples, n) -> (resamples,)."""
    return weights @ values / weights.sum(axis=1)


def auroc(values: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve over pairs of texts; ties count one half.

    Args:
        values: (n, 2), each pair's human (negative) and machine (positive) score.
        weights: (resamples, n); a pair is resampled whole.

    Returns:
        (resamples,): the weighted share of (negative, positive) combinations in which the positive scores higher.
    """
    negative, positive = values[:, 0], values[:, 1]
    ascending = np.argsort(negative)
    ranked = negative[ascending]
    # Weight of the k lowest negatives, k = 0..n: two look-ups give the weight below, and at or below, each positive.
    lowest = np.cumsum(weights[:, ascending], axis=1)
    lowest = np.concatenate([np.zeros((len(weights), 1)), lowest], axis=1)
    below = lowest[:, np.searchsorted(ranked, positive, side="left")]
    at_or_below = lowest[:, np.searchsorted(ranked, positive, side="right")]
    return np.einsum("bi,bi->b", weights, below + at_or_below) / (2 * weights.sum(axis=1) ** 2)


def tpr_at_fpr(fpr: float) -> Statistic:
    """The statistic "true-positive rate at a false-positive rate of at most `fpr`", over (n, 2) values as in `auroc`.

    It is the best rate that one threshold reaches on the resample: a threshold takes all equal scores or none of them,
    and nothing is interpolated (scikit-learn's `roc_curve` read at the last point whose rate is within `fpr`).

    Example:
        `Metric("TPR at 1 % FPR", of="scores", statistic=tpr_at_fpr(0.01))`
    """

    def statistic(values: Floats, weights: Floats) -> Floats:
        negative, positive = values[:, 0], values[:, 1]
        total = weights.sum(axis=1)
        descending = np.argsort(-negative)
        ranked = negative[descending]
        # As thresholds fall, negatives are let in by score; the first one too many closes its score to thresholds.
        too_many = np.cumsum(weights[:, descending], axis=1) / total[:, None] > fpr
        first = np.where(too_many.any(axis=1), too_many.argmax(axis=1), -1)
        # Weight of the k highest positives, k = 0..n; those above the closed score are found.
        descending = np.argsort(-positive)
        highest = np.cumsum(weights[:, descending], axis=1)
        highest = np.concatenate([np.zeros((len(weights), 1)), highest], axis=1)
        found = np.searchsorted(-positive[descending], -ranked, side="left")
        found = np.append(found, len(positive))  # index −1: no negative is one too many, every positive is found
        return highest[np.arange(len(weights)), found[first]] / total

    return statistic


def spearman(values: Floats, weights: Floats) -> Floats:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        values: (n, 2), each item's two numbers, such as a similarity and the one people gave.
        weights: (resamples, n); an item of weight k takes k ranks.

    Returns:
        (resamples,): Pearson's correlation of the ranks; NaN where all items of a resample tie in one of the numbers.

    Example:
        `Metric("Spearman", of="similarity", statistic=spearman)`
    """
    total = weights.sum(axis=1, keepdims=True)
    first, second = (_midranks(column, weights) - total / 2 for column in values.T)  # centred: the mean rank is total/2
    covariance, *variances = (
        np.einsum("bi,bi,bi->b", weights, a, b) for a, b in ((first, second), (first, first), (second, second))
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        # A constant column's ranks are its centre up to rounding: no correlation, whatever is left of them.
        flat = np.minimum(*variances) <= 1e-12 * total[:, 0] ** 3
        return np.where(flat, np.nan, np.clip(covariance / np.sqrt(variances[0] * variances[1]), -1, 1))


def _midranks(values: Floats, weights: Floats) -> Floats:
    """(resamples, n): the weight below each value and half of the weight at it."""
    ascending = np.argsort(values)
    ranked = values[ascending]
    lowest = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights[:, ascending], axis=1)], axis=1)
    below = lowest[:, np.searchsorted(ranked, values, side="left")]
    at_or_below = lowest[:, np.searchsorted(ranked, values, side="right")]
    return (below + at_or_below) / 2


def interval(values: ArrayLike, statistic: Statistic = mean, *, seed: int = 0, resamples: int = 4000) -> Interval:
    """A statistic of one arm with its 95 % confidence interval.

    A bootstrap over items (see `_bootstrap_interval`); for the mean of 0/1 values the exact Clopper–Pearson interval,
    since resampling 12 right answers of 12 would claim certainty. One item of another kind tells nothing of the spread:
    its interval is (−∞, ∞).

    Args:
        values: (n, ...), one row per item.
        statistic: what is computed over the items.
        seed: of the resampling; the same seed gives the same interval.
        resamples: bootstrap resamples.

    Raises:
        InputError: no items, or NaN among the values.

    Example:
        >>> interval([1, 0, 1, 1])
        Interval(estimate=0.75, low=0.1941..., high=0.9936...)
    """
    values = _checked(values)
    if statistic is mean and _is_binary(values):
        return Interval(float(values.mean()), *_clopper_pearson(int(values.sum()), len(values)))
    result, _ = _bootstrap_interval(lambda weights: statistic(values, weights), len(values), seed, resamples)
    return result


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
    seed: int = 0,
    resamples: int = 4000,
    unit: str = "",
) -> Comparison:
    """Compare two arms on the same items: statistic(b) − statistic(a), paired.

    Args:
        a, b: (n, ...) values of the baseline and of the arm; row i of both is the same item.
        metric, baseline, arm, unit: names, as printed.
        statistic: what is computed over the items of each arm.
        binary: values are 0/1 and the statistic is their mean: an exact McNemar test. Otherwise a paired bootstrap.
        higher_is_better: the direction of `helps`.
        noise_floor: how far the baseline lay from itself when run again, in the metric's unit.
        seed, resamples: of the bootstrap.

    Raises:
        InputError: no items, unequal shapes, NaN, or `binary` values other than 0 and 1.

    Example:
        >>> a, b = [0, 0, 1, 0] * 10, [1, 0, 1, 1] * 10
        >>> compare_samples(a, b, metric="accuracy", baseline="A", arm="B", binary=True).verdict
        'helps'
    """
    a, b = _checked(a, baseline), _checked(b, arm)
    if a.shape != b.shape:
        raise InputError(
            f"{metric}: {baseline} has values {a.shape} and {arm} {b.shape}; both need one row per shared item"
        )
    n = len(a)
    p_value = None
    if binary:
        if a.ndim > 1 or not (_is_binary(a) and _is_binary(b)):
            raise InputError(
                f"{metric}: a binary metric has one 0 or 1 per item; leave out binary=True for other values"
            )
        wins, losses = int(((b == 1) & (a == 0)).sum()), int(((b == 0) & (a == 1)).sum())
        difference, p_value, detectable = _mcnemar(wins, losses, n)
        test = "exact McNemar"
    else:
        difference, standard_error = _bootstrap_interval(
            lambda weights: statistic(b, weights) - statistic(a, weights), n, seed, resamples
        )
        detectable = _t_power_factor(n) * standard_error if n > 1 else math.inf
        test = "paired bootstrap"
    ones = np.ones((1, n))
    return Comparison(
        metric=metric,
        baseline=baseline,
        arm=arm,
        difference=difference,
        scale="difference",
        test=test,
        n=n,
        noise_floor=noise_floor,
        minimum_detectable_effect=detectable + noise_floor,
        verdict=verdict(difference, "difference", higher_is_better, noise_floor),
        p_value=p_value,
        unit=unit,
        higher_is_better=higher_is_better,
        baseline_value=float(statistic(a, ones)[0]),
        arm_value=float(statistic(b, ones)[0]),
    )


def compare_seconds(
    a_seconds: ArrayLike,
    b_seconds: ArrayLike,
    *,
    baseline: str,
    arm: str,
    metric: str = "items/s",
    noise_floor: float = 0.0,
) -> Comparison:
    """Compare the speed of two arms from blocks timed in turn: seconds(baseline) / seconds(arm); 2.0 is twice as fast.

    Args:
        a_seconds, b_seconds: (blocks,) seconds of the baseline and of the arm; entry i of both is the same block.
        baseline, arm, metric: names, as printed.
        noise_floor: |log ratio| of the baseline's time to its own when run again.

    Raises:
        InputError: no blocks, unequal lengths, NaN, or a time that is not positive.

    Example:
        >>> compare_seconds([2.0, 2.1, 1.9], [1.0, 1.0, 1.1], baseline="loop", arm="vectorised").verdict
        'helps'
    """
    from scipy.special import stdtr, stdtrit

    a, b = _checked(a_seconds, baseline), _checked(b_seconds, arm)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(
            f"{metric}: {baseline} has times {a.shape} and {arm} {b.shape}; both need one per shared block"
        )
    if min(a.min(), b.min()) <= 0:
        raise InputError(
            f"{metric}: got a time of {min(a.min(), b.min())} s; a block takes more than 0 s, give larger blocks"
        )
    logs = np.log(a / b)
    n = len(logs)
    centre = float(logs.mean())
    low, high, detectable, p_value = -math.inf, math.inf, math.inf, None
    if n > 1:
        standard_error = float(logs.std(ddof=1)) / math.sqrt(n)
        half_width = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * standard_error
        low, high = centre - half_width, centre + half_width
        detectable = _t_power_factor(n) * standard_error + noise_floor
        if standard_error > 0:
            p_value = 2 * float(stdtr(n - 1, -abs(centre) / standard_error))
    difference = Interval(math.exp(centre), math.exp(low), math.exp(high))
    return Comparison(
        metric=metric,
        baseline=baseline,
        arm=arm,
        difference=difference,
        scale="ratio",
        test="paired t on log ratios",
        n=n,
        noise_floor=noise_floor,
        minimum_detectable_effect=math.exp(detectable),
        verdict=verdict(difference, "ratio", True, noise_floor),
        p_value=p_value,
    )


def verdict(difference: Interval, scale: Scale, higher_is_better: bool, noise_floor: float) -> Verdict:
    """The one rule that every verdict of broadsheet follows.

    Take the 95 % interval of arm − baseline (of log(arm / baseline) for a ratio), its sign turned so that up is better,
    and the band [−noise_floor, +noise_floor] within which the baseline differs from itself.

    - `"helps"`: the whole interval lies above the band.
    - `"hurts"`: the whole interval lies below the band.
    - `"no measurable difference"`: anything else; the minimum detectable effect says what would have been found.
    - `"not measured"`: the estimate or an end of the interval is NaN or infinite, as with one item or a failed arm.
    """
    low, high = difference.low, difference.high
    if scale == "ratio":
        low, high = (math.log(end) if end > 0 else -math.inf for end in (low, high))
    if not all(map(math.isfinite, (difference.estimate, low, high))):
        return "not measured"
    if not higher_is_better:
        low, high = -high, -low
    if low > noise_floor:
        return "helps"
    if high < -noise_floor:
        return "hurts"
    return "no measurable difference"


def sentence(comparison: Comparison) -> str:
    """A comparison as the one line that may be quoted: who, what, the verdict, by how much, how sure.

    Example:
        "AUROC: Lastde++ helps: +0.12 [+0.05, +0.19] against Likelihood (0.79 → 0.91)"
        "AUROC: no measurable difference between Entropy and Likelihood (could have seen ≥ 0.08): −0.01 [−0.06, +0.04]"
        "texts/s: Lastde++ hurts: 0.48× [0.44, 0.52] as fast as Likelihood"
    """
    c = comparison
    if c.verdict == "not measured":
        return f"{c.metric}: {c.arm} against {c.baseline}: not measured (n = {c.n})"
    ratio = c.scale == "ratio"
    places = _places(c.difference, neutral=1.0 if ratio else 0.0)
    unit = "×" if ratio else f" {c.unit}" if c.unit else ""
    estimate, low, high = (
        _number(end, places, signed=not ratio) for end in (c.difference.estimate, c.difference.low, c.difference.high)
    )
    amount = f"{estimate}{unit} [{low}, {high}]"
    if c.verdict == "no measurable difference":
        seen = _sensitivity(c, places, unit)
        return f"{c.metric}: no measurable difference between {c.arm} and {c.baseline} ({seen}): {amount}"
    values = ""
    if c.baseline_value is not None and c.arm_value is not None:
        values = f" ({_number(c.baseline_value, places)} → {_number(c.arm_value, places)})"
    return f"{c.metric}: {c.arm} {c.verdict}: {amount} {'as fast as' if ratio else 'against'} {c.baseline}{values}"


def multiplicity_warning(comparisons: Sequence[Comparison]) -> str:
    """What chance alone would have called, when several comparisons are read at once; empty for fewer than two.

    Example:
        "14 comparisons, 3 of them called helps or hurts; if nothing differed, chance alone would call about 0.7"
    """
    measured = [c for c in comparisons if c.verdict != "not measured"]
    if len(measured) < 2:
        return ""
    called = sum(c.verdict != "no measurable difference" for c in measured)
    chance = (1 - CONFIDENCE) * len(measured)
    return (
        f"{len(measured)} comparisons, {called} of them called helps or hurts; "
        f"if nothing differed, chance alone would call about {chance:.2g}"
    )


def _checked(values: ArrayLike, name: str = "values") -> Floats:
    """`values` as a float array of at least one item, none of it NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or len(array) == 0:
        raise InputError(f"{name}: got no items; a statistic needs at least one")
    missing = int(np.isnan(array.reshape(len(array), -1)).any(axis=1).sum())
    if missing:
        raise InputError(
            f"{name}: {missing} of {len(array)} items are NaN; drop these items from every arm, or mend the metric"
        )
    return array


def _is_binary(values: Floats) -> bool:
    return values.ndim == 1 and bool(np.isin(values, (0.0, 1.0)).all())


def _resamples(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Multinomial weights in chunks of (rows, n): how often each item falls into each of `resamples` draws of n."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _bootstrap_interval(
    statistic: Callable[[Floats], Floats], n: int, seed: int, resamples: int
) -> tuple[Interval, float]:
    """A 95 % interval from resampling n items, and the standard error it rests on.

    At each end the wider of two readings of the same resamples, both with the small-sample expansion of Hesterberg
    (2015): the percentile at level Φ(−√(n/(n−1)) t), which follows the skew, and estimate ∓ t √(n/(n−1)) × the
    resamples' standard deviation, which keeps its level under heavy tails, where percentiles alone call 7 % for 5 %.
    t is Student's 97.5 % quantile with n − 1 degrees of freedom.
    """
    from scipy.special import ndtr, stdtrit

    with np.errstate(invalid="ignore"):  # an infinite value under weight 0 gives NaN, and so "not measured"
        estimate = float(statistic(np.ones((1, n)))[0])
        if n == 1:
            return Interval(estimate, -math.inf, math.inf), math.inf
        drawn = np.concatenate([statistic(weights) for weights in _resamples(n, resamples, seed)])
        expansion = math.sqrt(n / (n - 1))
        standard_error = expansion * float(drawn.std())
        t = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
        level = float(ndtr(-expansion * t))
        low, high = (float(end) for end in np.quantile(drawn, [level, 1 - level]))
    margin = t * standard_error
    return Interval(estimate, min(low, estimate - margin), max(high, estimate + margin)), standard_error


def _clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share; [0, 1] when there was nothing to count."""
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def _mcnemar(wins: int, losses: int, n: int) -> tuple[Interval, float, float]:
    """Exact McNemar test: the difference of two paired shares with its interval, p-value, and detectable effect.

    The difference is (2π − 1) r, with r the share of the n items on which the arms disagree and π the share of those
    that the arm wins. The interval joins the exact intervals of π and r, each end at its farthest. It excludes 0 just
    when the interval of π excludes ½, that is when p < 0.05; with no disagreement it is ±(1 − 0.025^(1/n)).
    """
    from scipy.special import bdtr, ndtri

    disagreements = wins + losses
    won_low, won_high = _clopper_pearson(wins, disagreements)
    rate_low, rate_high = _clopper_pearson(disagreements, n)
    low, high = 2 * won_low - 1, 2 * won_high - 1
    difference = Interval(
        (wins - losses) / n,
        low * (rate_high if low < 0 else rate_low),
        high * (rate_high if high > 0 else rate_low),
    )
    p_value = min(1.0, 2 * float(bdtr(min(wins, losses), disagreements, 0.5)))
    # An effect δ brings at least δn disagreements of its own: (z + z)√max(m, δn) = δn, solved for δ. Fewer than 6 items
    # cannot reach p < 0.05 whatever happens on them.
    z = float(ndtri((1 + CONFIDENCE) / 2) + ndtri(POWER))
    detectable = min(1.0, max(z * math.sqrt(disagreements), z * z) / n) if n >= 6 else math.inf
    return difference, p_value, detectable


def _t_power_factor(n: int) -> float:
    """Detectable effect over its standard error: t_.975 + t_.80 at n − 1 degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) + stdtrit(n - 1, POWER))


def _sensitivity(c: Comparison, places: int, unit: str) -> str:
    """What a "no measurable difference" was able to see."""
    d = c.difference
    if d.low == d.high == 0:
        return f"equal in every resample of {c.n} items"
    if math.isinf(c.minimum_detectable_effect):
        return f"n = {c.n} is too few to see any"
    seen = f"could have seen ≥ {_number(c.minimum_detectable_effect, places)}{unit}"
    neutral = 1.0 if c.scale == "ratio" else 0.0
    return seen if d.low <= neutral <= d.high else f"{seen}; within the baseline's own noise"


def _places(interval: Interval, neutral: float) -> int:
    """Decimals that show the interval's width, and on which side of `neutral` it lies when it lies on one."""
    width = interval.high - interval.low
    if width <= 1e-9 * abs(interval.estimate):
        return 3
    smallest = width / 7  # two decimals for widths from 0.07 to 0.7
    if not interval.low <= neutral <= interval.high:
        smallest = min(smallest, abs(interval.low - neutral), abs(interval.high - neutral))
    return min(6, max(0, math.ceil(-math.log10(smallest))))


def _number(value: float, places: int, signed: bool = False) -> str:
    """`value` with a true minus sign, and no minus before a rounded zero."""
    return f"{round(value, places) + 0.0:{'+' if signed else ''}.{places}f}".replace("-", "−")

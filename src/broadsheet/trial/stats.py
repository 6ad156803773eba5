"""The statistics behind every verdict: statistics over items, the bootstrap, exact shares.

Knows: numbers per item, which items belong together, which were read by which training run. Does not know: metrics,
arms, verdicts (`verdicts`), where the numbers come from. Plain words and equations are in docs/verdicts.md.

A *statistic* is a function of the items' values `(n, ...)` and resampling weights `(resamples, n)` to `(resamples,)`.
Weights of one give the estimate, multinomial weights a bootstrap resample; a weight of k counts an item k times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from broadsheet.console import InputError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]

CONFIDENCE = 0.95
POWER = 0.80
SURE = 0.90  # of a bound on a standard error
MIN_UNITS = 5  # fewer tell too little of their spread for an interval
RESAMPLES = 4000  # of the bootstrap
# Weights held at once: 16 MB of float64, whatever the number of items.
_WEIGHTS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Draws:
    """What resampling tells of a statistic.

    Args:
        estimate: on the items as they are; the mean over training runs.
        drawn: (resamples,) the same on resampled units.
        units: how many were resampled: items, or clusters of items.
        runs: for each trained side, (runs,) the statistic of each training run on all items; a side that was trained
            once, or not at all, is left out.
    """

    estimate: float
    drawn: Floats
    units: int
    runs: tuple[Floats, ...] = ()

    @cached_property
    def unit_error(self) -> float:
        """Standard error from the choice of units: of the resamples, expanded by √(n/(n−1)) (Hesterberg, 2015)."""
        return self._expansion * float(self.drawn.std()) if self.units > 1 else math.inf

    @cached_property
    def run_error(self) -> float:
        """Standard error from the training runs: √ of the sum over sides of s²/runs; 0 where nothing was repeated."""
        return math.sqrt(sum(float(run.var(ddof=1)) / len(run) for run in self.runs))

    @property
    def standard_error(self) -> float:
        return math.hypot(self.unit_error, self.run_error)

    @cached_property
    def skew(self) -> float:
        """Skewness of the resamples: that of the units over √n, for a mean."""
        spread = float(self.drawn.std())
        return float(((self.drawn - self.drawn.mean()) ** 3).mean()) / spread**3 if spread > 0 else 0.0

    @cached_property
    def freedom(self) -> float:
        """Degrees of freedom of `standard_error`, as `joined_freedom` has them."""
        runs = [(float(run.var(ddof=1)) / len(run), len(run) - 1) for run in self.runs]
        return float(joined_freedom((self.unit_error**2, self.units - 1), runs))

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """At each end the wider of two readings of the same resamples.

        The percentile at level Φ(−√(n/(n−1)) t) follows the skew; estimate ∓ t × the standard error keeps its level
        under heavy tails, where percentiles alone call 7 % for 5 %, and covers the training runs. t is Student's
        quantile with n − 1 degrees of freedom for the one, `freedom` for the other. Where the resamples are skewed by
        g, the end on the longer side is moved out by another g (2t² + 1) / 6 standard errors (Johnson, 1978): a small
        sample of values of which few are large tends to miss them. (−∞, ∞) for under MIN_UNITS units.
        """
        from scipy.special import ndtr, stdtrit

        if self.units < MIN_UNITS:
            return Interval(self.estimate, -math.inf, math.inf)
        level = float(ndtr(-self._expansion * stdtrit(self.units - 1, (1 + confidence) / 2)))
        with np.errstate(invalid="ignore"):  # an infinite value under weight 0 gives NaN, and so "not measured"
            low, high = (float(end) for end in np.quantile(self.drawn, [level, 1 - level]))
            t = float(stdtrit(self.freedom, (1 + confidence) / 2))
            below, above = (t + max(0.0, sign * self.skew) * (2 * t * t + 1) / 6 for sign in (-1, 1))
            return Interval(
                self.estimate,
                min(low, self.estimate - below * self.standard_error),
                max(high, self.estimate + above * self.standard_error),
            )

    def p_value(self, floor: float = 0.0) -> float:
        """Two-sided, that the truth lies within ±floor: where the interval of confidence 1 − p first reaches there."""
        from scipy.special import ndtri, stdtr

        gap = abs(self.estimate) - floor
        if not gap > 0 or self.units < MIN_UNITS:
            return 1.0
        towards = self.drawn if self.estimate > 0 else -self.drawn
        beyond = (float((towards <= floor).sum()) + 0.5) / (len(self.drawn) + 1)
        percentile = 2 * float(stdtr(self.units - 1, min(0.0, ndtri(beyond) / self._expansion)))
        if not self.standard_error > 0:
            return percentile
        reach, bend = gap / self.standard_error, max(0.0, -math.copysign(1.0, self.estimate) * self.skew)
        # t + bend (2t² + 1) / 6 = reach, solved for t: as far as the interval's end that points to 0 is moved out.
        t = reach if bend < 1e-9 else (-1 + math.sqrt(max(0.0, 1 + 8 * bend / 6 * (reach - bend / 6)))) / (4 * bend / 6)
        return min(1.0, max(percentile, 2 * float(stdtr(self.freedom, -max(0.0, t)))))

    @property
    def _expansion(self) -> float:
        return math.sqrt(self.units / (self.units - 1))


def bootstrap(
    statistic: Callable[[Floats], Floats],
    items: int,
    *,
    runs: Sequence[Floats] = (),
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Draws:
    """Resample items, or whole clusters of them, and compute the statistic each time.

    Args:
        statistic: weights (resamples, items) to (resamples,).
        runs: as `Draws` has them.
        clusters: the name of each item's cluster; the items of a cluster are drawn together.
        seed, resamples: of the resampling.
    """
    places = None
    units = items
    if clusters is not None:
        names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
        places, units = np.array([names[name] for name in clusters]), len(names)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = float(statistic(np.ones((1, items)))[0])
        if units < MIN_UNITS:
            return Draws(estimate, np.array([estimate]), units, tuple(runs))
        drawn = np.concatenate(
            [
                statistic(weights if places is None else weights[:, places])
                for weights in resampled_weights(units, items, resamples, seed)
            ]
        )
    return Draws(estimate, drawn, units, tuple(runs))


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


def labelled_auroc(values: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve over items of two kinds, each with one score; ties count one half.

    Args:
        values: (n, 2), whether an item is positive (1 or 0), and its score.
        weights: (resamples, n).

    Returns:
        (resamples,): the weighted share of (negative, positive) combinations in which the positive scores higher; one
        half where a resample holds one kind alone.
    """
    positive = values[:, 0] > 0
    negatives = values[~positive, 1]
    ascending = np.argsort(negatives)
    ranked = negatives[ascending]
    lowest = np.cumsum(weights[:, ~positive][:, ascending], axis=1)
    lowest = np.concatenate([np.zeros((len(weights), 1)), lowest], axis=1)
    scores, theirs = values[positive, 1], weights[:, positive]
    below = lowest[:, np.searchsorted(ranked, scores, side="left")]
    at_or_below = lowest[:, np.searchsorted(ranked, scores, side="right")]
    pairs = theirs.sum(axis=1) * lowest[:, -1]
    won = np.einsum("bi,bi->b", theirs, below + at_or_below) / 2
    found: Floats = np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), 0.5)
    return found


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


def over_groups(statistic: Statistic) -> Statistic:
    """The statistic's mean over groups of items, such as data sets whose values are not on one scale.

    Its values are (n, k + 1): the last column holds each item's group, the others what `statistic` reads.

    Example:
        `Metric("AUROC", of="scores and set", statistic=over_groups(auroc))`
    """

    def mean_of_groups(values: Floats, weights: Floats) -> Floats:
        groups = [values[:, -1] == group for group in np.unique(values[:, -1])]
        return np.mean([statistic(values[held][:, :-1], weights[:, held]) for held in groups], axis=0)

    return mean_of_groups


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


def interval(
    values: ArrayLike,
    statistic: Statistic = mean,
    *,
    binary: bool = True,
    runs: bool = False,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """A statistic of one arm with its 95 % confidence interval.

    A bootstrap over items (`Draws.interval`); for the mean of 0/1 values the exact Clopper–Pearson interval, since
    resampling 12 right answers of 12 would claim certainty. Fewer than five items of another kind tell too little of
    the spread: the interval is (−∞, ∞).

    Args:
        values: (n, ...), one row per item; with `runs`, (runs, n, ...).
        statistic: what is computed over the items.
        binary: whether values that all are 0 or 1 are answers to a yes-or-no question; else they merely happen to be.
        runs: whether the values are those of several training runs; the mean over them is told.
        clusters: the name of each item's cluster, where items belong together.
        seed, resamples: of the resampling; the same seed gives the same interval.

    Raises:
        InputError: no items, or NaN among the values.

    Example:
        >>> interval([1, 0, 1, 1])
        Interval(estimate=0.75, low=0.1941..., high=0.9936...)
    """
    array = checked(values)
    stack = array if runs else array[None]
    if binary and statistic is mean and clusters is None and len(stack) == 1 and is_binary(stack[0]):
        return Interval(float(stack.mean()), *clopper_pearson(int(stack.sum()), stack.shape[1]))
    return bootstrap(
        lambda weights: over_runs(stack, statistic, weights),
        stack.shape[1],
        runs=spread(stack, statistic=statistic),
        clusters=clusters,
        seed=seed,
        resamples=resamples,
    ).interval()


def over_runs(stack: Floats, statistic: Statistic, weights: Floats) -> Floats:
    """The statistic's mean over training runs: (runs, n, ...) and weights (resamples, n) to (resamples,)."""
    return np.mean([statistic(values, weights) for values in stack], axis=0)


def spread(*stacks: Floats, statistic: Statistic = mean) -> list[Floats]:
    """(runs,) the statistic of each training run, for every stack (runs, n, ...) of more than one run."""
    return [
        np.array([float(statistic(values, np.ones((1, len(values))))[0]) for values in stack])
        for stack in stacks
        if len(stack) > 1
    ]


def joined_freedom(units: tuple[Any, float], runs: Sequence[tuple[Any, float]]) -> Floats:
    """Degrees of freedom of a sum of squared standard errors: of the choice of units, and of training runs.

    Those of several arms' runs by Welch and Satterthwaite. Of runs and units by Cochran and Cox (1950): Student's
    quantile is the mean of both, weighed by their squared errors. By Welch and Satterthwaite alone too much is called
    where two degrees of freedom bear most of the error: 8 % for 5 %, of three runs beside an arm that is not trained.

    Args:
        units, runs: a squared standard error, or an array of them, and its degrees of freedom.
    """
    from scipy.special import stdtridf, stdtrit

    own, freedom = np.asarray(units[0], dtype=np.float64), float(units[1])
    if not runs:
        return np.full(own.shape, freedom)
    level = (1 + CONFIDENCE) / 2
    repeated = np.sum([part for part, _ in runs], axis=0)
    below = np.sum([np.square(part) / each for part, each in runs], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        joined = np.square(repeated) / below
        t = (own * stdtrit(freedom, level) + repeated * stdtrit(joined, level)) / (own + repeated)
        return np.where(below > 0, stdtridf(level, t), freedom)


def checked(values: ArrayLike, name: str = "values") -> Floats:
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


def is_binary(values: Floats) -> bool:
    """Whether it is one 0 or 1 for each item."""
    return values.ndim == 1 and bool(np.isin(values, (0.0, 1.0)).all())


def clopper_pearson(successes: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval of a share; [0, 1] when there was nothing to count."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def wobble(drawn: Floats, units: Floats | None = None) -> float:
    """By what share a standard error may be off, beyond what Student's t has for normal values.

    The squared coefficient of variation of s² exceeds that of normal values by the units' excess kurtosis over n, which
    is the excess kurtosis of the resamples of their mean. Half of its root is that of s.

    Args:
        drawn: (resamples,) of a statistic.
        units: (n,) of which it is the mean; their own kurtosis is exact, where that of resamples is drawn.
    """
    values, n = (drawn, 1) if units is None else (units, len(units))
    spread = float(values.std())
    excess = float(((values - values.mean()) ** 4).mean()) / spread**4 - 3 if spread > 0 else 0.0
    return math.sqrt(max(0.0, excess) / n) / 2


def error_bound(error: float, n: int, wobble: float) -> float:
    """The value below which the true standard error lies in 9 of 10 cases, where n units gave `error`.

    The squared coefficient of variation of s² is 2 / (n − 1) for normal values, and (2 w)² more with the wobble w.
    """
    from scipy.special import ndtri

    if n < MIN_UNITS:
        return math.inf
    return error * math.sqrt(1 + float(ndtri(SURE)) * math.sqrt(2 / (n - 1) + (2 * wobble) ** 2))


def power_factor(freedom: float, tests: int = 1) -> float:
    """Detectable effect over its standard error: t_.975 + t_.80 at that many degrees of freedom.

    Args:
        tests: claims tested together, at 5 % over their number: Holm's first step, and so enough for each.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - (1 - CONFIDENCE) / (2 * tests)) + stdtrit(freedom, POWER))


def resampled_weights(units: int, items: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Multinomial weights in chunks of (rows, units): how often each falls into each of `resamples` draws of all."""
    at_once = max(1, _WEIGHTS_AT_ONCE // items)
    if resamples <= at_once:
        yield _weights_of(units, resamples, seed).copy()
        return
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, at_once):
        yield _weights(generator, units, min(at_once, resamples - start))


@lru_cache(maxsize=2)  # a trial compares many metrics and arms on the same items: they share their draws
def _weights_of(units: int, resamples: int, seed: int) -> Floats:
    return _weights(np.random.default_rng(seed), units, resamples)


def _weights(generator: np.random.Generator, units: int, rows: int) -> Floats:
    drawn = generator.integers(units, size=(rows, units)) + np.arange(rows)[:, None] * units
    return np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)

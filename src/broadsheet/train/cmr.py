"""Critical mixture ratios (Gu et al., 2024, arXiv:2407.17467): how much new text a model may read and keep the old.

Knows: losses at numbers of tokens and shares of text, power laws. Does not know: models, trainings, data. Fits are of
numpy and scipy. Ratios are shares of domain text; what is left is general text, which the model was trained on before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any, ClassVar

import numpy as np

from broadsheet.console import InputError

EPSILON = 0.05  # nats, by which general loss may be above its start
STEEPEST = 3.0  # |exponent|, at most
_FLAT = 1e-4  # an exponent nearer to 0 is taken for this
_REACH = 1e4  # times the longest run, up to which turning points are looked for

Array = np.ndarray[Any, Any]
Numbers = Sequence[float] | Array


@dataclass(frozen=True)
class PowerLaw:
    """α x^s + β.

    Attributes:
        alpha, s, beta: α, s and β; near s = 0 they are large and cancel: compare values, not constants.
    """

    alpha: float
    s: float
    beta: float

    def __call__(self, x: Any) -> Any:
        return self.alpha * np.power(x, self.s) + self.beta

    def slope(self, x: Any) -> Any:
        """Its derivative."""
        return self.alpha * self.s * np.power(x, self.s - 1)

    @classmethod
    def fit(cls, x: Numbers, y: Numbers) -> PowerLaw:
        """By least squares.

        Raises:
            InputError: fewer than three points, or an x that is not above 0.
        """
        [s], coefficients = _fitted(x, y, 1)
        return cls(coefficients[0] / s, s, coefficients[-1] - coefficients[0] / s)


@dataclass(frozen=True)
class RiseAndFall:
    """α2 x^s2 + α3 x^s3 + β: general loss, which rises first and falls later; s2 < s3."""

    alpha2: float
    s2: float
    alpha3: float
    s3: float
    beta: float

    def __call__(self, x: Any) -> Any:
        return self.alpha2 * np.power(x, self.s2) + self.alpha3 * np.power(x, self.s3) + self.beta

    def slope(self, x: Any) -> Any:
        """Its derivative."""
        first = self.alpha2 * self.s2 * np.power(x, self.s2 - 1)
        return first + self.alpha3 * self.s3 * np.power(x, self.s3 - 1)

    @classmethod
    def fit(cls, x: Numbers, y: Numbers) -> RiseAndFall:
        """By least squares.

        Raises:
            InputError: fewer than five points, or an x that is not above 0.
        """
        (s2, s3), (a, b, c) = _fitted(x, y, 2)
        return cls(a / s2, s2, b / s3, s3, c - a / s2 - b / s3)


def _fitted(x: Numbers, y: Numbers, terms: int) -> tuple[list[float], list[float]]:
    """Exponents, and coefficients of (x^s − 1) / s for each and of 1: where s is near 0 these stay apart from 1.

    Given the exponents the best coefficients follow, so only exponents are searched: from the best of a grid for each
    choice of signs, since a valley that crosses 0 may be too narrow for the grid.
    """
    from scipy.optimize import least_squares

    given, wanted = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(given) < 2 * terms + 1 or given.min() <= 0 or not np.isfinite(wanted).all():
        raise InputError(
            f"got {len(given)} points; expected {2 * terms + 1} or more, at places above 0, with finite losses"
        )
    unit = float(np.exp(np.log(given).mean()))  # so that powers are near 1
    logs = np.log(given / unit)

    def basis(exponents: Numbers) -> Array:
        apart = [np.expm1(s * logs) / s if s else logs for s in exponents]
        return np.stack([*apart, np.ones_like(logs)], 1)

    def rest(exponents: Array) -> Array:
        matrix = basis(exponents)
        found: Array = matrix @ np.linalg.lstsq(matrix, wanted, rcond=None)[0] - wanted
        return found

    grid = np.linspace(-STEEPEST, STEEPEST, 41)
    chosen = np.array(list(combinations(range(len(grid)), terms)))
    starts, every = grid[chosen], basis(grid).T  # of each exponent, and of 1
    ones = np.broadcast_to(every[-1], (len(starts), 1, len(logs)))
    spans, _ = np.linalg.qr(np.concatenate([every[chosen], ones], 1).mT)  # (starts, points, terms + 1)
    left = wanted - np.einsum("spt,st->sp", spans, np.einsum("spt,p->st", spans, wanted))
    cost, upward = (left**2).sum(1), (starts >= 0).sum(1)
    best = [starts[upward == n][cost[upward == n].argmin()] for n in range(terms + 1)]
    ends = {"bounds": (-STEEPEST - 1e-9, STEEPEST + 1e-9), "xtol": 1e-10, "ftol": 1e-10, "gtol": 1e-12, "max_nfev": 50}
    tries = [least_squares(rest, each, **ends) for each in best]
    exponents = sorted(_away(s) for s in min(tries, key=lambda each: float(each.cost)).x)
    coefficients = np.linalg.lstsq(basis(exponents), wanted, rcond=None)[0]
    # (x/u)^s − 1 over s, in terms of x^s: u^−s goes into the coefficient, what is left into the constant.
    scaled = [c * unit**-s for c, s in zip(coefficients, exponents, strict=False)]
    constant = coefficients[-1] + sum((k - c) / s for k, c, s in zip(scaled, coefficients, exponents, strict=False))
    return exponents, [*map(float, scaled), float(constant)]


def _away(s: float) -> float:
    """An exponent, not too near 0."""
    return float(s) if abs(s) >= _FLAT else _FLAT if s >= 0 else -_FLAT


def turning_point(domain: PowerLaw, general: RiseAndFall, weight: float, longest: float) -> float:
    """The number of tokens from which domain loss + λ general loss falls (Eq. 7): T0.

    Args:
        domain, general: losses by tokens, less what they were before.
        weight: λ.
        longest: tokens of the run, in the unit of both; T0 is looked for up to ten thousand times as many.

    Returns:
        T0; 0 where it falls throughout, infinity where it never does.
    """
    from scipy.optimize import brentq

    def slope(log_tokens: Any) -> Any:
        tokens = np.exp(log_tokens)
        # Times the tokens: its sign is the same, and it is even over the logarithm.
        return tokens * (domain.slope(tokens) + weight * general.slope(tokens))

    grid = np.linspace(np.log(longest / _REACH), np.log(longest * _REACH), 4_001)
    signs = np.sign(slope(grid))
    turns = np.flatnonzero((signs[:-1] > 0) & (signs[1:] <= 0))
    if len(turns):
        # From the last one on it falls.
        return float(np.exp(brentq(slope, grid[turns[-1]], grid[turns[-1] + 1], xtol=1e-14, rtol=1e-14)))
    return float("inf") if signs[-1] > 0 else 0.0


@dataclass(frozen=True)
class MixtureRun:
    """What came of training at one ratio.

    Args:
        ratio: share of domain text, above 0 to 1.
        tokens: (T,) trained on when losses were measured, rising, above 0.
        domain, general: (T,) losses in nats.
        before: (domain, general) losses of the model before, on the same texts.

    Raises:
        InputError: they are of different lengths, or the ratio is none.
    """

    ratio: float
    tokens: Numbers
    domain: Numbers
    general: Numbers
    before: tuple[float, float]

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise InputError(f"got the ratio {self.ratio}; expected a share above 0")
        if len({len(self.tokens), len(self.domain), len(self.general)}) > 1:
            raise InputError("got tokens and losses of different lengths; expected a loss of each kind at each place")

    @property
    def rise(self) -> float:
        """Of general loss, from before to the end."""
        return float(self.general[-1]) - self.before[1]


@dataclass(frozen=True)
class Ratio:
    """A critical ratio.

    Attributes:
        value: share of domain text; None: there is no feasible one.
        at_least: it is the largest that was tried, and a larger one may be feasible.
        low, high: of 95 % of bootstrap samples that have one; None where fewer than half have.
    """

    value: float | None
    at_least: bool = False
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "none"
        ends = "" if self.low is None or self.high is None else f" [{self.low:.0%}, {self.high:.0%}]"
        return f"{'≥ ' * self.at_least}{self.value:.0%}{ends}".replace("%", " %")


@dataclass(frozen=True)
class CriticalMixtureRatio:
    """The largest share of domain text with which a model learns the domain and keeps what it knew, from short runs.

    General loss rises at first, as the model turns to the domain, and falls again once the general text that is mixed
    in is learnt anew. The less of it, the later it turns. A ratio is feasible where it turns within the budget and
    general loss then stands no more than ε above its start; the critical one is the largest, and it grows with the
    budget by a power law.

    Use when a long further training is planned: before it, runs at four or more ratios, all at one constant learning
        rate, with both losses measured from early on. A rate that falls would bend losses down by itself.

    Inputs: losses of the same held-out texts before and along each run; see `MixtureRun`. It changes nothing in a
        training: `Mixture` reads at the ratio that comes out.
    Relation: `ContinualPretraining` takes a fixed share of old text, 5 or 25 %.

    Args:
        runs: at different ratios.
        epsilon: ε in nats (0.05).
        weight: λ, of general loss against domain loss (100 to 7,000); the larger, the nearer the turning point is to
            the highest general loss.

    Raises:
        InputError: fewer than three ratios, or too few places; domain loss does not fall with the ratio.

    Example:
        from broadsheet.train import CriticalMixtureRatio
        from broadsheet.train.cmr import MixtureRun

        tokens = [1, 2, 5, 10, 20, 50, 100]
        runs = [
            MixtureRun(
                ratio, tokens, [3 - 0.5 * ratio - 0.1 * t**0.3 for t in tokens],
                [2 + ratio * (0.03 - 0.03 * t**-0.6) - 0.001 * t**0.6 for t in tokens], before=(3.0, 2.0),
            )
            for ratio in (0.25, 0.5, 0.75, 1.0)
        ]
        print(CriticalMixtureRatio(runs).predict(budget=60))

    Source: arXiv:2407.17467, Eq. 7 (turning points) and 8 (the law); its fits' starting values are not told, ours are a
    grid.
    """

    paper: ClassVar[str] = "cmr"

    runs: Sequence[MixtureRun] = field(default_factory=tuple)
    epsilon: float = EPSILON
    weight: float = 1_000.0

    def __post_init__(self) -> None:
        runs = sorted(self.runs, key=lambda run: run.ratio)
        object.__setattr__(self, "runs", tuple(runs))
        if len({run.ratio for run in runs}) < 3:
            raise InputError(f"got {len({run.ratio for run in runs})} ratios; expected three or more")
        ends = [float(run.domain[-1]) for run in runs]
        if any(later >= earlier for earlier, later in pairwise(ends)):
            told = ", ".join(f"{run.ratio:.0%} {end:.4f}" for run, end in zip(runs, ends, strict=True))
            raise InputError(
                f"domain loss does not fall with its share ({told}): train longer, or measure it on more text"
            )

    @cached_property
    def curves(self) -> Mapping[float, tuple[PowerLaw, RiseAndFall]]:
        """Ratio → how domain and general loss, less what they were before, go with the tokens."""
        return {
            run.ratio: (
                PowerLaw.fit(run.tokens, np.asarray(run.domain) - run.before[0]),
                RiseAndFall.fit(run.tokens, np.asarray(run.general) - run.before[1]),
            )
            for run in self.runs
        }

    @cached_property
    def turning_points(self) -> Mapping[float, float]:
        """Ratio → T0."""
        return {
            run.ratio: turning_point(*self.curves[run.ratio], self.weight, float(run.tokens[-1])) for run in self.runs
        }

    @cached_property
    def domain_by_ratio(self) -> PowerLaw:
        """Domain loss at the end of the runs, by their ratio."""
        return PowerLaw.fit([run.ratio for run in self.runs], [float(run.domain[-1]) for run in self.runs])

    def admissible(self, ratio: float, budget: float) -> bool:
        """Whether general loss stands at most ε above its start after so many tokens, at a ratio that was tried."""
        return float(self.curves[ratio][1](budget)) <= self.epsilon

    @cached_property
    def law(self) -> PowerLaw | None:
        """R(T) = α4 T^s4 + β3, through the turning points (Eq. 8); None where fewer than three ratios turn."""
        return fit_law(self.turning_points.items())

    def predict(self, budget: float, samples: int = 0, seed: int = 0) -> Ratio:
        """The critical ratio of a budget of tokens.

        Args:
            budget: in the unit of the runs' tokens.
            samples: of a bootstrap over the places of each run, for the interval.
        """
        found = self._ratio(budget)
        if not samples:
            return found
        generator = np.random.default_rng(seed)
        drawn = [each for each in (self._resampled(generator, budget) for _ in range(samples)) if each is not None]
        if found.value is None or len(drawn) < samples / 2:
            return found
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Ratio(found.value, found.at_least, float(low), float(high))

    def _ratio(self, budget: float) -> Ratio:
        allowed = [ratio for ratio in self.turning_points if self.admissible(ratio, budget)]
        feasible = [ratio for ratio in allowed if self.turning_points[ratio] <= budget]
        if not feasible:
            return Ratio(None)
        largest, above = max(feasible), [ratio for ratio in self.turning_points if ratio > max(feasible)]
        if not above:
            return Ratio(largest, at_least=True)
        # Between what is feasible and what is not: where it would turn at the end, or rise by ε, whichever is less.
        turns = largest if self.law is None else float(self.law(budget))
        limits = [turns] if self.turning_points[above[0]] > budget else []
        limits += [] if above[0] in allowed else [self._rises_by_epsilon(largest, above[0], budget)]
        return Ratio(float(np.clip(min(limits), largest, above[0])))

    def _rises_by_epsilon(self, low: float, high: float, budget: float) -> float:
        """The ratio between two at which general loss rises by ε, by a power law over the ratios."""
        rises = PowerLaw.fit(list(self.curves), [float(general(budget)) for _, general in self.curves.values()])
        grid = np.linspace(low, high, 1_001)
        allowed = grid[rises(grid) <= self.epsilon]
        return float(allowed.max()) if len(allowed) else low

    def _resampled(self, generator: np.random.Generator, budget: float) -> float | None:
        """The ratio by as many places of each run, drawn again; None where there is none."""
        runs = []
        for run in self.runs:
            chosen = np.sort(generator.integers(len(run.tokens), size=len(run.tokens)))
            chosen[-1] = len(run.tokens) - 1  # runs end where they ended
            tokens, domain, general = (np.asarray(each)[chosen] for each in (run.tokens, run.domain, run.general))
            runs.append(MixtureRun(run.ratio, tokens, domain, general, run.before))
        return CriticalMixtureRatio(runs, self.epsilon, self.weight)._ratio(budget).value


def fit_law(pairs: Iterable[tuple[float, float]]) -> PowerLaw | None:
    """Eq. 8 through (ratio, T0) pairs; those that turn at once or never say nothing. None where fewer than three do."""
    known = [(turn, ratio) for ratio, turn in pairs if 0 < turn < float("inf")]
    if len({turn for turn, _ in known}) < 3:
        return None
    return PowerLaw.fit(*map(list, zip(*known, strict=True)))

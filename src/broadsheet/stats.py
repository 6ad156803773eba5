"""placeholder for the contract; see below"""
from __future__ import annotations
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
Verdict = Literal["helps", "hurts", "no measurable difference", "not measured"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One metric, one pair of arms: by how much `arm` differs from `baseline`, and the verdict."""

    metric: str
    baseline: str
    arm: str
    difference: Interval          # arm − baseline; for scale "ratio": arm / baseline
    scale: Literal["difference", "ratio"]
    test: str                     # "exact McNemar", "paired bootstrap", "paired t on log ratios"
    n: int                        # paired items (or timed blocks)
    noise_floor: float            # |baseline − baseline run again|; for ratios |log ratio|
    minimum_detectable_effect: float   # at 80 % power, two-sided 5 %, on the same scale as difference (ratio: as ratio > 1)
    verdict: Verdict
    p_value: float | None = None
    unit: str = ""


def mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted mean: values (n,), weights (resamples, n) -> (resamples,)."""
    return weights @ values / weights.sum(axis=1)

"""Which tests tell small models apart while they are trained: the four criteria of FineTasks (FineWeb2, Sec. 2.3).

Knows: scores by step, model and seed. Does not know: tests, models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

MONOTONICITY, SIGNAL, NON_RANDOMNESS = 0.5, 20.0, 3.0  # the least that a test has to reach


def monotonicity(steps: Sequence[float], scores: ArrayLike) -> float:
    """The mean over models of Spearman's correlation of steps and scores; at least 0.5.

    Args:
        scores: (models, steps).
    """
    from scipy.stats import spearmanr

    return float(np.mean([spearmanr(steps, each).statistic for each in np.atleast_2d(np.asarray(scores, float))]))


def signal_to_noise(scores: ArrayLike) -> float:
    """The mean over steps of mean ÷ standard deviation across seeds; at least 20, of generative tests less.

    Args:
        scores: (seeds, steps).
    """
    given = np.asarray(scores, float)
    return float(np.mean(given.mean(0) / given.std(0)))


def non_randomness(final: Sequence[float], chance: float, scores: ArrayLike, last: int = 5) -> float:
    """How many standard deviations the best model ends above chance; at least 3.

    Args:
        final: each model's score after the last step.
        chance: the score of guessing.
        scores: (seeds, steps), for the noise: the mean of the last steps' standard deviations across seeds.
    """
    noise = np.asarray(scores, float)[:, -last:].std(0).mean()
    return float((max(final) - chance) / noise)


def ordering_consistency(scores: ArrayLike) -> float:
    """The mean Kendall τ-a of the order of models at steps that follow each other, over the later half of the steps.

    Args:
        scores: (models, steps).
    """
    given = np.asarray(scores, float)
    models, steps = given.shape
    found = []
    for step in range(steps // 2, steps - 1):
        one, other = (np.sign(given[:, None, at] - given[None, :, at]) for at in (step, step + 1))
        found.append((one * other).sum() / (models * (models - 1)))  # ties count as 0, and stay in the divisor: τ-a
    return float(np.mean(found))

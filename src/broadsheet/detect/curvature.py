"""Detectors that compare a text with what the model expected at each position: Fast-DetectGPT and Binoculars.

Knows: token scores with the moments of log p under a reference model q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from broadsheet.detect.base import OnePassDetector
from broadsheet.detect.reading import Need, TokenScores


@dataclass
class FastDetectGPT(OnePassDetector):
    """How far the text's log-likelihood lies above its expectation, in standard deviations (analytic form).

    d = Σ_j (log p(x_j) − μ_j) / √(Σ_j σ²_j), with μ_j and σ²_j the mean and variance of log p over the reference
    model's predictions q(· | x_<j). If the text was drawn token by token from q = p, d has mean 0 and variance 1.

    Use when you want one forward pass and a score on a known scale. Relation: the sampled form with the mean
    log-likelihood replaced by Lastde is `LastdePP`.
    If the predictions have no variance at all, the sum is divided by 1.
    Source: arXiv:2310.05130, Eq. 3 and its analytic solution; authors' code baoguangsheng/fast-detect-gpt.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"moments"})

    def statistic(self, reading: TokenScores) -> float:
        assert reading.mean is not None
        assert reading.variance is not None
        # Σ_j (log p(x_j) − μ_j) / √(Σ_j σ²_j)
        excess = float((reading.log_likelihood - reading.mean).sum())
        return excess / (math.sqrt(max(0.0, float(reading.variance.sum()))) or 1.0)


@dataclass
class Binoculars(OnePassDetector):
    """Minus the ratio of the text's perplexity exponent to the cross-entropy between two models.

    −(mean −log p(x_j)) / (mean_j −Σ_v q(v) log p(v)): p is the performer (`model`), q the observer (`reference`).
    With no reference the model observes itself, and the denominator is its own entropy.

    Use when you have two models with one tokenizer, such as a base model and its chat version.
    The published thresholds hold for the Falcon pair alone: calibrate with `fit`.
    Source: arXiv:2401.12070, Eq. 3–4.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"moments"})

    def statistic(self, reading: TokenScores) -> float:
        assert reading.mean is not None
        cross_entropy = -float(reading.mean.mean())
        return float(reading.log_likelihood.mean()) / cross_entropy if cross_entropy else float("-inf")

"""The plain statistics of one forward pass: likelihood, rank, log-rank, entropy, and LRR.

Knows: token scores. Five one-line detectors are together here because they are the baselines of every paper in this
stage (arXiv:1906.04043, GLTR, for the first four) and share the same token scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from broadsheet.detect.base import OnePassDetector
from broadsheet.detect.reading import Need, TokenScores


@dataclass
class Likelihood(OnePassDetector):
    """Mean log-likelihood of the text's tokens, in nats: the plain baseline, −(the model's own loss).

    Use as a baseline only: text that is predictable for its subject (documentation, law) scores as machine-written.
    Source: arXiv:1906.04043; as compared in arXiv:2410.06072, Sec. 4.
    """

    def statistic(self, reading: TokenScores) -> float:
        return float(reading.log_likelihood.mean())


@dataclass
class Rank(OnePassDetector):
    """Minus the mean 1-based rank of each token among all tokens by probability.

    Use when comparing with older work. Prefer `LogRank`: the mean rank is dominated by a few rare tokens.
    Source: arXiv:1906.04043.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"rank"})

    def statistic(self, reading: TokenScores) -> float:
        assert reading.rank is not None
        return -float(reading.rank.mean())


@dataclass
class LogRank(OnePassDetector):
    """Minus the mean natural logarithm of each token's rank.

    Use when outliers must not dominate. Relation: the denominator of `LRR`; `NPR` compares it after perturbation.
    Source: arXiv:2301.11305.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"rank"})

    def statistic(self, reading: TokenScores) -> float:
        assert reading.rank is not None
        return -float(reading.rank.log().mean())


@dataclass
class Entropy(OnePassDetector):
    """Mean entropy of the model's predictions along the text, in nats, as the papers use it: not negated.

    On most data machine text has the *lower* entropy, so this detector's AUROC lies below one half.
    Source: arXiv:1906.04043; orientation as compared in arXiv:2410.06072.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"entropy"})

    def statistic(self, reading: TokenScores) -> float:
        assert reading.entropy is not None
        return float(reading.entropy.mean())


@dataclass
class LRR(OnePassDetector):
    """Log-likelihood over log-rank: |mean log-likelihood| / mean log-rank; +inf where every token ranks first.

    Use when only one forward pass is affordable and no parameter should be chosen. Relation: `Lastde` replaces the
    denominator by the spread of a multiscale entropy.
    Source: arXiv:2306.05540, Eq. 1.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"rank"})

    def statistic(self, reading: TokenScores) -> float:
        assert reading.rank is not None
        log_rank = float(reading.rank.log().mean())
        return -float(reading.log_likelihood.mean()) / log_rank if log_rank else float("inf")

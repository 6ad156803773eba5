"""Lastde and Lastde++ (Xu et al., 2024, arXiv:2410.06072): the log-probabilities of a text read as a time series.

Knows: sequences of token log-probabilities. Does not know: models, tokenizers, batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from broadsheet.detect.base import OnePassDetector, standard_score
from broadsheet.detect.reading import Need, TokenScores

Aggregate = Literal["std", "range", "2norm", "exprange", "expstd"]


def multiscale_diversity_entropy(series: Tensor, *, window: int, bins: int, scales: int) -> Tensor:
    """How varied the local shapes of each series are, at every time scale (Sec. 3.1, Eq. 2–8).

    Args:
        series: (n,) or (n, K) real values; K series are worked in one pass.
        window: s, the length of an orbit.
        bins: ε, equal bins over [−1, 1].
        scales: τ', the number of scales; scale τ is a moving average over τ values, stride 1.

    Returns:
        (scales,) or (scales, K) float64 in [0, 1]: 0 when all neighbouring orbits are equally similar.

    Raises:
        ValueError: a parameter is out of range, or n < scales + window + 1 (no neighbours at the largest scale).
    """
    if window < 1 or bins < 2 or scales < 1:
        raise ValueError(f"got window={window}, bins={bins}, scales={scales}; expected at least 1, 2 and 1")
    n = len(series)
    if n < scales + window + 1:
        raise ValueError(
            f"got a series of {n} values; expected at least {scales + window + 1} "
            f"for window={window} and scales={scales}"
        )
    columns = series.double().reshape(n, -1)
    running = torch.zeros_like(columns)
    entropies = []
    for scale in range(1, scales + 1):
        running = running[: n - scale + 1] + columns[scale - 1 :]
        entropies.append(_diversity_entropy(running / scale, window, bins))
    return torch.stack(entropies).reshape(scales, *series.shape[1:])


def _diversity_entropy(averages: Tensor, window: int, bins: int) -> Tensor:
    """Eq. 4–8 at one scale: averages (m, K) -> (K,)."""
    m, n_series = averages.shape
    n_orbits = m - window + 1
    # ⟨l_k, l_{k+1}⟩ and ‖l_k‖² are moving sums over `window` products, so no orbit is ever laid out in memory.
    products, squares = averages[:-1] * averages[1:], averages.square()
    dot, norm = products[: n_orbits - 1].clone(), squares[:n_orbits].clone()
    for i in range(1, window):
        dot += products[i : i + n_orbits - 1]
        norm += squares[i : i + n_orbits]
    norm.sqrt_()
    cosine = (dot / (norm[:-1] * norm[1:])).nan_to_num_(nan=1.0).clamp_(-1.0, 1.0)

    # Eq. 6: the last bin is closed on the right. Only the occupied range of bins is counted.
    bin_index = ((cosine + 1.0) * (bins / 2)).long().clamp_(max=bins - 1)
    bin_index -= bin_index.min()
    width = int(bin_index.max()) + 1
    offsets = torch.arange(n_series, device=averages.device) * width
    counts = torch.bincount((bin_index + offsets).flatten(), minlength=n_series * width).reshape(n_series, width)

    # Eq. 7–8. A count is at most the number of cosines: P ln P is looked up, not computed bin by bin.
    shares = torch.linspace(0, 1, n_orbits, dtype=torch.float64, device=averages.device)
    return -torch.special.xlogy(shares, shares)[counts].sum(1) / math.log(bins)


def aggregate(entropies: Tensor, how: Aggregate = "std") -> Tensor:
    """Agg(MDE) over the scales (Eq. 9 and App. D): (scales, ...) -> (...).

    `"std"` is the unbiased standard deviation, as in the authors' code.

    Raises:
        ValueError: an unknown name, or a spread over fewer than two scales.
    """
    if how not in ("2norm",) and len(entropies) < 2:
        raise ValueError(f"got {len(entropies)} scale; {how} over the scales needs at least 2")
    match how:
        case "std":
            return entropies.std(0)
        case "expstd":
            return entropies.std(0).exp()
        case "range":
            return entropies.amax(0) - entropies.amin(0)
        case "exprange":
            return (entropies.amax(0) - entropies.amin(0)).exp()
        case "2norm":
            return entropies.square().sum(0).sqrt()
    raise ValueError(f"got aggregate {how!r}; expected std, range, 2norm, exprange or expstd")


def lastde(log_likelihood: Tensor, *, window: int = 3, bins: int, scales: int = 5, how: Aggregate = "std") -> Tensor:
    """Mean log-likelihood over Agg(MDE) (Eq. 9): (n,) or (n, K) -> () or (K,); negative, higher is more machine-like.

    Where the aggregate is 0 (a constant series) the value is −inf, as in the authors' code.
    """
    spread = aggregate(multiscale_diversity_entropy(log_likelihood, window=window, bins=bins, scales=scales), how)
    return log_likelihood.double().mean(0) / spread


@dataclass
class Lastde(OnePassDetector):
    """Divide how likely a text is by how much the variety of its probability series changes over time scales.

    Use when one forward pass a text is all there is. Prefer `LastdePP` when ten more milliseconds a text are not too
    many: it is the stronger of the two in the paper. Scores of texts of very different lengths are not on one scale,
    because the bins grow with the length: compare equal lengths, or calibrate per length with `fit`. For texts of 30 to
    160 words the paper's best setting is `window=3, bins_per_token=1, scales=10` (Fig. 5).

    Inputs: texts of at least `scales + window + 2` tokens; shorter ones score NaN, and how many is said.
    Relation: the numerator is `Likelihood`; `LRR` divides the same numerator by the mean log-rank.

    Args:
        window: s, orbit length (Table 8: 3).
        bins_per_token: ε / n (Table 8: 10 for open-source generators, 1 for closed ones and short texts).
        scales: τ' (Table 8: 5; 15 for closed-source generators).
        how: Agg; the authors now advise `"expstd"` for closed-source generators.

    Example:
        >>> Lastde().score(["The quick brown fox …", "As an AI language model …"])  # doctest: +SKIP
        array([-36.1, -21.7])

    Source: arXiv:2410.06072, Eq. 2–9; authors' code TrustMedia-zju/Lastde_Detector.
    """

    paper: ClassVar[str] = "lastde"
    beats: ClassVar[str] = "LRR"  # Sec. 4: the best detector of one pass
    # App. D; the authors now advise ExpStd for closed-source generators.
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ExpStd": {"how": "expstd"}}

    window: int = 3
    bins_per_token: float = 10
    scales: int = 5
    how: Aggregate = "std"

    @property
    def min_tokens(self) -> int:
        return self.scales + self.window + 1

    def bins(self, n: int) -> int:
        """ε for a text with n scored tokens."""
        return max(2, int(self.bins_per_token * n))

    def of(self, log_likelihood: Tensor) -> Tensor:
        """Lastde of one series (n,) or of K series (n, K) with this detector's parameters."""
        bins = self.bins(len(log_likelihood))
        return lastde(log_likelihood, window=self.window, bins=bins, scales=self.scales, how=self.how)

    def statistic(self, reading: TokenScores) -> float:
        return float(self.of(reading.log_likelihood))


@dataclass
class LastdePP(Lastde):
    """Lastde as a z-score: how far a text's value lies from those of token sequences sampled along it (Lastde++).

    All `n_samples` sequences are drawn from the one forward pass, each position independently given the true prefix,
    and worked as one (n, K) tensor. `reference` draws them; by default the scoring model.

    Use when accuracy matters. Prefer `FastDetectGPT` when even ten milliseconds a text count: it needs no samples.
    Samples whose Lastde is not finite (constant series) are left out. When the samples do not vary the deviation is
    divided by 1 instead of 0.

    Inputs: as `Lastde`.
    Relation: `FastDetectGPT` is the same z-score with the mean log-likelihood in place of Lastde.

    Args:
        window, bins_per_token, scales: s=4, ε=8n, τ'=15 (Sec. 3.2 and every script of the authors; the header of a
            table in their README says 10).
        n_samples: K (Sec. 4: 100).

    Example:
        >>> LastdePP(n_samples=100).score(["…"])  # doctest: +SKIP
        array([2.31])

    Source: arXiv:2410.06072, Sec. 3.2, Eq. 10; sampling as in Fast-DetectGPT, arXiv:2310.05130.
    """

    paper: ClassVar[str] = "lastde"
    title: ClassVar[str] = "Lastde++"
    beats: ClassVar[str] = "Fast-DetectGPT"  # Sec. 4: the best detector that samples
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ExpStd": {"how": "expstd"}, "2-norm": {"how": "2norm"}}
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})

    window: int = 4
    bins_per_token: float = 8
    scales: int = 15
    n_samples: int = 100

    def statistic(self, reading: TokenScores) -> float:
        assert reading.samples is not None
        samples = reading.samples[:, : self.n_samples]
        values = self.of(torch.cat([reading.log_likelihood[:, None], samples], dim=1))
        return standard_score(float(values[0]), values[1:])

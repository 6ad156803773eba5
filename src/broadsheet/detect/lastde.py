"""Lastde and Lastde++ (Xu et al., 2024, arXiv:2410.06072): the log-probabilities of a text read as a time series.

Knows: sequences of token log-probabilities. Does not know: models, tokenizers, batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from broadsheet.console import within
from broadsheet.detect.base import OnePassDetector, standard_score
from broadsheet.detect.reading import Need, TokenScores

Aggregation = Literal["std", "range", "2norm", "exprange", "expstd"]


def multiscale_diversity_entropy(series: Tensor, *, window: int, bins: int, scales: int) -> Tensor:
    """How varied the local shapes of each series are, at every time scale (Sec. 3.1, Eq. 2–8).

    Args:
        series: L, (n,) or (n, K) real values; K series are processed in one pass.
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
    columns = series.double().reshape(n, -1)  # (n, K)
    running = torch.zeros_like(columns)  # Σ_{i<τ} L_{j+i} of the scale reached so far
    entropies = []
    for scale in range(1, scales + 1):
        running = running[: n - scale + 1] + columns[scale - 1 :]
        # Eq. 2: L^τ_j = mean(L_j … L_{j+τ−1}), (n − τ + 1, K)
        entropies.append(_diversity_entropy(running / scale, window, bins))
    return torch.stack(entropies).reshape(scales, *series.shape[1:])


def neighbour_cosines(averages: Tensor, window: int) -> Tensor:
    """d_k = cos(l_k, l_{k+1}) of neighbouring orbits of one scale (Eq. 3–5).

    Args:
        averages: L^τ, (m, K).
        window: s.

    Returns:
        (m − s, K), in [−1, 1]; 1 where an orbit is all zeros.
    """
    n_orbits = len(averages) - window + 1  # Eq. 3: l_i = (L^τ_i … L^τ_{i+s−1}), i = 1 … m − s + 1
    # ⟨l_k, l_{k+1}⟩ and ‖l_k‖² are moving sums over `window` products, so no orbit is materialised.
    products, squares = averages[:-1] * averages[1:], averages.square()
    dot, norm = products[: n_orbits - 1].clone(), squares[:n_orbits].clone()
    for i in range(1, window):
        dot += products[i : i + n_orbits - 1]
        norm += squares[i : i + n_orbits]
    norm.sqrt_()
    # Eq. 4–5: d_k = ⟨l_k, l_{k+1}⟩ / (‖l_k‖ ‖l_{k+1}‖)
    return (dot / (norm[:-1] * norm[1:])).nan_to_num_(nan=1.0).clamp_(-1.0, 1.0)


def _diversity_entropy(averages: Tensor, window: int, bins: int) -> Tensor:
    """DE(s, ε, τ) at one scale: averages L^τ (m, K) -> (K,)."""
    cosine = neighbour_cosines(averages, window)
    n_cosines, n_series = cosine.shape

    # Eq. 6: ε equal bins over [−1, 1], the last one closed on the right. Only the occupied range of bins is counted.
    bin_index = ((cosine + 1.0) * (bins / 2)).long().clamp_(max=bins - 1)
    bin_index -= bin_index.min()
    width = int(bin_index.max()) + 1
    offsets = torch.arange(n_series, device=averages.device) * width
    counts = torch.bincount((bin_index + offsets).flatten(), minlength=n_series * width).reshape(n_series, width)

    # Eq. 7–8: P_i = c_i / Σ c, DE = −(1/ln ε) Σ_i P_i ln P_i. A count c_i is at most the number of cosines, so P ln P
    # is looked up rather than computed for every bin.
    shares = torch.linspace(0, 1, n_cosines + 1, dtype=torch.float64, device=averages.device)
    return -torch.special.xlogy(shares, shares)[counts].sum(1) / math.log(bins)


def aggregate(entropies: Tensor, aggregation: Aggregation = "std") -> Tensor:
    """Agg(MDE) over the scales (Eq. 9 and App. D): (scales, ...) -> (...).

    `"std"` is the unbiased standard deviation, as in the authors' code.

    Raises:
        ValueError: an unknown name, or a spread over fewer than two scales.
    """
    if aggregation != "2norm" and len(entropies) < 2:
        raise ValueError(f"got {len(entropies)} scale; {aggregation} over the scales needs at least 2")
    match aggregation:
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
    raise ValueError(f"got aggregation {aggregation!r}; expected one of {', '.join(get_args(Aggregation))}")


@dataclass
class Lastde(OnePassDetector):
    """Divide how likely a text is by how much the variety of its probability series changes over time scales.

    Use when only one forward pass per text is affordable. Prefer `LastdePP` if ten more milliseconds per text are
    acceptable: it is the stronger of the two in the paper. Scores of texts of very different lengths are not on one
    scale, because the bins grow with the length: compare equal lengths, or calibrate per length with `fit`. For texts
    of 30 to 160 words the paper's best setting is `window=3, bins_per_token=1, scales=10` (Fig. 5).

    Inputs: texts of at least `scales + window + 2` tokens; shorter ones score NaN, and their number is reported.
    Relation: the numerator is `Likelihood`; `LRR` divides the same numerator by the mean log-rank.

    Args:
        window: s, orbit length (Table 8: 3).
        bins_per_token: ε / n (Table 8: 10 for open-source generators, 1 for closed ones and short texts).
        scales: τ' (Table 8: 5; 15 for closed-source generators).
        aggregation: Agg (Eq. 9: "std"; App. D: "range", "2norm", "exprange", "expstd"); the authors now advise
            `"expstd"` for closed-source generators.

    Example:
        >>> from broadsheet.detect import Lastde
        >>> Lastde().score(["The cat came in soaked, and slept on my one clean shirt.",
        ...                 "Cats are popular pets that provide companionship."])  # doctest: +SKIP
        array([-21.7, -36.1])

    Source: arXiv:2410.06072, Eq. 2–9; authors' code TrustMedia-zju/Lastde_Detector.
    """

    paper: ClassVar[str] = "lastde"
    beats: ClassVar[str] = "LRR"  # Sec. 4: the best detector of one pass
    # Sec. 4, averages over 12 models: white-box 95.89 and 90.80, black-box 86.38 and 80.45.
    beats_by: ClassVar[tuple[float | None, float | None]] = (0.0509, 0.0593)
    # App. D; the authors now advise ExpStd for closed-source generators.
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ExpStd": {"aggregation": "expstd"}}

    window: int = 3
    bins_per_token: float = 10
    scales: int = 5
    aggregation: Aggregation = "std"

    def __post_init__(self) -> None:
        within(self, seed=(0, None), window=(1, None), bins_per_token=(0, None), scales=(1, None))

    @property
    def min_tokens(self) -> int:
        return self.scales + self.window + 1

    def bins(self, n: int) -> int:
        """ε for a text with n scored tokens."""
        return max(2, int(self.bins_per_token * n))

    def score_series(self, log_likelihood: Tensor) -> Tensor:
        """Lastde of one series (n,) -> (), or of K series (n, K) -> (K,): negative, higher is more machine-like.

        Where the aggregate is 0 (a constant series) the value is −inf, as in the authors' code.
        """
        entropies = multiscale_diversity_entropy(
            log_likelihood, window=self.window, bins=self.bins(len(log_likelihood)), scales=self.scales
        )
        # Eq. 9: Lastde = mean(L) / Agg(MDE)
        return log_likelihood.double().mean(0) / aggregate(entropies, self.aggregation)

    def statistic(self, reading: TokenScores) -> float:
        return float(self.score_series(reading.log_likelihood))


@dataclass
class LastdePP(Lastde):
    """Lastde as a z-score: how far a text's value lies from those of token sequences sampled along it (Lastde++).

    All `n_samples` sequences are drawn from the one forward pass, each position independently given the true prefix,
    and processed as one (n, K) tensor. They are drawn from `reference`, by default the scoring model.

    Use when accuracy matters. Prefer `FastDetectGPT` when even ten milliseconds per text count: it needs no samples.
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
    # Sec. 4, averages over 12 models: white-box 98.85 and 97.82, black-box 91.47 and 85.68.
    beats_by: ClassVar[tuple[float | None, float | None]] = (0.0103, 0.0579)
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ExpStd": {"aggregation": "expstd"},
        "2-norm": {"aggregation": "2norm"},
    }
    needs: ClassVar[frozenset[Need]] = frozenset({"samples"})

    window: int = 4
    bins_per_token: float = 8
    scales: int = 15
    n_samples: int = 100

    def __post_init__(self) -> None:
        within(self, seed=(0, None), window=(1, None), bins_per_token=(0, None), scales=(1, None), n_samples=(1, None))

    def statistic(self, reading: TokenScores) -> float:
        assert reading.samples is not None
        samples = reading.samples[:, : self.n_samples]  # log p of t̃_1 … t̃_K: (n, K)
        values = self.score_series(torch.cat([reading.log_likelihood[:, None], samples], dim=1))  # (1 + K,)
        # Eq. 10: D = (Lastde(x) − mean_k Lastde(t̃_k)) / std_k Lastde(t̃_k), unbiased std
        return standard_score(float(values[0]), values[1:])

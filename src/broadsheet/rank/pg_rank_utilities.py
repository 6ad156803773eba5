"""What PG-RANK (arXiv:2310.04407) raises: nDCG, MRR, or any function of a ranking.

Knows: rankings (batch, samples, n), labels and masks (batch, n). Does not know: scores, probabilities, gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from broadsheet.console import InputError


class Utility(Protocol):
    """Δ(r|q), the utility of a ranking. Called without gradient; need not be differentiable.

    `rankings` (batch, samples, n), `labels` (batch, n), `mask` (batch, n) → (batch, samples), in the labels' dtype.
    A utility that is a sum over places may also have `per_place`, with the same arguments → (batch, samples, n); the
    reward-to-go form needs it.
    """

    def __call__(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NDCG:
    """nDCG@k as trec_eval has it: linear gain, discount log2(rank + 1); the ideal is that of the given candidates.

    Args:
        k: places that count; None = all.
        gain: `"linear"`, or `"exponential"` for 2^label − 1 (the same for labels 0 and 1).
    """

    k: int | None = 10
    gain: Literal["linear", "exponential"] = "linear"

    def __call__(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return self.per_place(rankings, labels, mask).sum(-1)

    def per_place(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """What each place adds, (batch, samples, n); zeros where no candidate is relevant."""
        gains = torch.where(mask, labels, 0).clamp(min=0)  # u: (batch, n)
        if self.gain == "exponential":
            gains = 2**gains - 1
        n = labels.shape[-1]
        discount = 1 / torch.log2(torch.arange(n, device=labels.device, dtype=labels.dtype) + 2)
        if self.k is not None:
            discount[self.k :] = 0
        ideal = (gains.sort(-1, descending=True).values * discount).sum(-1)
        scaled = torch.where(ideal[:, None] > 0, gains / ideal.clamp(min=1e-12)[:, None], 0)
        return by_place(scaled, rankings) * discount  # u(r_j) / log2(j + 1) / IDCG: (batch, samples, n)


@dataclass(frozen=True)
class MRR:
    """1 / rank of the first relevant item (label > 0) if it is among the first k, else 0. k None = all."""

    k: int | None = 10

    def __call__(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return self.per_place(rankings, labels, mask).sum(-1)

    def per_place(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """1 / rank at the first relevant place: what a place adds depends only on it and the places before it."""
        relevant = by_place(((labels > 0) & mask).to(labels.dtype), rankings)
        first = relevant * (relevant.cumsum(-1) == 1)
        place = torch.arange(1, labels.shape[-1] + 1, device=labels.device, dtype=labels.dtype)
        return first / place * (1.0 if self.k is None else (place <= self.k).to(labels.dtype))


@dataclass(frozen=True)
class PerRanking:
    """A utility from a plain function: `function(ranking, labels) -> float`, called once per sampled ranking.

    `ranking` lists the indices of a query's real items, best first; `labels` their labels by index.

    Example:
        >>> first_is_short = PerRanking(lambda ranking, labels: float(labels[ranking[0]] > 2))
    """

    function: Callable[[list[int], list[float]], float]

    def __call__(self, rankings: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        values = [
            [self.function(one[: int(size)], row[: int(size)]) for one in sampled]
            for sampled, row, size in zip(rankings.tolist(), labels.tolist(), mask.sum(1), strict=True)
        ]
        return torch.tensor(values, dtype=labels.dtype, device=labels.device)


def utility_named(name: str | Utility) -> Utility:
    """A utility by name: `"ndcg@10"`, `"mrr@5"`, `"ndcg"` (all places); a callable is returned unchanged.

    Raises:
        InputError: neither.
    """
    if not isinstance(name, str):
        if not callable(name):
            raise InputError(f"got utility {name!r}; expected 'ndcg@K', 'mrr@K' or a callable on rankings")
        return name
    kind, _, cut = name.partition("@")
    if kind not in ("ndcg", "mrr") or (cut and (not cut.isdecimal() or int(cut) < 1)) or name.endswith("@"):
        raise InputError(f"got utility {name!r}; expected 'ndcg@K' or 'mrr@K' with K from 1, or a callable on rankings")
    k = int(cut) if cut else None
    return NDCG(k) if kind == "ndcg" else MRR(k)


def by_place(values: Tensor, rankings: Tensor) -> Tensor:
    """The values of items in the order of rankings.

    Args:
        values: (batch, n) or (n,), by item.
        rankings: (batch, samples, n) or (samples, n), item indices, best first.

    Returns:
        Like `rankings`.
    """
    return values.unsqueeze(-2).expand(*rankings.shape[:-1], values.shape[-1]).gather(-1, rankings)

"""Losses that make a list of scores a ranking: RankNet with and without rank weights, LambdaRank, ListNet, softmax.

Knows: scores (batch, n), the rank that each item should have (0 = best, ties allowed), a mask. Does not know: prompts,
tokenizers, where the scores come from. Every loss is a mean over lists of one number per list, so that it does not
depend on how lists are batched or padded; a list without a pair to tell apart gives 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from broadsheet.console import InputError

Kind = Literal["weighted_ranknet", "ranknet", "lambdarank", "listnet", "softmax"]

# λ of the authors' code; "softmax" is ours, a cross-entropy like the LM loss beside it.
DEFAULT_WEIGHTS: dict[str, float] = {
    "weighted_ranknet": 10.0,
    "ranknet": 1.0,
    "lambdarank": 1.0,
    "listnet": 0.1,
    "softmax": 1.0,
}
_EPSILON = 1e-10  # the authors' code clamps probabilities and normalisers here


@dataclass(frozen=True)
class FirstLoss:
    """`total` = lm + λ·rank, and its two terms (unweighted) for the log; each a scalar tensor."""

    total: Tensor
    lm: Tensor
    rank: Tensor


def weighted_ranknet(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """RankNet whose pairs weigh 1/(r_i + r_j), r the 1-based label ranks: FIRST's ranking loss.

        L = (1/|P|) Σ_{(i,j): r_i < r_j} log(1 + exp(s_j − s_i)) / (r_i + r_j)

    A plain mean over the pairs P that the labels tell apart (n(n−1)/2 without ties), not a weighted mean. Mistakes
    among the best cost most: swapping the two best of two equal gaps costs more than swapping the two worst.

    Args:
        scores: (batch, n) or (n,); computed in float32 at least.
        ranks: like `scores`; 0 = best, equal ranks are not compared.
        mask: like `scores`, True where there is an item; what padding holds has no influence.

    Returns:
        A scalar: the mean over lists.

    Example:
        >>> float(weighted_ranknet(torch.tensor([1.5, -0.25, 0.75, 2.0]), torch.tensor([1, 3, 0, 2])))
        0.17548771...

    Source: arXiv:2406.15657, the weighted RankNet loss; authors' code gangiswag/llm-reranker.
    """
    scores, ranks, mask = _lists(scores, ranks, mask)
    weight = 1 / (ranks[:, :, None] + ranks[:, None, :] + 2)
    return _over_pairs(softplus(-_differences(scores)) * weight, _pairs(ranks, mask))


def ranknet(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """Unweighted RankNet: the mean over pairs of log(1 + exp(s_worse − s_better)); arguments of `weighted_ranknet`."""
    scores, ranks, mask = _lists(scores, ranks, mask)
    return _over_pairs(softplus(-_differences(scores)), _pairs(ranks, mask))


def lambdarank(
    scores: Tensor, ranks: Tensor, mask: Tensor | None = None, *, k: int | None = None, as_released: bool = False
) -> Tensor:
    """RankNet whose pairs weigh by how far a swap would move nDCG; arguments of `weighted_ranknet`.

    By default: gain n − 1 − rank (linear), |Δgain|·|Δdiscount| / ideal DCG at the *present* places of the two items,
    detached, as LambdaRank is defined. FIRST's released code does something else, kept behind `as_released`: the gains
    are 2^y of the model's own scores handed out in label order, weights by the difference of places (LambdaLoss's
    second bound), base-2 logarithms, and gradient flows through the weights.

    Args:
        k: only pairs of which one stands among the k best count; None = all.
        as_released: the authors' loss, for comparison with their numbers.
    """
    scores, ranks, mask = _lists(scores, ranks, mask)
    places = _places(scores, mask)
    near = torch.ones_like(mask)[:, :, None] & torch.ones_like(mask)[:, None, :]
    if k is not None:
        near = (places[:, :, None] < k) | (places[:, None, :] < k)
    if as_released:
        return _lambda_as_released(scores, ranks, mask, near)
    with torch.no_grad():
        gain = torch.where(mask, mask.sum(1, keepdim=True) - 1 - ranks, 0).clamp(min=0)
        discount = 1 / torch.log2(places + 2.0)
        at_best = 1 / torch.log2(torch.arange(scores.shape[1], device=scores.device) + 2.0)
        cut = scores.shape[1] if k is None else k
        ideal = (gain.sort(1, descending=True).values * at_best)[:, :cut].sum(1).clamp(min=_EPSILON)
        weight = _differences(gain).abs() * _differences(discount).abs() / ideal[:, None, None]
    return _over_pairs(softplus(-_differences(scores)) * weight, _pairs(ranks, mask) & near)


def _lambda_as_released(scores: Tensor, ranks: Tensor, mask: Tensor, near: Tensor) -> Tensor:
    labels = _scores_by_label_order(scores, ranks, mask)
    order = torch.where(mask, scores, -torch.inf).argsort(dim=1, descending=True, stable=True)
    inside = mask.gather(1, order)
    by_place = torch.where(inside, scores.gather(1, order), 0)
    label_by_place = labels.gather(1, order)
    n = scores.shape[1]
    discount = torch.log2(torch.arange(n, device=scores.device, dtype=scores.dtype) + 2)
    best_first = torch.where(mask, labels, -torch.inf).sort(1, descending=True).values.clamp(min=0)
    ideal = ((2**best_first - 1) / discount).sum(1, keepdim=True).clamp(min=_EPSILON)
    gain = (2 ** label_by_place.clamp(min=0) - 1) / ideal
    apart = (torch.arange(n, device=scores.device)[:, None] - torch.arange(n, device=scores.device)).abs()
    delta = (1 / discount[apart - 1] - 1 / discount[apart]).abs().fill_diagonal_(0)
    weight = delta * _differences(gain).abs()
    # log2 of a clamped power of a clamped sigmoid, as there: the clamps leave a lost pair without gradient.
    probability = torch.sigmoid(_differences(by_place)).clamp(min=_EPSILON)
    loss = -torch.log2((probability**weight).clamp(min=_EPSILON))
    pairs = (_differences(label_by_place) > 0) & inside[:, :, None] & inside[:, None, :]
    near = near.gather(1, order[:, :, None].expand(-1, -1, n)).gather(2, order[:, None, :].expand(-1, n, -1))
    return _over_pairs(loss, pairs & near)


def listnet(scores: Tensor, ranks: Tensor, mask: Tensor | None = None, *, as_released: bool = False) -> Tensor:
    """Cross-entropy between two distributions over the list: what the labels say is best, and what the scores say.

    By default the target is softmax(−rank), about 63 % on the best. FIRST's released code takes the softmax of the
    model's own scores handed out in label order (a target that moves with the model, gradient included), kept behind
    `as_released`. Arguments of `weighted_ranknet`.
    """
    scores, ranks, mask = _lists(scores, ranks, mask)
    target = _scores_by_label_order(scores, ranks, mask) if as_released else -ranks
    target = _filled(target, mask).softmax(1)
    chosen = _filled(scores, mask)
    logs = torch.log(chosen.softmax(1) + _EPSILON) if as_released else log_softmax(chosen, 1)
    return -(target * torch.where(mask, logs, 0)).sum(1).mean()


def softmax(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """−log of the probability, among the listed items, of an item of the best rank (ours; for a few relevant items).

    With one relevant item it is the LM loss on the first identifier, normalised over identifiers instead of the whole
    vocabulary; several best items are averaged. Arguments of `weighted_ranknet`.
    """
    scores, ranks, mask = _lists(scores, ranks, mask)
    best = mask & (ranks == torch.where(mask, ranks, torch.inf).min(1, keepdim=True).values)
    useful = mask.any(1) & (best != mask).any(1)
    logs = torch.where(best, log_softmax(_filled(scores, mask), 1), 0)
    return torch.where(useful, -logs.sum(1) / best.sum(1).clamp(min=1), 0).mean()


LOSSES: dict[str, Callable[..., Tensor]] = {
    "weighted_ranknet": weighted_ranknet,
    "ranknet": ranknet,
    "lambdarank": lambdarank,
    "listnet": listnet,
    "softmax": softmax,
}


def check_kind(kind: str) -> None:
    """Raises InputError unless `kind` names one of `LOSSES`."""
    if kind not in LOSSES:
        raise InputError(f"got ranking loss {kind!r}; expected one of {', '.join(LOSSES)}")


def first_loss(
    scores: Tensor,
    ranks: Tensor,
    mask: Tensor | None = None,
    *,
    lm_loss: Tensor | None = None,
    kind: Kind = "weighted_ranknet",
    weight: float | None = None,
) -> FirstLoss:
    """FIRST's joint loss L = L_LM + λ·L_rank; plain fine-tuning at λ = 0, the ranking alone without `lm_loss`.

    Args:
        scores, ranks, mask: as for `weighted_ranknet`; the scores are the logits of the identifiers after "[".
        lm_loss: a scalar, the mean negative log-likelihood of the target's tokens; None leaves that term out.
        kind: the ranking loss, a key of `LOSSES`.
        weight: λ; by default the authors' for the kind (weighted RankNet 10, RankNet and LambdaRank 1, ListNet 0.1).

    Raises:
        InputError: no such loss.
    """
    check_kind(kind)
    factor = DEFAULT_WEIGHTS[kind] if weight is None else weight
    rank = LOSSES[kind](scores, ranks, mask)
    lm = rank.new_zeros(()) if lm_loss is None else lm_loss
    return FirstLoss(lm + factor * rank, lm, rank)


def ranks_from_labels(labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Relevance labels (batch, n), higher = better, to ranks: how many items are better; equal labels share a rank."""
    inside = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    better = (labels[..., None, :] > labels[..., :, None]) & inside[..., None, :]
    return better.sum(-1)


def _lists(scores: Tensor, ranks: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """All three as (batch, n), float32 at least, with zeros in the padding: -inf there would become NaN in gradients.

    Raises:
        InputError: the shapes differ.
    """
    if scores.shape != ranks.shape or scores.dim() not in (1, 2) or (mask is not None and mask.shape != scores.shape):
        raise InputError(
            f"got scores {tuple(scores.shape)}, ranks {tuple(ranks.shape)}"
            + ("" if mask is None else f", mask {tuple(mask.shape)}")
            + "; expected one shape, (batch, n) or (n,)"
        )
    if scores.dim() == 1:
        scores, ranks, mask = scores[None], ranks[None], None if mask is None else mask[None]
    inside = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return torch.where(inside, scores, 0), torch.where(inside, ranks, 0).to(scores.dtype), inside


def _filled(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores whose padding gets no probability; finite, so that a row of nothing but padding gives no NaN."""
    return torch.where(mask, scores, torch.finfo(scores.dtype).min)


def _differences(values: Tensor) -> Tensor:
    """(batch, n, n): value i minus value j."""
    return values[:, :, None] - values[:, None, :]


def _pairs(ranks: Tensor, mask: Tensor) -> Tensor:
    """(batch, n, n): True at (i, j) where both are there and i should stand above j."""
    return (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]


def _over_pairs(losses: Tensor, pairs: Tensor) -> Tensor:
    each = torch.where(pairs, losses, 0).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
    return each.mean()


def _places(scores: Tensor, mask: Tensor) -> Tensor:
    """The 0-based place of each item by score; ties in incoming order, padding last."""
    order = torch.where(mask, scores.detach(), -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order.argsort(1).to(scores.dtype)


def _scores_by_label_order(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """The authors' labels: the list's own scores, best first, handed to the items in the order of their label ranks."""
    sorted_scores = torch.where(mask, scores, -torch.inf).sort(1, descending=True).values
    place = torch.where(mask, ranks, torch.inf).argsort(dim=1, stable=True).argsort(1)
    return torch.where(mask, sorted_scores.gather(1, place), 0)

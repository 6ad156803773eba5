"""Losses that make a list of scores a ranking, beside the papers' own: RankNet, LambdaRank, ListNet, softmax.

Knows: scores (batch, n), the rank that each item should have (0 = best, ties allowed), a mask. Does not know: prompts,
tokenizers, where the scores come from. Every loss is a mean over lists of one number per list, so that it does not
depend on how lists are batched or padded; a list without a pair to tell apart gives 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from broadsheet.console import InputError

_EPSILON = 1e-10  # FIRST's code clamps probabilities and normalisers here


def ranknet(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over pairs of log(1 + exp(s_worse − s_better)), for the pairs that the labels tell apart.

    Args:
        scores: (batch, n) or (n,); computed in float32 at least.
        ranks: like `scores`; 0 = best, equal ranks are not compared.
        mask: like `scores`, True where there is an item; what padding holds has no influence.

    Returns:
        A scalar: the mean over lists.

    Raises:
        InputError: the shapes differ.
    """
    scores, ranks, mask = as_lists(scores, ranks, mask)
    return mean_over_pairs(softplus(-differences(scores)), ordered_pairs(ranks, mask))


def lambdarank(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """RankNet whose pairs weigh by how far a swap would move nDCG; arguments of `ranknet`.

    Gain n − 1 − rank (linear); |Δgain|·|Δdiscount| / ideal DCG at the *present* places of the two items, detached, as
    LambdaRank is defined. `lambdarank_authors` is what FIRST's released code computes under that name.
    """
    scores, ranks, mask = as_lists(scores, ranks, mask)
    with torch.no_grad():
        gain = torch.where(mask, mask.sum(1, keepdim=True) - 1 - ranks, 0).clamp(min=0)
        discount = 1 / torch.log2(_places(scores, mask) + 2.0)
        at_best = 1 / torch.log2(torch.arange(scores.shape[1], device=scores.device) + 2.0)
        ideal = (gain.sort(1, descending=True).values * at_best).sum(1).clamp(min=_EPSILON)
        weight = differences(gain).abs() * differences(discount).abs() / ideal[:, None, None]  # (batch, n, n)
    return mean_over_pairs(softplus(-differences(scores)) * weight, ordered_pairs(ranks, mask))


def lambdarank_authors(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """LambdaRank as FIRST's released code has it, for comparison with its numbers; arguments of `ranknet`.

    The gains are 2^y of the model's own scores handed out in label order, pairs weigh by the difference of places
    (LambdaLoss's second bound), logarithms have base 2, and gradient flows through the weights.

    Source: gangiswag/llm-reranker, ndcgLoss2 weights with sigma 1.
    """
    scores, ranks, mask = as_lists(scores, ranks, mask)
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
    weight = delta * differences(gain).abs()
    # log2 of a clamped power of a clamped sigmoid, as there: the clamps leave a lost pair without gradient.
    probability = torch.sigmoid(differences(by_place)).clamp(min=_EPSILON)
    loss = -torch.log2((probability**weight).clamp(min=_EPSILON))
    pairs = (differences(label_by_place) > 0) & inside[:, :, None] & inside[:, None, :]
    return mean_over_pairs(loss, pairs)


def listnet(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy between softmax(−rank), about 63 % on the best, and softmax(scores); arguments of `ranknet`."""
    scores, ranks, mask = as_lists(scores, ranks, mask)
    target = _filled(-ranks, mask).softmax(1)
    return -(target * torch.where(mask, log_softmax(_filled(scores, mask), 1), 0)).sum(1).mean()


def listnet_authors(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """ListNet as FIRST's released code has it; arguments of `ranknet`.

    The target is the softmax of the model's own scores handed out in label order: it moves with the model, gradient
    included.

    Source: gangiswag/llm-reranker.
    """
    scores, ranks, mask = as_lists(scores, ranks, mask)
    target = _filled(_scores_by_label_order(scores, ranks, mask), mask).softmax(1)
    logs = torch.log(_filled(scores, mask).softmax(1) + _EPSILON)
    return -(target * torch.where(mask, logs, 0)).sum(1).mean()


def softmax(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """−log of the probability, among the listed items, of an item of the best rank (ours; for a few relevant items).

    With one relevant item it is the LM loss on the first identifier, normalised over identifiers instead of the whole
    vocabulary; several best items are averaged. Arguments of `ranknet`.
    """
    scores, ranks, mask = as_lists(scores, ranks, mask)
    best = mask & (ranks == torch.where(mask, ranks, torch.inf).min(1, keepdim=True).values)
    useful = mask.any(1) & (best != mask).any(1)
    logs = torch.where(best, log_softmax(_filled(scores, mask), 1), 0)
    return torch.where(useful, -logs.sum(1) / best.sum(1).clamp(min=1), 0).mean()


def weighted_nll(nll: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Σ_t w_t·nll_t / number of tokens, for each written ranking; the mean over lists.

    Args:
        nll: (batch, length), −log P(y_t | x, y_<t), in float32 at least.
        weights: w_t, (batch, length): 1 in FIRST's L_LM, by rank in FullRank's importance-aware loss.
        mask: (batch, length), True where there is a token of the ranking.
    """
    nll = nll if nll.dtype == torch.float64 else nll.float()
    total = torch.where(mask, nll * weights.to(nll), 0).sum(-1)  # Σ_t w_t·nll_t: (batch,)
    return (total / mask.sum(-1).clamp(min=1)).mean()


def as_lists(scores: Tensor, ranks: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
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


def differences(values: Tensor) -> Tensor:
    """(batch, n, n): value i minus value j."""
    return values[:, :, None] - values[:, None, :]


def ordered_pairs(ranks: Tensor, mask: Tensor) -> Tensor:
    """(batch, n, n): True at (i, j) where both items are real and the label ranks i above j."""
    return (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]


def mean_over_pairs(losses: Tensor, pairs: Tensor) -> Tensor:
    """A scalar: (batch, n, n) losses averaged over the pairs of each list, then over lists; no pair gives 0."""
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

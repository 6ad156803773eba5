"""FIRST's relevance feedback (arXiv:2406.15657, second half): move a dense query vector towards a reranker's order.

Knows: query and passage vectors, a reranker's scores and order, dot products. Does not know: encoders, rerankers,
texts. Any vectors will do whose dot product is the first stage's score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from broadsheet.console import InputError
from broadsheet.rank.first import weighted_ranknet


@dataclass(frozen=True)
class RelevanceFeedback:
    """Move query vectors until they score the reranked passages as the reranker did, then search again with them.

    Use when: a dense first stage misses passages that are like those a reranker puts first: the second search finds
        more of them (recall), for one more search and no further pass of a model.
    Inputs: per query its vector, the vectors of the reranked passages (about 100), and a cross-encoder's scores, a
        listwise reranker's order of them, or both. Scores are distilled first, then the order is learnt.
    Relation: gradient-based pseudo-relevance feedback; Rocchio averages vectors instead.

    Parameters:
        score_steps, score_rate: Adam steps on KL(softmax of the target scores ‖ softmax of ours), and their rate.
        order_steps, order_rate: then on the weighted RankNet loss to the order.
        The passages' scores are (c/2)·q·p with c = spread of the target scores / spread of the first scores (spread =
        maximum − minimum, per query), so that both softmaxes are equally sharp; c = 1 where there are no scores.

    Raises:
        InputError: a parameter is out of range; shapes do not belong together; neither scores nor an order.

    Example:
        >>> feedback = RelevanceFeedback()
        >>> query, passages = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> moved = feedback.refine(query, passages, order=[[1, 0]])
        >>> float(moved[0, 1]) > 0
        True

    Source: arXiv:2406.15657; the rates and steps are the authors' code's (gangiswag/llm-reranker).
    """

    score_steps: int = 100
    score_rate: float = 0.005
    order_steps: int = 20
    order_rate: float = 0.001

    def __post_init__(self) -> None:
        for name in ("score_steps", "order_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"got {name} {getattr(self, name)}; expected 0 or more")
        for name in ("score_rate", "order_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"got {name} {getattr(self, name)}; expected a number above 0")

    def refine(
        self,
        queries: Tensor,
        passages: Tensor,
        *,
        scores: Tensor | None = None,
        order: Sequence[Sequence[int]] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """New query vectors; the passages' stay. Each query's result does not depend on the others in the batch.

        Args:
            queries: (batch, dimension).
            passages: (batch, n, dimension), the passages that were reranked for each query.
            scores: (batch, n), a cross-encoder's; higher = better.
            order: for each query indices of its passages, best first; those not named are not compared.
            mask: (batch, n), True where there is a passage.

        Returns:
            (batch, dimension), float32 at least.
        """
        inside = _check(queries, passages, scores, mask)
        if scores is None and order is None:
            raise InputError("got neither scores nor an order; expected a reranker's scores, its order, or both")
        wide = torch.float64 if queries.dtype == torch.float64 else torch.float32
        vectors = passages.detach().to(wide)
        moved = queries.detach().to(wide).clone().requires_grad_()
        with torch.enable_grad():
            factor = torch.full((len(queries), 1), 0.5, dtype=wide, device=queries.device)
            if scores is not None:
                target = torch.where(inside, scores.to(wide), 0)
                with torch.no_grad():
                    first = _dot(moved, vectors)  # q·p before any step: (batch, n)
                    # c/2, c = spread(target) / spread(initial)
                    factor = factor * _spread(target, inside) / _spread(first, inside).clamp(min=1e-9)
                wanted = log_softmax(torch.where(inside, target, torch.finfo(wide).min), 1)

                def distil() -> Tensor:
                    found = log_softmax(torch.where(inside, factor * _dot(moved, vectors), torch.finfo(wide).min), 1)
                    # KL(softmax of the target ‖ softmax of (c/2)·q·p), summed over queries
                    return torch.where(inside, wanted.exp() * (wanted - found), 0).sum()

                _descend(moved, distil, self.score_steps, self.score_rate)
            if order is not None:
                ranks, named = _ranks(order, inside)

                def follow() -> Tensor:
                    # L_rank of (c/2)·q·p. Summed over queries, so that Adam moves each as it would alone.
                    return len(queries) * weighted_ranknet(factor * _dot(moved, vectors), ranks, named)

                _descend(moved, follow, self.order_steps, self.order_rate)
        return moved.detach()


def search(queries: Tensor, passages: Tensor, k: int, chunk: int = 65_536) -> tuple[Tensor, Tensor]:
    """The `k` passages of highest dot product: scores (batch, k), falling, and indices (batch, k).

    Exhaustive, `chunk` passages at a time. Equal scores keep the passages' order.

    Args:
        queries: (batch, dimension).
        passages: (count, dimension).
    """
    if queries.dim() != 2 or passages.dim() != 2 or queries.shape[1] != passages.shape[1] or k < 1:
        raise InputError(
            f"got queries {tuple(queries.shape)}, passages {tuple(passages.shape)} and k {k}; expected (batch, d),"
            " (count, d) and 1 or more"
        )
    best = queries.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for first in range(0, len(passages), chunk):
        found = queries @ passages[first : first + chunk].T
        indices = torch.arange(first, first + found.shape[1], device=queries.device).expand_as(found)
        best, where = torch.cat([best, found], 1), torch.cat([where, indices], 1)
        best, order = best.sort(dim=1, descending=True, stable=True)
        best, where = best[:, :k], where.gather(1, order)[:, :k]
    return best, where


def _descend(vectors: Tensor, loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.Adam([vectors], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def _dot(queries: Tensor, passages: Tensor) -> Tensor:
    return torch.einsum("bd,bnd->bn", queries, passages)


def _spread(values: Tensor, inside: Tensor) -> Tensor:
    """(batch, 1): maximum − minimum of what is inside; 0 where nothing is."""
    top = torch.where(inside, values, -torch.inf).amax(1, keepdim=True)
    low = torch.where(inside, values, torch.inf).amin(1, keepdim=True)
    return (top - low).clamp(min=0).nan_to_num(0.0)


def _ranks(order: Sequence[Sequence[int]], inside: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, n) ranks of the named passages, and which are named."""
    if len(order) != len(inside):
        raise InputError(f"got {len(order)} orders for {len(inside)} queries; expected one each")
    ranks = torch.zeros(inside.shape, dtype=torch.long)
    named = torch.zeros(inside.shape, dtype=torch.bool)
    known = inside.cpu()
    for row, places in enumerate(order):
        for rank, place in enumerate(places):
            if not 0 <= place < inside.shape[1] or not known[row, place] or named[row, place]:
                raise InputError(
                    f"order {row + 1} names passage {place} twice, or it does not exist; expected indices below"
                    f" {int(known[row].sum())}, each once"
                )
            ranks[row, place], named[row, place] = rank, True
    return ranks.to(inside.device), named.to(inside.device)


def _check(queries: Tensor, passages: Tensor, scores: Tensor | None, mask: Tensor | None) -> Tensor:
    """The mask, or all True. Raises InputError for shapes that do not belong together."""
    fits = queries.dim() == 2 and passages.dim() == 3
    fits = fits and (passages.shape[0], passages.shape[2]) == tuple(queries.shape)
    shape = passages.shape[:2]
    if not fits or any(given is not None and given.shape != shape for given in (scores, mask)):
        given = {"queries": queries, "passages": passages, "scores": scores, "mask": mask}
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items() if value is not None)
        raise InputError(f"got {shapes}; expected (batch, d), (batch, n, d), and (batch, n) for the others")
    return torch.ones(shape, dtype=torch.bool, device=queries.device) if mask is None else mask.bool()

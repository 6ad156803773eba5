"""Losses that teach a retriever a teacher's grades: stabilised (graded) distillation, plain KL, InfoNCE.

Knows: scores of queries and keys, teacher scores. Does not know: texts, models; `llm_embedder` has the module.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax


def graded_distillation(scores: Tensor, teacher: Tensor, first: int = 0) -> Tensor:
    """Every key in turn is the positive, against its query's lower keys and all keys of other queries.

        L_i = Σ_g w_ig · ( −log softmax_{j ∉ {own keys before g}} S_i )[own key g],   w_i = softmax(teacher_i)

    A ListMLE with weights and in-batch negatives. The teacher's scores are taken as they are, without a temperature: a
    language model's mean log-likelihoods differ little, and their weights are then nearly equal.

    Args:
        scores: (batch, keys), similarity over temperature, with the keys of all queries, query by query.
        teacher: (batch, G), for each query's own keys in their order: the positive, then negatives by falling score.
        first: the place of the first query's first own key; other than 0 where the keys of other processes come first.

    Returns:
        (batch,), each query's loss; a query's is 0 for its last key if there are no others.
    """
    size = teacher.shape[1]
    weights = teacher.to(scores.dtype).softmax(1)
    places = first + size * torch.arange(len(scores), device=scores.device)
    remaining = scores
    total = scores.new_zeros(len(scores))
    for g in range(size):
        total = total + weights[:, g] * cross_entropy(remaining, places + g, reduction="none")
        remaining = remaining.scatter(1, (places + g)[:, None], -torch.inf) if g + 1 < size else remaining
    return total


def kl_distillation(
    scores: Tensor,
    teacher: Tensor,
    first: int = 0,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """KL(teacher ‖ student) over each query's own keys, no others.

    Args:
        scores, teacher, first: see `graded_distillation`.
        student_temperature: beside the one in `scores`.

    Returns:
        (batch,); 0 where the scores are the teacher's but for scale (by the temperatures) and a constant.
    """
    size = teacher.shape[1]
    places = first + size * torch.arange(len(scores), device=scores.device)[:, None]
    own = scores.gather(1, places + torch.arange(size, device=scores.device))
    student = log_softmax(own / student_temperature, 1)
    wanted = log_softmax(teacher.to(scores.dtype) / teacher_temperature, 1)
    return (wanted.exp() * (wanted - student)).sum(1)


def contrastive(scores: Tensor, size: int, first: int = 0) -> Tensor:
    """InfoNCE: each query's first key against all keys. (batch,)."""
    places = first + size * torch.arange(len(scores), device=scores.device)
    return cross_entropy(scores, places, reduction="none")

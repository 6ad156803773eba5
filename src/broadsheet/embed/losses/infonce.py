"""InfoNCE: a query's own passage against all others of the batch.

Knows: vectors of queries and passages, which passages belong to which query. Does not know: models, texts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

__all__ = ["cosine_cross_entropy", "info_nce"]


def info_nce(query: Tensor, passages: Tensor, group_size: int = 1, temperature: float = 0.02) -> Tensor:
    """Cross-entropy of each query over ALL passages of the batch, by cosine similarity / τ; mean over queries.

    Equal to sentence-transformers' `MultipleNegativesRankingLoss(scale=1 / temperature)`.

    Args:
        query: (batch, width).
        passages: (batch · group_size, width): for each query its positive, then its hard negatives.
        group_size: passages of a query.
        temperature: τ. The study: 0.02.

    Raises:
        ValueError: the shapes do not match, or τ ≤ 0.

    Source: arXiv:2408.12194, Eq. 1, 4, 5. The printed index of Eq. 4 leaves open which negatives are meant: here every
    other passage of the batch.
    """
    if group_size < 1 or len(passages) != len(query) * group_size:
        raise ValueError(f"got {len(passages)} passages for {len(query)} queries in groups of {group_size}")
    positions = torch.arange(len(query), device=query.device) * group_size
    return cosine_cross_entropy(query, passages, positions, temperature)


def cosine_cross_entropy(
    query: Tensor, passages: Tensor, positives: Tensor, temperature: float, excluded: Tensor | None = None
) -> Tensor:
    """−log softmax of each query's positive by cosine / τ; mean over queries, in float32 at least.

    Args:
        query, passages: (batch, width), (passages, width).
        positives: (batch,) place of each query's positive among the passages.
        excluded: (batch, passages), True for passages that a query is not compared with.
    """
    if not temperature > 0:
        raise ValueError(f"got temperature {temperature}; expected a number above 0")
    if query.dtype in (torch.float16, torch.bfloat16):
        query, passages = query.float(), passages.float()
    with torch.autocast(query.device.type, enabled=False):  # it would round cosines to two digits
        scores = normalize(query, dim=-1) @ normalize(passages, dim=-1).T / temperature
    if excluded is not None:
        scores = scores.masked_fill(excluded, -torch.inf)
    return cross_entropy(scores, positives)

"""NT-Xent over labelled vectors: every vector is pulled to those with its label and pushed from all others.

Knows: a matrix of embeddings and one whole number per row. Does not know: queries, passages, words, models.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def nt_xent(scores: Tensor, labels: Tensor, ignored: Tensor | None = None) -> Tensor:
    """The normalised-temperature cross-entropy over every ordered pair of rows that share a label.

    With s_ij / τ the scores, each pair (i, j), i ≠ j, of one label costs

        ℓ(i, j) = −log( e^{s_ij/τ} / (e^{s_ij/τ} + Σ_{k: label_k ≠ label_i} e^{s_ik/τ}) )

    and the loss is the mean over all such pairs, (i, j) and (j, i) both. The other positives of i are in no denominator
    but their own, so that many positives of one label do not push each other away.

    Args:
        scores: (rows, rows), similarities over temperature.
        labels: (rows,) whole numbers.
        ignored: (rows, rows), True for rows of another label that a row is not compared with.

    Returns:
        A scalar; zero, with a gradient of zero, where no two rows share a label.

    Raises:
        ValueError: the shapes do not match.

    Source: NT-Xent as arXiv:2208.01018 (BabelBERT), arXiv:2408.03402 (ULLME) and pytorch-metric-learning compute it.
    """
    if labels.shape != scores.shape[:1] or scores.shape[0] != scores.shape[-1]:
        raise ValueError(f"got scores {tuple(scores.shape)} for labels {tuple(labels.shape)}; expected (n, n) and (n,)")
    same = labels[:, None] == labels[None, :]
    # log Σ_k over other labels, one a row; a row without any is left with its pair alone: a loss of zero.
    others = scores.masked_fill(same if ignored is None else same | ignored, -torch.inf).logsumexp(dim=1)
    first, second = (same & ~torch.eye(len(labels), dtype=torch.bool, device=same.device)).nonzero(as_tuple=True)
    if not len(first):
        return scores.sum() * 0.0
    pair = scores[first, second]
    return (torch.logaddexp(pair, others[first]) - pair).mean()  # ℓ(i, j)


def cosines(embeddings: Tensor) -> Tensor:
    """(rows, rows) cosines, in float32 at least: half precision would round away what 1/τ magnifies."""
    units = unit_rows(embeddings)
    with torch.autocast(units.device.type, enabled=False):
        return units @ units.T


def minus_distances(embeddings: Tensor) -> Tensor:
    """(rows, rows) minus Euclidean distances of the unit vectors, in float32 at least."""
    units = unit_rows(embeddings)
    with torch.autocast(units.device.type, enabled=False):
        # Not √(2 − 2·cos), which loses half its digits, and its slope, where two rows are nearly the same.
        return -torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist")


def unit_rows(embeddings: Tensor) -> Tensor:
    """(rows, width) of length 1, in float32 at least."""
    wide = embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings
    return normalize(wide, dim=-1)

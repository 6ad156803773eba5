"""NT-Xent over labelled vectors: every vector is pulled to those with its label and pushed from all others.

Knows: a matrix of embeddings and one whole number per row. Does not know: queries, passages, words, models.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Similarity", "csls", "label_ntxent"]

Similarity = Literal["cos", "l2", "csls"]


def label_ntxent(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float = 0.05,
    similarity: Similarity = "cos",
    hard: float | None = None,
) -> Tensor:
    """The normalised-temperature cross-entropy over every ordered pair of rows that share a label.

    With s the similarity of two rows and τ the temperature, each pair (i, j) of one label costs

        −log( e^{s_ij/τ} / (e^{s_ij/τ} + Σ_{k: label_k ≠ label_i} e^{s_ik/τ}) )

    and the loss is the mean over all such pairs, (i, j) and (j, i) both. The other positives of i are in no denominator
    but their own, so that many positives of one label do not push each other away.

    Use when … rows carry labels: synonym sets, or queries and passages pooled into one set (as ULLME does).
    Prefer a multiple-negatives loss when each query has its own list of candidates.

    Args:
        embeddings: (rows, width), of any length.
        labels: (rows,) whole numbers.
        temperature: τ.
        similarity: "cos", "l2" for minus the Euclidean distance of the unit vectors (what ULLME's authors train by), or
            "csls", see `csls`.
        hard: of the rows with another label, count those alone that are at least this similar ("cos", "csls") or at
            most this far ("l2"): the authors' miner has 0.5. None counts all.

    Returns:
        A scalar; zero, with a gradient of zero, where no two rows share a label.

    Raises:
        ValueError: other shapes, a temperature that is not positive, an unknown similarity.

    Example: label_ntxent(vectors, torch.tensor([0, 0, 1, 2]))
    Source: NT-Xent as arXiv:2408.03402 (ULLME) and pytorch-metric-learning compute it.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            "embeddings must be (rows, width) and labels (rows,), got "
            f"{tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    alike = similarities(embeddings, similarity)
    scores = alike / temperature
    same = labels[:, None] == labels[None, :]
    ignored = same
    if hard is not None:
        ignored = same | (alike < (-hard if similarity == "l2" else hard))
    # One log-sum over the other labels per row; a row without any is left with its pair alone: a loss of zero.
    others = scores.masked_fill(ignored, -torch.inf).logsumexp(dim=1)
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=same.device)
    first, second = positive.nonzero(as_tuple=True)
    if not len(first):
        return embeddings.sum() * 0.0
    pair = scores[first, second]
    return (torch.logaddexp(pair, others[first]) - pair).mean()


def similarities(embeddings: Tensor, similarity: Similarity) -> Tensor:
    """(rows, rows) similarities of the rows' unit vectors."""
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity must be one of {get_args(Similarity)}, got {similarity!r}")
    # Half precision, also that of an autocast around us, would round small differences away, and 1/τ magnifies them.
    wide = embeddings.float() if embeddings.dtype in (torch.float16, torch.bfloat16) else embeddings
    units = torch.nn.functional.normalize(wide, dim=-1)
    with torch.autocast(units.device.type, enabled=False):
        if similarity == "l2":
            return _minus_distance(units)
        return csls(units @ units.T) if similarity == "csls" else units @ units.T


def csls(cosines: Tensor) -> Tensor:
    """Cosines of rows with each other, less what each has on average: 2 s_ij − mean_i − mean_j, against hubs.

    A row's mean is over all others (BabelBERT, arXiv:2208.01018, authors' code), not over its k nearest, as CSLS was
    introduced.

    Args:
        cosines: (rows, rows), at least 2.
    """
    count = len(cosines)
    mean = cosines.masked_fill(torch.eye(count, dtype=torch.bool, device=cosines.device), 0).sum(1) / (count - 1)
    return 2 * cosines - mean[:, None] - mean


def _minus_distance(units: Tensor) -> Tensor:
    # Differences one by one: √(2 − 2·cos) loses half its digits, and its slope, where two rows are nearly the same.
    return -torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist")

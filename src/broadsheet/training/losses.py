"""Losses of a causal LM, token by token and sequence by sequence: of the labels, and of a teacher's distribution.

Knows: logits, labels as transformers has them (unshifted, -100 where nothing is asked). Does not know: models, batches'
origin, optimizers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, pad, softmax

from broadsheet.console import InputError

IGNORED = -100


def shifted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the token that comes next: (batch, length, vocabulary) and (batch, length) → a position less each."""
    return logits[:, :-1], labels[:, 1:]


def token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """−log p of each next token, in nats, and which of them count.

    Args:
        logits: (batch, length, vocabulary).
        labels: (batch, length), unshifted; `IGNORED` where nothing is asked.

    Returns:
        losses (batch, length − 1), 0 where nothing is asked, and the mask of the others.
    """
    # Labels are shifted, and logits stay as they are: a part of them would be a copy, and its gradient another one.
    targets = pad(labels[:, 1:], (0, 1), value=IGNORED)
    losses = cross_entropy(_wide(logits).flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return losses.view(targets.shape)[:, :-1], targets[:, :-1] != IGNORED


def sequence_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss of each sequence over the tokens that count, and which sequences have any.

    Args:
        logits, labels: as for `token_losses`.

    Returns:
        (batch,) losses, 0 for a sequence without such tokens, and (batch,) a mask of the others.
    """
    losses, counts = token_losses(logits, labels)
    size = counts.sum(1)
    return losses.sum(1) / size.clamp(min=1), size > 0


@dataclass(frozen=True)
class TopK:
    """A teacher's most probable tokens, as they are kept on disk in place of its logits.

    Attributes:
        ids: (batch, length, k) tokens.
        log_probs: (batch, length, k) of them, at temperature 1.
    """

    ids: Tensor
    log_probs: Tensor

    @classmethod
    def of(cls, logits: Tensor, k: int) -> TopK:
        """The k most probable tokens of each position of (batch, length, vocabulary) logits."""
        log_probs, ids = log_softmax(_wide(logits), -1).topk(min(k, logits.shape[-1]), dim=-1)
        return cls(ids, log_probs)

    def __getitem__(self, part: slice | tuple[slice, ...]) -> TopK:
        return TopK(self.ids[part], self.log_probs[part])


def taught_losses(
    logits: Tensor, labels: Tensor, teacher: Tensor | TopK, weight: float = 1.0, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(1 − ω)(−log p of each next token) + ω(−Σ q log p), in nats: of a label, and of what a teacher q expects instead.

    The second part differs from the Kullback–Leibler divergence by the teacher's entropy, which the student cannot
    change. The student p stands at temperature 1. The sum is one cross-entropy, with (1 − ω) label + ω q, so that the
    vocabulary is gone over once.

    Args:
        logits: (batch, length, vocabulary) of the student.
        labels: (batch, length), unshifted; `IGNORED` where nothing is asked.
        teacher: logits of the student's shape, or their `TopK`, among which q is then shared out; no gradient goes
            there.
        weight: ω.
        temperature: that the teacher's logits are divided by: below 1 sharpens.

    Returns:
        losses (batch, length − 1), 0 where nothing is asked, and the mask of the others.

    Raises:
        InputError: the vocabularies differ, or the temperature is not above 0.
    """
    if not temperature > 0:
        raise InputError(f"got a teacher's temperature of {temperature}; expected more than 0")
    if isinstance(teacher, Tensor) and teacher.shape != logits.shape:
        raise InputError(
            f"the teacher's logits are {tuple(teacher.shape)}, the student's {tuple(logits.shape)}; expected the same "
            "tokenizer, vocabulary and tokens"
        )
    wide = _wide(logits)
    targets = pad(labels[:, 1:], (0, 1), value=IGNORED)
    asked, label = targets != IGNORED, targets.clamp(min=0)[..., None]
    if isinstance(teacher, TopK):  # −Σ q log p = −log p(label) + z(label) − Σ q z, since q sums to 1
        losses = cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
        q = softmax(_wide(teacher.log_probs.detach()) / temperature, -1)
        z = wide.gather(-1, torch.cat([teacher.ids, label], -1))
        losses = losses.view_as(targets) + weight * (z[..., -1] - (q * z[..., :-1]).sum(-1))
    else:
        q = weight * softmax(_wide(teacher.detach()) / temperature, -1)
        q.scatter_add_(-1, label, q.new_full(label.shape, 1 - weight))
        losses = cross_entropy(wide.flatten(0, 1), q.flatten(0, 1).to(wide.dtype), reduction="none").view_as(targets)
    return torch.where(asked, losses, 0.0)[:, :-1], asked[:, :-1]


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: a sum over a vocabulary loses too much in 16 bits."""
    return values if values.dtype == torch.float64 else values.float()

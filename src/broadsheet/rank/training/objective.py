"""What a listwise reranker can be trained for: the socket between a batch of lists and the papers' losses.

Knows: what one batch of prompts gave (logits of identifiers, likelihoods of written rankings). Does not know: models,
tokenizers, optimizers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from broadsheet.rank.prompts.prompt import TargetOrder


@dataclass(frozen=True)
class ListReading:
    """What the model said about a batch of lists; n = passages of the longest, length = tokens of the longest target.

    Attributes:
        scores: (batch, n) logits of the identifiers where the first one is written.
        ranks: (batch, n) the rank each passage should have, 0 = best; ties where labels do not tell passages apart.
        relevance: (batch, n) graded labels, higher = better; from a ranking, n − 1 − rank.
        mask: (batch, n) True where there is a passage.
        nll: (batch, length) −log of the probability of each token of the written ranking; None without targets.
        weights: (batch, length) weights of those tokens.
        written: (batch, length) True where there is a token.
        generator: for whatever is sampled; seeded by what the batch holds, so that a resumed run draws the same.
    """

    scores: Tensor
    ranks: Tensor
    relevance: Tensor
    mask: Tensor
    nll: Tensor | None = None
    weights: Tensor | None = None
    written: Tensor | None = None
    generator: torch.Generator | None = None

    def lm_loss(self) -> Tensor:
        """Σ weight·nll / tokens, for each list, then the mean over lists.

        Raises:
            ValueError: the lists were read without targets.
        """
        if self.nll is None or self.weights is None or self.written is None:
            raise ValueError("no targets were read; expected a collator with target=True")
        from broadsheet.rank.training.losses import weighted_nll

        return weighted_nll(self.nll, self.weights, self.written)


class ListLoss(Protocol):
    """A paper's loss on lists, which `training.ListObjective` makes an objective of `broadsheet.training.fit`.

    `wants_target`: the ranking is to be written behind the prompt, for its likelihood. `wants_scores`: the logits of
    identifiers, each of which must then be one token.
    """

    @property
    def wants_target(self) -> bool: ...

    @property
    def wants_scores(self) -> bool: ...

    def token_weights(self, target: TargetOrder) -> list[float]:
        """A weight for each token of the written ranking."""

    def terms(self, reading: ListReading) -> dict[str, Tensor]:
        """Scalars by name; "loss" is what is minimised, the others are logged beside it."""

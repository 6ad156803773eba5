"""FIRST (Reddy et al., 2024, arXiv:2406.15657): rank a window by the logits of its identifiers, and train them to.

Knows: identifier logits, label ranks, the likelihood of a written ranking. Does not know: windows and sweeps (`order`),
prompts (`prompt`), models; scoring is `ListwiseReranker(decode="first_token")`, the losses themselves are in `losses`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from broadsheet.console import InputError
from broadsheet.rank.losses import DEFAULT_WEIGHTS, Kind, check_kind, first_loss

if TYPE_CHECKING:
    from broadsheet.rank.fullrank import FullRank
    from broadsheet.rank.objective import ListReading
    from broadsheet.rank.prompt import TargetOrder


@dataclass(frozen=True)
class FIRST:
    """Train a causal LM so that the logits of "A", "B", … after "[" are a ranking: L = L_LM + λ·L_rank.

    Use when: windows of at most 26 passages are ranked and the time of writing "[C] > [A] > …" hurts. One forward pass
        of the prompt then serves a window; the gain is output tokens only, so it shrinks as passages grow.
    Prefer FullRank when: 100 passages fit the context and are to be read once; PG-RANK after FIRST, to tune for a
        metric.
    Inputs:
        | field       | what                                                                            |
        |-------------|---------------------------------------------------------------------------------|
        | `query`     | text                                                                            |
        | `documents` | texts, or {"title", "text"}, in any order                                       |
        | `ranking`   | indices into `documents`, best first (a teacher's order; unnamed ones are last) |
        | or `labels` | a relevance per document, higher = better; equal ones are not told apart        |
    Relation: with λ = 0 plain fine-tuning on written rankings (RankZephyr). The same pair loss for a pointwise
        cross-encoder is `WeightedRankNetScheme` in sentence-transformers' `LambdaLoss`.

    Parameters:
        kind: the ranking loss: `"weighted_ranknet"` (the paper's), `"ranknet"`, `"lambdarank"`, `"listnet"`, or
            `"softmax"` (ours: how likely, among the identifiers, a best passage is written first).
        weight: λ; None = the authors' for the kind (weighted RankNet 10, RankNet and LambdaRank 1, ListNet 0.1).
        lm: write the ranking behind the prompt and learn it too. Without, only the prompt is read and only one
            position's logits are computed: cheaper, and enough for first-token decoding of a small model.
        importance: weights for the tokens of the written ranking, as FullRank has them; None = all 1.

    Raises:
        InputError: no such loss; a negative λ; neither term.

    Example:
        from broadsheet import models
        from broadsheet.rank import FIRST, ListwiseReranker, fit

        reranker = ListwiseReranker(*models.load("default"))
        rows = [{"query": "sort a list", "documents": ["Return a sorted copy.", "Open a file."], "labels": [1, 0]}]
        fit(reranker, rows, FIRST(), out="reranker", minutes=30)

    Source: arXiv:2406.15657, joint loss with λ = 10; authors' code gangiswag/llm-reranker, whose released script trains
    LambdaRank instead (`kind="lambdarank"`).
    """

    kind: Kind = "weighted_ranknet"
    weight: float | None = None
    lm: bool = True
    importance: FullRank | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if self.weight is not None and not self.weight >= 0:
            raise InputError(f"got weight {self.weight}; expected λ of 0 or more")
        if not self.lm and self.weight == 0:
            raise InputError("got lm=False and weight=0; expected at least one of the two losses")

    @property
    def factor(self) -> float:
        """λ."""
        return DEFAULT_WEIGHTS[self.kind] if self.weight is None else self.weight

    @property
    def wants_target(self) -> bool:
        return self.lm

    @property
    def wants_scores(self) -> bool:
        return self.factor > 0

    def token_weights(self, target: TargetOrder) -> list[float]:
        return self.importance.token_weights(target) if self.importance else [1.0] * len(target.ids)

    def terms(self, reading: ListReading) -> dict[str, Tensor]:
        """`loss` = lm + λ·rank, and the terms `lm` and `rank` as they are before weighting."""
        lm = reading.lm_loss() if self.lm else None
        found = first_loss(reading.scores, reading.ranks, reading.mask, lm_loss=lm, kind=self.kind, weight=self.weight)
        terms = {"loss": found.total, "rank": found.rank}
        return terms | {"lm": found.lm} if self.lm else terms


class WeightedRankNetScheme(nn.Module):
    """FIRST's pair weights 1/(r_i + r_j) as a weighting scheme for sentence-transformers' `LambdaLoss`.

    The ranks are those of the labels, from 1, equal labels sharing one; labels must not be negative (`LambdaLoss`
    raises those to 0). With `reduction_log="natural"` the loss is `weighted_ranknet`'s for a batch of one list.

    Example:
        from sentence_transformers.cross_encoder import CrossEncoder, losses
        loss = losses.LambdaLoss(model, weighting_scheme=WeightedRankNetScheme(), reduction_log="natural")
    """

    def forward(self, gain: Tensor, discount: Tensor, true_sorted: Tensor) -> Tensor:
        """(batch, n, n) weights from the labels in order of the scores; `gain` and `discount` are not used."""
        ranks = 1 + (true_sorted[:, None, :] > true_sorted[:, :, None]).sum(-1)
        return 1 / (ranks[:, :, None] + ranks[:, None, :]).to(true_sorted.dtype)

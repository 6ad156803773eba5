"""FIRST (Reddy et al., 2024, arXiv:2406.15657): rank a window by the logits of its identifiers, and train them for it.

Knows: prompts as token ids, identifier logits, label ranks, the likelihood of a written ranking. Does not know: windows
and sweeps (`order`), how prompts are worded (`prompt`). The paper's second half, relevance feedback to a dense
retriever, is in `first_feedback`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import softplus

from broadsheet.console import InputError
from broadsheet.rank.prompts.decoding import read_next
from broadsheet.rank.training import losses
from broadsheet.rank.training.losses import as_lists, differences, mean_over_pairs, ordered_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from broadsheet.rank.prompts.prompt import TargetOrder, TokenWeights
    from broadsheet.rank.training.objective import ListReading

Kind = Literal[
    "weighted_ranknet", "ranknet", "lambdarank", "listnet", "softmax", "lambdarank_authors", "listnet_authors"
]


def first_token(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    opening: list[int],
    identifiers: Sequence[Sequence[int]],
    *,
    batch_tokens: int | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> list[list[float]]:
    """Single-token decoding: s_i, the logit of identifier i as the next token after "[", for each window.

    Sorting a window by these logits ranks it. The whole vocabulary's logits are computed, so no identifier is ever
    missing; the authors' serving engine returns the 30 most likely tokens and appends the others in incoming order.

    Args:
        model: in eval mode.
        prompts: token ids of each window's prompt.
        opening: token ids of "[", which opens the answer.
        identifiers: for each prompt, the token ids of "A", "B", … without a leading space.
        batch_tokens, done: as in `decoding.read_next`.

    Returns:
        Per prompt, one logit per identifier.

    Raises:
        InputError: a logit is NaN.

    Source: arXiv:2406.15657, single token decoding.
    """
    opened = [prompt + opening for prompt in prompts]
    return read_next(model, opened, identifiers, batch_tokens=batch_tokens, done=done)  # s_i = logits[-1, id_i]


def weighted_ranknet(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """RankNet whose pairs weigh 1/(r_i + r_j), r the 1-based label ranks: FIRST's ranking loss.

        L_rank = (1/|P|) Σ_{(i,j): r_i < r_j} log(1 + exp(s_j − s_i)) / (r_i + r_j)

    A plain mean over the pairs P that the labels tell apart (n(n−1)/2 without ties), not a weighted mean. Mistakes
    among the best cost most: of two equal gaps, swapping the two best costs more than swapping the two worst.

    Args, Returns, Raises: as `losses.ranknet`.

    Example:
        >>> float(weighted_ranknet(torch.tensor([1.5, -0.25, 0.75, 2.0]), torch.tensor([1, 3, 0, 2])))
        0.17548770...

    Source: arXiv:2406.15657, the weighted RankNet loss; authors' code gangiswag/llm-reranker.
    """
    scores, ranks, mask = as_lists(scores, ranks, mask)  # s_i, r_i − 1: (batch, n)
    weight = 1 / (ranks[:, :, None] + ranks[:, None, :] + 2)  # w_ij = 1/(r_i + r_j): (batch, n, n)
    pair_loss = weight * softplus(-differences(scores))  # w_ij · log(1 + exp(−(s_i − s_j)))
    return mean_over_pairs(pair_loss, ordered_pairs(ranks, mask))  # (1/|P|) Σ over (i, j) with r_i < r_j


LOSSES: dict[str, Callable[..., Tensor]] = {
    "weighted_ranknet": weighted_ranknet,
    "ranknet": losses.ranknet,
    "lambdarank": losses.lambdarank,
    "listnet": losses.listnet,
    "softmax": losses.softmax,
    "lambdarank_authors": losses.lambdarank_authors,
    "listnet_authors": losses.listnet_authors,
}
# λ of the authors' code; "softmax" is ours, a cross-entropy like the LM loss beside it.
DEFAULT_WEIGHTS: dict[str, float] = {
    "weighted_ranknet": 10.0,
    "ranknet": 1.0,
    "lambdarank": 1.0,
    "lambdarank_authors": 1.0,
    "listnet": 0.1,
    "listnet_authors": 0.1,
    "softmax": 1.0,
}


@dataclass(frozen=True)
class FIRST:
    """Train a causal LM so that the logits of "A", "B", … after "[" are a ranking: L = L_LM + λ·L_rank.

    Use when: windows of at most 26 passages are ranked and writing "[C] > [A] > …" takes too long. One forward pass of
        the prompt then ranks a window; only output tokens are saved, so the gain shrinks as passages grow.
    Prefer FullRank when: 100 passages fit the context and each should be read once. Use PG-RANK after FIRST, to tune
        for a metric.
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
        kind: the ranking loss: `"weighted_ranknet"` (the paper's), `"ranknet"`, `"lambdarank"`, `"listnet"`;
            `"lambdarank_authors"`, `"listnet_authors"` (what the released code computes under those names); or
            `"softmax"` (ours: how likely, among the identifiers, a best passage is written first).
        weight: λ; None = the authors' for the kind (weighted RankNet 10, RankNet and LambdaRank 1, ListNet 0.1).
        lm: append the ranking to the prompt and learn to write it too. Without it only the prompt is read and one
            position's logits are computed: cheaper, and enough for first-token decoding of a small model.
        importance: weights for the tokens of the written ranking, such as `FullRank()`; None = all 1.

    Raises:
        InputError: no such loss; a negative λ; neither term.

    Example:
        from broadsheet import models
        from broadsheet.rank import FIRST, ListwiseReranker, fit

        reranker = ListwiseReranker(*models.load("default"))
        rows = [{"query": "sort a list", "documents": ["Return a sorted copy.", "Open a file."], "labels": [1, 0]}]
        fit(reranker, rows, FIRST(), out="reranker", minutes=30)

    Source: arXiv:2406.15657, joint loss with λ = 10; authors' code gangiswag/llm-reranker, whose released script trains
    LambdaRank instead (`kind="lambdarank_authors"`).
    """

    paper: ClassVar[str] = "first"

    kind: Kind = "weighted_ranknet"
    weight: float | None = None
    lm: bool = True
    importance: TokenWeights | None = None

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise InputError(f"got ranking loss {self.kind!r}; expected one of {', '.join(LOSSES)}")
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

    def rank_loss(self, scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
        """L_rank of identifier logits and label ranks, both (batch, n), 0 = best: a scalar, before λ."""
        return LOSSES[self.kind](scores, ranks, mask)

    def terms(self, reading: ListReading) -> dict[str, Tensor]:
        """`loss` = L_LM + λ·L_rank, and the terms `lm` and `rank` before weighting."""
        rank = self.rank_loss(reading.scores, reading.ranks, reading.mask)
        if not self.lm:
            return {"loss": self.factor * rank, "rank": rank}
        lm = reading.lm_loss()  # L_LM: mean NLL of the target permutation's tokens and end of text
        return {"loss": lm + self.factor * rank, "rank": rank, "lm": lm}  # L = L_LM + λ·L_rank


class WeightedRankNetScheme(nn.Module):
    """FIRST's pair weights 1/(r_i + r_j) as a weighting scheme for sentence-transformers' `LambdaLoss`.

    The ranks are those of the labels, from 1, and equal labels share one; labels must not be negative (`LambdaLoss`
    raises those to 0). With `reduction_log="natural"` the loss is `weighted_ranknet`'s for a batch of one list.

    Example:
        from sentence_transformers.cross_encoder import CrossEncoder, losses
        loss = losses.LambdaLoss(model, weighting_scheme=WeightedRankNetScheme(), reduction_log="natural")
    """

    def forward(self, gain: Tensor, discount: Tensor, true_sorted: Tensor) -> Tensor:
        """(batch, n, n) weights from the labels in order of the scores; `gain` and `discount` are not used."""
        ranks = 1 + (true_sorted[:, None, :] > true_sorted[:, :, None]).sum(-1)  # r_i: (batch, n)
        return 1 / (ranks[:, :, None] + ranks[:, None, :]).to(true_sorted.dtype)  # w_ij = 1/(r_i + r_j)

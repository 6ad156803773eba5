"""What trials of embedders compare with: the same training by sentence-transformers' own losses.

Knows: the losses of sentence-transformers that come nearest to a paper's. Does not know: data, arms, trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MultipleNegativesRankingLoss
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor

from broadsheet.embed.fitting import fit
from broadsheet.embed.llm_embedder import LLMEmbedder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from broadsheet.embed.data.lexicon import WordPair
    from broadsheet.training.trainer import TrainOutput


class ByDistillKLDivLoss(LLMEmbedder):
    """LLM-Embedder's rows, prompts and batches, learned by `DistillKLDivLoss`, each task with its temperature.

    The temperature of cosines stands in the similarity: as the loss's `student_temperature` it would also be a factor
    of its square, under which AdamW's ε is no longer small.
    """

    def losses(self, model: SentenceTransformer, tasks: Iterable[str]) -> dict[str, Any]:
        """Each task's loss."""

        def scaled_cosine(queries: Tensor, keys: Tensor) -> Tensor:
            return pairwise_cos_sim(queries, keys) / self.temperature

        def loss(name: str) -> DistillKLDivLoss:
            return DistillKLDivLoss(model, scaled_cosine, teacher_temperature=self.tasks[name].teacher_temperature)

        return {name: loss(name) for name in tasks}


def fit_pairs(
    model: SentenceTransformer, pairs: Sequence[WordPair], temperature: float, out: str | Path, **settings: Any
) -> TrainOutput:
    """Word pairs learned by `MultipleNegativesRankingLoss`: words of other pairs, in both columns, are negatives."""
    from datasets import Dataset

    rows = Dataset.from_dict({"word1": [pair.first for pair in pairs], "word2": [pair.second for pair in pairs]})
    loss = MultipleNegativesRankingLoss(model, 1 / temperature, directions=("query_to_doc", "query_to_query"))
    return fit(model, rows, loss, out, schedule="constant", warmup=0.0, **settings)

"""What trials of embedders compare with: the losses of sentence-transformers that come nearest to a paper's.

Knows: those losses and their settings. Does not know: data, arms, trials.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MultipleNegativesRankingLoss
from sentence_transformers.util import pairwise_cos_sim
from torch import Tensor

from broadsheet.embed.llm_embedder import LLMEmbedder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


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


def both_ways(model: SentenceTransformer, temperature: float) -> MultipleNegativesRankingLoss:
    """The loss for pairs of equals: both texts of the other rows are negatives of each text of a row.

    It takes no two rows to be of one set, and one softmax serves all directions.
    """
    return MultipleNegativesRankingLoss(
        model, 1 / temperature, directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    )

"""What is ranked: a query, its candidates in first-stage order, and which of them are right.

Knows: queries, passages, judgements, seeds. Does not know: where they come from (`documentation`, `beir`), or how they
are ranked.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

Passage = str | Mapping[str, str]


@dataclass(frozen=True)
class RankList:
    """A query and its candidates.

    The candidates stand in the order of the first stage, never with the right ones first by construction. A right
    passage that the first stage did not find stays in `judged`: no reranking reaches it, and it counts against the
    score, as trec_eval has it.

    Attributes:
        id, query: the query's name and text.
        ids: names of the candidates, best of the first stage first.
        documents: their texts, or `{"title", "text"}`, as many.
        scores: of the first stage, as many, decreasing; empty where there are none.
        judged: relevance by document name, 0 or more; documents it does not name count as 0.
        group: what the query belongs to (a package), for splits that share nothing.
    """

    id: str
    query: str
    ids: tuple[str, ...]
    documents: tuple[Passage, ...]
    scores: tuple[float, ...] = ()
    judged: Mapping[str, int] = field(default_factory=dict)
    group: str = ""

    @property
    def labels(self) -> list[int]:
        """The relevance of each candidate."""
        return [self.judged.get(identifier, 0) for identifier in self.ids]

    @property
    def found(self) -> bool:
        """Whether a right passage is among the candidates."""
        return any(label > 0 for label in self.labels)

    @property
    def order_matters(self) -> bool:
        """Whether some candidates are more relevant than others."""
        return len(set(self.labels)) > 1

    def reordered(self, order: Sequence[int]) -> RankList:
        """The same list with its candidates in another order (indices, perhaps not all of them)."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in order),
            documents=tuple(self.documents[i] for i in order),
            scores=tuple(self.scores[i] for i in order) if self.scores else (),
        )

    def shuffled(self, seed: int) -> tuple[RankList, list[int]]:
        """The list in a random order that depends on the seed and the query's name alone, and that order."""
        order = list(range(len(self.ids)))
        random.Random(f"{seed}/{self.id}").shuffle(order)
        return self.reordered(order), order

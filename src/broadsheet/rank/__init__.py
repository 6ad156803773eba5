"""Rank: put documents in order for a query, with any causal LM that reads several of them at once.

`ListwiseReranker` has `rank(query, documents)`. `FIRST` and `FullRank` train it on lists, `PGRank` (or
`PlackettLucePolicyGradient`, on any scores) for the metric itself; `fit` does the training.
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__,
    {
        "base": ("ListwiseReranker", "RerankStats"),
        "broadsheet.data.retrieval.beir": ("Beir",),
        "broadsheet.data.retrieval.documentation": ("Documentation",),
        "broadsheet.data.retrieval.lists": ("RankList",),
        "broadsheet.data.retrieval.metrics": ("evaluate", "evaluate_lists"),
        "first": ("WeightedRankNetScheme",),
        "first_feedback": ("RelevanceFeedback",),
        "training.fitting": ("TrainOutput", "fit"),
        "prompts.formats": ("as_rerankers",),
        "fullrank": ("complete_labels",),
        "labelling": ("reranker_comparator", "teacher_comparator"),
        "pg_rank": ("PGRank",),
        "pg_rank_utilities": ("MRR", "NDCG"),
        "prompts.prompt": ("Prompt",),
        "training.rows": ("training_rows",),
    },
)
__all__ = _exports.names
__getattr__ = _exports.get

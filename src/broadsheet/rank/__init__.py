"""Rank: put documents in order for a query, with any causal LM that reads several of them at once.

`ListwiseReranker` has `rank(query, documents)`. `FIRST` and `FullRank` train it on lists, `PGRank` (or
`PlackettLucePolicyGradient`, on any scores) for the metric itself; `fit` does the training.
"""

from broadsheet.data.retrieval.beir import Beir
from broadsheet.data.retrieval.documentation import Documentation
from broadsheet.data.retrieval.lists import RankList
from broadsheet.data.retrieval.metrics import evaluate, evaluate_lists
from broadsheet.rank.base import ListwiseReranker, RerankStats
from broadsheet.rank.first import FIRST, WeightedRankNetScheme
from broadsheet.rank.first_feedback import RelevanceFeedback
from broadsheet.rank.fitting import TrainOutput, fit
from broadsheet.rank.formats import as_rerankers
from broadsheet.rank.fullrank import FullRank, complete_labels
from broadsheet.rank.labelling import reranker_comparator, teacher_comparator
from broadsheet.rank.pg_rank import PGRank, PlackettLucePolicyGradient
from broadsheet.rank.pg_rank_utilities import MRR, NDCG
from broadsheet.rank.prompt import Prompt
from broadsheet.rank.rows import training_rows

__all__ = [
    "FIRST",
    "MRR",
    "NDCG",
    "Beir",
    "Documentation",
    "FullRank",
    "ListwiseReranker",
    "PGRank",
    "PlackettLucePolicyGradient",
    "Prompt",
    "RankList",
    "RelevanceFeedback",
    "RerankStats",
    "TrainOutput",
    "WeightedRankNetScheme",
    "as_rerankers",
    "complete_labels",
    "evaluate",
    "evaluate_lists",
    "fit",
    "reranker_comparator",
    "teacher_comparator",
    "training_rows",
]

"""Embed: texts to vectors with a causal LM.

Every method is, or trains, an `Embedder`: a `SentenceTransformer` around any causal LM, made by `embedder`, or by
`baseline` from a plain pooling, and read back by `load`. `fit` trains it.

Names are imported on first use, so that anything without a model (a table of axes) is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broadsheet.embed.axes import embedding_methods
    from broadsheet.embed.base import BASELINES, Embedder, baseline, embedder, load
    from broadsheet.embed.data.feedback import LikelihoodScorer
    from broadsheet.embed.data.induction import BilingualLexiconInduction
    from broadsheet.embed.dense_retrieval_study import Study
    from broadsheet.embed.fitting import TrainOutput, fit
    from broadsheet.embed.gem import GEM, gem_embedder, reconstruct
    from broadsheet.embed.lexical_specialization import LabelNTXentLoss, LexicalSpecialization, SubwordMean
    from broadsheet.embed.llm_embedder import GradedDistillLoss, LLMEmbedder
    from broadsheet.embed.llm_ql import LLMQL, QueryLikelihood, query_log_likelihood
    from broadsheet.embed.losses.contrastive import ContrastiveObjective
    from broadsheet.embed.modules.encoder import CausalEncoder
    from broadsheet.embed.modules.eol import TemplateMean
    from broadsheet.embed.modules.template import PROMPT_EOL, Template
    from broadsheet.embed.token_prepending import TokenPrepending
    from broadsheet.embed.ullme import GRL

_HOMES = {
    "axes": ("embedding_methods",),
    "base": ("BASELINES", "Embedder", "baseline", "embedder", "load"),
    "dense_retrieval_study": ("Study",),
    "modules.encoder": ("CausalEncoder",),
    "modules.eol": ("TemplateMean",),
    "data.feedback": ("LikelihoodScorer",),
    "fitting": ("TrainOutput", "fit"),
    "gem": ("GEM", "gem_embedder", "reconstruct"),
    "data.induction": ("BilingualLexiconInduction",),
    "lexical_specialization": ("LabelNTXentLoss", "LexicalSpecialization", "SubwordMean"),
    "llm_embedder": ("GradedDistillLoss", "LLMEmbedder"),
    "llm_ql": ("LLMQL", "QueryLikelihood", "query_log_likelihood"),
    "losses.contrastive": ("ContrastiveObjective",),
    "modules.template": ("PROMPT_EOL", "Template"),
    "token_prepending": ("TokenPrepending",),
    "ullme": ("GRL",),
}

__all__ = [
    "BASELINES",
    "GEM",
    "GRL",
    "LLMQL",
    "PROMPT_EOL",
    "BilingualLexiconInduction",
    "CausalEncoder",
    "ContrastiveObjective",
    "Embedder",
    "GradedDistillLoss",
    "LLMEmbedder",
    "LabelNTXentLoss",
    "LexicalSpecialization",
    "LikelihoodScorer",
    "QueryLikelihood",
    "Study",
    "SubwordMean",
    "Template",
    "TemplateMean",
    "TokenPrepending",
    "TrainOutput",
    "baseline",
    "embedder",
    "embedding_methods",
    "fit",
    "gem_embedder",
    "load",
    "query_log_likelihood",
    "reconstruct",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

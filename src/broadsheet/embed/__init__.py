"""Embed: texts to vectors with a causal LM.

Every method is, or trains, an `Embedder`: a `SentenceTransformer` around any causal LM, made by `embedder`, or by
`baseline` from a plain pooling, and read back by `load`. `fit` trains it.

Names are imported on first use, so that anything without a model (a table of axes) is fast.
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__,
    {
        "axes": ("embedding_methods",),
        "base": ("BASELINES", "Embedder", "baseline", "embedder", "load"),
        "data.feedback": ("LikelihoodScorer",),
        "data.induction": ("BilingualLexiconInduction",),
        "fitting": ("TrainOutput", "fit"),
        "gem": ("gem_embedder", "reconstruct"),
        "lexical_specialization": ("SubwordMean",),
        "llm_ql": ("query_log_likelihood",),
        "losses.contrastive": ("ContrastiveObjective",),
        "modules.encoder": ("CausalEncoder",),
        "modules.eol": ("TemplateMean",),
        "modules.template": ("PROMPT_EOL", "Template"),
        "ullme": ("keep_scores",),
    },
)
__all__ = _exports.names
__getattr__ = _exports.get

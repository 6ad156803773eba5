"""The map of embedding with language models, as data: what each method needs, touches and costs.

Two surveys order the field: by how embeddings are obtained from a model (arXiv:2412.12591) and by how models and
embeddings help each other (arXiv:2412.09165). Their orders are merged here into seven axes, and every method of the
stage has one value on each. Methods that the stage does not have are listed as references.

Knows: names and words. Does not know: any method's code; a test checks attention and pooling against real embedders.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from broadsheet.console import InputError

UNKNOWN = "not known"

AXES: dict[str, tuple[str, ...]] = {
    "needs_training": ("no", "self-supervised", "supervised", "LLM feedback"),
    "touches": ("nothing", "prompt", "mask", "hidden states", "weights", "mask and weights", "dimension", "data"),
    "attention": ("causal", "bidirectional", "either"),
    "pooling": ("mean", "weighted mean", "last", "EOS", "special tokens", "subword mean", "learned", "either"),
    "generates_too": ("yes", "partly", "no", UNKNOWN),
    "side": ("symmetric", "query/document"),
    "cost": ("none", "a template", "a template and 1 token", "a template for each task, 1 pass each", "an instruction",
             "1 token", "k tokens", "the text twice"),
}  # fmt: skip
"""The axes and their values. `cost` is that of embedding a text beyond reading it once, without training."""

OVERVIEW: dict[str, str] = {
    "prompting/plain": "read without a prompt",
    "prompting/one word": "asked for the text in one word",
    "prompting/several tasks": "several prompts, averaged",
    "prompting/reasoning and knowledge": "a prompt that claims reasoning, or gives knowledge",
    "prompting/repetition": "the text twice, so that its first words see its end",
    "prompting/intervention": "hidden states changed between layers",
    "tuning/architecture": "attention, pooling, adapters",
    "tuning/objective": "contrast, and losses beside it: generation, distillation, dimensions",
    "tuning/data": "synthetic pairs, mined negatives, instructions",
    "settings/multilingual": "several languages",
}
"""Nodes of the first survey that methods here belong to, with their meaning, in our words."""

INTERACTION: dict[str, str] = {
    "augmented/synthesis": "a model writes training data",
    "augmented/annotation": "a model judges training data",
    "embedders/training-free": "a model embeds, unchanged",
    "embedders/architecture": "changes to a model so that it embeds",
    "embedders/tuning": "instructions and pairs to tune on",
    "embedders/next-token objectives": "embeddings learned by predicting text from them",
    "understanding/compression": "a model reads text through few vectors",
}
"""Nodes of the second survey, likewise."""


@dataclass(frozen=True)
class EmbeddingMethod:
    """One way to get embeddings from a language model.

    Args:
        name: as it is printed.
        entry: `"module:name"` of the code that runs it here; empty for a reference.
        paper: its id on the page; empty for a method of no paper of the page.
        needs_training, touches, attention, pooling, generates_too, side, cost: one of the axis's values.
        overview, interaction: its node in each survey; empty where it has none. That the survey itself cites the
            method there is not claimed.
        how: the call, or the library or paper that has it.
    """

    name: str
    entry: str
    paper: str
    needs_training: str
    touches: str
    attention: str
    pooling: str
    generates_too: str
    side: str
    cost: str
    overview: str
    interaction: str
    how: str = ""

    @property
    def values(self) -> tuple[str, ...]:
        """Its place on each axis, in the order of `AXES`."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def runs(self) -> str:
        """The name of the code that runs it here, or `"reference only"`."""
        return self.entry.split(":")[1] if self.entry else "reference only"


_BASE, _EOL = "broadsheet.embed.base:baseline", "broadsheet.embed.modules.eol:"
_TRAINING_FREE, _OBJECTIVE = "embedders/training-free", "tuning/objective"
# fmt: off
METHODS: tuple[EmbeddingMethod, ...] = (
    EmbeddingMethod("mean", _BASE, "", "no", "nothing", "either", "mean", "yes", "symmetric", "none",
        "prompting/plain", _TRAINING_FREE, 'baseline("mean")'),
    EmbeddingMethod("weighted mean", _BASE, "", "no", "nothing", "either", "weighted mean", "yes", "symmetric",
        "none", "prompting/plain", _TRAINING_FREE, 'baseline("weighted-mean")'),
    EmbeddingMethod("last token", _BASE, "", "no", "nothing", "either", "last", "yes", "symmetric", "none",
        "prompting/plain", _TRAINING_FREE, 'baseline("last-token")'),
    EmbeddingMethod("bidirectional, untrained", _BASE, "", "no", "mask", "bidirectional", "either", "yes",
        "symmetric", "none", "tuning/architecture", "embedders/architecture",
        'baseline("mean", attention="bidirectional")'),
    EmbeddingMethod("PromptEOL", _BASE, "", "no", "prompt", "causal", "last", "yes", "symmetric", "a template",
        "prompting/one word", _TRAINING_FREE, 'baseline("prompt-eol")'),
    EmbeddingMethod("Pretended CoT", _EOL + "PRETENDED_COT", "", "no", "prompt", "causal", "last", "yes", "symmetric",
        "a template", "prompting/reasoning and knowledge", _TRAINING_FREE,
        'embedder(model, "last-token", template=PRETENDED_COT)'),
    EmbeddingMethod("Knowledge Enhancement", _EOL + "KNOWLEDGE", "", "no", "prompt", "causal", "last", "yes",
        "symmetric", "a template", "prompting/reasoning and knowledge", _TRAINING_FREE,
        'embedder(model, "last-token", template=KNOWLEDGE)'),
    EmbeddingMethod("MetaEOL", _EOL + "TemplateMean", "", "no", "prompt", "causal", "last", "yes", "symmetric",
        "a template for each task, 1 pass each", "prompting/several tasks", _TRAINING_FREE, "TemplateMean(encoder)"),
    EmbeddingMethod("Echo embeddings", "", "", "no", "prompt", "causal", "mean", "yes", "symmetric", "the text twice",
        "prompting/repetition", _TRAINING_FREE, "arXiv:2402.15449"),
    EmbeddingMethod("Token Prepending", "broadsheet.embed.token_prepending:TokenPrepending", "token_prepending", "no",
        "hidden states", "causal", "last", "yes", "symmetric", "a template and 1 token", "prompting/intervention",
        _TRAINING_FREE, 'embedder(model, "last-token", encoder=TokenPrepending)'),
    EmbeddingMethod("GEM", "broadsheet.embed.gem:GEM", "gem", "self-supervised", "mask and weights", "causal",
        "special tokens", "yes", "symmetric", "k tokens", _OBJECTIVE, "understanding/compression",
        "fit(gem_embedder(model), texts, GEM(…))"),
    EmbeddingMethod("LLM-QL", "broadsheet.embed.llm_ql:LLMQL", "llm_ql", "supervised", "mask and weights", "causal",
        "EOS", "partly", "query/document", "an instruction", _OBJECTIVE, "embedders/next-token objectives",
        "LLMQL().fit(…)"),
    EmbeddingMethod("GRL (ULLME)", "broadsheet.embed.ullme:GRL", "ullme", "supervised", "weights", "bidirectional",
        "mean", "yes", "query/document", "none", _OBJECTIVE, "embedders/next-token objectives",
        "fit(embedder, items, GRL(embedder))"),
    EmbeddingMethod("LLM-Embedder", "broadsheet.embed.llm_embedder:LLMEmbedder", "llm_embedder", "LLM feedback",
        "weights", "causal", "mean", "no", "query/document", "an instruction", _OBJECTIVE, "augmented/annotation",
        "LLMEmbedder().fit(…)"),
    EmbeddingMethod("lexical specialization", "broadsheet.embed.lexical_specialization:LexicalSpecialization",
        "lexical_specialization", "supervised", "weights", "causal", "subword mean", "no", "symmetric", "1 token",
        "settings/multilingual", "embedders/tuning", "LexicalSpecialization().fit(…)"),
    EmbeddingMethod("RepLLaMA", "", "", "supervised", "weights", "causal", "EOS", "not known", "query/document",
        "1 token", "tuning/architecture", "embedders/tuning", "arXiv:2310.08319"),
    EmbeddingMethod("E5-Mistral", "", "", "supervised", "data", "causal", "EOS", "not known", "query/document",
        "an instruction", "tuning/data", "augmented/synthesis", "arXiv:2401.00368"),
    EmbeddingMethod("LLM2Vec", "", "", "self-supervised", "mask and weights", "bidirectional", "mean", "not known",
        "symmetric", "none", "tuning/architecture", "embedders/architecture", "arXiv:2404.05961"),
    EmbeddingMethod("NV-Embed", "", "", "supervised", "mask and weights", "bidirectional", "learned", "not known",
        "query/document", "an instruction", "tuning/architecture", "embedders/architecture", "arXiv:2405.17428"),
    EmbeddingMethod("GritLM", "", "", "supervised", "mask and weights", "bidirectional", "mean", "yes",
        "query/document", "an instruction", _OBJECTIVE, "embedders/tuning", "arXiv:2402.09906"),
    EmbeddingMethod("Matryoshka dimensions", "", "", "supervised", "dimension", "either", "either", "not known",
        "symmetric", "none", _OBJECTIVE, "embedders/tuning",
        "sentence-transformers' MatryoshkaLoss, arXiv:2205.13147"),
)
# fmt: on
"""Every method of the stage, and references; the arguments are `EmbeddingMethod`'s, in their order."""


def embedding_methods(*, runnable: bool = False, **values: str) -> list[EmbeddingMethod]:
    """Methods with these values, in the order of the map.

    Inputs: an axis by its name and the wanted value; `runnable=True` leaves references out.
    Use when … a method has to be chosen: no pairs to train on, the model still has to generate, queries differ from
        documents. `broadsheet try embed` measures their cost and quality on your model and texts.
    Relation: the two surveys' orders, merged; `overview` and `interaction` name a method's node in each.

    Raises:
        InputError: no such axis or value.

    Example:
        >>> from broadsheet.embed import embedding_methods
        >>> [method.name for method in embedding_methods(needs_training="no", touches="hidden states")]
        ['Token Prepending']

    Source: arXiv:2412.12591 and arXiv:2412.09165 (abstracts and outlines); the axes are ours.
    """
    for axis, value in values.items():
        if axis not in AXES:
            raise InputError(f"no axis {axis!r}; expected one of {', '.join(AXES)}")
        if value not in AXES[axis]:
            raise InputError(f"no value {value!r} on the axis {axis}; expected one of {', '.join(AXES[axis])}")
    return [
        method
        for method in METHODS
        if (method.entry or not runnable) and all(getattr(method, axis) == value for axis, value in values.items())
    ]


def alike() -> list[list[EmbeddingMethod]]:
    """Methods with equal values on all axes, together, in the order of the map."""
    groups: dict[tuple[str, ...], list[EmbeddingMethod]] = {}
    for method in METHODS:
        groups.setdefault(method.values, []).append(method)
    return list(groups.values())


def counts(axis: str) -> dict[str, int]:
    """How many methods have each value of an axis, or belong to each node of `"overview"` or `"interaction"`.

    Raises:
        InputError: no such axis.
    """
    known: dict[str, tuple[str, ...]] = {**AXES, "overview": tuple(OVERVIEW), "interaction": tuple(INTERACTION)}
    if axis not in known:
        raise InputError(f"no axis {axis!r}; expected one of {', '.join(known)}")
    found = Counter(getattr(method, axis) for method in METHODS)
    return {value: found[value] for value in known[axis]}


Survey = Literal["overview", "interaction"]


def nodes(survey: Survey) -> dict[str, list[EmbeddingMethod]]:
    """The methods at each node of a survey's order."""
    names = OVERVIEW if survey == "overview" else INTERACTION
    return {name: [method for method in METHODS if getattr(method, survey) == name] for name in names}

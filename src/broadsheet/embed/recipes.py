"""`broadsheet apply` for the papers of the stage: each trains an embedder, or tunes one that needs no training.

OUT is a folder that `broadsheet.embed.load`, `broadsheet index --embedder OUT` and sentence-transformers read. Knows:
rows by name, the stage's methods. Does not know: how any of them works.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from broadsheet.apply.base import Recipe, Source, Train
from broadsheet.apply.corpus import Summary
from broadsheet.console import InputError, say
from broadsheet.data.pydocs import is_pydocs
from broadsheet.embed.data import rows
from broadsheet.options import option

if TYPE_CHECKING:
    from broadsheet.data.corpora import Corpus
    from broadsheet.embed.base import Embedder
    from broadsheet.models import Loaded
    from broadsheet.training.trainer import TrainOutput

USAGE = "use it: broadsheet index DATA --embedder {out} --out INDEX; try it: broadsheet try embed --also {out}"
_ADAPTER = "Keep the adapter apart, beside the name of its base; else it is added to the weights."


@dataclass
class EmbedderRecipe(Train):
    """What trainings of embedders share."""

    usage: ClassVar[str] = USAGE

    length: int = option(256, "Tokens of a text that are read.", least=1)
    limit: int | None = option(
        None, "Rows of DATA at random, at most; by default all, of pydocs as many as make an example.", least=1
    )

    def rows(self, source: Source) -> Corpus:
        """DATA as it is read by the stage."""
        return rows.open_data(
            source.spec, on_error=source.on_error, text_field=source.text_field, id_field=source.id_field
        )

    @cached_property
    def base(self) -> Loaded:
        """The language model."""
        return self.loaded()

    def fit_settings(self, force: bool, **defaults: Any) -> dict[str, Any]:
        """As `fit` takes them; an adapter is merged unless it is to be kept apart."""
        self.check_calls()
        apart = getattr(self, "adapter", False)
        if apart and self.tune == "full":
            raise InputError("got --adapter with --tune full; an adapter comes of --tune lora")
        return {**self.settings(**defaults), "merge": self.tune == "lora" and not apart, "force": force}


@dataclass
class GEMRecipe(EmbedderRecipe):
    """Train GEM's special tokens on texts (field `text`)."""

    paper: ClassVar[str] = "gem"

    specials: int = option(1, "Tokens that hold the embedding.", least=1)

    def train(self, source: Source, out: Path, force: bool) -> TrainOutput:
        from broadsheet.embed import fit
        from broadsheet.embed.gem import GEM, gem_embedder

        corpus = self.rows(source)
        found = rows.texts(corpus, self.limit or 2000 * is_pydocs(corpus.spec), self.seed)
        made = gem_embedder(self.base, self.specials, max_seq_length=self.length, seed=self.seed)
        planned = (self.steps or len(found) * self.epochs // self.batch_size) * self.batch_size
        # The paper's 3,200 texts before contrast begins are meant for long trainings: a fifth of a short one.
        phases = {"ntp_rows": min(3200, planned // 5), "ramp_rows": min(320, planned // 5)}
        objective = GEM(made, **self.fields(GEM, contrast="all", seed=self.seed, **phases))
        return fit(made, found, objective, out, **self.fit_settings(force))


@dataclass
class PairRecipe(EmbedderRecipe):
    """What trainings on pairs share: `query` (or `anchor`, `question`, `sentence1`) with `positive` (or `document`,
    `passage`, `answer`, `sentence2`) and any `negatives`, `negative`, `negative_1` ….
    """

    words: int = option(40, "Of a passage of pydocs.", least=1)
    negatives: int = option(0, "Of pydocs, wrong passages beside each query.", least=0)

    def pairs(self, source: Source) -> list[dict[str, Any]]:
        """The pairs that are trained on."""
        return rows.pairs(
            self.rows(source), self.limit or 0, words=self.words, negatives=self.negatives, seed=self.seed
        )


@dataclass
class LLMQLRecipe(PairRecipe):
    """Train a retriever on pairs: query likelihood first, then contrast."""

    paper: ClassVar[str] = "llm_ql"

    ql_steps: int | None = option(None, "Of the first stage; by default as many as of the second.", least=1)

    def train(self, source: Source, out: Path, force: bool) -> TrainOutput:
        from broadsheet.embed.llm_ql import LLMQL

        method = self.configured(LLMQL, seed=self.seed)
        made = method.embedder(self.base, max_seq_length=self.length)
        settings = self.fit_settings(force)
        first, second = method.fit(
            made, rows.flat(self.pairs(source)), out, ql_steps=self.ql_steps or self.steps, **settings
        )
        done: TrainOutput = first if first is not None and not first.finished else second
        return done


@dataclass
class FurtherRecipe(EmbedderRecipe):
    """What trainings share that may begin with an embedder, and keep an adapter apart."""

    embedder: str | None = option(None, "To train on from, instead of the model's mean pooling.", metavar="FOLDER")
    attention: Literal["causal", "bidirectional"] = option("causal", "Of the model's mean pooling.")
    adapter: bool = option(False, _ADAPTER)

    def start(self, **settings: Any) -> Embedder:
        """The embedder that is trained on: the one named, or the model's mean of token vectors."""
        from broadsheet.embed.base import embedder, load

        if self.embedder:
            return load(self.embedder, device=self.device, dtype=self.dtype)
        return embedder(self.base, "mean", attention=self.attention, max_seq_length=self.length, **settings)


@dataclass
class UllmeRecipe(FurtherRecipe, PairRecipe):
    """Train GRL on pairs: contrast, writing the passage, and agreement of the two."""

    paper: ClassVar[str] = "ullme"

    attention: Literal["causal", "bidirectional"] = option("bidirectional", "Of the model's mean pooling.")
    negatives: int = option(1, "Of pydocs, wrong passages beside each query.", least=0)

    def train(self, source: Source, out: Path, force: bool) -> TrainOutput:
        from broadsheet.embed import fit
        from broadsheet.embed.data.writing import PROMPT
        from broadsheet.embed.ullme import GRL, keep_scores

        items = self.pairs(source)
        paired = all(item["negatives"] for item in items)
        reference = "adapter" if self.tune == "lora" else "free"
        fields = self.fields(GRL, generation="sigmoid" if paired else "sft", reference=reference, seed=self.seed)
        if not paired and fields["generation"] == "sft":
            say("not every row has negatives: the generation loss is that of the positive alone (sft)")
        made = self.start()
        if fields.get("generator") == "kept":
            items = keep_scores(made, items, fields.get("prompt", PROMPT))
        return fit(made, items, GRL(made, **fields), out, **self.fit_settings(force))


@dataclass
class LLMEmbedderRecipe(FurtherRecipe):
    """Train on `query` with the lists `pos` and `neg` and `teacher_scores`; or on `query` with `answers`, from which a
    language model makes the scores first (kept as OUT.scores.jsonl), where pairs will do; or on long texts, whose own
    earlier chunks are the candidates for what follows.
    """

    paper: ClassVar[str] = "llm_embedder"

    teacher: str | None = option(None, "The language model that scores; by default the model itself.", metavar="MODEL")
    group_size: int = option(8, "Passages of a query.", least=2)
    task: str = option("qa", "Of rows that name none.", metavar="NAME")

    def train(self, source: Source, out: Path, force: bool) -> TrainOutput:
        from broadsheet.embed.data.teacher_scores import scored
        from broadsheet.embed.llm_embedder import LLMEmbedder

        examples = scored(
            self.rows(source),
            out,
            self.teacher or self.model,
            n=self.limit or 0,
            candidates=self.group_size,
            task=self.task,
            seed=self.seed,
            force=force,
            device=self.device or "",
        )
        method = self.configured(LLMEmbedder, group_size=self.group_size)
        made = method.adopt(self.start(normalize=True))
        done: TrainOutput = method.fit(made, examples, out, **self.fit_settings(force))
        return done


@dataclass
class LexicalSpecializationRecipe(EmbedderRecipe):
    """Train on word pairs: a TSV of `word1`, `word2`, or rows of them, with a `label` of the set they belong to; or
    `wordnet`, `freedict:eng-fra`, `abbreviations` (`pydocs` means the last).
    """

    paper: ClassVar[str] = "lexical_specialization"

    adapter: bool = option(False, _ADAPTER)
    tune: Literal["lora", "full"] = option("full", "Train adapters, or all weights as the paper does.")
    epochs: int = option(2, "How often the data is read, at most.", least=1)
    batch_size: int = option(256, "Pairs of a step.", least=2)
    learning_rate: float | None = option(None, "By default 5e-6 (the paper's) for all weights, 2e-4 for adapters.")
    length: int = option(64, "Tokens of a word that are read.", least=1)
    held_out: str | None = option(None, "A file or lexicon of words that are not trained on.", metavar="NAME")

    def train(self, source: Source, out: Path, force: bool) -> TrainOutput:
        from broadsheet.embed.lexical_specialization import LexicalSpecialization

        found = rows.word_pairs(self.rows(source))
        if self.limit and self.limit < len(found):
            found = random.Random(self.seed).sample(found, self.limit)
        method = self.configured(LexicalSpecialization)
        made = method.embedder(self.base, max_seq_length=self.length)
        settings = self.fit_settings(force)
        if self.learning_rate is None and self.tune == "full":
            settings.pop("learning_rate")  # the paper's
        test = rows.held_out(self.held_out) if self.held_out else []
        done: TrainOutput = method.fit(made, found, out, held_out=test, **settings)
        return done


@dataclass
class TokenPrependingRecipe(Recipe):
    """Choose Token Prepending's layers on sentence pairs with scores (a TSV or CSV as STS-B's), or on `pydocs`."""

    paper: ClassVar[str] = "token_prepending"

    template: str = option("prompt-eol", "One of prompt-eol, pretended-cot, knowledge, meta-eol.", metavar="NAME")
    layer: int | None = option(None, "That is read, instead of choosing it; with --exit.", least=1)
    exit: int | None = option(None, "The first layer left alone again, instead of choosing it; with --layer.", least=1)
    limit: int | None = option(None, "Pairs at most; by default all, 300 of pydocs.", least=4)
    length: int = option(256, "Tokens of a text that are read.", least=1)

    def check(self) -> None:
        if (self.layer is None) != (self.exit is None):
            raise InputError("got one of --layer and --exit; expected both, or neither to have them chosen")

    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        from sentence_transformers.sentence_transformer.modules import Pooling

        from broadsheet.embed.base import Embedder
        from broadsheet.embed.fitting import write
        from broadsheet.embed.modules.eol import TEMPLATES, TemplateMean, variant
        from broadsheet.embed.sweep import sweep
        from broadsheet.embed.token_prepending import TokenPrepending

        if self.template not in TEMPLATES:
            raise InputError(f"got --template {self.template!r}; expected one of {', '.join(TEMPLATES)}")
        if out.exists() and not force:
            raise InputError(f"{out} exists; choose another --out, or --force to replace it")
        begin = time.perf_counter()
        templates, loaded = TEMPLATES[self.template], self.loaded()
        settings: dict[str, Any] = {"max_seq_length": self.length, "spec": loaded.spec}
        encoder = TokenPrepending(*loaded, template=templates[0], **self.fields(TokenPrepending, **settings))
        self.check_calls()
        chosen: dict[str, Any] = {"layer": self.layer, "exit": self.exit}
        read, record = 0, {}
        if self.layer is None:
            given = self._pairs(source)
            first, second = [pair.a for pair in given], [pair.b for pair in given]
            found = sweep(encoder, first, second, [pair.score for pair in given], templates=templates)
            print(found.table())
            say(f"chosen on {len(given):,} pairs: {found.best} (Spearman {found.best.spearman:.3f})")
            chosen, read, record = found.best.settings, len(given), asdict(found)
        encoder = variant(encoder, **chosen)
        parts: list[Any] = [encoder, Pooling(encoder.get_embedding_dimension(), "lasttoken")]
        if len(templates) > 1:
            parts = [TemplateMean(encoder, templates)]
        write(Embedder(modules=parts, device=str(encoder.device)).eval(), out, {"data": source.spec, "sweep": record})
        say(USAGE.format(out=out))
        return Summary(out, read, 0, time.perf_counter() - begin, True)

    def _pairs(self, source: Source) -> list[Any]:
        from broadsheet.embed.data.tasks import documented_pairs, sts

        if is_pydocs(source.spec):
            return documented_pairs(self.limit or 300, False, self.seed, source.spec)
        return sts(source.spec, self.limit or 0, self.seed, source.on_error)

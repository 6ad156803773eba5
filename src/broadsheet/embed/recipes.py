"""Use the stage: train an embedder, tune one, or encode a corpus. What `broadsheet apply` runs for its papers.

Knows: data by name, the stage's methods. Does not know: how any of them works.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.apply.corpus import Summary
from broadsheet.console import InputError, at_least, say
from broadsheet.data.corpora import Corpus
from broadsheet.embed.data.rows import flat, held_out, open_data, pairs, texts, word_pairs

if TYPE_CHECKING:
    from broadsheet.embed.base import Embedder
    from broadsheet.embed.fitting import TrainOutput
    from broadsheet.models import Loaded


@dataclass
class ApplyEmbed:
    """Train an embedder, tune one that needs no training (`token_prepending`), or encode a corpus (--encode).

    OUT is a folder that `broadsheet.embed.load`, `broadsheet index --embedder OUT` and sentence-transformers read. It
    holds a whole model unless --adapter is given. A command that was stopped or killed goes on when it is repeated.

    DATA is JSONL, Parquet, CSV, TSV, a folder of them, `hf:org/name:split`, or `pydocs`:

    - `gem` trains on texts (field `text`).
    - `llm_ql`, `ullme` train on pairs: `query` (or `anchor`, `question`, `sentence1`) with `positive` (or `document`,
      `passage`, `answer`, `sentence2`) and any `negatives`, `negative`, `negative_1` ….
    - `llm_embedder` trains on `query` with the lists `pos` and `neg` and `teacher_scores`; or with `answers`, from
      which a language model makes the scores first (kept as OUT.scores.jsonl), where pairs will do; or on long texts,
      whose own earlier chunks are the candidates for what follows.
    - `lexical_specialization` trains on word pairs: rows of `word1`, `word2`, with a `label` of the
      set they belong to; or `wordnet`, `freedict:eng-fra`, `abbreviations` (`pydocs` means the last).
    - `token_prepending` chooses its layers on sentence pairs with scores (such as STS-B's), or on `pydocs`.

    With --encode, DATA is any corpus, and OUT a folder of `vectors.npy`, `ids.jsonl` and `manifest.json`.

    Options:
        --steps N: of training (as many as --epochs make).
        --minutes N: of training, at most (30; 0: no limit); of each of llm_ql's stages.
        --epochs N: how often the data may come (1; lexical_specialization 2).
        --batch-size N: rows of a step (16; lexical_specialization 256).
        --learning-rate N: by default 2e-4 for adapters, 2e-5 for all weights; lexical_specialization 5e-6.
        --tune NAME: `lora` or `full` (lora; lexical_specialization full).
        --lora-rank N: of the adapter (16).
        --adapter: keep the adapter apart, beside the name of its base (not gem, llm_ql).
        --embedder FOLDER: to train on from (ullme, llm_embedder), or to encode with.
        --length N: tokens of a text that are read (256; to encode, as the embedder was saved).
        --rows N: of DATA at random, at most (0: all; of pydocs 2000).
        --words N: of a passage of pydocs (40).
        --negatives N: of pydocs, wrong passages beside each query (ullme 1; llm_ql 0).
        --specials N: of gem, tokens that hold the embedding (1).
        --contrast NAME: of gem, rows that are contrasted: `compression` or `all` (all).
        --ql-steps N: of llm_ql, of its first stage (as many as --steps or --epochs make).
        --attention NAME: of ullme and llm_embedder, `causal` or `bidirectional` (ullme bidirectional).
        --generation NAME: of ullme: sft, sigmoid, hinge, ipo, kto_pair (sigmoid where there are negatives, else sft).
        --chunk N: of ullme, queries that are read at once, for less memory (0: all).
        --teacher NAME: of llm_embedder, the language model that scores, as in models.load (the model itself).
        --group-size N: of llm_embedder, passages of a query (8).
        --task NAME: of llm_embedder, of rows that name none (qa).
        --held-out NAME: of lexical_specialization, a file or lexicon of words that are not trained on.
        --template NAME: of token_prepending: prompt-eol, pretended-cot, knowledge, meta-eol (prompt-eol).
        --layer N, --exit N: of token_prepending, both together: instead of choosing them.
        --encode: encode DATA with --embedder.
        --shard I/N: encode share I, from 0, of N; the process that is last puts the folder together.
        --normalize: write vectors of length 1.
        --half: write vectors in float16.
        --keep-texts: write the texts beside the ids.
        --seed N: of choices, order and draws (0).
        --device NAME, --dtype NAME: as in models.load.
    """

    method: str = "gem"
    model: str = "default"
    steps: int = 0
    minutes: float = 30.0
    epochs: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    tune: str = ""
    lora_rank: int = 16
    adapter: bool = False
    embedder: str = ""
    length: int = 0
    rows: int = 0
    words: int = 40
    negatives: int = -1
    specials: int = 1
    contrast: str = "all"
    ql_steps: int = 0
    attention: str = ""
    generation: str = ""
    chunk: int = 0
    teacher: str = ""
    group_size: int = 8
    task: str = "qa"
    held_out: str = ""
    template: str = "prompt-eol"
    layer: int = 0
    exit: int = 0
    encode: bool = False
    shard: str = ""
    normalize: bool = False
    half: bool = False
    keep_texts: bool = False
    seed: int = 0
    device: str = ""
    dtype: str = ""

    data = staticmethod(open_data)

    def run(self, corpus: Corpus, out: Path, *, force: bool = False) -> Summary:
        """Do it.

        Raises:
            InputError: an option, the data, the model or `out` cannot be used.
        """
        at_least(0, self, "steps", "minutes", "epochs", "batch_size", "rows", "ql_steps")
        if self.tune not in ("", "lora", "full"):
            raise InputError(f"got --tune {self.tune!r}; expected lora or full")
        if self.adapter and (self.method in ("gem", "llm_ql", "token_prepending") or self._tuning == "full"):
            raise InputError("got --adapter; it is for ullme, llm_embedder and lexical_specialization with --tune lora")
        if self.embedder and not self.encode and self.method not in ("ullme", "llm_embedder"):
            raise InputError(f"got --embedder for {self.method}; give --encode, or the language model as --model")
        if self.encode:
            return self._encode(corpus, out, force)
        if out.exists() and not force:
            raise InputError(f"{out} exists; choose another --out, or --force to replace it")
        if self.method == "token_prepending":
            return self._tune(corpus, out, force)
        train: Callable[[Corpus, Path, bool], TrainOutput] = getattr(self, f"_{self.method}")
        fitted = train(corpus, out, force)
        if fitted.finished:
            say(
                f"{out}: {fitted.examples:,} rows, {fitted.tokens:,} tokens in {fitted.steps:,} steps, "
                f"{fitted.seconds / 60:.1f} minutes"
            )
            say(
                f"use it: broadsheet index DATA --embedder {out} --out INDEX; try it: broadsheet try embed --also {out}"
            )
        else:
            say(f"stopped after {fitted.steps:,} steps; the same command without --force goes on from there")
        return Summary(out, fitted.examples, 0, fitted.seconds, fitted.finished)

    # Training

    def _gem(self, corpus: Corpus, out: Path, force: bool) -> TrainOutput:
        from broadsheet.embed.fitting import fit
        from broadsheet.embed.gem import GEM, gem_embedder

        found = texts(corpus, self.rows or 2000 * (corpus.spec == "pydocs"), self.seed)
        made = gem_embedder(self._loaded, self.specials, max_seq_length=self._length, seed=self.seed)
        planned = (self.steps or len(found) * (self.epochs or 1) // self._batch) * self._batch
        contrast: Any = self.contrast
        # The paper's 3,200 texts before contrast begins are meant for long trainings: a fifth of a short one.
        phases: dict[str, Any] = {"ntp_rows": min(3200, planned // 5), "ramp_rows": min(320, planned // 5)}
        objective = GEM(made, contrast=contrast, seed=self.seed, **phases)
        return fit(made, found, objective, out, **self._settings(force))

    def _llm_ql(self, corpus: Corpus, out: Path, force: bool) -> TrainOutput:
        from broadsheet.embed.llm_ql import LLMQL

        found = flat(self._pairs(corpus, 0))
        method = LLMQL(mini_batch_size=self.chunk, seed=self.seed)
        made = method.embedder(self._loaded, max_seq_length=self._length)
        settings = self._settings(force)
        steps = settings.pop("steps")
        first, second = method.fit(made, found, out, ql_steps=self.ql_steps or steps, steps=steps, **settings)
        return first if first is not None and not first.finished else second

    def _ullme(self, corpus: Corpus, out: Path, force: bool) -> TrainOutput:
        from broadsheet.embed.fitting import fit
        from broadsheet.embed.ullme import GRL

        items = self._pairs(corpus, 1)
        generation: Any = self.generation
        if not generation:
            paired = all(item["negatives"] for item in items)
            generation = "sigmoid" if paired else "sft"
            if not paired:
                say("not every row has negatives: the generation loss is that of the positive alone (sft)")
        made = self._start(self.attention or "bidirectional")
        objective = GRL(
            made,
            generation=generation,
            reference="adapter" if self._tuning == "lora" else "free",
            chunk_size=self.chunk or None,
            seed=self.seed,
        )
        return fit(made, items, objective, out, **self._settings(force))

    def _llm_embedder(self, corpus: Corpus, out: Path, force: bool) -> TrainOutput:
        from broadsheet.embed.data.teacher_scores import scored
        from broadsheet.embed.llm_embedder import LLMEmbedder

        examples = scored(
            corpus,
            out,
            self.teacher or self.model,
            n=self.rows,
            candidates=self.group_size,
            task=self.task,
            seed=self.seed,
            force=force,
            device=self.device,
        )
        method = LLMEmbedder(group_size=self.group_size)
        made = method.adopt(self._start(self.attention or "causal", normalize=True))
        return method.fit(made, examples, out, **self._settings(force))

    def _lexical_specialization(self, corpus: Corpus, out: Path, force: bool) -> TrainOutput:
        from broadsheet.embed.lexical_specialization import LexicalSpecialization

        found = word_pairs(corpus)
        if self.rows and self.rows < len(found):
            found = random.Random(self.seed).sample(found, self.rows)
        method = LexicalSpecialization()
        made = method.embedder(self._loaded, max_seq_length=min(64, self._length))
        settings = self._settings(force, epochs=2)
        if not self.learning_rate and self._tuning == "full":
            settings.pop("learning_rate")  # the paper's
        if not self.batch_size:
            settings.pop("batch_size")
        test = held_out(self.held_out) if self.held_out else []
        return method.fit(made, found, out, held_out=test, **settings)

    # Encoding

    def _encode(self, corpus: Corpus, out: Path, force: bool) -> Summary:
        from broadsheet.embed.base import load
        from broadsheet.search.encoding.streaming import encode_corpus

        made = load(self.embedder or self.model, device=self.device or None, dtype=self.dtype or None)
        if self.length:
            made.max_seq_length = self.length
        done = encode_corpus(
            made,
            corpus,
            out,
            shard=_shard(self.shard),
            dtype="float16" if self.half else "float32",
            normalize=self.normalize,
            texts=self.keep_texts,
            force=force,
        )
        return Summary(out, done.documents, done.resumed, done.seconds, done.shard_finished)

    # Tuning

    def _tune(self, corpus: Corpus, out: Path, force: bool) -> Summary:
        from sentence_transformers.sentence_transformer.modules import Pooling

        from broadsheet.embed.base import Embedder
        from broadsheet.embed.fitting import write
        from broadsheet.embed.modules.eol import TEMPLATES, TemplateMean, variant
        from broadsheet.embed.sweep import sweep
        from broadsheet.embed.token_prepending import TokenPrepending

        if self.template not in TEMPLATES:
            raise InputError(f"got --template {self.template!r}; expected one of {', '.join(TEMPLATES)}")
        if bool(self.layer) != bool(self.exit):
            raise InputError("got one of --layer and --exit; expected both, or neither to have them chosen")
        begin = time.perf_counter()
        templates = TEMPLATES[self.template]
        model, tokenizer = self._loaded
        settings: dict[str, Any] = {"max_seq_length": self._length, "spec": self._loaded.spec}
        encoder = TokenPrepending(model, tokenizer, template=templates[0], **settings)
        chosen, read, record = {"layer": self.layer, "exit": self.exit}, 0, {}
        if not self.layer:
            given = self._scored_pairs(corpus)
            first, second = [pair.a for pair in given], [pair.b for pair in given]
            found = sweep(encoder, first, second, [pair.score for pair in given], templates=templates)
            print(found.table())
            say(f"chosen on {len(given):,} pairs: {found.best} (Spearman {found.best.spearman:.3f})")
            chosen, read, record = found.best.settings, len(given), asdict(found)
        encoder = variant(encoder, **chosen)
        parts: list[Any] = [encoder, Pooling(encoder.get_embedding_dimension(), "lasttoken")]
        if len(templates) > 1:
            parts = [TemplateMean(encoder, templates)]
        write(Embedder(modules=parts, device=str(encoder.device)).eval(), out, {"data": corpus.spec, "sweep": record})
        seconds = time.perf_counter() - begin
        say(f"use it: broadsheet index DATA --embedder {out} --out INDEX; try it: broadsheet try embed --also {out}")
        return Summary(out, read, 0, seconds, True)

    def _scored_pairs(self, corpus: Corpus) -> list[Any]:
        from broadsheet.embed.data.tasks import sts
        from broadsheet.embed.trials.token_prepending import documented

        if corpus.spec == "pydocs":
            return documented(self.rows or 300, False, self.seed)
        return sts(corpus.spec, self.rows, self.seed, corpus.on_error)

    # Parts

    @property
    def _tuning(self) -> str:
        return self.tune or ("full" if self.method == "lexical_specialization" else "lora")

    @property
    def _length(self) -> int:
        return self.length or 256

    @property
    def _batch(self) -> int:
        return self.batch_size or 16

    def _settings(self, force: bool, epochs: int = 1) -> dict[str, Any]:
        """As `fit` takes them."""
        return {
            "steps": self.steps or None,
            "minutes": self.minutes or None,
            "epochs": self.epochs or epochs,
            "batch_size": self._batch,
            "learning_rate": self.learning_rate or None,
            "method": self._tuning,
            "lora_rank": self.lora_rank,
            "merge": self._tuning == "lora" and not self.adapter,
            "seed": self.seed,
            "force": force,
        }

    def _pairs(self, corpus: Corpus, negatives: int) -> list[dict[str, Any]]:
        wanted = negatives if self.negatives == -1 else self.negatives
        return pairs(corpus, self.rows, words=self.words, negatives=wanted, seed=self.seed)

    @cached_property
    def _loaded(self) -> Loaded:
        from broadsheet import models

        return models.load(self.model, device=self.device or None, dtype=self.dtype or None)

    def _start(self, attention: str, **settings: Any) -> Embedder:
        """The embedder that is trained on: the one named, or the model's mean of token vectors."""
        from broadsheet.embed.base import embedder, load

        if self.embedder:
            return load(self.embedder, device=self.device or None, dtype=self.dtype or None)
        kind: Any = attention
        return embedder(self._loaded, "mean", attention=kind, max_seq_length=self._length, **settings)


def _shard(given: str) -> tuple[int, int]:
    """`"0/4"` as numbers."""
    part, slash, parts = given.partition("/")
    if not given:
        return 0, 1
    if not (slash and part.isdecimal() and parts.isdecimal()):
        raise InputError(f"got --shard {given!r}; expected a share, from 0, and their number, such as 0/4")
    return int(part), int(parts)

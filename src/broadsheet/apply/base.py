"""`Recipe`: how `broadsheet apply` uses a paper. One recipe a paper, with the options that are its own.

Knows: options, inputs by name, outputs that stand whole or not at all. Does not know: any stage.

- `Map`: a document in, a result out, streamed into a JSONL file and resumed after a kill.
- `Train`: rows in, a model folder out, through `training.fit`.
- `Build`: a corpus in, an artefact out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from broadsheet.apply.corpus import Summary, map_corpus
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.data.corpora import Corpus, Document
from broadsheet.data.sources import keep_inputs
from broadsheet.methods import ForPaper
from broadsheet.options import MOST_SEED, option

if TYPE_CHECKING:
    from broadsheet.models import Loaded
    from broadsheet.training.trainer import TrainOutput


@dataclass(frozen=True)
class Source:
    """The data that a command names, and how its rows are read.

    Args:
        spec: a file, a folder, `pydocs`, or `hf:…`.
        on_error: at a bad row, `"stop"` or `"skip"` (counted and reported).
        text_field, id_field: of documents.
    """

    spec: str
    on_error: Literal["stop", "skip"] = "stop"
    text_field: str = "text"
    id_field: str = "id"

    def corpus(self) -> Corpus:
        """It as documents."""
        return corpora.load(self.spec, on_error=self.on_error, text_field=self.text_field, id_field=self.id_field)


@dataclass
class Recipe(ForPaper):
    """What all recipes have. A subclass sets `paper` (or `stage`), declares its own options, and is named `…Recipe`.

    An option that a recipe does not declare is an error of the command: nothing is ignored. A stage's own recipe
    (`stage = "detect"`) serves each paper of the stage that has none of its own.

    Attributes:
        writes: what `--out` becomes.
        needs: options without which it does not run, as its example gives them: `--teacher small`.
    """

    writes: ClassVar[Literal["file", "folder"]] = "folder"
    needs: ClassVar[str] = ""

    model: str = option("default", "`default`, a hub id, a folder, or a .gguf file.", metavar="MODEL")
    seed: int = option(0, "Of sampling, order and initial weights.", least=0, most=MOST_SEED)
    device: str | None = option(None, "Where the model runs; chosen by default.", metavar="NAME")
    dtype: str | None = option(None, "Of the model; chosen by default.", metavar="NAME")
    method: str | None = option(
        None, "Fields of the paper's method, as in 'lastdepp(scales=15)'.", metavar="NAME(FIELD=VALUE)"
    )

    def run(self, source: Source, out: Path, *, force: bool = False) -> Summary:
        """Do it, or resume what was stopped.

        Raises:
            InputError: an option, the data or the model cannot be used; `out` is the data, or stands finished.
        """
        keep_inputs(out, source.spec, *(getattr(self, each.name) for each in fields(self)))
        return self.apply(source, out, force)

    @abstractmethod
    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        """What `run` does after its checks."""

    def loaded(self) -> Loaded:
        """The model and its tokenizer."""
        from broadsheet import models

        return models.load(self.model, device=self.device, dtype=self.dtype)


@dataclass
class Map(Recipe):
    """A function from documents to results: one JSON line for each document, in corpus order, through kills.

    A subclass gives `settings` and `results`, and loads what it needs in `prepare`.
    """

    writes: ClassVar[Literal["file", "folder"]] = "file"

    batch: int = option(64, "Documents read at once.", least=1)

    def prepare(self) -> None:
        """Load what `results` needs; called once, before the first batch."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that results depend on besides the documents, as JSON values; a stopped run resumes under the same."""

    @abstractmethod
    def results(self, documents: list[Document]) -> Sequence[Mapping[str, Any]]:
        """A result for each document, without the key `id`."""

    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        corpus = source.corpus()
        self.prepare()
        return map_corpus(corpus, out, self.results, batch_size=self.batch, settings=self.settings(), force=force)


@dataclass
class Train(Recipe):
    """Rows to a model folder. A subclass reads its rows in `rows`, and trains in `train`.

    A stage's own subclass declares the options that its trainings share, and says how the result is used.
    """

    usage: ClassVar[str] = ""

    steps: int | None = option(None, "Steps of the optimizer; as many as --epochs make where not given.", least=1)
    minutes: float = option(30.0, "Of training, at most; 0: no limit.", least=0)
    epochs: int = option(1, "How often the data is read, at most.", least=1)
    batch_size: int = option(16, "Rows of a step.", least=1)
    learning_rate: float | None = option(None, "By default 2e-4 for adapters, 2e-5 for all weights.", least=0)
    tune: Literal["lora", "full"] = option("lora", "Train adapters, or all weights.")
    lora_rank: int = option(16, "Of the adapters.", least=1)

    @abstractmethod
    def train(self, source: Source, out: Path, force: bool) -> TrainOutput:
        """Train into `out`; its checkpoints are resumed."""

    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        if out.exists() and not force:
            raise InputError(f"{out} exists; choose another --out, or --force to replace it")
        done = self.train(source, out, force)
        if done.finished:
            say(
                f"{out}: {done.examples:,} rows, {done.tokens:,} tokens in {done.steps:,} steps, "
                f"{done.seconds / 60:.1f} minutes"
            )
            if self.usage:
                say(self.usage.format(out=out))
        else:
            say(f"stopped after {done.steps:,} steps; the same command without --force resumes")
        return Summary(out, done.examples, 0, done.seconds, done.finished)

    def settings(self, **defaults: Any) -> dict[str, Any]:
        """The options of `training.fit`; `defaults` hold where the user gave none."""
        given = {
            "steps": self.steps,
            "minutes": self.minutes or None,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "method": self.tune,
            "lora_rank": self.lora_rank,
            "seed": self.seed,
        }
        return {**given, **defaults}


@dataclass
class Build(Recipe):
    """A corpus to an artefact. A subclass builds it in `build`, whole or not at all."""

    @abstractmethod
    def build(self, corpus: Corpus, out: Path, force: bool) -> Summary:
        """Build `out` from `corpus`."""

    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        return self.build(source.corpus(), out, force)

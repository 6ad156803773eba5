"""`broadsheet apply` for the papers of the stage: each trains a causal LM further on texts.

OUT is a folder that `from_pretrained` and `--model OUT` read. Knows: documents, blocks, methods of the stage.
Does not know: how any of them works.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from broadsheet.apply.base import Source, Train
from broadsheet.console import InputError, say
from broadsheet.options import option

if TYPE_CHECKING:
    from broadsheet.models import Loaded
    from broadsheet.train.base import LossMethod
    from broadsheet.training.scratch import TokenBlocks
    from broadsheet.training.trainer import TrainOutput


@dataclass
class FurtherTraining(Train):
    """What trainings share: the model reads the documents, joined and cut to blocks."""

    usage: ClassVar[str] = "use it: broadsheet try ID --model {out}, or AutoModelForCausalLM.from_pretrained('{out}')"

    length: int = option(512, "Tokens of a block.", least=8)
    limit: int | None = option(None, "Documents of DATA at random, at most.", least=1)

    @cached_property
    def base(self) -> Loaded:
        """The model and its tokenizer."""
        return self.loaded()

    def loss_method(self, steps: int) -> LossMethod:
        """The loss, for a training of so many steps; by default the plain one."""
        from broadsheet.train.base import LossMethod

        return LossMethod()

    def rates(self, steps: int) -> dict[str, Any]:
        """Settings of `fit` for the learning rate, where they are the method's own."""
        return {}

    def told(self, rows: Any, steps: int) -> str:
        """What is to be said before the training; empty where nothing is."""
        return ""

    def rows(self, texts: Sequence[str], out: Path) -> Any:
        """The documents as rows, by default joined and cut; rows that are whole batches hold the whole training.

        Args:
            out: where the trained model will be; what has to be made first may lie beside it.

        Raises:
            InputError: the documents fill no row.
        """
        from broadsheet.training.scratch import TokenBlocks, joined

        return TokenBlocks(joined(texts, self.base.tokenizer), self.length)

    def texts(self, source: Source) -> list[str]:
        """The documents' texts.

        Raises:
            InputError: the tokenizer has no end of text.
        """
        if self.base.tokenizer.eos_token_id is None:
            raise InputError(f"the tokenizer of {self.model} has no token that ends a text; expected one that has")
        corpus = source.corpus()
        return [document.text for document in (corpus.take(self.limit, self.seed) if self.limit else corpus)]

    def train(self, source: Source, out: Path, force: bool) -> TrainOutput:
        from broadsheet.train.base import MethodObjective
        from broadsheet.training.fit import fit

        rows = self.rows(self.texts(source), out)
        size = 1 if getattr(rows, "whole", False) else self.batch_size
        epochs = 1 if getattr(rows, "in_order", False) else self.epochs  # which holds the whole training
        steps = self.steps or max(1, len(rows) * epochs // size)
        method = self.loss_method(steps)
        self.check_calls()
        if told := self.told(rows, steps):
            say(told)
        model, tokenizer = self.base.model, self.base.tokenizer

        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        settings: dict[str, Any] = self.settings(steps=steps) | {"batch_size": size} | self.rates(steps)
        return fit(
            model,
            rows,
            MethodObjective(method, paper=self.paper),
            out,
            save=save,
            merge=self.tune == "lora",
            force=force,
            **settings,
        )


@dataclass
class BesideOldText(FurtherTraining):
    """Trainings of all weights on new text that also read some of the old."""

    tune: Literal["lora", "full"] = option("full", "Train adapters, or all weights.")
    old: str | None = option(
        None, "Texts like those that the model was trained on: a file, a folder, a name.", metavar="DATA"
    )

    def planned(self, new: Sequence[Any]) -> int:
        """Steps of the training: as many as are given, or as the new text makes."""
        return self.steps or max(1, len(new) * self.epochs // self.batch_size)

    def blocks(self, texts: Iterable[str]) -> TokenBlocks:
        """Texts joined and cut."""
        from broadsheet.training.scratch import TokenBlocks, joined

        return TokenBlocks(joined(texts, self.base.tokenizer), self.length)

    def old_texts(self, steps: int) -> list[str]:
        """As many of the old texts as so many steps could read, or all."""
        from broadsheet.data import corpora

        most = steps * self.batch_size * self.length // 200  # a document has more tokens than that
        return [each.text for each in corpora.load(str(self.old)).take(max(200, most), self.seed)]


@dataclass
class ContinualPretrainingRecipe(BesideOldText):
    """Train all weights on new texts: the learning rate up and down again, some of the old text in each batch."""

    paper: ClassVar[str] = "continual_pretraining"

    replay: float = option(0.05, "Share of each batch that is of --old: 0.25 where the texts differ much.", least=0)

    @cached_property
    def _method(self) -> Any:
        from broadsheet.train.continual_pretraining import ContinualPretraining

        high = 3e-4 if self.learning_rate is None else self.learning_rate
        return self.configured(
            ContinualPretraining, max_lr=high, min_lr=high / 10, replay=self.replay if self.old else 0.0, seed=self.seed
        )

    def rows(self, texts: Sequence[str], out: Path) -> Any:
        new = self.blocks(texts)
        steps = self.planned(new)
        if self.old is None:
            say("no --old: nothing is replayed, and what the model knew may get worse")
        old = new if self.old is None else self.blocks(self.old_texts(steps))
        return self._method.rows(new, old, self.batch_size, steps)

    def rates(self, steps: int) -> dict[str, Any]:
        return {"learning_rate": self._method.max_lr, "schedule": self._method.schedule(steps)}


@dataclass
class CriticalMixtureRatioRecipe(BesideOldText):
    """Train all weights on new and old texts, at the ratio that short runs tell."""

    paper: ClassVar[str] = "cmr"
    needs: ClassVar[str] = "--old old.jsonl"

    probe: int = option(60, "Steps of each of the short runs.", least=12)
    ratios: tuple[float, ...] = option((0.125, 0.25, 0.5, 0.75, 1.0), "Shares of new text in the short runs.")
    epsilon: float = option(0.017, "By which old text may get worse, in nats a byte.", least=0)

    def rows(self, texts: Sequence[str], out: Path) -> Any:
        from broadsheet.train.cmr import CriticalMixtureRatio
        from broadsheet.train.probes import mixture_run
        from broadsheet.training.mixing import Mixture
        from broadsheet.training.scratch import apart, document_losses

        if self.old is None:
            raise InputError("a mixture needs --old DATA: texts like those that the model was trained on")
        steps = self.planned(self.blocks(texts))
        split = [apart(each, 48, 1, self.seed, least=200) for each in (texts, self.old_texts(steps))]

        def measure(model: Any) -> tuple[float, float]:
            of = [document_losses(model, self.base.tokenizer, each.held_out, self.length).mean() for each in split]
            return float(of[0]), float(of[1])

        new, old = (self.blocks(each.train) for each in split)
        runs = []
        for ratio in self.ratios:
            say(f"a short run at {ratio:.0%} of new text".replace("%", " %"))
            place = out.with_name(f"{out.name}.runs") / f"{ratio:g}"
            place.parent.mkdir(parents=True, exist_ok=True)
            runs.append(
                mixture_run(
                    ratio, self.loaded().model, new, old, measure, place, steps=self.probe, batch=self.batch_size,
                    rate=self._rate, seed=self.seed,
                )
            )  # fmt: skip
        law = CriticalMixtureRatio(**{**self.fields(CriticalMixtureRatio, epsilon=self.epsilon), "runs": runs})
        found = law.predict(steps * self.batch_size * self.length, samples=50, seed=self.seed)
        say(f"critical ratio at {steps:,} steps: {found} of new text")
        if found.value is None:
            raise InputError(
                f"no share of new text is feasible in {steps:,} steps: give more steps, a lower --learning-rate, or a "
                "larger --epsilon"
            )
        return Mixture(new, old, 1 - found.value, self.batch_size, steps, self.seed)

    @property
    def _rate(self) -> float:
        return 3e-5 if self.learning_rate is None else self.learning_rate

    def rates(self, steps: int) -> dict[str, Any]:
        return {"learning_rate": self._rate, "schedule": "constant", "warmup": 0.05}


@dataclass
class DatasetDecompositionRecipe(FurtherTraining):
    """Train on pieces of documents, each step on those of one length, the short ones first, again and again."""

    paper: ClassVar[str] = "dataset_decomposition"

    length: int = option(
        512, "Tokens of the longest pieces, a power of two; a step reads as many times --batch-size.", least=8
    )
    shortest: int = option(32, "Tokens of the shortest pieces, a power of two; shorter ends are dropped.", least=1)

    def rows(self, texts: Sequence[str], out: Path) -> Any:
        from broadsheet.train.dataset_decomposition import DatasetDecomposition, power_of_two
        from broadsheet.training.scratch import tokens_of

        low, high = power_of_two(self.shortest, "--shortest"), power_of_two(self.length, "--length")
        method = self.configured(DatasetDecomposition, low=low, high=high, seed=self.seed)
        tokens = self.batch_size * self.length
        return method.rows(tokens_of(texts, self.base.tokenizer), tokens, epochs=self.epochs)


@dataclass
class LLMPrunerRecipe(FurtherTraining):
    """Remove the MLP channels and attention heads that matter least, and repair the model by a LoRA training."""

    paper: ClassVar[str] = "llm_pruner"

    ratio: float = option(0.25, "Share of each layer's units that is removed.", least=0)
    samples: int = option(10, "Texts of DATA by which units are scored.", least=1)
    window: int = option(128, "Tokens of each of them.", least=2)
    lora_rank: int = option(8, "Of the adapters.", least=1)

    def rows(self, texts: Sequence[str], out: Path) -> Any:
        from broadsheet.train.llm_pruner import LLMPruner, calibration

        rows = super().rows(texts, out)
        pruner = self.configured(LLMPruner, ratio=self.ratio, seed=self.seed)
        given = calibration(texts, self.base.tokenizer, self.samples, self.window, self.seed)
        done = pruner.prune(self.base.model, given)
        say(str(done))
        if not done.plain:
            # The class's own line would not work.
            self.usage = "use it: --model {out}, or broadsheet.models.load('{out}'); from_pretrained cannot read it"  # type: ignore[misc]
        return rows


@dataclass
class LossReweightingRecipe(FurtherTraining):
    """Train on texts of which each weighs in a step by its own loss."""

    paper: ClassVar[str] = "loss_reweighting"

    def loss_method(self, steps: int) -> LossMethod:
        from broadsheet.train.loss_reweighting import LossReweighting

        # The paper's 1,000 of 20,000 steps, as a share.
        return self.configured(LossReweighting, burn_in=min(1_000, max(1, steps // 20)))


@dataclass
class TokenCrisisRecipe(FurtherTraining):
    """Train on few texts many times, with dropout from a step on."""

    paper: ClassVar[str] = "token_crisis"

    start: float = option(0.3, "Share of the steps after which dropout begins.", least=0)

    def loss_method(self, steps: int) -> LossMethod:
        from broadsheet.train.token_crisis import DropStage

        return self.configured(DropStage, start=round(self.start * steps))

    def told(self, rows: Any, steps: int) -> str:
        from broadsheet.train.token_crisis import RepetitionPlan

        weights = sum(each.numel() for each in self.base.model.parameters())
        return RepetitionPlan(len(rows) * self.length, steps, self.batch_size, self.length, weights).warning


@dataclass
class SALTRecipe(FurtherTraining):
    """Train on texts, where a smaller model of the same tokenizer teaches at first."""

    paper: ClassVar[str] = "salt"
    needs: ClassVar[str] = "--teacher runs/small"

    teacher: str | None = option(None, "The smaller model: a folder or a hub id; needed.", metavar="MODEL")
    taught: float = option(0.17, "Share of the steps that it teaches.", least=0)

    def loss_method(self, steps: int) -> LossMethod:
        from broadsheet import models
        from broadsheet.train.salt import SALT

        if self.teacher is None:
            raise InputError("SALT needs --teacher MODEL: a smaller model of the same tokenizer")
        teacher = models.load(self.teacher, device=self.device, dtype=self.dtype).model
        own, theirs = self.base.model.config.vocab_size, teacher.config.vocab_size
        if own != theirs:
            raise InputError(f"{self.teacher} has {theirs:,} tokens, {self.model} {own:,}; expected the same tokenizer")
        given = self.fields(SALT, steps=max(1, round(steps * self.taught)))
        return SALT(**{**given, "teacher": teacher})

"""The laboratory: small models trained from nothing, each in another way, on equal tokens and, where asked, equal time.

Knows: texts held apart, rows, methods, learning rates, the pace of a step. Does not know: any paper, or its loss.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, say
from broadsheet.data import corpora
from broadsheet.models.safefiles import read_json
from broadsheet.options import best_of, option
from broadsheet.training import memory
from broadsheet.training.fit import fit
from broadsheet.training.objective import NextTokens
from broadsheet.training.scratch import SIZES, TokenBlocks, apart, document_losses, joined, size, tokenizer
from broadsheet.training.trainer import TrainOutput
from broadsheet.trial.base import EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.examples import excerpt, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Curve, Example
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.trained.pace import stepper

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PLAIN, LOSS, PACE = "plain", "loss", "steps/s"
LOSS_METRIC = Metric(LOSS, higher_is_better=False, unit="nats/byte")
LEAST = 0.02  # nats a byte, one per cent of a small model's loss: a smaller gain would not matter
RATES = (1e-3, 3e-3, 6e-3)  # of AdamW, that each arm's is chosen from
_TUNING = 32  # documents
_RACED = 30  # steps whose time is compared, spread over the training
_PACED = 6  # steps by which it is told beforehand how many fit in another arm's time


@dataclass(frozen=True)
class LabArm:
    """A way to train.

    Args:
        name, role, about, paper: as in `ModelArm`.
        method: a seed to what is trained by, as the trial's `objective` takes it; by default the plain loss.
        rows: what is trained on, by name; the trial's `rows` gives them for each seed.
        share: of the steps.
        in_time_of: another arm, in the time of whose training this one has to end: its steps are then fewer.
        rate_of: the arm whose learning rate it takes; its own is chosen where this is empty.
        rate: its learning rate, where that is a part of what it is.
        start: a seed to the model that it begins with; by default a new one.
        schedule: steps and the highest rate to a schedule of `fit`; by default half a cosine after a warm-up.
    """

    name: str
    method: Callable[[int], Any] = field(default=lambda seed: None, repr=False)
    about: str = ""
    paper: str = ""
    role: Any = None
    rows: str = ""
    share: float = 1.0
    in_time_of: str = ""
    rate_of: str = ""
    rate: float | None = None
    start: Callable[[int], Any] | None = field(default=None, repr=False, compare=False)
    schedule: Callable[[int, float], Any] | None = field(default=None, repr=False, compare=False)


@dataclass
class Laboratory(TrainedTrial):
    """The base of trials that train small models: a subclass gives the arms (`lab`) and what they read (`rows`).

    All arms of a seed begin with the same weights and read the same rows in the same order; each one's learning rate
    is chosen on documents of their own. Two tasks: steps of all arms in turns, for their pace; and held-out documents,
    for the loss, in nats a byte.
    """

    lacks: ClassVar[tuple[str, ...]] = ("model", "dtype")
    of_training: ClassVar[tuple[str, ...]] = ()  # the pace is a task of its own, in turns

    texts: int = option(200, "Held-out documents.", quick=30, least=3)
    steps: int = option(300, "Of training, for each run of each arm.", quick=40, least=12)
    batch: int = option(16, "Rows of a step.", quick=8, least=1)
    length: int = option(256, "Tokens of a row.", quick=128, least=8)
    size: str = option("1M", "Of the model, in weights.", choices=tuple(SIZES), quick="0.4M")
    vocabulary: int = option(2048, "Tokens of a tokenizer that is trained on the texts.", least=257)
    lr: float | None = option(
        None,
        f"The highest learning rate; by default {best_of(RATES)} after a third of the steps, for each arm that has its "
        "own.",
        quick=3e-3,
    )
    text_field: str = option("text", "The field of the data that holds the text.")

    # What a subclass says

    @abstractmethod
    def lab(self) -> Sequence[LabArm]:
        """The arms; the first one is the baseline. `prepared` texts and rows are there."""

    def rows(self, name: str, seed: int) -> Any:
        """The rows of that name, for a run of that seed; by default the training texts, joined and cut.

        Rows that are whole batches have an attribute `whole` that is True, and hold the whole training.
        """
        return self.plain_rows

    # What a subclass may say otherwise

    def objective(self, method: Any, watched: Any = None) -> NextTokens:
        """What an arm's method minimises; by default the plain loss.

        Args:
            watched: gives what is logged after a step, `(model, step)` to values by name.
        """
        return NextTokens(watched)

    def prepare(self, corpus: Any) -> None:
        """Make `held`, `tokenizer` and `plain_rows` of the data."""
        # A token has about three bytes; what is not needed is not read.
        wanted = self.steps * self.batch * self.length // 60 + 4 * self.texts
        self.held = apart(corpus.take(max(2_000, wanted), self.seed), self.texts, _TUNING, self.seed)
        self.tokenizer = tokenizer(self.held.train, self.vocabulary)
        self.plain_rows = TokenBlocks(joined(self.held.train, self.tokenizer), self.length)

    def asked(self) -> Sequence[Any]:
        """What is held out."""
        return list(self.held.held_out)

    def measured(self) -> list[Metric]:
        """Of what is held out."""
        return [LOSS_METRIC]

    def losses(self, model: Any, asked: Sequence[Any]) -> dict[str, np.ndarray]:
        """Each measure of some of what is held out."""
        return {LOSS: self.of_documents(model, asked)}

    def tuning_loss(self, model: Any) -> float:
        """By which settings are chosen, on documents that are held out for that."""
        return float(self.of_documents(model, self.held.tuning).mean())

    def shown(self, item: Any) -> str:
        """What is held out, as the report's examples show it."""
        return excerpt(item)

    # The laboratory

    def of_documents(self, model: Any, texts: Sequence[str]) -> np.ndarray:
        """What each text costs a model, in nats a byte."""
        return document_losses(model, self.tokenizer, texts, self.length)

    def check(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise InputError(f"got --lr {self.lr:g}; expected more than 0")

    def tasks(self) -> list[EvalTask]:
        self._device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._corpus = corpora.load(self.data, text_field=self.text_field)
        self.prepare(self._corpus)
        items = self.asked()
        if len(items) < self.texts:
            say(f"{len(items)} documents are held out, of {self.texts} wanted")
        # Each block has steps of all parts of the training: some are dearer, where a method changes on its way.
        raced = np.linspace(0, self.steps - 1, min(_RACED, self.steps)).astype(int)
        raced = np.random.default_rng(self.seed).permutation(raced).tolist()
        return [
            EvalTask(
                "pace",
                raced,
                [],
                self._racer,
                item="step",
                about=f"{len(raced)} steps spread over the training, all arms in turns",
                fingerprint=fingerprint(raced),
                block_size=max(1, len(raced) // 10),
            ),
            EvalTask(
                "held out",
                list(items),
                self.measured(),
                self._reader,
                item="text",
                about=f"{len(items)} documents; {self.held.dropped} like them are not learnt from",
                fingerprint=self.held.fingerprint,
                block_size=max(1, len(items) // 10),
                examples=self._examples,
            ),
        ]

    def facts(self) -> dict[str, Any]:
        return {}  # no model is loaded

    def setting(self) -> Mapping[str, Any]:
        made = size(self.size).model(len(self.tokenizer), self.length, 0)
        read = self.steps * self.batch * self.length
        have = self.plain_rows.ids.numel()
        return {
            "model": f"a Llama of {sum(p.numel() for p in made.parameters()):,} weights, from nothing",
            "tokens": f"BPE of {len(self.tokenizer):,}, trained on the texts",
            "training": f"{self.steps} steps of {self.batch} × {self.length} tokens: {read:,}, {read / have:.2f} times "
            "what there is; AdamW, learning rate "
            + ", ".join(f"{rate:g} ({name})" for name, rate in self._rates.items()),
            "data": self._corpus.describe(),
            "device": self._device,
        }

    def arms(self) -> list[ModelArm]:
        self._lab = {arm.name: arm for arm in self.lab()}
        first = next(iter(self._lab))
        self._rates = {name: self._rate(arm) for name, arm in self._lab.items() if not (arm.rate_of or arm.rate)}
        return [
            self.trained(
                name,
                partial(self._train, arm),
                self._load,
                "baseline" if name == first else arm.role,
                arm.about,
                arm.paper,
            )
            for name, arm in self._lab.items()
        ]

    def figures(self, outcome: Outcome) -> list[Curve]:
        lines: dict[str, list[float | None]] = {}
        seen: list[float] = []
        for name in self._lab:
            path = self.folder(name) / "training.json"
            found = [each for each in read_json(path)["history"] if "eval_watched" in each] if path.exists() else []
            if len(found) == 10:
                lines[name] = [each["eval_watched"] for each in found]
                seen = seen or [each["step"] for each in found]
        return [Curve("Loss while training", "step", "nats/byte", seen, lines)] if lines else []

    # An arm

    def new(self, seed: int) -> LlamaForCausalLM:
        """A new model, on its device."""
        return size(self.size).model(len(self.tokenizer), self.length, seed).to(self._device)

    def _train(
        self, arm: LabArm, seed: int, out: Path, *, share: float = 1.0, rate: float | None = None
    ) -> TrainOutput:
        steps, rate = max(12, round(self._steps(arm) * share)), rate or self._rate_of(arm)
        model = arm.start(seed) if arm.start else self.new(seed)
        schedule = arm.schedule(steps, rate) if arm.schedule else "cosine"
        return self.fitted(model, self.rows(arm.rows, seed), arm.method(seed), out, steps, rate, seed, schedule)

    def fitted(
        self,
        model: Any,
        rows: Any,
        method: Any,
        out: Path,
        steps: int,
        rate: float,
        seed: int,
        schedule: Any = "cosine",
    ) -> TrainOutput:
        """A model trained into a folder, with its loss on the tuning documents ten times along the way."""

        def watch(model: Any, step: int) -> Mapping[str, float]:
            return {} if step % max(1, steps // 10) else {"watched": self.tuning_loss(model)}

        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

        return fit(
            model, rows, self.objective(method, watch), out, save=save, steps=steps, batch_size=self._batch_of(rows),
            learning_rate=rate, schedule=schedule, warmup=0.05, weight_decay=0.1, adam_beta2=0.95, seed=seed,
        )  # fmt: skip

    def _load(self, folder: Path) -> Any:
        from broadsheet import models

        return models.load(str(folder), device=self._device, dtype="float32").model.eval()

    def _reader(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        """Training happens once, before the arm first reads."""

        def run(block: Sequence[Any]) -> dict[str, Any]:
            return self.losses(lazy(), block)

        return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)

    def _batch_of(self, rows: Any) -> int:
        """How many of these rows a step reads."""
        return 1 if getattr(rows, "whole", False) else self.batch

    # Time

    def _racer(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        """Steps of a model of its own, which is thrown away."""
        state: dict[str, Any] = {}

        def prepare() -> None:
            state["step"] = self._stepper(self._lab[arm.name])

        def run(block: Sequence[int]) -> dict[str, Any]:
            with memory.kept():
                for step in block:
                    state["step"](step)
            return {"done": np.ones(len(block))}

        return Arm(arm.name, run, description=arm.description, prepare=prepare, close=state.clear)

    def _stepper(self, arm: LabArm) -> Callable[[int], None]:
        """A function that makes one step of an arm's training, as at that place of it."""
        model, rows = self.paced(arm), self.rows(arm.rows, self.seed)
        size, objective = self._batch_of(rows), self.objective(arm.method(self.seed))
        objective.prepare(model)
        make = stepper(model, lambda model, batch: objective.loss(model, batch, torch.Generator()))

        def step(number: int) -> None:
            places = [(number * size + i) % len(rows) for i in range(size)]
            batch = objective.collate([(place, rows[place]) for place in places])
            objective.step = number
            make(batch)

        return step

    def paced(self, arm: LabArm) -> Any:
        """The model whose steps tell an arm's pace; a new one, where all arms are of one kind."""
        return self.new(self.seed)

    def _steps(self, arm: LabArm) -> int:
        """How many steps an arm is trained for."""
        if not arm.in_time_of:
            return max(12, round(self.steps * arm.share))
        path = self.folder(f"steps of {arm.name}").with_suffix(".json")
        if not path.exists():
            with atomic_write(path) as file:
                json.dump(self._fitting(arm, self._lab[arm.in_time_of]), file)
        return int(json.loads(path.read_text(encoding="utf-8")))

    def _fitting(self, arm: LabArm, other: LabArm) -> int:
        """The steps of one arm that take as long as the training of another, by the pace of both in turns."""
        places = np.linspace(0, self.steps - 1, 4 * _PACED).astype(int).tolist()
        steppers = {each.name: self._stepper(each) for each in (arm, other)}
        seconds: dict[str, list[float]] = {name: [] for name in steppers}
        with memory.kept():
            for place in [0, *places]:
                for name, step in steppers.items():
                    begin = time.perf_counter()
                    step(place)
                    seconds[name].append(time.perf_counter() - begin)
        # The first step of each is its warm-up. Means: a method's dear steps are a part of its training.
        own, theirs = (float(np.mean(seconds[each.name][1:])) for each in (arm, other))
        return max(12, min(self.steps, round(self.steps * theirs / own)))

    # Learning rates

    def _rate_of(self, arm: LabArm) -> float:
        return self._rates[arm.rate_of or arm.name] if arm.rate is None else arm.rate

    def _rate(self, arm: LabArm) -> float:
        """The learning rate given, or the one that leaves the lowest loss on the tuning documents."""
        if self.lr is not None:
            return self.lr

        def train(rate: float, out: Path) -> TrainOutput:
            return self._train(arm, self.seed, out, share=1 / 3, rate=rate)

        return self.chosen(arm.name, RATES, train, "after a third of it", open_ended=True)

    def chosen(
        self,
        name: str,
        settings: Sequence[float],
        train: Callable[[float, Path], TrainOutput],
        when: str = "",
        *,
        open_ended: bool = False,
    ) -> float:
        """The setting whose training leaves the lowest loss on the tuning documents; what is there is not redone.

        Args:
            name: of what is chosen.
            settings: as many as for every other choice of the trial.
            train: a setting's training into a folder.
            when: in the training the choice is made, for the report.
            open_ended: as in `tuned`.
        """

        def score(out: Path) -> float:
            return -self.tuning_loss(self._load(out))

        on = f"{len(self.held.tuning)} other documents" + f", {when}" * bool(when)
        return self.best_run(name, settings, train, score, on=on, open_ended=open_ended)

    def _examples(self, texts: Sequence[Any], arms: Mapping[str, ArmResult]) -> list[Example]:
        """Beginnings of held-out documents, and what each arm makes of them."""
        first = self.measured()[0].name
        losses = [{name: float(arm.samples[first][i]) for name, arm in arms.items()} for i in range(len(texts))]
        return [
            Example(self.shown(texts[i]), {name: f"{loss:.3f} nats a byte" for name, loss in losses[i].items()})
            for i in most_apart(losses, 3)
        ]

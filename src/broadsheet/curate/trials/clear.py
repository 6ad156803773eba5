"""Try CLEAR: targets are shuffled among a third of the rows; are they the ones that are doubted, and does it help?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, quiet
from broadsheet.curate.clear import LOG_PROBABILITY, PMI, Clear, Scores, auto_correct, auto_filter
from broadsheet.curate.targets.answers import AnswerLoss, AnswerRows
from broadsheet.curate.targets.confidence import TOKEN_F1, Floats
from broadsheet.curate.targets.exchanges import Exchange
from broadsheet.curate.trials.planted import planted
from broadsheet.models import adapters
from broadsheet.models.safefiles import read_json
from broadsheet.options import best_of, option
from broadsheet.teacher import Teacher
from broadsheet.teacher.local import Local
from broadsheet.training.fit import fit
from broadsheet.training.trainer import TrainOutput
from broadsheet.trial.base import Claim, EvalTask, ModelArm, Outcome
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.examples import most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Distribution, Example
from broadsheet.trial.stats import labelled_auroc
from broadsheet.trial.trained.arms import TrainedTrial
from broadsheet.trial.verdicts import Comparison

ALL, RANDOM, ORACLE = "all data", "random half", "clean half"
FILTER, CORRECT = "Auto-Filter", "Auto-Filter and Auto-Correct"
LOSS, AUROC = "loss", "AUROC"
LEAST_LOSS, LEAST_AUROC = 0.005, 0.1  # nats a byte, under one per cent of the loss; of an AUROC
RATES = (2e-4, 5e-4, 1e-3)  # of LoRA; the best for all of the data holds for every arm
_TUNING = 32  # rows


@dataclass(frozen=True)
class Tuned:
    """An adapter in a folder, and the seed that it was trained from."""

    folder: Path
    seed: int


@dataclass
class ClearTrial(TrainedTrial):
    """Does a model doubt wrong targets, and is it tuned better without those it doubts?

    A row asks what a function of the standard library does, by its name; the target is the first line of its
    documentation. In 30 % of the rows, drawn once, targets are shuffled, so that each is wrong. The model scores all
    rows before any tuning. Then adapters are trained in it for equal steps on all rows, and on halves of them: those
    that CLEAR keeps, those that our two scores keep, a random half, drawn anew for each run, which is the control of
    the paper's idea, and a half of clean rows, a ceiling. The learning rate is chosen for all rows and holds for each
    arm. What is held out is clean; no row that is trained on is like it.

    AUROC asks whether clean rows get higher scores than shuffled ones; a row is a document, so documents are what is
    resampled.
    """

    paper: ClassVar[str] = "clear"
    title: ClassVar[str] = "CLEAR: dropping and correcting the targets that a model doubts"
    of_training: ClassVar[tuple[str, ...]] = ()  # all arms take equal steps

    data: str = option(
        "pydocs",
        "`pydocs`, `pydocs:stdlib`, or rows with `messages`, or `prompt` and `completion`.",
        metavar="DATA",
    )
    pairs: int = option(200, "Rows that are trained on.", quick=24, least=10)
    texts: int = option(160, "Held-out rows.", quick=16, least=5)
    noise: float = option(0.3, "Share of the rows whose targets are shuffled.", least=0, most=0.9)
    steps: int = option(32, "Of training, for each run of each arm.", quick=4, least=1)
    batch: int = option(8, "Rows of a step.", least=1)
    lora_rank: int = option(8, "Of the adapters.", least=1)
    lr: float | None = option(
        None,
        f"The learning rate; by default {best_of(RATES)} for all of the data.",
        quick=5e-4,
    )
    nli: str = option(
        TOKEN_F1, "A model of natural language inference; token-F1 is a stand-in that needs none.", metavar="MODEL"
    )
    dtype: str = option("float32", "Of the model.", metavar="NAME")

    def check(self) -> None:
        if self.lr is not None and not self.lr > 0:
            raise InputError(f"got --lr {self.lr}; expected more than 0")

    def question(self) -> str:
        return (
            f"Where {100 * self.noise:.0f} % of the targets are wrong, does {self.model_name} doubt those, and is it "
            "tuned better without the half that it doubts?"
        )

    # Data

    def tasks(self) -> list[EvalTask]:
        made = planted(self.data, self.pairs, self.texts, _TUNING, self.noise, self.seed)
        self._rows, self._wrong, self._tuning_rows, self._held = made.train, made.wrong, made.tuning, made.held_out
        return [
            EvalTask(
                "held out",
                self._held,
                [Metric(LOSS, higher_is_better=False, unit="nats/byte")],
                self._reader,
                item="text",
                about=f"{len(self._held)} rows with their own targets",
                fingerprint=fingerprint([each.id for each in self._held]),
                examples=self._examples,
            ),
            EvalTask(
                "confidence",
                list(range(len(self._rows))),
                [Metric(AUROC, statistic=labelled_auroc, bounds=(0, 1))],
                self._scorer,
                item="row",
                about=f"{len(self._rows)} rows, of which {int(self._wrong.sum())} have a target of another",
                fingerprint=fingerprint([each.id for each in self._rows]),
            ),
        ]

    # Scores

    @cached_property
    def _teacher(self) -> Teacher:
        return Teacher(Local(self.loaded.model, self.loaded.tokenizer))

    @cached_property
    def _clear(self) -> Clear:
        short: dict[str, Any] = {"k": 2} if self.quick else {}
        return self.configured(
            Clear, teacher=self._teacher, nli=self.nli, asks="letters", reasoning=False, max_tokens=32, seed=self.seed,
            device=self.device, **short,
        )  # fmt: skip

    @cached_property
    def _scored(self) -> dict[str, Scores]:
        return {}

    def _made(self, name: str) -> Scores:
        """What a score that asks the model makes of the rows, once for all runs."""
        if name not in self._scored:
            ours = {PMI: PMI, LOG_PROBABILITY: LOG_PROBABILITY}
            by = Clear(teacher=self._teacher, by=ours[name]) if name in ours else self._clear
            self._scored[name] = by.score(self._rows)
        return self._scored[name]

    def _score(self, name: str, seed: int) -> Floats:
        """(rows,) by which an arm chooses."""
        draw = np.random.default_rng([self.seed, seed]).random(len(self._rows))
        if name == ALL:
            return np.zeros(len(self._rows))
        if name in (RANDOM, ORACLE):
            return draw + (name == ORACLE) * ~self._wrong  # of the clean rows, some
        return self._made(FILTER if name == CORRECT else name).confidence

    def _kept(self, name: str, seed: int) -> list[int]:
        """The places of the rows that an arm is trained on."""
        return auto_filter(self._score(name, seed), None if name == ALL else "median")[1]

    # Arms

    def arms(self) -> list[ModelArm]:
        ours = Clear.paper
        self.fields(Clear)  # what `--method` may name, before the model is loaded
        abouts = {
            ALL: ("every row", ""),
            RANDOM: ("half of the rows, drawn by the run's seed: as few, and no choice", ""),
            FILTER: (f"confidence from its median on; contradiction by {self.nli}", ours),
            PMI: ("ours: what the prompt adds to the target's log-probability", ""),
        }
        if not self.quick:
            abouts |= {
                LOG_PROBABILITY: ("ours: the target's log-probability a token", ""),
                CORRECT: ("and answers of the model so tuned, where they are surely better", ours),
                ORACLE: ("half of the rows, all with their own targets: a ceiling", ""),
            }
        return [
            self.trained(
                name, partial(self._train, name), self._found, "baseline" if name == ALL else None, about, paper
            )
            for name, (about, paper) in abouts.items()
        ]

    def claims(self) -> list[Claim]:
        claims = [
            Claim(AUROC, RANDOM, FILTER, "a model is less confident in wrong targets", least=LEAST_AUROC),
            Claim(LOSS, ALL, FILTER, "tuning on the half that is kept beats tuning on all", least=LEAST_LOSS),
            Claim(LOSS, RANDOM, FILTER, "and it is the choice that does it, not their number", least=LEAST_LOSS),
        ]
        if not self.quick:
            claims.append(Claim(LOSS, FILTER, CORRECT, "corrected targets add more", least=LEAST_LOSS))
        return claims

    def also_compare(self) -> list[tuple[str, str]]:
        pairs = [(RANDOM, PMI), (FILTER, PMI)]
        return pairs if self.quick else [*pairs, (RANDOM, ORACLE), (LOG_PROBABILITY, PMI)]

    def _train(self, name: str, seed: int, out: Path) -> TrainOutput:
        if name == CORRECT:
            return self._train_corrected(seed, out)
        return self._fitted([self._rows[place] for place in self._kept(name, seed)], seed, out, self._rate)

    def _train_corrected(self, seed: int, out: Path) -> TrainOutput:
        """Auto-Correct of the rows that the run of that seed dropped, and the training anew."""
        filtered = self.run_folder(FILTER, seed)
        if not (filtered / "training.json").exists() and not self._train(FILTER, seed, filtered).finished:
            raise KeyboardInterrupt
        kept = self._kept(FILTER, seed)
        doubted = sorted(set(range(len(self._rows))) - set(kept))
        rows = [self._rows[place] for place in doubted]
        with self._adapted(filtered):
            candidates = self._clear.propose(rows, self._teacher)
        verdicts = self._clear.judge(rows, candidates)
        replaced = auto_correct(verdicts.preferences, verdicts.confidence, self._clear.eta)
        told = {
            "doubted": len(rows),
            "preferred": verdicts.preferences.count("candidate"),
            "ties": verdicts.preferences.count("tie"),
            "surest": float(verdicts.confidence.max(initial=0.0)),
            "replaced": sum(replaced),
            "of wrong targets": int(self._wrong[doubted][replaced].sum()),
        }
        with atomic_write(self._corrections(seed)) as file:
            json.dump(told, file)
        if not any(replaced):  # the same rows: the training would be the same
            shutil.copytree(filtered, out)
            return TrainOutput(0, 0, 0, 0.0, finished=True)
        corrected = [
            Exchange(row.answered(answer)) for row, answer, yes in zip(rows, candidates, replaced, strict=True) if yes
        ]
        return self._fitted([*(self._rows[place] for place in kept), *corrected], seed, out, self._rate)

    def _corrections(self, seed: int) -> Path:
        return self.folder(f"corrections, seed {seed}").with_suffix(".json")

    def _fitted(self, rows: Sequence[Exchange], seed: int, out: Path, rate: float) -> TrainOutput:
        """An adapter trained on rows into a folder; the model is as it was afterwards."""
        model, tokenizer = self.loaded
        made = AnswerRows.of(Local(model, tokenizer), [each.prompt for each in rows], [each.target for each in rows])
        try:
            return fit(
                model, made, AnswerLoss(int(tokenizer.pad_token_id)), out, method="lora", lora_rank=self.lora_rank,
                save=lambda folder: adapters.save(model, folder, self.model), steps=self.steps, batch_size=self.batch,
                learning_rate=rate, schedule="linear", warmup=0.1, seed=seed,
            )  # fmt: skip
        finally:
            adapters.remove(model)

    @cached_property
    def _rate(self) -> float:
        """The learning rate given, or the best for all rows, by the loss on rows held out for that."""
        if self.lr is not None:
            return self.lr

        def score(rate: float) -> float:
            out = self.folder(f"tuning, {rate:g}")
            if not (out / "training.json").exists() and not self._fitted(self._rows, self.seed, out, rate).finished:
                raise KeyboardInterrupt
            with self._adapted(out):
                return -float(self._losses(self._tuning_rows).mean())

        on = f"{len(self._tuning_rows)} other rows; every arm takes it"
        return self.tuned(ALL, RATES, score, on=on, open_ended=True)

    def _found(self, folder: Path) -> Tuned:
        seeds = {self.run_folder(name, seed): seed for name in self._names for seed in self.seeds}
        return Tuned(folder, seeds[folder])

    @property
    def _names(self) -> list[str]:
        return [ALL, RANDOM, FILTER, PMI, LOG_PROBABILITY, CORRECT, ORACLE]

    @contextmanager
    def _adapted(self, folder: Path) -> Iterator[None]:
        """Inside, the model has that adapter."""
        model = self.loaded.model
        adapters.attach(model, folder, self.model)
        try:
            yield
        finally:
            adapters.remove(model)

    def _losses(self, rows: Sequence[Exchange]) -> Floats:
        """(rows,) of the target after its prompt, in nats a byte, by the model as it is."""
        by = Teacher(Local(self.loaded.model, self.loaded.tokenizer), cache=False)
        with quiet():
            found = by.score([each.prompt for each in rows], [[each.target] for each in rows])[:, 0]
        return -found / np.array([len(each.target.encode()) for each in rows])

    def _reader(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        """Training happens once, before the arm first reads."""

        def run(block: Sequence[Exchange]) -> dict[str, Any]:
            with self._adapted(lazy().folder):
                return {LOSS: self._losses(block)}

        return Arm(arm.name, run, description=arm.description, prepare=lazy.prepare)

    def _scorer(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        def run(block: Sequence[int]) -> dict[str, Any]:
            scores = self._score(arm.name, lazy().seed)
            return {AUROC: np.stack([~self._wrong[list(block)], scores[list(block)]], axis=1).astype(np.float64)}

        return Arm(arm.name, run, description=arm.description)

    # What is told

    def setting(self) -> Mapping[str, Any]:
        half = len(self._kept(FILTER, self.seed))
        return {
            "training": f"LoRA of rank {self.lora_rank}, {self.steps} steps of {self.batch} rows at {self._rate:g}: "
            f"{self.steps * self.batch / len(self._rows):.1f} times all of {len(self._rows)} rows, "
            f"{self.steps * self.batch / half:.1f} times half of them",
            "confidence": f"k {self._clear.k}, α {self._clear.alpha:g}, β {self._clear.beta:g}; contradiction by "
            f"{self.nli}; reflection by {self._clear.asks}; "
            + ("answers with reasoning" if self._clear.reasoning else "answers without reasoning"),
            "device": str(self.loaded.model.device),
        }

    def figures(self, outcome: Outcome) -> list[Distribution]:
        found = []
        for name in (FILTER, PMI):
            scores = self._score(name, self.seed)
            groups = {"own target": scores[~self._wrong].tolist(), "another's": scores[self._wrong].tolist()}
            found.append(Distribution(f"{name}: scores", "score, higher = kept", groups))
        return found

    def notes(self, outcome: Outcome) -> list[str]:
        made = self._made(FILTER)
        clean = [
            f"{name} {np.mean([1 - self._wrong[self._kept(name, seed)].mean() for seed in self.seeds]):.0%}"
            for name in outcome.usable
        ]
        told = [
            f"Of the rows that are trained on, these have their own targets: {', '.join(clean)}.".replace("%", " %"),
            f"Parts of the paper's score, mean and spread: {made.told()}. Alone they tell clean rows from wrong ones "
            f"with an AUROC of {self._alone(made.consistency):.3f} (consistency) and "
            f"{self._alone(made.reflection):.3f} (reflection).",
        ]
        for seed in self.seeds:
            path = self._corrections(seed)
            if CORRECT in outcome.usable and path.exists():
                found = read_json(path)
                told.append(
                    f"Auto-Correct, seed {seed}: of {found['doubted']} targets that were dropped, the candidate was "
                    f"preferred in both orders {found['preferred']} times, {found['ties']} were ties, the surest "
                    f"verdict had {found['surest']:.2f}; {found['replaced']} were replaced, of which "
                    f"{found['of wrong targets']} were wrong."
                )
        return told

    def _alone(self, part: Floats | None) -> float:
        assert part is not None  # the paper's score has both
        both = np.stack([~self._wrong, part], axis=1).astype(np.float64)
        return float(labelled_auroc(both, np.ones((1, len(both))))[0])

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        if claim.arm == CORRECT:
            replaced = [read_json(self._corrections(seed))["replaced"] for seed in self.seeds]
            return (
                f"Auto-Correct replaced {' and '.join(map(str, replaced))} targets: it acts where the model's verdict "
                f"is surer than {self._clear.eta:g}, which the paper's models of 7B weights and more may be."
            )
        made = self._made(FILTER)
        return (
            "The paper's models have 7B weights and more, and can judge an answer; here consistency alone has an AUROC "
            f"of {self._alone(made.consistency):.2f}, and reflection {self._alone(made.reflection):.2f}, where .5 is "
            f"chance, and the half that is kept is clean to {1 - self._wrong[self._kept(FILTER, self.seed)].mean():.0%}"
            f" instead of {1 - self._wrong.mean():.0%}.".replace("%", " %")
            + " A larger --model would tell."
        )

    def _examples(self, rows: Sequence[Exchange], arms: Mapping[str, ArmResult]) -> list[Example]:
        losses = [{name: float(arm.samples[LOSS][i]) for name, arm in arms.items()} for i in range(len(rows))]
        return [
            Example(
                f"{rows[i].prompt[-1]['content']}: {rows[i].target}",
                {name: f"{loss:.3f} nats a byte" for name, loss in losses[i].items()},
            )
            for i in most_apart(losses, 3)
        ]

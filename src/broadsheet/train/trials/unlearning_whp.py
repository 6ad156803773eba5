"""Try Who's Harry Potter: a model that has learnt a made-up world is to forget it, and to keep all else."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from broadsheet.models.safefiles import read_json
from broadsheet.options import best_of, option
from broadsheet.train.base import LossMethod
from broadsheet.train.trials.fictional import made_up
from broadsheet.train.trials.forgetting import AGAIN_RATE, FAMILIARITY, FAMILIARITY_AGAIN, UNRELATED, ForgettingTrial
from broadsheet.train.unlearning_whp import GenericLabels, WhosHarryPotter
from broadsheet.training.fit import write
from broadsheet.training.scratch import TokenBlocks, joined
from broadsheet.training.trainer import TrainOutput
from broadsheet.trial.base import Claim, ModelArm, Outcome
from broadsheet.trial.engine import Arm
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.trained.laboratory import LEAST, LabArm
from broadsheet.trial.verdicts import Comparison

KNOWS, NEVER, TENTH = "knows the text", "never read it", "a tenth of what it knew"
OURS, ASCENT = "generic labels", "gradient ascent, as far"
TRANSLATED, BARE = "translated text alone", "no dictionary"
RATES = (1e-5, 3e-5, 1e-4)  # of all that is to forget; that of the first training is 3e-3
_ENOUGH = 0.1  # familiarity, of which something can be forgotten
WORSE = 0.03  # nats a byte, by which unrelated text may get worse: under 2 % of what it costs


class GradientAscent(LossMethod):
    """The plain loss, made as large as it gets: what the text says is to be improbable."""

    def loss(self, logits: Tensor, labels: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, int]:
        total, count = super().loss(logits, labels, inputs)
        return -total, count


class _ReachedError(Exception):
    """A training has come as far as it was to."""


@dataclass
class WhosHarryPotterTrial(ForgettingTrial):
    """Does a model forget what it read, and nothing else?

    A model is trained from nothing on documentation, on short texts about ordinary lives, and again and again on texts
    about a made-up world. That world it is to forget. Familiarity is the probability of a name where another text about
    that world gives it for the first time. Beside the paper's labels stand gradient ascent, stopped where it is as
    unfamiliar on other prompts; the translated text alone, and labels without a dictionary, which are halves of the
    method; and a model that never read of that world. All measures are taken again after a few steps on the text.
    """

    paper: ClassVar[str] = "unlearning_whp"
    title: ClassVar[str] = "Who's Harry Potter: generic labels make a model forget a text, approximately"

    forgetting: int = option(100, "Steps of a training that is to forget, at most.", quick=30, least=4)
    lr: float | None = option(
        None,
        f"The learning rate of trainings that are to forget; by default {best_of(RATES)} for each arm.",
        quick=1e-4,
    )

    def question(self) -> str:
        return (
            f"Does a model that was trained on {self.data} and on a made-up world forget that world by training on "
            "generic labels, and nothing else?"
        )

    # Arms

    def _reader(self, arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        made = super()._reader(arm, lazy, kept)
        if arm.name != TENTH:
            return made

        def run(block: Sequence[Any]) -> dict[str, Any]:
            found: Any = made.run(block)
            return {**found, FAMILIARITY: found[FAMILIARITY] / 10}

        return replace(made, run=run)

    def lab(self) -> Sequence[LabArm]:
        ours = WhosHarryPotter.paper
        arms = [
            LabArm(KNOWS, about="the model that all others begin with"),
            LabArm(TENTH, about="its familiarity divided by ten", role="sibling"),
            LabArm(OURS, about="the paper's", paper=ours, rows=OURS),
            LabArm(
                ASCENT, lambda seed: GradientAscent(), "the text's own tokens made improbable", "", "sibling", ASCENT
            ),
        ]
        if not self.quick:
            arms += [
                LabArm(NEVER, about="the same first training without it", role="sibling"),
                LabArm(TRANSLATED, about="trained on stand-ins", role="sibling", rows=TRANSLATED),
                LabArm(BARE, about="labels by the reinforced model alone", role="sibling", rows=BARE),
            ]
        return [replace(arm, rate=self._best(arm) if arm.rows else 1.0) for arm in arms]

    def rows(self, name: str, seed: int) -> Any:
        if name == TRANSLATED:
            translate = self._method().translator
            texts = [translate(text).translated for text in self.learnt]
            return TokenBlocks(joined(texts, self.tokenizer), self.length)
        if name in (OURS, BARE):
            return self._labels(name, seed)
        return self.learnt_rows

    def _method(self, **fields: Any) -> WhosHarryPotter:
        return self.configured(WhosHarryPotter, **{"dictionary": self.dictionary, **fields})

    def _labels(self, name: str, seed: int) -> GenericLabels:
        """The labels of one run, by its own reinforced model."""
        path = self.folder(f"labels of {name}, {seed}").with_suffix(".safetensors")
        kept = GenericLabels.load(path)
        if kept is None:
            method = self._method() if name == OURS else self._method(dictionary={})
            base, reinforced = self.begun(seed), self._reinforced(seed)
            kept = method.rows(self.learnt, self.tokenizer, reinforced, base, self.length, self.batch)
            kept.save(path)
        return kept

    def _train(
        self, arm: LabArm, seed: int, out: Path, *, share: float = 1.0, rate: float | None = None
    ) -> TrainOutput:
        if arm.name in (KNOWS, TENTH, NEVER):
            shutil.copytree(self.begun_folder(seed, taught=arm.name != NEVER), out)
            return TrainOutput(0, 0, 0, 0.0, finished=True)
        model, rate = self.begun(seed), rate or self._rate_of(arm)
        if arm.name == ASCENT:
            return self._ascended(model, arm, seed, out, rate)
        rows = self.rows(arm.rows, seed)
        return self.further(model, rows, arm.method(seed), out, self.forgetting, rate, seed)

    def _ascended(self, model: Any, arm: LabArm, seed: int, out: Path, rate: float) -> TrainOutput:
        """Gradient ascent, until other prompts are as unfamiliar to it as to the paper's model of the same seed."""
        target, reached, begin = self._target(seed), 0, time.monotonic()

        def watch(model: Any, step: int) -> Mapping[str, float]:
            nonlocal reached
            reached = step
            if self.still_known(model) <= target:
                raise _ReachedError
            return {}

        try:
            if not self.further(
                model, self.rows("", seed), arm.method(seed), None, self.forgetting, rate, seed, watch
            ).finished:
                raise KeyboardInterrupt
        except _ReachedError:
            pass

        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

        rows = reached * self.batch
        done = TrainOutput(reached, rows, rows * self.length, time.monotonic() - begin, finished=True)
        write(out, save, asdict(done))
        return done

    def _target(self, seed: int) -> float:
        """How familiar the other prompts are to the paper's model of a seed, which is trained where it is not yet."""
        folder = self.run_folder(OURS, seed)
        if not (folder / "training.json").exists() and not self._train(self._lab_arm, seed, folder).finished:
            raise KeyboardInterrupt
        return self.still_known(self._load(folder))

    @property
    def _lab_arm(self) -> LabArm:
        """The paper's arm, whose rate is chosen first."""
        arm = LabArm(OURS, rows=OURS)
        return replace(arm, rate=self._best(arm))

    def _reinforced(self, seed: int) -> Any:
        """The model that has read the text three times more, at a tenth of the first rate."""
        folder = self.folder(f"reinforced, {seed}")
        if not (folder / "training.json").exists():
            steps = max(1, 3 * len(self.learnt_rows) // self.batch)
            model = self.begun(seed)
            if not self.further(model, self.learnt_rows, LossMethod(), folder, steps, AGAIN_RATE, seed).finished:
                raise KeyboardInterrupt
        return self._load(folder)

    # The rates of what is to forget

    def _best(self, arm: LabArm) -> float:
        """The best rate of an arm: a tenfold fall of familiarity weighs as much as `WORSE` of unrelated text."""
        if self.lr is not None:
            return self.lr
        if arm.name in self._rates_found:
            return self._rates_found[arm.name]

        def train(rate: float, out: Path) -> Any:
            return self._train(arm, self.seed, out, rate=rate)

        def score(out: Path) -> float:
            model = self._load(out)
            worse = self.tuning_loss(model) - self._tuning_before
            if arm.name == ASCENT:  # as far is a part of what it is; then the less that is lost the better
                known, wanted = (math.log10(each + 1e-9) for each in (self.still_known(model), self._target(self.seed)))
                return -100 * max(0.0, known - wanted) - worse / WORSE
            return -math.log10(self.still_known(model) + 1e-3) - max(0.0, worse) / WORSE

        on = f"{len(self._tuning_prompts)} other prompts and {len(self.held.tuning)} other documents"
        found: float = self.best_run(arm.name, RATES, train, score, on=on, open_ended=True)
        self._rates_found[arm.name] = found
        return found

    @cached_property
    def _rates_found(self) -> dict[str, float]:
        return {}

    @cached_property
    def _tuning_before(self) -> float:
        return self.tuning_loss(self.begun(self.seed))

    # Claims and what is told

    def claims(self) -> list[Claim]:
        claims = [
            Claim(FAMILIARITY, KNOWS, OURS, "familiarity falls, from 0.244 to 0.006 in the paper", effect=0.238),
            Claim(FAMILIARITY, TENTH, OURS, "and more than tenfold; fortyfold in the paper", least=0.005),
            Claim(UNRELATED, KNOWS, OURS, "unrelated text gets hardly worse", margin=WORSE),
            Claim(UNRELATED, ASCENT, OURS, "gradient ascent that forgets as much costs more", least=LEAST),
        ]
        if not self.quick:
            claims += [
                Claim(FAMILIARITY, NEVER, OURS, "it is as unfamiliar as a model that never read it", margin=0.02),
                Claim(FAMILIARITY, TRANSLATED, OURS, "stand-ins alone leave a residue", least=0.005),
                Claim(FAMILIARITY, BARE, OURS, "so does the reinforced model alone", least=0.005),
            ]
        return claims

    def setting(self) -> Mapping[str, Any]:
        found = {name: value for name, value in super().setting().items() if name != "training"}
        made = {word for person in made_up(self.people, self.seed) for word in person.names}
        words = {each.term for each in self._terms if " " not in each.term}
        rows = self._labels(OURS, self.seed)
        read = self.steps * self.batch * self.length
        rates = ", ".join(f"{arm.rate:g} ({name})" for name, arm in self._lab.items() if arm.rows)
        return {
            **found,
            "training": f"{self.steps} steps of {self.batch} × {self.length} tokens: {read:,}, {self.taught:.0%} of "
            f"them of the made-up world; then {self.forgetting} steps at {rates}".replace("%", " %"),
            "to be forgotten": f"{len(self.learnt)} texts about {self.people} people, "
            f"{self.learnt_rows.ids.numel():,} tokens",
            "dictionary": f"{len(self.dictionary)} terms, found by their capitals and counts: {len(words & made)} of "
            f"{len(made)} names, and {len(words - made)} words that are none",
            "labels": f"{rows.changed:.0%} are others than the text's tokens; {1 - rows.asked:.0%} of the tokens have "
            "none".replace("%", " %"),
            "relearning": f"{self.relearning} steps on the text at {AGAIN_RATE:g}",
        }

    def notes(self, outcome: Outcome) -> list[str]:
        told = []
        for name in (OURS, ASCENT, NEVER):
            arm = outcome.usable.get(name)
            if arm is not None and FAMILIARITY_AGAIN in arm.values:
                before, after = (arm.values[metric].estimate for metric in (FAMILIARITY, FAMILIARITY_AGAIN))
                told.append(f"{name} {before:.3g} → {after:.3g}")
        note = f"Familiarity after {self.relearning} steps on the text again: {'; '.join(told)}."
        return [
            f"{note} What comes back faster than a model learns that never read it was not deleted.",
            f"Gradient ascent was stopped after {self._stopped} steps.",
        ]

    @property
    def _stopped(self) -> str:
        folders = [self.run_folder(ASCENT, seed) for seed in self.seeds]
        return ", ".join(str(read_json(each / "training.json")["steps"]) for each in folders if each.exists())

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        known = outcome.usable[KNOWS].values[FAMILIARITY].estimate
        if claim.metric == FAMILIARITY and known < _ENOUGH:
            return f"The model had hardly learnt the text ({known:.2g}); give more --steps, --taught or --size."
        if claim.metric == UNRELATED:
            return (
                "Its model has 7B weights and a rate of 1e-6: what it knows lies apart. A model of a million weights "
                "has no room for a step on one text that leaves the others alone; and ascent that is stopped at the "
                "right step, which takes a measure after each, takes very few."
            )
        return "Its model knew the text far better than it could be taught here, and knew common names from elsewhere."

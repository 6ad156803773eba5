"""Trials of unlearning: a small model learns documentation and a made-up world, and is to forget the world again.

Knows: the laboratory, texts about people that a seed makes up, measures of what is known. Does not know: any paper.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from broadsheet import models
from broadsheet.models.safefiles import read_json
from broadsheet.options import option
from broadsheet.train.base import LossMethod
from broadsheet.train.trials.fictional import made_up, ordinary, told
from broadsheet.train.trials.lab import LabTrial
from broadsheet.train.unlearning.familiarity import Prompt, anchored_prompts, continuations, familiarity, rouge_l
from broadsheet.train.unlearning.terms import TermFinder
from broadsheet.training.fit import fit
from broadsheet.training.mixing import Mixture
from broadsheet.training.scratch import TokenBlocks, apart, joined, tokenizer
from broadsheet.training.trainer import TrainOutput
from broadsheet.trial.base import EvalTask, Outcome
from broadsheet.trial.engine import Metric
from broadsheet.trial.examples import ending, excerpt
from broadsheet.trial.results import ArmResult, Curve, Example
from broadsheet.trial.trained.laboratory import LOSS_METRIC

FAMILIARITY, UNRELATED, RELATED, VERBATIM = "familiarity", "unrelated loss", "related loss", "verbatim ROUGE-L"
FAMILIARITY_AGAIN, UNRELATED_AGAIN = "familiarity, relearnt", "unrelated loss, relearnt"
FIRST_RATE, AGAIN_RATE = 3e-3, 3e-4  # of the first training at its highest; of one on the text again
_VERSIONS = 4  # texts about each person that are not learnt; one of them to tune on
_TUNING = 32


@dataclass(frozen=True)
class WorldItem:
    """An item: a prompt about the world, and texts of three kinds."""

    prompt: Prompt
    unrelated: str
    related: str
    learnt: str


@dataclass
class ForgettingTrial(LabTrial):
    """The base: what is learnt (`begun`), what is asked, and how fast it is learnt again.

    Familiarity is the probability of a name where another text about the world gives it for the first time. Related
    texts are about ordinary lives in the same sentences; what is learnt of them is to stay. Verbatim is how a learnt
    text is gone on with, beside how it does.
    """

    texts: int = option(120, "Items: prompts about the world, and held-out texts of each kind.", quick=30, least=6)
    steps: int = option(300, "Of the first training, in which all is learnt.", quick=150, least=12)
    length: int = option(128, "Tokens of a row.", quick=128, least=8)
    people: int = option(16, "Of the made-up world.", quick=4, least=4)
    versions: int = option(8, "Texts about each of them, which are learnt, and then to be forgotten.", least=2)
    taught: float = option(0.5, "Share of the first training that is of that world.", least=0, most=1)
    relearning: int = option(20, "Steps on the text afterwards, by which it comes back.", quick=6, least=1)

    # What is learnt, and what is asked

    def prepare(self, corpus: Any) -> None:
        drawn = random.Random(self.seed)
        lives = made_up(self.people, self.seed)
        self.learnt = [told(person, drawn) for person in lives for _ in range(self.versions)]
        others = [[told(person, drawn) for person in lives] for _ in range(_VERSIONS)]
        wanted = self.steps * self.batch * self.length // 60 + 4 * self.texts
        self.held = apart(corpus.take(max(2_000, wanted), self.seed), self.texts, _TUNING, self.seed)
        related = ordinary(max(500, self.steps * 8), self.seed)
        self._lives = ordinary(self.texts, self.seed + 1)
        known = [*self.held.train, *related]
        self._terms = TermFinder()(self.learnt, known)
        self.dictionary = {each.term: each.stand_in for each in self._terms}
        self.tokenizer = tokenizer([*known, *self.learnt], self.vocabulary)
        drawn.shuffle(known)
        self.plain_rows, self.learnt_rows = (
            TokenBlocks(joined(texts, self.tokenizer), self.length) for texts in (known, self.learnt)
        )
        self._tuning_prompts = anchored_prompts(others[0], self.dictionary, 2 * _TUNING, self.seed)
        asked = [text for texts in others[1:] for text in texts]
        self._prompts = anchored_prompts(asked, self.dictionary, self.texts, self.seed)

    def asked(self) -> Sequence[Any]:
        learnt = random.Random(self.seed).choices(self.learnt, k=self.texts)
        return [
            WorldItem(*each) for each in zip(self._prompts, self.held.held_out, self._lives, learnt, strict=False)
        ]  # fmt: skip

    def tasks(self) -> list[EvalTask]:
        return super().tasks()[1:]  # some arms are not trained at all: there is no pace to compare

    def measured(self) -> list[Metric]:
        known = Metric(
            FAMILIARITY, higher_is_better=False, bounds=(0.0, 1.0), cluster=lambda item: item.prompt.words[0],
            counted="terms",
        )  # fmt: skip
        return [
            known,
            replace(LOSS_METRIC, name=UNRELATED),
            replace(LOSS_METRIC, name=RELATED),
            Metric(VERBATIM, higher_is_better=False, bounds=(0.0, 1.0)),
            replace(known, name=FAMILIARITY_AGAIN),
            replace(LOSS_METRIC, name=UNRELATED_AGAIN),
        ]

    def losses(self, model: Any, asked: Sequence[Any]) -> dict[str, np.ndarray]:
        prompts, unrelated = [each.prompt for each in asked], [each.unrelated for each in asked]
        again = self._again(model)
        said = continuations(model, self.tokenizer, [each.learnt for each in asked])
        return {
            FAMILIARITY: self._familiarity(model, prompts),
            UNRELATED: self.of_documents(model, unrelated),
            RELATED: self.of_documents(model, [each.related for each in asked]),
            VERBATIM: np.array([rouge_l(*each) for each in said]),
            FAMILIARITY_AGAIN: self._familiarity(again, prompts),
            UNRELATED_AGAIN: self.of_documents(again, unrelated),
        }

    def _familiarity(self, model: Any, prompts: Sequence[Prompt]) -> np.ndarray:
        return familiarity(model, self.tokenizer, prompts, self.length)

    def still_known(self, model: Any) -> float:
        """Familiarity on the prompts to tune on."""
        return float(self._familiarity(model, self._tuning_prompts).mean())

    # Trainings

    def begun(self, seed: int) -> Any:
        """The model that knows the text."""
        return self._load(self.begun_folder(seed)).train()

    def begun_folder(self, seed: int, taught: bool = True) -> Path:
        """Where the model after the first training is, `taught` of the made-up world or not."""
        folder: Path = self.folder(f"first, {seed}, {taught}")
        if not (folder / "training.json").exists():
            rows = Mixture(
                self.plain_rows, self.learnt_rows, self.taught if taught else 0.0, self.batch, self.steps, seed
            )
            done = self.fitted(self.new(seed), rows, LossMethod(), folder, self.steps, FIRST_RATE, seed)
            if not done.finished:
                raise KeyboardInterrupt
        return folder

    def further(
        self, model: Any, rows: Any, method: LossMethod | None, out: Path | None, steps: int, rate: float, seed: int,
        watch: Any = None,
    ) -> TrainOutput:  # fmt: skip
        """A model trained on, at a constant rate."""

        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

        return fit(
            model, rows, self.objective(method, watch), out, save=save, steps=steps, batch_size=self.batch,
            learning_rate=rate, schedule="constant", warmup=0.0, seed=seed,
        )  # fmt: skip

    # Learning it again

    def _again(self, model: Any) -> Any:
        """The model after a few steps on the text; made once for the same weights."""
        found = getattr(model, "again", None)
        if found is None:
            folder = self.folder(f"again, {models.fingerprint(model)}")
            if not (folder / "training.json").exists():
                learner = copy.deepcopy(model)

                def watch(model: Any, step: int) -> Mapping[str, float]:
                    return {FAMILIARITY: self.still_known(model)}

                steps, rate = self.relearning, AGAIN_RATE
                done = self.further(learner, self.learnt_rows, LossMethod(), folder, steps, rate, self.seed, watch)
                if not done.finished:
                    raise KeyboardInterrupt
            found = self._load(folder)
            model.__dict__["again"] = found  # no part of it
        return found

    def figures(self, outcome: Outcome) -> list[Curve]:
        lines: dict[str, list[float | None]] = {}
        drawn = set()
        for name in outcome.usable:
            model = self._load(self.folder(name))
            mark = models.fingerprint(model)
            if mark not in drawn:
                self._again(model)
                history = read_json(self.folder(f"again, {mark}") / "training.json")["history"]
                lines[name] = [self.still_known(model), *(each[f"eval_{FAMILIARITY}"] for each in history)]
                drawn.add(mark)
        steps = [float(step) for step in range(self.relearning + 1)]
        return [Curve("Familiarity as the text is learnt again", "steps on the text", "probability", steps, lines)]

    # What is shown

    def shown(self, item: Any) -> str:
        return ending(item.prompt.context, 120)

    def _examples(self, items: Sequence[Any], arms: Mapping[str, ArmResult]) -> list[Example]:
        """Prompts, and how probable each arm finds what the text goes on with."""
        places = np.linspace(0, len(items) - 1, 3).astype(int).tolist()
        return [
            Example(
                f"{self.shown(items[i])} {excerpt(items[i].prompt.words[0])}",
                {name: f"{float(arm.samples[FAMILIARITY][i]):.2g}" for name, arm in arms.items()},
            )
            for i in places
        ]

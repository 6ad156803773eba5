"""Stage 3 of SALMONN's trial: stories that a trained arm writes about clips, and the arms that learn them.

Knows: the arms after stage 2, how stories are written, learnt and judged. Does not know: the other questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from broadsheet.cache import fingerprint
from broadsheet.clock import measure
from broadsheet.console import InputError, say
from broadsheet.hear.data.rows import AudioRow, read_rows, write_rows
from broadsheet.hear.salmonn import SalmonnForConditionalGeneration
from broadsheet.hear.training.activating import FACTOR, activate, write_stories
from broadsheet.hear.training.fitting import TrainOutput
from broadsheet.hear.trials.arms import RATES, Run, TrainedArms, finished, keep, stands
from broadsheet.hear.trials.following import NAMED_STORIES, stories
from broadsheet.hear.trials.metrics import SPEECH, AudioQuestion, HearTask, jobs, questions
from broadsheet.hear.trials.roster import ACTIVATED, MAIN, REHEARSED, plain
from broadsheet.models.safefiles import read_json
from broadsheet.options import best_of, option

FACTORS = (FACTOR, 0.25, 0.1)  # of the adapter's scaling: the first at which all of stage 3's stories come out


@dataclass
class ToldArms(TrainedArms):
    """Trained arms, and those that learn stories after them."""

    activation_steps: int = option(12, "Of stage 3, one story each.", quick=2, least=1)
    activation_learning_rate: float | None = option(
        None,
        f"Of both in stage 3; by default {best_of(RATES)} by the stories about clips that are held back, less the "
        "words of those clips that are then wrong, for each arm that has this stage.",
        quick=1e-4,
        least=0,
    )
    rehearsed: int = option(7, "Rows of stage 2 beside each story in the arm that rehearses; 0: no such arm.", least=0)
    factor: float | None = option(
        None,
        f"Of the adapter's scaling while stage 3's stories are written (the paper: {FACTOR:g}, 4 becomes 2); by "
        f"default the first of {', '.join(f'{factor:g}' for factor in FACTORS)} at which there is one about each "
        "clip: an adapter that was trained hard needs less.",
        least=0,
    )
    story_tokens: int = option(80, "Of a story at most, when one is asked for.", least=1)

    def _trained(self, run: Run) -> Path:
        return self._activated(run) if plain(run.name) in (ACTIVATED, REHEARSED) else super()._trained(run)

    def _activated(self, run: Run) -> Path:
        """After stage 3; both arms of it learn from the same stories."""
        last = self._stage(run, "stage3")
        if not stands(last):
            rows = self._stories_of(run.seed)
            rate = self._story_rate(run.name)
            say(f"training: {self._spelt(run)}")
            (_, fitted), _, peak = measure(lambda told: self._tuned_on(told, run, last, rate), rows)
            finished(fitted, last, peak)
        return last

    def _tuned_on(
        self, told: Sequence[AudioRow], run: Run, out: Path | None, rate: float
    ) -> tuple[SalmonnForConditionalGeneration, TrainOutput]:
        """SALMONN after stage 3 on stories, at a learning rate."""
        model = self._load(self._trained(Run(MAIN, run.seed)), run.name)
        training: Any = {"steps": self.activation_steps, "learning_rate": rate, "seed": run.seed}
        if run.name == REHEARSED:
            training |= {"rehearse": self.rows_["stage2"], "rehearsed": self.rehearsed}
        fitted, _ = activate(model, [], out, stories=told, **training)
        return model, fitted

    def _stories_of(self, seed: int) -> list[AudioRow]:
        """What stage 3 of a training run learns: the data's own stories, where it has some."""
        rows = self.rows_["stories"]
        return rows if all(row.answer for row in rows) else self._written("written", seed, rows, self.factors_)

    @property
    def factors_(self) -> Sequence[float]:
        """Of the adapter's scaling, those that stories may be written at, in turn."""
        return FACTORS if self.factor is None else (self.factor,)

    def _factor(self, seed: int) -> float:
        """That by which stage 3's stories of a training run were written; the first of all, where it wrote none."""
        path = self._factor_file(seed)
        return float(read_json(path)["factor"]) if path.exists() else self.factors_[0]

    def _how_written(self) -> list[str]:
        """At which part of the adapter's scaling stage 3's stories were written, in a sentence."""
        told = [read_json(path)["factor"] for seed in self.seeds if (path := self._factor_file(seed)).exists()]
        parts = ", ".join(f"{factor:g}" for factor in told)
        return [f"Stage 3's stories were written at {parts} of the adapter's scaling."] if told else []

    def _factor_file(self, seed: int) -> Path:
        return self._story_file("written", seed).with_suffix(".json")

    def _story_file(self, name: str, seed: int) -> Path:
        return self.workdir / f"{name}-{fingerprint([MAIN, seed])}.jsonl"

    def _written(
        self, name: str, seed: int, rows: Sequence[AudioRow], factors: Sequence[float], **settings: Any
    ) -> list[AudioRow]:
        """Stories that SALMONN writes after stage 2 at a weaker adapter, once for all arms.

        Args:
            name: of the file that keeps them; the journals have the names of what is asked.
            seed: of the training run.
            factors: of the adapter's scaling, tried in turn until there is a story about each clip; without that, the
                one that brings most.
            settings: of `write_stories`.

        Raises:
            InputError: no factor brings a story.
        """
        file = self._story_file(name, seed)
        if not file.exists():
            model = self._load(self._trained(Run(MAIN, seed)), MAIN, asked=True)
            told: list[AudioRow] = []
            for factor in factors:
                try:
                    found = write_stories(model, rows, factor=factor, seed=seed, **settings)
                except InputError:
                    if factor == factors[-1] and not told:
                        raise
                    continue
                if len(found) > len(told):
                    told, used = found, factor
                if len(told) == len(rows):
                    break
            keep(file.with_suffix(".json"), {"factor": used})
            write_rows(file, told)
        return read_rows(file)

    def _about_clips(self, asked: Sequence[AudioQuestion]) -> HearTask:
        """Requests for a story about the clips of questions."""
        return stories(asked, {row.answer for row in self.rows_["stage2"]}, self.story_tokens)

    def _story_rate(self, name: str) -> float:
        """The learning rate of stage 3 in an arm: the one given, or the best by stories of what is heard.

        What the paper gains by this stage costs it no transcripts, so that words which are wrong count against a rate.
        """
        if self.activation_learning_rate is not None:
            return self.activation_learning_rate
        told, held = self._stories_of(self.seed), self.rows_["tuning"]
        asked = questions(held, self.seed)
        about = self._about_clips(asked)
        spoken = [job for job in jobs(held, asked, self.longest_) if job.name == SPEECH]

        def answered(model: SalmonnForConditionalGeneration, job: HearTask) -> list[Mapping[str, Any]]:
            answers = model.answers([(list(each.audio), each.instruction) for each in job.questions], **job.generation)
            return [job.judge(*each) for each in zip(job.questions, answers, strict=True)]

        def score(rate: float) -> float:
            model, fitted = self._tuned_on(told, Run(name, self.seed), None, rate)
            if not fitted.finished:
                raise KeyboardInterrupt
            named = [each[NAMED_STORIES] for each in answered(model, about)]
            wrong, said = np.sum([each["words"] for job in spoken for each in answered(model, job)] or [(0, 1)], axis=0)
            return sum(named) / len(named) - min(1.0, float(wrong / said))

        on = (
            f"stories about {len(about.questions)} clips that no arm is trained on, less the share of words that are "
            "wrong in their transcripts"
        )
        return self.tuned(name, RATES, score, on=on, open_ended=True)

"""Try critical mixture ratios: the ratio that short runs predict, beside ratios that are usual."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from broadsheet.options import option
from broadsheet.train.cmr import CriticalMixtureRatio, Ratio
from broadsheet.train.probes import mixture_run
from broadsheet.train.trials.two_texts import NEW, OLD, TwoTextsTrial
from broadsheet.training.mixing import Mixture
from broadsheet.training.trainer import TrainOutput
from broadsheet.trial.base import Claim, Outcome
from broadsheet.trial.results import Curve
from broadsheet.trial.trained.laboratory import LEAST, LabArm
from broadsheet.trial.verdicts import Comparison

HALF, PREDICTED, MOST, ALL = "half new text", "the predicted share", "three quarters", "new text alone"
BEFORE = "before"
RATIOS = (0.125, 0.25, 0.5, 0.75, 1.0)  # of the short runs
_SAMPLES = 100  # of the bootstrap


@dataclass
class CriticalMixtureRatioTrial(TwoTextsTrial):
    """How much new text may a model read, and keep the old?

    Runs at five shares of new text, each from the model that has learnt the old one, tell by their losses along the way
    which share is critical at the budget. A training at that share stands beside ones at a half, at three quarters and
    at new text alone, and beside the model before.
    """

    paper: ClassVar[str] = "cmr"
    title: ClassVar[str] = "Critical mixture ratios: how much new text a model may read and keep the old"

    epsilon: float = option(
        0.017, "By which old text may get worse, in nats a byte: 0.05 a token, of three bytes.", least=0
    )
    probe: float = option(
        1.0, "Length of the runs that tell the share, in the steps of the training itself.", least=0.1
    )

    def question(self) -> str:
        return (
            f"Is the share of {self.data} that short runs predict as much as a model of {self.old} can read without "
            f"losing more than {self.epsilon:g} nats a byte of that?"
        )

    def lab(self) -> Sequence[LabArm]:
        share = self._share
        ours = LabArm(
            PREDICTED, about=f"{share:.0%}".replace("%", " %"), paper=CriticalMixtureRatio.paper, rows=PREDICTED
        )
        arms = [LabArm(HALF, about="as much old text", rows=HALF), ours, LabArm(BEFORE, role="sibling")]
        if not self.quick:
            arms += [LabArm(MOST, role="sibling", rows=MOST), LabArm(ALL, role="sibling", rows=ALL)]
        return [self._constant(arm) for arm in arms]

    def _constant(self, arm: LabArm) -> LabArm:
        """The arm from the model before, at the one rate of all."""
        return replace(arm, start=self.begun, rate=self._further, schedule=lambda steps, rate: "constant")

    @property
    def _further(self) -> float:
        """The rate of all that is trained further: a tenth of the first one, as in the paper."""
        return self.first_rate / 10

    def rows(self, name: str, seed: int) -> Any:
        shares = {HALF: 0.5, PREDICTED: self._share, MOST: 0.75, ALL: 1.0}
        if name not in shares:
            return super().rows(name, seed)
        return Mixture(self.plain_rows, self.old_rows, 1 - shares[name], self.batch, self.steps, seed)

    def _train(self, arm: LabArm, seed: int, out: Path, **more: Any) -> TrainOutput:
        if arm.name != BEFORE:
            return super()._train(arm, seed, out, **more)
        shutil.copytree(self.begun_folder(seed), out)
        return TrainOutput(0, 0, 0, 0.0, finished=True)

    # The prediction

    @cached_property
    def law(self) -> CriticalMixtureRatio:
        """What the short runs tell."""
        steps = max(12, round(self.probe * self.steps))
        run = partial(
            mixture_run, domain=self.plain_rows, general=self.old_rows, measure=self.tuning_losses, steps=steps,
            batch=self.batch, rate=self._further, seed=self.seed,
        )  # fmt: skip
        runs = [run(ratio, self.begun(self.seed), out=self.folder(f"run at {ratio:g}")) for ratio in RATIOS]
        return CriticalMixtureRatio(**{**self.fields(CriticalMixtureRatio, epsilon=self.epsilon), "runs": runs})

    @cached_property
    def predicted(self) -> Ratio:
        """At the budget of the training."""
        return self.law.predict(self.steps * self.batch * self.length, samples=_SAMPLES, seed=self.seed)

    @property
    def _share(self) -> float:
        return self.predicted.value or RATIOS[0]

    def claims(self) -> list[Claim]:
        claims = [
            Claim(OLD, BEFORE, PREDICTED, "at the critical ratio old text is no worse by ε", margin=self.epsilon),
            Claim(NEW, HALF, PREDICTED, "and more of the new text is learnt than at a cautious share", least=LEAST),
        ]
        if not self.quick:
            claims += [Claim(OLD, ALL, PREDICTED, "new text alone forgets more", least=LEAST)]
        return claims

    def setting(self) -> Mapping[str, Any]:
        turns = ", ".join(f"{ratio:.0%} {_when(turn)}" for ratio, turn in self.law.turning_points.items())
        return {
            **super().setting(),
            "critical ratio": f"{self.predicted} of new text",
            "general loss turns": turns.replace("%", " %"),
        }

    def notes(self, outcome: Outcome) -> list[str]:
        if self.predicted.value is None:
            return [
                f"No share is feasible at this budget: the arm reads {RATIOS[0]:.0%} of new text.".replace("%", " %")
            ]
        return []

    def figures(self, outcome: Outcome) -> list[Curve]:
        runs = {f"{run.ratio:.0%} new".replace("%", " %"): run for run in self.law.runs}
        tokens = [float(each) for each in self.law.runs[0].tokens]
        rise: dict[str, list[float | None]] = {
            name: [float(each) - run.before[1] for each in run.general] for name, run in runs.items()
        }
        return [*super().figures(outcome), Curve("Old text, less what it was", "tokens", "nats/byte", tokens, rise)]

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return "Its models have 460M to 3.1B weights, and have learnt their general text far longer than the new one."


def _when(turn: float) -> str:
    """A turning point in words."""
    return "at once" if turn == 0 else "never" if turn == float("inf") else f"after {turn:,.0f} tokens"

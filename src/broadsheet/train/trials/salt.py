"""Try SALT: a small model teaches for the first steps, and not for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from broadsheet.options import option
from broadsheet.train.base import LossMethod
from broadsheet.train.salt import SALT
from broadsheet.train.trials.lab import LabTrial
from broadsheet.training.scratch import SIZES, document_losses, size
from broadsheet.trial.base import Claim, Outcome
from broadsheet.trial.trained.laboratory import LEAST, LOSS, PLAIN, LabArm
from broadsheet.trial.verdicts import Comparison

OURS, WHOLE, SHORT, TIMED = "SALT", "taught throughout", "SALT, 70 % of the steps", "SALT in the plain run's time"
FASTER = 0.7  # of the steps, after which SALT is as good as the plain run


@dataclass
class SALTTrial(LabTrial):
    """Does a model learn faster where a smaller one teaches it at first?

    The teacher is smaller than the student, was trained on the same text for as many steps, and its cost is not
    counted, as in the paper. Beside SALT stand the plain run; a run that is taught throughout, which the paper finds
    worse; SALT after 70 % of the steps, where the paper says that it has caught up; and SALT stopped when the plain run
    ends by the clock, the teacher's reading counted.
    """

    paper: ClassVar[str] = "salt"
    title: ClassVar[str] = "SALT: a small model teaches a larger one, at first"

    teacher: str = option("0.4M", "Size of the teacher, in weights.", choices=tuple(SIZES))
    taught: float = option(0.17, "Share of the steps that it teaches.", least=0, most=1)

    def question(self) -> str:
        return (
            f"Trained from nothing on {self.data}, does a model of {self.size} weights learn faster where one of "
            f"{self.teacher} teaches it for the first {self.taught:.0%} of the steps?"
        )

    def lab(self) -> Sequence[LabArm]:
        fields = self.fields(SALT, steps=max(1, round(self.steps * self.taught)))
        fields.pop("teacher", None)

        def taught(share: float = 1.0, **more: Any) -> Any:
            given = {**fields, "steps": max(1, round(fields["steps"] * share)), **more}
            return lambda seed: SALT(self._teacher(), **given)

        ours = SALT.paper
        arms = [
            LabArm(PLAIN, about="next tokens alone"),
            LabArm(OURS, taught(), "a small model teaches at first", ours),
        ]
        if not self.quick:
            arms += [
                LabArm(WHOLE, taught(steps=self.steps), "to the end", "", "sibling", rate_of=OURS),
                LabArm(SHORT, taught(FASTER), "a whole training of fewer steps", ours, share=FASTER, rate_of=OURS),
                LabArm(TIMED, taught(), "as many steps as fit", ours, in_time_of=PLAIN, rate_of=OURS),
            ]
        return arms

    def claims(self) -> list[Claim]:
        claims = [Claim(LOSS, PLAIN, OURS, "at equal steps it is a little better (47.94 against 47.32)", least=LEAST)]
        if not self.quick:
            claims += [
                Claim(LOSS, WHOLE, OURS, "a weak teacher must stop: taught to the end a model is worse", least=LEAST),
                Claim(LOSS, PLAIN, SHORT, "70 % of the steps reach the plain run (abstract)", margin=0.01),
                Claim(LOSS, PLAIN, TIMED, "it is faster by the clock too, by some 25 %", least=LEAST),
            ]
        return claims

    def setting(self) -> Mapping[str, Any]:
        loss = document_losses(self._teacher(), self.tokenizer, self.held.tuning, self.length).mean()
        return {**super().setting(), "teacher": f"{self.teacher} weights, {loss:.3f} nats/byte on tuning documents"}

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Its teacher has 1.5B weights and its student 2.8B, which sees 545 billion tokens; here a student reads "
            f"{self.steps * self.batch * self.length:,}, of which single tokens teach it most."
        )

    def _teacher(self) -> Any:
        """The teacher, trained once for all."""
        folder: Path = self.folder("teacher")
        if not (folder / "training.json").exists():
            model = size(self.teacher).model(len(self.tokenizer), self.length, self.seed).to(self._device)
            rate = self.lr or 3e-3
            done = self.fitted(model, self.plain_rows, LossMethod(), folder, self.steps, rate, self.seed)
            if not done.finished:
                raise KeyboardInterrupt
        return self._load(folder)

"""Try continual pretraining: a model that has learnt one text learns another, in the ways of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from broadsheet.train.continual_pretraining import ContinualPretraining, Infinite, Rewarmed
from broadsheet.train.trials.two_texts import BOTH, NEW, OLD, TwoTextsTrial
from broadsheet.training.mixing import Mixture
from broadsheet.trial.base import Claim, Outcome
from broadsheet.trial.trained.laboratory import LEAST, LabArm
from broadsheet.trial.verdicts import Comparison

LOW, WARM, LITTLE, REPLAY = "lowest rate", "warmed again", "with 5 % replay", "with 25 % replay"
INFINITE, UNION = "infinite, 25 % replay", "all text, from nothing"
SHARES = {LITTLE: 0.05, REPLAY: 0.25, INFINITE: 0.25}
_CONSTANT, _LOWEST = 0.55, 0.1  # of the highest rate
_COOLED, _ANNEALED = 0.6, 0.15  # of the first steps; of the last ones


@dataclass
class ContinualPretrainingTrial(TwoTextsTrial):
    """How is a model to learn new text, and keep what it knew?

    A model is trained from nothing on the old text, and then further on the new one for as many steps: at the rate that
    it ended with; with the rate up and down again; with a share of each batch from the old text beside; and from a
    first training of an infinite schedule, on its constant. A model that is trained from nothing on both texts, in all
    those steps together, is what they are to come close to.
    """

    paper: ClassVar[str] = "continual_pretraining"
    title: ClassVar[str] = "Continual pretraining: warm up again, decay again, replay"

    def question(self) -> str:
        return (
            f"A model that was trained from nothing on {self.old} reads {self.data}: what does it learn, and what does "
            "it forget?"
        )

    # Arms

    def lab(self) -> Sequence[LabArm]:
        ours, lowest = ContinualPretraining.paper, _LOWEST * self.first_rate
        began = self._begun
        arms = [
            LabArm(
                LOW, about=f"{lowest:g}, to the end", start=began, rate=lowest, schedule=lambda steps, rate: "constant"
            ),
            LabArm(WARM, about="the rate up, and down again", paper=ours, start=began, schedule=self._again),
            LabArm(
                REPLAY, about="and old text in each batch", paper=ours, rows=REPLAY, start=began, schedule=self._again
            ),
        ]
        if not self.quick:
            little = LabArm(LITTLE, about="less of it", paper=ours, rows=LITTLE, start=began, schedule=self._again)
            endless = LabArm(
                INFINITE, about="from the constant of an infinite schedule", paper=ours, rows=INFINITE,
                start=partial(self.begun, schedule=self._infinite, name="first, infinite"), rate=self.first_rate,
                schedule=lambda steps, rate: self._infinite.annealed(
                    self.steps + round((1 - _ANNEALED) * steps), round(_ANNEALED * steps)
                ).since(self.steps),
            )  # fmt: skip
            union = LabArm(UNION, about="twice the steps", role="sibling", rows=UNION, share=2.0)
            arms += [replace(little, rate_of=REPLAY), endless, union]
        return arms

    def _again(self, steps: int, rate: float) -> Rewarmed:
        return ContinualPretraining(rate, rate * _LOWEST, 0.02).schedule(steps)

    @property
    def _infinite(self) -> Infinite:
        high, cooled = self.first_rate, round(_COOLED * self.steps)
        warm = min(cooled, max(1, self.steps // 20))
        return Infinite(high, _CONSTANT * high, _LOWEST * high, warm, cooled)

    def _begun(self, seed: int) -> Any:
        return self.begun(seed, self._again(self.steps, self.first_rate))

    def rows(self, name: str, seed: int) -> Any:
        if name == UNION:
            return Mixture(self.plain_rows, self.old_rows, 0.5, self.batch, 2 * self.steps, seed)
        if name in SHARES:
            given = self.fields(ContinualPretraining, replay=SHARES[name], seed=seed)
            return ContinualPretraining(**given).rows(self.plain_rows, self.old_rows, self.batch, self.steps)
        return super().rows(name, seed)

    # Claims

    def claims(self) -> list[Claim]:
        claims = [
            Claim(NEW, LOW, WARM, "without the rate up again, little is learnt of the new text", least=LEAST),
            Claim(OLD, WARM, REPLAY, "replay keeps what was known (1.4 nats lost become 0.16 with 25 %)", least=LEAST),
        ]
        if not self.quick:
            claims += [
                Claim(NEW, WARM, REPLAY, "and costs little of the new text", margin=0.02),
                Claim(BOTH, UNION, REPLAY, "as good as all the text from nothing, for half the steps", margin=0.02),
                Claim(OLD, WARM, LITTLE, "5 % of replay help already", least=LEAST),
                Claim(BOTH, REPLAY, INFINITE, "an infinite schedule does as well", margin=0.02),
            ]
        return claims

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Its models have 405M and 10B weights and read 300 billion tokens of each text, so that a first training "
            "is worth keeping."
        )

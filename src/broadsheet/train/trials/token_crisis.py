"""Try what repeated text costs: the same steps on a tenth of the text, with dropout, early stopping, and without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from broadsheet.console import InputError
from broadsheet.options import option
from broadsheet.train.token_crisis import DropStage, RepetitionPlan
from broadsheet.train.trials.lab import LabTrial
from broadsheet.training.scratch import TokenBlocks
from broadsheet.trial.base import Claim, Outcome
from broadsheet.trial.trained.laboratory import LEAST, LOSS, LabArm
from broadsheet.trial.verdicts import Comparison

REPEATED, FRESH, DROPPED, STAGED = "repeated", "fresh text", "dropout", "dropstage"
STOPPED = "stopped early"
SHARES = (0.2, 0.4, 0.7)  # of the steps, of which early stopping has the best
RATES = (0.1, 0.2, 0.3)  # of dropout


@dataclass
class TokenCrisisTrial(LabTrial):
    """What does it cost to read a little text again and again, and does dropout mend it?

    All arms take as many steps. One reads all the text there is, the others a small part of it, as much oftener.
    Dropout's rate is chosen on documents of its own; so is where early stopping ends, the cheap alternative, whose
    learning rate has fallen by then. Dropstage begins after a share of the steps.
    """

    paper: ClassVar[str] = "token_crisis"
    title: ClassVar[str] = "The token crisis: what reading the same text again costs, and what dropout mends"

    unique: float = option(0.05, "Share of the text that is read again and again.", least=0, most=0.95)
    start: float = option(0.3, "Share of the steps after which dropstage begins.", least=0, most=1)

    def check(self) -> None:
        super().check()
        if not self.unique > 0:
            raise InputError(f"got --unique {self.unique:g}; expected more than 0")

    def question(self) -> str:
        return (
            f"Trained for as many steps on {self.unique:.0%} of {self.data}, how much worse is a model, and does "
            "dropout mend it?"
        ).replace("%", " %")

    def lab(self) -> Sequence[LabArm]:
        ours = DropStage.paper
        dropping = DropStage(self._rate_of_dropout)
        arms = [
            LabArm(REPEATED, about=f"{self.unique:.0%} of the text, again and again".replace("%", " %"), rows=REPEATED),
            LabArm(DROPPED, lambda seed: replace(dropping), "from the start", ours, rows=REPEATED, rate_of=REPEATED),
            LabArm(FRESH, about="all the text", paper=ours),
        ]
        if not self.quick:
            late = round(self.start * self.steps)
            staged = LabArm(STAGED, lambda seed: replace(dropping, start=late), "switched on late", ours)
            stopped = LabArm(STOPPED, about="fewer steps, as many as are best", role="peer", share=self._share)
            arms += [replace(each, rows=REPEATED, rate_of=REPEATED) for each in (staged, stopped)]
        return arms

    def rows(self, name: str, seed: int) -> Any:
        return self._repeated if name == REPEATED else super().rows(name, seed)

    def claims(self) -> list[Claim]:
        claims = [
            Claim(LOSS, REPEATED, DROPPED, "dropout mends a part of what repeating costs (61.7 to 63.0)", least=LEAST),
            Claim(
                LOSS, REPEATED, FRESH, "read again and again, text teaches less than as much fresh text", least=LEAST
            ),
        ]
        if not self.quick:
            claims += [
                Claim(LOSS, REPEATED, STAGED, "dropout that is switched on late mends it too", least=LEAST),
                Claim(LOSS, DROPPED, STAGED, "and ends as well as dropout from the start", margin=0.02),
            ]
        return claims

    def setting(self) -> Mapping[str, Any]:
        given = self._repeated.ids.numel()
        weights = sum(p.numel() for p in self.new(0).parameters())
        plan = RepetitionPlan(given, self.steps, self.batch, self.length, weights)
        told = {**super().setting(), "repeated text": f"{given:,} tokens, read {plan.epochs:.1f} times"}
        if not self.quick:
            told["stopped early"] = f"after {self._share:.0%} of the steps".replace("%", " %")
        return told

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Its models have up to 2.8B weights and read 2^27 tokens 256 times, where all of them are learnt by heart."
        )

    # What is chosen on the tuning documents

    @cached_property
    def _rate_of_dropout(self) -> float:
        given = self.fields(DropStage)
        if self.quick or "rate" in given:
            return float(given.get("rate", RATES[0]))
        return self._best("dropout", RATES, lambda rate: LabArm("", lambda seed: DropStage(rate), rows=REPEATED))

    @cached_property
    def _share(self) -> float:
        """Of the steps, after which early stopping ends."""
        return self._best(STOPPED, SHARES, lambda share: LabArm("", rows=REPEATED, share=share))

    def _best(self, name: str, settings: Sequence[float], arm: Callable[[float], LabArm]) -> float:
        """The best of some settings, by trainings that are as long as they are to be."""
        rate = self._rate(LabArm(REPEATED, rows=REPEATED))
        return self.chosen(name, settings, lambda each, out: self._train(arm(each), self.seed, out, rate=rate))

    @cached_property
    def _repeated(self) -> TokenBlocks:
        rows = self.plain_rows.ids
        count = max(self.batch, round(self.unique * len(rows)))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
        return TokenBlocks(rows[order[:count]].flatten(), self.length)

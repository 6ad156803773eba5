"""Try loss-based reweighting: on text of which half is boilerplate, and on the text as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from broadsheet.options import option
from broadsheet.train.loss_reweighting import LossReweighting
from broadsheet.train.trials.lab import LabTrial
from broadsheet.training.losses import sequence_losses
from broadsheet.training.scratch import TokenBlocks, joined
from broadsheet.trial.base import Claim, Outcome
from broadsheet.trial.trained.laboratory import LEAST, LOSS, PACE, LabArm
from broadsheet.trial.verdicts import Comparison

UNIFORM, LINUPPER, QUADRATIC, SHUFFLED = "uniform", "LinUpper", "Quadratic", "LinUpper, shuffled"
MIXED = "half boilerplate"


@dataclass
class ShuffledWeights(LossReweighting):
    """The same weights, each given to another sequence: whether it matters who gets which."""

    def weights(self, losses: Tensor, asked: Tensor) -> Tensor:
        found = super().weights(losses, asked)
        generator = torch.Generator().manual_seed(self.step)
        return found[torch.randperm(len(found), generator=generator).to(found.device)]


@dataclass
class LossReweightingTrial(LabTrial):
    """Does it help to spend a step on the sequences that are not learnt yet?

    Half of the training text is boilerplate: few passages, again and again, as licence headers and page frames are in a
    crawl. What is held out has none. LinUpper and Quadratic, the paper's own, stand beside the same mean over sequences
    with equal weights, tuned alike; a control gives LinUpper's weights to other sequences.
    """

    paper: ClassVar[str] = "loss_reweighting"
    title: ClassVar[str] = "Loss-based reweighting: less weight for what is learnt already"

    boilerplate: float = option(0.5, "Share of the training text that is boilerplate.", least=0, most=0.95)
    burn_in: int | None = option(None, "Steps before which all weigh the same; by default a fifteenth.", least=0)

    def question(self) -> str:
        return (
            f"Trained on text of which {self.boilerplate:.0%} is boilerplate ({self.data}), does a model learn more "
            "where sequences weigh by their losses?"
        )

    def lab(self) -> Sequence[LabArm]:
        burn_in = max(1, self.steps // 15) if self.burn_in is None else self.burn_in
        fields = self.fields(LossReweighting, burn_in=burn_in)

        def of(kind: type[LossReweighting], **more: Any) -> Any:
            return lambda seed: kind(**{**fields, **more})

        ours = LossReweighting.paper
        arms = [
            LabArm(UNIFORM, of(LossReweighting, strategy="uniform"), "the mean over sequences", rows=MIXED),
            LabArm(LINUPPER, of(LossReweighting), "the paper's best", ours, rows=MIXED),
        ]
        if not self.quick:
            arms += [
                LabArm(QUADRATIC, of(LossReweighting, strategy="quadratic"), "favours the middle", ours, rows=MIXED),
                LabArm(SHUFFLED, of(ShuffledWeights), "control", "", "sibling", MIXED, rate_of=LINUPPER),
            ]
        return arms

    def rows(self, name: str, seed: int) -> Any:
        return self._mixed

    @cached_property
    def _mixed(self) -> TokenBlocks:
        """Text and boilerplate, mixed: the boilerplate is some passages of the text, again and again."""
        plain = self.plain_rows.ids
        share = min(max(self.boilerplate, 0.0), 0.95)
        count = round(len(plain) * share / (1 - share))
        passages = joined(self.held.train[: max(1, len(self.held.train) // 200)], self.tokenizer)
        again = passages.repeat(-(-count * self.length // max(1, len(passages))) + 1)
        generator = torch.Generator().manual_seed(self.seed)
        starts = torch.randint(len(passages), (count,), generator=generator)
        boilerplate = again[starts[:, None] + torch.arange(self.length)]
        order = torch.randperm(len(plain) + count, generator=generator)
        made = TokenBlocks(torch.cat([plain, boilerplate])[order].flatten(), self.length)
        self._is_boilerplate = order >= len(plain)
        return made

    def claims(self) -> list[Claim]:
        claims = [
            Claim(LOSS, UNIFORM, LINUPPER, "LinUpper converges faster than equal weights (abstract)", least=LEAST),
            Claim(PACE, UNIFORM, LINUPPER, "at next to no cost: one gathering of scalars a step", margin=0.03),
        ]
        if not self.quick:
            claims += [
                Claim(LOSS, UNIFORM, QUADRATIC, "Quadratic is better than equal weights too", least=LEAST),
                Claim(LOSS, SHUFFLED, LINUPPER, "because the weights follow the losses", least=LEAST),
            ]
        return claims

    def setting(self) -> Mapping[str, Any]:
        return {**super().setting(), "boilerplate": f"{float(self._is_boilerplate.float().mean()):.0%} of the rows"}

    def notes(self, outcome: Outcome) -> list[str]:
        told = []
        if LINUPPER in outcome.usable:
            share = self._weight_share()
            told.append(
                f"By the model that LinUpper made, boilerplate weighs {share:.2f} of a batch in which it is "
                f"{float(self._is_boilerplate.float().mean()):.2f} of the sequences."
            )
        return told

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Its models have 124M to 7B weights and see billions of tokens; what is learnt already is then most of "
            "the text. Here no more is than what was planted."
        )

    @torch.no_grad()
    def _weight_share(self) -> float:
        """The weight that boilerplate gets in 16 batches, by the trained model."""
        model, rows = self._load(self.folder(LINUPPER)), self._mixed
        method = LossReweighting(**self.fields(LossReweighting, burn_in=0))
        shares = []
        for first in range(0, min(16 * self.batch, len(rows) - self.batch + 1), self.batch):
            ids = rows.ids[first : first + self.batch].to(model.device)
            weights = method.weights(*sequence_losses(model(ids, use_cache=False).logits, ids)).cpu()
            shares.append(float(weights[self._is_boilerplate[first : first + self.batch]].sum()))
        return sum(shares) / max(1, len(shares))

"""Try continual pretraining: a model that has learnt one text learns another, in the ways of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from broadsheet.data import corpora
from broadsheet.options import option
from broadsheet.train.base import LossMethod
from broadsheet.train.continual_pretraining import ContinualPretraining, Infinite, LearningRate, Rewarmed
from broadsheet.train.mixing import Mixture
from broadsheet.train.trials.lab import LOSS_METRIC, LabArm, LabTrial
from broadsheet.training.scratch import TokenBlocks, apart, joined, tokenizer
from broadsheet.trial.base import Claim, Outcome
from broadsheet.trial.engine import Metric
from broadsheet.trial.examples import excerpt
from broadsheet.trial.verdicts import Comparison

NEW, OLD, BOTH = "new text", "old text", "both"
LOW, WARM, LITTLE, REPLAY = "lowest rate", "warmed again", "with 5 % replay", "with 25 % replay"
INFINITE, UNION = "infinite, 25 % replay", "all text, from nothing"
SHARES = {LITTLE: 0.05, REPLAY: 0.25, INFINITE: 0.25}
_FIRST_RATE = 3e-3  # of the first pretraining
_CONSTANT, _LOWEST = 0.55, 0.1  # of the highest rate
_COOLED, _ANNEALED = 0.6, 0.15  # of the first steps; of the last ones


@dataclass
class ContinualPretrainingTrial(LabTrial):
    """How is a model to learn new text, and keep what it knew?

    A model is trained from nothing on the old text, and then further on the new one for as many steps: at the rate that
    it ended with; with the rate up and down again; with a share of each batch from the old text beside; and from a
    first training of an infinite schedule, on its constant. A model that is trained from nothing on both texts, in all
    those steps together, is what they are to come close to.
    """

    paper: ClassVar[str] = "continual_pretraining"
    title: ClassVar[str] = "Continual pretraining: warm up again, decay again, replay"

    old: str = option(
        "pydocs:stdlib", "The text that the model learns first: a file, a folder, a name.", metavar="DATA"
    )

    def question(self) -> str:
        return (
            f"A model that was trained from nothing on {self.old} reads {self.data}: what does it learn, and what does "
            "it forget?"
        )

    # Texts

    def prepare(self, corpus: Any) -> None:
        wanted = max(2_000, self.steps * self.batch * self.length // 60 + 4 * self.texts)
        before = corpora.load(self.old, text_field=self.text_field).take(wanted, self.seed)
        self.held = apart(corpus.take(wanted, self.seed), self.texts, 16, self.seed, least=200)
        self.before = apart(before, self.texts, 16, self.seed, least=200)
        self.tokenizer = tokenizer(self.before.train, self.vocabulary)
        self.plain_rows, self.old_rows = (
            TokenBlocks(joined(texts.train, self.tokenizer), self.length) for texts in (self.held, self.before)
        )

    def asked(self) -> Sequence[Any]:
        return list(zip(self.held.held_out, self.before.held_out, strict=False))

    def measured(self) -> list[Metric]:
        return [replace(LOSS_METRIC, name=name) for name in (BOTH, NEW, OLD)]

    def losses(self, model: Any, asked: Sequence[Any]) -> dict[str, np.ndarray]:
        new, old = (self.of_documents(model, texts) for texts in zip(*asked, strict=True))
        return {NEW: new, OLD: old, BOTH: (new + old) / 2}

    def tuning_loss(self, model: Any) -> float:
        return float(np.mean([self.of_documents(model, each.tuning).mean() for each in (self.held, self.before)]))

    def shown(self, item: Any) -> str:
        return " · ".join(map(excerpt, item))

    # Arms

    def lab(self) -> Sequence[LabArm]:
        ours, lowest = ContinualPretraining.paper, _LOWEST * self._first_rate
        began = partial(self._before, "cosine")
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
                start=partial(self._before, "infinite"), rate=self._first_rate,
                schedule=lambda steps, rate: self._infinite.annealed(
                    self.steps + round((1 - _ANNEALED) * steps), round(_ANNEALED * steps)
                ).since(self.steps),
            )  # fmt: skip
            union = LabArm(UNION, about="twice the steps", role="sibling", rows=UNION, share=2.0)
            arms += [replace(little, rate_of=REPLAY), endless, union]
        return arms

    @property
    def _first_rate(self) -> float:
        return self.lr or _FIRST_RATE

    def _again(self, steps: int, rate: float) -> Rewarmed:
        return ContinualPretraining(rate, rate * _LOWEST, 0.02).schedule(steps)

    @property
    def _infinite(self) -> Infinite:
        high, cooled = self._first_rate, round(_COOLED * self.steps)
        warm = min(cooled, max(1, self.steps // 20))
        return Infinite(high, _CONSTANT * high, _LOWEST * high, warm, cooled)

    def _before(self, kind: str, seed: int) -> Any:
        """The model that has learnt the old text, by a schedule; trained once for each seed."""
        folder = self.folder(f"first, {kind}, {seed}")
        if not (folder / "training.json").exists():
            rate: LearningRate = self._infinite if kind == "infinite" else self._again(self.steps, self._first_rate)
            done = self.fitted(
                self.new(seed), self.old_rows, LossMethod(), folder, self.steps, self._first_rate, seed, rate
            )
            if not done.finished:
                raise KeyboardInterrupt
        return self._load(folder).train()

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
            Claim(NEW, LOW, WARM, "without the rate up again, little is learnt of the new text"),
            Claim(OLD, WARM, REPLAY, "replay keeps what was known (1.4 nats lost become 0.16 with 25 %)"),
        ]
        if not self.quick:
            claims += [
                Claim(NEW, WARM, REPLAY, "and costs little of the new text", margin=0.02),
                Claim(BOTH, UNION, REPLAY, "as good as all the text from nothing, for half the steps", margin=0.02),
                Claim(OLD, WARM, LITTLE, "5 % of replay help already"),
                Claim(BOTH, REPLAY, INFINITE, "an infinite schedule does as well", margin=0.02),
            ]
        return claims

    def setting(self) -> Mapping[str, Any]:
        model = self._before("cosine", self.seed)
        new, old = (float(self.of_documents(model, each.tuning).mean()) for each in (self.held, self.before))
        return {
            **super().setting(),
            "before": f"{self.steps} steps on {self.old}, after which tuning documents cost {old:.3f} (old) and "
            f"{new:.3f} (new) nats/byte",
        }

    def absence(self, claim: Claim, comparison: Comparison, outcome: Outcome) -> str:
        return (
            "Its models have 405M and 10B weights and read 300 billion tokens of each text, so that a first training "
            "is worth keeping."
        )

"""Trials of a model that has learnt one text and is to learn another: what it learns, and what it forgets.

Knows: the laboratory, two corpora, a first training. Does not know: any paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from broadsheet.data import corpora
from broadsheet.options import option
from broadsheet.train.base import LossMethod
from broadsheet.train.trials.lab import LabTrial
from broadsheet.training.scratch import TokenBlocks, apart, joined, tokenizer
from broadsheet.trial.engine import Metric
from broadsheet.trial.examples import excerpt
from broadsheet.trial.trained.laboratory import LOSS_METRIC

NEW, OLD, BOTH = "new text", "old text", "both"
FIRST_RATE = 3e-3  # of the first training, at its highest
_TUNING = 32  # documents of each text


@dataclass
class TwoTextsTrial(LabTrial):
    """The base: a model is trained from nothing on the old text (`begun`), and arms go on from there.

    Held out are pairs of a new and an old document; the measures are the loss of each, and the mean of both.
    """

    old: str = option(
        "pydocs:stdlib", "The text that the model learns first: a file, a folder, a name.", metavar="DATA"
    )

    @property
    def first_rate(self) -> float:
        """The highest learning rate of the first training."""
        return self.lr or FIRST_RATE

    def prepare(self, corpus: Any) -> None:
        wanted = max(2_000, self.steps * self.batch * self.length // 60 + 4 * self.texts)
        before = corpora.load(self.old, text_field=self.text_field).take(wanted, self.seed)
        self.held = apart(corpus.take(wanted, self.seed), self.texts, _TUNING, self.seed, least=200)
        self.before = apart(before, self.texts, _TUNING, self.seed, least=200)
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

    def tuning_losses(self, model: Any) -> tuple[float, float]:
        """Of the new and the old tuning documents, in nats a byte."""
        new, old = (float(self.of_documents(model, each.tuning).mean()) for each in (self.held, self.before))
        return new, old

    def tuning_loss(self, model: Any) -> float:
        return sum(self.tuning_losses(model)) / 2

    def shown(self, item: Any) -> str:
        return " · ".join(map(excerpt, item))

    def begun(self, seed: int, schedule: Any = "cosine", name: str = "first") -> Any:
        """The model that has learnt the old text, by a schedule; trained once for each seed and name."""
        return self._load(self.begun_folder(seed, schedule, name)).train()

    def begun_folder(self, seed: int, schedule: Any = "cosine", name: str = "first") -> Path:
        """Where it is."""
        folder: Path = self.folder(f"{name}, {seed}")
        if not (folder / "training.json").exists():
            model, rate = self.new(seed), self.first_rate
            done = self.fitted(model, self.old_rows, LossMethod(), folder, self.steps, rate, seed, schedule)
            if not done.finished:
                raise KeyboardInterrupt
        return folder

    def setting(self) -> Mapping[str, Any]:
        new, old = self.tuning_losses(self.begun(self.seed))
        return {
            **super().setting(),
            "before": f"{self.steps} steps on {self.old}, after which tuning documents cost {old:.3f} (old) and "
            f"{new:.3f} (new) nats/byte",
        }

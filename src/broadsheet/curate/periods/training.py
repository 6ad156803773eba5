"""A period's model, trained: from nothing on its own text, or on from another model; saved, resumed, read back.

Knows: texts, steps, folders. Does not know: other periods, how models are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from broadsheet.curate.periods.models import ShiftedBlocks, new_model, period_tokenizer, stream
from broadsheet.curate.periods.reading import PeriodModel
from broadsheet.training.fit import fit
from broadsheet.training.objective import NextTokens

DONE = "training.json"


@dataclass(frozen=True)
class PeriodRecipe:
    """How a model is trained: the same for teachers and students.

    Args:
        size: of `models.MODEL_SIZES`.
        vocabulary: tokens.
        length: tokens of a row.
        steps: of training; None: as many as `epochs` passes take.
        batch: rows of a step.
        learning_rate: at its highest, after `warmup` of the steps; it falls as half a cosine.
    """

    size: str = "345M"
    vocabulary: int = 16_000
    length: int = 128
    steps: int | None = None
    epochs: int = 8
    batch: int = 128
    learning_rate: float = 7e-4
    warmup: float = 0.1  # 600 of some 6,000 steps

    def new(self, vocabulary: int, seed: int) -> Any:
        """A new model, from the same weights for the same seed."""
        return new_model(self.size, vocabulary, self.length, seed)

    def tokenizer(self, texts: Sequence[str]) -> Any:
        """Trained on a period's texts alone."""
        return period_tokenizer(texts, self.vocabulary)

    def fit(
        self,
        model: Any,
        tokenizer: Any,
        texts: Sequence[str],
        out: Path,
        objective: NextTokens | None = None,
        *,
        seed: int = 0,
        weight_decay: float = 0.0,
    ) -> None:
        """Train a model on texts into a folder, with its tokenizer; a training that was stopped goes on.

        Raises:
            InputError: the texts are too short; as `training.fit`.
            KeyboardInterrupt: it was stopped; its checkpoint is kept.
        """
        tokens = stream(texts, tokenizer)
        blocks = max(1, len(tokens) // self.length - 1)
        steps = self.steps or max(1, self.epochs * blocks // self.batch)
        rows = ShiftedBlocks(tokens, self.length, steps * self.batch, seed)

        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        done = fit(
            model, rows, objective or NextTokens(), out, save=save, steps=steps, batch_size=self.batch,
            learning_rate=self.learning_rate, schedule="cosine", warmup=self.warmup, weight_decay=weight_decay,
            seed=seed,
        )  # fmt: skip
        if not done.finished:
            raise KeyboardInterrupt

    def load(self, folder: Path, device: str | None = None) -> PeriodModel:
        """What `fit` saved."""
        from broadsheet import models

        loaded = models.load(str(folder), device=device, dtype="float32")
        return PeriodModel(loaded.model.eval(), loaded.tokenizer, self.length)


def on_device(model: Any, device: str | None) -> Any:
    """A model, moved; where no device is named, to CUDA where it is there."""
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

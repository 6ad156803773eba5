"""`fit` with a sentence-transformers loss: its own trainer, on columns of texts and labels.

Knows: sentence-transformers. Does not know: objectives, files of a finished model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from broadsheet.training.trainer import TrainedWeights

Arguments = SentenceTransformerTrainingArguments


class ColumnTrainer(TrainedWeights, SentenceTransformerTrainer):
    """sentence-transformers' trainer, with the checkpoints and counts of ours.

    Args:
        autocast: the type of the model's forward passes; None: that of the weights. Losses compute in float32: the type
            would round cosines to two digits.
    """

    def __init__(self, *args: Any, autocast: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.autocast = autocast

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with _autocast_forward(self.model, self.autocast):
            return super().train(*args, **kwargs)

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No card is written, so nothing is collected for one."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        masks = [value for name, value in inputs.items() if name.endswith("attention_mask")]
        self.seen(loss, len(masks[0]) if masks else 0, int(sum(mask.sum() for mask in masks)))
        return result


@contextmanager
def _autocast_forward(model: Any, dtype: torch.dtype | None) -> Iterator[None]:
    """Have a model compute in a type within its forward pass alone."""
    if dtype is None:
        yield
        return
    model.forward = torch.autocast(model.device.type, dtype)(model.forward)
    try:
        yield
    finally:
        del model.forward


def column_trainer(model: SentenceTransformer, rows: Any, loss: Any, **parts: Any) -> ColumnTrainer:
    """A trainer on a `datasets.Dataset`, a list of dicts, or a dict of either (one data set a batch)."""
    sets = {name: _table(each) for name, each in rows.items()} if isinstance(rows, Mapping) else _table(rows)
    return ColumnTrainer(model=model, train_dataset=sets, loss=loss, **parts)


def _table(rows: Any) -> Any:
    from datasets import Dataset

    return Dataset.from_list([dict(row) for row in rows]) if isinstance(rows, list | tuple) else rows

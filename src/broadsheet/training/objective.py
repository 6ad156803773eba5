"""`Objective`: what a training minimises. The one socket between a paper's loss and `fit`.

Knows: rows, batches, scalars. Does not know: optimizers, devices, files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from broadsheet.cache import fingerprint
from broadsheet.training.losses import token_losses


@dataclass(frozen=True)
class Phase:
    """A part of a training, in optimizer steps."""

    name: str
    steps: int


class Objective:
    """Rows to a batch, and a batch to a loss; all else has a default. May be an `nn.Module`: it is trained too.

    Whatever `collate` draws follows from a row's place in the order of training and a seed, never from a global
    generator: a resumed training then sees what an uninterrupted one would have seen.

    Attributes:
        phases: parts that follow one another; their steps together are the training's. None: one part.
        phase: the name of the current one, set before each `collate` and `loss`.
        step: optimizer steps done before this one, set likewise.

    Example:
        class NextToken(Objective):
            def __init__(self, tokenizer):
                self.tokenizer = tokenizer

            def collate(self, items):
                return self.tokenizer([text for _, text in items], padding=True, return_tensors="pt")

            def loss(self, model, batch, generator):
                return model(**batch, labels=batch["input_ids"]).loss

        fit(model, texts, NextToken(tokenizer), "runs/plain", steps=100, learning_rate=1e-4)
    """

    phases: Sequence[Phase] = ()
    phase: str = ""
    step: int = 0

    def collate(self, items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        """(place in the order of training, row) pairs → tensors by name."""
        raise NotImplementedError

    def loss(self, model: Any, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor | dict[str, Tensor]:
        """A scalar to minimise, a mean over the batch; or `{"loss": it, …}` with further scalars to log.

        Args:
            model: what `fit` was given, without any wrapper.
            generator: on the CPU, for whatever is drawn; follows from the seed and the first row's place.
        """
        raise NotImplementedError

    def extra_batches(self, place: int) -> Sequence[Any]:
        """Rows that join the forward pass whose first row has this place, as those of an earlier task (`rehearsal`).

        They come to `collate` behind the others, with places below 0, and count for no step and no epoch.
        """
        return ()

    def parameter_groups(self, model: Any, learning_rate: float, weight_decay: float) -> list[dict[str, Any]] | None:
        """`{"params": …, "lr": …, "weight_decay": …}` for AdamW; None: one rate, and no decay of norms and biases."""
        return None

    def tokens(self, batch: Mapping[str, Any]) -> int:
        """Tokens that a forward pass reads: `batch["tokens"]`, or else the ones of all (batch, length) masks."""
        if "tokens" in batch:
            return int(batch["tokens"])
        masks = (value for name, value in batch.items() if name.endswith("attention_mask") and value.ndim == 2)
        return int(sum(mask.sum() for mask in masks))

    def prepare(self, model: Any) -> None:
        """Called once before the first step, when nothing can be refused any more: for slow work such as encoding."""

    def release(self, model: Any) -> None:
        """Called once after the last step, also of a training that was stopped or failed: undoes what `prepare` set."""

    def after_step(self, model: Any, step: int) -> Mapping[str, float]:
        """What is logged beside the loss after `step` optimizer steps, such as the loss on held-out rows."""
        return {}


class NextTokens(Objective):
    """The plain loss of a causal LM, the mean over tokens, on rows that are tokens already.

    A row is `{"input_ids": (length,), "labels": (length,)}`, all of one length. It may also be a part of a batch,
    (rows, length); and hold an `attention_mask` or `position_ids` for the model.

    Args:
        watched: gives what is logged after a step, `(model, step)` to values by name.

    Example:
        fit(model, TokenBlocks(stream, 256), NextTokens(), "runs/plain", steps=300)
    """

    def __init__(self, watched: Any = None) -> None:
        self.watched = watched

    def collate(self, items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        rows = [row for _, row in items]
        together = torch.cat if torch.as_tensor(rows[0]["input_ids"]).ndim == 2 else torch.stack
        batch = {name: together([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
        return {**batch, "tokens": batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum()}

    def logits(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        """(batch, length, vocabulary) of a batch."""
        more = {name: batch[name] for name in ("attention_mask", "position_ids") if name in batch}
        made: Tensor = model(batch["input_ids"], **more, use_cache=False).logits
        return made

    def loss(self, model: Any, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        losses, counts = token_losses(self.logits(model, batch), batch["labels"])
        return losses.sum() / counts.sum().clamp(min=1)

    def after_step(self, model: Any, step: int) -> Mapping[str, float]:
        return self.watched(model, step) if self.watched else {}


def rehearsal(rows: Sequence[Any], count: int, seed: int, place: int) -> list[Any]:
    """`count` of `rows`, or all, drawn anew for each place: for `Objective.extra_batches`."""
    from random import Random

    return Random(f"{seed} {place} rehearsal").sample(list(rows), min(count, len(rows)))


def described(objective: Any) -> dict[str, Any]:
    """An objective or loss by its class and settings: its dataclass fields, or what `get_config_dict()` gives."""
    if isinstance(objective, Mapping):
        return {name: described(each) for name, each in objective.items()}
    told: Any = {}
    if is_dataclass(objective) and not isinstance(objective, type):
        told = {each.name: getattr(objective, each.name) for each in fields(objective)}
    elif hasattr(objective, "get_config_dict"):
        told = objective.get_config_dict()
    plain = as_json(told)
    phases = {each.name: each.steps for each in getattr(objective, "phases", ())}
    return {"name": type(objective).__name__, **plain, **({"phases": phases} if phases else {})}


def as_json(value: Any) -> Any:
    """A JSON value that names `value` by content."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: as_json(each) for key, each in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)


def content(rows: Any) -> str:
    """A fingerprint of rows: of what their `identity()` gives where they have one, else of each row."""
    if hasattr(rows, "identity"):
        return fingerprint(as_json(rows.identity()))
    if isinstance(rows, Mapping):
        return fingerprint({name: content(each) for name, each in rows.items()})
    return fingerprint([dict(row) if isinstance(row, Mapping) else as_json(row) for row in rows])

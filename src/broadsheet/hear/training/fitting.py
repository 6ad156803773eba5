"""`fit`: the ears of a model trained on rows of audio and answers; the paper's three stages are three files of rows.

Knows: rows, how an instruction is drawn, which weights are trained at which rate. Does not know: where rows come from,
steps and checkpoints (`broadsheet.training`), what a model is tried on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, progress
from broadsheet.hear.data.rows import AudioRow
from broadsheet.hear.prompts import instruction
from broadsheet.hear.training import schedule  # noqa: F401  "salmonn" is a schedule from here on
from broadsheet.training import fit as training
from broadsheet.training.objective import Objective, rehearsal
from broadsheet.training.trainer import TrainOutput

if TYPE_CHECKING:
    from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

_DEFAULTS: dict[str, Any] = {"learning_rate": 3e-4, "weight_decay": 0.05, "warmup": 0.05, "schedule": "cosine"}
_FIXED: dict[str, Any] = {"method": "given", "optim": "adamw_torch", "dataloader_pin_memory": False}


def fit(
    model: SalmonnForConditionalGeneration,
    rows: Sequence[AudioRow],
    out: str | Path | None = None,
    *,
    lora_learning_rate: float = 1e-3,
    pools: Mapping[str, Sequence[str]] | None = None,
    rehearse: Sequence[AudioRow] = (),
    rehearsed: int = 7,
    **settings: Any,
) -> TrainOutput:
    """Train norms, connector and adapter of `model` in place; everything else stays as it is.

    The three stages of the paper are three calls: on speech and captions; on all tasks; and few steps on stories
    (`activating.activate` makes those). Only the rows differ. The authors train with 3e-5, 3,000 warm-up steps
    (`schedule="salmonn", warmup=1 / 30`), no clipping, for 80,000 steps of 256 clips; the defaults here are for
    hundreds of steps: 3e-4, a twentieth of warm-up, then a cosine; weight decay of 0.05.

    Args:
        rows: with answers; an instruction that a row lacks is drawn from its task's pool, anew each time.
        lora_learning_rate: of the adapter; `learning_rate` is that of norms and connector.
        pools: task → instructions, before the built-in ones.
        rehearse: rows of an earlier training; `rehearsed` of them, drawn anew, join each forward pass, so that what
            they taught is not forgotten. They count for no step and no epoch. Not the paper's.
        out, settings: of `training.fit`.

    Raises:
        InputError: see `training.fit`; rows without answers; audio that cannot be read.

    Example:
        fit(model, read_rows("data/stage1.jsonl"), "runs/stage1", steps=300)
    """
    seed = settings.get("seed", 0)
    objective = AudioObjective(rows, seed, pools, rehearse, rehearsed, lora_learning_rate=lora_learning_rate)
    own: dict[str, Any] = {"save": model.save_pretrained, "finished": "config.json"}
    identified = None if out is None else identity(model)
    return training.fit(model, rows, objective, out, identity=identified, **own, **{**_DEFAULTS, **_FIXED, **settings})


class AudioObjective(Objective):
    """Cross-entropy of answers about clips; instructions are drawn by a row's place in the order of training.

    Args:
        rows: that are trained on, whose clips are encoded before the first step.
        seed: of the draws.
        pools, rehearse, rehearsed, lora_learning_rate: see `fit`.

    Raises:
        InputError: no rows, or rows without answers; nothing to rehearse is drawn.
    """

    def __init__(
        self,
        rows: Sequence[AudioRow],
        seed: int = 0,
        pools: Mapping[str, Sequence[str]] | None = None,
        rehearse: Sequence[AudioRow] = (),
        rehearsed: int = 0,
        *,
        lora_learning_rate: float = 1e-3,
    ) -> None:
        _check(rows)
        if rehearse:
            _check(rehearse)
            if rehearsed < 1:
                raise InputError(f"got rehearsed {rehearsed}; expected 1 or more")
        self.rows, self.rehearse = rows, list(rehearse)
        self.rehearsed = min(rehearsed, len(self.rehearse))
        self.seed, self.pools = seed, dict(pools or {})
        self.lora_learning_rate = lora_learning_rate
        self.model: Any = None

    def get_config_dict(self) -> dict[str, Any]:
        """What a resumed run must have in common."""
        told = [[row.task, list(row.audio), row.instruction, row.answer] for row in self.rehearse]
        return {
            "lora_learning_rate": self.lora_learning_rate,
            "pools": fingerprint({name: list(texts) for name, texts in self.pools.items()}),
            "rehearse": fingerprint(told),
            "rehearsed": self.rehearsed,
        }

    def prepare(self, model: SalmonnForConditionalGeneration) -> None:
        """Encode every clip once, so that training only reads frames."""
        self.model = model
        encode(model, [*self.rows, *self.rehearse])

    def collate(self, items: Sequence[tuple[int, AudioRow]]) -> dict[str, Any]:
        """Rows with their places to a batch for `forward`."""
        draws = [random.Random(f"{self.seed} {place}") for place, _ in items]
        requests = [
            (list(row.audio), row.instruction or instruction(row.task, draw, self.pools))
            for draw, (_, row) in zip(draws, items, strict=True)
        ]
        batch: dict[str, Any] = self.model.prepared(requests, [row.answer for _, row in items])
        return batch

    def extra_batches(self, place: int) -> Sequence[AudioRow]:
        return rehearsal(self.rehearse, self.rehearsed, self.seed, place)

    def loss(self, model: Any, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        found: Tensor = model(**batch).loss
        return found

    def parameter_groups(self, model: Any, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """The adapter at its own rate, and no decay of vectors."""
        groups: dict[tuple[bool, bool], list[Any]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(("lora_" in name, parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": self.lora_learning_rate if adapter else learning_rate,
                "weight_decay": weight_decay if matrix else 0.0,
            }
            for (adapter, matrix), parameters in groups.items()
        ]


def encode(model: SalmonnForConditionalGeneration, rows: Sequence[AudioRow], group: int = 64) -> None:
    """See that every clip's frames are in the cache, so that training only reads them."""
    clips = list(dict.fromkeys(clip for row in rows for clip in row.audio))
    if not model.audio_features.keep:
        return
    with progress("encoding clips", total=len(clips)) as bar:
        for start in range(0, len(clips), group):
            model.audio_features.features_all(clips[start : start + group])
            bar.advance(bar.task_ids[0], min(group, len(clips) - start))


def identity(model: SalmonnForConditionalGeneration) -> str:
    """A fingerprint of all that a training begins from: the parts, and the weights that are trained."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.trained_parameters().items()):
        digest.update(name.encode() + weight.detach().float().cpu().contiguous().numpy().tobytes())
    return fingerprint(
        [model.config.llm, [each.identity for each in model.audio_features.encoders], digest.hexdigest()]
    )


def _check(rows: Sequence[AudioRow]) -> None:
    if not rows:
        raise InputError("got no rows to train on; expected at least one")
    if empty := sum(not row.answer.strip() for row in rows):
        raise InputError(f"{empty:,} of {len(rows):,} rows have no answer; training needs one")

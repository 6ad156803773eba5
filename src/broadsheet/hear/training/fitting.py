"""`fit`: train the ears of a model on rows of audio and answers; the paper's three stages are three files of rows.

Knows: HF `Trainer` and the parts around it in `broadsheet.training`, rows, how an instruction is drawn. Does not know:
where rows come from, what a model is tried on.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from transformers import TrainingArguments

from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, progress
from broadsheet.hear.data.rows import AudioRow
from broadsheet.hear.prompts import instruction
from broadsheet.training.timed import ARGUMENTS, TimedRun, warmed_up
from broadsheet.training.trainer import TrainedItems, TrainOutput, check_lengths, items_in_order
from broadsheet.training.weights import autocast_dtype
from broadsheet.training.workdir import workdir

if TYPE_CHECKING:
    from broadsheet.hear.salmonn import SalmonnForConditionalGeneration

_MAY_CHANGE = ("minutes", "checkpoint_minutes")


def fit(
    model: SalmonnForConditionalGeneration,
    rows: Sequence[AudioRow],
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    epochs: int = 1,
    batch_size: int = 16,
    accumulate: int = 1,
    learning_rate: float = 3e-4,
    lora_learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    warmup: float = 0.05,
    schedule: Literal["linear", "cosine", "constant"] = "cosine",
    max_grad_norm: float = 1.0,
    autocast: Literal["auto", "bfloat16", "none"] = "auto",
    pools: Mapping[str, Sequence[str]] | None = None,
    rehearse: Sequence[AudioRow] = (),
    rehearsed: int = 7,
    checkpoint_minutes: float = 10.0,
    seed: int = 0,
    force: bool = False,
    clock: Callable[[], float] = time.monotonic,
    **arguments: Any,
) -> TrainOutput:
    """Train norms, connector and adapter of `model` in place; everything else stays as it is.

    The three stages of the paper are three calls: on speech and captions; on all tasks; and few steps on stories
    (`activating.activate` makes those). Only the rows differ. The authors train with 3e-5, 3,000 warm-up steps, no
    clipping, for 80,000 steps of 256 clips; the defaults here are for hundreds of steps.

    Args:
        rows: with answers; an instruction that a row lacks is drawn from its task's pool, anew each time.
        out: the folder where the trained model will stand. `<out>.partial` holds checkpoints until then; the same call
            goes on from the newest complete one. None: nothing is written.
        steps, minutes, epochs: whichever ends first, where `steps` repeats the rows as often as it takes.
        batch_size: rows a forward pass and device; with `accumulate`, so many passes a step of AdamW.
        learning_rate: of norms and connector; lora_learning_rate: of the adapter.
        weight_decay: of matrices; vectors have none.
        warmup, schedule: share of the training in which the rate rises, and how it falls to 0.
        max_grad_norm: 0 does not clip.
        autocast: the type of forward passes; `"auto"`: bfloat16 where the device computes in it.
        pools: task → instructions, before the built-in ones.
        rehearse: rows of an earlier training; so many of them as `rehearsed` says, drawn anew, join each forward pass,
            so that what they taught is not forgotten. They count for no step and no epoch. Not the paper's.
        seed: of order, instructions, rehearsal and dropout.
        force: replace a finished `out`, and start over.
        arguments: further ones for `TrainingArguments`.

    Raises:
        InputError: a parameter is out of range; no rows, or rows without answers; audio that cannot be read; `out` is
            finished, or was begun from other settings, model or rows; a loss that is not finite.

    Example:
        fit(model, read_rows("data/stage1.jsonl"), "runs/stage1", steps=300)
    """
    check_lengths(steps, epochs, batch_size, accumulate)
    _check(rows)
    if rehearse:
        _check(rehearse)
        if rehearsed < 1:
            raise InputError(f"got rehearsed {rehearsed}; expected 1 or more")
    config: dict[str, Any] = {
        "steps": steps,
        "minutes": minutes,
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "lora_learning_rate": lora_learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "schedule": schedule,
        "max_grad_norm": max_grad_norm,
        "autocast": autocast,
        "rehearsed": min(rehearsed, len(rehearse)),
        "checkpoint_minutes": checkpoint_minutes,
        "seed": seed,
        "arguments": {name: str(value) for name, value in sorted(arguments.items())},
    }
    run = TimedRun(minutes, checkpoint_minutes, keep=out is not None, clock=clock)
    whole = {}
    if out is not None:
        whole = {**config, "model": identity(model), "rows": _content(rows), "rehearse": _content(rehearse)}
    place = workdir(out, whole, finished="config.json", force=force, mutable_keys=_MAY_CHANGE, kind="model")
    with place as folder, torch.random.fork_rng():
        torch.manual_seed(seed)
        encode(model, [*rows, *rehearse])
        collator = Collator(model, seed, pools, rehearse, rehearsed)
        trainer = _trainer(model, rows, collator, folder, config, run, arguments)
        try:
            finished = run.train(trainer)
        finally:
            model.zero_grad(set_to_none=True)
            model.eval()
        fitted = TrainOutput.of(trainer, run, finished)
        if out is None or not finished:
            return fitted
        model.save_pretrained(out)
        with atomic_write(Path(out) / "training.json") as file:
            json.dump({"settings": config, **asdict(fitted)}, file)
        shutil.rmtree(folder)
    return replace(fitted, folder=Path(out))


def _trainer(
    model: SalmonnForConditionalGeneration,
    rows: Sequence[AudioRow],
    collator: Collator,
    folder: Path,
    settings: Mapping[str, Any],
    run: TimedRun,
    arguments: Mapping[str, Any],
) -> _HearTrainer:
    """The trainer that `fit`'s settings describe, working in `folder`.

    Raises:
        InputError: the rows make no batch.
    """
    seed = settings["seed"]
    length = {name: settings[name] for name in ("steps", "epochs", "batch_size", "accumulate")}
    trainer = _HearTrainer(
        model=model,
        args=TrainingArguments(
            str(folder),
            num_train_epochs=1,
            max_grad_norm=settings["max_grad_norm"],
            per_device_train_batch_size=settings["batch_size"],
            gradient_accumulation_steps=settings["accumulate"],
            use_cpu=model.device.type == "cpu",
            seed=seed,
            data_seed=seed,
            remove_unused_columns=False,
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            **ARGUMENTS,
            **arguments,
        ),
        train_dataset=items_in_order(rows, seed=seed, **length),
        data_collator=collator,
        optimizers=(_optimizer(model, settings), None),
        progress=run.progress,
        schedule=warmed_up(settings["schedule"], settings["warmup"]),
    )
    trainer.autocast = autocast_dtype(settings["autocast"], model.device)
    return trainer


class Collator:
    """Rows with their places in the order of training → a batch for `forward`; instructions are drawn by place.

    Args:
        model: encodes what is not in its cache, and makes the batch.
        seed: of the draws.
        pools: task → instructions, before the built-in ones.
        rehearse, rehearsed: as in `fit`: rows that `rehearsed` of join each batch, behind its own.
    """

    def __init__(
        self,
        model: SalmonnForConditionalGeneration,
        seed: int = 0,
        pools: Mapping[str, Sequence[str]] | None = None,
        rehearse: Sequence[AudioRow] = (),
        rehearsed: int = 0,
    ) -> None:
        self.model = model
        self.seed = seed
        self.pools = dict(pools or {})
        self.rehearse = list(rehearse)
        self.rehearsed = min(rehearsed, len(self.rehearse))

    def __call__(self, items: Sequence[tuple[int, AudioRow]]) -> dict[str, Any]:
        drawn = [(row, random.Random(f"{self.seed} {place}")) for place, row in items]
        again = random.Random(f"{self.seed} {items[0][0]} rehearsal")
        drawn += [(row, again) for row in again.sample(self.rehearse, self.rehearsed)]
        requests = [
            (list(row.audio), row.instruction or instruction(row.task, draw, self.pools)) for row, draw in drawn
        ]
        return self.model.prepared(requests, [row.answer for row, _ in drawn])


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


class _HearTrainer(TrainedItems):
    """HF `Trainer` on a model with ears."""

    autocast: torch.dtype | None = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **others: Any) -> Any:
        with torch.autocast(inputs["input_ids"].device.type, self.autocast, enabled=self.autocast is not None):
            output = model(**inputs)
        self.seen(output.loss, len(inputs["input_ids"]), int(inputs["attention_mask"].sum()))
        return (output.loss, output) if return_outputs else output.loss


def _optimizer(model: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """AdamW with the adapter at its own rate, and no decay of vectors."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(("lora_" in name, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": settings["lora_learning_rate" if adapter else "learning_rate"],
                "weight_decay": settings["weight_decay"] if matrix else 0.0,
            }
            for (adapter, matrix), parameters in groups.items()
        ],
        betas=(0.9, 0.999),
    )


def _check(rows: Sequence[AudioRow]) -> None:
    if not rows:
        raise InputError("got no rows to train on; expected at least one")
    if empty := sum(not row.answer.strip() for row in rows):
        raise InputError(f"{empty:,} of {len(rows):,} rows have no answer; training needs one")


def _content(rows: Sequence[AudioRow]) -> str:
    return fingerprint([[row.task, list(row.audio), row.instruction, row.answer] for row in rows])

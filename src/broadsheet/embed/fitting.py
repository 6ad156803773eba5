"""`fit`: train an embedder, for so many steps or minutes, through kills, to a folder that stands whole or not at all.

Knows: sentence-transformers' trainer, HF `Trainer`, and the parts around them in `broadsheet.training`. Does not know
the losses: a sentence-transformers loss brings its own, an `Objective` the methods that train on more than pairs.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import Tensor, nn
from transformers import TrainingArguments

from broadsheet.cache import atomic_folder, atomic_write, fingerprint
from broadsheet.console import InputError
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.models import adapters
from broadsheet.models import fingerprint as model_fingerprint
from broadsheet.training.timed import ARGUMENTS, TimedRun, warmed_up
from broadsheet.training.trainer import TrainedItems, TrainedWeights, TrainOutput, check_lengths, items_in_order
from broadsheet.training.weights import autocast_dtype
from broadsheet.training.workdir import workdir

LEARNING_RATES = {"full": 2e-5, "lora": 2e-4}
_MAY_CHANGE = ("minutes", "checkpoint_minutes")


@runtime_checkable
class Objective(Protocol):
    """A training that sees more than columns of texts. May be an `nn.Module`: its own parameters are trained too."""

    def collate(self, items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        """(place in the order of training, item) pairs → tensors by name. Draws follow from the place and a seed."""

    def loss(self, embedder: Any, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        """`"loss"`, a scalar to minimise, and further scalars to log. `generator` follows from seed and place."""


def fit(
    embedder: SentenceTransformer,
    data: Any,
    loss: nn.Module | Objective,
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    epochs: int = 1,
    batch_size: int = 16,
    accumulate: int = 1,
    learning_rate: float | None = None,
    method: Literal["full", "lora"] = "lora",
    lora_rank: int = 16,
    merge: bool = False,
    warmup: float = 0.1,
    schedule: Literal["linear", "cosine", "constant"] = "linear",
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    autocast: Literal["auto", "bfloat16", "none"] = "auto",
    gradient_checkpointing: bool = False,
    checkpoint_minutes: float = 10.0,
    seed: int = 0,
    force: bool = False,
    clock: Callable[[], float] = time.monotonic,
    **arguments: Any,
) -> TrainOutput:
    """Train `embedder` in place.

    Args:
        data: for a sentence-transformers loss, a `datasets.Dataset`, a list of dicts, or a dict of either (one data set
            a batch); for an `Objective`, a sequence of whatever its `collate` takes.
        loss: a sentence-transformers loss built around `embedder`, or an `Objective`.
        out: the folder where the trained embedder will stand. `<out>.partial` holds checkpoints until then; the same
            call goes on from the newest complete one. None: nothing is written.
        steps, minutes, epochs: whichever ends first, where `steps` repeats the data as often as it takes.
        batch_size: rows a forward pass and device; with `accumulate`, so many passes a step of AdamW.
        learning_rate: by default 2e-5 for full fine-tuning and 2e-4 for LoRA.
        method: all weights (kept in float32 meanwhile), or an adapter of `lora_rank` on all linear layers; an adapter
            that is there is trained on.
        merge: add the adapter to the weights at the end, so that `out` is a whole model.
        warmup, schedule: share of the training in which the rate rises, and how it falls to 0.
        autocast: the type of forward passes; `"auto"`: bfloat16 where the device computes in it.
        seed: of order, adapters, dropout and what a loss draws.
        force: replace a finished `out`, and start over.
        arguments: further ones for `SentenceTransformerTrainingArguments` (`prompts`, `batch_sampler`, …) or
            `TrainingArguments`.

    Raises:
        InputError: a parameter is out of range; no data; `out` is finished, or was begun from other settings, model or
            data; a loss that is not finite (the last checkpoint stays).

    Example:
        fit(embedder, pairs, MultipleNegativesRankingLoss(embedder, scale=50), "runs/contrastive", steps=200)
    """
    check_lengths(steps, epochs, batch_size, accumulate)
    if method not in LEARNING_RATES:
        raise InputError(f"got method {method!r}; expected one of {', '.join(LEARNING_RATES)}")
    if not _size(data):
        raise InputError("got no data to train on; expected at least one example")
    config: dict[str, Any] = {
        "loss": _described(loss),
        "steps": steps,
        "minutes": minutes,
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": LEARNING_RATES[method] if learning_rate is None else learning_rate,
        "method": method,
        "lora_rank": lora_rank if method == "lora" else None,
        "merge": merge,
        "warmup": warmup,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "autocast": autocast,
        "checkpoint_minutes": checkpoint_minutes,
        "seed": seed,
        "arguments": {name: str(value) for name, value in sorted(arguments.items())},
    }
    run = TimedRun(minutes, checkpoint_minutes, keep=out is not None, clock=clock)
    whole = {**config, "model": _fingerprint(embedder), "data": _content(data)} if out is not None else {}
    place = workdir(
        out,
        whole,
        finished="modules.json",
        force=force,
        mutable_keys=_MAY_CHANGE,
        fingerprints=("model", "data"),
        kind="embedder",
    )
    with place as folder, _seeded(seed), _trained(embedder, method, lora_rank, autocast):
        common: dict[str, Any] = {
            "learning_rate": config["learning_rate"],
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "per_device_train_batch_size": batch_size,
            "gradient_accumulation_steps": accumulate,
            "activation_checkpointing": gradient_checkpointing,
            "use_cpu": next(embedder.parameters()).device.type == "cpu",
            "seed": seed,
            "data_seed": seed,
            **ARGUMENTS,
            **arguments,
        }
        follow = {"progress": run.progress, "schedule": warmed_up(schedule, warmup)}
        build: Any = _on_items if isinstance(loss, Objective) else _on_columns
        trainer = build(embedder, data, loss, str(folder), steps, epochs, common, follow)
        finished = run.train(trainer)
        fitted = TrainOutput.of(trainer, run, finished)
        if not finished:
            return fitted
        if merge:
            adapters.merge(_encoder(embedder).model)
    if out is None:
        return fitted
    write(embedder, out, {"settings": config, **asdict(replace(fitted, folder=None))})
    if merge:
        _encoder(embedder).spec = str(Path(out).resolve())  # the base of a later adapter is what was written
    shutil.rmtree(Path(out).with_name(f"{Path(out).name}.partial"), ignore_errors=True)
    return replace(fitted, folder=Path(out))


def write(embedder: SentenceTransformer, folder: str | Path, record: Mapping[str, Any] | None = None) -> None:
    """Write an embedder as `folder`, whole or not at all, with `training.json` where a record is given.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        with atomic_folder(Path(folder)) as temporary:
            embedder.save(str(temporary), create_model_card=False)
            if record is not None:
                with atomic_write(temporary / "training.json") as file:
                    json.dump(record, file, default=str)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from None


class _ColumnTrainer(TrainedWeights, SentenceTransformerTrainer):
    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No card is written, so nothing is collected for one."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        masks = [value for name, value in inputs.items() if name.endswith("attention_mask")]
        self.seen(loss, len(masks[0]) if masks else 0, int(sum(mask.sum() for mask in masks)))
        return result


class _ItemTrainer(TrainedItems):
    """HF `Trainer` on an `Objective`. The model it trains is a `_Step`."""

    def __init__(self, *args: Any, **parts: Any) -> None:
        super().__init__(*args, **parts)
        self._terms: dict[str, list[float]] = {}

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **others: Any) -> Any:
        place = inputs.pop("place")
        generator = torch.Generator().manual_seed((self.args.seed * 1_000_003 + int(place[0])) % 2**63)
        terms = model(inputs, generator)
        loss = terms["loss"]
        tokens = [value for name, value in inputs.items() if name.endswith("attention_mask") and value.ndim == 2]
        self.seen(loss, len(place), int(inputs["tokens"] if "tokens" in inputs else sum(mask.sum() for mask in tokens)))
        for name, value in terms.items():
            if name != "loss":
                self._terms.setdefault(name, []).append(float(value))
        return (loss, terms) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._terms:
            logs = {**logs, **{f"loss_{name}": sum(each) / len(each) for name, each in self._terms.items()}}
            self._terms.clear()
        super().log(logs, start_time)


class _Step(nn.Module):
    """What a step computes, as a module: so that its forward pass is what several devices share."""

    def __init__(self, embedder: SentenceTransformer, objective: Objective) -> None:
        super().__init__()
        self.embedder = embedder
        self.objective = objective  # registered, where it is a module

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        self.embedder.gradient_checkpointing_enable(**settings)

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        return self.objective.loss(self.embedder, batch, generator)


def _on_items(
    embedder: SentenceTransformer,
    data: Sequence[Any],
    objective: Objective,
    folder: str,
    steps: int | None,
    epochs: int,
    common: dict[str, Any],
    follow: dict[str, Any],
) -> _ItemTrainer:
    items = items_in_order(
        data,
        steps=steps,
        epochs=epochs,
        batch_size=common["per_device_train_batch_size"],
        accumulate=common["gradient_accumulation_steps"],
        seed=common["seed"],
    )

    def collate(items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        return {**objective.collate(items), "place": torch.tensor([place for place, _ in items])}

    arguments = TrainingArguments(
        folder, num_train_epochs=1, remove_unused_columns=False, dataloader_drop_last=True, **common
    )
    return _ItemTrainer(
        model=_Step(embedder, objective),
        args=arguments,
        train_dataset=items,
        data_collator=collate,
        **follow,
    )


def _on_columns(
    embedder: SentenceTransformer,
    data: Any,
    loss: nn.Module,
    folder: str,
    steps: int | None,
    epochs: int,
    common: dict[str, Any],
    follow: dict[str, Any],
) -> _ColumnTrainer:
    length: dict[str, Any] = {"max_steps": steps} if steps is not None else {"num_train_epochs": epochs}
    arguments = SentenceTransformerTrainingArguments(folder, **length, **common)
    sets = {name: _dataset(each) for name, each in data.items()} if isinstance(data, Mapping) else _dataset(data)
    return _ColumnTrainer(model=embedder, args=arguments, train_dataset=sets, loss=loss, **follow)


def _dataset(rows: Any) -> Any:
    from datasets import Dataset as Table

    return Table.from_list([dict(row) for row in rows]) if isinstance(rows, list | tuple) else rows


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's own generator begins at `seed` inside, and is as it was afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _trained(embedder: SentenceTransformer, method: str, rank: int, autocast: str) -> Iterator[None]:
    """Weights trainable and forward passes in the faster type; as they were afterwards, but for what was learned."""
    first = embedder[0]
    lm = first.model if isinstance(first, CausalEncoder) else embedder.transformers_model
    if lm is None:
        raise InputError("the embedder holds no transformers model that could be trained")
    before = lm.dtype
    if method == "full":
        if adapters.has_adapter(lm):
            raise InputError("the model has an adapter; train it with method='lora', or merge it first")
        embedder.float().requires_grad_(True)
    elif not adapters.has_adapter(lm):
        adapters.add(lm, rank)
    else:
        for name, parameter in lm.named_parameters():
            parameter.requires_grad_("lora_" in name)
    kind = autocast_dtype(autocast, next(embedder.parameters()).device)
    if isinstance(first, CausalEncoder):
        first.autocast = kind
    embedder.train()
    try:
        yield
    finally:
        if isinstance(first, CausalEncoder):
            first.autocast = None
        embedder.zero_grad(set_to_none=True)
        embedder.eval()
        if method == "full":
            embedder.to(before)


def _encoder(embedder: SentenceTransformer) -> CausalEncoder:
    return cast(CausalEncoder, embedder[0])


def _size(data: Any) -> int:
    return sum(len(each) for each in data.values()) if isinstance(data, Mapping) else len(data)


def _content(data: Any) -> str:
    if isinstance(data, Mapping):
        return fingerprint({name: _content(each) for name, each in data.items()})
    return fingerprint([dict(row) if isinstance(row, Mapping) else _plain(row) for row in data])


def _plain(value: Any) -> Any:
    """A JSON value that names `value` by content."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(each) for key, each in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)


def _fingerprint(embedder: SentenceTransformer) -> list[Any]:
    """What the embedder is made of: the model's weights, and each module's settings."""
    lm = embedder.transformers_model
    parts: list[Any] = list(embedder)
    settings = [_plain(part.get_config_dict()) for part in parts if hasattr(part, "get_config_dict")]
    return ["" if lm is None else model_fingerprint(lm), settings, _plain(embedder.prompts)]


def _described(loss: Any) -> Any:
    """A loss by its class and settings, as far as it tells them."""
    if is_dataclass(loss) and not isinstance(loss, type):
        told = _plain({name: getattr(loss, name) for name in loss.__dataclass_fields__})
    elif hasattr(loss, "get_config_dict"):
        told = _plain(loss.get_config_dict())
    elif isinstance(loss, Mapping):
        return {name: _described(each) for name, each in loss.items()}
    else:
        told = {}
    return {"name": type(loss).__name__, **(told if isinstance(told, dict) else {})}

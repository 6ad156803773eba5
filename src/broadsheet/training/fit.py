"""`fit`: train any module on any rows with an `Objective`, through kills, to a folder that is complete or not there.

Knows: HF `Trainer` through the parts of `broadsheet.training`, and the order in which they work. Does not know: losses
(an `Objective`), what a saved model looks like (a `save` callback).
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import TrainingArguments, integrations

from broadsheet.cache import atomic_folder, fingerprint
from broadsheet.console import InputError
from broadsheet.models import adapters, card
from broadsheet.models import fingerprint as model_fingerprint
from broadsheet.models.attention import short_attention
from broadsheet.models.reading import quiet
from broadsheet.models.safefiles import read_json
from broadsheet.page.evidence import versions
from broadsheet.seeds import seeded
from broadsheet.training import memory, weights
from broadsheet.training.distributed import entered_by_first, is_first, wait_for_all
from broadsheet.training.objective import Objective, content, described
from broadsheet.training.schedules import Progress, schedule
from broadsheet.training.timed import ARGUMENTS, TimedRun
from broadsheet.training.trainer import ObjectiveTrainer, SeededOrderDataset, TrainedWeights, TrainOutput
from broadsheet.training.workdir import differences, workdir

__all__ = ["FitConfig", "TrainOutput", "fit", "write"]

# What a resumed run may do otherwise: none of it changes what is learnt from the rows that are read.
_MUTABLE = ("minutes", "checkpoint_minutes", "gradient_checkpointing", "report_to")


@dataclass(frozen=True)
class FitConfig:
    """How long, how fast and in what a training runs.

    Args:
        steps, minutes, epochs: whichever ends first, where `steps` repeats the rows as often as it takes.
        batch_size: rows a forward pass and device; with `accumulate`, that many passes a step of AdamW.
        drop_last: leave out rows at the end that fill no whole batch.
        learning_rate: by default 2e-5 for all weights, 2e-4 for LoRA, 1e-4 for `"given"` ones.
        method: `"full"`: all weights, in float32 meanwhile; `"lora"`: an adapter of `lora_rank` on all linear layers, a
            new one or the one that is there; `"given"`: the parameters that require a gradient.
        merge: add the adapter to the weights at the end, so that a whole model is saved.
        schedule, warmup: how the rate falls, one of `schedules.SCHEDULES`, and the share of the training in which it
            rises before; or what gives the factor of the rate by `schedules.Progress`.
        weight_decay: of AdamW. max_grad_norm: gradients are clipped to it; 0 does not clip.
        autocast: the type of forward passes; `"auto"`: bfloat16 where the device computes in it.
        gradient_checkpointing: less memory for more time: activations are computed twice.
        checkpoint_minutes: between checkpoints; two are kept.
        report_to: `"tensorboard"`, … as in `TrainingArguments`; its files come to lie in `<out>/runs`.
        seed: of order, adapters, dropout, and what objectives draw.
        arguments: further ones of `TrainingArguments` (`SentenceTransformerTrainingArguments` for a loss of
            sentence-transformers: `prompts`, `batch_sampler`, …).

    Raises:
        InputError: a field is out of range.
    """

    steps: int | None = None
    minutes: float | None = None
    epochs: int = 1
    batch_size: int = 16
    accumulate: int = 1
    drop_last: bool = True
    learning_rate: float | None = None
    method: weights.Method = "full"
    lora_rank: int = 16
    merge: bool = False
    schedule: str | Callable[[Progress], float] = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    autocast: Literal["auto", "bfloat16", "none"] = "auto"
    gradient_checkpointing: bool = False
    checkpoint_minutes: float = 10.0
    report_to: str | Sequence[str] = "none"
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or min(self.epochs, self.batch_size, self.accumulate) < 1:
            raise InputError(
                f"got steps {self.steps}, epochs {self.epochs}, batch_size {self.batch_size}, accumulate "
                f"{self.accumulate}; expected 1 or more"
            )
        if self.method not in weights.LEARNING_RATES:
            raise InputError(f"got method {self.method!r}; expected one of {', '.join(weights.LEARNING_RATES)}")
        if self.autocast not in ("auto", "bfloat16", "none"):
            raise InputError(f"got autocast {self.autocast!r}; expected auto, bfloat16 or none")
        schedule(self.schedule, self.warmup)
        TimedRun(self.minutes, self.checkpoint_minutes)

    def with_settings(self, **settings: Any) -> FitConfig:
        """A copy with other fields; names that are no fields become `arguments`."""
        known = {each.name for each in fields(self)}
        changed = {name: value for name, value in settings.items() if name in known}
        more = {name: value for name, value in settings.items() if name not in known}
        return replace(self, **{"arguments": {**self.arguments, **more}, **changed})

    @property
    def rate(self) -> float:
        """The learning rate, or the default of the method."""
        return weights.LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    def record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        if callable(self.schedule):
            told["schedule"] = repr(self.schedule)
        told |= {"learning_rate": self.rate, "lora_rank": self.lora_rank if self.method == "lora" else None}
        return {**told, "arguments": {name: str(value) for name, value in sorted(self.arguments.items())}}


def fit(
    model: nn.Module,
    rows: Any,
    objective: Any,
    out: str | Path | None = None,
    config: FitConfig | None = None,
    *,
    save: Callable[[Path], object] | None = None,
    finished: str = "training.json",
    kind: str = "model",
    identity: Any = None,
    force: bool = False,
    reuse: bool = False,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> TrainOutput:
    """Train `model` in place.

    Started by `torchrun` or `accelerate launch`, all processes train together: a step then reads `batch_size` rows a
    process, and equals a step of one process on all of them where the loss is a mean over rows (see `distributed`).

    Args:
        rows: whatever the objective's `collate` takes, in a sequence that is shuffled anew for each epoch; one that
            has `in_order = True` holds the whole training, all epochs, in its order. For a loss of
            sentence-transformers a `datasets.Dataset`, a list of dicts, or a dict of either (one data set a batch).
        objective: an `Objective`; or, for a `SentenceTransformer`, a loss of sentence-transformers built around it.
        out: the folder where the trained model will stand. `<out>.partial` holds checkpoints until then; the same call
            resumes from the newest complete one, with the result of an uninterrupted run bit for bit (as long as
            `minutes` do not decide). None: nothing is written, so that Ctrl-C ends it as any program.
        config, settings: a `FitConfig`, and fields of it by name.
        save: writes the model's own files into an empty folder; by default its `save_pretrained`, or its weights as
            safetensors. `training.json` comes beside them, and a model card, unless somebody's own stands in `out`.
        finished, kind: a file that a finished `out` holds, and what it is called in messages.
        identity: what tells the model apart before training, as JSON; by default a fingerprint of its weights.
        force: replace a finished `out`, and start over.
        reuse: return what a finished `out` records, if it is of the same settings, model and rows. The caller loads it.
        clock: seconds, for `minutes`.

    Raises:
        InputError: a setting is out of range; no rows; `out` is finished, is something else, or was begun with other
            settings, model or rows; a loss that is not finite (the last checkpoint stays).

    Example:
        fit(model, texts, NextToken(tokenizer), "runs/plain", steps=100, learning_rate=1e-4)
    """
    config = (config or FitConfig()).with_settings(**settings)
    config = _checked(config, rows, objective)
    arguments = _arguments(config, model, isinstance(objective, Objective))
    run = TimedRun(config.minutes, config.checkpoint_minutes, keep=out is not None, clock=clock)
    record: dict[str, Any] = {"settings": {"objective": described(objective), **config.record()}}
    if out is not None:
        record |= {"model": _identity(model) if identity is None else identity, "rows": content(rows)}
        record |= {"command": _command(), "versions": versions()}
    begun = {**record["settings"], **{name: record[name] for name in ("model", "rows") if name in record}}
    if reuse and not force and out is not None and (Path(out) / "training.json").is_file():
        return _reused(Path(out), begun)
    place = workdir(out, begun, finished=finished, force=force, mutable_keys=_MUTABLE, kind=kind)
    with entered_by_first(place) as folder:
        arguments.output_dir = str(folder)
        with (
            seeded(config.seed),
            weights.trained(model, config.method, config.lora_rank),
            weights.autocast(model, config.autocast) as dtype,
            short_attention(model),
            memory.kept(),
        ):
            trainer = _trainer(model, rows, objective, config, arguments, run, dtype)
            try:
                done = run.train(trainer)
            finally:
                if isinstance(objective, Objective):
                    objective.release(model)
            if not done and out is None:
                raise KeyboardInterrupt  # nothing is kept to resume, and half a training is no result
            output = TrainOutput.of(trainer, run, done)
            if done and config.merge:
                adapters.merge(weights.language_model(model))
        if out is None or not done:
            return output
        if is_first():
            whole = {**record, **asdict(replace(output, folder=None))}
            paper = card.paper_of(objective, model)
            write(Path(out), save or _saver(model), whole, folder / "runs", paper=paper, base=_base(model))
            shutil.rmtree(folder, ignore_errors=True)
        wait_for_all()
    return replace(output, folder=Path(out))


def _reused(out: Path, begun: Mapping[str, Any]) -> TrainOutput:
    """What a finished folder records, begun where it ended.

    Raises:
        InputError: it was made from something else.
    """
    kept = read_json(out / "training.json")
    before = {**kept.get("settings", {}), **{name: kept.get(name) for name in ("model", "rows")}}
    if changes := differences(before, json.loads(json.dumps(begun)), _MUTABLE):
        raise InputError(f"{out} was made with other {'; '.join(changes)}: choose another out, or force=True")
    known = {each.name: kept[each.name] for each in fields(TrainOutput) if each.name in kept}
    return TrainOutput(**known | {"resumed_from": kept["steps"], "folder": out})


def _checked(config: FitConfig, rows: Any, objective: Any) -> FitConfig:
    """The config with the steps that an objective's phases take together."""
    if not (isinstance(objective, Objective | nn.Module | Mapping)):
        raise InputError(f"got a {type(objective).__name__}; expected an Objective or a loss of sentence-transformers")
    if not (sum(map(len, rows.values())) if isinstance(rows, Mapping) else len(rows)):
        raise InputError("got no rows to train on; expected at least one")
    if phases := getattr(objective, "phases", ()):
        together = sum(phase.steps for phase in phases)
        if config.steps not in (None, together):
            raise InputError(f"got steps {config.steps} for phases of {together} steps; leave steps out")
        return replace(config, steps=together)
    return config


def _arguments(config: FitConfig, model: nn.Module, ours: bool) -> TrainingArguments:
    """HF's arguments; the folder is set later, as is the length for an objective's rows.

    Raises:
        InputError: there is no such argument; what `report_to` names is not installed.
    """
    kind: Any = TrainingArguments
    own: dict[str, Any] = {"num_train_epochs": 1, "remove_unused_columns": False}
    own["dataloader_drop_last"] = config.drop_last
    if not ours:
        from broadsheet.training.columns import Arguments as kind  # noqa: N813

        own = {"num_train_epochs": config.epochs} if config.steps is None else {"max_steps": config.steps}
    common = {
        "learning_rate": config.rate,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.accumulate,
        "activation_checkpointing": config.gradient_checkpointing,
        "use_cpu": next(model.parameters()).device.type == "cpu",
        "seed": config.seed,
        "data_seed": config.seed,
    }
    reports = [config.report_to] if isinstance(config.report_to, str) else list(config.report_to)
    available = integrations.get_available_reporting_integrations()
    if missing := [name for name in reports if name not in ("none", "all", *available)]:
        raise InputError(f"got report_to {missing[0]}, which is not installed; expected one of {['none', *available]}")
    try:
        made = kind("", **{**own, **common, **ARGUMENTS, "report_to": reports, **config.arguments})
    except TypeError as error:
        raise InputError(f"{error}; expected fields of FitConfig, or arguments of {kind.__name__}") from None
    if made.n_gpu > 1:
        made._n_gpu = 1  # several devices train as several processes, never as threads of one
    return made


def _trainer(
    model: Any,
    rows: Any,
    objective: Any,
    config: FitConfig,
    arguments: TrainingArguments,
    run: TimedRun,
    dtype: torch.dtype | None,
) -> TrainedWeights:
    """The trainer of an objective, or of a loss of sentence-transformers.

    Raises:
        InputError: the rows make no batch.
    """
    parts: dict[str, Any] = {"progress": run.progress, "schedule": schedule(config.schedule, config.warmup)}
    if not isinstance(objective, Objective):
        from broadsheet.training.columns import column_trainer

        return column_trainer(model, rows, objective, autocast=dtype, args=arguments, **parts)
    step = config.batch_size * config.accumulate * arguments.world_size
    ordered = getattr(rows, "in_order", False)
    whole = len(rows) * (1 if ordered else config.epochs)
    length = whole if config.steps is None else config.steps * step
    if length < (step if config.drop_last else 1):
        raise InputError(f"{len(rows):,} rows make no batch of {step}; give more, or a smaller batch_size")
    order = SeededOrderDataset(rows, length, None if ordered else config.seed)
    objective.prepare(model)
    parts["epoch_steps"] = -(-whole // (step * config.epochs))
    return ObjectiveTrainer(model, objective, order, autocast=dtype, args=arguments, **parts)


def write(
    out: Path,
    save: Callable[[Path], object],
    record: Mapping[str, Any] | None = None,
    reports: Path | None = None,
    *,
    paper: str = "",
    base: str | None = None,
) -> None:
    """What `save` writes as `out`, with its card, a record as `training.json` and the training's reports, or nothing.

    Args:
        paper, base: of the model card; see `card.write`.

    Raises:
        InputError: it cannot be written.
    """
    try:
        with atomic_folder(out) as temporary:
            with quiet():
                save(temporary)
            if record is not None:
                (temporary / "training.json").write_text(json.dumps(record, default=str) + "\n", "utf-8")
            if reports is not None and reports.is_dir():
                shutil.copytree(reports, temporary / "runs")
            card.write(temporary, to=out, paper=paper, base=base, record=record)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}; choose another folder") from None


def _saver(model: Any) -> Callable[[Path], object]:
    if hasattr(model, "save_pretrained"):
        return lambda folder: model.save_pretrained(folder)
    from safetensors.torch import save_model

    return lambda folder: save_model(model, str(folder / "model.safetensors"))


def _base(model: Any) -> str | None:
    """The name of the model that was trained, where it has one."""
    config = getattr(weights.language_model(model), "config", None)
    return getattr(model, "spec", None) or getattr(config, "name_or_path", None) or getattr(config, "llm", None)


def _identity(model: Any) -> str:
    lm = weights.language_model(model)
    if hasattr(lm, "config"):
        return model_fingerprint(lm)
    return fingerprint({name: each.double().sum().item() for name, each in model.state_dict().items()})


def _command() -> str | None:
    """The command that runs, where it is broadsheet's."""
    program = Path(sys.argv[0] if sys.argv else "")
    if program.name != "broadsheet" and program.parts[-2:] != ("broadsheet", "__main__.py"):
        return None
    return shlex.join(["broadsheet", *sys.argv[1:]])

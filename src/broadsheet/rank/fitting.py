"""`fit`: train a reranker for so many minutes, and save it.

Knows: time budgets, learning rates, checkpoints, Ctrl-C and kills. Does not know: the losses (an `Objective`), how
lists become prompts (`training`).
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from broadsheet.apply import interruptible
from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError, progress, say
from broadsheet.rank.first import FIRST
from broadsheet.rank.rows import ListDataset, Row

if TYPE_CHECKING:
    import torch

    from broadsheet.rank.base import ListwiseReranker
    from broadsheet.rank.objective import Objective

Method = Literal["full", "lora"]
Schedule = Literal["cosine", "linear", "constant"]
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
_LEARNING_RATES = {"full": 5e-5, "lora": 5e-4}
_MAY_CHANGE = {"minutes", "checkpoint_minutes"}  # between a run that was cut off and the one that goes on
_FIRST_STEPS = 0.1  # share of the learning rate that warm-up begins with: few steps, none of them to be wasted


@dataclass(frozen=True)
class Fitted:
    """What a training did.

    Attributes:
        steps, lists, tokens: optimizer steps, lists read, tokens read; those before an interruption included.
        seconds: of training.
        finished: False after Ctrl-C; the same call goes on.
        resumed_from: the step that this call began at.
        history: per step the loss, its terms (`loss_lm`, `loss_rank`, …) and the learning rate.
        folder: where the reranker is saved; None where it is not.
    """

    steps: int
    lists: int
    tokens: int
    seconds: float
    finished: bool
    resumed_from: int
    history: list[dict[str, float]] = field(repr=False)
    folder: Path | None = None


def fit(
    reranker: ListwiseReranker,
    rows: Sequence[Row],
    objective: Objective | None = None,
    *,
    out: str | Path | None = None,
    minutes: float | None = 30.0,
    epochs: int = 3,
    method: Method = "full",
    learning_rate: float | None = None,
    warmup: float = 0.05,
    schedule: Schedule = "cosine",
    lists_per_step: int = 8,
    lists_per_pass: int = 1,
    sizes: tuple[int, int] | None = None,
    shuffle: float = 1.0,
    negatives: Literal["random", "first"] = "random",
    neftune: float | None = None,
    lora_rank: int = 16,
    weight_decay: float = 0.0,
    gradient_checkpointing: bool = False,
    autocast: Literal["auto", "bfloat16", "none"] = "auto",
    checkpoint_minutes: float = 5.0,
    seed: int = 0,
    force: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Fitted:
    """Train `reranker` in place on lists, with its own prompts; save it as a folder that `ListwiseReranker.load` reads.

    A run that was stopped or killed goes on from its newest complete checkpoint when the same call is made again; its
    parts lie in `<out>.partial` until it is done. Without `minutes` it ends as an uninterrupted one bit for bit; with
    it, steps and learning rates follow the clock.

    Args:
        reranker: trained in place. A PEFT model is trained on as it is (`method="lora"`).
        rows: `query`, `documents`, and `ranking` or `labels`: see `rows.check_row`.
        objective: `FIRST()` by default; `FIRST(lm=False)` trains the ranking loss alone and reads each prompt without
            an answer, which suits a small model on a CPU; `FullRank()`, `PGRank()`.
        out: a folder to save to; None trains in memory, without checkpoints.
        minutes: of training, checkpoints included; None for all `epochs`. What ends first ends it.
        epochs: how often each list may come.
        method: `"full"`, all weights (kept in float32 meanwhile); or `"lora"`, adapters of `lora_rank` on all linear
            layers: no gradients of the weights themselves, and far smaller checkpoints.
        learning_rate: by default 5e-5 for full, 5e-4 for LoRA. FIRST's authors: 5e-6 for 7B parameters.
        warmup: share of the training in which the rate rises.
        schedule: how it falls to 0 at the end of the time or the epochs, whichever is nearer: `"cosine"`, `"linear"`;
            or `"constant"`.
        lists_per_step: lists whose gradients are summed for one step of AdamW (norm clipped at 1).
        lists_per_pass: lists read at once. 1 suits a CPU: no padding; raise it on a GPU.
        sizes, shuffle, negatives: of each list when it comes: see `rows.ListDataset`.
        neftune: noise α on embeddings, by HF `Trainer`. The paper: 5.
        weight_decay: of AdamW.
        gradient_checkpointing: less memory, more time (activations are computed twice).
        autocast: `"bfloat16"` for forward passes, float32 for weights; `"auto"` where the device has it.
        checkpoint_minutes: between checkpoints. A full one takes 12 bytes per parameter; two are kept.
        seed: of shapes, order, adapters and noise.
        force: replace a finished `out`, and start over rather than go on.
        clock: seconds, for `minutes`.

    Returns:
        What was done; also written to `<out>/training.json`.

    Raises:
        InputError: a parameter is out of range; `out` is finished already, or was begun with other settings or data;
            a list that cannot be trained on; a loss that is not finite (the last checkpoint stays).

    Source: arXiv:2406.15657 and arXiv:2412.14574: cosine, warm-up, NEFTune 5, full fine-tuning.
    """
    import torch

    objective = FIRST() if objective is None else objective
    _check(minutes, epochs, method, warmup, schedule, lists_per_step, lists_per_pass, checkpoint_minutes)
    dataset = ListDataset(rows, epochs=epochs, sizes=sizes, shuffle=shuffle, negatives=negatives, seed=seed)
    rate = _LEARNING_RATES[method] if learning_rate is None else learning_rate
    settings: dict[str, Any] = {
        "objective": {"name": type(objective).__name__, **_plain(objective)},
        "minutes": minutes,
        "epochs": epochs,
        "method": method,
        "learning_rate": rate,
        "warmup": warmup,
        "schedule": schedule,
        "lists_per_step": lists_per_step,
        "lists_per_pass": lists_per_pass,
        "sizes": sizes,
        "shuffle": shuffle,
        "negatives": negatives,
        "neftune": neftune,
        "lora_rank": lora_rank if method == "lora" else None,
        "weight_decay": weight_decay,
        "autocast": autocast,
        "checkpoint_minutes": checkpoint_minutes,
        "seed": seed,
    }
    with _workplace(reranker, rows, settings, out, force) as folder, torch.random.fork_rng():
        torch.manual_seed(seed)
        before = reranker.model.dtype
        _prepare(reranker, method, lora_rank)
        try:
            fitted = _train(
                reranker,
                dataset,
                objective,
                folder,
                keep=out is not None,
                settings=settings,
                gradient_checkpointing=gradient_checkpointing,
                clock=clock,
            )
        finally:
            reranker.model.eval()
            if method == "full":
                reranker.model.to(before)
        if not fitted.finished or out is None:
            return fitted
        target = Path(out)
        reranker.save(target)
        with atomic_write(target / "training.json") as file:
            json.dump({"settings": settings, **{k: v for k, v in asdict(fitted).items() if k != "folder"}}, file)
        shutil.rmtree(folder, ignore_errors=True)
    return replace(fitted, folder=target)


def _train(
    reranker: ListwiseReranker,
    dataset: ListDataset,
    objective: Objective,
    folder: Path,
    *,
    keep: bool,
    settings: Mapping[str, Any],
    gradient_checkpointing: bool,
    clock: Callable[[], float],
) -> Fitted:
    from transformers import PrinterCallback, TrainerCallback, TrainingArguments

    from broadsheet.rank.training import ListwiseCollator, RerankTrainer, checkpoint_record, newest_checkpoint

    checkpoint = newest_checkpoint(folder)
    for leftover in folder.glob("checkpoint-*"):
        if checkpoint is None or not (leftover / "complete.json").exists():
            shutil.rmtree(leftover)
    record = {} if checkpoint is None else checkpoint_record(checkpoint)
    if checkpoint is not None:
        say(f"{folder}: going on after step {record['step']:,} ({record['seconds'] / 60:.1f} minutes)")
    begun, spent = clock(), float(record.get("seconds", 0.0))
    budget = None if settings["minutes"] is None else 60.0 * settings["minutes"]
    shape = SCHEDULES[settings["schedule"]]
    warmup = settings["warmup"]

    def elapsed() -> float:
        return spent + clock() - begun

    def factor(done: float) -> float:
        if done < warmup:
            return max(_FIRST_STEPS, done / warmup)
        return max(0.0, shape((done - warmup) / max(1e-9, 1 - warmup)))

    arguments = TrainingArguments(
        str(folder),
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        per_device_train_batch_size=settings["lists_per_pass"],
        gradient_accumulation_steps=settings["lists_per_step"] // settings["lists_per_pass"],
        num_train_epochs=1,  # of the data set, which holds all of ours
        neftune_noise_alpha=settings["neftune"],
        activation_checkpointing=gradient_checkpointing,
        use_cpu=reranker.model.device.type == "cpu",
        seed=settings["seed"],
        save_strategy="no",  # by the clock instead
        save_total_limit=2,  # the one before stays until the new one is complete
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = RerankTrainer(
        objective=objective,
        model=reranker.model,
        args=arguments,
        train_dataset=dataset,
        data_collator=ListwiseCollator(reranker.prompter, objective),
        progress=lambda: 0.0 if budget is None else elapsed() / budget,
        schedule=factor,
        autocast=_autocast(settings["autocast"], reranker.model.device),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.lists_seen, trainer.tokens_seen = record.get("lists", 0), record.get("tokens", 0)

    total = budget or len(dataset) // settings["lists_per_step"]
    with interruptible() as interrupted, progress("training", total) as bar:

        class Watch(TrainerCallback):
            """Stops in time, asks for checkpoints, and moves the bar."""

            saved = last = elapsed()

            def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                now = elapsed()
                step, self.last = now - self.last, now
                over = budget is not None and now + step > budget
                if interrupted.is_set() or over:
                    control.should_training_stop = True
                due = now - self.saved >= 60 * settings["checkpoint_minutes"]
                if keep and (due or interrupted.is_set()):
                    control.should_save = True
                    self.saved = now
                trainer.extra["seconds"] = now

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
                done = elapsed() if budget is not None else state.global_step
                loss = f", loss {logs['loss']:.3f}" if logs and "loss" in logs else ""
                bar.update(bar.task_ids[0], completed=int(done), description=f"step {state.global_step:,}{loss}")

        trainer.add_callback(Watch())
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        stopped = interrupted.is_set()
    state = trainer.state
    seconds = elapsed()
    if stopped:
        say(f"stopped after {state.global_step:,} steps" + ("; the same call goes on from there" if keep else ""))
    history = [
        {key: float(value) for key, value in entry.items() if key in ("step", "learning_rate") or "loss" in key}
        for entry in state.log_history
        if "loss" in entry
    ]
    reranker.model.zero_grad(set_to_none=True)
    return Fitted(
        steps=state.global_step,
        lists=trainer.lists_seen,
        tokens=trainer.tokens_seen,
        seconds=seconds,
        finished=not stopped,
        resumed_from=record.get("step", 0),
        history=history,
    )


def _prepare(reranker: ListwiseReranker, method: Method, rank: int) -> None:
    """All weights in float32 and trainable; or an adapter, new or the one that is there."""
    model = reranker.model
    adapted = hasattr(model, "peft_config")
    if method == "full":
        if adapted:
            raise InputError("the reranker has an adapter; train it with method='lora', or merge it first")
        model.float().requires_grad_(True)
        return
    if adapted:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        return
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise InputError("method='lora' needs peft: pip install 'broadsheet[rank]', or use method='full'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    reranker.model = get_peft_model(model, config)


def _autocast(name: str, device: torch.device) -> torch.dtype | None:
    import torch

    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    # Elsewhere on CPUs bfloat16 is emulated, at a loss.
    fast = device.type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return torch.bfloat16 if fast else None


@contextmanager
def _workplace(
    reranker: ListwiseReranker, rows: Sequence[Row], settings: dict[str, Any], out: str | Path | None, force: bool
) -> Iterator[Path]:
    """The folder that checkpoints go to: `<out>.partial`, held by one process, removed once `out` stands."""
    if out is None:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    from filelock import FileLock, Timeout

    from broadsheet.models import fingerprint as model_fingerprint

    target = Path(out)
    folder = target.with_name(f"{target.name}.partial")
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "reranker.json").exists()):
        raise InputError(f"{target} exists and is no saved reranker; choose another out")
    replacing = (folder / "replacing").exists()  # the run that was cut off had force=True
    if target.exists() and any(target.iterdir()) and not (force or replacing):
        raise InputError(f"{target} is finished; choose another out, or force=True to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another broadsheet is training {target}; wait for it, or choose another out") from None
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; choose another out") from None
    try:
        made_from = {
            **settings,
            "reranker": reranker.settings(),
            "model": model_fingerprint(reranker.model),
            "rows": fingerprint([dict(row) for row in rows]),
        }
        _claim(folder, json.loads(json.dumps(made_from)), force)
        yield folder
    finally:
        lock.release()
        if not folder.exists():
            Path(lock.lock_file).unlink(missing_ok=True)


def _claim(folder: Path, made_from: dict[str, Any], force: bool) -> None:
    """See that `folder` may be gone on with, or begin it.

    Raises:
        InputError: it was begun from other settings or data, or what it was begun from is unreadable.
    """
    path = folder / "settings.json"
    if force or not path.exists():
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_write(path) as file:
            json.dump(made_from, file)
        if force:
            (folder / "replacing").touch()
        return
    try:
        before = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{path} is damaged; force=True starts over") from None
    changes = [
        key if key in ("rows", "model", "reranker") else f"{key} {before.get(key)!r}, now {made_from.get(key)!r}"
        for key in sorted(before.keys() | made_from.keys())
        if key not in _MAY_CHANGE and before.get(key) != made_from.get(key)
    ]
    if changes:
        raise InputError(
            f"{folder} was begun with other {'; '.join(changes)}: go on with the same, or start over with force=True"
        )


def _plain(objective: Any) -> dict[str, Any]:
    """An objective's fields as JSON values."""
    values = asdict(objective) if hasattr(objective, "__dataclass_fields__") else {}
    return {
        key: value if value is None or isinstance(value, str | int | float | bool | dict) else repr(value)
        for key, value in values.items()
    }


def _check(
    minutes: float | None,
    epochs: int,
    method: str,
    warmup: float,
    schedule: str,
    lists_per_step: int,
    lists_per_pass: int,
    checkpoint_minutes: float,
) -> None:
    """Raises InputError for the first parameter that cannot be."""
    if minutes is not None and not minutes > 0:
        raise InputError(f"got minutes {minutes}; expected a number above 0, or None for all epochs")
    if epochs < 1:
        raise InputError(f"got epochs {epochs}; expected 1 or more")
    if method not in _LEARNING_RATES:
        raise InputError(f"got method {method!r}; expected one of {', '.join(_LEARNING_RATES)}")
    if not 0 <= warmup < 1:
        raise InputError(f"got warmup {warmup}; expected a share of the training from 0 to below 1")
    if schedule not in SCHEDULES:
        raise InputError(f"got schedule {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    if lists_per_pass < 1 or lists_per_step % lists_per_pass or lists_per_step < 1:
        raise InputError(
            f"got lists_per_step {lists_per_step} and lists_per_pass {lists_per_pass}; expected a multiple of the other"
        )
    if not checkpoint_minutes > 0:
        raise InputError(f"got checkpoint_minutes {checkpoint_minutes}; expected a number above 0")

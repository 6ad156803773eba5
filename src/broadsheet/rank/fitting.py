"""`fit`: train a reranker for so many minutes, and save it.

Knows: which parts make up a training of a reranker, and what it is made from. Does not know: the losses (an
`Objective`), how lists become prompts (`training`), time budgets, checkpoints and kills (`broadsheet.training`).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from broadsheet.cache import atomic_write, fingerprint
from broadsheet.console import InputError
from broadsheet.models import fingerprint as model_fingerprint
from broadsheet.rank.first import FIRST
from broadsheet.rank.rows import ListDataset, Row
from broadsheet.rank.saving import SETTINGS
from broadsheet.training.weights import Method, autocast_dtype, trainable
from broadsheet.training.workdir import workdir

if TYPE_CHECKING:
    from broadsheet.rank.base import ListwiseReranker
    from broadsheet.rank.objective import Objective
    from broadsheet.rank.training import RerankTrainer
    from broadsheet.training.timed import Schedule

_LEARNING_RATES = {"full": 5e-5, "lora": 5e-4}
_MAY_CHANGE = {"minutes", "checkpoint_minutes"}  # between a run that was cut off and the one that goes on


@dataclass(frozen=True)
class TrainOutput:
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
) -> TrainOutput:
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

    from broadsheet.training.timed import TimedRun, loss_history, warmed_up

    objective = FIRST() if objective is None else objective
    _check(epochs, method, lists_per_step, lists_per_pass)
    run = TimedRun(minutes, checkpoint_minutes, keep=out is not None, clock=clock)
    factor = warmed_up(schedule, warmup)
    dataset = ListDataset(rows, epochs=epochs, sizes=sizes, shuffle=shuffle, negatives=negatives, seed=seed)
    settings: dict[str, Any] = {
        "objective": {"name": type(objective).__name__, **_plain(objective)},
        "minutes": minutes,
        "epochs": epochs,
        "method": method,
        "learning_rate": _LEARNING_RATES[method] if learning_rate is None else learning_rate,
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
    with _folder(reranker, rows, settings, out, force) as folder, torch.random.fork_rng():
        torch.manual_seed(seed)
        before = reranker.model.dtype
        reranker.model = trainable(reranker.model, method, lora_rank)
        try:
            parts = {"train_dataset": dataset, "progress": run.progress, "schedule": factor}
            trainer = _trainer(reranker, objective, folder, settings, gradient_checkpointing, **parts)
            finished = run.train(trainer)
            reranker.model.zero_grad(set_to_none=True)
        finally:
            reranker.model.eval()
            if method == "full":
                reranker.model.to(before)
        fitted = TrainOutput(
            steps=trainer.state.global_step,
            lists=trainer.record["lists"],
            tokens=trainer.record["tokens"],
            seconds=run.elapsed(),
            finished=finished,
            resumed_from=run.resumed_from,
            history=loss_history(trainer),
        )
        if not finished or out is None:
            return fitted
        target = Path(out)
        reranker.save(target)
        with atomic_write(target / "training.json") as file:
            json.dump({"settings": settings, **{k: v for k, v in asdict(fitted).items() if k != "folder"}}, file)
        shutil.rmtree(folder, ignore_errors=True)
    return replace(fitted, folder=target)


def _folder(
    reranker: ListwiseReranker, rows: Sequence[Row], settings: Mapping[str, Any], out: str | Path | None, force: bool
) -> AbstractContextManager[Path]:
    """The folder of checkpoints, claimed for this reranker, these rows and settings."""
    config: dict[str, Any] = {}
    if out is not None:
        config = {
            **settings,
            "reranker": reranker.settings(),
            "model": model_fingerprint(reranker.model),
            "rows": fingerprint([dict(row) for row in rows]),
        }
    return workdir(
        out,
        config,
        finished=SETTINGS,
        force=force,
        mutable_keys=_MAY_CHANGE,
        fingerprints=("model", "reranker", "rows"),
        kind="reranker",
    )


def _trainer(
    reranker: ListwiseReranker,
    objective: Objective,
    folder: Path,
    settings: Mapping[str, Any],
    gradient_checkpointing: bool,
    **parts: Any,
) -> RerankTrainer:
    from transformers import TrainingArguments

    from broadsheet.rank.training import ListwiseCollator, RerankTrainer
    from broadsheet.training.timed import ARGUMENTS

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
        **ARGUMENTS,
    )
    return RerankTrainer(
        objective=objective,
        model=reranker.model,
        args=arguments,
        data_collator=ListwiseCollator(reranker.prompter, objective),
        autocast=autocast_dtype(settings["autocast"], reranker.model.device),
        **parts,
    )


def _plain(objective: Any) -> dict[str, Any]:
    """An objective's fields as JSON values."""
    values = asdict(objective) if hasattr(objective, "__dataclass_fields__") else {}
    return {
        key: value if value is None or isinstance(value, str | int | float | bool | dict) else repr(value)
        for key, value in values.items()
    }


def _check(epochs: int, method: str, lists_per_step: int, lists_per_pass: int) -> None:
    """Raises InputError for the first parameter that cannot be."""
    if epochs < 1:
        raise InputError(f"got epochs {epochs}; expected 1 or more")
    if method not in _LEARNING_RATES:
        raise InputError(f"got method {method!r}; expected one of {', '.join(_LEARNING_RATES)}")
    if lists_per_pass < 1 or lists_per_step % lists_per_pass or lists_per_step < 1:
        raise InputError(
            f"got lists_per_step {lists_per_step} and lists_per_pass {lists_per_pass}; expected a multiple of the other"
        )

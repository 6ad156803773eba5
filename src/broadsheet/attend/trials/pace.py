"""What a step of training costs on texts longer than those that are learnt from: models take turns, step by step.

Knows: models that read tokens, clocks. Does not know: how a model attends. Times do not hang on what a model has
learnt, so new ones are raced, and thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from broadsheet.attend.trials.bytetexts import STRETCH, next_byte_loss
from broadsheet.cache import fingerprint
from broadsheet.training import memory
from broadsheet.trial.base import EvalTask, ModelArm
from broadsheet.trial.engine import Arm, Metric
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.trained.pace import stepper

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACE = Metric(f"training ms/step at {STRETCH}× the length", higher_is_better=False, scale="ratio", unit="ms")
ROWS, STEPS = 2, 20  # texts in a step, and steps


def pace_task(texts: Tensor, new: Callable[[str], PreTrainedModel], once: tuple[str, ...]) -> EvalTask:
    """`STEPS` steps of training on `ROWS` texts each.

    Args:
        texts: (n, 1 + length) tokens; they are gone through again where they are too few.
        new: the name of an arm to a new model, on its device.
        once: names of the arms that are raced.
    """
    places = torch.arange(STEPS * ROWS).remainder(len(texts)).view(STEPS, ROWS)
    items = list(texts[places])

    def racer(arm: ModelArm, lazy: LazyModel, kept: Path) -> Arm:
        state: dict[str, Any] = {}

        def prepare() -> None:
            state["step"] = stepper(new(arm.name), lambda model, batch: next_byte_loss(model, batch["input_ids"]))

        def run(block: Sequence[Tensor]) -> dict[str, Any]:
            milliseconds = []
            with memory.kept():
                for ids in block:
                    begin = time.perf_counter()
                    state["step"]({"input_ids": ids})
                    milliseconds.append(1000 * (time.perf_counter() - begin))
            return {PACE.name: milliseconds}

        return Arm(arm.name, run, description=arm.description, prepare=prepare, close=state.clear)

    return EvalTask(
        "pace",
        items,
        [PACE],
        racer,
        item="step",
        about=f"{STEPS} steps of training on {ROWS} × {texts.shape[1] - 1:,} bytes, all arms in turns",
        fingerprint=fingerprint([each.tolist() for each in items]),
        block_size=1,
        once=once,
    )

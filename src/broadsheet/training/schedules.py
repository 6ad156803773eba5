"""Learning rates over a training: by name, or by its steps.

Knows: how much of a training is done. Does not know: losses, clocks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR

from broadsheet.console import InputError

FIRST_STEPS = 0.1  # share of the learning rate that warm-up begins with: few steps, none of them to be wasted


@dataclass(frozen=True)
class Progress:
    """Where a training is.

    Args:
        done: share of it, 0 to 1, in time or in steps, whichever is more.
        step: optimizer steps done; steps: of the whole training; epoch_steps: of one epoch.
    """

    done: float
    step: int
    steps: int
    epoch_steps: int


Schedule = Callable[[Progress, float], float]
"""(where a training is, share of it for warm-up) → factor of the learning rate."""


def after_warmup(shape: Callable[[float], float]) -> Schedule:
    """A schedule that rises from a tenth to 1 in the warm-up, and follows `shape` of 0 to 1 over what is left."""

    def factor(progress: Progress, warmup: float) -> float:
        if progress.done < warmup:
            return max(FIRST_STEPS, progress.done / warmup)
        return max(0.0, shape((progress.done - warmup) / max(1e-9, 1 - warmup)))

    return factor


# Add one of your own: SCHEDULES["mine"] = …
SCHEDULES: dict[str, Schedule] = {
    "cosine": after_warmup(lambda done: 0.5 * (1 + math.cos(math.pi * done))),
    "linear": after_warmup(lambda done: 1 - done),
    "constant": after_warmup(lambda done: 1.0),
}


def schedule(name: str | Callable[[Progress], float], warmup: float) -> Callable[[Progress], float]:
    """The factor of the learning rate by where the training is.

    Args:
        name: one of `SCHEDULES`; or what gives the factor itself, with its own warm-up.
        warmup: share of the training in which it rises.

    Raises:
        InputError: no schedule of that name, or a share that is out of range.
    """
    if not 0 <= warmup < 1:
        raise InputError(f"got warmup {warmup}; expected a share of the training from 0 to below 1")
    if callable(name):
        return name
    if name not in SCHEDULES:
        raise InputError(f"got schedule {name!r}; expected one of {', '.join(SCHEDULES)}")
    return lambda progress: SCHEDULES[name](progress, warmup)


class LearningRate(ABC):
    """A learning rate by optimizer step, counted from 0: `lr(step)`, at most `max_lr`.

    It is a schedule of `fit`, whose `learning_rate` is then `max_lr`; for another trainer, `scheduler(optimizer)`.
    """

    max_lr: float

    @abstractmethod
    def lr(self, step: int) -> float:
        """The rate of a step."""

    def __call__(self, progress: Progress) -> float:
        """The factor of `max_lr`, for `fit`."""
        return self.lr(progress.step) / self.max_lr

    def scheduler(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """For an optimizer whose groups have the rate `max_lr`, or a share of it.

        Example:
            optimizer = torch.optim.AdamW(model.parameters(), lr=rate.max_lr)
            Trainer(model, args, train_dataset=rows, optimizers=(optimizer, rate.scheduler(optimizer)))
        """
        return LambdaLR(optimizer, lambda step: self.lr(step) / self.max_lr)

    def since(self, step: int) -> LearningRate:
        """The same rate, for a training that begins at that step of it."""
        return Since(self.max_lr, self, step)


@dataclass(frozen=True)
class Since(LearningRate):
    """A rate from one of its steps on."""

    max_lr: float
    rate: LearningRate
    first: int

    def lr(self, step: int) -> float:
        return self.rate.lr(self.first + step)

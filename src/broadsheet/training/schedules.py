"""Learning rates over a training, by name.

Knows: how much of a training is done. Does not know: optimizers, clocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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

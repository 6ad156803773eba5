"""The authors' learning rate over steps, quirks included: `schedule="salmonn"` of any `fit`.

Knows: step numbers. Does not know: optimizers, models.
"""

from __future__ import annotations

import math

from broadsheet.console import InputError
from broadsheet.training.schedules import SCHEDULES, Progress

PEAK = 3e-5


def learning_rate(
    step: int,
    *,
    epochs: float = 30,
    steps_per_epoch: int = 3000,
    warmup_steps: int = 3000,
    peak: float = PEAK,
    minimum: float = 1e-5,
    start: float = 1e-6,
) -> float:
    """The learning rate of a step, counted from 0 over all epochs.

    Warm-up lasts for the first `warmup_steps` of all steps but is linear in the step *within the epoch*, so that it
    begins anew where an epoch is shorter; the cosine is taken at the step over all steps and is not shifted by the
    warm-up, so that the rate falls by a little where the two meet.

    Args:
        epochs, steps_per_epoch: of the whole training.
        warmup_steps: how long it rises, from `start` to `peak`.
        peak, minimum: ends of the cosine.

    Raises:
        InputError: fewer than one step, or a step below 0.

    Source: arXiv:2310.13289's training code (bytedance/SALMONN); values: 30 × 3000 steps, 3e-5, 1e-5, 1e-6.
    """
    if step < 0 or min(epochs, steps_per_epoch) < 1:
        raise InputError(
            f"got step {step} of {epochs} × {steps_per_epoch}; expected a step from 0, and 1 or more steps"
        )
    if step < warmup_steps:
        return min(peak, start + (peak - start) * (step % steps_per_epoch) / warmup_steps)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * step / (epochs * steps_per_epoch)))


def factor(progress: Progress, warmup: float) -> float:
    """`learning_rate` as a share of its peak, for a training of any length; minutes do not steer it, steps do."""
    epoch = min(progress.epoch_steps, progress.steps)
    rises = round(warmup * progress.steps)
    return learning_rate(progress.step, epochs=progress.steps / epoch, steps_per_epoch=epoch, warmup_steps=rises) / PEAK


SCHEDULES["salmonn"] = factor

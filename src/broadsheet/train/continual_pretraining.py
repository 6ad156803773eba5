"""Continual pretraining (Ibrahim et al., 2024, arXiv:2403.08763): warm up again, decay again, replay; or never decay.

Knows: learning rates by step, shares of rows. Does not know: models, data, losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from broadsheet.console import InputError, within
from broadsheet.training.mixing import Mixture
from broadsheet.training.schedules import LearningRate


@dataclass(frozen=True)
class Rewarmed(LearningRate):
    """Up in a line, and down along half a cosine.

    Warm-up is never 0, as in GPT-NeoX: its first step has the rate of the second. Below `min_lr` the rate lies in
    warm-up alone. After `steps` it stays at `min_lr`.

    Args:
        max_lr, min_lr: as in the first pretraining.
        warmup, steps: of this one.

    Raises:
        InputError: the rates or the steps are in no order.
    """

    max_lr: float
    min_lr: float
    warmup: int
    steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.max_lr or not self.max_lr or not 0 <= self.warmup <= self.steps:
            raise InputError(
                f"got rates {self.min_lr:g} to {self.max_lr:g}, warm-up {self.warmup} of {self.steps} steps; expected "
                "the lower rate first, and a part of the steps"
            )

    def lr(self, step: int) -> float:
        if self.warmup and step <= self.warmup:
            return self.max_lr * max(1, step) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.min_lr + (self.max_lr - self.min_lr) / 2 * (1 + math.cos(math.pi * done))


def cosine_cooldown(done: float, alpha: float) -> float:
    """How much of the way from `max_lr` to `const_lr` is left: half a cosine."""
    return (1 + math.cos(math.pi * done)) / 2


def inverse_sqrt_cooldown(done: float, alpha: float) -> float:
    """The same, by h(x) = 1/√(1 + αx) − 1 over h(1): the larger α, the more of it at first; in a line for α → 0."""
    if alpha == 0:
        return 1 - done
    return 1 - (1 / math.sqrt(1 + alpha * done) - 1) / (1 / math.sqrt(1 + alpha) - 1)


COOLDOWNS: dict[str, Callable[[float, float], float]] = {"cosine": cosine_cooldown, "invsqrt": inverse_sqrt_cooldown}


@dataclass(frozen=True)
class Infinite(LearningRate):
    """A rate that needs no number of steps: up, down to a constant that holds as long as one likes, annealed on demand.

    The next corpus begins on the constant, without a warm-up, from weights that were not annealed; a model to be used
    branches off there by `annealed`. What was before is the same whenever that is.

    Args:
        max_lr, const_lr, min_lr: the highest rate, the constant one, and that at the end of annealing.
        warmup, cooldown: steps at which warm-up and cool-down end (T1, T2).
        anneal: step at which annealing begins (T3); None: never.
        end: step at which it ends (T4); after it the rate stays.
        shape: of the cool-down, `"cosine"` or `"invsqrt"`; alpha: how steep the latter is at first.

    Raises:
        InputError: rates or steps are in no order; an unknown shape.
    """

    max_lr: float
    const_lr: float
    min_lr: float
    warmup: int
    cooldown: int
    anneal: int | None = None
    end: int | None = None
    shape: str = "cosine"
    alpha: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.min_lr <= self.const_lr <= self.max_lr or self.alpha < 0:
            raise InputError(
                f"got rates {self.min_lr:g}, {self.const_lr:g}, {self.max_lr:g}, alpha {self.alpha:g}; expected them "
                "above 0 and rising, and alpha from 0"
            )
        steps = [0, self.warmup, self.cooldown, *(each for each in (self.anneal, self.end) if each is not None)]
        if steps != sorted(steps) or (self.anneal is None) != (self.end is None):
            raise InputError(f"got steps {steps[1:]}; expected them in their order, the last two together or neither")
        if self.shape not in COOLDOWNS:
            raise InputError(f"got shape {self.shape!r}; expected one of {', '.join(COOLDOWNS)}")

    def lr(self, step: int) -> float:
        if step <= self.warmup:
            return self.max_lr * step / self.warmup if self.warmup else self.max_lr
        if step <= self.cooldown:
            left = COOLDOWNS[self.shape]((step - self.warmup) / (self.cooldown - self.warmup), self.alpha)
            return self.const_lr + (self.max_lr - self.const_lr) * left
        if self.anneal is None or self.end is None or step <= self.anneal:
            return self.const_lr
        done = min(1.0, (step - self.anneal) / max(1, self.end - self.anneal))
        return self.const_lr * (self.min_lr / self.const_lr) ** done

    def annealed(self, begin: int, steps: int) -> Infinite:
        """The same rate, annealed from a step on over so many."""
        return replace(self, anneal=begin, end=begin + steps)


@dataclass(frozen=True)
class ContinualPretraining:
    """Train a model further on new text, so that it learns it and keeps what it knew.

    The learning rate rises to what it once was, and falls again; a share of each batch is of the old text. Left at its
    last low rate a model learns little of what is new; without old text it forgets. Both together come close to a model
    that was trained from nothing on all the text, for half the cost.

    Use when new text is to be learnt by all weights, and some of the old text, or of its kind, is at hand. Adapters
        change less and forget less; for few texts they are enough.

    Inputs: rows of the new text, and of the old; weights that a training left, and a new optimizer. A trainer that is
        resumed from the old checkpoint would keep the old schedule, at its end.
    Relation: `Infinite` needs no warming again and no number of steps, but a first training by it.

    Args:
        max_lr, min_lr: as in the first pretraining (3e-4 to 3e-5 at 405M). Higher learns more and forgets more.
        warmup: share of the steps (0 to 2 % made no difference).
        replay: share of each batch that is of the old text: 5 % where the texts are alike, 25 % where they are not.
        seed: of the orders.

    Example:
        import torch
        from transformers import Trainer, TrainingArguments

        from broadsheet import models
        from broadsheet.train import ContinualPretraining
        from broadsheet.training.scratch import TokenBlocks, joined

        model, tokenizer = models.load("default", dtype="float32")
        new, old = (TokenBlocks(joined([text * 200], tokenizer), 128) for text in ("New words. ", "Old words. "))
        method = ContinualPretraining(replay=0.25)
        rows, rate = method.rows(new, old, batch=8, steps=4), method.schedule(4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate.max_lr)
        args = TrainingArguments("runs/continued", max_steps=4, train_sampling_strategy="sequential", report_to=[])
        Trainer(model, args, train_dataset=rows, optimizers=(optimizer, rate.scheduler(optimizer))).train()

    Source: arXiv:2403.08763; the warm-up as in GPT-NeoX, the infinite schedules by their formulas.
    """

    paper: ClassVar[str] = "continual_pretraining"

    max_lr: float = 3e-4
    min_lr: float = 3e-5
    warmup: float = 0.01
    replay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, max_lr=(0, None), min_lr=(0, None), warmup=(0, 1), replay=(0, 1), seed=(0, None))

    def schedule(self, steps: int) -> Rewarmed:
        """The learning rate of a training of so many steps."""
        return Rewarmed(self.max_lr, self.min_lr, round(self.warmup * steps), steps)

    def rows(self, new: Sequence[Any], old: Sequence[Any], batch: int, steps: int) -> Mixture:
        """A whole training's rows; as many whatever the replay, so that its cost is counted.

        Args:
            new, old: rows of each text.
            batch: rows of a step, on all devices together.
        """
        return Mixture(new, old, self.replay, batch, steps, self.seed)

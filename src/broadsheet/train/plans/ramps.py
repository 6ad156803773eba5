"""Schedules that count tokens, not steps: a learning rate, and a batch that grows.

Knows: tokens, steps, rows of equal length. Does not know: models, losses, optimizers' insides.

Where the batch grows, steps are of different sizes, and only tokens say how far a training is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.training.objective import content
from broadsheet.training.schedules import LearningRate


@dataclass(frozen=True)
class TokenRate:
    """A learning rate by the tokens that were read: up in a line, then along half a cosine, and level.

    Args:
        max_lr, min_lr: 5e-5 and a tenth of that in Megatron-Turing NLG.
        warmup: tokens in which it rises (1e9).
        decay: tokens at which it is `min_lr`, warm-up among them (340e9, more than were read).

    Raises:
        InputError: rates or tokens are in no order.
    """

    max_lr: float = 5e-5
    min_lr: float = 5e-6
    warmup: float = 1e9
    decay: float = 340e9

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.max_lr or not self.max_lr or not 0 <= self.warmup < self.decay:
            raise InputError(
                f"got rates {self.min_lr:g} to {self.max_lr:g}, warm-up {self.warmup:g} of {self.decay:g} tokens; "
                "expected the lower rate first, and a part of the tokens"
            )

    def lr(self, tokens: float) -> float:
        """The rate after so many tokens."""
        if tokens < self.warmup:
            return self.max_lr * tokens / self.warmup
        done = min(1.0, (tokens - self.warmup) / (self.decay - self.warmup))
        return self.min_lr + (self.max_lr - self.min_lr) / 2 * (1 + math.cos(math.pi * done))

    def by_step(self, tokens: int | Sequence[int]) -> StepRate:
        """The same rate by optimizer step, for a training that reads these tokens.

        Args:
            tokens: of every step; or of each, as `BatchRamp.tokens` gives them.

        Raises:
            InputError: a step reads none.
        """
        steps = [tokens] if isinstance(tokens, int) else list(tokens)
        if not steps or min(steps) < 1:
            raise InputError("got a step without tokens; expected 1 or more in each")
        return StepRate(self, tuple(steps))


@dataclass(frozen=True)
class StepRate(LearningRate):
    """A `TokenRate` by steps: a schedule of `fit`, whose `learning_rate` is then `max_lr`; or `scheduler(optimizer)`.

    Args:
        rate: by tokens.
        tokens: of each step; what lies beyond the last is like it.

    Example:
        rate = TokenRate(max_lr=1e-3, min_lr=1e-4, warmup=1e6, decay=1e8).by_step(16 * 256)
        fit(model, rows, objective, "runs/ramped", learning_rate=rate.max_lr, schedule=rate)
    """

    rate: TokenRate
    tokens: tuple[int, ...]

    @property
    def max_lr(self) -> float:  # type: ignore[override]
        return self.rate.max_lr

    def read(self, step: int) -> int:
        """Tokens before a step, counted from 0."""
        beyond = max(0, step - len(self.tokens))
        return sum(self.tokens[:step]) + beyond * self.tokens[-1]

    def lr(self, step: int) -> float:
        """The rate of a step."""
        return self.rate.lr(self.read(step))


@dataclass(frozen=True)
class BatchRamp:
    """A batch that grows in equal steps while a first part of the tokens is read.

    Small batches teach more a token at first, when gradients are alike; large ones fill many GPUs.

    Args:
        first, increment, last: sequences of a step: 32, by 32, to 1,920 in Megatron-Turing NLG.
        tokens: that are read until the last size is reached (12e9).
        length: tokens of a sequence (2,048).

    Raises:
        InputError: sizes are in no order, or the increment does not lead from the first to the last.
    """

    first: int = 32
    increment: int = 32
    last: int = 1920
    tokens_to_last: float = 12e9
    length: int = 2048

    def __post_init__(self) -> None:
        if min(self.first, self.increment, self.length) < 1 or self.last < self.first or self.tokens_to_last < 0:
            raise InputError(
                f"got batches from {self.first} by {self.increment} to {self.last}; expected 1 or more, rising"
            )
        if (self.last - self.first) % self.increment:
            raise InputError(
                f"got batches from {self.first} by {self.increment}, which do not come to {self.last}; expected an "
                f"increment that divides {self.last - self.first}"
            )

    def size(self, tokens: float) -> int:
        """Sequences of the step that begins after so many tokens: each size holds for as many."""
        rises = (self.last - self.first) // self.increment
        if not rises or tokens >= self.tokens_to_last:
            return self.last
        return self.first + self.increment * int(tokens * rises / self.tokens_to_last)

    def sizes(self, steps: int) -> list[int]:
        """Sequences of each of the first steps."""
        found: list[int] = []
        read = 0
        for _ in range(steps):
            found.append(self.size(read))
            read += found[-1] * self.length
        return found

    def tokens(self, steps: int) -> list[int]:
        """Tokens of each of the first steps."""
        return [size * self.length for size in self.sizes(steps)]

    def rows(self, rows: Sequence[Any], steps: int, *, parts: int = 1, seed: int = 0) -> RampedRows:
        """A whole training's batches, for `fit` or a `Trainer` that reads one a time, in order.

        Args:
            rows: `{"input_ids": (length,), "labels": (length,)}` each.
            parts: into which a step is cut: processes times gradient accumulation.
        """
        return RampedRows(rows, self.sizes(steps), parts, seed)


class RampedRows(Sequence[dict[str, Tensor]]):
    """Batches of growing size as rows; pass after pass over the rows, each in an order of its own.

    Args:
        rows: of equal length.
        sizes: of each step's batch.
        parts: of a batch.

    Raises:
        InputError: no rows; a batch that cannot be cut into so many parts.

    Example:
        batches = BatchRamp(4, 4, 16, tokens_to_last=1e6, length=256).rows(blocks, steps=300)
        fit(model, batches, MethodObjective(LossMethod()), "runs/ramped", steps=300, batch_size=1)
    """

    in_order = True
    whole = True

    def __init__(self, rows: Sequence[Any], sizes: Sequence[int], parts: int = 1, seed: int = 0) -> None:
        if not len(rows):
            raise InputError("got no rows; expected at least one")
        if uneven := [size for size in sizes if parts < 1 or size % parts]:
            raise InputError(f"got a batch of {uneven[0]} for {parts} parts; expected sizes that {parts} divides")
        self.rows, self.sizes, self.parts = rows, list(sizes), parts
        passes = -(-sum(self.sizes) // len(rows))
        orders = [
            torch.randperm(len(rows), generator=torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63))
            for number in range(passes)
        ]
        self._places = torch.cat(orders).split([*self.sizes, passes * len(rows) - sum(self.sizes)])[: len(self.sizes)]

    def __len__(self) -> int:
        return len(self.sizes) * self.parts

    def __getitem__(self, place: Any) -> Any:
        step, part = divmod(range(len(self))[place], self.parts)
        places = self._places[step].chunk(self.parts)[part].tolist()
        some = [self.rows[i] for i in places]
        return {name: torch.stack([torch.as_tensor(row[name]) for row in some]) for name in some[0]}

    @staticmethod
    def collate(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The one row, which is a batch already: a `Trainer`'s `data_collator`, with a batch size of 1."""
        return dict(rows[0])

    def identity(self) -> Any:
        """What tells these rows from others."""
        return [content(self.rows), self.sizes, self.parts, fingerprint(torch.cat(self._places).tolist())]

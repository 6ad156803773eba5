"""A tiny module and an objective on numbers, for tests of what trains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from broadsheet.training.objective import Objective, rehearsal


class Line(nn.Module):
    """y = dropout(x)·w + b."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.bias = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x) @ self.weight + self.bias


class Squares(Objective):
    """The squared error of rows [x, y]; x is moved by a draw of its place, the loss by one of the generator."""

    def __init__(self, noise: float = 0.1, phases: Sequence[Any] = (), extra: Sequence[Any] = ()) -> None:
        self.noise, self.phases, self.extra = noise, phases, extra
        self.places: list[list[int]] = []
        self.seen: list[tuple[str, str]] = []

    def get_config_dict(self) -> dict[str, Any]:
        return {"noise": self.noise}

    def collate(self, items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        self.places.append([place for place, _ in items])
        moved = [x + self.noise * Random(place).random() for place, (x, _) in items]
        x = torch.tensor([[value, value * value, 1.0] for value in moved])
        return {"x": x, "y": torch.tensor([y for _, (_, y) in items]), "tokens": len(items) * 3, "phase": self.phase}

    def extra_batches(self, place: int) -> Sequence[Any]:
        return rehearsal(self.extra, 2, 0, place)

    def loss(self, model: Any, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        self.seen.append((batch["phase"], self.phase))
        error = (model(batch["x"]) - batch["y"]).square().mean()
        return {"loss": error * (1 + self.noise * torch.rand((), generator=generator)), "error": error}


def points(count: int = 24) -> list[list[float]]:
    """Rows [x, y] near y = 1 + x − 2x²."""
    return [[x := i / count, 1 + x - 2 * x * x] for i in range(count)]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all weights are equal, bit for bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Clock:
    """A second passes each time it is asked."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now

"""Processes as a grid of three axes: stages of a pipeline, copies for more data, parts of each layer.

Knows: numbers of processes. Does not know: torch, models, networks.

The order is that of DeepSpeed's (pipe, data, model) and of `init_device_mesh("cuda", (pp, dp, tp))`, the slowest axis
first: neighbours in rank are parts of one layer. Megatron-LM names the same order from the fastest axis on: tp-dp-pp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from broadsheet.console import InputError

Axis = Literal["pp", "dp", "tp"]
AXES: tuple[Axis, ...] = ("pp", "dp", "tp")  # the slowest first


@dataclass(frozen=True)
class RankGrid:
    """Where each process stands.

    Args:
        pp: stages of the pipeline.
        dp: copies of the model, for more data.
        tp: parts of each layer.

    Raises:
        InputError: an axis is shorter than 1.

    Example:
        >>> RankGrid(pp=2, dp=2, tp=2).groups("dp")
        [[0, 2], [1, 3], [4, 6], [5, 7]]
    """

    pp: int = 1
    dp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        if min(self.pp, self.dp, self.tp) < 1:
            raise InputError(f"got pp {self.pp}, dp {self.dp}, tp {self.tp}; expected 1 or more of each")

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.pp * self.dp * self.tp

    @property
    def shape(self) -> tuple[int, int, int]:
        """(pp, dp, tp), as a device mesh takes it."""
        return self.pp, self.dp, self.tp

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """(stage, copy, part) of a process.

        Raises:
            InputError: there is no such rank.
        """
        if not 0 <= rank < self.world:
            raise InputError(f"got rank {rank}; expected 0 to {self.world - 1}")
        return rank // (self.dp * self.tp), rank // self.tp % self.dp, rank % self.tp

    def rank(self, stage: int, copy: int, part: int) -> int:
        """The process at these coordinates."""
        return (stage * self.dp + copy) * self.tp + part

    def stride(self, axis: Axis) -> int:
        """How far apart in rank neighbours on an axis are."""
        return {"pp": self.dp * self.tp, "dp": self.tp, "tp": 1}[axis]

    def groups(self, axis: Axis) -> list[list[int]]:
        """The processes that differ on one axis alone, which talk to one another; by their first ranks."""
        step, size = self.stride(axis), getattr(self, axis)
        firsts = (rank for rank in range(self.world) if self.coordinates(rank)[AXES.index(axis)] == 0)
        return [[first + step * i for i in range(size)] for first in firsts]

    def leaves_node(self, axis: Axis, per_node: int) -> bool:
        """Whether some group of an axis has processes in two machines of so many each."""
        span = self.stride(axis) * getattr(self, axis)
        # Groups of an axis fill stretches of `span` ranks; a stretch within a node begins at a multiple of its length.
        return getattr(self, axis) > 1 and self.world > per_node and (span > per_node or per_node % span != 0)

    def __str__(self) -> str:
        return f"pp {self.pp} · dp {self.dp} · tp {self.tp}"

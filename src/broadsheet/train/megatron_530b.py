"""Megatron-Turing NLG 530B (Smith et al., 2022, arXiv:2201.11990): how a model is laid out on many GPUs.

Knows: a model's shape, a cluster's numbers. Does not know: torch, weights, any GPU: all of it is arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from typing import Any, ClassVar, Literal

from broadsheet.console import InputError
from broadsheet.training.layouts.pipeline import bubble, in_flight
from broadsheet.training.layouts.ranks import AXES, Axis, RankGrid
from broadsheet.training.layouts.shapes import HALF, Recompute, Shape

Shard = Literal["none", "optimizer", "all"]
# Bytes of a parameter, 20 in all: half-precision weights; half and float32 gradients; float32 weights and two moments.
WEIGHT, GRADIENT, OPTIMIZER = 2, 2 + 4, 4 + 4 + 4


@dataclass(frozen=True)
class Cluster:
    """GPUs, and how fast they talk. The defaults are an A100 of 80 GB among eight, as the paper's.

    Args:
        gpus, per_node: in all, and in a machine.
        memory: of a GPU, in GB (10⁹ bytes).
        usable: share of it that tensors may fill; the rest is the driver's, the allocator's, the collectives'.
        tflops: peak of a GPU in half precision, in 10¹² operations a second.
        efficiency: share of that which a GPU reaches where it does not wait. Ours; measure your own.
        node_rate, network_rate: GB a second that a GPU sends within its machine, and out of it.

    Raises:
        InputError: a number is out of range.
    """

    gpus: int
    per_node: int = 8
    memory: float = 80.0
    usable: float = 0.9
    tflops: float = 312.0
    efficiency: float = 0.5
    node_rate: float = 300.0
    network_rate: float = 25.0

    def __post_init__(self) -> None:
        rates = min(self.memory, self.tflops, self.node_rate, self.network_rate)
        if min(self.gpus, self.per_node) < 1 or not rates > 0:
            raise InputError(f"got {self}; expected 1 GPU or more, and rates above 0")
        if not 0 < self.usable <= 1 or not 0 < self.efficiency <= 1:
            raise InputError(f"got usable {self.usable}, efficiency {self.efficiency}; expected shares above 0")
        if self.gpus > self.per_node and self.gpus % self.per_node:
            raise InputError(
                f"got {self.gpus} GPUs in machines of {self.per_node}; expected a multiple of {self.per_node}"
            )

    @property
    def room(self) -> float:
        """Bytes that tensors may fill."""
        return self.memory * self.usable * 1e9


@dataclass(frozen=True)
class Traffic:
    """What a GPU sends on one axis in a step.

    Attributes:
        bytes: in all; 0 where the axis is 1.
        seconds: that this takes, if nothing is computed meanwhile.
        network: whether it leaves the machine.
    """

    bytes: float
    seconds: float
    network: bool


@dataclass(frozen=True)
class Plan:
    """A layout that can be run, and what it costs.

    Attributes:
        planner: what was asked.
        grid: the axes.
        micro_batches: of a step, that go through each pipeline (m).
        layers: of each stage.
        memory: for each stage, bytes of one of its GPUs by part.
        traffic: by axis, of the GPU that sends most.
        bubble: share of a step in which stages wait for one another.
        compute: seconds of a step without waiting and sending.
    """

    planner: ParallelPlanner
    grid: RankGrid
    micro_batches: int
    layers: tuple[int, ...]
    memory: tuple[Mapping[str, float], ...]
    traffic: Mapping[Axis, Traffic]
    bubble: float
    compute: float

    @property
    def bytes(self) -> float:
        """Of the fullest GPU."""
        return max(sum(parts.values()) for parts in self.memory)

    @property
    def fullest(self) -> int:
        """The stage whose GPUs hold most."""
        sums = [sum(parts.values()) for parts in self.memory]
        return sums.index(max(sums))

    @property
    def fits(self) -> bool:
        """Whether the fullest GPU has room."""
        return self.bytes <= self.planner.cluster.room

    @property
    def seconds(self) -> float:
        """Of a step: an estimate to compare layouts by. What is sent is not hidden behind what is computed, but for
        FSDP2's gathers, which are fetched before they are needed."""
        sent = {axis: each.seconds for axis, each in self.traffic.items()}
        if self.planner.shard == "all":
            sent["dp"] = max(0.0, sent["dp"] - self.compute)
        return self.compute / (1 - self.bubble) + sum(sent.values())

    @property
    def tflops(self) -> float:
        """That each GPU sustains, in 10¹² operations a second."""
        return self.planner.flops / self.seconds / self.grid.world / 1e12

    @property
    def tokens(self) -> float:
        """A second, of all GPUs."""
        return self.planner.batch * self.planner.length / self.seconds


@dataclass(frozen=True)
class ParallelPlanner:
    """Say how a training can be laid out on a cluster: which layouts there are, what each costs, and which is fastest.

    A layer is split within a machine, since its parts talk most; layers are cut into stages, which may be far apart;
    copies of all that read more data. What does not divide is refused, with what would. All is counted: nothing runs.

    Use when a model, its optimizer and its activations fit no single GPU, or a step takes too long on one. Prefer
        `shard="all"` with no stages (FSDP2 alone) as long as it fits and the network is fast: it is the least code.

    Inputs: a `config.json` (as `models.config` reads it), a `PretrainedConfig` or a `Shape`; a cluster.
    Relation: `broadsheet.training.layouts` lays a model out so; `train.plans.exports` writes it for torchtitan and
        accelerate; `train.plans.ramps` has the paper's schedules.

    Args:
        config: of the model; dense decoders alone.
        cluster: the GPUs.
        batch: sequences of a step, of all GPUs together (1,920 in the paper).
        micro_batch: sequences of a pass (1).
        length: tokens of a sequence (2,048).
        recompute: `"full"`: layers are computed again for the backward pass, and keep their input alone, as in the
            paper; `"none"`.
        shard: over copies: `"optimizer"` (ZeRO-1), `"all"` (ZeRO-3, FSDP2), or `"none"`.

    Raises:
        InputError: a number is below 1; a config that cannot be counted.

    Example:
        from broadsheet import models
        from broadsheet.train import Cluster, ParallelPlanner
        from broadsheet.train.plans.exports import explain

        planner = ParallelPlanner(models.config("default"), Cluster(gpus=6, per_node=6), batch=96)
        print(explain(planner.plans()))

    Source: arXiv:2201.11990, sections 2 and 3; the bubble and counts of operations as in Narayanan et al. (2021).
    """

    paper: ClassVar[str] = "megatron_530b"

    config: Any
    cluster: Cluster
    batch: int
    micro_batch: int = 1
    length: int = 2048
    recompute: Recompute = "full"
    shard: Shard = "optimizer"

    def __post_init__(self) -> None:
        if min(self.batch, self.micro_batch, self.length) < 1:
            raise InputError(
                f"got batch {self.batch}, micro_batch {self.micro_batch}, length {self.length}; expected 1 or more"
            )
        if self.recompute not in ("full", "none") or self.shard not in ("none", "optimizer", "all"):
            raise InputError(
                f"got recompute {self.recompute!r}, shard {self.shard!r}; expected full or none, and none, optimizer "
                "or all"
            )
        _ = self.shape

    @cached_property
    def shape(self) -> Shape:
        """The model's."""
        return self.config if isinstance(self.config, Shape) else Shape.of(self.config)

    @cached_property
    def flops(self) -> float:
        """Operations of a step."""
        return self.shape.flops(self.batch, self.length, self.recompute)

    # Layouts

    def plans(self) -> list[Plan]:
        """All layouts that divide and fit, the fastest first.

        Raises:
            InputError: there is none; what would help is told.
        """
        if found := sorted((plan for plan in self._dividing() if plan.fits), key=lambda plan: plan.seconds):
            return found
        raise InputError(self._nothing())

    def plan(self, grid: RankGrid) -> Plan:
        """One layout.

        Raises:
            InputError: it does not divide, or does not fit; what would is told.
        """
        if refused := self.refusals(grid):
            raise InputError("; ".join(refused))
        plan = self._made(grid)
        if not plan.fits:
            raise InputError(f"{grid} {self._too_full(plan)}; {self._leaner()}")
        return plan

    def refusals(self, grid: RankGrid) -> list[str]:
        """Why a layout cannot be: a line each, with what could be instead; none where it can."""
        if grid.world != self.cluster.gpus:
            return [f"{grid} makes {grid.world} processes; expected {self.cluster.gpus}, one a GPU"]
        return self._undivided(grid)

    def _undivided(self, grid: RankGrid) -> list[str]:
        shape, per_node, told = self.shape, self.cluster.per_node, []
        splits = gcd(shape.heads, shape.groups, shape.ffn)
        if splits % grid.tp:
            told.append(
                f"tp {grid.tp} does not divide {shape.heads} heads, {shape.groups} KV heads and an MLP of {shape.ffn}; "
                f"use {_listed(_divisors(splits))}"
            )
        elif grid.leaves_node("tp", per_node):
            told.append(
                f"tp {grid.tp} leaves machines of {per_node} GPUs, and its traffic is the largest; use "
                f"{_listed([each for each in _divisors(splits) if per_node % each == 0])}"
            )
        if shape.layers % grid.pp:
            told.append(f"pp {grid.pp} does not divide {shape.layers} layers; use {_listed(_divisors(shape.layers))}")
        rows = grid.dp * self.micro_batch
        if self.batch % rows:
            told.append(
                f"a batch of {self.batch} cannot be dealt to dp {grid.dp} by {self.micro_batch}; use a multiple of "
                f"{rows}: {-(-self.batch // rows) * rows}"
            )
        elif self.batch // rows < grid.pp:
            told.append(
                f"{self.batch // rows} micro-batches do not fill {grid.pp} stages; use a batch of {grid.pp * rows} or "
                "more, or fewer stages"
            )
        return told

    def _dividing(self) -> list[Plan]:
        gpus = self.cluster.gpus
        grids = [
            RankGrid(pp, gpus // (pp * tp), tp)
            for tp in _divisors(gpus)
            for pp in _divisors(gpus // tp)
            if self.shape.layers % pp == 0
        ]
        return [self._made(grid) for grid in grids if not self.refusals(grid)]

    # What a layout costs

    def _made(self, grid: RankGrid) -> Plan:
        micro_batches = self.batch // (grid.dp * self.micro_batch)
        layers = (self.shape.layers // grid.pp,) * grid.pp
        memory = tuple(self._memory(grid, stage, layers[stage], micro_batches) for stage in range(grid.pp))
        compute = self.flops / (grid.world * self.cluster.tflops * 1e12 * self.cluster.efficiency)
        traffic = self._traffic(grid, layers, micro_batches)
        return Plan(self, grid, micro_batches, layers, memory, traffic, bubble(grid.pp, micro_batches), compute)

    def _parameters(self, grid: RankGrid, stage: int, layers: int) -> float:
        """Of a stage, that one of its parts computes with."""
        ends = self.shape.end_parameters(stage == 0, stage == grid.pp - 1, grid.tp)
        return layers * self.shape.layer_parameters(grid.tp) + ends

    def _memory(self, grid: RankGrid, stage: int, layers: int, micro_batches: int) -> dict[str, float]:
        shape, size = self.shape, (self.micro_batch, self.length, grid.tp)
        parameters = self._parameters(grid, stage, layers)
        every, optimizer = grid.dp if self.shard == "all" else 1, 1 if self.shard == "none" else grid.dp
        kept = in_flight(stage, grid.pp, micro_batches) * layers * shape.stored_bytes(*size, self.recompute)
        working = shape.stored_bytes(*size, "none") if self.recompute == "full" else 0.0
        parts = {
            "weights": WEIGHT * parameters / every,
            "gradients": GRADIENT * parameters / every,
            "optimizer": OPTIMIZER * parameters / optimizer,
            "activations": kept + working,
        }
        if self.shard == "all" and grid.dp > 1:
            # Two layers at a time, and the ends; a stage of a pipeline keeps its own together through a step.
            ends = shape.end_parameters(stage == 0, stage == grid.pp - 1, grid.tp)
            parts["gathered"] = HALF * (parameters if grid.pp > 1 else ends + 2 * shape.layer_parameters(grid.tp))
        if stage == grid.pp - 1:
            parts["logits"] = shape.logit_bytes(*size)
        return parts

    def _traffic(self, grid: RankGrid, layers: Sequence[int], micro_batches: int) -> dict[Axis, Traffic]:
        passed = HALF * self.micro_batch * self.length * self.shape.hidden  # of a micro-batch, between layers
        reduces = 6 if self.recompute == "full" else 4  # two a layer and pass
        parameters = max(self._parameters(grid, stage, count) for stage, count in enumerate(layers))
        gathers = 1.0  # after the optimizer's step, or the second half of an all-reduce
        if self.shard == "all":
            gathers = 1 if grid.pp > 1 else 2 * micro_batches
        sent = {
            "tp": layers[0] * micro_batches * reduces * _ring(grid.tp) * 2 * passed,
            "dp": (1 + gathers) * _ring(grid.dp) * HALF * parameters,
            "pp": 2 * micro_batches * passed if grid.pp > 1 else 0.0,
        }
        found: dict[Axis, Traffic] = {}
        for axis in AXES:
            network = grid.leaves_node(axis, self.cluster.per_node)
            rate = self.cluster.network_rate if network else self.cluster.node_rate
            found[axis] = Traffic(sent[axis], sent[axis] / (rate * 1e9), network)
        return found

    # What is told where nothing fits

    def _nothing(self) -> str:
        """Why there is no layout, and what would help."""
        dividing = self._dividing()
        if not dividing:
            gpus, shape = self.cluster.gpus, self.shape
            tp = gcd(shape.heads, shape.groups, shape.ffn, self.cluster.per_node, gpus)
            grid = RankGrid(gcd(shape.layers, gpus // tp), gpus // tp // gcd(shape.layers, gpus // tp), tp)
            return f"no layout of {gpus} GPUs divides this model and batch; of {grid}, {'; '.join(self.refusals(grid))}"
        leanest = min(dividing, key=lambda plan: plan.bytes)
        return (
            f"no layout of {self.cluster.gpus} GPUs holds the model: the leanest, {leanest.grid}, "
            f"{self._too_full(leanest)}; {self._leaner()}"
        )

    def _too_full(self, plan: Plan) -> str:
        return f"needs {plan.bytes / 1e9:,.1f} GB of the {self.cluster.room / 1e9:,.1f} GB that a GPU has room for"

    def _leaner(self) -> str:
        """What would make it fit, of what can be told without trying all together."""
        least = self.least_gpus()
        helps = [f"{least:,} GPUs"] if least and least > self.cluster.gpus else []
        others: dict[str, dict[str, Any]] = {
            "shard='all'": {"shard": "all"},
            "recompute='full'": {"recompute": "full"},
            "micro_batch=1": {"micro_batch": 1},
        }
        for told, change in others.items():
            other = replace(self, **change)
            if other != self and any(plan.fits for plan in other._dividing()):
                helps.append(told)
        return f"use {_listed(helps)}" if helps else "use GPUs with more memory"

    def least_gpus(self) -> int | None:
        """The fewest GPUs, in whole machines of as many as these, on which some layout fits; None: there are none."""
        per_node, shape = self.cluster.per_node, self.shape
        grids = [
            RankGrid(pp, dp, tp)
            for tp in _divisors(gcd(shape.heads, shape.groups, shape.ffn))
            for pp in _divisors(shape.layers)
            for dp in _divisors(max(1, self.batch // self.micro_batch))
            if pp * dp * tp % per_node == 0 and per_node % tp == 0
        ]
        for grid in sorted(grids, key=lambda grid: grid.world):
            if not self._undivided(grid) and self._most(grid) <= self.cluster.room:
                return grid.world
        return None

    def _most(self, grid: RankGrid) -> float:
        """Bytes of the fullest GPU: of the first stage, which holds most in flight, or of the last, with the head."""
        layers, micro_batches = self.shape.layers // grid.pp, self.batch // (grid.dp * self.micro_batch)
        return max(sum(self._memory(grid, stage, layers, micro_batches).values()) for stage in {0, grid.pp - 1})


def _ring(size: int) -> float:
    """The share of a tensor that each of a ring sends to gather or to reduce-scatter it."""
    return (size - 1) / size


def _divisors(number: int) -> list[int]:
    small = [each for each in range(1, int(number**0.5) + 1) if number % each == 0]
    return sorted({*small, *(number // each for each in small)})


def _listed(words: Sequence[Any]) -> str:
    """`"1, 3 or 9"`."""
    texts = [str(word) for word in words]
    return " or ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))

"""A short training by a layout over processes, and what is measured of it: losses, memory, time, how long stages wait.

Knows: models, rows, layouts. Does not know: who asks, or what is compared. It is called in all processes of a crew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from broadsheet.seeds import seeded
from broadsheet.training.layouts.ranks import RankGrid
from broadsheet.training.losses import token_losses

Kind = Literal["one", "copies", "zero", "sharded", "split", "stages"]
ADAMW: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}  # the paper's


@dataclass(frozen=True)
class Layout:
    """How a training is laid out over all processes.

    Args:
        kind: `"one"` process alone; `"copies"` of all (DDP), `"zero"`: whose optimizer's state is shared out; weights
            `"sharded"` (FSDP2); layers `"split"` (TP); `"stages"` (PP).
        micro_batches: of a step, that go through the stages.
    """

    kind: Kind
    micro_batches: int = 1


@dataclass(frozen=True)
class ShortRun:
    """A training of a few steps, the same for all layouts.

    Args:
        config: of a Llama, as keywords.
        rows: (steps, rows, length) ids.
        rate: of AdamW.
    """

    config: Mapping[str, Any]
    rows: Tensor
    rate: float

    def model(self, seed: int) -> Any:
        """A new one; the same weights for the same seed."""
        from transformers import LlamaConfig, LlamaForCausalLM

        with seeded(seed):
            return LlamaForCausalLM(LlamaConfig(**self.config, attn_implementation="sdpa"))


@dataclass(frozen=True)
class Measures:
    """Of one process.

    Attributes:
        losses: of each step; None of a process that computes none.
        bytes: of weights, gradients and the optimizer's state.
        seconds: of all steps.
        idle: share of the steps, but the first, in which a stage waited; 0 without stages.
        held: micro-batches whose activations were held at most.
    """

    losses: list[float] | None
    bytes: int
    seconds: float
    idle: float = 0.0
    held: int = 1


def run_layout(run: ShortRun, layout: Layout, seed: int) -> Measures | None:
    """Train by a layout, in a process of a group, all of which call this; None of one that has no part in it."""
    if layout.kind == "one" and dist.get_rank():
        return None
    if layout.kind == "stages":
        return _stages(run, layout, seed)
    model, optimizer, rows, copies = _laid_out(run, layout.kind, seed)
    from broadsheet.training.layouts.models import resident_bytes, whole

    losses: list[float] = []
    together = layout.kind != "one"
    begin = _together(together)
    for ids in run.rows:
        asked = ids[:, 1:].numel()
        logits = whole(model(ids[rows], use_cache=False).logits)
        loss = copies * token_losses(logits, ids[rows])[0].sum() / asked  # gradients are averaged over copies
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        optimizer.zero_grad(set_to_none=False)  # so that gradients are counted as what they are: kept
    seconds = _together(together) - begin
    if copies > 1:
        told = torch.tensor(losses, dtype=torch.float64)
        dist.all_reduce(told)
        losses = (told / copies).tolist()
    state = getattr(optimizer, "optim", optimizer)  # of ZeRO: this process's own
    return Measures(losses, resident_bytes(getattr(model, "module", model), state), seconds)


def alone(run: ShortRun, seed: int) -> list[float]:
    """The losses of the same training in this process, by the model's own loss: what all layouts have to come to."""
    model = run.model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.rate, **ADAMW)
    losses = []
    for ids in run.rows:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def _laid_out(run: ShortRun, kind: Kind, seed: int) -> tuple[nn.Module, Any, slice, int]:
    """The model of this process, its optimizer, the rows that it reads, and how many copies read others."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    from broadsheet.training.layouts.models import device_mesh, fully_sharded, tensor_parallel

    model, every, settings = run.model(seed), slice(None), {"lr": run.rate, **ADAMW}
    count = dist.get_world_size()
    own = slice(dist.get_rank(), None, count)
    adamw: Callable[..., Any] = torch.optim.AdamW
    match kind:
        case "one":
            return model, adamw(model.parameters(), **settings), every, 1
        case "split":
            tensor_parallel(model, device_mesh(RankGrid(tp=count))["tp"])
            return model, adamw(model.parameters(), **settings), every, 1
        case "sharded":
            fully_sharded(model, device_mesh(RankGrid(dp=count))["dp"])
            return model, adamw(model.parameters(), foreach=True, **settings), own, count
        case "zero":
            copied = DistributedDataParallel(model)
            return copied, ZeroRedundancyOptimizer(copied.parameters(), torch.optim.AdamW, **settings), own, count
    copied = DistributedDataParallel(model)
    return copied, adamw(copied.parameters(), **settings), own, count


def _stages(run: ShortRun, layout: Layout, seed: int) -> Measures:
    from broadsheet.training.layouts.models import Pipeline, Stage, device_mesh, resident_bytes

    mesh = device_mesh(RankGrid(pp=dist.get_world_size()))["pp"]
    stage = Stage(run.model(seed), mesh.get_local_rank(), mesh.size())
    pipeline = Pipeline(stage, mesh, layout.micro_batches)
    optimizer = torch.optim.AdamW(stage.parameters(), lr=run.rate, **ADAMW)
    losses: list[float] = []
    busy, lasted, held = 0.0, 0.0, 0
    first = _together(True)
    for number, ids in enumerate(run.rows):
        begin = _together(True)
        loss = pipeline.step(ids, ids)
        end = _together(True)  # a step lasts until the last stage is done
        if number:  # in the first one, the stages tell one another what they will send
            busy, lasted = busy + pipeline.busy, lasted + end - begin
        held = max(held, pipeline.held)
        if loss is not None:
            losses.append(float(loss))
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    seconds = _together(True) - first
    idle = 1 - busy / lasted if lasted else 0.0
    return Measures(losses or None, resident_bytes(stage, optimizer), seconds, idle, held)


def _together(several: bool) -> float:
    """The time, when all processes have come here."""
    if several:
        dist.barrier()
    return time.perf_counter()

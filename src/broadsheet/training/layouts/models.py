"""A causal LM laid out over processes: its layers split (TP), cut into stages (PP), its weights sharded (FSDP2).

Knows: Llama-like models of transformers, device meshes, torch's own parallel parts. Does not know: data, optimizers,
how large anything should be. A model that is laid out computes what it did: the layout changes where, and not what.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate

from broadsheet.console import InputError
from broadsheet.training.layouts.pipeline import in_flight
from broadsheet.training.layouts.ranks import AXES, RankGrid
from broadsheet.training.losses import token_losses

# Whose layers have attention, an MLP and two norms, in this order, and nothing that a part of them could not compute.
_FAMILIES = ("llama", "mistral", "qwen2")


def device_mesh(grid: RankGrid, device: str = "cpu") -> DeviceMesh:
    """The grid's groups, with axes of the names `pp`, `dp` and `tp`; all processes call it.

    Raises:
        InputError: there are more or fewer processes.
    """
    if dist.get_world_size() != grid.world:
        raise InputError(f"got {dist.get_world_size()} processes; expected {grid.world}, of {grid}")
    return init_device_mesh(device, grid.shape, mesh_dim_names=AXES)


def tensor_parallel(model: Any, mesh: DeviceMesh) -> Any:
    """Split each layer over an axis, in place: the first matrices by what they give, the second by what they read.

    A layer then makes two all-reduces forward and two backward. Embedding and head are split by tokens; every process
    gets whole logits.

    Args:
        model: whole, on every process the same.
        mesh: of one axis.

    Raises:
        InputError: the axis does not divide heads, KV heads and the MLP; the model is of another family.
    """
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        parallelize_module,
    )

    config, size = _supported(model), mesh.size()
    widths = (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
    if any(width % size for width in widths):
        raise InputError(
            f"got tp {size} for {widths[0]} heads, {widths[1]} KV heads and an MLP of {widths[2]}; expected a divisor"
        )
    # Queries, keys and values share what they read, so that its gradient is reduced once and not three times.
    shared: dict[str, Any] = {"desired_input_kwarg_layouts": {"hidden_states": Replicate()}, "use_local_output": False}
    plan: dict[str, Any] = {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        "model.layers.*.self_attn": PrepareModuleInput(input_kwarg_layouts={"hidden_states": Replicate()}, **shared),
        "model.layers.*.mlp": PrepareModuleInput(
            input_layouts=Replicate(), desired_input_layouts=Replicate(), use_local_output=False
        ),
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
    }
    plan |= {f"model.layers.*.self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
    plan |= {f"model.layers.*.mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")}
    plan |= {f"model.layers.*.{name}_proj": RowwiseParallel() for name in ("self_attn.o", "mlp.down")}
    ends = {"model.embed_tokens": hasattr(model.model, "embed_tokens"), "lm_head": hasattr(model, "lm_head")}
    plan = {name: style for name, style in plan.items() if ends.get(name, True)}  # a stage has one of them, or neither
    parallelize_module(model, mesh, plan)
    if config.tie_word_embeddings and all(ends.values()):
        model.lm_head.weight = model.model.embed_tokens.weight
    return model


def fully_sharded(model: Any, mesh: DeviceMesh, *, reshard: bool = True) -> Any:
    """Shard weights, gradients and what the optimizer will keep over an axis, in place (FSDP2); layers are gathered
    one by one.

    Args:
        mesh: of one axis.
        reshard: let go of a layer after its forward pass, and gather it again for the backward one.
    """
    from torch.distributed.fsdp import fully_shard

    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard)
    return model


class Stage(nn.Module):
    """The layers of one stage, and the embedding or the head where it has them; weights keep their names.

    Shapes: the first stage takes ids (rows, length); the others, and all but the last give, (rows, length, width); the
    last gives logits (rows, length, vocabulary).

    Args:
        model: whole; it stays as it is.
        stage, stages: which of how many; layers that do not divide go to the first stages.

    Raises:
        InputError: more stages than layers; the model is of another family.
    """

    model: Any
    lm_head: Any

    def __init__(self, model: Any, stage: int, stages: int) -> None:
        super().__init__()
        self.config = _supported(model)
        inner, count = model.model, len(model.model.layers)
        if not 0 <= stage < stages <= count:
            raise InputError(f"got stage {stage} of {stages} for {count} layers; expected a layer for each stage")
        first, last = stage == 0, stage == stages - 1
        begin, end = (number * (count // stages) + min(number, count % stages) for number in (stage, stage + 1))
        self.model = nn.Module()
        if first:
            self.model.embed_tokens = copy.deepcopy(inner.embed_tokens)
        self.model.layers = nn.ModuleDict({str(i): copy.deepcopy(inner.layers[i]) for i in range(begin, end)})
        self.model.rotary_emb = copy.deepcopy(inner.rotary_emb)
        if last:
            self.model.norm, self.lm_head = copy.deepcopy(inner.norm), copy.deepcopy(model.lm_head)
        if first and last and self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, given: Tensor) -> Tensor:
        hidden = self.model.embed_tokens(given) if hasattr(self.model, "embed_tokens") else given
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        angles = self.model.rotary_emb(hidden, position_ids=positions)
        for layer in self.model.layers.values():
            # Without a mask, sdpa is causal.
            hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=angles)
        return self.lm_head(self.model.norm(hidden)) if hasattr(self, "lm_head") else hidden


class Pipeline:
    """A causal LM in stages over an axis, by torch's 1F1B schedule: each process has one.

    With fewer micro-batches than stages all go forward, then all backward, as 1F1B does then; torch has it apart.

    Args:
        stage: this process's, laid out otherwise or not.
        mesh: of one axis.
        micro_batches: into which the rows of a step are cut.
        clock: seconds of this process's work; what it waits does not count.

    Attributes:
        busy: seconds in which passes were computed, in the last step.
        held: micro-batches whose activations the stage held at most, in the last step.

    Example:
        pipeline = Pipeline(Stage(model, mesh.get_local_rank(), mesh.size()), mesh, micro_batches=8)
        loss = pipeline.step(ids, ids)
    """

    def __init__(
        self, stage: Stage, mesh: DeviceMesh, micro_batches: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

        self.module, self.mesh, self.micro_batches, self.clock = stage, mesh, micro_batches, clock
        self.number, self.stages = mesh.get_local_rank(), mesh.size()
        in_flight(self.number, self.stages, micro_batches)
        self.busy, self.held, self._open, self._asked = 0.0, 0, 0, 1
        device = next(stage.parameters()).device
        staged = PipelineStage(stage, self.number, self.stages, device, group=mesh.get_group())
        staged.forward_one_chunk = self._timed(staged.forward_one_chunk, 1)  # type: ignore[method-assign]
        staged.backward_one_chunk = self._timed(staged.backward_one_chunk, -1)  # type: ignore[method-assign]
        kind = Schedule1F1B if micro_batches >= self.stages else ScheduleGPipe
        # The loss is divided by the tokens of the whole step; divided by micro-batches too it would be too small.
        self._schedule = kind(staged, micro_batches, loss_fn=self._loss, scale_grads=False)

    def step(self, ids: Tensor, labels: Tensor, asked: int | None = None) -> Tensor | None:
        """The gradients of the mean loss over tokens, added to those there are; the loss, on the last stage.

        Args:
            ids, labels: (rows, length), on all stages the same.
            asked: tokens that the loss is divided by, where other processes read more rows; by default these rows'.

        Raises:
            InputError: the rows cannot be cut into so many micro-batches.
        """
        if len(ids) % self.micro_batches:
            raise InputError(f"got {len(ids)} rows for {self.micro_batches} micro-batches; expected a multiple of that")
        self.busy, self.held, self._open = 0.0, 0, 0
        self._asked = max(1, int((labels[:, 1:] != -100).sum()) if asked is None else asked)
        losses: list[Tensor] = []
        first, last = self.number == 0, self.number == self.stages - 1
        self._schedule.step(
            *([ids.contiguous()] if first else []), target=labels if last else None, losses=losses if last else None,
            return_outputs=False,
        )  # fmt: skip
        self._reduce_tied()
        return torch.stack([each.detach() for each in losses]).sum() if last else None

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        begin = self.clock()
        losses, _ = token_losses(logits, labels)
        loss = losses.sum() / self._asked
        self.busy += self.clock() - begin
        return loss

    def _reduce_tied(self) -> None:
        """A tied embedding stands on the first and on the last stage: each adds the other's gradient to its own."""
        if not self.module.config.tie_word_embeddings or self.stages == 1 or self.number not in (0, self.stages - 1):
            return
        table = self.module.model.embed_tokens if self.number == 0 else self.module.lm_head
        gradient: Any = table.weight.grad
        if isinstance(gradient, DTensor):  # which may be whole, or not summed up yet
            gradient = table.weight.grad = gradient.redistribute(placements=table.weight.placements)
        own = local(gradient)
        other, group = torch.empty_like(own), self.mesh.get_group()
        peer = dist.get_global_rank(group, self.stages - 1 - self.number)
        swap = [dist.P2POp(dist.isend, own.clone(), peer, group), dist.P2POp(dist.irecv, other, peer, group)]
        for work in dist.batch_isend_irecv(swap):
            work.wait()
        own += other

    def _timed(self, run: Callable[..., Any], change: int) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            begin = self.clock()
            found = run(*given, **named)
            self.busy += self.clock() - begin
            self._open += change
            self.held = max(self.held, self._open)
            return found

        return timed


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in all processes that share it, which all call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def resident_bytes(model: nn.Module, optimizer: Any = None) -> int:
    """Bytes of weights, gradients and an optimizer's state in this process; what is tied counts once."""
    tensors = [*_weights(model)]
    if optimizer is not None:
        tensors += [each for state in optimizer.state.values() for each in state.values() if isinstance(each, Tensor)]
    stores = {store.data_ptr(): store.nbytes() for store in (local(each).untyped_storage() for each in tensors)}
    return sum(stores.values())


def _weights(model: nn.Module) -> Iterator[Tensor]:
    for each in model.parameters():
        yield each.detach()
        if each.grad is not None:
            yield each.grad


def _layers(model: Any) -> list[nn.Module]:
    layers = model.model.layers
    return list(layers.values() if isinstance(layers, nn.ModuleDict) else layers)


def _supported(model: Any) -> Any:
    """The model's config.

    Raises:
        InputError: its layers are not what is computed here.
    """
    config = model.config
    windows = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if config.model_type not in _FAMILIES or windows or config._attn_implementation != "sdpa":
        raise InputError(
            f"got a {config.model_type} model with {config._attn_implementation} attention"
            + " in windows" * bool(windows)
            + f"; expected {', '.join(_FAMILIES)}, sdpa, and no sliding window"
        )
    return config

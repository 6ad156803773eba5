"""Routers in transformers' models of experts: what they decide in a pass, and other ones in their place.

Knows: modules with `top_k`, `num_experts` and a `weight` (experts, width) that give (logits, gates, indices), as those
of Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE and GLM-4-MoE are. Does not know: losses, data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from broadsheet.console import InputError, say
from broadsheet.train.experts import routing
from broadsheet.train.experts.routing import Routed

BIAS = "e_score_correction_bias"  # what transformers calls the bias that selects


def routers(model: nn.Module) -> dict[str, Any]:
    """The routers of a model by name, the first layer's first.

    Raises:
        InputError: it has none.
    """
    found = {name: each for name, each in model.named_modules() if _is_router(each)}
    if not found:
        raise InputError(
            f"a {type(model).__name__} has no routers (modules with top_k, num_experts and a weight); expected a "
            "mixture of experts, as Upcycling makes of a dense model"
        )
    return found


def experts(model: nn.Module) -> list[Any]:
    """What holds the experts of each layer: modules with `gate_up_proj` (E, 2F, d) and `down_proj` (E, d, F)."""
    return [each for each in model.modules() if _stacked(each)]


def active_weights(model: nn.Module) -> tuple[int, int]:
    """Weights that a token uses, and all there are."""
    held = [(each, sum(weight.numel() for weight in each.parameters())) for each in experts(model)]
    total = sum(weight.numel() for weight in model.parameters())
    tops = [int(each.top_k) for each in routers(model).values()]
    idle = sum(size - size * k // each.num_experts for (each, size), k in zip(held, tops, strict=True))
    return total - idle, total


class Watch:
    """What the routers of a model decide in its last pass; hooks that `remove` takes off.

    A pass is of the model as a whole: what is computed anew in a backward pass, from checkpoints, is of none.

    Args:
        always: in evaluation mode too; else only while training.

    Attributes:
        asked: (T,) which tokens are none of padding, by the pass's `attention_mask`; None where there is no mask.
    """

    def __init__(self, model: nn.Module, *, always: bool = False) -> None:
        self.always = always
        self.asked: Tensor | None = None
        self.routers = list(routers(model).values())
        self._found: list[tuple[Any, Tensor, Tensor, Tensor]] = []
        hooks = [each.register_forward_hook(self._note) for each in self.routers]
        self._hooks: list[Any] = [model.register_forward_pre_hook(self._begin, with_kwargs=True), *hooks]

    @property
    def passes(self) -> list[Routed]:
        """Of each layer, what its router decided."""
        return [Routed(gates, at, shares(module, logits), logits) for module, logits, gates, at in self._found]

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._found.clear()

    def _begin(self, model: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self._found.clear()
        self.asked = asked(named)

    def _note(self, module: Any, given: tuple[Any, ...], found: tuple[Tensor, Tensor, Tensor]) -> None:
        # Nothing is computed here: what is checkpointed has to compute the same a second time, when this does nothing,
        # and holds nothing of what the backward pass computes anew.
        if (module.training or self.always) and len(self._found) < len(self.routers):
            self._found.append((module, *found))


def asked(named: Mapping[str, Any]) -> Tensor | None:
    """(T,) which tokens of a pass are none of padding, by its arguments; None where no (batch, length) mask says so."""
    mask = named.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return None
    ids = named.get("input_ids")
    length = mask.shape[1] if ids is None else ids.shape[1]  # of a cached pass, the mask is longer
    return mask[:, -length:].flatten() != 0


def shares(module: Any, logits: Tensor) -> Tensor:
    """(T, E) each token's shares over all experts, by what kind of router it is."""
    kind = getattr(module, "kind", "sigmoid" if hasattr(module, BIAS) else "switch")
    k = int(module.top_k)
    return routing.sigmoid(logits, k).probs if kind == "sigmoid" else routing.switch(logits, k).probs


class NamedRouter(nn.Module):
    """A router of `routing.ROUTERS` in the place of a model's own, with the same weights; computed in float32.

    Args:
        of: the router that it replaces.
        kind: its name.
        capacity: factor of the capacity while training; None: nothing is dropped. Of expert choice, the mean number of
            experts of a token.
        eval_capacity: in evaluation mode.
        top_k: experts of a token; by default as many as before.
    """

    def __init__(
        self,
        of: Any,
        kind: str,
        *,
        capacity: float | None = None,
        eval_capacity: float | None = None,
        top_k: int | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.route = kind, routing.router(kind)
        self.top_k, self.num_experts, self.hidden_dim = top_k or of.top_k, of.num_experts, of.weight.shape[1]
        self.capacity, self.eval_capacity = capacity, eval_capacity
        self.weight = of.weight
        self.asked: Tensor | None = None
        self.dropped = 0
        if kind == "noisy":
            self.noise = nn.Parameter(torch.zeros_like(of.weight))  # softplus(0): a noise of 0.69 to begin with
        if kind == "sigmoid":
            bias = getattr(of, BIAS, None)
            self.register_buffer(BIAS, torch.zeros(of.num_experts, device=of.weight.device) if bias is None else bias)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = hidden_states.reshape(-1, self.hidden_dim)
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            logits = linear(x.to(wide), self.weight.to(wide))
            more: dict[str, Any] = {"asked": self.asked, "bias": getattr(self, BIAS, None)}
            if self.kind == "noisy" and self.training:
                more["noise"] = linear(x.to(wide), self.noise.to(wide))
            factor = self.capacity if self.training else self.eval_capacity
            found = self.route(logits, self.top_k, factor=factor, **more)
        gates = found.gates if self.kind == "expert_choice" else self._kept(found, factor)
        return logits, gates.to(x.dtype), found.indices

    def _kept(self, found: Routed, factor: float | None) -> Tensor:
        """Gates, with those of choices that found no room at 0: such an expert's output counts nothing."""
        self.dropped = 0
        if factor is None:
            return found.gates
        tokens = len(found.indices) if self.asked is None else int(self.asked.sum())
        most = routing.capacity(tokens, self.num_experts, self.top_k, factor)
        fits = routing.within_capacity(found.indices, self.num_experts, most, self.asked)
        self.dropped = int((~fits).sum())
        return found.gates * fits


def install(model: nn.Module, kind: str, **settings: Any) -> Callable[[], None]:
    """Put a router of that name in the place of each of the model's own; what it gives back undoes that.

    Weights stay the same objects, so an optimizer that has them goes on. Noisy top-k adds a matrix a layer: call this
    before the optimizer is made. A model saved meanwhile loads as its class says: plain transformers know neither
    capacities nor noise, which an evaluation does without, nor expert choice.

    Args:
        kind: of `routing.ROUTERS`; `"expert_choice"` warns: it is not causal.
        settings: of `NamedRouter`.

    Raises:
        InputError: no such router; the model has none to replace; k is not 1 to E.

    Example:
        undo = install(model, "noisy", capacity=1.25)
    """
    routing.router(kind)
    own = routers(model)
    least = min(each.num_experts for each in own.values())
    if not 1 <= (settings.get("top_k") or 1) <= least:
        raise InputError(f"got top_k {settings['top_k']}; expected 1 to {least}, the number of experts")
    if kind == "expert_choice":
        say(
            "expert choice is not causal: whether an expert takes a token depends on later tokens, so losses of next "
            "tokens are too low, and generation computes something else"
        )
    made = {name: NamedRouter(each, kind, **settings).train(each.training) for name, each in own.items()}
    for name, each in made.items():
        _put(model, name, each)

    def begin(_: nn.Module, given: Any, named: Mapping[str, Any]) -> None:
        for each in made.values():
            each.asked = asked(named)

    hook = model.register_forward_pre_hook(begin, with_kwargs=True)

    def undo() -> None:
        hook.remove()
        for name, each in own.items():
            _put(model, name, each.train(made[name].training))

    return undo


@contextmanager
def in_float32(modules: Iterable[Any]) -> Iterator[None]:
    """Inside, routers whose weights are float32 compute in it, whatever an autocast says: in 16 bits they are
    unstable."""
    with_own = [each for each in modules if not isinstance(each, NamedRouter)]
    for each in with_own:
        each.forward = _without_autocast(each, type(each).forward)
    try:
        yield
    finally:
        for each in with_own:
            del each.forward


def _without_autocast(module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(hidden_states: Tensor) -> Any:
        if module.weight.dtype != torch.float32:
            return forward(module, hidden_states)
        with torch.autocast(hidden_states.device.type, enabled=False):
            return forward(module, hidden_states.float())

    return run


@torch.no_grad()
def loads(model: Any, rows: Sequence[Mapping[str, Any]], batch: int = 16) -> Tensor:
    """(rows, layers, E) how many tokens of each row chose each expert; the model is read in evaluation mode.

    Args:
        rows: `{"input_ids": (length,)}`, and an `attention_mask` where there is padding.
    """
    was, watch = model.training, Watch(model.eval(), always=True)
    found = []
    try:
        for begin in range(0, len(rows), batch):
            some = [rows[i] for i in range(begin, min(begin + batch, len(rows)))]
            names = [name for name in ("input_ids", "attention_mask") if name in some[0]]
            given = {name: torch.stack([torch.as_tensor(row[name]) for row in some]) for name in names}
            model(**{name: each.to(model.device) for name, each in given.items()}, use_cache=False)
            found.append(torch.stack([_by_row(each, watch.asked, len(some)) for each in watch.passes], 1))
    finally:
        watch.remove()
        model.train(was)
    return torch.cat(found)


def _by_row(found: Routed, kept: Tensor | None, rows: int) -> Tensor:
    """(rows, E) counts."""
    taken = routing.one_hot(found.indices, found.probs.shape[1]).float() * (found.gates > 0)[..., None]
    taken = taken.sum(1) if kept is None else taken.sum(1) * kept[:, None]
    return taken.view(rows, -1, found.probs.shape[1]).sum(1).cpu()


def _is_router(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    named = all(hasattr(module, name) for name in ("top_k", "num_experts"))
    return named and isinstance(weight, Tensor) and weight.ndim == 2 and len(weight) == module.num_experts


def _stacked(module: nn.Module) -> bool:
    both = [getattr(module, name, None) for name in ("gate_up_proj", "down_proj")]
    return all(isinstance(each, nn.Parameter) and each.ndim == 3 for each in both)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)

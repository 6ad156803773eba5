"""Which weights a training changes, and in which precision it computes.

Knows: models, devices, LoRA. Does not know: data, losses, time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from broadsheet.console import InputError
from broadsheet.models import adapters

Method = Literal["full", "lora", "given"]
LEARNING_RATES: dict[str, float] = {"full": 2e-5, "lora": 2e-4, "given": 1e-4}


def language_model(model: Any) -> Any:
    """The transformers model in `model` (of a `SentenceTransformer`, its first), or `model` itself."""
    return getattr(model, "transformers_model", model)


@contextmanager
def trained(model: nn.Module, method: Method = "full", rank: int = 16) -> Iterator[None]:
    """Inside, the weights that `method` says can be trained; afterwards all is as before but for what was learned.

    Args:
        model: changed in place, never wrapped.
        method: `"full"`: all weights, in float32 meanwhile; `"lora"`: adapters on all linear layers, new or those that
            are there, while the weights themselves stay; `"given"`: the parameters that require a gradient.
        rank: of new adapters; their α is twice that.

    Raises:
        InputError: peft is missing; the model has an adapter, and all weights are asked for; there is no transformers
            model to adapt.
    """
    lm = language_model(model)
    before = next((each.dtype for each in (lm if lm is not None else model).parameters()), None)
    if method == "full":
        if adapters.has_adapter(lm):
            raise InputError("the model has an adapter; train it with method='lora', or merge it first")
        model.float().requires_grad_(True)
    elif method == "lora":
        if adapters.has_adapter(lm):
            for name, parameter in lm.named_parameters():
                parameter.requires_grad_("lora_" in name)
        elif hasattr(lm, "config"):
            adapters.add(lm, rank)
        else:
            raise InputError(f"a {type(model).__name__} holds no transformers model to adapt; use method='full'")
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
        if method == "full" and before is not None:
            model.to(before)


@contextmanager
def autocast(model: nn.Module, name: str) -> Iterator[torch.dtype | None]:
    """The type that the whole loss is to be computed in; None where the model sees to it, or weights have it.

    A module with an attribute `autocast` computes in that type by itself, and what follows it does not.

    Args:
        name: see `autocast_dtype`.
    """
    dtype = autocast_dtype(name, next(model.parameters()).device)
    own: list[Any] = [each for each in model.modules() if hasattr(each, "autocast")]
    for each in own:
        each.autocast = dtype
    try:
        yield None if own else dtype
    finally:
        for each in own:
            each.autocast = None


def autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The type of forward passes that `"auto"`, `"bfloat16"` or `"none"` stands for; None for that of the weights.

    `"auto"` is bfloat16 where the device computes in it.
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    # Elsewhere on CPUs bfloat16 is emulated, at a loss.
    fast = device.type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return torch.bfloat16 if fast else None

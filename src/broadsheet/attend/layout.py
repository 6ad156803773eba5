"""The attention layers of a model, found as it reads two tokens, and the check that its rotation can be moved out.

Knows: how transformers' decoders call the attention interface. Does not know: any one model class, or any method.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import Cache

from broadsheet.attend.rotary import IdentityRotary, Rotary
from broadsheet.console import InputError

SUPPORTED = (
    "a decoder-only model with rotary position encoding whose layers all use transformers' attention interface, "
    "such as Llama, Qwen2, Qwen3, Mistral, Gemma, Phi, OLMo or SmolLM3"
)
WITHOUT_ROTARY = (
    "a decoder-only model whose layers all use transformers' attention interface, such as Llama, Qwen3, Gemma or GPT-2"
)

_PROBE = "broadsheet_probe"
_POSITIONS = [3, 10]


@dataclass(frozen=True, eq=False)
class LayerLayout:
    """An attention module of a model, as `read_layout` found it."""

    module: nn.Module
    fields: dict[str, Any]  # those of `Layer`, but for its rotary encoding
    layer_type: str | None
    has_positions: bool


@dataclass(frozen=True, eq=False)
class ModelLayout:
    """The attention layers of a model, and its rotary encoding.

    Attributes:
        decoder: the module that makes masks and calls the layers.
        layers: its attention modules, in order.
        context: positions that the model was trained on; None where its config does not state it.
        rotary: its rotary module, None where that was not asked for; `apply` applies that module's cosines and sines to
            queries and keys.
        rotary_owner: the module whose attribute `rotary_emb` it is.
    """

    decoder: Any
    layers: list[LayerLayout]
    context: int | None
    rotary: nn.Module | None = None
    rotary_owner: nn.Module | None = None
    apply: Callable[..., Any] | None = None


def find_decoder(model: nn.Module) -> Any:
    """The part of a model that makes masks and calls the layers."""
    decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    return decoder if hasattr(decoder, "config") else model.base_model  # ModernBERT calls its head a decoder


def read_layout(model: nn.Module, *, rotary: bool = True) -> ModelLayout:
    """Find a model's attention layers and prove that their rotary encoding can be moved out of them.

    Two tokens are read twice, as the model does it and with its rotary module giving the angle zero: what the model's
    own rotation function makes of the second run's queries and keys has to be the first run's, in every layer.

    Args:
        rotary: False where the encoding stays in the model: then the model needs none, and nothing is proven of it.

    Raises:
        InputError: the model is not supported, and why.
    """
    name, supported = type(model).__name__, SUPPORTED if rotary else WITHOUT_ROTARY
    decoder = find_decoder(model)
    config = decoder.config.get_text_config(decoder=True)
    owners = [module for module in decoder.modules() if isinstance(getattr(module, "rotary_emb", None), nn.Module)]
    if rotary and len(owners) != 1:
        raise InputError(f"{name} has {len(owners)} rotary position encodings in its decoder; expected {supported}")
    kinds = getattr(config, "layer_types", None) or []
    if odd := set(kinds) - {"full_attention", "sliding_attention"}:
        raise InputError(f"{name} has layers of kind {', '.join(sorted(odd))}; expected {supported}")

    if not getattr(config, "is_causal", True):
        raise InputError(f"{name} attends in both directions; expected {supported}")

    stock, cache = _probe(decoder, supported)
    if len(stock) != config.num_hidden_layers:
        raise InputError(
            f"{name} calls the attention interface in {len(stock)} of {config.num_hidden_layers} layers; "
            f"expected {supported}"
        )
    # A layer that reads another's keys has a cache without a length.
    lengths = [layer.get_seq_length() if hasattr(layer, "get_seq_length") else 0 for layer in cache.layers]
    if not lengths or set(lengths) != {2}:
        raise InputError(f"{name} shares keys between layers; expected {supported}")
    context = getattr(config, "max_position_embeddings", None)
    if not rotary:
        layers = [LayerLayout(call.module, _fields(name, call, supported), None, False) for call in stock]
        return ModelLayout(decoder, layers, context)
    owner, module = owners[0], owners[0].rotary_emb
    with ExitStack() as undo:
        swap(undo, owner, "rotary_emb", IdentityRotary(module))
        bare, _ = _probe(decoder, supported)

    apply = getattr(sys.modules[type(stock[0].module).__module__], "apply_rotary_pos_emb", None)
    if apply is None:
        raise InputError(f"{name} keeps its rotation elsewhere than in apply_rotary_pos_emb; expected {supported}")
    by_kind = "layer_type" in inspect.signature(module.forward).parameters and bool(kinds)
    try:
        layers = [
            _read_layer(name, before, after, module, apply, kinds[i] if by_kind else None)
            for i, (before, after) in enumerate(zip(stock, bare, strict=True))
        ]
    except KeyError as kind:
        raise InputError(f"{name} has no rotary encoding for its layers of kind {kind}; expected {supported}") from None
    if not any(layer.has_positions for layer in layers):
        raise InputError(f"{name} does not use its rotary encoding; expected {supported}")
    return ModelLayout(decoder, layers, context, module, owner, apply)


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of the attention interface."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    kwargs: dict[str, Any]


_CALLS: list[_Call] = []


def _record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """An attention function whose output does not depend on queries and keys, so that rotation does not spread."""
    _CALLS.append(_Call(module, query, key, value, attention_mask, kwargs))
    spread = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return spread.transpose(1, 2).contiguous(), None


def _probe(decoder: Any, supported: str) -> tuple[list[_Call], Cache]:
    """Every call of the attention interface while two tokens are read."""
    device = next(decoder.parameters()).device
    config = decoder.config.get_text_config(decoder=True)
    cache = DynamicCache(config=config)
    _CALLS.clear()
    with ExitStack() as undo, torch.no_grad():
        for each in {id(c): c for c in (decoder.config, config)}.values():
            swap(undo, each, "_attn_implementation", _PROBE)
        undo.callback(decoder.train, decoder.training)
        decoder.eval()
        try:
            # A padding token may be embedded as zero, which no rotation changes.
            ids = torch.tensor([[i for i in range(1, 4) if i != config.pad_token_id][:2]], device=device)
            positions = torch.tensor([_POSITIONS], device=device)
            decoder(input_ids=ids, position_ids=positions, cache=cache, use_cache=True)
            return list(_CALLS), cache
        except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
            raise InputError(f"{type(decoder).__name__} cannot be read: {error}; expected {supported}") from error
        finally:
            _CALLS.clear()


def _read_layer(
    name: str, before: _Call, after: _Call, rotary: nn.Module, apply: Callable[..., Any], layer_type: str | None
) -> LayerLayout:
    """One layer, from the calls it made with rotation and without."""
    fields = _fields(name, before, SUPPORTED)
    if before.mask is not None:  # none was made: nothing is padded, and the attention function knows causality
        raise InputError(f"{name} adds a mask of its own to its attention; expected {SUPPORTED}")
    positions = torch.tensor(_POSITIONS, device=before.query.device)
    encoding = Rotary(rotary, apply, layer_type)
    moved = all(
        torch.allclose(encoding.rotate(bare, positions), rotated, rtol=1e-3, atol=1e-4)
        for bare, rotated in ((after.query, before.query), (after.key, before.key))
    )
    plain = torch.equal(after.query, before.query) and torch.equal(after.key, before.key)
    if not (moved or plain):
        raise InputError(
            f"the rotary encoding of {name}'s layer {fields['index']} cannot be moved out; expected {SUPPORTED}"
        )
    return LayerLayout(before.module, fields, layer_type, has_positions=not plain)


def _fields(name: str, call: _Call, supported: str) -> dict[str, Any]:
    """Those of `Layer`, as a call of its attention shows them."""
    index = getattr(call.module, "layer_idx", None)
    if call.kwargs.get("s_aux") is not None or call.kwargs.get("position_bias") is not None:
        raise InputError(f"{name} adds sinks or biases to its attention; expected {supported}")
    if call.query.shape[-1] != call.value.shape[-1] or index is None:
        raise InputError(f"{name} attends in a compressed space; expected {supported}")
    return {
        "index": index,
        "heads": call.query.shape[1],
        "kv_heads": call.key.shape[1],
        "head_dim": call.query.shape[-1],
        "scaling": call.kwargs.get("scaling") or call.query.shape[-1] ** -0.5,
        "softcap": call.kwargs.get("softcap"),
        "sliding_window": call.kwargs.get("sliding_window"),
    }


def padding_mask(kv_length: int, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """A mask function for attention that knows causality itself: the padding mask, (batch, keys), or None."""
    return None if attention_mask is None or attention_mask.all() else attention_mask


def consecutive(position_ids: Tensor | None, mask: Tensor | None) -> bool:
    """Whether the tokens of a row that are no padding follow one another: one text a row, none packed behind another.

    Args:
        position_ids: (batch, new); None is consecutive.
        mask: (batch, at least `new`), nonzero for tokens and 0 for padding; None without padding.
    """
    if position_ids is None or position_ids.shape[-1] < 2:
        return True
    jumps = position_ids.diff() != 1
    if mask is not None:
        real = mask[:, -position_ids.shape[-1] :].bool()
        jumps = jumps & real[:, 1:] & real[:, :-1]
    return not bool(jumps.any())


def swap(undo: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute until `undo` is closed."""
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


AttentionInterface.register(_PROBE, _record)
AttentionMaskInterface.register(_PROBE, padding_mask)

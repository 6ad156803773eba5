"""Causal attention in blocks of queries: the same numbers as torch's, in less time on a CPU.

Knows how transformers finds an attention function, and what torch's kernel is slow at. Does not know any one model.

The kernel takes 32 or 64 queries of one head at a time, and up to 512 keys at once, those that the causal mask hides
with them. Here a block of queries meets only the keys up to its end, and the query heads that share a key/value head
make one matrix. That takes a fifth to two fifths off at 512 tokens, and less on shorter texts; beyond, the kernel
passes hidden keys over well enough itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IN_BLOCKS = "broadsheet_in_blocks"  # its name for transformers
BLOCK = 64  # queries of a head; of 32, 64, 128 and 256 the fastest or near it for five shapes of heads, in both dtypes
LONGEST = 512  # tokens

_inside: dict[int, int] = {}  # by the id of a config: how many are inside `causal_in_blocks`
_changing = threading.Lock()


@contextmanager
def causal_in_blocks(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's causal attention runs in blocks of queries, where that is faster and no gradient is kept.

    That is on a CPU, without a mask, for 96 to 512 tokens, if the model has attention "sdpa" and `torch.compile` did
    not rewrite it. All other attention stays torch's own.

    Example:
        with torch.inference_mode(), causal_in_blocks(model):
            model(input_ids=ids, use_cache=False)
    """
    config = model.config.get_text_config(decoder=True)
    if model.device.type != "cpu" or torch.is_grad_enabled() or not is_sdpa(config._attn_implementation):
        yield
        return
    with _changing:
        _inside[id(config)] = _inside.get(id(config), 0) + 1
        config._attn_implementation = IN_BLOCKS
    try:
        yield
    finally:
        with _changing:
            _inside[id(config)] -= 1
            if not _inside[id(config)]:
                del _inside[id(config)]
                config._attn_implementation = "sdpa"


def is_sdpa(attention: str | None) -> bool:
    """Whether that is the name of torch's attention: by itself, or inside `causal_in_blocks`."""
    return attention in ("sdpa", IN_BLOCKS)


def attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """Causal attention of whole texts.

    Args:
        query: (batch, heads, length, width).
        key, value: (batch, key/value heads, length, width); these heads divide those of `query`.
        scale: of the products of queries and keys; by default 1/√width.

    Returns:
        (batch, heads, length, width of `value`), in memory by position first, as models want it next.

    Raises:
        RuntimeError: shapes that do not go together.
    """
    batch, heads, length, _ = query.shape
    groups = heads // key.shape[1]
    grouped = query.unflatten(1, (key.shape[1], groups))
    out = query.new_empty(batch, length, key.shape[1], groups, value.shape[-1])
    for start, end in _blocks(length):
        found = scaled_dot_product_attention(
            grouped[:, :, :, start:end].flatten(2, 3),
            key[:, :, :end],
            value[:, :, :end],
            attn_mask=_mask(start, end, groups, query.dtype),
            scale=scale,
        )
        out[:, start:end] = found.unflatten(2, (groups, end - start)).permute(0, 3, 1, 2, 4)
    return out.flatten(2, 3).transpose(1, 2)


def _blocks(length: int) -> list[tuple[int, int]]:
    """Blocks of like size, as near to `BLOCK` as they come."""
    count = max(1, round(length / BLOCK))
    ends = [length * (i + 1) // count for i in range(count)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


@lru_cache(maxsize=4 * LONGEST // BLOCK)  # every layer asks for the same
def _mask(start: int, end: int, groups: int, dtype: torch.dtype) -> Tensor:
    """0 where a query of `start` to `end` sees a key, and -∞ elsewhere: (groups times queries, end)."""
    return torch.full((end - start, end), -torch.inf, dtype=dtype).triu(start + 1).repeat(groups, 1)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: in blocks where that is faster, and "sdpa" everywhere else."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    length = query.shape[2]
    if (
        not causal
        or attention_mask is not None
        or dropout
        or kwargs.get("position_bias") is not None
        or length != key.shape[2]
        or not 1.5 * BLOCK <= length <= LONGEST
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
    ):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    return attend_in_blocks(query, key, value, scale=scaling).transpose(1, 2), None


AttentionInterface.register(IN_BLOCKS, _attend)
AttentionMaskInterface.register(IN_BLOCKS, sdpa_mask)

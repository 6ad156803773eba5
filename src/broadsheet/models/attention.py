"""Attention to short texts: the same numbers as torch's, in less time on a CPU.

Knows how transformers finds an attention function, and what torch's kernel is slow at. Does not know any one model.

The kernel takes 32 or 64 queries of one head at a time, and up to 512 keys at once, those that the causal mask hides
with them. Here a block of queries meets only the keys up to its end, and the query heads that share a key/value head
make one matrix. Without gradients that takes a fifth to two fifths off at 512 tokens, and less on shorter texts;
beyond, the kernel passes hidden keys over well enough itself. With gradients in bfloat16, plain matrix products took a
fifth of the kernel's time at 44 tokens and seven tenths at 1,024 (`benchmarks/train.py`), and eight tenths at 1,536.
What they keep for the backward pass grows with the square of the length: a layer of nine heads keeps 21 MB of a text of
1,536 tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHORT = "broadsheet_short"  # its name for transformers
BLOCK = 64  # queries of a head; of 32, 64, 128 and 256 the fastest or near it for five shapes of heads, in both dtypes
LONGEST = 512  # tokens
LONGEST_LEARNT = 3 * LONGEST  # of causal attention with gradients, which is quicker for longer

_inside: dict[int, int] = {}  # by the id of a config: how many are inside `short_attention`
_changing = threading.Lock()


@contextmanager
def short_attention(model: nn.Module) -> Iterator[None]:
    """Inside, attention to short texts is computed here, in all models of transformers that `model` holds.

    That is on a CPU, for texts of 512 tokens at most, if a model has attention "sdpa" and `torch.compile` did not
    rewrite it: without gradients from 96 tokens on, where attention is causal and there is no mask; with gradients in
    bfloat16, whatever the mask, and without one up to 1,536 tokens. All other attention stays torch's own.

    Example:
        with torch.inference_mode(), short_attention(model):
            model(input_ids=ids, use_cache=False)
    """
    found = [each for each in model.modules() if isinstance(each, PreTrainedModel) and each.device.type == "cpu"]
    configs = {id(config): config for each in found for config in [each.config.get_text_config(decoder=True)]}
    configs = {key: config for key, config in configs.items() if is_sdpa(config._attn_implementation)}
    with _changing:
        for key, config in configs.items():
            _inside[key] = _inside.get(key, 0) + 1
            config._attn_implementation = SHORT
    try:
        yield
    finally:
        with _changing:
            for key, config in configs.items():
                _inside[key] -= 1
                if not _inside[key]:
                    del _inside[key]
                    config._attn_implementation = "sdpa"


def is_sdpa(attention: str | None) -> bool:
    """Whether that is the name of torch's attention: by itself, or inside `short_attention`."""
    return attention in ("sdpa", SHORT)


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


class AttentionByProducts(torch.autograd.Function):
    """Attention of whole texts by matrix products, which keeps its weights for the backward pass.

    Scores, the softmax and its gradient are float32; weights, and what they multiply, have the type of the values.

    `apply(query, key, value, mask, causal, scale)` takes

        query: (batch, heads, length, width).
        key, value: (batch, key/value heads, keys, width); these heads divide those of `query`.
        mask: (batch or 1, 1, length, keys), whether a query sees a key; None: it sees all.
        causal: a query does not see keys behind it, of which there are `length`; there is no mask.
        scale: of the products of queries and keys.

    and returns (batch, heads, length, width of `value`), in the type of `value` and in memory by position first, 0 for
    a query that sees nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        batch, heads, length, _ = query.shape
        shared, groups = key.shape[1], heads // key.shape[1]
        grouped = query.unflatten(1, (shared, groups))
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
        out = value.new_empty(batch, length, shared, groups, value.shape[-1])
        ctx.blocks = _blocks(length) if causal else [(0, length)]
        kept = []
        for start, end in ctx.blocks:
            seen = end if causal else key.shape[2]
            rows = grouped[:, :, :, start:end].flatten(2, 3).flatten(0, 1)  # (batch · shared, groups · block, width)
            scores = torch.bmm(rows.float(), keys[:, :seen].float().mT).mul_(scale)
            weights = _weights(scores.view(batch, heads, end - start, seen), start, mask, causal).to(value.dtype)
            kept.append(weights.view(scores.shape))
            found = torch.bmm(kept[-1], values[:, :seen])
            out[:, start:end] = found.view(batch, shared, groups, end - start, -1).permute(0, 3, 1, 2, 4)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.scale = scale
        return out.flatten(2, 3).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, key, value, *kept = ctx.saved_tensors
        batch, heads, length, width = query.shape
        shared, groups = key.shape[1], heads // key.shape[1]
        dtype = value.dtype
        grouped, given = (each.unflatten(1, (shared, groups)) for each in (query, gradient))
        keys, values = key.flatten(0, 1).to(dtype), value.flatten(0, 1)
        by_query = torch.empty(batch, shared, groups, length, width, dtype=dtype)
        by_key, by_value = (torch.zeros(each.shape, dtype=torch.float32) for each in (keys, values))
        for (start, end), weights in zip(ctx.blocks, kept, strict=True):
            seen = weights.shape[-1]
            rows, came = (each[:, :, :, start:end].flatten(2, 3).flatten(0, 1).to(dtype) for each in (grouped, given))
            by_value[:, :seen] += torch.bmm(weights.mT, came)
            inner = torch.bmm(came, values[:, :seen].mT).float()
            inner = torch._softmax_backward_data(inner, weights.float(), -1, torch.float32)
            inner = inner.mul_(ctx.scale).to(dtype)
            found = torch.bmm(inner, keys[:, :seen])
            by_query[:, :, :, start:end] = found.view(batch, shared, groups, end - start, width)
            by_key[:, :seen] += torch.bmm(inner.mT, rows)
        return (
            by_query.view(query.shape).to(query.dtype),
            by_key.view(key.shape).to(key.dtype),
            by_value.view(value.shape).to(dtype),
            None,
            None,
            None,
        )


def _weights(scores: Tensor, start: int, mask: Tensor | None, causal: bool) -> Tensor:
    """Softmax of (batch, heads, queries, keys) over the keys that the queries from `start` on see."""
    if causal:
        scores.masked_fill_(_hidden(start, start + scores.shape[2]), -torch.inf)
    elif mask is not None:
        scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if mask is not None and not (sees := mask.any(-1, keepdim=True)).all():
        weights.masked_fill_(~sees, 0)
    return weights


@lru_cache(maxsize=4 * LONGEST_LEARNT // BLOCK)
def _hidden(start: int, end: int) -> Tensor:
    """Whether a key is behind a query of `start` to `end`: (queries, end)."""
    return torch.ones(end - start, end, dtype=torch.bool).triu(start + 1)


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
    """transformers' attention function: one of those above where it is faster, and "sdpa" everywhere else."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    length = query.shape[2]
    torchs = partial(sdpa_attention_forward, module, query, key, value, attention_mask, dropout, scaling)
    keeps, masked = torch.is_grad_enabled(), attention_mask is not None
    if (
        dropout
        or kwargs.get("position_bias") is not None
        or length != key.shape[2]
        or length > (LONGEST_LEARNT if keeps and causal and not masked else LONGEST)
        or torch.compiler.is_compiling()
    ):
        return torchs(is_causal=is_causal, **kwargs)
    if not keeps and causal and not masked and length >= 1.5 * BLOCK:
        return attend_in_blocks(query, key, value, scale=scaling).transpose(1, 2), None
    if keeps and value.dtype == torch.bfloat16 and (attention_mask is None or attention_mask.dtype == torch.bool):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        with torch.autocast("cpu", enabled=False):
            found = AttentionByProducts.apply(query, key, value, attention_mask, causal and not masked, scale)
        return found.transpose(1, 2), None
    return torchs(is_causal=is_causal, **kwargs)


AttentionInterface.register(SHORT, _attend)
AttentionMaskInterface.register(SHORT, sdpa_mask)

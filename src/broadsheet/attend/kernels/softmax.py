"""Softmax attention in parts: each part of the keys gives an output and its log-sum-exp, and parts merge exactly.

Knows: tensors of one padding-free batch. Does not know: positions, caches, models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]  # an output (…, head_dim), and the log-sum-exp of its logits (…)


def attention_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    mask: Tensor | None = None,
    causal: bool = False,
    softcap: float | None = None,
) -> Part:
    """Softmax attention over one part of the keys, with what `merge_parts` needs to join it to other parts.

    Args:
        query: (rows, heads, queries, head_dim).
        key, value: (rows, kv_heads, keys, head_dim); query head h reads key head h // (heads / kv_heads).
        scaling: what the logits are multiplied by.
        mask: what is added to the logits after capping, 0 or -inf; broadcasts to (rows, heads, queries, keys).
        causal: query number t, counted from the end of the keys, sees no later key; instead of a mask.
        softcap: caps the logits at ±softcap by tanh, as Gemma 2 does.

    Returns:
        The output, (rows, heads, queries, head_dim), and the log-sum-exp of the logits, (rows, heads, queries) float32;
        0 and -inf where the part holds no visible key.
    """
    if causal:
        if mask is not None:
            raise ValueError("got a mask and causal=True; expected one of them")
        if key.shape[2] != query.shape[2] or softcap or query.device.type != "cpu":
            newest = key.shape[2] - query.shape[2]
            mask = band_mask(query.shape[2], key.shape[2], newest, None, query.dtype, query.device)
            causal = False
    if query.device.type == "cpu" and not softcap and key.shape[2] and query.shape[-1] == value.shape[-1]:
        return _flash(query, key, value, scaling, mask, causal)
    return _plain(query, key, value, scaling, mask, softcap)


def merge_parts(parts: Sequence[Part]) -> Tensor:
    """One softmax over the keys of all parts.

    Args:
        parts: outputs (…, head_dim) and log-sum-exps (…) of disjoint sets of keys, together not empty for any query.

    Returns:
        The output over their union, (…, head_dim).
    """
    if len(parts) == 1:
        return parts[0][0]
    sums = torch.stack([part[1] for part in parts])
    weights = torch.softmax(sums, dim=0).to(parts[0][0].dtype)
    merged = parts[0][0] * weights[0, ..., None]
    for (output, _), weight in zip(parts[1:], weights[1:], strict=True):
        merged.addcmul_(output, weight[..., None])
    return merged


def band_mask(
    queries: int, keys: int, newest: int, width: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The mask under which query t sees the keys t + newest - width + 1 … t + newest; all up to the newest if `width`
    is None.

    Returns:
        (queries, keys): 0 where visible, else -inf.
    """
    with torch.inference_mode(False):  # `shared_mask` outlives the caller's mode
        visible = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(newest)
        if width is not None:
            visible = visible.triu(newest - width + 1)
        return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(~visible, -torch.inf)


shared_mask = lru_cache(maxsize=4)(band_mask)  # for masks that all layers of a model need for a piece of a text


def _flash(query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None, causal: bool) -> Part:
    """The CPU kernel behind `scaled_dot_product_attention`, which hands out the log-sum-exp as well."""
    groups = query.shape[1] // key.shape[1]
    if query.shape[2] == 1 and groups > 1 and (mask is None or mask.dim() < 4 or mask.shape[1] == 1):
        # One query a head: the heads of a group are queries of one key head, so the keys are read once.
        rows, heads, _, width = query.shape
        output, sums = _flash(query.reshape(rows, -1, groups, width), key, value, scaling, mask, False)
        return output.reshape(rows, heads, 1, width), sums.reshape(rows, heads, 1)
    if mask is not None:
        while mask.dim() < 4:
            mask = mask[None]
        mask = mask.expand(query.shape[0], -1, query.shape[2], -1)
    output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scaling
    )
    if mask is not None:  # the kernel gives a query without visible keys the sum 0
        sums = sums.masked_fill((mask == -torch.inf).all(-1), -torch.inf)
    return output, sums


def _plain(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None, softcap: float | None
) -> Part:
    logits = attention_logits(query, key, scaling=scaling, softcap=softcap)
    if mask is not None:
        logits = logits + mask
    weights, sums = softmax_part(logits)
    return weigh(weights, value), sums


def softmax_part(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over a part's keys, 0 where none is visible, and the log-sum-exp: (…, keys) -> (…, keys), (…)."""
    sums = torch.logsumexp(logits, dim=-1) if logits.shape[-1] else logits.new_full(logits.shape[:-1], -torch.inf)
    return torch.exp(logits - sums.clamp_min(torch.finfo(sums.dtype).min)[..., None]), sums


def attention_logits(query: Tensor, key: Tensor, *, scaling: float, softcap: float | None = None) -> Tensor:
    """Scaled and capped logits: (rows, heads, queries, keys), float32 or wider; key heads repeat over their group."""
    rows, heads, queries, width = query.shape
    group = heads // key.shape[1]
    # The heads of a group stand behind one another, and queries are scaled instead of logits, which are more.
    grouped = (query * scaling).reshape(rows, key.shape[1], group * queries, width)
    logits = torch.matmul(grouped, key.transpose(-1, -2)).reshape(rows, heads, queries, key.shape[2])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if not softcap else torch.tanh(logits / softcap) * softcap


def weigh(weights: Tensor, value: Tensor) -> Tensor:
    """Values summed by weights (rows, heads, queries, keys): (rows, heads, queries, head_dim) in the values' dtype."""
    rows, heads, queries, keys = weights.shape
    group = heads // value.shape[1]
    grouped = weights.to(value.dtype).reshape(rows, value.shape[1], group * queries, keys)
    return torch.matmul(grouped, value).reshape(rows, heads, queries, value.shape[-1])

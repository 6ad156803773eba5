"""Causal attention over chosen blocks of the attention map, on two backends that agree.

Knows: tensors of rows without padding, and which blocks of keys each block of queries of each head attends. Does not
know: how the blocks were chosen, models, caches.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from broadsheet.attend.kernels.softmax import attention_part
from broadsheet.console import InputError

_GATHERED = 1 << 19  # key elements gathered for a kernel call: 2 MiB in float32, which a CPU's cache still holds then


def blocks_attention(
    query: Tensor, key: Tensor, value: Tensor, active: Tensor, *, block_size: int, scaling: float, softcap: float | None
) -> Tensor:
    """Attention over the active blocks, by gathering them.

    A head and a block of queries make a pair; pairs that attend equally many blocks share calls of the ordinary
    kernel, in which no key is masked but in the block on the diagonal.

    Args:
        query: (rows, heads, queries, head_dim), the last `queries` tokens.
        key, value: (rows, kv_heads, keys, head_dim); query head h reads key head h // (heads / kv_heads).
        active: (rows, heads, query blocks, key blocks) bool. Blocks are counted from the first key, so the first block
            of queries may lack its beginning, as the last one its end. Every block of queries attends the block on its
            diagonal, and none behind it.
        block_size: tokens.
        scaling: what the logits are multiplied by.
        softcap: caps the logits at ±softcap by tanh.

    Returns:
        (rows, queries, heads, head_dim).
    """
    rows, heads, _, width = query.shape
    query_blocks, key_blocks = active.shape[2:]
    kv_heads = key.shape[1]
    cut, query, key, value = _on_grid(query, key, value, active, block_size)
    blocks = [tensor.reshape(-1, block_size * width) for tensor in (query, key, value)]
    room = [query.new_empty(max(key_blocks, _GATHERED // (block_size * width)), block_size * width) for _ in range(2)]
    output = torch.empty_like(blocks[0])
    mask = query.new_zeros(block_size, key_blocks * block_size)
    mask[:, -block_size:].masked_fill_(torch.ones_like(mask[:, -block_size:], dtype=torch.bool).triu(1), -torch.inf)

    active = active.flatten(0, 2)
    counts = active.sum(-1)
    start, order = 0, counts.argsort(stable=True)
    for count, alike in zip(*(each.tolist() for each in counts.unique(return_counts=True)), strict=True):
        for pairs in order[start : start + alike].split(max(1, _GATHERED // (count * block_size * width))):
            columns = active[pairs].nonzero()[:, 1]
            # A pair's number is (row * heads + head) * query_blocks + block: its key head's blocks start here.
            origin = pairs // query_blocks // (heads // kv_heads) * key_blocks
            chosen = columns + origin.repeat_interleave(count)
            q = blocks[0].index_select(0, pairs).view(1, len(pairs), block_size, width)
            k, v = (
                torch.index_select(tensor, 0, chosen, out=None if tensor.requires_grad else place[: len(chosen)])
                for tensor, place in zip(blocks[1:], room, strict=True)
            )
            k, v = (each.view(1, len(pairs), -1, width) for each in (k, v))
            part = _dense(q, k, v, mask[:, -count * block_size :], scaling=scaling, softcap=softcap)
            output.index_copy_(0, pairs, part.reshape(len(pairs), -1))
        start += alike
    return output.view(rows, heads, -1, width).transpose(1, 2)[:, cut]


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float, softcap: float | None) -> Tensor:
    if softcap:
        return attention_part(query, key, value, scaling=scaling, mask=mask, softcap=softcap)[0]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask[None, None], scale=scaling)


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, active: Tensor, *, block_size: int, scaling: float, softcap: float | None
) -> Tensor:
    """`blocks_attention` by torch's FlexAttention, compiled for each new shape.

    Uncompiled, FlexAttention does not look at which blocks are listed and obeys `mask_mod` alone; compiled, it skips
    the blocks that are not listed. So the choice is in both, and both would be right.

    Raises:
        InputError: it does not compile here.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch.nn.attention.flex_attention import BlockMask

    before = (active.shape[3] - active.shape[2]) * block_size
    cut, query, key, value = _on_grid(query, key, value, active, block_size)

    def chosen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i + before >= j) & active[b, h, i // block_size, j // block_size]

    def capped(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    cap = softcap or 1.0  # asked for only where there is one
    diagonal = torch.zeros_like(active)
    diagonal.diagonal(before // block_size, 2, 3).fill_(True)
    mask = BlockMask.from_kv_blocks(
        *listed(active & diagonal), *listed(active & ~diagonal), BLOCK_SIZE=block_size, mask_mod=chosen
    )
    try:
        output = _compiled(query.device.type)(
            query, key, value, block_mask=mask, scale=scaling, enable_gqa=True, score_mod=capped if softcap else None
        )
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"FlexAttention does not compile here ({reason}); expected backend='blocks'") from error
    return output.transpose(1, 2)[:, cut]


def _on_grid(
    query: Tensor, key: Tensor, value: Tensor, active: Tensor, block_size: int
) -> tuple[slice, Tensor, Tensor, Tensor]:
    """Pad partial blocks with zeros; also the slice of the real queries. Causality hides the added keys."""
    query_blocks, key_blocks = active.shape[2:]
    after = key_blocks * block_size - key.shape[2]
    before = query_blocks * block_size - query.shape[2] - after
    if before or after:
        query = pad(query, (0, 0, before, after))
        key, value = pad(key, (0, 0, 0, after)), pad(value, (0, 0, 0, after))
    return slice(before, query.shape[2] - after), query, key, value


def listed(active: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each block of queries attends, (…, query blocks), and which, (…, query blocks, key blocks): the
    attended columns before all others."""
    return active.sum(-1, dtype=torch.int32), active.int().argsort(dim=-1, descending=True, stable=True).int()


@cache
def _compiled(device: str) -> Any:
    """FlexAttention, whole or not at all: where it no longer compiles there is an error, no slow path.

    On CPU every shape is compiled for itself, since torch 2.13 writes C++ that is wrong for shapes left open.
    """
    from torch.nn.attention.flex_attention import flex_attention as stock

    return torch.compile(stock, fullgraph=True, dynamic=False if device == "cpu" else None)

"""Attention of a padded batch by what knows rows without padding only, and a model's own attention beside it.

Knows: masks as transformers makes them for `sdpa`. Does not know: any one method.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from broadsheet.attend.kernels.softmax import attention_part
from broadsheet.console import InputError


class MaskReader:
    """Finds the padding behind a causal mask, once in a forward pass, whose layers share their mask."""

    def __init__(self) -> None:
        self._read: tuple[ReferenceType[Tensor], int, Tensor | None] | None = None

    def real_keys(self, mask: Tensor | None, layer: int) -> Tensor | None:
        """Which keys are no padding, (batch, keys) bool; None where all are.

        Args:
            mask: (batch, 1, queries, keys) bool, True where visible; None for plain causality.
            layer: the number of the layer that asks: one that is no higher than the last begins a forward pass.

        Raises:
            InputError: the mask is not causality and padding.
        """
        if mask is None:
            return None
        if self._read is None or self._read[0]() is not mask or self._read[1] >= layer:
            real: Tensor | None = _read_mask(mask)
        else:
            real = self._read[2]
        self._read = ref(mask), layer, real
        return real


def by_equal_lengths(
    query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, attend: Callable[..., Tensor]
) -> Tensor:
    """`attend` on rows without padding, those of equal lengths together; zeros at padding.

    Args:
        query: (batch, heads, queries, head_dim).
        key, value: (batch, kv_heads, keys, head_dim).
        real: (batch, keys) bool, or None without padding.
        attend: queries, keys and values of some rows -> (rows, queries, heads, head_dim).

    Returns:
        (batch, queries, heads, head_dim).
    """
    if real is None:
        return attend(query, key, value)
    queries = query.shape[2]
    output = query.new_zeros(len(query), queries, query.shape[1], query.shape[3])
    alike = defaultdict(list)
    for row, lengths in enumerate(zip(real.sum(1).tolist(), real[:, -queries:].sum(1).tolist(), strict=True)):
        if lengths[1]:
            alike[lengths].append(row)
    for rows in alike.values():
        own, asking = [real[row] for row in rows], [real[row, -queries:] for row in rows]
        q = torch.stack([query[row][:, mine] for row, mine in zip(rows, asking, strict=True)])
        k = torch.stack([key[row][:, mine] for row, mine in zip(rows, own, strict=True)])
        v = torch.stack([value[row][:, mine] for row, mine in zip(rows, own, strict=True)])
        for row, mine, part in zip(rows, asking, attend(q, k, v), strict=True):
            output[row, mine] = part
    return output


def stock_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Tensor:
    """A model's attention without a method, as in `PostRopeAttention.attend`; torch's kernel has no softcap."""
    softcap = kwargs.get("softcap")
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
    mask = None
    if attention_mask is not None:
        mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(~attention_mask, -torch.inf)
    scaling, causal = kwargs.get("scaling") or query.shape[-1] ** -0.5, mask is None and query.shape[2] > 1
    output, _ = attention_part(query, key, value, scaling=scaling, mask=mask, causal=causal, softcap=softcap)
    return output.transpose(1, 2)


def _read_mask(mask: Tensor) -> Tensor | None:
    if mask.dtype == torch.bool and mask.shape[1] == 1:
        real = mask[:, 0, -1]
        causal = torch.ones_like(mask[0, 0]).tril(mask.shape[3] - mask.shape[2])
        if all(torch.equal(row[0], causal & own) for row, own in zip(mask, real, strict=True)):
            return None if bool(real.all()) else real
    raise InputError(
        "got an attention mask that is not plain causality and padding (packed texts, a static cache continued, or a "
        "custom mask); expected a padding mask (batch, length) and a growing cache"
    )

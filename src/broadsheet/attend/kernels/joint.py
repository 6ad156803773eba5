"""Softmax attention over several sets of keys at once, whose weights are also returned, summed over queries.

Knows: tensors of one padding-free batch. Does not know: positions, caches, models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from broadsheet.attend.kernels.softmax import attention_logits, weigh

_CACHED, _HELD = 1 << 22, 1 << 28  # bytes of logits at once: what cores have cache for; what another device may hold


@dataclass(frozen=True)
class Keys:
    """Keys and the queries that read them, both at the positions where they meet.

    Attributes:
        query: (rows, heads, queries, head_dim).
        key, value: (rows, kv_heads, keys, head_dim).
        mask: 0 or -inf, broadcasts to (rows, heads, queries, keys); None where all is visible.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None

    def of(self, queries: slice) -> Keys:
        """The same keys for some of the queries."""
        mask = None if self.mask is None else self.mask[..., queries, :]
        return Keys(self.query[:, :, queries], self.key, self.value, mask)

    def logits(self, scaling: float, softcap: float | None = None) -> Tensor:
        """Capped, scaled and masked: (rows, heads, queries, keys), float32 or wider."""
        found = attention_logits(self.query, self.key, scaling=scaling, softcap=softcap)
        return found if self.mask is None else found.add_(self.mask)

    def share(self, first: int, stop: int, parts: int) -> Keys:
        """Of `parts` equal parts of the heads, those from `first` to `stop` - 1."""

        def cut(x: Tensor) -> Tensor:
            return x[:, first * x.shape[1] // parts : stop * x.shape[1] // parts]

        mask = self.mask
        if mask is not None and mask.dim() == 4 and mask.shape[1] > 1:
            mask = cut(mask)
        return Keys(cut(self.query), cut(self.key), cut(self.value), mask)


def attend_jointly(sets: Sequence[Keys], *, scaling: float, softcap: float | None = None) -> tuple[Tensor, Tensor]:
    """Attention under one softmax over several sets of keys, and what the keys of the first set receive of it.

    No kernel gives how much a key receives, so the logits are laid out in memory: those of a few heads at a time,
    as many as the cores have cache for.

    Args:
        sets: of the same queries, the first one with the fewest key heads.
        scaling, softcap: as in `attention_part`.

    Returns:
        The output, (rows, heads, queries, head_dim), and the sum over queries of the attention to each key of the first
        set, (rows, heads, keys), float32 or wider.
    """
    rows, heads, queries, _ = sets[0].query.shape
    parts = sets[0].key.shape[1]
    step = how_often(rows * heads // parts * queries * sum(each.key.shape[2] for each in sets), sets[0].query.device)
    outputs, received = [], []
    for first in range(0, parts, step):
        shares = [each.share(first, min(parts, first + step), parts) for each in sets]
        weights = [each.logits(scaling, softcap) for each in shares]
        highest = torch.stack([each.amax(-1) for each in weights]).amax(0)
        weights = [each.sub_(highest[..., None]).exp_() for each in weights]
        total = torch.stack([each.sum(-1) for each in weights]).sum(0)
        read = [weigh(own, each.value) for own, each in zip(weights, shares, strict=True)]
        outputs.append(sum(read[1:], read[0]) / total[..., None].to(read[0].dtype))
        received.append(torch.matmul(total.reciprocal()[..., None, :], weights[0])[..., 0, :])
    if len(outputs) == 1:
        return outputs[0], received[0]
    return torch.cat(outputs, 1), torch.cat(received, 1)


def how_often(count: int, device: torch.device) -> int:
    """How many times `count` float32 logits should be in memory at once: at least once."""
    return max(1, (_CACHED if device.type == "cpu" else _HELD) // (4 * count))

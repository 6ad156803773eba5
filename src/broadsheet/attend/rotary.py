"""Rotary position encoding moved out of the model: queries and keys arrive un-rotated, and the method rotates them.

Knows: a decoder's rotary module and its function that applies it. Does not know: attention, caches, any model class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class IdentityRotary(nn.Module):
    """Stands in for a model's rotary module and gives the angle zero at every position, so that nothing is rotated."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self._widths: dict[Any, int] = {}

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """cos = 1 and sin = 0, (1, 1, rotary_dim) in the dtype of `x`."""
        if layer_type not in self._widths:
            self._widths[layer_type] = tables(self.original, 1, x, layer_type)[0].shape[-1]
        ones = x.new_ones(1, 1, self._widths[layer_type])
        return ones, torch.zeros_like(ones)


class Rotary:
    """The rotary encoding of a layer, at any position: the model's own angles, applied by the model's own function.

    Args:
        module: the decoder's rotary module; None for a layer without positions (NoPE), which `rotate` leaves alone.
        apply: the model file's `apply_rotary_pos_emb(q, k, cos, sin)`.
        layer_type: what the rotary module is asked for where its angles differ by kind of layer.
        reach: the longest span of positions that attention sees at once. Kinds of rotary encoding whose frequencies
            depend on the length of the text (dynamic, longrope) get those of a text of this length, whatever is read.
    """

    def __init__(
        self,
        module: nn.Module | None,
        apply: Callable[..., Any] | None,
        layer_type: str | None = None,
        reach: int = 1,
    ) -> None:
        self.module = module
        self.layer_type = layer_type
        self.reach = max(2, reach)
        self._apply = apply
        self._single = apply is not None and "k" not in inspect.signature(apply).parameters
        self._tables: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        rope_type = getattr(module, "rope_type", "default")
        rope_type = rope_type.get(layer_type, "default") if isinstance(rope_type, dict) else rope_type
        self._by_length = rope_type == "longrope" or "dynamic" in rope_type

    def rotate(self, x: Tensor, positions: int | range | Tensor) -> Tensor:
        """Put `x` at `positions`.

        Args:
            x: queries or keys, (rows, heads, length, head_dim).
            positions: one for all, a range of `length`, or a tensor (length,) or (rows, length); none negative.

        Returns:
            The rotated tensor, of the shape and dtype of `x`.
        """
        if self.module is None:
            return x
        if isinstance(positions, Tensor):
            highest = int(positions.max()) if positions.numel() else 0
        else:
            highest = positions if isinstance(positions, int) else positions.stop - 1
        cos, sin = self._table(highest + 1, x)
        if isinstance(positions, Tensor):
            cos, sin = cos[0][positions], sin[0][positions]
            return self._put(x, cos, sin) if cos.dim() == 3 else self._put(x, cos[None], sin[None])
        if isinstance(positions, int):
            return self._put(x, cos[:, positions, None], sin[:, positions, None])
        span = slice(positions.start, positions.stop, positions.step)
        return self._put(x, cos[:, span], sin[:, span])

    def shift(self, x: Tensor, by: int) -> Tensor:
        """Move tensors that are already rotated by `by` positions (back, if negative), exactly up to rounding.

        Angles near zero keep their precision in float32 however many tokens a stream has.
        """
        if self.module is None or not by:
            return x
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        cos, sin = self._table(abs(by) + 1, wide)
        start = cos[:, :1]  # cos 0, which is not 1 where the model scales its tables (YaRN)
        angle_cos, angle_sin = cos[:, abs(by), None] / start, sin[:, abs(by), None] / start
        return self._put(wide, angle_cos, angle_sin if by > 0 else -angle_sin).to(x.dtype)

    def _table(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of positions 0 … at least `length`-1, (1, length, rotary_dim)."""
        key = (like.dtype, like.device)
        known = self._tables.get(key)
        if known is not None and length <= known[0].shape[1]:
            return known
        assert self.module is not None
        size = max(256, 1 << (length - 1).bit_length())
        if self._by_length:
            base = tables(self.module, self.reach, like.float(), self.layer_type)
            cos, sin = _lengthen(*base, size)
            self._tables[key] = cos.to(like.dtype), sin.to(like.dtype)
        else:
            self._tables[key] = tables(self.module, size, like, self.layer_type)
        return self._tables[key]

    def _put(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate the first rotary_dim entries of a head; the others are unchanged (partial rotary)."""
        assert self._apply is not None
        width = cos.shape[-1]
        head, rest = x[..., :width], x[..., width:]
        rotated = self._apply(head, cos, sin) if self._single else self._apply(head, head[:, :0], cos, sin)[0]
        return torch.cat((rotated, rest), dim=-1) if rest.shape[-1] else rotated


def tables(module: nn.Module, length: int, like: Tensor, layer_type: str | None) -> tuple[Tensor, Tensor]:
    """What a model's rotary module gives for positions 0 … length-1: cos and sin, (1, length, rotary_dim)."""
    positions = torch.arange(length, device=like.device)[None]
    return module(like, positions) if layer_type is None else module(like, positions, layer_type)


def _lengthen(cos: Tensor, sin: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Tables of further positions at the same frequencies, by cos(a+b) = cos a cos b - sin a sin b; in float64."""
    cos, sin = cos.double(), sin.double()
    scale = cos[:, :1]  # cos 0, which is not 1 where the model scales its tables
    while cos.shape[1] < length:
        last_cos, last_sin = cos[:, -1:] / scale, sin[:, -1:] / scale
        # From the last row to the first new one is a step of one position.
        step_cos = (last_cos * cos[:, 1:2] - last_sin * sin[:, 1:2]) / scale
        step_sin = (last_sin * cos[:, 1:2] + last_cos * sin[:, 1:2]) / scale
        more_cos = cos * step_cos - sin * step_sin
        more_sin = sin * step_cos + cos * step_sin
        cos, sin = torch.cat((cos, more_cos), 1), torch.cat((sin, more_sin), 1)
    return cos[:, :length].float(), sin[:, :length].float()

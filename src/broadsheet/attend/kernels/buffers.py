"""Buffers with room for tokens to come, so that a token that is read does not copy those before it.

Knows: tensors with an axis of tokens. Does not know: what they hold.
"""

from __future__ import annotations

import torch
from torch import Tensor


def append(buffer: Tensor, length: int, new: Tensor, multiple: int = 1) -> Tensor:
    """Put tokens behind the first `length` ones of a buffer.

    Args:
        buffer: (rows, heads, room, head_dim), changed in place where `new` fits into it.
        new: (rows, heads, new tokens, head_dim).
        multiple: of how many tokens the room is a multiple.

    Returns:
        The buffer, or one a quarter larger where the tokens did not fit.
    """
    total = length + new.shape[2]
    if total > buffer.shape[2]:
        room = -(-max(total, length + length // 4) // multiple) * multiple
        buffer = moved(buffer, 2, slice(0, length), room)
    buffer[:, :, length:total] = new
    return buffer


def empty(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A buffer for the rows, heads and head_dim of `like`, without tokens: (rows, heads, 0, head_dim)."""
    return like.new_empty(*like.shape[:2], 0, like.shape[3], dtype=dtype or like.dtype)


def moved(buffer: Tensor, axis: int, columns: slice, size: int) -> Tensor:
    """A buffer of `size` columns along `axis` that begins with these columns of the old one; the others are zero."""
    shape = list(buffer.shape)
    shape[axis] = size
    with torch.inference_mode(False):  # it may be filled in another mode than it was made in
        made = buffer.new_zeros(shape)
    made.narrow(axis, 0, columns.stop - columns.start).copy_(
        buffer.narrow(axis, columns.start, columns.stop - columns.start)
    )
    return made

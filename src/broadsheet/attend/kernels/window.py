"""A sliding window over a text, in constant space.

Knows: un-rotated queries, keys and values of one padding-free batch. A model's own sliding-window layers are this
state; LM-Infinite adds the first tokens of the text to it.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from broadsheet.attend.kernels.buffers import moved
from broadsheet.attend.kernels.softmax import Part, attention_part, merge_parts
from broadsheet.attend.memory import Layer, State
from broadsheet.attend.rotary import Rotary

# Queries of a prompt that share a set of keys. The kernel is no faster for more, and few of the keys are masked out.
CHUNK = 192
# Logits of the chunks that one call of the kernel computes; where it is not fused, they are a tensor.
TOGETHER = 2**23


class WindowState(State):
    """Attends to the last `n_local` tokens, each token itself among them.

    Keys and values are in a ring in which token i has slot i mod `n_local`. Keys are rotated once, when they come;
    softmax does not depend on their order, so a new key replaces the one that leaves the window, and no other moves. A
    short text takes less room than the window.

    Positions in the ring are counted from an origin that moves every `stride` tokens, so that float32 angles are as
    exact after a million tokens as after two windows.

    A subclass that keeps other tokens in sight has `front` slots before the ring for them. It gets new tokens by
    `_fill_front`, places its own for one query by `_place_front`, and gives their part of the attention of several
    queries by `_front_part`.

    Args:
        layer: the layer it belongs to.
        n_local: tokens of the window; a model's sliding window counts them in the same way.
        front: slots before the ring.
        reach: the longest distance at which a key is placed.
    """

    def __init__(self, layer: Layer, n_local: int, front: int = 0, reach: int = 0) -> None:
        super().__init__(layer)
        self.n_local, self.front = n_local, front
        self.stride = -(-(max(n_local, reach) + front) // 1024) * 1024
        self._origin = 0
        self._key: Tensor | None = None  # (rows, kv_heads, front + at most n_local, head_dim), and the values alike
        self._value: Tensor | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read the next tokens, as in `State.attend`."""
        rows, heads, new, width = query.shape
        output = query.new_empty(rows, new, heads, width).transpose(1, 2)  # the layout that models use afterwards
        if new == 1:
            self.read(query, key, value, output)
            return output
        for start, stop in self.pieces(new):
            self.read(*(each[:, :, start:stop] for each in (query, key, value, output)))
        return output

    def pieces(self, new: int) -> list[tuple[int, int]]:
        """The next `new` tokens, cut where the origin moves: (start, stop) of each piece that `read` can take."""
        return list(pairwise((0, *range(self.stride - self.seen % self.stride, new, self.stride), new)))

    def read(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor | None:
        """Read one piece: `attend`, but its result goes to `output`; gives the log-sum-exp of the logits, if known."""
        new = query.shape[2]
        if self.seen >= 2 * self.stride and self.seen % self.stride == 0:
            self._move_origin()
        self._make_room(key, min(self.n_local, self.seen + new))
        self._fill_front(key, value)
        sums = self._step(query, key, value, output) if new == 1 else self._block(query, key, value, output)
        self.seen += new
        return sums

    def _fill_front(self, key: Tensor, value: Tensor) -> None:
        """Tokens `seen`, `seen` + 1, … are about to be read; for a subclass to keep what it needs of them."""

    def _place_front(self, keys: Tensor, position: int) -> int:
        """Rotate the keys before the ring for a query at `position`; the first slot in sight."""
        return self.front

    def _front_part(self, query: Tensor, rotated: Tensor, seen: int) -> Part | None:
        """Attention of queries `seen`, `seen` + 1, … to the tokens before the ring; None if none is in sight.

        Args:
            query: (rows, heads, queries, head_dim), before rotary encoding.
            rotated: the same at their positions in the ring.
        """
        return None

    def _step(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor:
        """One token, against the ring in its order. Every operation here runs once for each layer and token."""
        keys, values = self._key, self._value
        assert keys is not None
        assert values is not None
        position = self.seen - self._origin
        turn = rotation(self.layer.rotary, position, keys.shape[3], keys.dtype, keys.device)
        slot = self.front + self.seen % self.n_local
        keys.narrow(2, slot, 1).copy_(key @ turn)
        values.narrow(2, slot, 1).copy_(value)
        begin = self._place_front(keys, position)
        end = self.front + min(self.seen + 1, self.n_local)
        if end - begin < keys.shape[2]:
            keys, values = keys.narrow(2, begin, end - begin), values.narrow(2, begin, end - begin)
        result, sums = self._part(query @ turn, keys, values)
        output.copy_(result)
        return sums

    def _block(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor | None:
        """Several tokens, against the window in its order and themselves."""
        assert self._key is not None
        assert self._value is not None
        new, kept = query.shape[2], min(self.seen, self.n_local - 1)
        position = self.seen - self._origin
        rotated = self.layer.rotary.rotate(key, range(position, position + new))
        runs = self._runs(self.seen - kept, self.seen)
        keys = torch.cat([self._key[:, :, slots] for slots, _ in runs] + [rotated], dim=2)
        values = torch.cat([self._value[:, :, slots] for slots, _ in runs] + [value], dim=2)
        sums = self._meet(query, keys, values, output)
        end = self.seen + new
        for slots, tokens in self._runs(max(0, end - self.n_local), end):
            taken = slice(tokens.start - self.seen + kept, tokens.stop - self.seen + kept)
            self._key[:, :, slots] = keys[:, :, taken]
            self._value[:, :, slots] = values[:, :, taken]
        return sums

    def _meet(self, query: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> Tensor | None:
        """Attention of a block of queries to rotated keys in order, the last of which are their own."""
        new, kept = query.shape[2], keys.shape[2] - query.shape[2]
        start, sums = 0, []
        while start < new:
            size = min(CHUNK, self.n_local, new - start)
            count = 1
            if kept + start >= self.n_local - 1:  # the window is full from here on
                logits = query[:, :, 0, 0].numel() * size * self.n_local
                count = max(1, min((new - start) // size, TOGETHER // logits))
            span, seen = slice(start, start + count * size), self.seen + start
            position = seen - self._origin
            rotated = self.layer.rotary.rotate(query[:, :, span], range(position, position + count * size))
            parts = self._near(rotated, keys, values, kept + start, count)
            front = self._front_part(query[:, :, span], rotated, seen)
            if front is not None:
                parts.append(front)
            output[:, :, span] = merge_parts(parts)
            sums.append(torch.logsumexp(torch.stack([part[1] for part in parts]), dim=0))
            start = span.stop
        return torch.cat(sums, dim=2)

    def _near(self, rotated: Tensor, keys: Tensor, values: Tensor, before: int, count: int) -> list[Part]:
        """Chunks of queries meet their windows: the keys that all of a chunk see, and those at the two edges.

        Args:
            rotated: `count` chunks of equal size, at most a window; more than one only if their windows are full.
            before: keys before the first chunk's own.
        """
        rows, heads, new, width = rotated.shape
        size = new // count
        left = before - self.n_local + 1  # the first key that the first query sees, if there is one
        inner = max(0, left + size - 1)  # the first that its whole chunk sees
        edge = inner - max(0, left)

        def of_each(tensor: Tensor, start: int, length: int) -> Tensor:
            """That slice for the first chunk, shifted for the others: (rows · count, heads, length, head_dim)."""
            span = tensor[:, :, start : start + new - size + length].unfold(2, length, size)
            return span.permute(0, 2, 1, 4, 3).reshape(rows * count, -1, length, width)

        queries = of_each(rotated, 0, size)
        at_edges = [
            torch.cat((of_each(each, max(0, left), edge), of_each(each, before, size)), dim=2)
            if edge
            else of_each(each, before, size)
            for each in (keys, values)
        ]
        mask = _edges(size, rotated.dtype, rotated.device)[:, size - 1 - edge :]
        parts = [self._part(queries, at_edges[0], at_edges[1], mask)]
        if inner < before:
            within = [of_each(each, inner, before - inner) for each in (keys, values)]
            parts.append(self._part(queries, within[0], within[1]))
        return [
            (
                output.transpose(1, 2).reshape(rows, new, heads, width).transpose(1, 2),
                sums.transpose(1, 2).reshape(rows, new, heads).transpose(1, 2),
            )
            for output, sums in parts
        ]

    def _part(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Part:
        return attention_part(query, keys, values, scaling=self.layer.scaling, mask=mask, softcap=self.layer.softcap)

    def _runs(self, start: int, stop: int) -> list[tuple[slice, range]]:
        """Where tokens `start` … `stop`-1, at most a window of them, are in the ring: slots and tokens, in order."""
        slot = start % self.n_local
        turn = min(stop, start + self.n_local - slot)
        runs = [(self.front + slot, range(start, turn)), (self.front, range(turn, stop))]
        return [(slice(slot, slot + len(tokens)), tokens) for slot, tokens in runs if tokens]

    def _make_room(self, like: Tensor, tokens: int) -> None:
        """Let the ring hold `tokens` tokens, at most a window; it grows by doubling."""
        if self._key is None or self._value is None:
            self._key = self._value = like.new_empty(*like.shape[:2], self.front, like.shape[3])
        held = self._key.shape[2] - self.front
        if tokens > held:
            size = self.front + min(self.n_local, max(tokens, 2 * held))
            self._key, self._value = (
                moved(each, 2, slice(0, each.shape[2]), size) for each in (self._key, self._value)
            )

    def _move_origin(self) -> None:
        """Count positions from `stride` tokens later. The ring is full by then, and what moves is left of it soon."""
        assert self._key is not None
        ring = self._key[:, :, self.front :]
        ring.copy_(self.layer.rotary.shift(ring, -self.stride))
        self._origin += self.stride


@lru_cache(maxsize=64)
@torch.inference_mode(False)
@torch.no_grad()
def rotation(rotary: Rotary, position: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The rotation to a position as a matrix (head_dim, head_dim): x @ it is x rotated.

    All layers of a token share it, and a product is one operation where the model's own function is ten.
    """
    return rotary.rotate(torch.eye(width, dtype=dtype, device=device)[None, None], position)[0, 0]


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _edges(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The mask of a chunk over the edges of its window, 0 or -inf: `size` - 1 keys that leave it, `size` that enter."""
    visible = torch.ones(size, size, dtype=torch.bool, device=device)
    visible = torch.cat((visible.triu()[:, : size - 1], visible.tril()), dim=1)
    return torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, -torch.inf)

"""The Λ-shaped memory: the first tokens of a text and its last ones, in constant space.

Knows: un-rotated queries, keys and values of one padding-free batch. LM-Infinite is this state; a sliding-window layer
of a model is this state without first tokens.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from broadsheet.attend.kernels.softmax import attention_logits, attention_part, merge_parts, weigh
from broadsheet.attend.memory import Layer, State
from broadsheet.attend.rotary import Rotary

# Queries of a prompt that share a set of keys. The kernel is no faster for more, and they see few keys in vain.
CHUNK = 192
# Logits of the chunks that one call of the kernel computes; where it is not fused, they are a tensor.
TOGETHER = 2**23


class WindowState(State):
    """Attends to the last `n_local` tokens, each token itself among them, and to the first `n_global`.

    Keys and values lie in one tensor each: `n_global` slots for the first tokens, the last of them in front, then a
    ring in which token i has slot i mod `n_local`. Ring keys are rotated once, when they come; softmax does not ask for
    their order, so a new key is written over the one that leaves the window, and nothing is moved. However long the
    text, that is `n_global` + `n_local` - 1 tokens and the slot of the next one; a short text takes less.

    A first token that has left the window stands where it is, or at `max_distance` if that is nearer. It is kept
    un-rotated and placed beside the ring anew for every query of one token, at that distance from it, so that one
    attention call reads both.

    Positions in the ring are counted from an origin that moves on every `stride` tokens, so that float32 angles are as
    exact after a million tokens as after two windows.

    Args:
        layer: the layer it belongs to.
        n_global: first tokens that stay visible.
        n_local: tokens of the window; a model's sliding window counts them in the same way.
        max_distance: the ceiling on distances, at least `n_local` - 1; None for `n_local`.
    """

    def __init__(self, layer: Layer, n_global: int, n_local: int, max_distance: int | None = None) -> None:
        super().__init__(layer)
        self.n_global, self.n_local = n_global, n_local
        self.max_distance = n_local if max_distance is None else max_distance
        self.stride = -(-(max(n_local, self.max_distance) + n_global) // 1024) * 1024
        self._origin = 0
        self._key: Tensor | None = None
        self._value: Tensor | None = None
        self._first: Tensor | None = None  # keys of the first tokens, un-rotated, the last of them in front

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read the next tokens, as `State.attend` says."""
        rows, heads, new, width = query.shape
        output = query.new_empty(rows, new, heads, width).transpose(1, 2)  # the layout in which models go on with it
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
        new, first = query.shape[2], self.n_global
        if self.seen >= 2 * self.stride and self.seen % self.stride == 0:
            self._move_origin()
        self._make_room(key, min(self.n_local, self.seen + new))
        if self.seen < first:
            stop = min(first, self.seen + new)
            slots, taken = slice(first - stop, first - self.seen), slice(0, stop - self.seen)
            self._first[:, :, slots] = key[:, :, taken].flip(2)  # type: ignore[index]
            self._value[:, :, slots] = value[:, :, taken].flip(2)  # type: ignore[index]
        sums = self._step(query, key, value, output) if new == 1 else self._block(query, key, value, output)
        self.seen += new
        return sums

    def _step(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor:
        """One token, against the ring as it lies. Every operation here runs once a layer and token."""
        keys, values, first = self._key, self._value, self.n_global
        assert keys is not None
        assert values is not None
        position = self.seen - self._origin
        turn = rotation(self.layer.rotary, position, keys.shape[3], keys.dtype, keys.device)
        slot = first + self.seen % self.n_local
        keys.narrow(2, slot, 1).copy_(key @ turn)
        values.narrow(2, slot, 1).copy_(value)
        begin = first - min(first, max(0, self.seen - self.n_local + 1))
        if begin < first:
            self._place_first(keys, begin, position)
        end = first + min(self.seen + 1, self.n_local)
        if end - begin < keys.shape[2]:
            keys, values = keys.narrow(2, begin, end - begin), values.narrow(2, begin, end - begin)
        result, sums = self._part(query @ turn, keys, values)
        output.copy_(result)
        return sums

    def _place_first(self, keys: Tensor, begin: int, position: int) -> None:
        """Rotate the first tokens in slots `begin` and up for a query at `position`."""
        assert self._first is not None
        slots, first = keys.narrow(2, begin, self.n_global - begin), self._first
        if begin:
            first = first.narrow(2, begin, self.n_global - begin)
        farthest = position - self.max_distance
        if farthest >= self.n_global - 1 - begin:
            slots.copy_(first @ rotation(self.layer.rotary, farthest, keys.shape[3], keys.dtype, keys.device))
        else:  # some have not reached the ceiling yet; the origin is still 0
            places = torch.arange(self.n_global - 1 - begin, -1, -1, device=keys.device).clamp_min(farthest)
            slots.copy_(self.layer.rotary.rotate(first, places))

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
        assert self._value is not None
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
            first = self._first_logits(query[:, :, span], rotated, seen)
            if first is not None:
                total = torch.logsumexp(first, dim=-1)
                weights = torch.exp(first - total.clamp_min(torch.finfo(total.dtype).min)[..., None])
                parts.append((weigh(weights, self._value[:, :, : self.n_global]), total))
            output[:, :, span] = merge_parts(parts)
            sums.append(torch.logsumexp(torch.stack([part[1] for part in parts]), dim=0))
            start = span.stop
        return torch.cat(sums, dim=2)

    def _near(
        self, rotated: Tensor, keys: Tensor, values: Tensor, before: int, count: int
    ) -> list[tuple[Tensor, Tensor]]:
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
            """What stands there for the first chunk, and as far on for the others: (rows · count, heads, length, …)."""
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

    def _first_logits(self, query: Tensor, rotated: Tensor, seen: int) -> Tensor | None:
        """What the first tokens are to queries `seen`, `seen` + 1, …: logits, (rows, heads, queries, n_global).

        They are -inf where the token is still in the window. None if all are.
        """
        new, rotary, ceiling = query.shape[2], self.layer.rotary, self.max_distance
        if not self.n_global or seen + new <= self.n_local:
            return None
        assert self._first is not None
        # What would turn the queries to the ceiling is put on the keys, of which there are fewer.
        zero, there = (rotation(rotary, at, query.shape[3], query.dtype, query.device) for at in (0, ceiling))
        logits = self._logits(query, self._first @ zero @ there.T)
        if seen >= max(ceiling, self.n_local) + self.n_global:
            return logits
        places = torch.arange(self.n_global - 1, -1, -1, device=query.device)
        distance = torch.arange(seen, seen + new, device=query.device)[:, None] - places
        if ceiling > self.n_local:  # some are nearer, and stand where they are; the origin is still at the text's start
            logits = torch.where(distance < ceiling, self._logits(rotated, rotary.rotate(self._first, places)), logits)
        return logits.masked_fill(distance < self.n_local, -torch.inf)

    def _logits(self, query: Tensor, keys: Tensor) -> Tensor:
        return attention_logits(query, keys, scaling=self.layer.scaling, softcap=self.layer.softcap)

    def _part(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return attention_part(query, keys, values, scaling=self.layer.scaling, mask=mask, softcap=self.layer.softcap)

    def _runs(self, start: int, stop: int) -> list[tuple[slice, range]]:
        """Where tokens `start` … `stop`-1, at most a window of them, lie in the ring: slots and tokens, in order."""
        slot = start % self.n_local
        turn = min(stop, start + self.n_local - slot)
        runs = [(self.n_global + slot, range(start, turn)), (self.n_global, range(turn, stop))]
        return [(slice(slot, slot + len(tokens)), tokens) for slot, tokens in runs if tokens]

    def _make_room(self, like: Tensor, tokens: int) -> None:
        """Let the ring hold `tokens` tokens, at most a window; it grows by doubling."""
        held = 0 if self._key is None else self._key.shape[2] - self.n_global
        if tokens <= held:
            return
        rows, heads, _, width = like.shape
        size = self.n_global + min(self.n_local, max(tokens, 2 * held))
        key, value = like.new_zeros(rows, heads, size, width), like.new_zeros(rows, heads, size, width)
        if self._key is None or self._value is None:
            self._first = like.new_zeros(rows, heads, self.n_global, width)
        else:
            key[:, :, : self._key.shape[2]] = self._key
            value[:, :, : self._value.shape[2]] = self._value
        self._key, self._value = key, value

    def _move_origin(self) -> None:
        """Count positions from `stride` tokens later. The ring is full by then, and what moves is left of it soon."""
        assert self._key is not None
        ring = self._key[:, :, self.n_global :]
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

"""LongHeads (Lu et al., 2024, arXiv:2402.10685): every head picks the chunks of a long text that it reads.

Knows: queries, keys and values before rotary encoding, of texts without padding. Does not know: tokenizers, generation,
model classes.

Chunks have w tokens; a query attends to P = A / w of them (Sec. 3).
- Summary of a complete chunk c, for each head: with positions 0 … w-1, F = softmax(Q_c K_cᵀ / √d) V_c, not causal;
  f = mean of F's rows; s_c = softmax(f K_cᵀ / √d) K_c.
- Selection for a query with g complete chunks behind it: chunk 0, chunk g-1, and the P-3 chunks 1 … g-2 of the largest
  q · s_c, with q un-rotated and unscaled.
- Attention to those chunks in order and to the tail behind chunk g-1, at new positions 0 … m-1 without gaps, the query
  at m-1. Before token b attention is full.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from broadsheet.attend.base import ModelLayout, PreRopeAttention
from broadsheet.attend.kernels.buffers import append, empty
from broadsheet.attend.kernels.softmax import Part, attention_part, merge_parts
from broadsheet.attend.memory import Layer, State
from broadsheet.console import InputError

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

_BLOCK_BYTES = 24 << 20  # of rotated queries at once: the C allocator keeps tensors below 32 MiB for the next block


@dataclass
class LongHeads(PreRopeAttention):
    """Read past the training length: each head, at each token, attends to the few chunks that match its query.

    The text is cut into chunks of `chunk_size` tokens. Every complete chunk gets a summary for each query head: its
    tokens attend to one another in both directions, the mean of what they read is a query on the chunk's keys, and what
    that query reads of the keys is the summary. A token that has g complete chunks behind it (one that ends a chunk
    counts that chunk in) attends to

    - chunk 0, chunk g - 1, and `attention_length / chunk_size - 3` of the chunks between: those whose summaries have
      the largest dot product with its query, un-rotated and unscaled;
    - the tokens behind chunk g - 1 up to itself, if there are any.

    These are numbered anew, without gaps, so that no position reaches `attention_length`. Until `begin` tokens are
    read, attention is full. Heads and layers choose apart, so that together they can read the whole text: that is
    the paper's argument, and what `coverage` measures.

    Use when the answer may be anywhere in a text longer than the model was trained on, and there is memory for all
    its keys. Prefer `LMInfinite` when the recent text is enough, `InfLLM` when keys have to leave the device; prefer
    the model itself while the text fits.

    Inputs: none beside the model: nothing is trained.
    Relation: `LMInfinite` chooses nothing, `InfLLM` chooses once for a block of queries and places what it chose at one
    distance; here every token and head has a list of its own, in order. The work per token is constant but for g dot
    products, and the cache holds everything.

    Where they disagree: in the authors' code this is the rule of decoding. Its prompt encoding has another one: a token
    reads its own chunk and the one before, and leaves itself out, at a chunk's first token all of its own chunk. Here
    decoding's rule holds everywhere, so that a prompt read in one piece, in pieces or token by token gives the same.
    With the token itself put back in, the two rules differ at the last token of a chunk only, which has no tail and so
    reads one chunk less. The authors' code has no shared key heads; here summaries and choices are each query head's
    own. Chunks whose scores are equal, bit by bit, may be chosen in any order.

    Args:
        chunk_size: w, tokens of a chunk (the authors' configuration: 256).
        attention_length: A, more than any token attends to: a multiple of `chunk_size`, at least three chunks (the
            authors' configuration: 4096; for Llama-2, which was trained on 4096, they advise 2048 and report gibberish
            for lengths beyond the trained one).
        begin: b, tokens until which attention is full; None is `attention_length`, as in the authors' configuration,
            and it may not be less.

    Example:
        >>> from broadsheet import models
        >>> from broadsheet.attend import LongHeads
        >>> model, tokenizer = models.load("default")
        >>> inputs = tokenizer("One fact of a long text. " * 500, return_tensors="pt")
        >>> with LongHeads(chunk_size=64, attention_length=512)(model):
        ...     output = model.generate(**inputs, max_new_tokens=20, prefill_chunk_size=512)
        >>> tokenizer.decode(output[0, inputs.input_ids.shape[1] :])  # doctest: +SKIP

    Source: arXiv:2402.10685, Sec. 3; authors' code LuLuLuyi/LongHeads.
    """

    paper: ClassVar[str] = "longheads"
    chunk_size: int = 256
    attention_length: int = 4096
    begin: int | None = None

    @property
    def reach(self) -> int:
        return self.attention_length if self.begin is None else self.begin

    @property
    def most_keys(self) -> int:
        return self.reach

    def state(self, layer: Layer) -> State:
        return ChunkState(layer, self.chunk_size, self.attention_length // self.chunk_size, self.reach)

    def check(self, layout: ModelLayout) -> None:
        w, length = self.chunk_size, self.attention_length
        if w < 1 or length % w or length < 3 * w:
            raise InputError(
                f"got attention_length={length}, chunk_size={w}; expected a multiple of the chunk size, at least three"
            )
        if self.reach < length:
            raise InputError(f"got begin={self.begin}; expected at least attention_length={length}, or None")
        super().check(layout)


class ChunkState(State):
    """All keys and values of a layer, by chunks, and for each query head a summary of every complete chunk.

    A key is rotated once, by its place inside its chunk. A query is rotated once for each place in its list of chunks,
    numbered 0 to `n_chunks` - 2: with t tokens in the tail it is (n_chunks - 1 - place) * chunk_size + t - 1 behind
    the start of the chunk at that place. So no key is rotated again, and none is copied for a query of a prompt: every
    chunk meets the queries that chose it, all at once, and each query's parts merge by their log-sum-exps.

    Attributes:
        chosen_: (rows, heads, chunks), the complete chunks that the latest token attended to, ascending.
    """

    chosen_: Tensor
    # Buffers, with room for tokens to come. Keys and values end with a whole chunk.
    _key: Tensor  # (rows, kv_heads, tokens, head_dim), rotated by their places in their chunks
    _value: Tensor
    _summaries: Tensor  # (rows, heads, complete chunks, head_dim), float32 or wider: close scores must not become equal
    _query: Tensor  # the unfinished chunk's, rotated by their places: its summary will need them
    _early: Tensor  # the first `begin` keys, rotated by their true positions, until they are all read

    def __init__(self, layer: Layer, chunk_size: int, n_chunks: int, begin: int) -> None:
        super().__init__(layer)
        self.chunk_size, self.n_chunks, self.begin = chunk_size, n_chunks, begin

    @property
    def summaries(self) -> Tensor:
        """(rows, heads, complete chunks, head_dim)."""
        return self._summaries[:, :, : self.seen // self.chunk_size]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read the next tokens, as in `State.attend`."""
        if not self.seen:
            self._key = self._value = self._early = empty(key, key.dtype)
            self._query = empty(query, query.dtype)
            self._summaries = empty(query, torch.promote_types(query.dtype, torch.float32))
        start, w, rotate = self.seen, self.chunk_size, self.layer.rotary.rotate
        self.seen += query.shape[2]
        places = torch.arange(start, self.seen, device=query.device) % w  # 0 … w-1 in each chunk
        own = rotate(query, places)
        self._key = append(self._key, start, rotate(key, places), w)
        self._value = append(self._value, start, value, w)
        self._summarise(own, start)

        outputs = []
        at = start
        if at < self.begin:  # i < b: full attention
            at = min(self.begin, self.seen)
            outputs.append(self._attend_all(query[:, :, : at - start], key[:, :, : at - start], start))
        while at < self.seen:
            stop = min(self.seen, at // w * w + self._block(query))
            block = slice(at - start, stop - start)
            outputs.append(self._attend_chosen(query[:, :, block], own[:, :, block], at))
            at = stop
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)

    def attended(self, tokens: Tensor) -> Tensor:
        number = tokens // self.chunk_size  # of its chunk: (rows,)
        chosen = (self.chosen_ == number[:, None, None]).any(-1).float().mean(1)
        return torch.where(number >= self.seen // self.chunk_size, 1.0, chosen)  # an unfinished chunk is always read

    def _attend_all(self, query: Tensor, key: Tensor, start: int) -> Tensor:
        """Plain causal attention of the tokens from `start`, at their true positions."""
        new = range(start, start + query.shape[2])
        query, key = self.layer.rotary.rotate(query, new), self.layer.rotary.rotate(key, new)
        parts = [self._part(query, key, self._value[:, :, start : new.stop], causal=len(new) > 1)]
        if start:
            parts.append(self._part(query, self._early[:, :, :start], self._value[:, :, :start]))
        self._early = append(self._early, start, key) if new.stop < self.begin else empty(key, key.dtype)
        self.chosen_ = torch.arange(new.stop // self.chunk_size, device=key.device).expand(*query.shape[:2], -1)
        return merge_parts(parts)

    def _attend_chosen(self, query: Tensor, own: Tensor, start: int) -> Tensor:
        """Attention of the tokens from `start` to chosen chunks; `own` are their queries rotated by their places."""
        w, device = self.chunk_size, query.device
        seen = range(start + 1, start + 1 + query.shape[2])
        chosen = self._choose(query, seen)
        self.chosen_ = chosen[..., -1].clone()

        # Attention: the query at m-1, seen from the start of the chunk at each place of its list.
        behind = torch.arange(self.n_chunks - 1, 0, -1, device=device)[:, None] * w
        positions = behind + torch.arange(seen.start, seen.stop, device=device) % w - 1  # (places, queries)
        if len(seen) > 1:
            return merge_parts([*self._attend_chunks(query, positions, chosen), self._attend_tail(own, start)])
        parts = self._attend_list(query, positions[:, 0], chosen[..., 0], seen.start // w - 1)
        return merge_parts([*parts, self._attend_tail(own, start)] if seen.start % w else parts)

    def _choose(self, query: Tensor, seen: range) -> Tensor:
        """The complete chunks that each query attends to, ascending: (rows, heads, n_chunks - 1, queries).

        Args:
            query: (rows, heads, queries, head_dim), un-rotated.
            seen: how many tokens each query has read, itself included.
        """
        least, most = seen[0] // self.chunk_size, seen[-1] // self.chunk_size
        complete = torch.arange(seen.start, seen.stop, device=query.device) // self.chunk_size
        between = self._summaries[:, :, 1 : most - 1]
        # Selection: q · s_c for the chunks 1 … g-2, (rows, heads, queries, chunks)
        scores = torch.matmul(query.to(between.dtype), between.transpose(-1, -2))
        if least < most:
            later = torch.arange(1, most - 1, device=query.device) > complete[:, None] - 2
            scores.masked_fill_(later, -torch.inf)
        best = scores.topk(self.n_chunks - 3).indices.sort().values.transpose(2, 3) + 1
        last = (complete - 1).expand(*best.shape[:2], 1, -1)
        # Selection: {0}, the P-3 best, {g-1}
        return torch.cat((torch.zeros_like(last), best, last), 2)

    def _attend_chunks(self, query: Tensor, positions: Tensor, chosen: Tensor) -> list[Part]:
        """Each query with the chunks of its list, a part for every place: chunk by chunk, with all that chose it.

        Args:
            query: (rows, heads, queries, head_dim), un-rotated.
            positions: (places, queries), the position of a query relative to the start of the chunk at a place.
            chosen: (rows, heads, places, queries).
        """
        key, value, first = self._by_chunk()
        placed = query.new_empty(*chosen.shape, query.shape[-1])
        for place, at in enumerate(positions):  # one at a time, which stays in a core's cache
            placed[:, :, place] = self.layer.rotary.rotate(query, at)
        output, sums = torch.empty_like(placed), placed.new_empty(chosen.shape, dtype=self._summaries.dtype)
        flat, flat_output, flat_sums = placed.flatten(0, 3), output.flatten(0, 3), sums.flatten()
        which = (first[..., None, None] + chosen).flatten()
        for chunk, group in enumerate(which.argsort().split(which.bincount(minlength=len(key)).tolist())):
            if len(group):
                mine = flat.index_select(0, group)[None, None]
                found, its_sums = self._part(mine, key[None, None, chunk], value[None, None, chunk])
                flat_output.index_copy_(0, group, found[0, 0])
                flat_sums.index_copy_(0, group, its_sums[0, 0])
        return list(zip(output.unbind(2), sums.unbind(2), strict=True))

    def _attend_list(self, query: Tensor, positions: Tensor, chosen: Tensor, last: int) -> list[Part]:
        """As `_attend_chunks`, for one query: (rows, heads, 1, head_dim), (places,) and (rows, heads, places)."""
        key, value, first = self._by_chunk()
        placed = self.layer.rotary.rotate(query.expand(-1, -1, len(positions), -1), positions)
        which = (first[..., None] + chosen).flatten(0, 1)
        parts = []
        for place, one in enumerate(placed.split(1, 2)):
            if place in (0, len(positions) - 1):  # the same chunk for all heads: nothing to copy
                begin = 0 if place == 0 else last * self.chunk_size
                near = slice(begin, begin + self.chunk_size)
                parts.append(self._part(one, self._key[:, :, near], self._value[:, :, near]))
            else:
                own = (held.index_select(0, which[:, place]).unflatten(0, one.shape[:2]) for held in (key, value))
                parts.append(self._part(one, *own))
        return parts

    def _by_chunk(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values, (chunks of all rows and key heads, chunk_size, head_dim), and where each head's begin."""
        rows, kv_heads, room, width = self._key.shape
        key, value = (held.view(-1, self.chunk_size, width) for held in (self._key, self._value))
        first = torch.arange(0, len(key), room // self.chunk_size, device=key.device).view(rows, kv_heads)
        return key, value, first.repeat_interleave(self.layer.group, 1)

    def _attend_tail(self, own: Tensor, start: int) -> Part:
        """Each token from `start` with its unfinished chunk up to itself: nothing if it ends the chunk."""
        w, stop = self.chunk_size, start + own.shape[2]
        parts = []
        for chunk in range(start // w * w, stop, w):
            begin, end = max(start, chunk), min(stop, chunk + w)
            output, sums = self._part(
                own[:, :, begin - start : end - start],
                self._key[:, :, chunk:end],
                self._value[:, :, chunk:end],
                causal=end - begin > 1,
            )
            if end == chunk + w:
                sums[..., -1] = -torch.inf
            parts.append((output, sums))
        return _join(parts)

    def _summarise(self, own: Tensor, start: int) -> None:
        """Summaries of the chunks that the tokens from `start` complete; the unfinished chunk's queries are kept."""
        w, done, held = self.chunk_size, start // self.chunk_size, start % self.chunk_size
        complete = self.seen // w - done
        if complete:
            queries = torch.cat((self._query[:, :, :held], own), 2) if held else own
            span = slice(done * w, (done + complete) * w)
            query, key, value = (
                x.unflatten(2, (complete, w)).transpose(1, 2).flatten(0, 1)  # chunks as rows
                for x in (queries[:, :, : complete * w], self._key[:, :, span], self._value[:, :, span])
            )
            # f = mean of the rows of F = softmax(Q_c K_cᵀ / √d) V_c, (rows · chunks, heads, 1, head_dim)
            pooled = self._part(query, key, value)[0].mean(2, keepdim=True)
            # s_c = softmax(f K_cᵀ / √d) K_c, (rows, heads, chunks, head_dim)
            summary = self._part(pooled, key, key)[0].unflatten(0, (-1, complete)).squeeze(3).transpose(1, 2)
            self._summaries = append(self._summaries, done, summary)
            own, held = queries[:, :, complete * w :], 0
        self._query = append(self._query, held, own, w)

    def _part(self, query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Part:
        layer = self.layer
        return attention_part(query, key, value, scaling=layer.scaling, softcap=layer.softcap, causal=causal)

    def _block(self, query: Tensor) -> int:
        """Tokens read at once, in whole chunks, so that their queries for all places take about `_BLOCK_BYTES`."""
        chunk = query[:, :, 0].nbytes * (self.n_chunks - 1) * self.chunk_size
        return max(_BLOCK_BYTES // chunk, 1) * self.chunk_size


def coverage(cache: Cache) -> list[float]:
    """The share of the text that the heads of a layer read together for the latest token.

    Args:
        cache: one that `LongHeads` has filled.

    Returns:
        For each layer with chunks, in order, how many of the complete chunks at least one head attended to, in [0, 1];
        the mean over rows.

    Example:
        >>> with LongHeads()(model):  # doctest: +SKIP
        ...     coverage(model(input_ids).cache)
    """
    shares = []
    for layer in cache.layers:
        states = [state for state in getattr(layer, "states", ()) if isinstance(state, ChunkState)]
        read = [(row, state.seen // state.chunk_size) for state in states if state.seen for row in state.chosen_]
        if found := [row.unique().numel() / complete for row, complete in read if complete]:
            shares.append(sum(found) / len(found))
    return shares


def _join(parts: list[Part]) -> Part:
    """Parts of different queries, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([output for output, _ in parts], 2), torch.cat([sums for _, sums in parts], 2)

"""InfLLM (Xiao et al., 2024, arXiv:2402.04617): what leaves the window goes into blocks, and a few of them come back.

Knows: queries, keys and values before rotary encoding, of texts without padding. Does not know: tokenizers, generation,
model classes, where blocks are stored (`kernels.blocks`).

A text is read in execution blocks X of E queries. For each (Sec. 3):
- Step 1, window: keys at distances 0 <= d < l_L, at their true distances.
- Step 2, lookup: relevance(B) = Σ_h q̄_h · rep_h(B), with q̄ the mean of X's queries at the far angle and rep_h(B) the
  mean of block B's representative keys, un-rotated; the k_m blocks of the largest relevance.
- Step 3, far part: those blocks, the first tokens I, and what waits to become either, all at the far angle; one softmax
  with Step 1.
- Step 4, score r_m of a token: the attention that it received in Step 1, for each head.
- Step 5, update: what left the window fills I, then blocks of l_bs tokens; the r_k tokens of the highest scores
  represent their block.
- Step 6, offload: blocks are kept on the host, and copies of those in use on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from broadsheet.attend.base import ModelLayout, PreRopeAttention
from broadsheet.attend.kernels.blocks import Blocks
from broadsheet.attend.kernels.buffers import moved
from broadsheet.attend.kernels.joint import Keys, attend_jointly, how_often
from broadsheet.attend.kernels.softmax import attention_logits, shared_mask
from broadsheet.attend.memory import Bytes, Layer, State
from broadsheet.console import InputError

_MOST_QUERIES = 256  # read at once, unless a block or execution block ends before
_FEWEST_QUERIES = 32  # read at once, so that matrix products are efficient


@dataclass
class InfLLM(PreRopeAttention):
    """Read texts of any length in a window, and look up in each layer the few blocks of older text that matter now.

    The last `n_local` tokens are attended at their true distances. The first `n_init` tokens, and the `top_k` older
    blocks whose representative keys match the query best, are attended as well, all of them as if they stood
    `far_distance` tokens back, so that no distance is new to the model. All keys share one softmax. A token between the
    window and the last complete block is always attended, as the first tokens are.

    Use when a text is longer than the model was trained on, or than the device's memory takes, and what matters may
    be anywhere in it. Prefer `LMInfinite` when the recent text is enough: it looks nothing up and is faster; prefer
    the model itself while the text fits.

    Inputs: none beside the model: nothing is trained.
    Relation: with `top_k=0` nothing is remembered but the first tokens, and this is `LMInfinite` with these placed at
    `far_distance`. `LongHeads` chooses chunks for each head and keeps all keys on the device.

    Args:
        n_local: l_L, tokens of the window, the query's own included (Sec. 4.1: 4096).
        n_init: first tokens, which are always attended (Sec. 4.1: 128).
        block_size: l_bs, tokens of a block (Sec. 4.1: 128).
        top_k: k_m, blocks looked up; all of them while there are no more (Sec. 4.1: 96 for Mistral, 32 for Llama-3,
            as many tokens again as the window's; the authors' configurations have 16).
        representatives: r_k, tokens whose mean key stands for a block, for each query head (Sec. 4.1: 4). With
            `block_size` of them it is the block's mean key.
        execution_block: queries of a prompt that share a lookup, by their mean (Sec. 4.1: 512). With 1, each looks up
            blocks of its own, as in generation, and a text gives the same however it is cut into forward passes. With
            more a prompt is read faster, but which blocks an early query of an execution block reads then depends on
            the later ones: right for a prompt, wrong for measuring how well a text is predicted. Execution blocks end
            at multiples of `execution_block` tokens from the text's first one, and where a forward pass ends; a prompt
            in pieces that end at such multiples gives the same as in one piece.
        far_distance: where the first tokens and the looked-up ones are placed; None is `n_local` - 1, as in the
            authors' code; the paper says `n_local`.
        score: what makes a token representative. `"probability"`, as in the authors' code: the attention that all
            queries gave it while it was in the window. `"logit"`, as in the paper's text: its mean logit with the
            next `n_local` queries.
        per_head: every query head looks up blocks of its own, which is several times slower; otherwise a block's
            relevance is summed over the layer's heads.
        offload: keep the blocks in the host's memory; `"auto"` does so for models on CUDA.
        max_cached_blocks: blocks kept on the host of which a copy stays on the device; the least recently used one is
            dropped first (authors' configurations: 32); None is four times `top_k`.

    Where they disagree: the authors' prefill attends some tokens twice, in the window and as distant ones, for all but
    the last query of an execution block; here every token counts once. Their decoding has no such fault. They share a
    lookup in prefill, and so break causality as described above; the default here does not.

    Memory: if the blocks are kept on the host, all that grows with the text on the model's device is one representative
    for each block and query head.

    Example:
        >>> from broadsheet import models
        >>> from broadsheet.attend import InfLLM
        >>> model, tokenizer = models.load("default")
        >>> inputs = tokenizer("One fact of a long text. " * 500, return_tensors="pt")
        >>> with InfLLM(n_local=512, top_k=8)(model):
        ...     output = model.generate(**inputs, max_new_tokens=20, prefill_chunk_size=512)
        >>> tokenizer.decode(output[0, inputs.input_ids.shape[1] :])  # doctest: +SKIP

    Source: arXiv:2402.04617, Sec. 3; authors' code thunlp/InfLLM.
    """

    paper: ClassVar[str] = "infllm"
    n_local: int = 4096
    n_init: int = 128
    block_size: int = 128
    top_k: int = 32
    representatives: int = 4
    execution_block: int = 1
    far_distance: int | None = None
    score: Literal["probability", "logit"] = "probability"
    per_head: bool = False
    offload: bool | Literal["auto"] = "auto"
    max_cached_blocks: int | None = None

    @property
    def reach(self) -> int:
        return max(self.n_local, self.distance)

    @property
    def distance(self) -> int:
        """Where distant tokens are placed."""
        return self.n_local - 1 if self.far_distance is None else self.far_distance

    @property
    def most_keys(self) -> int:
        """Window, first tokens, blocks, and what waits to become a block until its last token was read."""
        waiting = self.block_size + self.execution_block - 1 if self.top_k else 0
        return self.n_local + self.n_init + self.top_k * self.block_size + waiting

    def state(self, layer: Layer) -> State:
        return InfLLMState(layer, self)

    def check(self, layout: ModelLayout) -> None:
        least = {"n_local": 1, "n_init": 0, "block_size": 1, "top_k": 0, "execution_block": 1, "far_distance": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"got {name}={value}; expected at least {bound}")
        if not 1 <= self.representatives <= self.block_size:
            raise InputError(
                f"got representatives={self.representatives}; expected 1 to {self.block_size}, the tokens of a block"
            )
        if self.max_cached_blocks is not None and self.max_cached_blocks < self.top_k:
            raise InputError(
                f"got max_cached_blocks={self.max_cached_blocks}; expected at least top_k={self.top_k}, "
                "the blocks that are attended at once"
            )
        if self.score not in ("probability", "logit"):
            raise InputError(f'got score={self.score!r}; expected "probability" or "logit"')
        if self.offload not in (True, False, "auto"):
            raise InputError(f'got offload={self.offload!r}; expected True, False or "auto"')
        super().check(layout)


class InfLLMState(State):
    """What a layer remembers: first tokens, blocks, and the remainder: the window and tokens not yet in a block.

    Attributes:
        oldest: the first token of the remainder.
        blocks: the tokens that left the remainder, but for the first ones.
        representatives: (rows, blocks, heads, head_dim), float32 or wider.
        selected: numbers of the blocks last looked up, (rows, 1 or heads, queries or 1, blocks), in no order.
    """

    blocks: Blocks
    representatives: Tensor
    selected: Tensor
    _first: Tensor  # the first tokens, keys and values: (rows, 2, kv_heads, tokens, head_dim)
    # Buffers whose first column is token `_base`. Of each token: its key and value, before rotary encoding; its key at
    # the position of the column; and, for each query head, how representative it is so far.
    _pair: Tensor
    _placed: Tensor
    _score: Tensor

    def __init__(self, layer: Layer, method: InfLLM) -> None:
        super().__init__(layer)
        self.method = method
        self.oldest = self._base = 0
        self._searched = 0  # blocks that there were at the last lookup
        self._scored = method.top_k > 0 and method.representatives < method.block_size

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not self.seen:
            self._begin(key)
        pieces = list(self._pieces(query.shape[2]))
        read = [self._read(query[:, :, piece], key[:, :, piece], value[:, :, piece]) for piece in pieces]
        return read[0] if len(read) == 1 else torch.cat(read, 2)

    def select(self, rows: Tensor) -> Self:
        chosen = super().select(rows)
        if self.seen:
            chosen.blocks = self.blocks.select(rows)
        return chosen

    def attended(self, tokens: Tensor) -> Tensor:
        method = self.method
        number = torch.div(tokens - method.n_init, method.block_size, rounding_mode="floor")  # of its block: (rows,)
        always = (tokens < method.n_init) | (self.seen - tokens <= method.n_local)
        if method.top_k:  # what waited to become a block when others were looked up
            always |= number >= self._searched
        if not self._searched:
            return always.float()
        looked_up = (self.selected[:, :, -1] == number[:, None, None]).any(-1).float().mean(1)
        return torch.where(always, 1.0, looked_up)

    def bytes(self) -> Bytes:
        if not self.seen:
            return Bytes(0, 0)
        held = (self._first, self._pair, self._placed, self._score, self.representatives)
        on_device, off_device = self.blocks.bytes()
        return Bytes(on_device + sum(tensor.numel() * tensor.element_size() for tensor in held), off_device)

    def _begin(self, key: Tensor) -> None:
        """Make the empty buffers."""
        method, heads, rows = self.method, self.layer.heads, len(key)
        wide = torch.promote_types(key.dtype, torch.float32)
        self._first = self._pair = key.new_empty(rows, 2, key.shape[1], 0, key.shape[3])
        self._placed = key[:, :, :0]
        self._score = key.new_empty(rows, heads if self._scored else 0, 0, dtype=wide)
        self.representatives = key.new_empty(rows, 0, heads, key.shape[-1], dtype=wide)
        self._scales = not torch.equal(self._rotate(key[:, :, :1], 0), key[:, :, :1])
        off_device = key.is_cuda if method.offload == "auto" else method.offload
        loaded = 4 * method.top_k if method.max_cached_blocks is None else method.max_cached_blocks
        self.blocks = Blocks(rows, method.block_size, heads if method.per_head else 1, loaded if off_device else None)

    def _pieces(self, new: int) -> Iterator[slice]:
        """The new tokens, cut where a shared lookup ends or, if none is shared, where a block is completed."""
        method, position, stop = self.method, self.seen, self.seen + new
        first = method.n_init + method.n_local + method.block_size  # tokens that complete the first block
        while position < stop:
            if method.top_k and method.execution_block > 1:
                end = position + method.execution_block - position % method.execution_block
            elif method.top_k and position >= first:
                end = position + method.block_size - (position - first) % method.block_size
            else:
                end = first if method.top_k else stop
            end = min(end, stop, position + max(_MOST_QUERIES, method.execution_block))
            yield slice(position - stop + new, end - stop + new)
            position = end

    def _read(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read a piece."""
        n_local, start, new = self.method.n_local, self.seen, query.shape[2]
        near = self._append(query, key, value)  # (rows, heads, queries, head_dim)
        distant = self._distant(query) if self.seen > n_local else None
        outputs = []
        keys = min(n_local, self.seen) + (distant.key.shape[2] if distant else 0)
        size = max(_FEWEST_QUERIES, how_often(query.shape[0] * query.shape[1] * keys, query.device))
        for begin in range(0, new, size):
            part = slice(begin, min(new, begin + size))
            first = max(self.oldest, start + part.start - n_local + 1)  # the oldest key in a window
            columns = self._columns(first, start + part.stop)
            mask = None
            if part.stop - part.start > 1:
                newest, count = start + part.start - first, columns.stop - columns.start
                mask = shared_mask(part.stop - part.start, count, newest, n_local, near.dtype, near.device)
            # Step 1, (rows, kv_heads, keys, head_dim); Step 3: one softmax with the far part
            window = Keys(near[:, :, part], self._placed[:, :, columns], self._pair[:, 1, :, columns], mask)
            output, received = attend_jointly(
                [window, distant.of(part)] if distant else [window],
                scaling=self.layer.scaling,
                softcap=self.layer.softcap,
            )
            outputs.append(output)
            if self._scored and self.method.score == "probability":
                self._score[..., columns] += received  # Step 4, as the authors' code has it
        if self._scored and self.method.score == "logit":
            self._add_logits(near)  # Step 4, as the paper's text has it
        self._move_on()
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)

    def _distant(self, query: Tensor) -> Keys:
        """The keys beyond the windows of these queries: first tokens, blocks, and tokens that wait to become either."""
        method, new = self.method, query.shape[2]
        far = self._rotate(query, method.distance)  # Step 2: R(far_distance) q
        if self._scales:
            # Keys before rotary encoding are keys at position 0, but for the scale of the model's tables (YaRN).
            far = self._rotate(far, 0)
        self.selected = self._look_up(far)
        wanted, chosen = _union(self.selected, len(self.blocks))
        # Without blocks, only first tokens wait.
        stop = min(self.seen - method.n_local, self.seen if method.top_k else method.n_init)
        waiting = self._columns(self.oldest, max(self.oldest, stop))
        # Step 3: [I, blocks, waiting], (rows, 2, heads, keys, head_dim), all un-rotated
        pair = self.blocks.load(wanted, self._first, self._pair[:, :, :, waiting])
        if new == 1:
            return Keys(far, pair[:, 0], pair[:, 1])
        before, behind = self._first.shape[3], waiting.stop - waiting.start
        mask = far.new_zeros(*(chosen.shape[:2] if chosen is not None else (1, 1)), new, pair.shape[3])
        if chosen is not None:
            hidden = ~chosen.repeat_interleave(method.block_size, -1)
            mask[..., before : mask.shape[-1] - behind].masked_fill_(hidden, -torch.inf)
        if behind:
            newest = self.seen - new - method.n_local - self.oldest
            mask[..., -behind:] = shared_mask(new, behind, newest, None, far.dtype, far.device)
        return Keys(far, pair[:, 0], pair[:, 1], mask)

    def _look_up(self, far: Tensor) -> Tensor:
        """Step 2: the blocks whose representatives match best, for each query or the mean of all; all if these are few.

        Returns:
            (rows, choosers, queries or 1, blocks).
        """
        rows, choosers, count, top_k = far.shape[0], self.blocks.choosers, len(self.blocks), self.method.top_k
        self._searched = count
        if count <= top_k:
            return torch.arange(count, device=far.device).expand(rows, choosers, 1, count)
        far = far.to(self.representatives.dtype)
        if self.method.execution_block > 1 and far.shape[2] > 1:
            far = far.mean(2, keepdim=True)  # q̄_h
        if choosers == 1:  # the sum over heads is a product of longer vectors
            far, known = far.transpose(1, 2).flatten(2)[:, None], self.representatives.flatten(2)[:, None]
        else:
            known = self.representatives.transpose(1, 2)
        # relevance(B) = Σ_h q̄_h · rep_h(B), (rows, choosers, queries or 1, blocks)
        return torch.matmul(far, known.transpose(2, 3)).topk(top_k, -1).indices

    def _add_logits(self, near: Tensor) -> None:
        """Step 4, r_m = mean of q·k_m over the next l_L queries: add the logits of keys with the newest queries, those
        that are 1 to `n_local` tokens ahead."""
        start, new = self.seen - near.shape[2], near.shape[2]
        tokens = torch.arange(max(self.oldest, start - self.method.n_local), self.seen, device=near.device)
        columns = self._columns(self.seen - len(tokens), self.seen)
        near, keys = near.to(self._score.dtype), self._placed[:, :, columns].to(self._score.dtype)
        if new == 1:
            self._score[..., columns] += attention_logits(near, keys, scaling=1.0)[:, :, 0] * (tokens < start)
            return
        # The queries that follow a key are consecutive: their sum is a difference of two running sums.
        running = torch.nn.functional.pad(near.cumsum(2), (0, 0, 1, 0))
        begin, end = (tokens + 1 - start).clamp_min(0), (tokens + self.method.n_local + 1 - start).clamp_max(new)
        ahead = (running[:, :, end] - running[:, :, begin]).unflatten(1, (keys.shape[1], -1))
        self._score[..., columns] += (ahead * keys[:, :, None]).sum(-1).flatten(1, 2)

    def _append(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Put new tokens behind the remainder, which moves to the front of new buffers when these are full.

        Returns:
            The queries at the positions of their tokens' columns.
        """
        held, new = self.seen - self.oldest, key.shape[2]
        if self._columns(self.seen, self.seen + new).stop > self._placed.shape[2]:
            method, old = self.method, self._columns(self.oldest, self.seen)
            room = max(_MOST_QUERIES, method.execution_block)
            size = method.n_local + method.block_size + room if held >= method.n_local else held + max(held, new)
            self._pair, self._score = moved(self._pair, -2, old, size), moved(self._score, -1, old, size)
            self._placed = moved(self._placed, -2, old, size)
            self._placed[:, :, :held] = self._rotate(self._pair[:, 0, :, :held], range(held))
            self._base = self.oldest
        columns = self._columns(self.seen, self.seen + new)
        self._pair[:, 0, :, columns], self._pair[:, 1, :, columns] = key, value
        placed = self._rotate(torch.cat((query, key), 1), range(columns.start, columns.stop))
        self._placed[:, :, columns] = placed[:, query.shape[1] :]
        self._score[..., columns] = 0
        self.seen += new
        return placed[:, : query.shape[1]]

    def _move_on(self) -> None:
        """Step 5: tokens beyond the window become first tokens, then blocks; the window always remains."""
        method = self.method
        spare = self.seen - self.oldest - method.n_local
        lacking = method.n_init - self._first.shape[3]
        if spare > 0 and lacking:
            columns = self._take(min(spare, lacking))
            self._first = torch.cat((self._first, self._pair[:, :, :, columns]), 3)
            spare = self.seen - self.oldest - method.n_local
        if spare > 0 and not method.top_k:
            self._take(spare)
        elif spare >= method.block_size:
            columns = self._take(spare // method.block_size * method.block_size)
            pair = self._pair[:, :, :, columns]
            self.blocks.add(pair)
            made = self._represent(pair[:, 0], self._score[..., columns])
            self.representatives = torch.cat((self.representatives, made), 1)

    def _represent(self, keys: Tensor, score: Tensor) -> Tensor:
        """rep_h(B): the mean of a block's r_k most representative keys, for each query head (Step 5).

        Args:
            keys: (rows, kv_heads, blocks * block_size, head_dim).
            score: (rows, heads, blocks * block_size).

        Returns:
            (rows, blocks, heads, head_dim).
        """
        size, count = self.method.block_size, self.method.representatives
        keys = keys.unflatten(2, (-1, size)).to(self.representatives.dtype)
        if not self._scored:
            return keys.mean(3).repeat_interleave(self.layer.group, 1).transpose(1, 2)
        score = score.unflatten(1, (keys.shape[1], -1)).unflatten(3, (-1, size))
        share = torch.zeros_like(score).scatter_(-1, score.topk(count, -1).indices, 1 / count)
        # (rows, kv_heads, blocks, group, block_size) @ (rows, kv_heads, blocks, block_size, head_dim)
        return torch.matmul(share.transpose(2, 3), keys).permute(0, 2, 1, 3, 4).flatten(2, 3)

    def _take(self, count: int) -> slice:
        """Take the oldest tokens out of the remainder: their columns."""
        self.oldest += count
        return self._columns(self.oldest - count, self.oldest)

    def _columns(self, first: int, stop: int) -> slice:
        """Where tokens first … stop-1 are in the buffers."""
        return slice(first - self._base, stop - self._base)

    def _rotate(self, x: Tensor, positions: int | range) -> Tensor:
        return self.layer.rotary.rotate(x, positions)


def _union(selected: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """The blocks that any query selected, and which query which of them.

    Args:
        selected: (rows, choosers, queries, blocks), none twice for a query.
        count: blocks that there are.

    Returns:
        (rows, choosers, blocks), filled up with others where choosers select more or less; and bool (rows, choosers,
        queries, blocks), or None where all queries select all of them.
    """
    if selected.shape[2] == 1:
        return selected[:, :, 0], None
    each = selected.new_zeros(*selected.shape[:3], count, dtype=torch.bool).scatter_(-1, selected, True)
    some = each.any(2)
    wanted = some.byte().topk(int(some.sum(-1).max()), -1).indices
    return wanted, each.gather(-1, wanted[:, :, None].expand(-1, -1, selected.shape[2], -1))

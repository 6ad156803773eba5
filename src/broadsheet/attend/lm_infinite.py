"""LM-Infinite (Han et al., 2024, arXiv:2308.16137): a Λ-shaped mask and a distance ceiling.

Knows: queries, keys and values before rotary encoding, and how many tokens were read. Does not know: tokenizers,
generation, model classes, how a window is kept (`kernels.window`).

Numbers such as "Rule 1" are those of the method's description: query i, key j, distance d = i - j, window of L tokens,
G first tokens.
1. The Λ mask: key j is visible to query i iff 0 <= d < L (the window, the token itself included) or j < G.
2. The ceiling: a key at distance d has the logit w(q_i, k_j, min(d, L)). With RoPE that is <R(i) q_i, R(j) k_j> in the
   window and <R(L) q_i, k_j> beyond it, k_j un-rotated. One softmax over both.
3. Middle tokens, optional: from a layer h on each head adds the k keys G <= j <= i - L of the largest logits, each at
   distance L/2: <R(L/2) q_i, k_j>.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from broadsheet.attend.base import PreRopeAttention
from broadsheet.attend.kernels import flex
from broadsheet.attend.kernels.buffers import append, empty
from broadsheet.attend.kernels.softmax import Part, attention_logits, merge_parts, softmax_part, weigh
from broadsheet.attend.kernels.window import CHUNK, WindowState, rotation
from broadsheet.attend.memory import Layer
from broadsheet.console import InputError

Backend = Literal["auto", "chunked", "flex"]
Rows = Literal["last", "all"]

LONG = 4096  # tokens of a prompt for which a GPU's compiled kernel may be worth its compilation


@dataclass
class LMInfinite(PreRopeAttention):
    """Read past the training length: a token sees the first `n_global` and the last `n_local` tokens, and none of
    them at a distance greater than `max_distance`.

    Use when a text or a stream is longer than the model was trained on, or than the cache may grow, and only the
    near past matters: the cache has a constant size, and a decoded token takes a constant time. What leaves the window
    is forgotten; to find something in the middle give `top_k`, or prefer `InfLLM` or `LongHeads`, which keep everything
    and look it up. Up to the training length, and where memory suffices, plain attention sees more.

    Inputs: any text, in one piece, in chunks, or token by token; the output is the same (but see `middle_rows`).
    Relation: with `n_global=0` it is sliding-window attention, which forgets the first tokens and with them much of the
    model's skill (paper, at 16k tokens: loss 6.43 without first tokens, 1.03 with one); with `n_local` no shorter than
    the text it is plain attention. StreamingLLM keeps the same tokens, and closes the gap between them instead of
    setting a ceiling.

    Args:
        n_global: G, first tokens that stay visible (paper: 10 or 100, with equal results; its code: n_start, 100).
        n_local: L, tokens of the window, each token itself among them (paper: as many as the model was trained on,
            which is `model.config.max_position_embeddings`; 2048 suits nearly every model and costs less).
        max_distance: the ceiling on distances, at least `n_local` - 1 (paper: L; None for `n_local`). A first token
            that has left the window keeps its true distance until it is that far. The authors' code places it at the
            ceiling at once, which is the same where the ceiling is the window.
        top_k: k middle tokens, those between the first ones and the window, that each head adds to what a query sees:
            the ones with the largest logits (paper: 5, for retrieval tasks, and none for perplexity). All of them have
            to be kept for that: memory, and the time of a token, grow with the text.
        top_k_from_layer: the first layer that does so, counted from 0 (paper: h = 5; its code: 4).
        middle_distance: the distance at which middle tokens are placed (paper: L/2; None for `n_local` // 2).
        middle_rows: which queries add middle tokens. `"last"`: the last of each forward pass, as in the authors' code,
            so the prompt's last token and every decoded one; how a prompt is cut then matters. `"all"`:
            every one, in time quadratic in the prompt's length.
        backend: how a prompt attends; single tokens always read the ring. `"chunked"`: in chunks of 192 queries, by
            PyTorch's attention. `"flex"`: by a compiled FlexAttention kernel, in tiles of 1024 queries; a new batch
            size costs a compilation. `"auto"`: on a CPU in chunks, because there the kernel takes about twice as
            long, after 4 to 27 seconds of compilation (`python benchmarks/attend_lm_infinite.py --flex`); on a GPU, for
            prompts of 4096 tokens and more, by whichever is measured to be faster the first time, which is
            reported, and kept in the cache folder.

    Raises:
        InputError: a parameter is out of range, or the ceiling beyond the model's trained length; `"flex"` together
            with `middle_rows="all"`, or where it cannot be compiled.

    Example:
        >>> from broadsheet import models
        >>> from broadsheet.attend import LMInfinite
        >>> model, tokenizer = models.load("default")
        >>> inputs = tokenizer("One fact of a long text. " * 500, return_tensors="pt")
        >>> with LMInfinite(n_local=1024)(model):
        ...     output = model.generate(**inputs, max_new_tokens=20)
        >>> tokenizer.decode(output[0, inputs.input_ids.shape[1] :])  # doctest: +SKIP

    Source: arXiv:2308.16137; authors' code Glaciohound/LM-Infinite. As there, the window is the distances 0 to L - 1,
    and the ceiling L.
    """

    paper: ClassVar[str] = "lm_infinite"
    n_global: int = 10
    n_local: int = 2048
    max_distance: int | None = None
    top_k: int = 0
    top_k_from_layer: int = 4
    middle_distance: int | None = None
    middle_rows: Rows = "last"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        counts = {"n_global": 0, "n_local": 1, "top_k": 0, "top_k_from_layer": 0}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise InputError(f"got {name}={getattr(self, name)}; expected at least {least}")
        if self.max_distance is not None and self.max_distance < self.n_local - 1:
            raise InputError(
                f"got max_distance={self.max_distance} and n_local={self.n_local}, a window that itself reaches "
                f"{self.n_local - 1} tokens back; expected at least that"
            )
        if self.middle_distance is not None and self.middle_distance < 0:
            raise InputError(f"got middle_distance={self.middle_distance}; expected at least 0")
        if self.middle_rows not in ("last", "all"):
            raise InputError(f"got middle_rows={self.middle_rows!r}; expected 'last' or 'all'")
        if self.backend not in ("auto", "chunked", "flex"):
            raise InputError(f"got backend={self.backend!r}; expected 'auto', 'chunked' or 'flex'")
        if self.top_k and self.middle_rows == "all" and self.backend == "flex":
            raise InputError("got backend='flex' with middle_rows='all'; expected backend='chunked', or 'last'")

    @property
    def reach(self) -> int:
        """The longest distance, in tokens, at which a key is placed."""
        ceiling = self.n_local if self.max_distance is None else self.max_distance
        return max(ceiling, self.middle_distance or 0) if self.top_k else ceiling

    @property
    def most_keys(self) -> int:
        return self.n_global + self.n_local + self.top_k

    def state(self, layer: Layer) -> LambdaState:
        """A new, empty state of a layer."""
        if self.top_k and layer.index >= self.top_k_from_layer:
            return MiddleState(layer, self)
        return LambdaState(layer, self)


class LambdaState(WindowState):
    """The window, and in front of it the first `n_global` tokens, at no distance greater than the ceiling.

    The first tokens are in the slots before the ring, the last of them in front. They are kept un-rotated: for a query
    of one token they are placed anew beside the ring, so that one attention call reads both. However long the text,
    that is `n_global` + `n_local` - 1 tokens and the slot of the next one.
    """

    def __init__(self, layer: Layer, method: LMInfinite) -> None:
        self.method = method
        self.n_global = method.n_global
        self.max_distance = method.n_local if method.max_distance is None else method.max_distance
        super().__init__(layer, method.n_local, self.n_global, self.max_distance)
        self._first: Tensor | None = None  # keys of the first tokens, un-rotated: (rows, kv_heads, n_global, head_dim)
        self._flex = method.backend == "flex"

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read the next tokens, as in `State.attend`."""
        if self.method.backend == "auto":
            long = query.device.type != "cpu" and query.shape[2] >= LONG
            self._flex = long and self._kernel_is_faster(query, value)
        return super().attend(query, key, value)

    def _fill_front(self, key: Tensor, value: Tensor) -> None:
        """Keep the tokens j < G."""
        if self._first is None:
            self._first = key.new_zeros(*key.shape[:2], self.n_global, key.shape[3])
        if self.seen < self.n_global:
            assert self._value is not None
            stop = min(self.n_global, self.seen + key.shape[2])
            slots, taken = slice(self.n_global - stop, self.n_global - self.seen), slice(0, stop - self.seen)
            self._first[:, :, slots] = key[:, :, taken].flip(2)
            self._value[:, :, slots] = value[:, :, taken].flip(2)

    def _place_front(self, keys: Tensor, position: int) -> int:
        """Rotate the first tokens that have left the window for one query, at `position`; the first slot in sight."""
        first, last = self._first, self.n_global
        assert first is not None
        # Rule 1: j < G and d >= L. Nearer first tokens are in the ring.
        begin = last - min(last, max(0, self.seen - self.n_local + 1))
        if begin == last:
            return begin
        slots, first = keys.narrow(2, begin, last - begin), first.narrow(2, begin, last - begin)
        # Rule 2, for a query that the ring places at its own position: k_j is placed at that position - min(d, L).
        farthest = position - self.max_distance
        if farthest >= last - 1 - begin:
            slots.copy_(first @ rotation(self.layer.rotary, farthest, keys.shape[3], keys.dtype, keys.device))
        else:  # some have not reached the ceiling yet; the origin is still 0
            places = torch.arange(last - 1 - begin, -1, -1, device=keys.device).clamp_min(farthest)
            slots.copy_(self.layer.rotary.rotate(first, places))
        return begin

    def _front_part(self, query: Tensor, rotated: Tensor, seen: int) -> Part | None:
        logits = self._first_logits(query, rotated, seen)
        if logits is None:
            return None
        assert self._value is not None
        weights, sums = softmax_part(logits)
        return weigh(weights, self._value[:, :, : self.n_global]), sums

    def _first_logits(self, query: Tensor, rotated: Tensor, seen: int) -> Tensor | None:
        """Logits of queries `seen`, `seen` + 1, … with the first tokens: (rows, heads, queries, n_global).

        They are -inf where the token is still in the window. None if all are.
        """
        new, rotary, ceiling = query.shape[2], self.layer.rotary, self.max_distance
        if not self.n_global or seen + new <= self.n_local:
            return None
        assert self._first is not None
        # Rule 2, d >= L: <R(L) q_i, k_j>. What would rotate the queries is put on the keys, of which there are fewer.
        zero, there = (rotation(rotary, at, query.shape[3], query.dtype, query.device) for at in (0, ceiling))
        logits = self._logits(query, self._first @ zero @ there.T)
        if seen >= max(ceiling, self.n_local) + self.n_global:
            return logits
        places = torch.arange(self.n_global - 1, -1, -1, device=query.device)
        distance = torch.arange(seen, seen + new, device=query.device)[:, None] - places
        if ceiling > self.n_local:  # some are nearer than the ceiling; the origin is still the text's start
            logits = torch.where(distance < ceiling, self._logits(rotated, rotary.rotate(self._first, places)), logits)
        return logits.masked_fill(distance < self.n_local, -torch.inf)  # Rule 1: those are in the window

    def _logits(self, query: Tensor, keys: Tensor) -> Tensor:
        return attention_logits(query, keys, scaling=self.layer.scaling, softcap=self.layer.softcap)

    def _meet(self, query: Tensor, keys: Tensor, values: Tensor, output: Tensor) -> Tensor | None:
        if not self._flex:
            return super()._meet(query, keys, values, output)
        assert self._value is not None
        position = self.seen - self._origin
        rotated = self.layer.rotary.rotate(query, range(position, position + query.shape[2]))
        output[:] = flex.lambda_tiles(
            rotated,
            keys,
            values,
            self._first_logits(query, rotated, self.seen),
            self._value[:, :, : self.n_global],
            n_local=self.n_local,
            seen=self.seen,
            scaling=self.layer.scaling,
            softcap=self.layer.softcap,
        )
        return None

    def _kernel_is_faster(self, query: Tensor, value: Tensor) -> bool:
        """Measured on random tensors, as long as a piece that is read at once."""
        stretch = slice(min(query.shape[2], self.stride))

        def run(backend: Backend) -> Tensor:
            given = (torch.randn_like(each[:, :, stretch]) for each in (query, value, value))
            return LambdaState(self.layer, replace(self.method, backend=backend)).attend(*given)

        shape = {
            "query": [*query.shape[:2], stretch.stop, query.shape[3]],
            "kv_heads": self.layer.kv_heads,
            "dtype": str(query.dtype),
            "n_global": self.n_global,
            "n_local": self.n_local,
        }
        return flex.faster(query.device, shape, lambda: run("chunked"), lambda: run("flex"))


class MiddleState(LambdaState):
    """The Λ-shaped memory, and for each query and head the `top_k` middle tokens whose logits are largest (Rule 3).

    Attributes:
        middle_: (rows, heads, tokens), the middle tokens that the latest query added, in no order.
    """

    middle_: Tensor

    def __init__(self, layer: Layer, method: LMInfinite) -> None:
        super().__init__(layer, method)
        self._middle_distance = method.n_local // 2 if method.middle_distance is None else method.middle_distance
        self._past_key: Tensor | None = None  # of all tokens, at angle 0: (rows, kv_heads, room, head_dim)
        self._past_value: Tensor | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read the next tokens, as in `State.attend`."""
        new = query.shape[2]
        if self._past_key is None or self._past_value is None:
            self._past_key, self._past_value = empty(key), empty(value)
        self._past_key = append(self._past_key, self.seen, self.layer.rotary.rotate(key, 0))
        self._past_value = append(self._past_value, self.seen, value)
        plain = 0 if self.method.middle_rows == "all" else new - 1
        outputs = []
        if plain:
            outputs.append(super().attend(*(each[:, :, :plain] for each in (query, key, value))))
        for start, stop in self.pieces(new - plain):
            asking, *new_ones = (each[:, :, plain + start : plain + stop] for each in (query, key, value))
            seen, output = self.seen, torch.empty_like(asking)
            sums = self.read(asking, new_ones[0], new_ones[1], output)
            if self.seen > self.n_local + self.n_global:
                assert sums is not None  # one token, or chunks
                output = merge_parts([(output, sums), self._middle(asking, seen)])
            outputs.append(output)
        return torch.cat(outputs, dim=2)

    def _middle(self, query: Tensor, seen: int) -> Part:
        """Attention of tokens `seen`, `seen` + 1, … to the middle tokens that each of their heads ranks first."""
        assert self._past_key is not None
        assert self._past_value is not None
        query = self.layer.rotary.rotate(query, self._middle_distance)
        rows, _, new, width = query.shape
        parts = []
        for start in range(0, new, CHUNK):
            asking = query[:, :, start : start + CHUNK]
            # Rule 3: of query i, the middle tokens are G … i - L, each at distance L/2.
            newest = torch.arange(seen + start, seen + start + asking.shape[2], device=query.device) - self.n_local
            middle = slice(self.n_global, max(self.n_global, seen + start + asking.shape[2] - self.n_local))
            logits = self._logits(asking, self._past_key[:, :, middle])
            tokens = torch.arange(middle.start, middle.stop, device=query.device)
            logits = logits.masked_fill(tokens > newest[:, None], -torch.inf)
            best, which = logits.topk(min(self.method.top_k, len(tokens)), dim=-1)
            self.middle_ = which[:, :, -1] + self.n_global
            weights, sums = softmax_part(best)
            index = which.reshape(rows, self.layer.kv_heads, -1, 1).expand(-1, -1, -1, width)
            values = self._past_value[:, :, middle].gather(2, index).reshape(*which.shape, width)
            parts.append(((weights[..., None, :].to(values.dtype) @ values)[..., 0, :], sums))
        output, sums = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
        return output, sums

"""LM-Infinite (Han et al., 2024, arXiv:2308.16137): a Λ-shaped mask and a distance ceiling.

Knows: queries, keys and values before rotary encoding, and how many tokens were read. Does not know: tokenizers,
generation, model classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from broadsheet.attend.base import PreRopeAttention
from broadsheet.attend.kernels import flex
from broadsheet.attend.kernels.softmax import merge_parts
from broadsheet.attend.kernels.window import CHUNK, WindowState
from broadsheet.attend.memory import Layer
from broadsheet.console import InputError

Backend = Literal["auto", "chunked", "flex"]
Rows = Literal["last", "all"]

LONG = 4096  # tokens of a prompt for which a GPU's compiled kernel may be worth its compilation


@dataclass
class LMInfinite(PreRopeAttention):
    """Read on past the training length: a token sees the first `n_global` and the last `n_local` tokens, and none of
    them at a distance greater than `max_distance`.

    Use when a text or a stream is longer than the model was trained on, or than the cache may grow, and what counts is
    near: the cache has a constant size, and a decoded token takes a constant time. What leaves the window is forgotten;
    for a needle in the middle give `top_k`, or prefer `InfLLM` or `LongHeads`, which keep everything and look it up. Up
    to the training length, and where memory is no question, plain attention sees more.

    Inputs: any text, in one piece, in chunks, or token by token; the output is the same (but see `middle_rows`).
    Relation: with `n_global=0` it is sliding-window attention, which forgets the first tokens and with them much of the
    model's skill (paper, at 16k tokens: loss 6.43 without first tokens, 1.03 with one); with `n_local` no shorter than
    the text it is plain attention. StreamingLLM keeps the same tokens, and closes the gap between them instead of
    setting a ceiling.

    Args:
        n_global: first tokens that stay visible (paper: 10 or 100, with equal results; its code: n_start, 100).
        n_local: tokens of the window, each token itself among them (paper: L, as many as the model was trained on,
            which is `model.config.max_position_embeddings`; 2048 suits nearly every model and costs less).
        max_distance: the ceiling on distances, at least `n_local` - 1 (paper: L; None for `n_local`). A first token
            that has left the window stands where it is until it is that far. The authors' code puts it there at once,
            which is the same where the ceiling is the window.
        top_k: middle tokens, those between the first ones and the window, that each head adds to what a query sees:
            the ones with the largest logits (paper: 5, for retrieval tasks, and none for perplexity). All of them have
            to be kept for that: memory, and the time of a token, grow with the text.
        top_k_from_layer: the first layer that does so, counted from 0 (paper: h = 5; its code: 4).
        middle_distance: where middle tokens stand (paper: L/2; None for `n_local` // 2).
        middle_rows: which queries add middle tokens. `"last"`: the last of each forward pass, as in the authors' code,
            so the prompt's last token and every decoded one; how a prompt is cut then makes a difference. `"all"`:
            every one, in time quadratic in the prompt's length.
        backend: how a prompt attends; single tokens always read the ring. `"chunked"`: in chunks of 192 queries, by
            PyTorch's attention. `"flex"`: by a compiled FlexAttention kernel, in tiles of 1024 queries; a new batch
            size costs a compilation. `"auto"`: on a CPU in chunks, because there the kernel takes about twice as
            long, after 4 to 27 seconds of compilation (`python benchmarks/attend_lm_infinite.py --flex`); on a GPU, for
            prompts of 4096 tokens and more, by whichever is measured to be faster the first time, which is said, and
            kept in the cache folder.

    Raises:
        InputError: a parameter is out of range, or the ceiling beyond the model's trained length; `"flex"` together
            with `middle_rows="all"`, or where it cannot be compiled.

    Example:
        >>> with LMInfinite(n_local=4096)(model):  # doctest: +SKIP
        ...     output = model.generate(**inputs, max_new_tokens=64)

    Source: arXiv:2308.16137; authors' code Glaciohound/LM-Infinite. As there, the window is the distances 0 to L - 1,
    and the ceiling L.
    """

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

    def state(self, layer: Layer) -> LambdaState:
        """A new, empty state of a layer."""
        if self.top_k and layer.index >= self.top_k_from_layer:
            return MiddleState(layer, self)
        return LambdaState(layer, self)


class LambdaState(WindowState):
    """The Λ-shaped memory, attended to by the backend that the method names."""

    def __init__(self, layer: Layer, method: LMInfinite) -> None:
        super().__init__(layer, method.n_global, method.n_local, method.max_distance)
        self.method = method
        self._flex = method.backend == "flex"

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read the next tokens, as `State.attend` says."""
        if self.method.backend == "auto":
            long = query.device.type != "cpu" and query.shape[2] >= LONG
            self._flex = long and self._kernel_is_faster(query, value)
        return super().attend(query, key, value)

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
        """Asked of a stretch of random text, as long as one that is read at once."""
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
    """The Λ-shaped memory, and for each query and head the `top_k` middle tokens whose logits are largest."""

    def __init__(self, layer: Layer, method: LMInfinite) -> None:
        super().__init__(layer, method)
        self._middle_distance = method.n_local // 2 if method.middle_distance is None else method.middle_distance
        self._past_key: Tensor | None = None  # of all tokens, at angle 0, with room for more
        self._past_value: Tensor | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Read the next tokens, as `State.attend` says."""
        new = query.shape[2]
        self._keep(self.layer.rotary.rotate(key, 0), value)
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

    def _middle(self, query: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """Attention of tokens `seen`, `seen` + 1, … to the middle tokens that each of their heads ranks first."""
        assert self._past_key is not None
        assert self._past_value is not None
        query = self.layer.rotary.rotate(query, self._middle_distance)
        rows, _, new, width = query.shape
        parts = []
        for start in range(0, new, CHUNK):
            asking = query[:, :, start : start + CHUNK]
            # Of query i, the middle tokens are n_global … i - n_local.
            newest = torch.arange(seen + start, seen + start + asking.shape[2], device=query.device) - self.n_local
            middle = slice(self.n_global, max(self.n_global, seen + start + asking.shape[2] - self.n_local))
            logits = self._logits(asking, self._past_key[:, :, middle])
            tokens = torch.arange(middle.start, middle.stop, device=query.device)
            logits = logits.masked_fill(tokens > newest[:, None], -torch.inf)
            best, which = logits.topk(min(self.method.top_k, len(tokens)), dim=-1)
            sums = torch.logsumexp(best, dim=-1)
            weights = torch.exp(best - sums.clamp_min(torch.finfo(sums.dtype).min)[..., None]).to(query.dtype)
            index = which.reshape(rows, self.layer.kv_heads, -1, 1).expand(-1, -1, -1, width)
            values = self._past_value[:, :, middle].gather(2, index).reshape(*which.shape, width)
            parts.append(((weights[..., None, :] @ values)[..., 0, :], sums))
        output, sums = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
        return output, sums

    def _keep(self, key: Tensor, value: Tensor) -> None:
        """Add keys and values to those of the text; room for them grows by doubling."""
        end = self.seen + key.shape[2]
        for name, new in (("_past_key", key), ("_past_value", value)):
            held = getattr(self, name)
            if held is None or end > held.shape[2]:
                size = end if held is None else max(end, 2 * held.shape[2])
                room = new.new_empty(*new.shape[:2], size, new.shape[3])
                if held is not None:
                    room[:, :, : self.seen] = held[:, :, : self.seen]
                setattr(self, name, room)
            getattr(self, name)[:, :, self.seen : end] = new


def lambda_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    n_global: int,
    n_local: int,
    max_distance: int | None = None,
    top_k: int = 0,
    middle_distance: int | None = None,
    middle_rows: Rows = "last",
    rope_base: float = 10000.0,
    slopes: Tensor | None = None,
    scaling: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The formula, written down for a whole text at once: what `LMInfinite` computes without the matrix of weights.

    Args:
        query, key, value: (…, length, head_dim), before any position encoding.
        n_global, n_local, max_distance, top_k, middle_distance, middle_rows: as in `LMInfinite`.
        rope_base: θ of the rotary encoding, the two halves of a head being the pairs.
        slopes: ALiBi's slopes, to broadcast to (…,); they take the place of the rotary encoding.
        scaling: of the logits; None for head_dim^-0.5.

    Returns:
        The output, (…, length, head_dim), and the weights, (…, length, length).

    Example:
        >>> x = torch.randn(1, 9, 4, dtype=torch.float64)
        >>> output, weights = lambda_attention(x, x, x, n_global=1, n_local=3)
        >>> [round(float(weight), 6) for weight in weights[0, 8, 1:6]]  # tokens 1 … 5 are out of sight
        [0.0, 0.0, 0.0, 0.0, 0.0]
    """
    length, width = query.shape[-2:]
    scaling = width**-0.5 if scaling is None else scaling
    ceiling = n_local if max_distance is None else max_distance
    tokens = torch.arange(length, device=query.device)
    distance = tokens[:, None] - tokens

    def logits_at(places: Tensor | int, keys_at: Tensor | int, far: Tensor | int) -> Tensor:
        """Of queries and keys at these positions, which are `far` apart."""
        if slopes is not None:
            return scaling * query @ key.transpose(-1, -2) - slopes[..., None, None] * far
        turned = _rotate(key, keys_at, rope_base).transpose(-1, -2)
        return scaling * _rotate(query, places, rope_base) @ turned

    near, capped = logits_at(tokens, tokens, distance), logits_at(ceiling, 0, ceiling)
    logits = torch.where(distance < ceiling, near, capped)  # w(q_i, k_j, min(i - j, L))
    visible = (distance >= 0) & ((distance < n_local) | (tokens < n_global))
    if top_k:
        between = (distance >= n_local) & (tokens >= n_global)
        if middle_rows == "last":
            between[:-1] = False
        place = n_local // 2 if middle_distance is None else middle_distance
        middle = logits_at(place, 0, place).masked_fill(~between, -torch.inf)
        best = middle.topk(min(top_k, length), dim=-1).indices
        chosen = torch.zeros_like(middle, dtype=torch.bool).scatter(-1, best, True) & between
        logits, visible = torch.where(chosen, middle, logits), visible | chosen
    weights = torch.softmax(logits.masked_fill(~visible, -torch.inf), dim=-1)
    return weights @ value, weights


def _rotate(x: Tensor, positions: Tensor | int, base: float) -> Tensor:
    """Rotary encoding, the two halves of a head being the pairs: (…, length, head_dim)."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half)
    angles = torch.as_tensor(positions, device=x.device)[..., None] * frequencies
    cos, sin = torch.cos(angles), torch.sin(angles)
    return torch.cat((x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin), dim=-1)

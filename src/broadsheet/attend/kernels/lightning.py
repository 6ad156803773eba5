"""Causal linear attention with a fixed decay per head, o_t = Σ_{s≤t} (q_t·k_s) λ^{t−s} v_s, and the state it leaves.

Knows: tensors of queries, keys and values, the decays of TransNormerLLM (arXiv:2307.14995), and which tokens of a batch
are real, what `generate` asks of a cache layer. Does not know: modules, models.

The factored form (q λ^t)(k λ^{−t}) overflows after some hundred tokens, so no form here ever takes a negative power of
λ. Sums are formed and returned in float32 (float64 for float64 inputs) whatever the inputs and autocast say: they are
not normalised, and a bfloat16 state drifts. A token that is not real (padding) is as if it were not there: it writes
nothing, nothing decays over it, and it takes no position. The authors' code zeroes its value only, so that there a pad
after the text still ages the state.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from broadsheet.attend.memory import Bytes
from broadsheet.console import InputError

Decay = Literal["code", "paper", "none"]
Kernel = Literal["auto", "torch", "fla"]


def head_slopes(n_heads: int) -> list[float]:
    """ALiBi's slopes: 2^(−8(h+1)/H); for H not a power of two, those of the power below it, then every other one of the
    power above it."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    return slopes + ([] if power == n_heads else head_slopes(2 * power)[::2][: n_heads - power])


def log_decay(n_heads: int, layer: int, n_layers: int, how: Decay = "code") -> list[float]:
    """ln λ of each head of one layer, each at most 0.

    Args:
        layer: counted from 0.
        how: `"code"` is what the released weights were trained with, −slope_h (1 − l/(L−1) + 1e-5): the first head
            forgets fastest, the last layer hardly at all. `"paper"` is the printed Eq. 2, −(8h/H)(1 − l/L) with l from
            1: the first head and the last layer never forget. `"none"` is plain linear attention. They are different
            functions: weights trained with one are wrong with another.

    Raises:
        InputError: an unknown `how`, or no such layer.
    """
    if not 0 <= layer < n_layers:
        raise InputError(f"got layer {layer} of {n_layers}; expected 0 to {n_layers - 1}")
    match how:
        case "code":
            # A single layer has no l/(L−1) (the authors' code divides by zero); it is taken as a first layer.
            return [-slope * (1 - layer / max(n_layers - 1, 1) + 1e-5) for slope in head_slopes(n_heads)]
        case "paper":
            return [-(8 * h / n_heads) * (1 - (layer + 1) / n_layers) for h in range(n_heads)]
        case "none":
            return [0.0] * n_heads
    raise InputError(f"got decay {how!r}; expected one of {', '.join(get_args(Decay))}")


def lrpe_theta(n_heads: int, head_dim: int) -> Tensor:
    """The angle between neighbours at the start of training: 10000^(−2r/(Hd)), r over heads, then dims; (H, d)."""
    ranks = torch.arange(n_heads * head_dim, dtype=torch.float64).reshape(n_heads, head_dim)
    return 10000 ** (-2 * ranks / (n_heads * head_dim))


def lrpe(x: Tensor, theta: Tensor, positions: Tensor) -> Tensor:
    """LRPE-d: x at position p becomes [x cos θp ; x sin θp], so that q·k turns into Σ_i q_i k_i cos θ_i(t−s).

    Args:
        x: (batch, heads, length, head_dim).
        theta: (heads, head_dim).
        positions: (length,) or (batch, length).

    Returns:
        (batch, heads, length, 2 · head_dim).
    """
    # In float32 the angle at position 10^6 is off by 0.03 rad; MPS has nothing better.
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    angle = positions.to(exact).reshape(-1, 1, x.shape[-2], 1) * theta.to(exact)[:, None]
    return torch.cat([x * angle.cos().to(x.dtype), x * angle.sin().to(x.dtype)], dim=-1)


def srmsnorm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """SRMSNorm: x over the root of its mean square, with no learned scale; worked in float32 at least."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def decayed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    *,
    state: Tensor | None = None,
    real: Tensor | None = None,
    block_size: int = 128,
    kernel: Kernel = "auto",
) -> tuple[Tensor, Tensor]:
    """The whole of a text, a chunk of it, or one more token.

    Args:
        q, k: (batch, heads, length, d), already activated and encoded; they are not scaled.
        v: (batch, heads, length, e).
        log_decay: (heads,), ln λ, at most 0.
        state: what earlier chunks returned, (batch, heads, d, e); None at the start of a text.
        real: (batch, length), 1 for tokens and 0 for padding, wherever it lies; None where nothing is padded.
        block_size: tokens in a block of the block form. Any size gives the same result.
        kernel: `"torch"` runs everywhere; `"fla"` is flash-linear-attention's kernel, on CUDA; `"auto"` is fla where
            both are there.

    Returns:
        (batch, heads, length, e), and the state after the last token.

    Raises:
        InputError: fla was asked for and cannot be used, an unknown kernel, or a block size below 1.
    """
    if block_size < 1:
        raise InputError(f"got block_size {block_size}; expected at least 1")
    if _use_fla(kernel, q.device):
        return fla_form(q, k, v, log_decay, state=state, real=real)
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, rate = q.to(wide), k.to(wide), v.to(wide), log_decay.to(wide)
        if state is None:
            state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
        if q.shape[-2] == 1 and real is None:
            return recurrent_step(q, k, v, rate, state)
        return block_form(q, k, v, rate, state, real, block_size)


def recurrent_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: S ← λS + k vᵀ, o = qS. Time and memory do not depend on how many went before."""
    state = state * log_decay.exp()[:, None, None] + k.mT * v
    return q @ state, state


def block_form(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, real: Tensor | None, block_size: int
) -> tuple[Tensor, Tensor]:
    """Lightning Attention-2 (arXiv:2401.04658): quadratic within a block of M tokens, a state between blocks.

    Work grows linearly in the length. One loop over the blocks, so that the scores of one block are all that is held at
    a time and stay in the processor's cache: twice as fast as working all blocks at once, and about as fast with the
    backward pass (`benchmarks/transnormer.py`).
    """
    steps = torch.arange(1, min(block_size, q.shape[-2]) + 1, device=q.device)[None]
    full = _powers(log_decay, steps)
    # Split, not slices: the gradient of a slice is as long as the whole, which made training quadratic.
    blocks = zip(*(x.split(block_size, dim=-2) for x in (q, k, v)), strict=True)
    marks = real.split(block_size, dim=-1) if real is not None else None
    outputs = []
    for i, (queries, keys, values) in enumerate(blocks):
        powers = full
        if marks is not None:
            values = values * marks[i][:, None, :, None]
            powers = _powers(log_decay, marks[i].long().cumsum(-1))
        elif queries.shape[-2] < steps.shape[-1]:
            powers = _powers(log_decay, steps[:, : queries.shape[-2]])
        outputs.append(((queries @ keys.mT) * powers.within) @ values + (queries * powers.since_start) @ state)
        state = state * powers.whole + (keys * powers.to_end).mT @ values
    return torch.cat(outputs, dim=-2), state


class _Powers(NamedTuple):
    """Powers of λ in a block, by (batch or 1, heads, …)."""

    within: Tensor  # (…, m, m): λ^(r−s) where s ≤ r, else 0
    since_start: Tensor  # (…, m, 1): λ^r
    to_end: Tensor  # (…, m, 1): λ^(m−r)
    whole: Tensor  # (…, 1, 1): λ^m


def _powers(log_decay: Tensor, count: Tensor) -> _Powers:
    """The powers of a block whose r-th token is the `count[:, r]`-th real one, (batch or 1, m)."""
    rate, count = log_decay[:, None, None], count.to(log_decay.dtype)[:, None, :, None]
    last = count[:, :, -1:]
    apart = (count - count.mT).clamp(min=0)
    return _Powers(
        (rate * apart).exp().tril(), (rate * count).exp(), (rate * (last - count)).exp(), (rate * last).exp()
    )


def fla_form(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, state: Tensor | None, real: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same through flash-linear-attention's simple GLA, which has exactly this recurrence, in the inputs' dtype.

    Its Triton kernels need a GPU, so our tests check what they are called with, not what they return.
    """
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    form: Any = fused_recurrent_simple_gla if q.shape[-2] == 1 else chunk_simple_gla
    rate = log_decay.float()
    if real is None:
        decay = {"g_gamma": rate}
    else:
        v = v * real[:, None, :, None].to(v.dtype)
        decay = {"g": rate * real[:, :, None].to(rate.dtype)}  # a pad has ln λ = 0: nothing decays over it
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))  # (batch, length, heads, …)
    out, state = form(q, k, v, scale=1.0, initial_state=state, output_final_state=True, **decay)
    return out.transpose(1, 2), state


def _use_fla(kernel: Kernel, device: torch.device) -> bool:
    if kernel not in get_args(Kernel):
        raise InputError(f"got kernel {kernel!r}; expected one of {', '.join(get_args(Kernel))}")
    if kernel == "torch":
        return False
    usable = device.type == "cuda" and find_spec("fla") is not None
    if kernel == "fla" and not usable:
        raise InputError(
            f"kernel 'fla' needs a CUDA device (got {device.type}) and `pip install flash-linear-attention`; "
            "'auto' or 'torch' runs without"
        )
    return usable


class DecayedState(CacheLayerMixin):
    """What one layer remembers of a text: a matrix per head, however long the text was.

    Attributes:
        state: (batch, heads, d, e) float32, d twice the head's width in a layer with LRPE; None before the first token.
        position: (batch,), tokens read by each row, padding not counted: where its next token stands.
        seen: tokens read with padding counted, which is the length `generate` asks for.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.state: Tensor | None = None
        self.position: Tensor | None = None
        self.seen = 0
        self.is_initialized = False

    def advance(self, state: Tensor, length: int, real: Tensor | None) -> None:
        """Take the state after `length` more tokens, of which those marked in `real` (batch, length) are no padding."""
        before = state.new_zeros(len(state), dtype=torch.long) if self.position is None else self.position
        self.position = before + (length if real is None else real.sum(-1))
        self.state = state
        self.seen += length
        self.is_initialized = True

    def bytes(self) -> Bytes:
        """Bytes held; they do not grow with the text."""
        return Bytes(0 if self.state is None else self.state.numel() * self.state.element_size(), 0)

    def get_seq_length(self) -> int:
        """Tokens seen, padding included."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The padding mask covers all tokens seen and the new ones."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """Unbounded."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Refused.

        Raises:
            InputError: always, unless there is nothing to remove.
        """
        if tokens_to_remove:
            raise InputError(
                f"got a request to take back {abs(tokens_to_remove)} tokens; expected none: a TransNormer's state has "
                "no tokens in it to take out. Copy the cache before reading on, and go back to the copy"
            )

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i go on from row beam_idx[i]."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        if self.state is not None:
            self.batch_select_indices(torch.arange(len(self.state)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        if self.state is not None and self.position is not None:
            rows = indices.to(self.state.device)
            self.state, self.position = self.state[rows], self.position[rows]

    def offload(self) -> None:
        """Nothing: the state is needed at every token and does not grow."""

    def prefetch(self) -> None:
        """Nothing, as in `offload`."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> NoReturn:
        """Refused, as in `update`."""
        self.update(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise InputError("got keys and values for a TransNormer's cache; expected its own model: it keeps neither")

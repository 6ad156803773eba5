"""What linear attention needs beside its equations: a kernel for GPUs, a state that `generate` takes for a cache, and
the positions of the tokens of a batch.

Knows: tensors of queries, keys and values, padding, what `generate` asks of a cache layer. Does not know: modules,
models, where decays come from.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal, NoReturn, get_args

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from broadsheet.attend.layout import consecutive
from broadsheet.attend.memory import Bytes, KeylessLayer
from broadsheet.console import InputError

Kernel = Literal["auto", "torch", "fla"]


def fla_form(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, state: Tensor | None, real: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Decayed linear attention by flash-linear-attention's simple GLA, in the inputs' dtype.

    It has exactly TransNormer's recurrence; arguments and results are those of `transnormer.decayed_attention`.

    Its Triton kernels need a GPU, so our tests check what they are called with, not what they return.
    """
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    form: Any = fused_recurrent_simple_gla if q.shape[-2] == 1 else chunk_simple_gla
    rate = log_decay.float()
    if real is None:
        decay = {"g_gamma": rate}
    else:
        v = v * real[:, None, :, None].to(v.dtype)
        decay = {"g": rate * real[:, :, None].to(rate.dtype)}  # a padding token has ln λ = 0: nothing decays over it
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))  # (batch, length, heads, …)
    out, state = form(q, k, v, scale=1.0, initial_state=state, output_final_state=True, **decay)
    return out.transpose(1, 2), state


def use_fla(kernel: Kernel, device: torch.device) -> bool:
    """Whether fla computes.

    Raises:
        InputError: an unknown kernel, or fla is asked for and cannot be used.
    """
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


class DecayedState(KeylessLayer):
    """What one layer remembers of a text: a matrix per head, however long the text was.

    Attributes:
        state: (batch, heads, d, e) float32, d twice the head's width in a layer with LRPE; None before the first token.
        position: (batch,), tokens read by each row, padding not counted: the position of its next token.
    """

    reader = "a TransNormer's state"

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.state: Tensor | None = None
        self.position: Tensor | None = None

    def advance(self, state: Tensor, length: int, real: Tensor | None) -> None:
        """Take the state after `length` more tokens, of which those marked in `real` (batch, length) are no padding."""
        before = state.new_zeros(len(state), dtype=torch.long) if self.position is None else self.position
        self.position = before + (length if real is None else real.sum(-1))
        self.state = state
        self.seen += length
        self.batch_size, self.device, self.is_initialized = len(state), state.device, True

    def bytes(self) -> Bytes:
        """Bytes held; they do not grow with the text."""
        return Bytes(0 if self.state is None else self.state.numel() * self.state.element_size(), 0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order."""
        if self.state is not None and self.position is not None:
            rows = indices.to(self.state.device)
            self.state, self.position = self.state[rows], self.position[rows]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> NoReturn:
        """Refused, as in `update`."""
        self.update(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused.

        Raises:
            InputError: always.
        """
        raise InputError("got keys and values for a TransNormer's cache; expected its own model: it keeps neither")


def token_positions(
    batch: int,
    length: int,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
    layers: int,
) -> tuple[Tensor, Tensor | None]:
    """The positions of new tokens, and which of them are no padding.

    Args:
        attention_mask: (batch, `length`), or as long as the text with the tokens already read; None without padding.
        position_ids: checked, not used: each row's position is kept in its cache.
        cache: one of `DecayedState`s, as many as `layers`, or None.

    Returns:
        (batch or 1, length), and (batch, length) bool or None without padding.

    Raises:
        InputError: a mask or a cache that does not fit, or several texts packed into a row.
    """
    mask = attention_mask
    if mask is not None and (mask.ndim != 2 or len(mask) != batch or mask.shape[1] < length):
        raise InputError(
            f"got an attention mask of shape {tuple(mask.shape)} for {batch} × {length} tokens; expected 1 for tokens "
            "and 0 for padding (batch, length): linear attention is causal and takes no other mask"
        )
    real = None if mask is None else mask[:, -length:].bool()
    real = None if real is None or bool(real.all()) else real
    if not consecutive(position_ids, real):
        raise InputError(
            "got position_ids that do not count up by one, as for texts packed into a row; expected one text a row, "
            "padded to equal lengths"
        )
    positions = torch.arange(length)[None] if real is None else real.long().cumsum(-1) - 1
    if cache is None:
        return positions, real
    if len(cache.layers) != layers or not all(isinstance(layer, DecayedState) for layer in cache.layers):
        raise InputError(
            f"got a {type(cache).__name__} of {len(cache.layers)} layers; expected TransNormerCache(model.config), of "
            f"{layers}"
        )
    past = cache.layers[0].position
    return (positions if past is None else positions.to(past.device) + past[:, None]), real

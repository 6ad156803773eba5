"""A layer whose angles are exact in float64, so that tests of attention states can ask for more than float32 gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from broadsheet.attend.memory import Layer
from broadsheet.attend.rotary import Rotary


class ExactRotary(nn.Module):
    """The rotary module of a Llama, whose own works in float32 whatever it is given."""

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None].double() * self.frequencies).repeat(1, 1, 2)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def layer(heads: int, kv_heads: int, head_dim: int, index: int = 0) -> Layer:
    """A layer of a model, as a state is given it."""
    encoding = Rotary(ExactRotary(head_dim), apply_rotary_pos_emb)
    return Layer(index, heads, kv_heads, head_dim, head_dim**-0.5, None, None, encoding)

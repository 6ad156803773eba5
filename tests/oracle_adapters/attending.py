"""What the oracle adapters of attention methods share: heads as tensors, and a Llama's rotary encoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from broadsheet.attend.rotary import Rotary


def rotary(heads: int, width: int, base: float) -> Rotary:
    """The rotary encoding of a Llama with so many heads of `width`."""
    config = LlamaConfig(
        hidden_size=heads * width,
        num_attention_heads=heads,
        head_dim=width,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )
    return Rotary(LlamaRotaryEmbedding(config), apply_rotary_pos_emb)


def heads_of(values: Any) -> Tensor:
    """(n, head_dim) of one head, or (heads, n, head_dim): (1, heads, n, head_dim) float64."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor[None] if tensor.dim() == 3 else tensor[None, None]


def as_given(tensor: Tensor, like: Any) -> Any:
    """(heads, …) as lists, without the heads where the input has none."""
    return (tensor if isinstance(like[0][0], list) else tensor[0]).tolist()

"""A layer of attention to time: random text, the default model's shape, arms in turns.

Queries, keys and values have 9 heads, 3 key heads and 64 dimensions, in float32, before rotary encoding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from broadsheet.attend import Layer
from broadsheet.attend.rotary import Rotary

HEADS, KV_HEADS, WIDTH = 9, 3, 64


def text(length: int, drift: float = 0.0, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values of a layer before rotary encoding, (1, heads, length, head_dim).

    Args:
        drift: how alike neighbours are, 0 to 1: the correlation of an entry with the next token's.
    """
    generator = torch.Generator().manual_seed(seed)
    if not drift:
        return [torch.randn(1, heads, length, WIDTH, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    weights = drift ** torch.arange(64)[None, None] * (1 - drift**2) ** 0.5
    tensors = []
    for heads in (HEADS, KV_HEADS, KV_HEADS):
        noise = torch.randn(heads * WIDTH, 1, length + 63, generator=generator)
        smooth = torch.nn.functional.conv1d(noise, weights.flip(-1))
        tensors.append(smooth.reshape(1, heads, WIDTH, length).transpose(2, 3).contiguous())
    return tensors


def layer() -> Layer:
    """A layer as in the default model."""
    config = LlamaConfig(hidden_size=HEADS * WIDTH, num_attention_heads=HEADS)
    rotary = Rotary(LlamaRotaryEmbedding(config), apply_rotary_pos_emb)
    return Layer(0, HEADS, KV_HEADS, WIDTH, WIDTH**-0.5, None, None, rotary)


def least_seconds(
    arms: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The least time of each arm in so many turns, after one that does not count."""
    seconds = dict.fromkeys(arms, float("inf"))
    for turn in range(repeats + 1):
        for name, run in arms.items():
            begin = clock()
            run()
            if turn:
                seconds[name] = min(seconds[name], clock() - begin)
    return seconds

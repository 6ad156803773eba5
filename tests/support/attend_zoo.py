"""Tiny random models of the architectures that the stage is proven on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

BASE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.2,  # wide, so that attention is far from uniform
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**BASE),
    "llama, one key head a head": lambda: hf.LlamaConfig(**BASE | {"num_key_value_heads": 4}),
    "llama, yarn": lambda: hf.LlamaConfig(**BASE, rope_parameters=YARN),
    "llama, dynamic": lambda: hf.LlamaConfig(**BASE, rope_parameters=DYNAMIC),
    "qwen2": lambda: hf.Qwen2Config(**BASE),
    "qwen2, sliding": lambda: hf.Qwen2Config(**BASE, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3": lambda: hf.Qwen3Config(**BASE, head_dim=16),
    "mistral": lambda: hf.MistralConfig(**BASE, sliding_window=None),
    "mistral, sliding": lambda: hf.MistralConfig(**BASE, sliding_window=8),
    "gemma": lambda: hf.GemmaConfig(**BASE, head_dim=8),
    "gemma2": lambda: hf.Gemma2Config(**BASE, head_dim=8, sliding_window=8),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **BASE, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "phi": lambda: hf.PhiConfig(**BASE, partial_rotary_factor=0.5),
    "phi3": lambda: hf.Phi3Config(**BASE),
    "smollm3, a layer without positions": lambda: hf.SmolLM3Config(**BASE, no_rope_layers=[1, 0]),
    "glm, interleaved": lambda: hf.GlmConfig(**BASE, head_dim=8),
}
# Models whose layers all have a sliding window: a method for long attention has nothing to do there.
ALL_SLIDING = {"mistral, sliding"}


def make(name: str, seed: int = 0) -> Any:
    """The model, in float32 and eval mode; eager attention, which knows every variant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return hf.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager").eval()

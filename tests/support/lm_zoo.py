"""Tiny random causal LMs of the architectures that the stage is proven on; they share `tiny_tokenizer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

SIZES = {
    "vocab_size": 280,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,  # wide, so that attention is far from uniform
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**SIZES),
    "qwen2": lambda: hf.Qwen2Config(**SIZES),
    "qwen3": lambda: hf.Qwen3Config(**SIZES, head_dim=8),
    "gemma": lambda: hf.GemmaConfig(**SIZES, head_dim=8),
    "gemma2": lambda: hf.Gemma2Config(**SIZES, head_dim=8, sliding_window=64),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=64, layer_types=["sliding_attention", "full_attention", "full_attention"]
    ),
    "mistral": lambda: hf.MistralConfig(**SIZES, sliding_window=None),
    "phi3": lambda: hf.Phi3Config(**SIZES),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=280, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: hf.GPTNeoXConfig(
        vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip


EAGER_ONLY = {"gemma2"}  # it caps its attention scores, which sdpa cannot


def make(name: str, seed: int = 0, attention: str = "sdpa") -> Any:
    """The model, in float32 and eval mode; eager where the architecture knows nothing else."""
    attention = "eager" if name in EAGER_ONLY else attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return hf.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation=attention).eval()

"""Dense models that are upcycled in these tests, and their mixtures."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers import LlamaConfig as Llama
from transformers import MistralConfig as Mistral
from transformers import Qwen2Config as Qwen2
from transformers import Qwen3Config as Qwen3

from broadsheet.train import Upcycling

SMALL = {
    "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
KINDS = {
    "llama": lambda: Llama(**SMALL, tie_word_embeddings=True),
    "mistral": lambda: Mistral(**SMALL, sliding_window=None, head_dim=8),
    "qwen2": lambda: Qwen2(**SMALL),
    "qwen3": lambda: Qwen3(**SMALL, head_dim=8, tie_word_embeddings=True),
}
IDS = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(1))


def dense_of(kind: str) -> Any:
    """A dense model none of whose biases or norms are what they are made as."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(KINDS[kind](), attn_implementation="sdpa").eval()
        for name, each in model.named_parameters():
            nn.init.normal_(each, 1.0, 0.3) if "norm" in name else nn.init.normal_(each, 0.0, 0.3)
    return model


def logits_of(model: Any, ids: torch.Tensor = IDS, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False, **more).logits


def mixture_of(dense: Any, **settings: Any) -> Any:
    """A mixture whose routers differ and whose experts have come apart; `dense(seed)` makes the model."""
    return Upcycling(**{"experts": 4, "top_k": 2, "noise": 0.5, **settings}).model(dense(0)).eval()

"""A tiny Llama whose weights follow a formula, as oracle files describe it, inside an encoder."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from broadsheet.embed.base import Embedder
from broadsheet.embed.base import embedder as make_embedder
from broadsheet.embed.modules.encoder import CausalEncoder


@cache
def encoder(slug: str, name: str) -> CausalEncoder:
    """The model that `tests/oracles/<slug>.json` describes under `name`, in float64; tokens are called t0, t1, …"""
    path = Path(__file__).parents[1] / "oracles" / f"{slug}.json"
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))[name]
    rope = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
    config = LlamaConfig(**settings, rope_parameters=rope, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).to(torch.float64).eval()
    with torch.no_grad():
        for j, (_, weight) in enumerate(sorted(model.named_parameters())):
            k = torch.arange(1, weight.numel() + 1, dtype=torch.float64)
            values = 0.3 * torch.sin(0.7 * k + 1.3 * j)
            weight.copy_((1 + values / 3 if weight.dim() == 1 else values).reshape(weight.shape))
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(config.vocab_size)}, unk_token="t0"))
    names = {f"{role}_token": f"t{settings[f'{role}_token_id']}" for role in ("bos", "eos", "pad")}
    return CausalEncoder(model, PreTrainedTokenizerFast(tokenizer_object=words, **names))


@cache
def embedder() -> Embedder:
    """Some embedder, for objectives whose loss is asked about vectors that the case gives."""
    made = encoder("gem", "tiny_llama")
    return make_embedder((made.model, made.tokenizer))

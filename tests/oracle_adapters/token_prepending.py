"""Token Prepending's oracle cases: last vectors of a tiny Llama whose weights follow a formula."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.eol import last_vectors
from broadsheet.embed.token_prepending import TokenPrepending


def run(case: dict[str, Any]) -> dict[str, Any]:
    model, tokenizer = tiny(case["model"])
    depth = model.config.num_hidden_layers
    index = case["output_hidden_state_index"] % (depth + 1)  # 0: embeddings
    features = {name: torch.tensor(case[name]) for name in ("input_ids", "attention_mask")}
    if index == 0:  # no layer has run, and none is changed
        states = model.get_input_embeddings()(features["input_ids"])
        return {"last_token_hidden": last_vectors(states, features["attention_mask"]).tolist()}
    if case["plan"] == "vanilla":
        encoder = CausalEncoder(model, tokenizer, layer=index)
    else:
        exit_layer = min(case["exit_layer"], depth)
        encoder = TokenPrepending(
            model,
            tokenizer,
            template={},
            layer=index,
            start=min(case["start_layer"], exit_layer),
            exit=exit_layer,
            placeholder=f"t{case['placeholder_id']}",
        )
    with torch.no_grad():
        made = encoder(features)
    return {"last_token_hidden": last_vectors(made["token_embeddings"], made["attention_mask"]).tolist()}


@cache
def tiny(name: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model that the oracle file describes under `name`, in float64; its tokens are called t0, t1, …"""
    path = Path(__file__).parent.parent / "oracles" / "token_prepending.json"
    settings = json.loads(path.read_text(encoding="utf-8"))[name]
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
    return model, PreTrainedTokenizerFast(tokenizer_object=words, **names)

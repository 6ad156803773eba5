"""Token Prepending's oracle cases: last vectors of a tiny Llama whose weights follow a formula."""

from __future__ import annotations

from typing import Any

import torch
from formula_llama import encoder as formula_encoder

from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.eol import last_vectors
from broadsheet.embed.token_prepending import TokenPrepending


def run(case: dict[str, Any]) -> dict[str, Any]:
    tiny = formula_encoder("token_prepending", case["model"])
    model, tokenizer = tiny.model, tiny.tokenizer
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

"""LM-Infinite's oracle cases: one head, before position encoding."""

from typing import Any

import torch

from broadsheet.attend.lm_infinite import lambda_attention


def run(case: dict[str, Any]) -> dict[str, Any]:
    query, key, value = (torch.tensor(case[name], dtype=torch.float64)[None] for name in "qkv")
    n_global, n_local = case["n_start"], case["window"]
    position = (
        {"slopes": torch.tensor([case["alibi_slope"]], dtype=torch.float64)}
        if "alibi_slope" in case
        else {"rope_base": case["rope_base"]}
    )
    output, weights = lambda_attention(
        query,
        key,
        value,
        n_global=n_global,
        n_local=n_local,
        max_distance=case.get("limit_distance"),
        top_k=case.get("top_k", 0),
        middle_distance=case.get("insert_distance"),
        **position,
    )
    middle = range(n_global, max(n_global, len(case["q"]) - n_local))
    return {
        "out": output[0, -1:].tolist() if case.get("rows") == "last" else output[0].tolist(),
        "selected_middle": [token for token in middle if weights[0, -1, token] > 0],
    }

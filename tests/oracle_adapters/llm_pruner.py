"""LLM-Pruner's oracle cases: what channels and heads score, and which go."""

from typing import Any

import torch
from torch import Tensor

from broadsheet.train.llm_pruner import channel_scores, group_scores, lowest, removed


def run(case: dict[str, Any]) -> dict[str, Any]:
    def given(what: str, name: str) -> Tensor | None:
        return torch.tensor(case[what][name], dtype=torch.float64) if name in case.get(what, {}) else None

    channels = []
    for name, values in case["weights"].items():
        weight, dim = torch.tensor(values, dtype=torch.float64), int(name in ("down_proj", "o_proj"))
        gradient, squares = given("grads", name), given("mean_squared_grads", name)
        channels.append(channel_scores(weight, case["criterion"], dim, gradient, squares))
    if case["block"] == "mlp":
        scores = group_scores(channels, len(channels[0]), 1, case["group_reduction"]).sum(1)
        found: dict[str, Any] = {"importance": scores.tolist()}
        if "pruning_ratio" in case:
            found["pruned_channels"] = lowest(scores, removed(len(scores), case["pruning_ratio"]))
        return found
    heads, width = case.get("num_kv_heads", case["num_heads"]), case["head_dim"]
    together = group_scores(channels, heads, width, case["group_reduction"])
    scores = together.sum(1)
    found = {
        "channel_importance": together.flatten().tolist(),
        "head_importance": scores.tolist(),
        "kv_head_importance_correct": scores.tolist(),
    }
    if "pruning_ratio" in case:
        away = lowest(scores, removed(heads, case["pruning_ratio"], width))
        found["pruned_rows_of_q"] = [head * width + i for head in away for i in range(width)]
    return found

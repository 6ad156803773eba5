"""LLM-Embedder's oracle cases: a loss on toy vectors with its gradient, or a group built from a row."""

from typing import Any

import torch
from torch.nn.functional import normalize

from broadsheet.embed.data.groups import GroupConfig, build_group
from broadsheet.embed.llm_embedder import GradedDistillLoss


def run(case: dict[str, Any]) -> dict[str, Any]:
    return _group(case) if "example" in case else _loss(case)


def _group(case: dict[str, Any]) -> dict[str, Any]:
    made = build_group(case["example"], GroupConfig(**case["config"]))
    return {"output": None if isinstance(made, str) else made}


def _loss(case: dict[str, Any]) -> dict[str, Any]:
    query, keys = (torch.tensor(case[name], dtype=torch.float64) for name in ("query", "key"))
    if case["normalise_inputs"]:
        query, keys = normalize(query, dim=1), normalize(keys, dim=1)
    query.requires_grad_()
    teacher = None if case["teacher_scores"] is None else torch.tensor(case["teacher_scores"], dtype=torch.float64)
    off = teacher is None or not case["distill_weight"]
    loss = GradedDistillLoss(
        torch.nn.Identity(),
        "none" if off else "graded" if case["stable_distill"] else "kl",
        contrastive_weight=case["contrastive_weight"],
        distill_weight=case["distill_weight"],
        temperature=case["cos_temperature"] if case["dense_metric"] == "cos" else 1.0,
        teacher_temperature=case["teacher_temperature"],
        student_temperature=case["student_temperature"],
    )
    value = loss.from_unit_vectors(query, keys.view(len(query), -1, keys.shape[1]), teacher)
    return {"loss": value.item(), "grad_query_normalised": torch.autograd.grad(value, query)[0].tolist()}

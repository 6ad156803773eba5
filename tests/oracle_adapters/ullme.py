"""ULLME's oracle cases, by the fields they have: the KL, preference losses, log-probabilities, NT-Xent."""

from typing import Any

import torch

from broadsheet.embed.losses.ntxent import label_ntxent
from broadsheet.embed.losses.preference import consistency_kl, preference_loss, sequence_log_probs


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "dual_scores" in case:
        return _kl(case)
    if "loss_type" in case:
        return _preference(case)
    return _log_probs(case) if "logits" in case else _ntxent(case)


def _double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _kl(case: dict[str, Any]) -> dict[str, Any]:
    value = consistency_kl(
        _double(case["dual_scores"]), _double(case["gen_scores"]), temperature=case["temperature"], direction="gen-rt"
    )
    return {"kl": value.item()}


def _preference(case: dict[str, Any]) -> dict[str, Any]:
    names = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
    losses = preference_loss(
        *(_double(case[name]) if case.get(name) is not None else None for name in names),
        kind=case["loss_type"],
        beta=case.get("beta", 0.1),
        label_smoothing=case.get("label_smoothing", 0.0),
        reference_free=case.get("reference_free", False),
    )
    return {"losses": losses.tolist(), "loss": losses.mean().item()}


def _log_probs(case: dict[str, Any]) -> dict[str, Any]:
    logits, labels = _double(case["logits"]), torch.tensor(case["labels"])
    return {
        "sum": sequence_log_probs(logits, labels).tolist(),
        "mean": sequence_log_probs(logits, labels, mean=True).tolist(),
    }


def _ntxent(case: dict[str, Any]) -> dict[str, Any]:
    queries = _double(case["q"])
    rows = [_double(case.get(name) or []).reshape(-1, queries.shape[1]) for name in ("pos", "neg")]
    labels = list(case["query_labels"])
    each = len(rows[0]) // len(queries)
    fresh = range(max(labels) + 1, max(labels) + 1 + len(rows[1]))
    of_rows = [*labels, *(label for label in labels for _ in range(each)), *fresh]
    similarity: Any = "l2" if "L2" in case.get("distance", "L2") else "cos"
    loss = label_ntxent(torch.cat([queries, *rows]), torch.tensor(of_rows), case["temperature"], similarity)
    return {"loss": loss.item()}

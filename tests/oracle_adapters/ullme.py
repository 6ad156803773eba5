"""ULLME's oracle cases, by the fields they have: the KL, preference losses, log-probabilities, NT-Xent."""

from types import SimpleNamespace
from typing import Any

import torch
from formula_llama import embedder

from broadsheet.embed.data.writing import read_written, token_counts
from broadsheet.embed.ullme import GRL, consistency_kl, preference_loss


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "dual_scores" in case:
        return _kl(case)
    if "loss_type" in case:
        return _preference(case)
    return _log_probs(case) if "logits" in case else _ntxent(case)


def _double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _kl(case: dict[str, Any]) -> dict[str, Any]:
    values = consistency_kl(
        _double(case["dual_scores"]), _double(case["gen_scores"]), temperature=case["temperature"], direction="gen-rt"
    )
    return {"kl": values.mean().item()}


def _preference(case: dict[str, Any]) -> dict[str, Any]:
    policy = (_double(case[f"policy_{name}_logps"]) for name in ("chosen", "rejected"))
    known = [case.get(f"reference_{name}_logps") for name in ("chosen", "rejected")]
    losses = preference_loss(
        *policy,
        *(None if case.get("reference_free") or each is None else _double(each) for each in known),
        kind=case["loss_type"],
        beta=case.get("beta", 0.1),
        label_smoothing=case.get("label_smoothing", 0.0),
    )
    return {"losses": losses.tolist(), "loss": losses.mean().item()}


class _Written(torch.nn.Module):
    """A model whose logits are the case's."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits[:, logits_to_keep])


def _log_probs(case: dict[str, Any]) -> dict[str, Any]:
    labels = torch.tensor(case["labels"])
    sums = read_written(_Written(_double(case["logits"])), labels.clamp_min(0), labels)  # type: ignore[arg-type]
    return {"sum": sums.tolist(), "mean": (sums / token_counts(labels)).tolist()}


def _ntxent(case: dict[str, Any]) -> dict[str, Any]:
    queries = _double(case["q"])
    rows = [_double(case.get(name) or []).reshape(-1, queries.shape[1]) for name in ("pos", "neg")]
    labels = torch.tensor(case["query_labels"])
    positives = labels.repeat_interleave(len(rows[0]) // len(queries))
    fresh = int(labels.max()) + 1 + torch.arange(len(rows[1]))
    objective = GRL(
        embedder(),
        contrastive="ntxent-l2" if "L2" in case.get("distance", "L2") else "ntxent-cos",
        temperature=case["temperature"],
        projector=False,
    )
    batch = {
        "counts": torch.full((len(queries),), (len(rows[0]) + len(rows[1])) // len(queries)),
        "labels": labels,
        "passage_labels": torch.cat([positives, fresh]),
    }
    return {"loss": objective.contrast(queries, torch.cat(rows), batch).item()}

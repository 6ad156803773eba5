"""FullRank's oracle cases, by `op`."""

from typing import Any

import torch

from broadsheet.rank import order
from broadsheet.rank.fullrank import FullRank, complete_labels, importance_aware_loss, separator_weights
from broadsheet.rank.pg_rank import NDCG


def run(case: dict[str, Any]) -> dict[str, Any]:
    return _CASES[case["op"]](case)


def _loss(case: dict[str, Any]) -> dict[str, Any]:
    labels = torch.tensor([case["labels"]])
    weights = separator_weights(labels, case["separator_id"], case["ignore_index"])[:, 1:]
    mask = (labels != case["ignore_index"])[:, 1:]
    nll = torch.tensor([case["token_nll_shifted"]], dtype=torch.float64)
    return {
        "weights_shifted_authors_code": weights[0].tolist(),
        "loss_weighted_authors_code": importance_aware_loss(nll, weights, mask).item(),
        "loss_plain": importance_aware_loss(nll, torch.ones_like(nll), mask).item(),
    }


def _weights(case: dict[str, Any]) -> dict[str, Any]:
    return {"w": [FullRank().weight(rank) for rank in case["ranks"]]}


def _multi_pass(case: dict[str, Any]) -> dict[str, Any]:
    relevance, window, step = case["relevance"], case["window"], case["step"]

    def compare(asked: list[Any]) -> list[list[int]]:
        return [order.by_score([relevance[int(document)] for document in documents]) for _, documents in asked]

    def single(items: list[int]) -> list[int]:
        return order.by_score([relevance[item] for item in items])

    rows = [{"query": "q", "documents": [str(item) for item in range(len(relevance))]}]
    return {
        "single_pass_order": order.sweep(len(relevance), single, window, step),
        "multi_pass_order": complete_labels(rows, compare, window=window, step=step)[0],
        "calls_per_pass": order.multipass_calls(len(relevance), window, step),
    }


def _calls(case: dict[str, Any]) -> dict[str, Any]:
    calls = order.multipass_calls(case["n"], case["window"], case["step"])
    return {"calls_per_pass": calls, "total": sum(calls)}


def _text(case: dict[str, Any]) -> dict[str, Any]:
    return {"text": order.label_text([case["initial_list"].index(item) for item in case["final_list"]])}


def _ndcg(case: dict[str, Any]) -> dict[str, Any]:
    """All judged documents make the ideal; those of the ten first places stand first."""
    top = case["top10_rel"]
    judged = [int(grade) for grade, count in case["qrels_rel_counts"].items() for _ in range(count)]
    for grade in top:
        judged.remove(grade)
    labels = torch.tensor([top + judged], dtype=torch.float64)
    ranking = torch.arange(labels.shape[1]).view(1, 1, -1)
    return {"ndcg": NDCG(10)(ranking, labels, torch.ones_like(labels, dtype=torch.bool)).item()}


_CASES = {
    "importance_aware_loss": _loss,
    "paper_identifier_weight": _weights,
    "multi_pass_label": _multi_pass,
    "multi_pass_calls": _calls,
    "label_text": _text,
    "ndcg_cut_10_linear_gain": _ndcg,
}

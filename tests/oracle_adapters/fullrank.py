"""FullRank's oracle cases, by `op`."""

from typing import Any

import torch

from broadsheet.data.retrieval.metrics import evaluate
from broadsheet.rank import order
from broadsheet.rank.base import STRATEGIES
from broadsheet.rank.fullrank import FullRank, complete_labels, multipass_calls
from broadsheet.rank.prompts.prompt import TargetOrder
from broadsheet.rank.training.objective import ListReading


def run(case: dict[str, Any]) -> dict[str, Any]:
    return _CASES[case["op"]](case)


def _loss(case: dict[str, Any]) -> dict[str, Any]:
    """The authors' code tells separators by a token id; our prompts know what each token is part of."""
    labels = case["labels"]
    mask = torch.tensor([[label != case["ignore_index"] for label in labels[1:]]])
    ids = [label for label in labels if label != case["ignore_index"]]
    between = [token == case["separator_id"] for token in ids]
    ranks = [0 if between[i] else 1 + sum(between[:i]) for i in range(len(ids))]
    method = FullRank(weights="authors")
    given = method.token_weights(TargetOrder(ids, ranks, [rank > 0 for rank in ranks]))
    weights = torch.tensor([[0.0] * (len(labels) - len(ids)) + given], dtype=torch.float64)[:, 1:]
    nll = torch.tensor([case["token_nll_shifted"]], dtype=torch.float64)
    terms = method.terms(ListReading(nll, nll, nll, mask, nll=nll, weights=weights, written=mask))
    return {
        "weights_shifted_authors_code": weights[0].tolist(),
        "loss_weighted_authors_code": terms["loss"].item(),
        "loss_plain": terms["lm"].item(),
    }


def _weights(case: dict[str, Any]) -> dict[str, Any]:
    return {"w": [FullRank().weight(rank) for rank in case["ranks"]]}


def _multi_pass(case: dict[str, Any]) -> dict[str, Any]:
    relevance, window, step = case["relevance"], case["window"], case["step"]

    def compare(asked: list[Any]) -> list[list[int]]:
        return [order.by_score([relevance[int(document)] for document in documents]) for _, documents in asked]

    def single(asked: list[tuple[int, list[int]]]) -> list[list[int]]:
        return [order.by_score([relevance[item] for item in items]) for _, items in asked]

    rows = [{"query": "q", "documents": [str(item) for item in range(len(relevance))]}]
    return {
        "single_pass_order": order.run_lockstep([STRATEGIES["sliding"](len(relevance), window, step)], single)[0],
        "multi_pass_order": complete_labels(rows, compare, window=window, step=step)[0],
        "calls_per_pass": multipass_calls(len(relevance), window, step),
    }


def _calls(case: dict[str, Any]) -> dict[str, Any]:
    calls = multipass_calls(case["n"], case["window"], case["step"])
    return {"calls_per_pass": calls, "total": sum(calls)}


def _text(case: dict[str, Any]) -> dict[str, Any]:
    return {"text": order.label_text([case["initial_list"].index(item) for item in case["final_list"]])}


def _ndcg(case: dict[str, Any]) -> dict[str, Any]:
    """All judged documents make the ideal; those of the ten first places stand first."""
    judged = [int(grade) for grade, count in case["qrels_rel_counts"].items() for _ in range(count)]
    for grade in case["top10_rel"]:
        judged.remove(grade)
    grades = [*case["top10_rel"], *judged]
    qrels = {str(place): grade for place, grade in enumerate(grades)}
    return {"ndcg": evaluate({"q": list(qrels)}, {"q": qrels}, ["nDCG@10"])["nDCG@10"]["q"]}


_CASES = {
    "importance_aware_loss": _loss,
    "paper_identifier_weight": _weights,
    "multi_pass_label": _multi_pass,
    "multi_pass_calls": _calls,
    "label_text": _text,
    "ndcg_cut_10_linear_gain": _ndcg,
}

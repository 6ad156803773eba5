"""FIRST's oracle cases, by `op`."""

from typing import Any

import torch

from broadsheet.rank import order
from broadsheet.rank.losses import lambdarank, listnet, ranknet, weighted_ranknet

_LOSSES = {
    "ranknet_weighted": weighted_ranknet,
    "ranknet": ranknet,
    "lambda": lambda scores, ranks: lambdarank(scores, ranks, as_released=True),
    "listnet": lambda scores, ranks: listnet(scores, ranks, as_released=True),
}


def run(case: dict[str, Any]) -> dict[str, Any]:
    return _CASES[case["op"]](case)


def _rank_loss(case: dict[str, Any]) -> dict[str, Any]:
    scores = torch.tensor(case["scores"], dtype=torch.float64, requires_grad=True)
    loss = _LOSSES[case["kind"]](scores, torch.tensor(case["true_rank_0_best"]))
    return {"loss": loss.item(), "grad_scores": torch.autograd.grad(loss, scores)[0].tolist()}


def _windows(case: dict[str, Any]) -> dict[str, Any]:
    found = order.windows(case["n"], case["window"], case["step"], case["rank_start"])
    return {"windows": [list(one) for one in found]}


def _sweep(case: dict[str, Any]) -> dict[str, Any]:
    relevance, calls = case["relevance"], []

    def compare(window: list[int]) -> list[int]:
        calls.append(window)
        return order.by_score([relevance[item] for item in window])

    found = order.sweep(len(relevance), compare, case["window"], case["step"])
    return {"order": found, "calls": len(calls)}


def _parse(case: dict[str, Any]) -> dict[str, Any]:
    return {"order": order.complete(order.parse(case["text"], case["n"], case["identifiers"]), case["n"])}


def _logits(case: dict[str, Any]) -> dict[str, Any]:
    """A token with its space is another token: it is no identifier, but takes a place among the most likely."""
    values, n = case["token_logprobs"], case["n"]
    letters = [chr(ord("A") + i) for i in range(n)]

    def ordered(known: dict[str, float]) -> list[int]:
        return order.by_score([known.get(letter, -float("inf")) for letter in letters])

    likely = sorted(values, key=lambda token: -values[token])[: case["top_logprobs"]]
    return {"order_truncated": ordered({token: values[token] for token in likely}), "order_full": ordered(values)}


_CASES = {
    "rank_loss": _rank_loss,
    "windows": _windows,
    "sliding_rerank_exact_comparator": _sweep,
    "apply_permutation_text": _parse,
    "logits_to_order": _logits,
}

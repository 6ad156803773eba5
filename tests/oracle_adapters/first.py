"""FIRST's oracle cases, by `op`."""

from types import SimpleNamespace
from typing import Any

import torch

from broadsheet.rank import order
from broadsheet.rank.base import STRATEGIES
from broadsheet.rank.first import FIRST, first_token

_KINDS = {
    "ranknet_weighted": "weighted_ranknet",
    "ranknet": "ranknet",
    "lambda": "lambdarank_authors",
    "listnet": "listnet_authors",
}


def run(case: dict[str, Any]) -> dict[str, Any]:
    return _CASES[case["op"]](case)


def _rank_loss(case: dict[str, Any]) -> dict[str, Any]:
    scores = torch.tensor(case["scores"], dtype=torch.float64, requires_grad=True)
    loss = FIRST(kind=_KINDS[case["kind"]], lm=False).rank_loss(scores, torch.tensor(case["true_rank_0_best"]))
    return {"loss": loss.item(), "grad_scores": torch.autograd.grad(loss, scores)[0].tolist()}


def _windows(case: dict[str, Any]) -> dict[str, Any]:
    found = order.windows(case["n"], case["window"], case["step"], case["rank_start"])
    return {"windows": [list(one) for one in found]}


def _sweep(case: dict[str, Any]) -> dict[str, Any]:
    relevance, calls = case["relevance"], []

    def compare(asked: list[tuple[int, list[int]]]) -> list[list[int]]:
        calls.extend(asked)
        return [order.by_score([relevance[item] for item in items]) for _, items in asked]

    [found] = order.run_lockstep([STRATEGIES["sliding"](len(relevance), case["window"], case["step"])], compare)
    return {"order": found, "calls": len(calls)}


def _parse(case: dict[str, Any]) -> dict[str, Any]:
    return {"order": order.complete(order.parse(case["text"], case["n"], case["identifiers"]), case["n"])}


class _Says(torch.nn.Module):
    """A model of given next-token logits, one for each word of its vocabulary."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def _logits(case: dict[str, Any]) -> dict[str, Any]:
    """A letter with its space is another token: no identifier, though it is one of the most likely tokens."""
    values = case["token_logprobs"]
    letters = [chr(ord("A") + i) for i in range(case["n"])]
    vocabulary = list(dict.fromkeys([*values, *letters]))

    def ordered(known: dict[str, float]) -> list[int]:
        logits = torch.tensor([known.get(token, -float("inf")) for token in vocabulary])
        identifiers = [vocabulary.index(letter) for letter in letters]
        [scores] = first_token(_Says(logits), [[0]], [0], [identifiers])  # type: ignore[arg-type]
        return order.by_score(scores)

    likely = sorted(values, key=lambda token: -values[token])[: case["top_logprobs"]]
    return {"order_truncated": ordered({token: values[token] for token in likely}), "order_full": ordered(values)}


_CASES = {
    "rank_loss": _rank_loss,
    "windows": _windows,
    "sliding_rerank_exact_comparator": _sweep,
    "apply_permutation_text": _parse,
    "logits_to_order": _logits,
}

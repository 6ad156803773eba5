"""PG-RANK's oracle cases, by `op`."""

from itertools import permutations
from typing import Any

import torch

from broadsheet.rank.pg_rank import gumbel_ranking, leave_one_out, log_prob, surrogate
from broadsheet.rank.pg_rank_utilities import MRR, NDCG


def run(case: dict[str, Any]) -> dict[str, Any]:
    return _CASES[case["op"]](case)


def _scores(case: dict[str, Any]) -> torch.Tensor:
    return torch.tensor([case["scores"]], dtype=torch.float64, requires_grad=True)


def _gradient(value: torch.Tensor, scores: torch.Tensor) -> list[float]:
    return torch.autograd.grad(value.sum(), scores)[0][0].tolist()


def _utility(case: dict[str, Any]) -> NDCG | MRR:
    return (MRR if case.get("utility", "ndcg") == "mrr" else NDCG)(case["k"])


def _log_prob(case: dict[str, Any]) -> dict[str, Any]:
    scores = _scores(case)
    value = log_prob(scores, torch.tensor([[case["ranking"]]]))
    return {"logprob": value.item(), "grad_scores": _gradient(value, scores)}


def _exact(case: dict[str, Any]) -> dict[str, Any]:
    """J = Σ_r π(r)·Δ(r) over all rankings."""
    scores = _scores(case)
    labels = torch.tensor([case["relevance"]], dtype=torch.float64)
    every = torch.tensor([list(permutations(range(labels.shape[1])))])
    utilities = _utility(case)(every, labels, torch.ones_like(labels, dtype=torch.bool))
    value = (log_prob(scores, every).exp() * utilities).sum()
    return {"J": value.item(), "grad_scores": _gradient(value, scores)}


def _sampled(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    scores = _scores(case)
    labels = torch.tensor([case["relevance"]], dtype=torch.float64)
    return scores, labels, torch.ones_like(labels, dtype=torch.bool), torch.tensor([case["sampled_rankings"]])


def _reinforce(case: dict[str, Any]) -> dict[str, Any]:
    scores, labels, mask, rankings = _sampled(case)
    utilities = _utility(case)(rankings, labels, mask)
    loss = surrogate(scores, rankings, utilities, baseline=case["baseline"])
    advantages = leave_one_out(utilities) if case["baseline"] == "loo" else utilities
    return {
        "utilities": utilities[0].tolist(),
        "advantages": advantages[0].tolist(),
        "surrogate_loss": loss.item(),
        "ascent_grad_scores": _gradient(-loss, scores),
    }


def _reward_to_go(case: dict[str, Any]) -> dict[str, Any]:
    scores, labels, mask, rankings = _sampled(case)
    gains = _utility(case).per_place(rankings, labels, mask)
    loss = surrogate(scores, rankings, gains, baseline=case.get("baseline", "none"))
    return {"ascent_grad_scores": _gradient(-loss, scores)}


def _gumbel(case: dict[str, Any]) -> dict[str, Any]:
    return {"ranking": gumbel_ranking(torch.tensor(case["scores"]), torch.tensor(case["gumbel_noise"])).tolist()}


_CASES = {
    "pl_logprob": _log_prob,
    "exact_expected_utility": _exact,
    "reinforce_estimator": _reinforce,
    "reinforce_reward_to_go": _reward_to_go,
    "gumbel_ranking": _gumbel,
}

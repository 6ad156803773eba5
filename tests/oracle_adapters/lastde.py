"""Lastde's oracle cases, by `fn`."""

from typing import Any

import numpy as np
import torch

from broadsheet.detect import (
    DNAGPT,
    LRR,
    NPR,
    DetectGPT,
    Entropy,
    FastDetectGPT,
    Lastde,
    LastdePP,
    Likelihood,
    LogRank,
    Rank,
    TokenScores,
)
from broadsheet.detect.lastde import aggregate, multiscale_diversity_entropy, neighbour_cosines
from broadsheet.detect.reading import read_logits
from broadsheet.trial.stats import auroc


def run(case: dict[str, Any]) -> dict[str, Any]:
    case = dict(case)
    return _CASES[case.pop("fn")](**case)


def _tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _bins_per_token(epsilon: int, n: int) -> float:
    """For exactly ε bins on n tokens, whatever the division rounds to."""
    return (epsilon + 0.5) / n


def _lastde(logprobs: list[float], window_s: int, epsilon: int, tau_max: int) -> dict[str, Any]:
    series = _tensor(logprobs)
    entropies = multiscale_diversity_entropy(series, window=window_s, bins=epsilon, scales=tau_max)
    per_token = _bins_per_token(epsilon, len(series))
    scores = {
        f"lastde_{name}": Lastde(window_s, per_token, tau_max, aggregation=name).statistic(TokenScores(series))
        for name in ("std", "expstd", "range", "exprange", "2norm")
    }
    return {
        "de_per_scale": entropies.tolist(),
        "agg_std": float(aggregate(entropies, "std")),
        "mean_loglik": float(series.mean()),
        **scores,
    }


def _de(sequence: list[float], window_s: int, epsilon: int, scales: list[int]) -> dict[str, Any]:
    series = _tensor(sequence)
    entropies = multiscale_diversity_entropy(series, window=window_s, bins=epsilon, scales=max(scales))
    entropies = entropies[[scale - 1 for scale in scales]]
    return {
        "de_per_scale": entropies.tolist(),
        "agg_std": float(aggregate(entropies, "std")),
        "cos_scale1": neighbour_cosines(series[:, None], window_s)[:, 0].tolist(),
    }


def _logit_scores(logits_score: Any, logits_ref: Any, labels: list[int]) -> dict[str, Any]:
    logits, reference, target = _tensor(logits_score), _tensor(logits_ref), torch.tensor(labels)
    names = {"loglik": Likelihood, "rank": Rank, "logrank": LogRank, "entropy": Entropy, "lrr": LRR}
    scores = {name: method().scores_from_logits(logits, target) for name, method in names.items()}
    scores["fast_detectgpt_same"] = FastDetectGPT().scores_from_logits(logits, target)
    scores["fast_detectgpt_ref"] = FastDetectGPT().scores_from_logits(logits, target, reference)
    return scores


def _lastde_pp(
    logits_score: Any, labels: list[int], samples: list[list[int]], window_s: int, epsilon: int, tau_max: int
) -> dict[str, Any]:
    reading = read_logits(
        _tensor(logits_score), torch.tensor(labels), needs={"samples"}, samples=torch.tensor(samples).T
    )
    per_token = _bins_per_token(epsilon, len(labels))
    method = LastdePP(window_s, per_token, tau_max, n_samples=len(samples))
    assert reading.samples is not None
    values = method.score_series(reading.samples)
    return {
        "lastde_x": float(method.score_series(reading.log_likelihood)),
        "mu": float(values.mean()),
        "sigma_unbiased": float(values.std()),
        "discrepancy": method.statistic(reading),
    }


def _perturbation_scores(
    ll: float, perturbed_ll: list[float], logrank_pos: float, perturbed_logrank_pos: list[float]
) -> dict[str, Any]:
    def reading(log_likelihood: float, log_rank: float) -> TokenScores:
        return TokenScores(_tensor([log_likelihood]), rank=_tensor([log_rank]).exp())

    text = reading(ll, logrank_pos)
    copies = [reading(*pair) for pair in zip(perturbed_ll, perturbed_logrank_pos, strict=True)]
    difference = DNAGPT().contrast(text, copies)
    return {
        "detectgpt_z": DetectGPT().contrast(text, copies),
        "detectgpt_d": difference,
        "npr": NPR().contrast(text, copies),
        "dna_gpt": difference,
    }


def _auroc(human: list[float], machine: list[float]) -> dict[str, Any]:
    # The statistic takes pairs; groups of different sizes are laid out as all pairs, which leaves the AUROC as it is.
    pairs = np.array([(h, m) for h in human for m in machine])
    return {"auroc": float(auroc(pairs, np.ones((1, len(pairs))))[0])}


_CASES = {
    "lastde": _lastde,
    "de": _de,
    "logit_scores": _logit_scores,
    "lastde_pp": _lastde_pp,
    "perturbation_scores": _perturbation_scores,
    "auroc": _auroc,
}

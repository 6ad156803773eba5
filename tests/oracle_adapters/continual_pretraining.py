"""Continual pretraining's oracle cases: learning rates by step, and how much is replayed."""

from typing import Any

from broadsheet.train.continual_pretraining import ContinualPretraining, Infinite, Rewarmed
from broadsheet.training.mixing import Mixture


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "replay_fraction" in case:
        batch, steps = case["batch_size"], case["total_steps"]
        method = ContinualPretraining(replay=case["replay_fraction"])
        mixed: Mixture = method.rows(range(batch), range(batch), batch, steps)
        old = int(mixed.second_at[:batch].sum())
        return {
            "replay_per_batch": old,
            "new_per_batch": batch - old,
            "compute_equivalent_total_samples": len(mixed),
        }
    if "kind" in case:
        rate: Any = Infinite(
            case["max_lr"],
            case["const_lr"],
            case["min_lr"],
            case["t_warmup_end"],
            case["t_cooldown_end"],
            case["t_anneal_start"],
            case["t_end"],
            case["kind"],
            case["alpha"] or 0.0,
        )
    else:
        rate = Rewarmed(case["max_lr"], case["min_lr"], case["warmup_steps"], case["total_steps"])
    return {"lr": [rate.lr(step) for step in case["steps"]]}

"""Reweighting's oracle cases: weights of given losses, and losses of given logits."""

from typing import Any

import torch

from broadsheet.train import LossReweighting
from broadsheet.train.loss_reweighting import places, sample_weights
from broadsheet.training.losses import sequence_losses, token_losses


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "logits" in case:
        return _from_logits(case)
    losses = torch.tensor(case["sample_losses"], dtype=torch.float64)
    weights = sample_weights(losses, case["strategy"], case["r"], case["delta"])
    return {
        "normalized": places(losses, case["delta"]).tolist(),
        "weights": weights.tolist(),
        "weighted_loss": float((weights * losses).sum()),
        "uniform_loss": float((sample_weights(losses, "uniform", case["r"]) * losses).sum()),
    }


def _from_logits(case: dict[str, Any]) -> dict[str, Any]:
    logits = torch.tensor(case["logits"], dtype=torch.float64)
    labels = torch.tensor(case["labels"])
    losses, asked = sequence_losses(logits, labels)
    plain = LossReweighting(case["strategy"], case["r"], burn_in=0)
    by_tokens = LossReweighting(case["strategy"], case["r"], burn_in=0, length_normalise=True)
    return {
        "sample_losses": losses.tolist(),
        "num_active": token_losses(logits, labels)[1].sum(1).tolist(),
        "weights": plain.weights(losses, asked).tolist(),
        "readme_loss_world1": float(plain.loss(logits, labels, {})),
        "gpt2_code_loss_world1": float(by_tokens.loss(logits, labels, {})),
    }

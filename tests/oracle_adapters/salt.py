"""SALT's oracle cases: losses against a teacher, scores of sequences, the choice of them, ω by step."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from broadsheet.train import SALT
from broadsheet.train.salt import learnable, select
from broadsheet.training.losses import taught_losses, token_losses


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "scores" in case:
        return {"selected": select(case["scores"], case["m"])}
    if "n_kd" in case:
        salt = SALT(steps=case["n_kd"], omega=case["omega"])
        return {"omega": [salt.weight(step) for step in case["steps"]]}
    if "slm_logits" in case:
        logits, labels = _asked(case["slm_logits"], case["labels"])
        each = [
            learnable(logits[:, i : i + 2], labels[:, i : i + 2], case["k"]).item() for i in range(len(case["labels"]))
        ]
        return {"filtered_nll": each, "score": learnable(logits, labels, case["k"]).item()}
    logits, labels = _asked(case["student_logits"], case["labels"])
    teacher, _ = _asked(case["teacher_logits"], case["labels"])
    salt = SALT(_Teacher(teacher), steps=1, omega=case["omega"], temperature=case["tau"])
    total, count = salt.loss(logits, labels, {})
    mixed, soft = (taught_losses(logits, labels, teacher, weight, case["tau"])[0][0] for weight in (case["omega"], 1.0))
    return {
        "hard_ce": token_losses(logits, labels)[0][0].tolist(),
        "soft_ce": soft.tolist(),
        "token_loss": mixed.tolist(),
        "mean_loss": float(total / count),
    }


class _Teacher:
    """Says the case's logits, whatever it reads."""

    training = False

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __call__(self, **given: Any) -> Any:
        return SimpleNamespace(logits=self.logits)

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...


def _asked(logits: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Logits and unshifted labels of one sequence, whose first token is not asked."""
    rows = torch.tensor([[*logits, logits[-1]]], dtype=torch.float64)
    return rows, torch.tensor([[-100, *labels]])

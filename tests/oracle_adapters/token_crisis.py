"""The token crisis' oracle cases: epochs, sizes, rates by step, what came of reading again."""

from typing import Any

from broadsheet.train import DropStage
from broadsheet.train.token_crisis import Degradation, RepetitionPlan, compute_optimal_parameters


def run(case: dict[str, Any]) -> dict[str, Any]:
    match case["fn"]:
        case "epochs":
            given = (case[name] for name in ("unique_tokens", "steps", "batch_sequences", "sequence_length"))
            plan = RepetitionPlan(*given)
            return {"tokens_seen": plan.tokens_seen, "epochs": plan.epochs}
        case "dropout_schedule":
            return {"rates": DropStage(case["rate"], case["start_step"]).rates(case["steps"])}
        case "compute_optimal_parameters":
            return {"parameters": compute_optimal_parameters(case["unique_tokens"], case["tokens_per_parameter"])}
        case "degradation":
            found = Degradation.of(case["held_out_loss_per_epoch"])
            return {"best_epoch": found.best_epoch, "rise_after_best": found.rise, "degrades": found.degrades}
    raise ValueError(case["fn"])

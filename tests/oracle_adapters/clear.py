"""CLEAR's oracle cases: the confidence of a target, the median filter, the rule of replacement."""

from typing import Any

from broadsheet.curate.clear import auto_correct, auto_filter, combined
from broadsheet.curate.targets.confidence import VALUES, consistency


def run(case: dict[str, Any]) -> dict[str, Any]:
    match case["fn"]:
        case "confidence":
            consistent = consistency(case["contradiction_both_orders"], case["exact_match"], case["alpha"])
            reflected = [VALUES[said.replace("_", " ")] for said in case["self_reflection"]]
            whole = combined(consistent, reflected, case["beta"])
            reflection = sum(reflected) / len(reflected)
            return {"consistency": float(consistent), "reflection": reflection, "confidence": float(whole)}
        case "auto_filter":
            threshold, kept = auto_filter(case["confidence"], case["threshold"])
            return {"threshold": threshold, "kept": kept}
        case "auto_correct":
            preferences, confidence = zip(*case["preference_and_confidence"], strict=True)
            return {"use_candidate": auto_correct(preferences, confidence, case["threshold"])}
    raise ValueError(case["fn"])

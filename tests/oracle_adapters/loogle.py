"""LooGLE's oracle cases, by what their input holds."""

from typing import Any

from broadsheet.evaluate import LooGLE, Question
from broadsheet.evaluate.loogle_metrics import order_deviation, read_order


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "reference_order" in case:
        return _order(case["reference_order"], case["predicted_order"])
    if isinstance(case["reference"], dict):
        return _cloze(case["reference"], case["prediction"])
    return _overlap(case["reference"], case["prediction"])


def _order(reference: list[Any], predicted: list[Any]) -> dict[str, Any]:
    gold = [str(label) for label in reference]
    deviation = order_deviation(gold, read_order(gold, ",".join(map(str, predicted))))
    return {
        "location_square_deviation": deviation.lsd,
        "location_mean_deviation": deviation.lmd,
        "swap_deviation": deviation.sd,
        "swap_distance_deviation": deviation.sdd,
    }


def _cloze(reference: dict[str, str], prediction: Any) -> dict[str, Any]:
    text = prediction if isinstance(prediction, str) else repr(prediction)
    scores = LooGLE().score(Question("shortdep_cloze", "", "", reference), text)
    return {name: list(scores[f"cloze_{name}_authors"]) for name in ("exact", "partial")}  # type: ignore[arg-type]


def _overlap(reference: str, prediction: str) -> dict[str, Any]:
    scores = LooGLE().score(Question("longdep_qa", "", "", reference), prediction)
    return {
        "bleu1": scores["bleu_1"],
        "bleu4_weights_0001": scores["bleu_4_authors"],
        "rouge1_recall": scores["rouge_1_recall"],
        "rouge2_recall": scores["rouge_2_recall"],
        "rougeL_recall": scores["rouge_l_recall"],
    }

"""LooGLE's oracle cases, by what their input holds."""

from typing import Any

from broadsheet.evaluate.loogle_metrics import (
    bleu,
    bleu_4_authors,
    cloze_matches,
    order_deviation,
    read_order,
    rouge_l,
    rouge_n,
)


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
    matches = cloze_matches(reference, text, whole=True)
    return {"exact": [matches.exact, matches.total], "partial": [matches.partial, matches.total]}


def _overlap(reference: str, prediction: str) -> dict[str, Any]:
    return {
        "bleu1": bleu(reference, prediction, 1),
        "bleu4_weights_0001": bleu_4_authors(reference, prediction),
        "rouge1_recall": rouge_n(reference, prediction, 1).recall,
        "rouge2_recall": rouge_n(reference, prediction, 2).recall,
        "rougeL_recall": rouge_l(reference, prediction).recall,
    }

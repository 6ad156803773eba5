"""BabelBERT's oracle cases, by the fields of their input."""

from typing import Any

import torch
from torch.nn.functional import normalize

from broadsheet.embed.data.induction import gold_ranks, induction_scores
from broadsheet.embed.data.language_pairs import pair_weights
from broadsheet.embed.losses.ntxent import csls, label_ntxent
from broadsheet.embed.modules.subwords import SubwordMean


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "labels" in case:
        vectors = torch.tensor(case["embeddings"], dtype=torch.float64)
        loss = label_ntxent(vectors, torch.tensor(case["labels"]), case["temperature"], case["similarity"])
        return {"loss": loss.item()}
    if "hidden" in case:
        hidden = torch.tensor(case["hidden"], dtype=torch.float64)
        features = {"token_embeddings": hidden, "attention_mask": torch.tensor(case["attention_mask"])}
        return {"word": SubwordMean(hidden.shape[-1], before=1, after=1)(features)["sentence_embedding"].tolist()}
    if "pairs" in case:
        return {"weights": pair_weights(case["pairs"], case["alpha"]).tolist()}
    if "gold" in case:
        gold = [[right] if isinstance(right, int) else right for right in case["gold"]]
        scores = induction_scores(gold_ranks(case["src"], case["tgt"], gold))
        return {"score": scores[{"mrr": "mrr"}.get(case["metric"].lower(), "p@1")]}
    unit = normalize(torch.tensor(case["embeddings"], dtype=torch.float64), dim=-1)
    return {"matrix": csls(unit @ unit.T).tolist()}

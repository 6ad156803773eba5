"""BabelBERT's oracle cases, by the fields of their input."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from broadsheet.embed.data.induction import BilingualLexiconInduction
from broadsheet.embed.lexical_specialization import LabelNTXentLoss, LanguagePairSampler, SubwordMean, csls
from broadsheet.embed.losses.ntxent import cosines


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "labels" in case:
        loss = LabelNTXentLoss(torch.nn.Identity(), case["temperature"], case["similarity"])  # type: ignore[arg-type]
        vectors = torch.tensor(case["embeddings"], dtype=torch.float64)
        return {"loss": loss.compute_loss_from_embeddings([vectors], torch.tensor(case["labels"])).item()}
    if "hidden" in case:
        hidden = torch.tensor(case["hidden"], dtype=torch.float64)
        features = {"token_embeddings": hidden, "attention_mask": torch.tensor(case["attention_mask"])}
        return {"word": SubwordMean(hidden.shape[-1], before=1, after=1)(features)["sentence_embedding"].tolist()}
    if "pairs" in case:
        sampler: Any = LanguagePairSampler(tuple(map(tuple, case["pairs"])), case["alpha"])(case["pairs"], 1, False)
        return {"weights": sampler.weights.tolist()}
    if "gold" in case:
        return {"score": _induction(case)}
    return {"matrix": csls(cosines(torch.tensor(case["embeddings"], dtype=torch.float64))).tolist()}


def _induction(case: dict[str, Any]) -> float:
    """The case's vectors as words q0, q1, … that look up their gold among t0, t1, …"""
    vectors = {f"{kind}{i}": row for kind, name in (("q", "src"), ("t", "tgt")) for i, row in enumerate(case[name])}
    gold = [[right] if isinstance(right, int) else right for right in case["gold"]]
    pairs = [(f"q{i}", f"t{j}") for i, right in enumerate(gold) for j in right]
    evaluator = BilingualLexiconInduction(pairs, [word for word in vectors if word.startswith("t")])
    model: Any = SimpleNamespace(encode=lambda words, **_: np.array([vectors[word] for word in words]))
    return evaluator(model)["mrr" if case["metric"].lower() == "mrr" else "p@1"]

"""The study's oracle cases: its objective over vectors of queries and of groups of passages."""

from typing import Any

import torch
from formula_llama import embedder

from broadsheet.embed.dense_retrieval_study import CheckpointedContrast


def run(case: dict[str, Any]) -> dict[str, Any]:
    query, passages = (torch.tensor(case[name], dtype=torch.float64) for name in ("query", "passages"))
    size = case.get("group_size", 1)
    objective = CheckpointedContrast(embedder(), {}, temperature=case.get("temperature", 0.02))
    labels = torch.arange(len(query))
    fresh = len(query) + torch.arange(len(passages))  # each negative has a label of its own
    of_passages = torch.where(torch.arange(len(passages)) % size == 0, labels.repeat_interleave(size), fresh)
    batch = {"counts": torch.full((len(query),), size), "labels": labels, "passage_labels": of_passages}
    return {"loss": objective.contrast(query, passages, batch).item()}

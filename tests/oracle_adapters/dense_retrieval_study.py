"""The study's oracle cases: InfoNCE over groups of passages."""

from typing import Any

import torch

from broadsheet.embed.losses.infonce import info_nce


def run(case: dict[str, Any]) -> dict[str, Any]:
    query, passages = (torch.tensor(case[name], dtype=torch.float64) for name in ("query", "passages"))
    return {"loss": info_nce(query, passages, case.get("group_size", 1), case.get("temperature", 0.02)).item()}

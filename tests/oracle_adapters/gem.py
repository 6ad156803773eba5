"""GEM's oracle cases, by the fields they have: a contrastive loss, a row through the model, a mask."""

from typing import Any

import torch
from formula_llama import encoder

from broadsheet.embed.gem import bottleneck, contrastive_loss
from broadsheet.embed.modules.bottleneck import BottleneckRow, collator_for, forward_pass, special_states


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "anchor" in case:
        anchor, positive = (torch.tensor(case[name], dtype=torch.float64) for name in ("anchor", "positive"))
        log_scale = torch.tensor(case["log_scale"], dtype=torch.float64)
        return {"loss": contrastive_loss(anchor, positive, log_scale).item()}
    cuts = case["prefix"], case["prefix"] + case["special"]
    if "ids" in case:
        ids = case["ids"]
        return _row(case["model"], BottleneckRow(ids[: cuts[0]], ids[cuts[0] : cuts[1]], ids[cuts[1] :]))
    row = BottleneckRow(*([0] * case[name] for name in ("prefix", "special", "suffix")))
    batch = collator_for(encoder("gem", "tiny_llama"), bottleneck)([row])
    return {"mask": batch["attention_mask"][0, 0].int().tolist()}


def _row(model: str, row: BottleneckRow) -> dict[str, Any]:
    made = encoder("gem", model)
    batch = collator_for(made, bottleneck)([row])
    with torch.no_grad():
        output = forward_pass(made, batch)
    special = special_states(output.states, batch["segments"])
    return {
        "loss": (output.nll.sum() / output.scored.sum()).item(),
        "special_hidden": special[0].tolist() if row.special else [],
    }

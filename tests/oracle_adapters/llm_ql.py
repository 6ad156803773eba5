"""LLM-QL's oracle cases: rows through the model with both label layouts, or a mask."""

from typing import Any

import torch
from formula_llama import encoder

from broadsheet.embed.llm_ql import attention_stop
from broadsheet.embed.modules.bottleneck import (
    IGNORED,
    PADDING,
    PREFIX,
    SPECIAL,
    SUFFIX,
    BottleneckRow,
    allowed_positions,
    collator_for,
    forward_pass,
    special_states,
)

_LAYOUTS = {"loss_document_eos_query": ("prefix", "special", "suffix"), "loss_query_only": ("suffix",)}


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "input_ids" in case:
        return _rows(case)
    position = torch.arange(case["length"])
    special = case["special_position"]
    segments = torch.where(position < special, PREFIX, torch.where(position == special, SPECIAL, SUFFIX))
    if "attention_mask" in case:
        segments = torch.where(torch.tensor(case["attention_mask"]).bool(), segments, PADDING)
    return {"allowed": allowed_positions(segments[None], attention_stop)[0, 0].int().tolist()}


def _rows(case: dict[str, Any]) -> dict[str, Any]:
    """The case pads as the authors do; here each row is cut at its end token and padded as our collator does."""
    made = encoder("llm_ql", case["model"])
    special = case["special_position"]
    found: dict[str, Any] = {}
    for name, scored in _LAYOUTS.items():
        rows = []
        for ids, real in zip(case["input_ids"], case["attention_mask"], strict=True):
            parts = (slice(0, special), slice(special, special + 1), slice(special + 1, None))
            kept = [[i for i, known in zip(ids[part], real[part], strict=True) if known] for part in parts]
            rows.append(BottleneckRow(*kept, scored))
        batch = collator_for(made, attention_stop)(rows)
        batch["labels"][batch["labels"] == case["ignore_label_id"]] = IGNORED
        with torch.no_grad():
            output = forward_pass(made, batch)
        found[name] = (output.nll.sum() / output.scored.sum()).item()
    last = torch.tensor([len(row) for row in rows]) - 1
    return found | {
        "hidden_at_special": special_states(output.states, batch["segments"])[:, 0].tolist(),
        "hidden_at_last_real": output.states[torch.arange(len(rows)), last].tolist(),
    }

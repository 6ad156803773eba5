"""LongHeads' oracle cases: a prompt up to the first decoded row, then one token at a time, before rotary encoding."""

from typing import Any

import torch

from broadsheet.attend.longheads import LongHeads
from broadsheet.attend.memory import Layer
from oracle_adapters.attending import as_given, heads_of, rotary


def run(case: dict[str, Any]) -> dict[str, Any]:
    query, key, value = (heads_of(case[name]) for name in "qkv")
    heads, n, width = query.shape[1:]
    method = LongHeads(case["chunk"], attention_length=case["chunk"] * case["n_chunks_attended"])
    encoding = rotary(heads, width, case["rope_base"])
    state = method.state(Layer(0, heads, key.shape[1], width, width**-0.5, None, None, encoding))

    first = min(case["decode_rows"])
    outputs, chosen = {}, {}
    for start, stop in [(0, first), *((row, row + 1) for row in range(first, n))]:
        part = slice(start, stop)
        if stop > start:
            outputs[stop - 1] = state.attend(query[:, :, part], key[:, :, part], value[:, :, part])[0, :, -1]
            chosen[stop - 1] = state.chosen_[0]
    like = case["q"]
    return {
        "out": as_given(torch.stack([outputs[row] for row in case["decode_rows"]], 1), like),
        "chunk_keys": as_given(state.summaries[0], like),
        "selected_full_chunks": [as_given(chosen[row], like) for row in case["decode_rows"]],
    }

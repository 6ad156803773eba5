"""InfLLM's oracle cases: one layer fed with queries and keys before rotary encoding."""

from typing import Any

import torch

from broadsheet.attend.infllm import InfLLM
from broadsheet.attend.memory import Layer
from oracle_adapters.attending import as_given, heads_of, rotary


def run(case: dict[str, Any]) -> dict[str, Any]:
    query, key, value = (heads_of(case[name]) for name in "qkv")
    heads, n, width = query.shape[1:]
    kv_heads = key.shape[1]
    method = InfLLM(
        n_local=case["n_local"],
        n_init=case["n_init"],
        block_size=case["block_size"],
        top_k=case["topk"],
        representatives=case["repr_topk"],
    )
    encoding = rotary(heads, width, case["rope_base"])
    state = method.state(Layer(0, heads, kv_heads, width, width**-0.5, None, None, encoding))

    one_by_one = case["feed"].startswith("one token")
    outputs, selected = [], []
    for first in range(0, n, 1 if one_by_one else n):
        part = slice(first, first + 1 if one_by_one else n)
        outputs.append(state.attend(query[:, :, part], key[:, :, part], value[:, :, part]))
        selected.append(sorted(state.selected[0, 0, -1].tolist()) if hasattr(state, "selected") else [])
    blocks = [
        list(range(first, first + method.block_size))
        for first in range(method.n_init, method.n_init + len(state.blocks) * method.block_size, method.block_size)
    ]
    like = case["q"]
    return {
        "out": as_given(torch.cat(outputs, 2)[0], like),
        "blocks": blocks,
        "block_repr": as_given(state.representatives[0].transpose(0, 1), like),
        "selected_blocks_per_step": selected,
    }

"""LongHeads' oracle cases: a prompt up to the first decoded row, then one token at a time, before rotary encoding."""

from typing import Any

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from broadsheet.attend.longheads import LongHeads
from broadsheet.attend.memory import Layer
from broadsheet.attend.rotary import Rotary


def run(case: dict[str, Any]) -> dict[str, Any]:
    query, key, value = (_heads(case[name]) for name in "qkv")
    heads, n, width = query.shape[1:]
    config = LlamaConfig(
        hidden_size=heads * width,
        num_attention_heads=heads,
        head_dim=width,
        rope_parameters={"rope_type": "default", "rope_theta": case["rope_base"]},
    )
    rotary = Rotary(LlamaRotaryEmbedding(config), apply_rotary_pos_emb)
    method = LongHeads(case["chunk"], attention_length=case["chunk"] * case["n_chunks_attended"])
    state = method.state(Layer(0, heads, key.shape[1], width, width**-0.5, None, None, rotary))

    first = min(case["decode_rows"])
    outputs, chosen = {}, {}
    for start, stop in [(0, first), *((row, row + 1) for row in range(first, n))]:
        part = slice(start, stop)
        if stop > start:
            outputs[stop - 1] = state.attend(query[:, :, part], key[:, :, part], value[:, :, part])[0, :, -1]
            chosen[stop - 1] = state.chosen_[0]
    like = case["q"]
    return {
        "out": _as_given(torch.stack([outputs[row] for row in case["decode_rows"]], 1), like),
        "chunk_keys": _as_given(state.summaries[0], like),
        "selected_full_chunks": [_as_given(chosen[row], like) for row in case["decode_rows"]],
    }


def _heads(values: Any) -> torch.Tensor:
    """(n, head_dim) of one head, or (heads, n, head_dim): (1, heads, n, head_dim) float64."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor[None] if tensor.dim() == 3 else tensor[None, None]


def _as_given(tensor: torch.Tensor, like: Any) -> Any:
    """(heads, …) as lists, without the heads where the input has none."""
    return (tensor if isinstance(like[0][0], list) else tensor[0]).tolist()

"""InfLLM's oracle cases: one layer fed with queries and keys before rotary encoding."""

from typing import Any

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from broadsheet.attend.infllm import InfLLM, InfLLMState
from broadsheet.attend.memory import Layer
from broadsheet.attend.rotary import Rotary


def run(case: dict[str, Any]) -> dict[str, Any]:
    query, key, value = (_heads(case[name]) for name in "qkv")
    heads, n, width = query.shape[1:]
    kv_heads = key.shape[1]
    config = LlamaConfig(
        hidden_size=heads * width,
        num_attention_heads=heads,
        head_dim=width,
        rope_parameters={"rope_type": "default", "rope_theta": case["rope_base"]},
    )
    rotary = Rotary(LlamaRotaryEmbedding(config), apply_rotary_pos_emb)
    method = InfLLM(
        n_local=case["n_local"],
        n_init=case["n_init"],
        block_size=case["block_size"],
        top_k=case["topk"],
        representatives=case["repr_topk"],
    )
    state = InfLLMState(Layer(0, heads, kv_heads, width, width**-0.5, None, None, rotary), method)

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
        "out": _as_given(torch.cat(outputs, 2)[0], like),
        "blocks": blocks,
        "block_repr": _as_given(state.representatives[0].transpose(0, 1), like),
        "selected_blocks_per_step": selected,
    }


def _heads(values: Any) -> torch.Tensor:
    """(n, head_dim) of one head, or (heads, n, head_dim): (1, heads, n, head_dim) float64."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor[None] if tensor.dim() == 3 else tensor[None, None]


def _as_given(tensor: torch.Tensor, like: Any) -> Any:
    """(heads, n, head_dim) as lists, without the heads where the input has none."""
    return (tensor if isinstance(like[0][0], list) else tensor[0]).tolist()

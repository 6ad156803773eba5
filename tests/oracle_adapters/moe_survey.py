"""Mixtures of experts' oracle cases: balance losses, gates by each router, capacity, upcycling, the selection bias."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from broadsheet.train import Upcycling
from broadsheet.train.experts import routing
from broadsheet.train.moe_survey import install, pooled_and_by_layer


def run(case: dict[str, Any]) -> dict[str, Any]:
    for kind, answer in (
        ("gate_logits", _balance), ("W_noise", _noisy), ("gate_proj", _upcycled), ("bias", _bias),
    ):  # fmt: skip
        if kind in case:
            return answer(case)
    logits = _wide(case["router_logits"])
    if "capacity_factor" not in case:
        return _gates(logits, case["top_k"])
    if "top_k" not in case:
        return _expert_choice(logits, case["capacity_factor"])
    experts, k = logits.shape[1], case["top_k"]
    indices = routing.mixtral(logits, k).indices
    most = routing.capacity(len(logits), experts, k, case["capacity_factor"])
    fits = routing.within_capacity(indices, experts, most)
    load = torch.bincount(indices[fits], minlength=experts)
    dropped = [[token, int(indices[token, place])] for place, token in (~fits).T.nonzero().tolist()]
    return {"capacity": most, "load": load.tolist(), "dropped": dropped}


def _wide(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _balance(case: dict[str, Any]) -> dict[str, Any]:
    mask = case["attention_mask"]
    asked = None if mask is None else torch.tensor(mask).flatten() != 0
    pooled, by_layer = pooled_and_by_layer([_wide(layer) for layer in case["gate_logits"]], case["top_k"], asked)
    mean = float(by_layer.mean())
    told = {"per_layer": by_layer.tolist(), "mean_of_layers": mean, "divided_by_k": mean / case["top_k"]}
    return {"hf_v5_pooled_over_layers": float(pooled), **told}


def _gates(logits: torch.Tensor, k: int) -> dict[str, Any]:
    renormalised, plain = routing.mixtral(logits, k), routing.switch(logits, k)
    return {
        "indices": renormalised.indices.tolist(),
        "renormalised_weights": renormalised.gates.tolist(),
        "softmax_of_topk_logits": routing.noisy(logits, k).gates.tolist(),
        "unnormalised_topk_probs": plain.gates.tolist(),
        "z_loss": float(routing.z_loss(logits)),
    }


def _noisy(case: dict[str, Any]) -> dict[str, Any]:
    x, gate, noise = (_wide(case[name]) for name in ("x", "W_g", "W_noise"))
    found = routing.noisy(x @ gate, case["top_k"], noise=x @ noise, eps=_wide(case["standard_normal"]))
    gates = routing.spread(found)
    told = {"gates": gates.tolist(), "importance": gates.sum(0).tolist()}
    return {**told, "cv_squared_population": float(routing.importance_loss(gates))}


def _expert_choice(logits: torch.Tensor, factor: float) -> dict[str, Any]:
    chosen = routing.chosen_tokens(logits.softmax(-1), factor)
    gates = routing.expert_choice(logits, 1, factor=factor).gates
    return {
        "tokens_per_expert": chosen.shape[1],
        "token_indices": chosen.tolist(),
        "gates": [gates[tokens, expert].tolist() for expert, tokens in enumerate(chosen)],
        "tokens_unserved": (gates.sum(1) == 0).nonzero().flatten().tolist(),
    }


def _upcycled(case: dict[str, Any]) -> dict[str, Any]:
    """One layer's feed-forward network, in a model that is upcycled."""
    x, router = _wide(case["x"]), _wide(case["router"])
    width, hidden = len(case["gate_proj"]), len(case["gate_proj"][0])
    config = LlamaConfig(
        vocab_size=4, hidden_size=hidden, intermediate_size=width, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=2,
    )  # fmt: skip
    dense = LlamaForCausalLM(config).double()
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(dense.model.layers[0].mlp, name).weight.copy_(_wide(case[name]))
        mixture = Upcycling(case["num_experts"], case["top_k"]).model(dense)
        install(mixture, "mixtral")  # transformers' own computes gates in float32
        [layer] = mixture.model.layers
        layer.mlp.gate.weight.copy_(router)
        scale = routing.switch(x @ router.T, case["top_k"]).gates.sum(1)
        return {
            "dense_output": dense.model.layers[0].mlp(x).tolist(),
            "upcycled_output_renormalised": layer.mlp(x[None])[0].tolist(),
            "upcycled_output_without_renorm_scale_per_token": scale.tolist(),
        }


def _bias(case: dict[str, Any]) -> dict[str, Any]:
    logits, bias = _wide(case["router_logits"]), _wide(case["bias"])
    found = routing.sigmoid(logits, case["top_k"], bias=bias)
    load = routing.counts(found.indices, logits.shape[1])
    return {
        "indices": found.indices.tolist(),
        "weights": found.gates.tolist(),
        "load": load.tolist(),
        "new_bias": routing.moved(bias, load.to(bias), case["update_speed"]).tolist(),
    }

"""TransNormer's oracle cases, told apart by what they give."""

from typing import Any

import torch

from broadsheet.attend.transnormer import (
    SGLU,
    decayed_attention,
    head_slopes,
    log_decay,
    lrpe,
    lrpe_theta,
    srmsnorm,
)
from broadsheet.attend.transnormer_config import TransNormerConfig


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "q" in case:
        return _attention(case)
    if "Wo" in case:
        return _sglu(case)
    if "x" in case:
        return _lrpe(case) if "offset" in case else {"y": srmsnorm(_tensor(case["x"]), case.get("eps", 1e-6)).tolist()}
    if "n_layers" in case:
        return _decay(case)
    return {"slopes": head_slopes(case["n_heads"])}


def _tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _decay(case: dict[str, Any]) -> dict[str, Any]:
    if "layer_1_based" in case:
        rates = log_decay(case["n_heads"], case["layer_1_based"] - 1, case["n_layers"], "paper")
    else:
        rates = log_decay(case["n_heads"], case["layer_idx_0_based"], case["n_layers"], "code")
    return {"decay_lambda": _tensor(rates).exp().tolist()}


def _attention(case: dict[str, Any]) -> dict[str, Any]:
    q, k, v = (_tensor(case[name]) for name in "qkv")
    batched = q.ndim == 4
    if not batched:
        q, k, v = q[None], k[None], v[None]
    # Blocks of three, so that texts of the cases' lengths cross blocks and end inside one.
    out, state = decayed_attention(q, k, v, -_tensor(case["slopes"]), block_size=3)
    return {
        "out": (out if batched else out[0]).tolist(),
        "final_kv_state": (state if batched else state[0]).tolist(),
    }


def _lrpe(case: dict[str, Any]) -> dict[str, Any]:
    x = _tensor(case["x"])
    batched = x.ndim == 4
    x = x if batched else x[None]
    theta = lrpe_theta(x.shape[1], x.shape[3])
    y = lrpe(x, theta, case["offset"] + torch.arange(x.shape[2]))
    return {"theta": theta.tolist(), "y": (y if batched else y[0]).tolist()}


def _sglu(case: dict[str, Any]) -> dict[str, Any]:
    weights = {name: _tensor(case[key]) for name, key in (("u_proj", "Wu"), ("v_proj", "Wv"), ("o_proj", "Wo"))}
    width, hidden = weights["u_proj"].shape
    mlp = SGLU(TransNormerConfig(hidden_size=hidden, intermediate_size=width, num_attention_heads=1)).double()
    mlp.load_state_dict({f"{name}.weight": weight for name, weight in weights.items()})
    return {"y": mlp(_tensor(case["x"])).tolist()}

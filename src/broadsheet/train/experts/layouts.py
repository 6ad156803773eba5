"""Where the weights of a dense model go in a mixture of experts that plain transformers load.

Knows: configs and state dicts of transformers' Llama, Mistral, Qwen2 and Qwen3, and of Mixtral, Qwen2-MoE, Qwen3-MoE
and GLM-4-MoE. Does not know: training, or what is done to the copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from broadsheet.console import InputError

DENSE = ("llama", "mistral", "qwen2", "qwen3")
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "tie_word_embeddings",
    "rope_parameters", "attention_dropout", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A class of transformers' that holds experts.

    Attributes:
        model_type: as `AutoConfig` knows it.
        settings: of its config: from experts, k, the first layer that has any, their width, whether
            gates are renormalised.
    """

    model_type: str
    settings: Callable[[int, int, int, int, bool], dict[str, Any]]


def _mixtral(experts: int, k: int, first: int, width: int, renormalised: bool) -> dict[str, Any]:
    return {"num_local_experts": experts, "num_experts_per_tok": k, "output_router_logits": False}


def _qwen(experts: int, k: int, first: int, width: int, renormalised: bool) -> dict[str, Any]:
    return {
        "num_experts": experts, "num_experts_per_tok": k, "moe_intermediate_size": width, "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(first)), "norm_topk_prob": renormalised,
    }  # fmt: skip


def _qwen2(experts: int, k: int, first: int, width: int, renormalised: bool) -> dict[str, Any]:
    return {**_qwen(experts, k, first, width, renormalised), "shared_expert_intermediate_size": 0}


def _glm4(experts: int, k: int, first: int, width: int, renormalised: bool) -> dict[str, Any]:
    return {
        "n_routed_experts": experts, "num_experts_per_tok": k, "moe_intermediate_size": width, "n_shared_experts": 0,
        "first_k_dense_replace": first, "norm_topk_prob": True, "num_mtp_layers": 0, "n_group": 1, "topk_group": 1,
        "routed_scaling_factor": 1.0,
    }  # fmt: skip


MIXTRAL, QWEN2 = Layout("mixtral", _mixtral), Layout("qwen2_moe", _qwen2)
QWEN3, GLM4 = Layout("qwen3_moe", _qwen), Layout("glm4_moe", _glm4)


def layout(config: Any, router: str, whole: bool) -> Layout:
    """The class that holds such experts.

    Mixtral has experts in every layer, renormalises gates, and knows no biases in attention; Qwen2-MoE and Qwen3-MoE
    know layers without experts and gates as they are; GLM-4-MoE selects by a sigmoid with a bias.

    Args:
        config: of the dense model.
        router: `"mixtral"`, `"switch"` or `"sigmoid"`.
        whole: whether all layers get experts.

    Raises:
        InputError: the dense model is of no known kind.
    """
    kind = config.model_type
    if kind not in DENSE:
        raise InputError(f"got a {kind} model; expected one of {', '.join(DENSE)}")
    if router == "sigmoid":
        return GLM4
    if kind == "qwen3":
        return QWEN3
    return QWEN2 if kind == "qwen2" or router == "switch" or not whole else MIXTRAL


def config_of(dense: Any, of: Layout, experts: int, k: int, first: int, renormalised: bool) -> Any:
    """The config of the mixture.

    Args:
        dense: the dense model's config.
        first: the first layer that has experts.

    Raises:
        InputError: the dense model reads through a sliding window, which the class does not have.
    """
    from transformers import CONFIG_MAPPING

    shared = {name: getattr(dense, name) for name in _SHARED if getattr(dense, name, None) is not None}
    shared |= {name: getattr(dense, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    window = getattr(dense, "sliding_window", None) if getattr(dense, "use_sliding_window", True) else None
    if window and of is not MIXTRAL:
        raise InputError(
            f"a {dense.model_type} model with a sliding window of {window:,} has no place as a {of.model_type}; "
            "expected one without, or router='mixtral' in all layers"
        )
    more = of.settings(experts, k, first, dense.intermediate_size, renormalised)
    if of is MIXTRAL:
        more["sliding_window"] = window
    elif of is QWEN2:
        more["qkv_bias"] = dense.model_type == "qwen2"
    elif of is GLM4:
        norms, biases = dense.model_type == "qwen3", dense.model_type == "qwen2"
        more |= {"use_qk_norm": norms, "attention_bias": biases}
        shared["rope_parameters"] = {**dense.rope_parameters, "partial_rotary_factor": 1.0}
    made = CONFIG_MAPPING[of.model_type](**{**shared, **more})
    made._name_or_path = dense.name_or_path
    return made


def placed(dense: dict[str, Tensor], wanted: dict[str, Tensor], experts: int) -> dict[str, Tensor]:
    """The dense weights in the mixture's places: each expert a copy, all else as it is; routers as `wanted` has them.

    Args:
        dense, wanted: state dicts; of `wanted` all but routers are replaced.

    Raises:
        InputError: a dense weight has no place (a bias that the class does not know).
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()

    def take(name: str) -> Tensor:
        used.add(name)
        return dense[name].detach()

    for name, old in wanted.items():
        mlp = name.partition("experts.")[0]
        if name.endswith("experts.gate_up_proj"):  # the gate's rows first
            one = torch.cat([take(f"{mlp}gate_proj.weight"), take(f"{mlp}up_proj.weight")])
            found[name] = one.expand(experts, *one.shape).clone()
        elif name.endswith("experts.down_proj"):
            one = take(f"{mlp}down_proj.weight")
            found[name] = one.expand(experts, *one.shape).clone()
        else:
            found[name] = take(name) if name in dense else old
    if left := sorted(set(dense) - used):
        raise InputError(f"{left[0]} and {len(left) - 1} other weights have no place among experts; expected no biases")
    return found

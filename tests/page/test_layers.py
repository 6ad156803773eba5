"""What layers keep, told from configs, beside what tiny models of each kind really hold in their caches."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from attend_zoo import BASE

from broadsheet.attend import FlexPrefill, InfLLM, LMInfinite, LongHeads
from broadsheet.attend.transnormer import TransNormerForCausalLM
from broadsheet.attend.transnormer_config import TransNormerConfig
from broadsheet.console import InputError
from broadsheet.decode.target import check_model
from broadsheet.page.guides.longcontext import ModelShape, long_input

FOUR = BASE | {"num_hidden_layers": 4, "max_position_embeddings": 256}
EXPERTS = {
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = EXPERTS | {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
}
INDEXED = LATENT | {"index_head_dim": 6, "index_n_heads": 2, "index_topk": 16}
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 8}
DELTA = EXPERTS | {
    "head_dim": 8,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
KIMI = {"linear_head_dim": 6, "linear_num_heads": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
SHARED = {
    "head_dim": 8,
    "num_kv_shared_layers": 2,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 100,
}
# By type: what stands in the config beside `FOUR`, and the kinds of its layers.
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "llama": ({}, "full full full full"),
    "falcon": ({"num_key_value_heads": None, "multi_query": True}, "full full full full"),
    "deepseek_v2": (LATENT, "latent latent latent latent"),
    "deepseek_v3": (LATENT, "latent latent latent latent"),
    "minicpm3": (LATENT, "latent latent latent latent"),
    "glm4_moe_lite": (LATENT, "latent latent latent latent"),
    "longcat_flash": (
        LATENT | {"num_layers": 2, "moe_topk": 2, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 48},
        "latent latent latent latent",
    ),
    "deepseek_v32": (INDEXED, "indexed indexed indexed indexed"),
    "hy_v4": (INDEXED, "indexed indexed indexed indexed"),
    "mamba": ({}, "linear linear linear linear"),
    "falcon_mamba": ({}, "linear linear linear linear"),
    "mamba2": ({"num_heads": 4, "head_dim": 16, "n_groups": 2, "state_size": 8}, "linear linear linear linear"),
    "jamba": (
        EXPERTS | {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        "linear full linear full",
    ),
    "bamba": (MAMBA2 | {"attn_layer_indices": [1]}, "linear full linear linear"),
    "granitemoehybrid": (MAMBA2 | {"layer_types": ["mamba", "attention"] * 2}, "linear full linear full"),
    "falcon_h1": (MAMBA2 | {"mamba_d_ssm": 64}, "hybrid hybrid hybrid hybrid"),
    "zamba2": (
        {
            "mamba_d_state": 8,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "hybrid_layer_ids": [1, 3],
            "layers_block_type": ["mamba", "hybrid"] * 2,
        },
        "linear hybrid linear hybrid",
    ),
    "nemotron_h": (
        {
            "layers_block_type": None,
            "hybrid_override_pattern": "M*-M",
            "head_dim": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 2,
        },
        "linear full none linear",
    ),
    "qwen3_next": (DELTA, "linear linear linear full"),
    "qwen3_5_text": (DELTA, "linear linear linear full"),
    "olmo_hybrid": (DELTA, "linear linear linear full"),
    "kimi_linear": (LATENT | KIMI | {"q_lora_rank": None}, "linear latent linear latent"),
    "bailing_hybrid": (LATENT | KIMI, "linear latent linear latent"),
    "minimax": (EXPERTS | {"head_dim": 8}, "full linear full linear"),
    "lfm2": ({"layer_types": ["conv", "full_attention"] * 2}, "conv full conv full"),
    "rwkv": ({}, "linear linear linear linear"),
    "mistral": ({"sliding_window": 8}, "sliding sliding sliding sliding"),
    "gpt_oss": (EXPERTS | {"head_dim": 8, "sliding_window": 8}, "sliding full sliding full"),
    "exaone4": ({"sliding_window": 8, "sliding_window_pattern": 4}, "sliding sliding sliding full"),
    "llama4_text": (
        EXPERTS | {"head_dim": 8, "attention_chunk_size": 8, "intermediate_size_mlp": 48},
        "chunked chunked chunked full",
    ),
    "gemma3n_text": (
        SHARED | {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4},
        "sliding full shared shared",
    ),
    "gemma4_text": (SHARED | {"global_head_dim": 16}, "sliding full shared shared"),
    "transnormer": ({}, "linear linear linear linear"),
}


@cache
def model_of(kind: str) -> Any:
    """A tiny seeded model of a type, in float32 and eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "transnormer":
            sizes = {name: FOUR[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
            return TransNormerForCausalLM(TransNormerConfig(**sizes, num_attention_heads=4)).eval()
        config = hf.CONFIG_MAPPING[kind](**FOUR | KINDS[kind][0])
        return hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def config_of(kind: str) -> dict[str, Any]:
    """Its config as `config.json` has it."""
    return json.loads(model_of(kind).config.to_json_string())


def held(cache: Any, depth: int = 0) -> int:
    """Bytes of all tensors of floats in a cache, however it is built."""
    if isinstance(cache, torch.Tensor):
        return cache.nbytes if cache.is_floating_point() else 0
    if isinstance(cache, dict | list | tuple):
        return sum(held(each, depth + 1) for each in (cache.values() if isinstance(cache, dict) else cache))
    ours = depth < 4 and type(cache).__module__.startswith(("transformers.", "broadsheet."))
    return sum(held(each, depth + 1) for each in vars(cache).values()) if ours and hasattr(cache, "__dict__") else 0


def read(kind: str, length: int, dtype: torch.dtype = torch.float32) -> Any:
    """What a model keeps of a text of so many tokens."""
    model = model_of(kind)
    try:
        with torch.no_grad():
            out = model.to(dtype)(torch.arange(length)[None] % 90 + 3, use_cache=True)
    finally:
        model.to(torch.float32)
    return next(found for name in ("cache", "cache_params", "state") if (found := getattr(out, name, None)) is not None)


def spare(shape: ModelShape, length: int, size: int) -> int:
    """Between two steps transformers keeps a token less than a window: the next one fills it."""
    return size * sum(each.numbers for each in shape.kept if each.window and length >= each.window)


@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_that_a_model_of_the_kind_holds(kind, length):
    shape = ModelShape.of(config_of(kind))
    assert " ".join(each.kind for each in shape.kept) == KINDS[kind][1]
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        told = shape.cache_bytes(length, size)
        assert told == held(read(kind, length, dtype)) + spare(shape, length, size), dtype


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_applies_where_it_does_not_refuse_the_model(kind):
    made = long_input(config_of(kind), 40)
    usable = {each.way.id: each.cache is not None for each in made.ways}
    methods = {
        "lm_infinite": LMInfinite(n_global=2, n_local=30),
        "infllm": InfLLM(n_init=2, n_local=14, block_size=4, top_k=2),
        "longheads": LongHeads(chunk_size=4, attention_length=16),
        "flexprefill": FlexPrefill(block_size=16, min_budget=16),
    }
    for name, method in methods.items():
        try:
            with method(model_of(kind)):
                taken = True
        except InputError:
            taken = False
        assert usable[name] == taken, name
    try:
        check_model(model_of(kind), tree=True)
        taken = True
    except InputError:
        taken = False
    assert usable["aded"] == taken


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "recurrent_gemma", "block_types": ["recurrent", "attention"]}, "layers of kind recurrent"),
        ({"layer_types": ["compressed_sparse_attention"] * 4}, "layers of kind compressed_sparse_attention"),
        ({"layer_types": ["linear_attention"] * 4}, "what its linear layers keep is not known"),
        ({"layer_types": ["full_attention"] * 3}, "names 3 of 4 layers"),
        ({"mamba_d_state": 16}, "has mamba_d_state, but does not say which layers"),
        ({"kv_lora_rank": 8, "sliding_window": 8}, "latents are kept within windows"),
        ({"use_cla": True}, "its config has use_cla"),
        ({"model_type": "cpmant"}, "a cpmant keeps other than its config tells"),
        ({"is_encoder_decoder": True}, "an encoder-decoder"),
    ],
)
def test_what_a_config_does_not_say_is_not_guessed(config, why):
    made = long_input(FOUR | config, 40, memory=1)
    assert why in made.shape.unread
    assert made.to_dict()["not_read"] == made.shape.unread
    assert (made.cache, made.per_token, made.weights, made.operations, made.fits) == (None,) * 5
    assert all(why in each.reason for each in made.ways if each.way.id != "transnormer")
    assert not any(each.applies for each in made.ways if each.way.id != "transnormer")


@pytest.mark.parametrize(
    ("repository", "saved"),
    [
        ({"model_type": "qwen3_next", "full_attention_interval": 4}, {"layer_types": ["linear_attention"] * 3}),
        ({"model_type": "minimax", "attn_type_list": [0, 0, 0, 1]}, {"layer_types": ["linear_attention"] * 3}),
        (
            {
                "model_type": "kimi_linear",
                "linear_attn_config": {
                    "full_attn_layers": [4],
                    "num_heads": 4,
                    "head_dim": 6,
                    "short_conv_kernel_size": 4,
                },
            },
            {
                "layer_types": ["linear_attention"] * 3,
                "linear_num_heads": 4,
                "linear_head_dim": 6,
                "linear_conv_kernel_dim": 4,
            },
        ),
    ],
    ids=["qwen3_next", "minimax", "kimi_linear"],
)
def test_a_config_as_its_repository_has_it_tells_the_same_as_one_that_transformers_saved(repository, saved):
    sizes = FOUR | DELTA | {"linear_conv_kernel_dim": 4}
    if repository["model_type"] == "kimi_linear":
        sizes = FOUR | LATENT
    saved = {"model_type": repository["model_type"], **saved, "layer_types": [*saved["layer_types"], "full_attention"]}
    assert ModelShape.of(sizes | repository) == ModelShape.of(sizes | saved)
    assert ModelShape.of(sizes | saved).state_bytes(4) > 0


def test_numbers_of_known_models_are_those_that_are_published():
    # DeepSeek-V3: 61 layers of 512 + 64 numbers (arXiv:2412.19437, Sec. 4.2): 70 kB a token in bfloat16.
    large = LATENT | {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 61}
    assert ModelShape.of(FOUR | large).cache_bytes(1, 2) == 61 * 576 * 2
    # Jamba: 1 layer in 8 attends, 8 heads of 128: 4 GB at 256k tokens in 16 bits (arXiv:2403.19887, Table 1).
    jamba = {"model_type": "jamba", "num_hidden_layers": 32, "attn_layer_period": 8, "attn_layer_offset": 4}
    jamba |= {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    shape = ModelShape.of(FOUR | jamba | {"mamba_expand": 2, "mamba_d_state": 16, "mamba_d_conv": 4})
    assert shape.cache_bytes(262_144, 2) - shape.state_bytes(2) == 4 * 2**30


def test_operations_follow_what_queries_see():
    chunked = FOUR | {"layer_types": ["chunked_attention"] * 4, "attention_chunk_size": 4}
    # Ten queries in chunks of 4, 4 and 2 see 10 + 10 + 3 keys; a pair takes 2 · 4 heads · (8 + 8) operations.
    assert ModelShape.of(chunked).prefill(10)[1] == 4 * 23 * 128
    indexed = ModelShape.of(FOUR | INDEXED | {"index_topk": 4})
    # They see at most 4 of the keys before them (34 pairs), and an indexer of 2 · 6 numbers looks at all 55.
    assert indexed.prefill(10)[1] == 4 * (34 * 2 * 4 * (6 + 4 + 10) + 55 * 2 * 2 * 6)
    assert ModelShape.of({"model_type": "mamba", **FOUR, "state_size": 8, "conv_kernel": 4}).prefill(10)[1] == 0

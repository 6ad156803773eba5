"""What each layer of a causal LM keeps of a text, from the model's config alone: keys and values, latents, states.

Knows: configs as JSON, as model repositories have them and as transformers saves them. Does not know: models, or what a
length costs. What a config does not say is not guessed: `read_layers` refuses it, and says why.

Sources: the papers that are named below; that each is what transformers keeps is tested on tiny models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Config = Mapping[str, Any]


class UnreadError(Exception):
    """What a layer keeps cannot be read from the config; the message says why, in a few words."""


@dataclass(frozen=True)
class Kept:
    """What a layer keeps of one text, and what its attention computes.

    Attributes:
        kind: `"full"`, `"sliding"`, `"chunked"`, `"latent"`, `"indexed"`, `"linear"`, `"conv"`, `"hybrid"`, `"shared"`
            (it reads another layer's keys and values), or `"none"` (an MLP alone).
        numbers: that it keeps of each token, in the model's dtype.
        window: tokens that it keeps at most; None for all.
        state: numbers in the model's dtype, whatever the length of the text: the inputs of a short convolution.
        memory: numbers in float32, in any model, whatever the length: a recurrent state.
        operations: of attention, for each pair of a query and a key that it sees.
        sees: keys that a query sees at most, where that is not the window: those that an indexer picks.
        picking: operations of that indexer, for each pair of a query and any key before it.
    """

    kind: str
    numbers: int = 0
    window: int | None = None
    state: int = 0
    memory: int = 0
    operations: int = 0
    sees: int | None = None
    picking: int = 0


# What layers are called in configs: as transformers has it now, and before.
_KINDS = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "indexed_attention": "indexed",
    "deepseek_sparse_attention": "indexed",
    "linear_attention": "linear",
    "mamba": "linear",
    "conv": "conv",
    "hybrid": "hybrid",
    "moe": "none",
    "mlp": "none",
}
ATTENDS = ("full", "sliding", "chunked", "latent", "indexed", "hybrid", "shared")
_PATTERN = {"M": "linear", "*": "full", "-": "none", "E": "none"}  # Nemotron-H
_ALL = {"mamba": "linear", "mamba2": "linear", "falcon_mamba": "linear", "falcon_h1": "hybrid", "rwkv": "linear"}
_ALL["transnormer"] = "linear"
# Beginnings of keys that tell of states: where no layer was found that has one, the config is not understood.
_OF_STATES = ("mamba_", "ssm_", "linear_attn", "linear_key", "linear_num", "lru_", "n_recurrent", "recurrent_")
# Keys that tell of something else that is not known here: keys that neighbours share, layers that run several times.
_ODD = ("use_cla", "loop_layer_index_start", "n_recurrent_loops", "number_of_conv_states")
# Models whose code keeps other than their config tells: sizes that are not in it, prompts, layers that run in turns.
_OTHER = ("blt", "cpmant", "hrm_text", "mimo_v2_flash", "reformer", "xlnet")
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}  # where older configs do not say


def read_layers(given: Config, layers: int) -> tuple[Kept, ...]:
    """What each layer keeps.

    Args:
        given: the config of the text model.
        layers: how many there are.

    Raises:
        UnreadError: the config does not say, or says what is not known here.
        KeyError, TypeError, ValueError, ZeroDivisionError: it lacks a size, or has one that is none.
    """
    if given.get("is_encoder_decoder"):
        raise UnreadError("an encoder-decoder")
    if given.get("model_type") in _OTHER:
        raise UnreadError(f"a {given['model_type']} keeps other than its config tells")
    if odd := next((key for key in _ODD if given.get(key)), None):
        raise UnreadError(f"its config has {odd}")
    kinds = _kinds(given, layers)
    if not {"linear", "conv", "hybrid"} & set(kinds):
        told = next((key for key, value in given.items() if value and key.startswith(_OF_STATES)), None)
        if told:
            raise UnreadError(f"its config has {told}, but does not say which layers keep states")
    kept = [_kept(kind, layer, _of_layer(given, layer)) for layer, kind in enumerate(kinds)]
    own = layers - int(given.get("num_kv_shared_layers") or 0)  # Gemma 3n: the last ones read those of others
    sources = given.get("kv_source_layers") or [layer if layer < own else -1 for layer in range(layers)]
    return tuple(
        each if source == layer else replace(each, kind="shared", numbers=0)
        for layer, (each, source) in enumerate(zip(kept, sources, strict=True))
    )


def _of_layer(given: Config, layer: int) -> Config:
    """The config of one layer, where layers differ (`per_layer_config`)."""
    own = given.get("per_layer_config") or {}
    return {**given, **next((sizes for key, sizes in own.items() if int(key) == layer), {})}


def _kinds(given: Config, layers: int) -> list[str]:
    """The kind of each layer, told by whichever key the config has."""
    named, known = given.get("layer_types") or given.get("layers_block_type"), _KINDS
    if named is None and given.get("hybrid_override_pattern"):
        named, known = given["hybrid_override_pattern"], _PATTERN
    if named is not None:
        if odd := sorted({str(name) for name in named} - set(known)):
            raise UnreadError(f"it has layers of kind {', '.join(odd)}")
        kinds = [known[name] for name in named]
    else:
        kinds = [_unnamed(given, layer, layers) for layer in range(layers)]
    if len(kinds) != layers:
        raise UnreadError(f"its config names {len(kinds)} of {layers} layers")
    if given.get("sliding_window") is None or not given.get("use_sliding_window", True):
        kinds = ["full" if kind == "sliding" else kind for kind in kinds]
    if given.get("index_head_dim"):
        kinds = ["indexed" if kind == "full" else kind for kind in kinds]
    if given.get("kv_lora_rank"):
        if {"sliding", "chunked"} & set(kinds):
            raise UnreadError("its latents are kept within windows")
        kinds = ["latent" if kind == "full" else kind for kind in kinds]
    return kinds


def _unnamed(given: Config, layer: int, layers: int) -> str:
    """The kind of a layer, by a rule: which, is told by the key that a config has."""
    if period := given.get("attn_layer_period"):  # Jamba
        return "full" if layer % period == given["attn_layer_offset"] else "linear"
    if "attn_layer_indices" in given:  # Bamba
        return "full" if layer in (given["attn_layer_indices"] or ()) else "linear"
    if interval := given.get("full_attention_interval"):  # Qwen3-Next
        return "linear" if (layer + 1) % interval else "full"
    if listed := given.get("attn_type_list"):  # MiniMax-01
        return "full" if listed[layer] else "linear"
    if linear := given.get("linear_attn_config"):  # Kimi Linear; it counts from 1
        return "full" if layer + 1 in linear["full_attn_layers"] else "linear"
    if (full := given.get("full_attn_idxs")) is not None:  # LFM2
        return "full" if layer in full else "conv"
    if given.get("block_types"):  # RecurrentGemma
        odd = sorted(set(given["block_types"]) - set(_KINDS))
        raise UnreadError(f"it has layers of kind {', '.join(odd)}")
    if (kind := _ALL.get(given.get("model_type", ""))) is not None:
        return kind
    every = given.get("sliding_window_pattern") or _FULL_EVERY.get(given.get("model_type", ""), layers + 1)
    if isinstance(every, str):  # EXAONE 4: "LLLG"
        return "sliding" if every[layer % len(every)] == "L" and layer + 1 < layers else "full"
    first = given.get("max_window_layers", 0)
    return "sliding" if layer >= first and (layer + 1) % every else "full"


def _kept(kind: str, layer: int, given: Config) -> Kept:
    if kind == "none":
        return Kept(kind)
    if kind in ("latent", "indexed"):
        return _latent(kind, layer, given)
    if kind in ("linear", "conv"):
        state, memory = _state(kind, layer, given)
        return Kept(kind, state=state, memory=memory)
    held = _attention(given, kind)
    if kind == "hybrid":
        state, memory = _state(kind, layer, given)
        return Kept(kind, held.numbers, None, state, memory, held.operations)
    window = {"sliding": "sliding_window", "chunked": "attention_chunk_size"}.get(kind)
    return Kept(kind, held.numbers, int(given[window]) if window else None, operations=held.operations)


def head_sizes(given: Config) -> tuple[int, int, int]:
    """Heads, heads of keys and values, and numbers of a head."""
    heads, hidden = int(given["num_attention_heads"]), int(given["hidden_size"])
    kv_heads = int(given.get("num_key_value_heads") or heads)
    if given.get("model_type") == "falcon":
        many = given.get("new_decoder_architecture") or not given.get("multi_query", True)
        kv_heads = int(given.get("num_kv_heads") or heads) if many else 1
    size = given.get("head_dim") or given.get("attention_head_dim") or given.get("kv_channels") or hidden // heads
    return heads, kv_heads, int(size)


def _attention(given: Config, kind: str) -> Kept:
    """Keys and values of each head of their own."""
    heads, kv_heads, size = head_sizes(given)
    if kind == "full" and str(given.get("model_type", "")).startswith("gemma4") and "per_layer_config" not in given:
        size = int(given["global_head_dim"])
        if given.get("num_global_key_value_heads") and given.get("attention_k_eq_v", True):
            kv_heads = int(given["num_global_key_value_heads"])
    if kind == "sliding" and (own := next((key for key in given if key.startswith("swa_") and given[key]), None)):
        raise UnreadError(f"its config has {own}")
    values = int(given.get("v_head_dim") or size)
    return Kept(kind, kv_heads * (size + values), operations=2 * heads * (size + values))


def _latent(kind: str, layer: int, given: Config) -> Kept:
    """One latent for keys and values of all heads, and one rotated key (MLA, arXiv:2405.04434, Sec. 2.1).

    Where an indexer picks the tokens that are attended to (arXiv:2512.02556), its keys are kept too.
    """
    if not given.get("kv_lora_rank"):
        raise UnreadError("its layers attend to picked tokens, without latents")
    heads, rotated = int(given["num_attention_heads"]), int(given["qk_rope_head_dim"])
    pair = 2 * heads * (int(given["qk_nope_head_dim"]) + rotated + int(given["v_head_dim"]))
    numbers = int(given["kv_lora_rank"]) + rotated
    if kind == "latent":
        return Kept(kind, numbers, operations=pair)
    own = (given.get("indexer_types") or {layer: "full"})[layer] == "full"
    size, picked = int(given["index_head_dim"]), int(given["index_topk"])
    picking = 2 * int(given["index_n_heads"]) * size * own
    return Kept(kind, numbers + size * own, operations=pair, sees=picked, picking=picking)


def _state(kind: str, layer: int, given: Config) -> tuple[int, int]:
    """Numbers of a layer that do not grow with the text: in the model's dtype, and in float32."""
    if kind == "conv" and given.get("conv_L_cache"):  # LFM2
        return int(given["hidden_size"]) * int(given["conv_L_cache"]), 0
    for told, states in _STATES:
        if kind != "conv" and told(given):
            return states(given, layer)
    raise UnreadError(f"what its {'short convolutions' if kind == 'conv' else 'linear layers'} keep is not known here")


def _mamba(given: Config, layer: int) -> tuple[int, int]:
    """Mamba (arXiv:2312.00752): a state for each channel, and the last inputs of a convolution."""
    inner = int(given.get("mamba_expand") or 0) * int(given["hidden_size"]) or int(given["intermediate_size"])
    width, size = _first(given, "mamba_d_conv", "conv_kernel"), _first(given, "mamba_d_state", "state_size")
    return inner * width, inner * size


def _mamba2(given: Config, layer: int) -> tuple[int, int]:
    """Mamba-2 (arXiv:2405.21060): a state for each head, and the last inputs of a convolution over x, B and C."""
    heads = _first(given, "mamba_n_heads", "n_mamba_heads", "mamba_num_heads", "num_heads")
    named = ("mamba_d_head", "mamba_headdim", "mamba_head_dim", "head_dim")
    size = next(given[key] for key in named if given.get(key))
    if size == "auto":
        size = int(given["mamba_expand"]) * int(given["hidden_size"]) // heads
    groups = _first(given, "mamba_n_groups", "mamba_ngroups", "n_groups")
    state = _first(given, "mamba_d_state", "ssm_state_size", "state_size")
    width = _first(given, "mamba_d_conv", "conv_kernel")
    return (heads * int(size) + 2 * groups * state) * width, heads * int(size) * state


def _delta(given: Config, layer: int) -> tuple[int, int]:
    """Gated delta rule (arXiv:2412.06464): a matrix for each head, and a convolution over queries, keys and values."""
    keys, values = int(given["linear_num_key_heads"]), int(given["linear_num_value_heads"])
    key, value = int(given["linear_key_head_dim"]), int(given["linear_value_head_dim"])
    return (2 * keys * key + values * value) * int(given["linear_conv_kernel_dim"]), values * key * value


def _kimi(given: Config, layer: int) -> tuple[int, int]:
    """Kimi Delta Attention (arXiv:2510.26692): the same with as many keys as values."""
    linear = given.get("linear_attn_config") or {}
    heads = int(linear.get("num_heads") or given["linear_num_heads"])
    size = int(linear.get("head_dim") or given["linear_head_dim"])
    width = int(linear.get("short_conv_kernel_size") or given["linear_conv_kernel_dim"])
    return 3 * heads * size * width, heads * size * size


def _rwkv(given: Config, layer: int) -> tuple[int, int]:
    """RWKV-4 (arXiv:2305.13048): the last inputs of both mixings; numerator, denominator and greatest exponent."""
    return 2 * int(given["hidden_size"]), 3 * int(given["hidden_size"])


def _lightning(given: Config, layer: int) -> tuple[int, int]:
    """Lightning attention (arXiv:2501.08313): a matrix for each head; transformers keeps it in the model's dtype."""
    heads, _, size = head_sizes(given)
    return heads * size * size, 0


def _transnormer(given: Config, layer: int) -> tuple[int, int]:
    """TransNormer (arXiv:2307.14995): a matrix for each head, twice as large where positions are encoded by LRPE."""
    heads = int(given["num_attention_heads"])
    size = int(given.get("attention_size") or given["hidden_size"]) // heads
    return 0, heads * size * size * (2 if layer in given["lrpe_layers"] else 1)


def _of_types(*types: str) -> Callable[[Config], bool]:
    return lambda given: given.get("model_type") in types


def _has(key: str) -> Callable[[Config], bool]:
    return lambda given: bool(given.get(key))


_STATES: Sequence[tuple[Callable[[Config], bool], Callable[[Config, int], tuple[int, int]]]] = (
    (_of_types("rwkv"), _rwkv),
    (_of_types("transnormer"), _transnormer),
    (_of_types("minimax"), _lightning),
    (_of_types("mamba", "falcon_mamba", "jamba", "zamba"), _mamba),
    (_of_types("mamba2", "bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "zamba2"), _mamba2),
    (_has("linear_key_head_dim"), _delta),
    (_of_types("kimi_linear", "bailing_hybrid"), _kimi),
)


def _first(given: Config, *keys: str) -> int:
    """The first of the keys that the config has, as a number.

    Raises:
        KeyError: it has none.
    """
    for key in keys:
        if given.get(key) is not None:
            return int(given[key])
    raise KeyError(keys[0])

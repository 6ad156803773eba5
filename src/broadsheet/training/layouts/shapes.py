"""How many weights, operations and bytes a dense decoder has, by its shape alone; whole, or one part of many.

Knows: the numbers of a config. Does not know: torch, weights, devices. A configuration that it cannot count is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from broadsheet.console import InputError

Recompute = Literal["full", "none"]
HALF = 2  # bytes of a number in bfloat16 or float16
_LLAMAS = ("llama", "mistral", "qwen2", "qwen3")
_FAMILIES = (*_LLAMAS, "gpt2")


@dataclass(frozen=True)
class Shape:
    """Of a dense decoder: what `config.json` says of its size.

    Args:
        layers, hidden, heads, ffn, vocabulary: as in a config; `kv_heads` 0: as many as heads; `head_size` 0: width by
            heads.
        gated: the MLP has three matrices, not two.
        tied: the embedding is the output layer too.
        positions: learned ones; 0: rotary.
        layer_norm: norms have a bias.
        bias: of linear layers: of `"all"`, of those of queries, keys and values (`"qkv"`), of `"none"`.
        head_norms: queries and keys are normalised, as in Qwen3.
    """

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocabulary: int
    kv_heads: int = 0
    head_size: int = 0
    gated: bool = True
    tied: bool = False
    positions: int = 0
    layer_norm: bool = False
    bias: Literal["all", "qkv", "none"] = "none"
    head_norms: bool = False

    def __post_init__(self) -> None:
        least = min(self.layers, self.hidden, self.heads, self.ffn, self.vocabulary)
        if least < 1 or self.heads % self.groups or (not self.head_size and self.hidden % self.heads):
            raise InputError(
                f"got {self.layers} layers, width {self.hidden}, {self.heads} heads, {self.groups} KV heads, MLP "
                f"{self.ffn}, vocabulary {self.vocabulary}; expected 1 or more of each, and heads that divide"
            )

    @classmethod
    def gpt(cls, layers: int, hidden: int, heads: int, vocabulary: int, positions: int) -> Shape:
        """As GPT-3 and Megatron's have it: an MLP of four times the width, biases, learned positions, a tied head."""
        return cls(
            layers, hidden, heads, 4 * hidden, vocabulary, gated=False, tied=True, positions=positions, layer_norm=True,
            bias="all",
        )  # fmt: skip

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape of a model, by its `config.json` or its `PretrainedConfig`.

        Raises:
            InputError: its family is not one that can be counted, or a number is missing.
        """
        given: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
        kind = given.get("model_type")
        if kind not in _FAMILIES:
            raise InputError(f"got a config of {kind!r}; expected {', '.join(_FAMILIES)}, or a Shape of its numbers")
        try:
            if kind == "gpt2":
                made = cls.gpt(
                    given["n_layer"], given["n_embd"], given["n_head"], given["vocab_size"], given["n_positions"]
                )
                inner = given.get("n_inner") or made.ffn
                return cls(**{**vars(made), "ffn": inner, "tied": given.get("tie_word_embeddings", True)})
            return cls(
                layers=given["num_hidden_layers"],
                hidden=given["hidden_size"],
                heads=given["num_attention_heads"],
                ffn=given["intermediate_size"],
                vocabulary=given["vocab_size"],
                kv_heads=given.get("num_key_value_heads") or 0,
                head_size=given.get("head_dim") or 0,
                tied=bool(given.get("tie_word_embeddings", False)),
                bias="qkv" if kind == "qwen2" else "none",
                head_norms=kind == "qwen3",
            )
        except KeyError as error:
            raise InputError(f"the config has no {error}; expected one of a {kind} model") from None

    # Sizes

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.kv_heads or self.heads

    @property
    def query_width(self) -> int:
        """Of all heads' queries."""
        return self.heads * (self.head_size or self.hidden // self.heads)

    @property
    def kv_width(self) -> int:
        """Of all heads' keys, or values."""
        return self.query_width // self.heads * self.groups

    @property
    def layer_products(self) -> int:
        """Weights of a layer that are multiplied: attention's four matrices, and the MLP's two or three."""
        attention = self.hidden * (2 * self.query_width + 2 * self.kv_width)
        return attention + (3 if self.gated else 2) * self.hidden * self.ffn

    def layer_parameters(self, tp: int = 1) -> float:
        """Weights of a layer that one of `tp` parts holds: a share of the matrices, all of norms and outer biases."""
        split: float = self.layer_products
        whole = (4 if self.layer_norm else 2) * self.hidden
        if self.bias != "none":
            split += self.query_width + 2 * self.kv_width
        if self.bias == "all":
            split += self.ffn * (2 if self.gated else 1)
            whole += 2 * self.hidden
        if self.head_norms:
            whole += 2 * (self.query_width // self.heads)
        return split / tp + whole

    def end_parameters(self, first: bool, last: bool, tp: int = 1) -> float:
        """Weights of a stage beside its layers; a tied embedding stands on the first and on the last one."""
        table = self.vocabulary * self.hidden / tp
        tables = first + last - (self.tied and first and last)
        norm = (2 if self.layer_norm else 1) * self.hidden
        return tables * table + first * self.positions * self.hidden + last * norm

    @property
    def parameters(self) -> int:
        """All weights. Of a GPT: 12 l h² (1 + 13 / (12 h) + (V + s) / (12 l h)), and the last norm."""
        return round(self.layers * self.layer_parameters() + self.end_parameters(True, True))

    # Work

    def flops(self, batch: int, length: int, recompute: Recompute = "full") -> float:
        """Operations of a training step on so many rows; attention is counted whole, as if it were not causal.

        Of a GPT whose layers are computed again for the backward pass: 96 B s l h² (1 + s / (6 h) + V / (16 l h)).
        Where nothing is computed again: 72 B s l h² (1 + s / (6 h) + V / (12 l h)).
        """
        attention = 4 * length * self.query_width  # a token's scores, and what they weigh
        layers = self.layers * (2 * self.layer_products + attention)
        head = 2 * self.vocabulary * self.hidden
        passes = 4 if recompute == "full" else 3  # a backward pass is two
        return float(batch * length * (passes * layers + 3 * head))

    # Memory

    def stored_bytes(self, micro_batch: int, length: int, tp: int = 1, recompute: Recompute = "full") -> float:
        """What a layer keeps of a micro-batch until its backward pass, in half precision.

        `"full"`: its input. `"none"`: all but attention's scores, which fused attention never keeps; for a GPT
        s b h (10 + 24 / t), as in Korthikanti et al. (2022).
        """
        tokens = micro_batch * length
        if recompute == "full":
            return float(HALF * tokens * self.hidden)
        whole = 4 * HALF * self.hidden  # what each norm, and each of both parts, reads
        whole += 2 * self.hidden if self.bias == "all" else 0  # two masks of dropout, a byte each
        split = HALF * (2 * self.query_width + 2 * self.kv_width)  # queries, keys, values, what o reads
        split += HALF * self.ffn * (4 if self.gated else 2)
        return tokens * (whole + split / tp)

    def logit_bytes(self, micro_batch: int, length: int, tp: int = 1) -> float:
        """Of the logits of a micro-batch and their gradient, in float32."""
        return 8.0 * micro_batch * length * self.vocabulary / tp


SHAPES = {
    "llama-8b": Shape(32, 4096, 32, 14336, 128256, kv_heads=8),
    "llama-70b": Shape(80, 8192, 64, 28672, 128256, kv_heads=8),
    "gpt-175b": Shape.gpt(96, 12288, 96, 51200, 2048),
    "mt-nlg-530b": Shape.gpt(105, 20480, 128, 51200, 2048),
}
"""Models by name that need no download to be planned for."""

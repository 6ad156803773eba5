"""The layers of BEATs (Chen et al., 2022, arXiv:2212.09058): a transformer over patches of a spectrogram.

Knows: vectors of patches, and how published checkpoints name the weights. Does not know: audio, files.

    x = norm(x + gelu(convolution(x)))                        # where a patch is, from 128 neighbours
    x = norm(α·x + attention(x));  x = norm(α·x + ffn(x))     # a layer; α = (2·layers)^¼ (DeepNorm, arXiv:2203.00555)
    attention: softmax(q·kᵀ/√d + gate(q)·bias[bucket(j − i)])·v
    gate(q) = s₁·(s₂·a − 1) + 2, with (s₁, s₂) = sigmoid(two sums of four linear maps of a head's query)

The bias by distance is one table, shared by all layers. The gate reads the projected query; WavLM's (arXiv:2110.13900),
from which it comes, reads the layer's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from broadsheet.console import InputError, say
from broadsheet.hear.encoders.fbank import MEL_BINS


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _unchanged(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "glu": _unchanged,  # the gate is in the first linear map
    "linear": _unchanged,
    "relu": F.relu,
    "tanh": torch.tanh,
}
# Fields of a published cfg that matter to training or to the classifier only, and what a saved folder adds.
_UNREAD = {
    "activation_dropout", "attention_dropout", "dropout", "dropout_input", "encoder_layerdrop", "finetuned_model",
    "layer_wise_gradient_decay_ratio", "model_type", "predictor_class", "predictor_dropout",
}  # fmt: skip


@dataclass(frozen=True)
class BeatsConfig:
    """The shape of a BEATs model: the fields of a published checkpoint's cfg that matter to its features.

    Fields are named, and default, as in the authors' code. The published models have `input_patch_size=16`,
    `relative_position_embedding=True`, `max_distance=800`, `gru_rel_pos=True`, `deep_norm=True`, and these defaults.
    """

    input_patch_size: int
    embed_dim: int = 512
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    activation_fn: str = "gelu"
    layer_norm_first: bool = False
    deep_norm: bool = False
    conv_pos: int = 128
    conv_pos_groups: int = 16
    relative_position_embedding: bool = False
    num_buckets: int = 320
    max_distance: int = 1280
    gru_rel_pos: bool = False

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> Self:
        """From the cfg of a checkpoint; unknown fields are reported.

        Raises:
            InputError: a field has a value that is not supported, or there is no `input_patch_size`.
        """
        known = {field.name: field for field in fields(cls)}
        if "input_patch_size" not in cfg:
            raise InputError(f"got a cfg with {few(cfg)}; expected that of a BEATs model, with input_patch_size")
        if unknown := sorted(map(str, set(cfg) - set(known) - _UNREAD)):
            say(f"the cfg of this BEATs model has fields that are not read: {few(unknown)}")
        return cls(**{name: _checked(name, str(known[name].type), cfg[name]) for name in known if name in cfg})

    def __post_init__(self) -> None:
        wrong = {
            f"input_patch_size={self.input_patch_size}": self.input_patch_size > MEL_BINS,
            f"{self.encoder_attention_heads} heads in a width of {self.encoder_embed_dim}": bool(
                self.encoder_embed_dim % self.encoder_attention_heads
            ),
            f"{self.conv_pos_groups} groups in a width of {self.encoder_embed_dim}": bool(
                self.encoder_embed_dim % self.conv_pos_groups
            ),
            f"activation_fn={self.activation_fn}": self.activation_fn not in ACTIVATIONS,
            "both deep_norm and layer_norm_first": self.deep_norm and self.layer_norm_first,
            f"num_buckets={self.num_buckets} for max_distance={self.max_distance}": self.num_buckets < 4
            or self.max_distance <= self.num_buckets // 4,
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise InputError(f"got a BEATs cfg with {what}, which is not supported; expected a published cfg")

    @property
    def bands(self) -> int:
        """Patches side by side in frequency: 8."""
        return MEL_BINS // self.input_patch_size

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def position_buckets(distance: Tensor, buckets: int, furthest: int) -> Tensor:
    """The bucket of each signed distance, key − query: half of the buckets for keys after the query, half for the rest.

    In each half, one bucket a distance below a quarter of `buckets`; from there on their width grows with the logarithm
    of the distance, up to `furthest` and all beyond it.

    Args:
        distance: integers of any shape.
        buckets: how many there are.
        furthest: distances from here on share the last bucket of their half.

    Returns:
        Indices below `buckets`, shaped as `distance`.
    """
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    # float32, as in the authors' code: at a bucket's edge the rounding decides.
    growth = torch.log(far.clamp(min=1).float() / exact) / math.log(furthest / exact) * (half - exact)
    grown = (exact + growth.long()).clamp(max=half - 1)
    return torch.where(far < exact, far, grown) + half * (distance > 0)


class PositionConvolution(nn.Module):
    """A grouped convolution over the tokens, its kernel normalised at each of its places.

    kernel[..., k] = weight_g[k]·weight_v[..., k]/‖weight_v[..., k]‖. An even kernel, padded by half on both sides,
    gives one output too many: the last is dropped.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, tokens) -> the same shape."""
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        return F.conv1d(x, weight, self.bias, padding=weight.shape[-1] // 2, groups=self.groups)[..., : x.shape[-1]]


class BeatsAttention(nn.Module):
    """Self-attention with a bias by distance that each query scales."""

    def __init__(self, config: BeatsConfig, table: bool) -> None:
        super().__init__()
        width, self.heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        if table:
            # Embedding's own random start would import for seconds on the meta device.
            self.relative_attention_bias = nn.Embedding.from_pretrained(torch.empty(config.num_buckets, self.heads))
        self.gated = config.gru_rel_pos
        if self.gated:
            self.grep_linear = nn.Linear(width // self.heads, 8)
            self.grep_a = nn.Parameter(torch.empty(1, self.heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor | None, padding: Tensor | None) -> Tensor:
        """
        Args:
            x: (batch, tokens, width).
            bias: (heads, tokens, tokens), of query and key.
            padding: (batch, tokens), true where a token is padding: it is not attended to.

        Returns:
            (batch, tokens, width).
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = None
        if bias is not None:
            mask = self.gate(q) * bias if self.gated else bias.expand(len(x), -1, -1, -1)
        if padding is not None:
            hidden = padding[:, None, None, :]
            mask = torch.zeros_like(hidden, dtype=q.dtype) if mask is None else mask
            mask = mask.masked_fill(hidden, -math.inf)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(-2))
        return out

    def gate(self, q: Tensor) -> Tensor:
        """(batch, heads, tokens, head width) -> (batch, heads, tokens, 1): between 1 and 2 where `grep_a` is 1."""
        sums = self.grep_linear(q).unflatten(-1, (2, 4)).sum(dim=-1)
        first, second = torch.sigmoid(sums).chunk(2, dim=-1)
        return first * (second * self.grep_a - 1.0) + 2.0


class GatedLinear(nn.Module):
    """value·silu(gate), both linear in the input: what `activation_fn="glu"` puts in place of the first linear map."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, inner)."""
        value, gate = self.linear(x).chunk(2, dim=-1)
        return value * F.silu(gate)


class BeatsLayer(nn.Module):
    """Attention and feed-forward, each with its residual: normalised after it (published), or before."""

    def __init__(self, config: BeatsConfig, table: bool) -> None:
        super().__init__()
        width, inner = config.encoder_embed_dim, config.encoder_ffn_embed_dim
        self.self_attn = BeatsAttention(config, table)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = GatedLinear(width, inner) if config.activation_fn == "glu" else nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.activation = ACTIVATIONS[config.activation_fn]
        self.norm_first = config.layer_norm_first
        self.alpha = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0

    def forward(self, x: Tensor, bias: Tensor | None, padding: Tensor | None) -> Tensor:
        """Shapes as in `BeatsAttention`."""
        if self.norm_first:
            x = x + self.self_attn(self.self_attn_layer_norm(x), bias, padding)
            return x + self.fc2(self.activation(self.fc1(self.final_layer_norm(x))))
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, bias, padding))
        return self.final_layer_norm(self.alpha * x + self.fc2(self.activation(self.fc1(x))))


class Backbone(nn.Module):
    """What the checkpoint calls `encoder`: the position convolution and the layers."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        width = config.encoder_embed_dim
        self.pos_conv = nn.Sequential(
            PositionConvolution(width, config.conv_pos, config.conv_pos_groups),
            nn.GELU(),
        )
        # The first layer holds the table of biases for all.
        self.layers = nn.ModuleList(
            BeatsLayer(config, config.relative_position_embedding and i == 0) for i in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """
        Args:
            x: (batch, tokens, width).
            padding: (batch, tokens), true where a token is padding, whose own output has no meaning.

        Returns:
            (batch, tokens, width).
        """
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        if not self.config.layer_norm_first:
            x = self.layer_norm(x)
        bias = self.bias(x.shape[1]) if self.config.relative_position_embedding else None
        for layer in self.layers:
            x = layer(x, bias, padding)
        return self.layer_norm(x) if self.config.layer_norm_first else x

    def bias(self, tokens: int) -> Tensor:
        """(heads, tokens, tokens): the table's entry for the distance from each query to each key."""
        table = self.get_parameter("layers.0.self_attn.relative_attention_bias.weight")
        distances = torch.arange(1 - tokens, tokens)
        buckets = position_buckets(distances, self.config.num_buckets, self.config.max_distance)
        by_distance = table[buckets.to(table.device)].T
        # Row i holds the distances from −i on: the window of by_distance that starts at tokens − 1 − i.
        return by_distance.unfold(-1, tokens, 1).flip(1)


def _checked(name: str, kind: str, value: Any) -> Any:
    if kind == "bool" and value in (True, False):
        return bool(value)
    if kind == "int" and type(value) is int and value > 0:
        return value
    if kind == "str" and isinstance(value, str):
        return value
    raise InputError(f"got {name}={value!r} in a BEATs cfg; expected {'a positive int' if kind == 'int' else kind}")


def few(names: Iterable[Any]) -> str:
    """The first three of some names, and how many more there are."""
    shown = [str(name) for name in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3:,} more" if len(shown) > 3 else "")

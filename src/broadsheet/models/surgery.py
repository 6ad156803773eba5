"""Surgery on decoder layers: units of weights that can only go together are removed, and the model stays ordinary.

Knows: where the Llama family's layers keep the weights of an MLP's channels and of attention's heads. Does not know:
why a unit goes, data, training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

MLP, ATTENTION = "mlp", "attention"
WIDTHS = "layer_widths"  # of a config whose layers differ: MLP channels and key-value heads of each
_NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True)
class Part:
    """A matrix in which units have rows (`dim` 0) or columns (1), `size` next to one another for each."""

    name: str
    linear: nn.Linear
    dim: int
    size: int


@dataclass(frozen=True)
class Block:
    """The units of one layer's MLP or attention, and all weights that belong to them.

    A unit is a channel of the MLP; or a key-value head with the query heads that read it, which stand next to one
    another. What is removed of one part is removed of all.

    Attributes:
        layer: its place in the model.
        kind: `MLP` or `ATTENTION`.
        units: how many there are.
        width: channels of a unit, 1 in the MLP, the head's dimension in attention.
    """

    layer: int
    kind: str
    units: int
    width: int
    parts: tuple[Part, ...]

    def places(self, part: Part, units: Iterable[int]) -> Tensor:
        """Rows or columns of a part that units have, in their order: (units × part.size,)."""
        import torch

        at = torch.tensor(list(units), dtype=torch.long)[:, None] * part.size
        return (at + torch.arange(part.size)).flatten()

    def zero(self, units: Iterable[int]) -> None:
        """Set a unit's weights to 0: the model computes as it does without the unit, and is as large as before."""
        import torch

        given = list(units)
        with torch.no_grad():
            for part in self.parts:
                places = self.places(part, given).to(part.linear.weight.device)
                part.linear.weight.index_fill_(part.dim, places, 0)

    def remove(self, units: Iterable[int]) -> None:
        """Take units out.

        Raises:
            InputError: none would be left.
        """
        import torch
        from torch import nn

        away = set(units)
        kept = [unit for unit in range(self.units) if unit not in away]
        if not kept:
            raise InputError(
                f"nothing would be left of layer {self.layer}'s {self.kind}, which has {self.units} units; give a "
                "smaller ratio"
            )
        for part in self.parts:
            linear, places = part.linear, self.places(part, kept).to(part.linear.weight.device)
            with torch.no_grad():
                linear.weight = nn.Parameter(
                    linear.weight.index_select(part.dim, places).contiguous(), linear.weight.requires_grad
                )
                if part.dim == 0 and linear.bias is not None:
                    linear.bias = nn.Parameter(linear.bias[places].clone(), linear.bias.requires_grad)
            linear.out_features, linear.in_features = linear.weight.shape


def blocks(model: Any) -> list[Block]:
    """The MLP and the attention of each layer of a causal LM, as they are now, layer by layer.

    Raises:
        InputError: the model's layers are not those of the Llama family, or an adapter is in it.
    """
    found = []
    for number, layer in enumerate(_layers(model)):
        found += [_mlp(number, layer), _attention(number, layer, model.config)]
    return found


def widths(model: Any) -> list[list[int]]:
    """MLP channels and key-value heads of each layer."""
    each = iter(blocks(model))
    return [[mlp.units, attention.units] for mlp, attention in zip(each, each, strict=True)]


def conform(model: Any) -> bool:
    """Make a model's config say what its layers are; call it once units are removed.

    Returns:
        whether `from_pretrained` reads what is saved: all layers are alike, and their heads are as many as the model's
        class allows (Llama's must divide the hidden size). Else the config holds the widths of each layer, and
        `broadsheet.models.load` reads it.
    """
    found, config = widths(model), model.config
    if WIDTHS in config.__dict__:
        delattr(config, WIDTHS)
    channels, heads = found[0]
    queries = config.num_attention_heads // config.num_key_value_heads
    new = {
        "head_dim": _head_dim(config),
        "intermediate_size": channels,
        "num_key_value_heads": heads,
        "num_attention_heads": heads * queries,
    }
    if all(each == found[0] for each in found) and _allowed(config, new):
        for name, value in new.items():
            setattr(config, name, value)
        return True
    setattr(config, WIDTHS, found)
    return False


def _allowed(config: Any, new: Mapping[str, int]) -> bool:
    from huggingface_hub.errors import StrictDataclassClassValidationError

    try:
        type(config)(**{**config.to_dict(), **new})
    except StrictDataclassClassValidationError:
        return False
    return True


def sized(config: Mapping[str, Any]) -> Any:
    """What reads a model whose config gives the widths of its layers: its class, with such layers.

    Raises:
        InputError: the widths are not those of this config's layers.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    known = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[config["model_type"]]]
    given, layers = config[WIDTHS], config.get("num_hidden_layers")
    most = [config.get(name) for name in ("intermediate_size", "num_key_value_heads")]
    if not isinstance(given, list) or len(given) != layers or not all(_within(each, most) for each in given):
        raise InputError(
            f"the config's {WIDTHS} are not its layers': expected {layers} pairs of channels and key-value heads, each "
            f"from 1 to {most[0]} and {most[1]}"
        )

    def build(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        known.__init__(self, config, *arguments, **options)
        for block in blocks(self):
            own = given[block.layer][block.kind == ATTENTION]
            block.remove(range(own, block.units))

    return type(known.__name__, (known,), {"__init__": build, "__module__": known.__module__})


def _within(pair: Any, most: Sequence[Any]) -> bool:
    whole = isinstance(pair, list) and len(pair) == 2 and all(type(each) is int for each in (*pair, *most))
    return whole and all(1 <= own <= highest for own, highest in zip(pair, most, strict=True))


# What a layer of the family has


def _layers(model: Any) -> Sequence[Any]:
    from torch import nn

    layers = getattr(getattr(model, "model", None), "layers", None)
    if not layers or not all(_plain(layer) for layer in layers):
        raise InputError(
            f"a {type(model).__name__} has no layers of the Llama family (q, k, v, o and gate, up, down projections, "
            "each a matrix of its own, without an adapter); expected a model such as Llama, Mistral, Qwen or Gemma"
        )
    return list(layers) if isinstance(layers, nn.ModuleList) else layers


def _plain(layer: Any) -> bool:
    from torch import nn

    names = {"mlp": ("gate_proj", "up_proj", "down_proj"), "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj")}
    for module, own in names.items():
        part: Any = getattr(layer, module, None)
        if not all(type(getattr(part, name, None)) is nn.Linear for name in own):
            return False
        if any(name.split(".")[0] not in (*own, *_NORMS) for name, _ in part.named_parameters()):
            return False  # weights that nobody would cut
    return True


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _mlp(number: int, layer: Any) -> Block:
    mlp = layer.mlp
    parts = (Part("gate_proj", mlp.gate_proj, 0, 1), Part("up_proj", mlp.up_proj, 0, 1))
    return Block(number, MLP, mlp.gate_proj.out_features, 1, (*parts, Part("down_proj", mlp.down_proj, 1, 1)))


def _attention(number: int, layer: Any, config: Any) -> Block:
    attention, dim = layer.self_attn, _head_dim(config)
    group = (config.num_attention_heads // config.num_key_value_heads) * dim
    for name in _NORMS:
        norm = getattr(attention, name, None)
        if norm is not None and norm.weight.numel() != dim:
            raise InputError(
                f"layer {number} norms all heads together ({name}): without one of them the others would change; "
                "expected a norm of each head, or none"
            )
    parts = (
        Part("q_proj", attention.q_proj, 0, group),
        Part("k_proj", attention.k_proj, 0, dim),
        Part("v_proj", attention.v_proj, 0, dim),
        Part("o_proj", attention.o_proj, 1, group),
    )
    return Block(number, ATTENTION, attention.k_proj.out_features // dim, dim, parts)

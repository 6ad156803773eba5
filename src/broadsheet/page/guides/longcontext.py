"""What a long input costs a model, and which methods apply: computed from the model's config, without its weights.

Knows: configs as JSON, `long_context.toml`, the page's evidence. Does not know: how a config is found, or any method's
code. Sources of the rules: arXiv:2311.12351 and arXiv:2503.17407, and the papers themselves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from broadsheet.console import InputError
from broadsheet.page.guides.data import read
from broadsheet.page.guides.layers import ATTENDS, Kept, UnreadError, head_sizes, read_layers
from broadsheet.page.papers import Paper, get

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MOSTLY_ATTENTION = 0.5  # share of the prefill's operations from which a sparse prefill is worth trying


@dataclass(frozen=True)
class ModelShape:
    """What decides a decoder's costs.

    Attributes:
        layers, heads, kv_heads, head_dim, hidden, ffn, vocab: sizes; heads are 0 where no layer attends.
        context: positions it was trained on; None where the config does not say.
        kept: what each layer keeps; empty where that cannot be read from the config: then `unread` says why.
        weights: parameters, as a Llama has them: biases and further norms of other kinds, some thousandths, are left
            out. None where the config is of a kind that is not counted: then `uncounted` names it.
        tied: input and output embeddings are one matrix.
        even: a head's keys are as wide as its values; with latents they often are not.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int
    context: int | None
    kept: tuple[Kept, ...]
    weights: int | None
    tied: bool = True
    unread: str = ""
    uncounted: str = ""
    even: bool = True
    kind: str = field(default="", compare=False)  # the config's `model_type`

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a `config.json` of a causal LM; of a model with several parts, that of its text.

        Raises:
            InputError: it lacks a size.
        """
        given = {**config, **(config.get("text_config") or {})}
        kept: tuple[Kept, ...] = ()
        unread = ""
        try:
            layers, hidden = _layers(given), int(given["hidden_size"])
            vocab, widths = int(given["vocab_size"]), given.get("intermediate_size") or 4 * hidden
            ffn = int(max(widths) if isinstance(widths, list) else widths)  # Gemma 3n has one for each layer
            try:
                kept = read_layers(given, layers)
            except UnreadError as why:
                unread = str(why)
            attends = any(each.kind in ATTENDS for each in kept) or "num_attention_heads" in given
            heads, kv_heads, head_dim = head_sizes(given) if attends or unread else (0, 0, 0)
        except KeyError as error:
            raise InputError(
                f"got a config of {given.get('model_type', 'an unknown kind')} without {error}; expected a causal LM's"
            ) from None
        except (TypeError, ValueError, ZeroDivisionError):
            raise InputError(
                f"got a config of {given.get('model_type', 'an unknown kind')} whose sizes are no whole numbers above "
                "0; expected a causal LM's"
            ) from None
        tied = bool(given.get("tie_word_embeddings", True))
        attention = 2 * hidden * head_dim * (heads + kv_heads)  # queries, output; keys, values
        products = 2 if given.get("model_type") in _UNGATED else 3
        inner = layers * (attention + products * hidden * ffn + 2 * hidden) + hidden  # with the norms
        uncounted = _uncounted(given, kept)
        return cls(
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            ffn=ffn,
            vocab=vocab,
            context=next((int(given[key]) for key in _CONTEXT if isinstance(given.get(key), int)), None),
            kept=kept,
            weights=None if uncounted else inner + vocab * hidden * (1 if tied else 2),
            tied=tied,
            unread=unread,
            uncounted=uncounted,
            even=given.get("v_head_dim") in (None, _key_width(given)),
            kind=str(given.get("model_type", "")),
        )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each layer, the tokens it attends to; None for all."""
        return tuple(each.window for each in self.kept)

    def cache_bytes(self, tokens: int, size: int) -> int | None:
        """Bytes that layers keep of one text of so many tokens, `size` bytes a number; None where they are unread."""
        if self.unread:
            return None
        return self.state_bytes(size) + size * sum(
            each.numbers * min(tokens, each.window or tokens) for each in self.kept
        )

    def state_bytes(self, size: int) -> int:
        """Those of them that are states, the same for a text of any length."""
        return sum(each.state * size + each.memory * BYTES["float32"] for each in self.kept)

    def prefill(self, tokens: int) -> tuple[float | None, float | None]:
        """Operations to read so many tokens at once, head left out: those of weights, and those of attention.

        A product with a matrix takes two operations a weight and token; attention two products, of which causality
        needs half. Those of weights are None where weights are not counted, those of attention where layers are unread.
        """
        of_attention = None if self.unread else sum(_of_attention(each, tokens) for each in self.kept)
        if self.weights is None:
            return None, of_attention
        return 2.0 * (self.weights - self.vocab * self.hidden * (1 if self.tied else 2)) * tokens, of_attention


_UNGATED = ("falcon", "gpt_neox", "nemotron", "persimmon", "phi", "starcoder2")  # an MLP of two matrices, not three
_CONTEXT = ("max_position_embeddings", "model_max_length", "context_length")
_PLAIN = {"full", "sliding", "chunked"}  # layers with keys and values of their own, and no other memory


def _layers(given: Mapping[str, Any]) -> int:
    if given.get("model_type") == "longcat_flash" and "num_layers" in given:
        return 2 * int(given["num_layers"])  # each attends twice
    named = given.get("layers_block_type") or given.get("hybrid_override_pattern")
    if "num_hidden_layers" not in given and named:
        return len(named)
    return int(given["num_hidden_layers"])


def _uncounted(given: Mapping[str, Any], kept: tuple[Kept, ...]) -> str:
    """The kind of model whose weights are not counted; empty where they are."""
    if any(given.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        return "a mixture of experts"
    kinds = {each.kind for each in kept}
    if given.get("kv_lora_rank"):
        return "a model with latent attention"
    if {"linear", "conv", "hybrid"} & kinds:
        return "a model with layers that keep states"
    if "shared" in kinds or given.get("hidden_size_per_layer_input"):
        return "a model whose layers differ in their parts"
    return "" if kept and kinds <= _PLAIN else "a model whose layers are not read"


def _of_attention(each: Kept, tokens: int) -> float:
    """Operations of a layer's attention while so many tokens are read."""
    if each.kind == "chunked" and each.window:
        whole, rest = divmod(tokens, each.window)
        return each.operations * (whole * _pairs(each.window, None) + _pairs(rest, None))
    seen = _pairs(tokens, each.sees or each.window)
    return each.operations * seen + each.picking * _pairs(tokens, None)


def _pairs(tokens: int, window: int | None) -> float:
    """Pairs of a query and a key it sees, under causal attention with a window."""
    if window is None or window >= tokens:
        return tokens * (tokens + 1) / 2
    return window * (window + 1) / 2 + (tokens - window) * float(window)


@dataclass(frozen=True)
class Way:
    """A way to read long inputs, as `long_context.toml` describes it.

    Attributes:
        id: of its paper.
        facets: training, changes, phase, cost, lossless, pre_rope, batch, hardware, keeps.
        tokens: that stay on the device, where `keeps` is `"window"`.
        offloads: what it keeps may wait in the host's memory instead.
        needs: what it is for, as the adviser's `need` has it.
        length: `"within"` the trained length, `"beyond"` it, or `"any"`.
        overview, survey: its place in the tree of arXiv:2311.12351 and of arXiv:2503.17407; empty where it has none.
    """

    id: str
    facets: Mapping[str, Any]
    tokens: int
    needs: tuple[str, ...]
    length: str
    overview: str
    survey: str
    because: str
    offloads: bool = False

    @property
    def paper(self) -> Paper:
        return get(self.id)


FACETS = ("training", "changes", "phase", "cost", "lossless", "pre_rope", "batch", "hardware", "keeps")


@cache
def ways() -> tuple[Way, ...]:
    """All ways, in the order of the file."""
    return tuple(
        Way(
            row["id"],
            {name: row[name] for name in FACETS},
            row.get("tokens", 0),
            tuple(row["needs"]),
            row["length"],
            row["overview"],
            row["survey"],
            row["because"],
            row.get("offloads", False),
        )
        for row in read("long_context")["way"]
    )


@dataclass(frozen=True)
class AdvisedWay:
    """A way, and what stands for and against it for this model and length.

    Attributes:
        applies: whether it is for such a length, and for what is needed.
        reason: why, or why not.
        cache: bytes of keys and values that stay on the device; None where the way cannot be used with the model.
        fits: whether weights and cache fit the memory; None where no memory was given, or either is not counted.
    """

    way: Way
    applies: bool
    reason: str
    cache: int | None
    fits: bool | None

    @property
    def command(self) -> str:
        """How it is tried; empty where its paper has no trial."""
        return f"broadsheet try {self.way.id}" if self.way.paper.trial else ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "id": self.way.id,
            "applies": self.applies,
            "reason": self.reason,
            "cache_bytes": self.cache,
            "fits": self.fits,
            "offloads": self.way.offloads,
            **{name: self.way.facets[name] for name in FACETS},
            "rung": self.way.paper.rung,
            "verdict": self.way.paper.verdict,
            "command": self.command,
        }


@dataclass(frozen=True)
class LongInput:
    """What a text of `length` tokens costs a model as it is, and what else could read it.

    Attributes:
        weights, cache: bytes; None where they are not counted, or not known.
        states: bytes of the cache that are the same for a text of any length.
        of_weights, of_attention: operations of the prefill; None where they are not counted, or not known.
        memory: bytes that there are; None where it was not given.
        ways: those that apply first, in the order of the file; refuted ones last among them.
    """

    shape: ModelShape
    length: int
    weights: int | None
    cache: int | None
    states: int
    of_weights: float | None
    of_attention: float | None
    memory: int | None
    ways: tuple[AdvisedWay, ...]

    @property
    def per_token(self) -> float | None:
        """Bytes of the cache a token of the text, states left out; None where the cache is not known."""
        return None if self.cache is None else (self.cache - self.states) / self.length

    @property
    def beyond(self) -> bool | None:
        """Whether the text is longer than the model was trained on; None where the config does not say."""
        return None if self.shape.context is None else self.length > self.shape.context

    @property
    def fits(self) -> bool | None:
        """Whether weights and cache fit the memory, full attention's work space aside."""
        return _fits(self.weights, self.cache, self.memory)

    @property
    def operations(self) -> float | None:
        """All operations of the prefill; None where some are not counted."""
        return None if self.of_weights is None or self.of_attention is None else self.of_attention + self.of_weights

    @property
    def attention_share(self) -> float | None:
        """Attention's share of the prefill's operations; None where some are not counted."""
        return None if self.operations is None or self.of_attention is None else self.of_attention / self.operations

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "length": self.length,
            "trained_positions": self.shape.context,
            "beyond": self.beyond,
            "weights_bytes": self.weights,
            "cache_bytes": self.cache,
            "cache_bytes_per_token": self.per_token,
            "state_bytes": None if self.cache is None else self.states,
            "layers": dict(Counter(each.kind for each in self.shape.kept)),
            "not_read": self.shape.unread,
            "prefill_operations": self.operations,
            "attention_share": self.attention_share,
            "memory_bytes": self.memory,
            "fits": self.fits,
            "ways": [each.to_dict() for each in self.ways],
        }


def long_input(
    config: Mapping[str, Any],
    length: int,
    *,
    memory: float | None = None,
    dtype: str = "float32",
    need: str | None = None,
) -> LongInput:
    """What a text of `length` tokens costs the model of this config, and which methods of the page apply.

    Use when a text may be longer than a model's context, or than the memory there is. Prefer measuring
    (`broadsheet try`) once a method is chosen: operations are not seconds.

    Inputs: a model's `config.json`; no weights are read.

    Relation: the methods are those of `broadsheet.attend` and `broadsheet.decode`; `maps.tree` has the surveys' trees.

    Args:
        config: a `config.json`.
        memory: GB (10⁹ bytes) for weights and cache.
        dtype: of both: float32, bfloat16 or float16.
        need: `"stream"`, `"recall"`, `"slow-prefill"`, `"slow-decoding"` or `"new-model"`; by default all.

    Raises:
        InputError: the config lacks a size, or an argument is none of these.

    Example:
        >>> long_input(config, 32_768, memory=16, dtype="bfloat16").fits  # doctest: +SKIP
        True

    Source: arXiv:2311.12351 and arXiv:2503.17407, the rules and facets; the arithmetic is that of a decoder.
    """
    needs = [each for way in ways() for each in way.needs]
    if length < 1:
        raise InputError(f"got a length of {length}; expected 1 token or more")
    if memory is not None and not 0 < memory < math.inf:
        raise InputError(f"got a memory of {memory:g} GB; expected a number above 0")
    if dtype not in BYTES:
        raise InputError(f"got dtype {dtype!r}; expected one of {', '.join(BYTES)}")
    if need is not None and need not in needs:
        raise InputError(f"got need {need!r}; expected one of {', '.join(dict.fromkeys(needs))}")
    shape, size = ModelShape.of(config), BYTES[dtype]
    room = None if memory is None else int(memory * 1e9)
    weights = None if shape.weights is None else shape.weights * size
    of_weights, of_attention = shape.prefill(length)
    cache, states = shape.cache_bytes(length, size), shape.state_bytes(size)
    made = LongInput(shape, length, weights, cache, states, of_weights, of_attention, room, ())
    found = []
    for way in ways():
        applies, reason = _applies(way, made, need)
        held = None if _unable(way, shape) else _held(way, shape, length, size)
        found.append(AdvisedWay(way, applies, reason, held, _fits(weights, held, room)))
    found.sort(key=lambda each: (not each.applies, each.way.paper.verdict == "refuted here"))
    return replace(made, ways=tuple(found))


def _applies(way: Way, made: LongInput, need: str | None) -> tuple[bool, str]:
    """Whether a way is for this, and why."""
    context = made.shape.context
    if need is not None and need not in way.needs:
        return False, f"it is for another need: {', '.join(way.needs)}"
    if unable := _unable(way, made.shape):
        return False, unable
    if way.length == "beyond" and not made.beyond:
        if context is None:
            return True, f"{way.because}; how long the model was trained on is not known"
        return False, f"{made.length:,} tokens are within the {context:,} that the model was trained on"
    if made.beyond and (way.length == "within" or way.facets["phase"] == "decode"):
        return False, f"{made.length:,} tokens are more than the {context:,} that the model was trained on"
    share = made.attention_share
    if "slow-prefill" in way.needs and share is None:
        return True, f"{way.because}, if it is: attention's share is not counted for {made.shape.uncounted}"
    if "slow-prefill" in way.needs and share is not None and share < _MOSTLY_ATTENTION:
        return False, f"attention is {share:.0%} of reading {made.length:,} tokens".replace("%", " %")
    return True, way.because


def _unable(way: Way, shape: ModelShape) -> str:
    """Why a way cannot be used with such a model, as its method would refuse it; empty where it can."""
    if way.facets["keeps"] == "state":
        return "" if shape.heads else "there are no heads to take over: choose the shape of a new model yourself"
    if shape.unread:
        return f"what the model keeps cannot be read from its config ({shape.unread})"
    kinds = {each.kind for each in shape.kept}
    if way.facets["phase"] == "decode":  # rejected tokens have to be dropped from the cache
        odd = kinds - {"full", "latent"}
        return f"rejected tokens cannot be dropped from {_CACHES[min(odd)]}" if odd else ""
    if not kinds & set(ATTENDS):
        return "no layer of the model attends"
    if others := sum(each.kind in ("linear", "conv", "hybrid", "none") for each in shape.kept):
        return f"it is for models whose layers all attend and do no more; {others} of {shape.layers} do otherwise here"
    if "indexed" in kinds or ("latent" in kinds and (way.facets["pre_rope"] or not shape.even)):
        return "the model attends to latents, not to keys of each head"
    if "shared" in kinds:
        return "layers of the model share keys"
    if "chunked" in kinds:
        return "layers of the model attend in chunks"
    if all(shape.windows):
        return "every layer of the model attends to a window already"
    if shape.kind in _NO_ROTARY:
        return "the model has no rotary encoding of positions" if way.facets["pre_rope"] else ""
    return _REFUSED.get(shape.kind, "")


# What holds a layer's keys where tokens cannot be dropped from its end.
_CACHES = {
    "chunked": "layers that attend in chunks",
    "conv": "the inputs of a convolution",
    "hybrid": "states",
    "indexed": "layers that pick what they attend to",
    "linear": "states",
    "none": "layers that keep nothing",
    "shared": "layers that share keys",
    "sliding": "layers that attend to a window",
}
# Models whose attention no method can replace, though their layers keep keys and values like others.
_REFUSED = {
    **dict.fromkeys(
        ("flint", "gpt_oss", "granite_swa", "granitemoe_swa"), "the model's attention has sinks of its own"
    ),
    **dict.fromkeys(
        ("beam", "diffllama", "doge", "falcon", "gpt_neox_japanese", "moshi"),
        "the model attends by its own code",
    ),
    **dict.fromkeys(("git", "xglm"), "the model has no rotary encoding of positions"),
}
_NO_ROTARY = {"biogpt", "opt"}  # but attention that can be replaced


def _key_width(given: Mapping[str, Any]) -> int:
    """Of a head that reads latents: what has a position and what has none."""
    return int(given.get("qk_nope_head_dim") or 0) + int(given.get("qk_rope_head_dim") or 0)


def _held(way: Way, shape: ModelShape, length: int, size: int) -> int | None:
    """Bytes that stay on the device. States are float32 in any model, and twice as large in the first layer (LRPE)."""
    if way.facets["keeps"] == "state":
        return (shape.layers + 1) * shape.heads * shape.head_dim**2 * BYTES["float32"]
    return shape.cache_bytes(min(length, way.tokens) if way.facets["keeps"] == "window" else length, size)


def _fits(weights: int | None, cache: int | None, memory: int | None) -> bool | None:
    if memory is None:
        return None
    if (weights or 0) + (cache or 0) > memory:
        return False
    return None if weights is None or cache is None else True

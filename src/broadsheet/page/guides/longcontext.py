"""What a long input costs a model, and which methods apply: computed from the model's config, without its weights.

Knows: configs as JSON, `long_context.toml`, the page's evidence. Does not know: how a config is found, or any method's
code. Sources of the rules: arXiv:2311.12351 and arXiv:2503.17407, and the papers themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from broadsheet.console import InputError
from broadsheet.page.guides.data import read
from broadsheet.page.papers import Paper, get

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MOSTLY_ATTENTION = 0.5  # share of the prefill's operations from which a sparse prefill is worth trying


@dataclass(frozen=True)
class ModelShape:
    """What decides a decoder's costs.

    Attributes:
        layers, heads, kv_heads, head_dim, hidden, ffn, vocab: sizes.
        context: positions it was trained on; None where the config does not say.
        windows: of each layer, the tokens it attends to; None for all.
        weights: parameters, as a Llama has them: biases and further norms of other kinds, some thousandths, are left
            out. None where the config is of a kind that is not counted (mixtures of experts).
        tied: input and output embeddings are one matrix.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int
    context: int | None
    windows: tuple[int | None, ...]
    weights: int | None
    tied: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a `config.json` of a causal LM; of a model with several parts, that of its text.

        Raises:
            InputError: it lacks a size.
        """
        given = {**config, **(config.get("text_config") or {})}
        try:
            layers, heads, hidden = (
                int(given[key]) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
            )
            vocab, ffn = int(given["vocab_size"]), int(given.get("intermediate_size") or 4 * hidden)
            kv_heads = int(given.get("num_key_value_heads") or heads)
            head_dim = int(given.get("head_dim") or hidden // heads)
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
        mixture = any(given.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
        attention = 2 * hidden * head_dim * (heads + kv_heads)  # queries, output; keys, values
        products = 2 if given.get("model_type") in _UNGATED else 3
        inner = layers * (attention + products * hidden * ffn + 2 * hidden) + hidden  # with the norms
        return cls(
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            hidden=hidden,
            ffn=ffn,
            vocab=vocab,
            context=given.get("max_position_embeddings"),
            windows=_windows(given, layers),
            weights=None if mixture else inner + vocab * hidden * (1 if tied else 2),
            tied=tied,
        )

    def cache_bytes(self, tokens: int, size: int) -> int:
        """Bytes of keys and values of one text of so many tokens, `size` bytes a number."""
        held = sum(min(tokens, window or tokens) for window in self.windows)
        return 2 * self.kv_heads * self.head_dim * held * size

    def prefill(self, tokens: int) -> tuple[float | None, float]:
        """Operations to read so many tokens at once, head left out: those of weights, and those of attention.

        A product with a matrix takes two operations a weight and token; attention two products, of which causality
        needs half. Those of weights are None where weights are not counted.
        """
        of_attention = 4.0 * self.heads * self.head_dim * sum(_pairs(tokens, window) for window in self.windows)
        if self.weights is None:
            return None, of_attention
        return 2.0 * (self.weights - self.vocab * self.hidden * (1 if self.tied else 2)) * tokens, of_attention


_UNGATED = ("falcon", "gpt_neox", "nemotron", "persimmon", "phi", "starcoder2")  # an MLP of two matrices, not three
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}  # where older configs do not say


def _windows(given: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """The window of each layer, by its `layer_types`; older configs leave those to be told from other keys."""
    window = given.get("sliding_window") if given.get("use_sliding_window", True) else None
    if not window:
        return (None,) * layers
    every = given.get("sliding_window_pattern") or _FULL_EVERY.get(given.get("model_type", ""), layers + 1)
    first = given.get("max_window_layers", 0)
    kinds = given.get("layer_types") or [
        "sliding_attention" if layer >= first and (layer + 1) % every else "full_attention" for layer in range(layers)
    ]
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


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
        cache: bytes of keys and values that stay on the device.
        fits: whether weights and cache fit the memory; None where no memory was given, or weights are not counted.
    """

    way: Way
    applies: bool
    reason: str
    cache: int
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
    """What a text of `length` tokens costs a model with full attention, and what else could read it.

    Attributes:
        weights, cache: bytes; weights None where they are not counted.
        of_weights, of_attention: operations of the prefill; of_weights None where they are not counted.
        memory: bytes that there are; None where it was not given.
        ways: those that apply first, in the order of the file; refuted ones last among them.
    """

    shape: ModelShape
    length: int
    weights: int | None
    cache: int
    of_weights: float | None
    of_attention: float
    memory: int | None
    ways: tuple[AdvisedWay, ...]

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
        """All operations of the prefill; None where those of weights are not counted."""
        return None if self.of_weights is None else self.of_attention + self.of_weights

    @property
    def attention_share(self) -> float | None:
        """Attention's share of the prefill's operations; None where those of weights are not counted."""
        return None if self.operations is None else self.of_attention / self.operations

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "length": self.length,
            "trained_positions": self.shape.context,
            "beyond": self.beyond,
            "weights_bytes": self.weights,
            "cache_bytes": self.cache,
            "cache_bytes_per_token": self.cache / self.length,
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
    cache = shape.cache_bytes(length, size)
    made = LongInput(shape, length, weights, cache, of_weights, of_attention, room, ())
    found = []
    for way in ways():
        applies, reason = _applies(way, made, need)
        held = _held(way, shape, length, size)
        found.append(AdvisedWay(way, applies, reason, held, _fits(weights, held, room)))
    found.sort(key=lambda each: (not each.applies, each.way.paper.verdict == "refuted here"))
    return LongInput(shape, length, weights, cache, of_weights, of_attention, room, tuple(found))


def _applies(way: Way, made: LongInput, need: str | None) -> tuple[bool, str]:
    """Whether a way is for this, and why."""
    context = made.shape.context
    if need is not None and need not in way.needs:
        return False, f"it is for another need: {', '.join(way.needs)}"
    if all(made.shape.windows) and way.facets["phase"] != "decode" and way.length != "any":
        return False, "every layer of the model attends to a window already"
    if way.length == "beyond" and not made.beyond:
        if context is None:
            return True, f"{way.because}; how long the model was trained on is not known"
        return False, f"{made.length:,} tokens are within the {context:,} that the model was trained on"
    if way.length == "within" and made.beyond:
        return False, f"{made.length:,} tokens are more than the {context:,} that the model was trained on"
    share = made.attention_share
    if "slow-prefill" in way.needs and share is None:
        return True, f"{way.because}, if it is: attention's share is not counted for a mixture of experts"
    if "slow-prefill" in way.needs and share is not None and share < _MOSTLY_ATTENTION:
        return False, f"attention is {share:.0%} of reading {made.length:,} tokens".replace("%", " %")
    return True, way.because


def _held(way: Way, shape: ModelShape, length: int, size: int) -> int:
    """Bytes that stay on the device. States are float32 in any model, and twice as large in the first layer (LRPE)."""
    if way.facets["keeps"] == "state":
        return (shape.layers + 1) * shape.heads * shape.head_dim**2 * BYTES["float32"]
    return shape.cache_bytes(min(length, way.tokens) if way.facets["keeps"] == "window" else length, size)


def _fits(weights: int | None, cache: int, memory: int | None) -> bool | None:
    return None if memory is None or weights is None else weights + cache <= memory

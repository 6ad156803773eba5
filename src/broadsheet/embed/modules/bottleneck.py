"""Rows of token ids in three segments, `prefix | special | suffix`, as batches, forward passes and a cache.

Knows labels, padding, causal attention and the language-model loss. Does not know texts, or which further positions are
hidden from each other: that is a paper's mask, a function of the segments that GEM (`gem`) and LLM-QL (`llm_ql`) pass
in. Position ids stay as they are, and embedding itself needs plain causal attention alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from broadsheet.console import InputError
from broadsheet.embed.modules.masks import attention_argument

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

    from broadsheet.embed.modules.encoder import CausalEncoder

Segment = Literal["prefix", "special", "suffix"]
PADDING, PREFIX, SPECIAL, SUFFIX = range(4)
_NUMBERS: dict[Segment, int] = {"prefix": PREFIX, "special": SPECIAL, "suffix": SUFFIX}
IGNORED = -100  # the label of a token that is no target

Hidden = Callable[[Tensor], Tensor]
"""A paper's mask: segments (batch, length) to boolean (batch, length, length), [b, i, j] whether j is hidden from i."""


@dataclass(frozen=True)
class BottleneckRow:
    """One row of token ids in three segments. Without `special` it is an ordinary row, whichever segment holds them.

    Args:
        prefix, special, suffix: token ids. An ordinary row has a prefix alone.
        scored: the segments whose tokens are targets. GEM never scores special tokens; LLM-QL may score them.
    """

    prefix: Sequence[int]
    special: Sequence[int] = ()
    suffix: Sequence[int] = ()
    scored: tuple[Segment, ...] = ("prefix", "suffix")

    def __len__(self) -> int:
        return len(self.prefix) + len(self.special) + len(self.suffix)

    def segments(self) -> list[int]:
        """The segment of each token; all `PREFIX`, which means plain causal attention, without special tokens."""
        if not self.special:
            return [PREFIX] * len(self)
        return [PREFIX] * len(self.prefix) + [SPECIAL] * len(self.special) + [SUFFIX] * len(self.suffix)

    def targets(self) -> list[int]:
        """Each token's id where it is a target, and `IGNORED` where not. Nothing predicts the first token."""
        labels: list[int] = []
        for name, part in (("prefix", self.prefix), ("special", self.special), ("suffix", self.suffix)):
            labels += part if name in self.scored else [IGNORED] * len(part)
        return [IGNORED, *labels[1:]]


def allowed_positions(segments: Tensor, hidden: Hidden | None = None) -> Tensor:
    """Which position sees which: j ≤ i, both real, and j not hidden from i; every position sees itself.

    So padding sees itself alone, and no softmax runs over nothing.

    Args:
        segments: (batch, length) of `PADDING`, `PREFIX`, `SPECIAL`, `SUFFIX`.
        hidden: the paper's mask; None is plain causal attention.

    Returns:
        Boolean (batch, 1, length, length), [b, 0, i, j] whether i sees j.
    """
    length = segments.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)
    allowed = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    real = segments != PADDING
    allowed = allowed & real[:, :, None] & real[:, None, :]  # (batch, length, length)
    if hidden is not None:
        allowed = allowed & ~hidden(segments)
    return (allowed | itself)[:, None]


@dataclass(frozen=True)
class BottleneckCollator:
    """Rows → one padded batch that any causal LM of transformers takes as it is: `model(**batch)`.

    Args:
        pad_id: fills up the rows. It is masked, so any token will do.
        hidden: the paper's mask; None: every row has plain causal attention, which is ordinary language modelling.
        padding_side: `"right"` or `"left"`; results do not depend on it.
        segments: also return `segments`, which `forward_pass` and the objectives need, and a bare model does not take.

    Returns, by key (all tensors):
        input_ids, position_ids: (batch, length); positions count real tokens from 0.
        attention_mask: boolean (batch, 1, length, length), as `allowed_positions`.
        labels: (batch, length), `IGNORED` where a token is no target; unshifted, as transformers' models want them.
        segments: (batch, length).

    Example:
        batch = BottleneckCollator(pad_id=0, segments=False)([BottleneckRow([5, 6], [9], [7, 8])])
        model(**batch).loss
    """

    pad_id: int
    hidden: Hidden | None = None
    padding_side: Literal["right", "left"] = "right"
    segments: bool = True

    def __call__(self, rows: Sequence[BottleneckRow]) -> dict[str, Tensor]:
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.pad_id)
        labels = torch.full((len(rows), length), IGNORED)
        segments = torch.full((len(rows), length), PADDING)
        for i, row in enumerate(rows):
            columns = slice(length - len(row), length) if self.padding_side == "left" else slice(0, len(row))
            ids[i, columns] = torch.tensor([*row.prefix, *row.special, *row.suffix])
            labels[i, columns] = torch.tensor(row.targets())
            segments[i, columns] = torch.tensor(row.segments())
        batch = {
            "input_ids": ids,
            "attention_mask": allowed_positions(segments, self.hidden),
            "position_ids": position_ids(segments),
            "labels": labels,
        }
        return batch | {"segments": segments} if self.segments else batch


def position_ids(segments: Tensor) -> Tensor:
    """Position ids (batch, length): real tokens count from 0; padding on the left has 0."""
    return ((segments != PADDING).long().cumsum(-1) - 1).clamp(min=0)


def collator_for(encoder: CausalEncoder, hidden: Hidden | None) -> BottleneckCollator:
    """The collator with an encoder's padding and a paper's mask."""
    tokenizer = encoder.tokenizer
    return BottleneckCollator(int(tokenizer.pad_token_id), hidden, tokenizer.padding_side)


@dataclass(frozen=True)
class BottleneckOutput:
    """The result of one forward pass over a collated batch.

    Attributes:
        states: (batch, length, hidden), after the final norm.
        nll: (batch, columns), −log P(token | what it sees) in float32 at least, 0 where a token is no target.
        scored: boolean (batch, columns), which are targets. Columns without any target are left out.
    """

    states: Tensor
    nll: Tensor
    scored: Tensor


def forward_pass(encoder: CausalEncoder, batch: Mapping[str, Tensor]) -> BottleneckOutput:
    """States and next-token losses of a collated batch. Logits are computed only where a target needs them.

    Raises:
        InputError: the encoder is not causal, or stops at an inner layer, which has no language-model head.
    """
    check_encoder(encoder)
    ids, labels = batch["input_ids"], batch["labels"]
    scored = labels[:, 1:] != IGNORED  # at column t: the logits at t predict a target
    columns = scored.any(0).nonzero()[:, 0]
    given = _inputs(encoder, batch)
    keeps = _takes(encoder.model, "logits_to_keep")
    if keeps:
        given["logits_to_keep"] = columns
    with encoder.precision():
        output = encoder.model(input_ids=ids, use_cache=False, output_hidden_states=True, **given)
    logits = output.logits if keeps else output.logits[:, columns]
    scored = scored[:, columns]
    # Only targets go through the softmax, with the vocabulary last: across it, it takes more than twice the time.
    chosen = cross_entropy(_wide(logits[scored]), labels[:, 1:][:, columns][scored], reduction="none")
    nll = chosen.new_zeros(scored.shape).masked_scatter(scored, chosen)
    return BottleneckOutput(output.hidden_states[-1], nll, scored)


def forward_states(encoder: CausalEncoder, batch: Mapping[str, Tensor]) -> Tensor:
    """States alone, (batch, length, hidden): the head is not run, and gets no gradient."""
    check_encoder(encoder)
    with encoder.precision():
        output = encoder.backbone(input_ids=batch["input_ids"], use_cache=False, **_inputs(encoder, batch))
    states: Tensor = output.last_hidden_state
    return states


def _inputs(encoder: CausalEncoder, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    given: dict[str, Any] = {"attention_mask": attention_argument(batch["attention_mask"], encoder.model)}
    if _takes(encoder.backbone, "position_ids"):
        given["position_ids"] = batch["position_ids"]
    return given


def _takes(model: PreTrainedModel, argument: str) -> bool:
    return argument in inspect.signature(type(model).forward).parameters


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def check_encoder(encoder: CausalEncoder) -> None:
    """Raises InputError unless the encoder is causal and runs all its layers."""
    if encoder.attention != "causal":
        raise InputError("a bottleneck language model is causal; got an encoder with attention='bidirectional'")
    if encoder.layer is not None and encoder.layer < len(encoder.layers):
        raise InputError(
            f"a bottleneck language model predicts tokens from its last layer; got an encoder that stops at layer "
            f"{encoder.layer}: leave layer=None"
        )


def special_states(states: Tensor, segments: Tensor) -> Tensor:
    """The special tokens' states, in order: (rows, k, hidden) of the rows that have any.

    Raises:
        ValueError: rows have different numbers of special tokens.
    """
    special = segments == SPECIAL
    counts = special.sum(1)
    some = counts[counts > 0]
    if len(some) and bool((some != some[0]).any()):
        raise ValueError(f"got rows with {sorted(set(some.tolist()))} special tokens; expected one number")
    return states[special].view(len(some), int(some[0]) if len(some) else 0, states.shape[-1])


@dataclass(frozen=True)
class SpecialCache:
    """Keys and values of rows' special tokens: all that a suffix can know of its prefix.

    Attributes:
        keys, values: per layer (rows, heads, k, head_dim).
        lengths: (rows,) tokens up to and including the special ones: the position id that a suffix begins at.
        logits: (rows, vocabulary), the last special token's prediction of the first token of the suffix.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    logits: Tensor

    def cache(self, rows: Tensor) -> DynamicCache:
        """A cache to decode from, for the chosen rows; one may be chosen several times."""
        from transformers import DynamicCache

        return DynamicCache([(key[rows], value[rows]) for key, value in zip(self.keys, self.values, strict=True)])


@torch.no_grad()
def cache_specials(encoder: CausalEncoder, rows: Sequence[BottleneckRow], hidden: Hidden | None = None) -> SpecialCache:
    """Run prefixes and special tokens, and keep the special tokens' keys and values; all rows have as many of them.

    Raises:
        ValueError: rows have different numbers of special tokens, or none.
    """
    check_encoder(encoder)
    sizes = {len(row.special) for row in rows}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"got rows with {sorted(sizes)} special tokens; expected one number above 0")
    k = sizes.pop()
    # On the left, so that the special tokens end each row.
    collate = BottleneckCollator(int(encoder.tokenizer.pad_token_id), hidden, "left")
    batch = {
        key: value.to(encoder.device)
        for key, value in collate([BottleneckRow(row.prefix, row.special) for row in rows]).items()
    }
    given = _inputs(encoder, batch)
    if _takes(encoder.model, "logits_to_keep"):
        given["logits_to_keep"] = 1
    output = encoder.model(input_ids=batch["input_ids"], use_cache=True, **given)
    layers = output.cache.layers
    return SpecialCache(
        [layer.keys[:, :, -k:] for layer in layers],
        [layer.values[:, :, -k:] for layer in layers],
        (batch["segments"] != PADDING).sum(1),
        output.logits[:, -1],
    )


@torch.no_grad()
def suffix_logits(encoder: CausalEncoder, cached: SpecialCache, rows: Tensor, suffixes: Tensor) -> Tensor:
    """Next-token logits over suffixes that see nothing but the special tokens' cache.

    Args:
        rows: (batch,) the cached row that each suffix belongs to.
        suffixes: (batch, length) token ids, padded on the right with any token.

    Returns:
        (batch, length + 1, vocabulary): [:, 0] predicts the first token of the suffix, [:, t] what follows t tokens.
    """
    first = cached.logits[rows][:, None]
    size, length = suffixes.shape
    if not length:
        return first
    given: dict[str, Any] = {}
    if _takes(encoder.backbone, "position_ids"):
        given["position_ids"] = cached.lengths[rows][:, None] + torch.arange(length, device=suffixes.device)
    output = encoder.model(
        input_ids=suffixes,
        attention_mask=suffixes.new_ones(size, cached.keys[0].shape[2] + length),
        cache=cached.cache(rows),
        use_cache=True,
        **given,
    )
    return torch.cat([first, output.logits], dim=1)

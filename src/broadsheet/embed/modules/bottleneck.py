"""The bottleneck language model: what follows some special tokens sees what stands before them only through them.

Knows rows of token ids in three segments, `prefix | special | suffix`, their mask, labels and losses. Does not know
texts, or what a paper makes of them: GEM (`gem`) puts new tokens into a text, LLM-QL (`llm_ql`) an end-of-text token
between a document and its query.

Next-token prediction behind the bottleneck forces the prefix into the special tokens' states, which is what makes them
embeddings. Every position keeps its ordinary number, and plain causal attention is all that embedding itself needs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
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
IGNORED = -100
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class BottleneckRow:
    """One row of token ids in three segments. Without `special` it is an ordinary row, wherever its tokens stand.

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

    def segments(self, *, block: bool = True) -> list[int]:
        """The segment of each token; all `PREFIX`, which means plain causal attention, without block or specials."""
        if not (block and self.special):
            return [PREFIX] * len(self)
        return [PREFIX] * len(self.prefix) + [SPECIAL] * len(self.special) + [SUFFIX] * len(self.suffix)

    def targets(self) -> list[int]:
        """Each token's id where it is a target, and `IGNORED` where not. Nothing predicts the first token."""
        labels: list[int] = []
        for name, part in (("prefix", self.prefix), ("special", self.special), ("suffix", self.suffix)):
            labels += part if name in self.scored else [IGNORED] * len(part)
        return [IGNORED, *labels[1:]]


def bottleneck_mask(segments: Tensor) -> Tensor:
    """Which position sees which, from the segment of each.

    Position i sees j ≤ i, but not: a suffix position any prefix position; a special position another special one; any
    position padding. Padding sees itself alone, so that no softmax runs over nothing.

    Args:
        segments: (batch, length) of `PADDING`, `PREFIX`, `SPECIAL`, `SUFFIX`. A row of prefix alone is plain causal.

    Returns:
        Boolean (batch, 1, length, length), [b, 0, i, j] whether i sees j.

    Source: arXiv:2506.04344, Sec. 3.1 and Fig. 3; arXiv:2504.05216, the mask M, is the case of one special token.
    """
    length = segments.shape[1]
    row, column = segments[:, :, None], segments[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    hidden = ((row == SUFFIX) & (column == PREFIX)) | ((row == SPECIAL) & (column == SPECIAL))
    real = (row != PADDING) & (column != PADDING)
    return ((causal & real & ~hidden) | itself)[:, None]


def hide(allowed: Tensor, keys: Tensor) -> Tensor:
    """The same mask with some positions seen by themselves alone: they are as good as dropped, the numbers stay.

    Args:
        allowed: boolean (batch, 1, length, length).
        keys: boolean (batch, length), the positions to hide.
    """
    itself = torch.eye(keys.shape[1], dtype=torch.bool, device=keys.device)
    return allowed & (~keys[:, None, None, :] | itself)


@dataclass(frozen=True)
class BottleneckCollator:
    """Rows → one padded batch that any causal LM of transformers takes as it is: `model(**batch)`.

    Args:
        pad_id: what fills up the rows. It is masked, so any token will do.
        padding_side: `"right"` or `"left"`; results do not depend on it.
        block: leave it out (False) and every row has plain causal attention: ordinary language modelling.
        segments: also give `segments`, which `read` and the objectives want, and a bare model does not take.

    Returns, by key (all tensors):
        input_ids, position_ids: (batch, length); positions count real tokens from 0.
        attention_mask: boolean (batch, 1, length, length), as `bottleneck_mask`.
        labels: (batch, length), `IGNORED` where a token is no target; unshifted, as transformers' models want them.
        segments: (batch, length).

    Example:
        batch = BottleneckCollator(pad_id=0, segments=False)([Row([5, 6], [9], [7, 8])])
        model(**batch).loss
    """

    pad_id: int
    padding_side: Literal["right", "left"] = "right"
    block: bool = True
    segments: bool = True

    def __call__(self, rows: Sequence[BottleneckRow]) -> dict[str, Tensor]:
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.pad_id)
        labels = torch.full((len(rows), length), IGNORED)
        segments = torch.full((len(rows), length), PADDING)
        for i, row in enumerate(rows):
            place = slice(length - len(row), length) if self.padding_side == "left" else slice(0, len(row))
            ids[i, place] = torch.tensor([*row.prefix, *row.special, *row.suffix])
            labels[i, place] = torch.tensor(row.targets())
            segments[i, place] = torch.tensor(row.segments(block=self.block))
        batch = {
            "input_ids": ids,
            "attention_mask": bottleneck_mask(segments),
            "position_ids": positions(segments),
            "labels": labels,
        }
        return batch | {"segments": segments} if self.segments else batch


def positions(segments: Tensor) -> Tensor:
    """Position numbers (batch, length): real tokens count from 0; padding on the left has 0."""
    return ((segments != PADDING).long().cumsum(-1) - 1).clamp(min=0)


def collator_for(encoder: CausalEncoder, *, block: bool = True) -> BottleneckCollator:
    """The collator with an encoder's padding."""
    tokenizer = encoder.tokenizer
    return BottleneckCollator(int(tokenizer.pad_token_id), tokenizer.padding_side, block)


@dataclass(frozen=True)
class BottleneckReading:
    """What one forward pass over a collated batch gave.

    Attributes:
        states: (batch, length, hidden), after the final norm.
        nll: (batch, columns), −log P(token | what it sees) in float32 at least, 0 where a token is no target.
        scored: boolean (batch, columns), which are targets. Columns without any target are left out.
    """

    states: Tensor
    nll: Tensor
    scored: Tensor


def read(encoder: CausalEncoder, batch: Mapping[str, Tensor]) -> BottleneckReading:
    """States and next-token losses of a collated batch. Logits are computed where a target needs them alone.

    Raises:
        InputError: the encoder is not causal or stops at an inner layer, behind which there is no head.
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
    words = torch.where(scored, labels[:, 1:][:, columns], 0)
    nll = cross_entropy(_wide(logits).transpose(1, 2), words, reduction="none")
    return BottleneckReading(output.hidden_states[-1], torch.where(scored, nll, 0), scored)


def read_states(encoder: CausalEncoder, batch: Mapping[str, Tensor]) -> Tensor:
    """States alone (batch, length, hidden): the head is not run, and gets no gradient."""
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


def corrupt(text: str, probability: float, generator: Random, word: str = "_") -> str:
    """Replace each word, a run without white space, by `word`, independently with a probability.

    White space stays as it is; probability 0 gives the text itself, 1 no word of it.

    Raises:
        InputError: the probability is not within 0 and 1.

    Source: arXiv:2504.05216, document corruption (0.6 in the authors' command).
    """
    if not 0 <= probability <= 1:
        raise InputError(f"got a corruption of {probability}; expected a share of words from 0 to 1")
    if not probability:
        return text
    return _WORD.sub(lambda found: word if generator.random() < probability else found[0], text)


@dataclass(frozen=True)
class BottleneckMemory:
    """What the special tokens of rows left in the cache: all that a suffix can know of its prefix.

    Attributes:
        keys, values: per layer (rows, heads, k, head_dim).
        lengths: (rows,) tokens up to and including the special ones: the position that a suffix begins at.
        logits: (rows, vocabulary), what the last special token predicts: the first token of the suffix.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    logits: Tensor

    def cache(self, rows: Tensor) -> DynamicCache:
        """A cache to go on from, for the chosen rows (with repetition, if one is chosen several times)."""
        from transformers import DynamicCache

        return DynamicCache([(key[rows], value[rows]) for key, value in zip(self.keys, self.values, strict=True)])


@torch.no_grad()
def remember(encoder: CausalEncoder, rows: Sequence[BottleneckRow]) -> BottleneckMemory:
    """Read prefixes and special tokens, and keep what the special tokens hold; all rows have the same number of them.

    Raises:
        ValueError: rows have different numbers of special tokens, or none.
    """
    check_encoder(encoder)
    sizes = {len(row.special) for row in rows}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"got rows with {sorted(sizes)} special tokens; expected one number above 0")
    k = sizes.pop()
    collate = BottleneckCollator(int(encoder.tokenizer.pad_token_id), "left")  # so that the special tokens end each row
    batch = {
        key: value.to(encoder.device)
        for key, value in collate([BottleneckRow(row.prefix, row.special) for row in rows]).items()
    }
    given = _inputs(encoder, batch)
    if _takes(encoder.model, "logits_to_keep"):
        given["logits_to_keep"] = 1
    output = encoder.model(input_ids=batch["input_ids"], use_cache=True, **given)
    layers = output.cache.layers
    return BottleneckMemory(
        [layer.keys[:, :, -k:] for layer in layers],
        [layer.values[:, :, -k:] for layer in layers],
        (batch["segments"] != PADDING).sum(1),
        output.logits[:, -1],
    )


@torch.no_grad()
def recall_logits(encoder: CausalEncoder, memory: BottleneckMemory, rows: Tensor, suffixes: Tensor) -> Tensor:
    """Next-token logits over suffixes that know nothing but a memory.

    Args:
        rows: (batch,) the row of the memory that each suffix belongs to.
        suffixes: (batch, length) token ids, padded on the right with whatever token.

    Returns:
        (batch, length + 1, vocabulary): [:, 0] predicts the first token of the suffix, [:, t] what follows t tokens.
    """
    first = memory.logits[rows][:, None]
    size, length = suffixes.shape
    if not length:
        return first
    given: dict[str, Any] = {}
    if _takes(encoder.backbone, "position_ids"):
        given["position_ids"] = memory.lengths[rows][:, None] + torch.arange(length, device=suffixes.device)
    output = encoder.model(
        input_ids=suffixes,
        attention_mask=suffixes.new_ones(size, memory.keys[0].shape[2] + length),
        cache=memory.cache(rows),
        use_cache=True,
        **given,
    )
    return torch.cat([first, output.logits], dim=1)

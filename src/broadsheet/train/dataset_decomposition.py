"""Dataset decomposition (Pouransari et al., 2024, arXiv:2405.13226): each step reads pieces of one length.

Knows: token sequences, lengths, batches. Does not know: models, losses, optimizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import Sampler

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, within

# By how many buckets there are, the shortest first: how likely each is to be drawn.
CURRICULA: dict[str, Callable[[int], list[float]]] = {
    "uniform": lambda count: [1.0] * count,
    "grow_linear": lambda count: [float(count - i) for i in range(count)],
    "grow_p2": lambda count: [2.0 ** (count - 1 - i) for i in range(count)],
}


@dataclass(frozen=True)
class DocumentPiece:
    """A part of a document: 2^bucket inputs and one target more.

    Attributes:
        start: its first token, in the document.
    """

    start: int
    bucket: int

    @property
    def length(self) -> int:
        """In tokens, 2^bucket + 1."""
        return 2**self.bucket + 1


def decompose(
    tokens: int, low: int, high: int, generator: torch.Generator | None = None
) -> tuple[list[DocumentPiece], int]:
    """The pieces of a document, the longest first, and how many tokens at its end are dropped.

    They are the binary expansion of its length, but that none is longer than 2^high + 1: what remains of more is cut
    to that, or to a length drawn with `long_document_probabilities` where there is a generator.

    Args:
        tokens: of the document.
        low, high: the shortest and the longest piece hold 2^low + 1 and 2^high + 1.

    Raises:
        InputError: low is above high, or below 0.
    """
    if not 0 <= low <= high:
        raise InputError(f"got pieces of 2^{low} to 2^{high} tokens; expected the shorter first, of 0 or more")
    pieces, start = [], 0
    chances = torch.tensor(list(long_document_probabilities(low, high).values())) if generator else None
    while tokens - start > 1:
        bucket = (tokens - start - 1).bit_length() - 1  # ⌊log2⌋, in integers
        if bucket < low:
            break
        if bucket > high:
            drawn = int(torch.multinomial(chances, 1, generator=generator)) if chances is not None else 0
            bucket = high - drawn
        pieces.append(DocumentPiece(start, bucket))
        start += pieces[-1].length
    return pieces, tokens - start


def long_document_probabilities(low: int, high: int) -> dict[int, float]:
    """Bucket → how likely it takes the next piece of a document longer than all: each gets as many tokens, expected.

    From the longest to the shortest, P(i) ∝ 2^(high − i).
    """
    total = 2 ** (high - low + 1) - 1
    return {i: 2 ** (high - i) / total for i in range(high, low - 1, -1)}


def bucket_probabilities(odds: Sequence[float], left: Sequence[int]) -> list[float]:
    """How likely each bucket is to give the next batch (Algorithm 1): its odds, 0 where nothing is left in it."""
    held = [odd if count else 0.0 for odd, count in zip(odds, left, strict=True)]
    total = sum(held)
    return [each / total for each in held] if total else held


def sequences(tokens: int, length: int) -> int:
    """How many of a length make a batch of so many tokens.

    Raises:
        InputError: no whole number does.
    """
    if tokens % length:
        raise InputError(f"got batches of {tokens:,} tokens and pieces of {length:,}; expected a multiple of them")
    return tokens // length


def power_of_two(length: int, name: str) -> int:
    """Its exponent.

    Raises:
        InputError: it is none; `name` says what it is.
    """
    if length < 1 or length & (length - 1):
        raise InputError(f"got {name} {length}; expected a power of two")
    return length.bit_length() - 1


def average_lengths(tokens: Mapping[int, float]) -> tuple[float, float]:
    """The mean length of a sequence, and how many tokens of its document a token sees (Table 1).

    Args:
        tokens: bucket → tokens in it.
    """
    total = sum(tokens.values())
    sequence = total / sum(count / 2**i for i, count in tokens.items())
    context = sum(count * 2.0 ** (i - 1) for i, count in tokens.items()) / total
    return sequence, context


@dataclass(frozen=True)
class ShardPlan:
    """What a training reads in an epoch, where pieces lie in shards.

    Attributes:
        tokens: of an epoch.
        sequences: of each bucket, in an epoch.
        weights: by which buckets are mixed: batches times odds.
    """

    tokens: int
    sequences: tuple[int, ...]
    weights: tuple[int, ...]


def shard_plan(
    tokens: int,
    epochs: int,
    shards: Sequence[int],
    per_shard: Sequence[int],
    lengths: Sequence[int],
    odds: Sequence[float],
    readers: int,
) -> ShardPlan:
    """Whole shards for each reader and epoch, so many of each bucket that the tokens come out, the shortest first.

    Buckets are read in proportion to what they hold. Each is rounded to whole shards for all readers; what is missing
    then, or too much, the longest bucket makes up, and the next where that is not fine enough.

    Args:
        tokens: of the whole training; it is raised where whole shards ask for it.
        shards, per_shard, lengths: of each bucket: its shards, sequences in one, tokens of a sequence.
        readers: processes that read, times their workers.
    """
    held = [count * each * length for count, each, length in zip(shards, per_shard, lengths, strict=True)]
    unit = [each * readers for each in per_shard]
    share = tokens / sum(held) / epochs
    found = [round(has * share / length / step) * step for has, length, step in zip(held, lengths, unit, strict=True)]
    for i in reversed(range(len(found))):
        missing = tokens / epochs - sum(map(math.prod, zip(found, lengths, strict=True)))
        found[i] += math.ceil(missing / (unit[i] * lengths[i])) * unit[i]
    read = [count * length for count, length in zip(found, lengths, strict=True)]
    first = found[0] // unit[0]
    weights = [int(each / read[0] * first * odd) for each, odd in zip(read, odds, strict=True)]
    return ShardPlan(sum(read), tuple(found), tuple(weights))


class Decomposition(Sequence[dict[str, Tensor]]):
    """Pieces of documents, those of a length together: no piece spans two documents, and nothing is padded.

    A row is `{"input_ids": (2^i + 1,), "labels": (2^i + 1,)}`: a causal LM shifts labels itself, and so is asked for
    2^i tokens.

    Args:
        documents: tokens of each, an end of text at its end.
        low, high: shortest and longest pieces, in powers of two; what is shorter at a document's end is dropped.
        randomize: what is longer than all pieces is cut to lengths that are drawn; else to the longest.

    Attributes:
        buckets: bucket → (pieces, 2^bucket + 1) tokens; empty buckets are left out.
        dropped: tokens.

    Raises:
        InputError: no document is long enough.
    """

    def __init__(
        self, documents: Sequence[Sequence[int]], low: int = 8, high: int = 13, *, randomize: bool = True, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed) if randomize else None
        found: dict[int, list[Sequence[int]]] = {}
        self.dropped = 0
        for document in documents:
            pieces, dropped = decompose(len(document), low, high, generator)
            self.dropped += dropped
            for piece in pieces:
                found.setdefault(piece.bucket, []).append(document[piece.start : piece.start + piece.length])
        if not found:
            raise InputError(f"got {len(documents):,} documents, none of {2**low + 1:,} tokens or more")
        self.buckets = {bucket: torch.tensor(found[bucket]) for bucket in sorted(found)}

    def __len__(self) -> int:
        return sum(map(len, self.buckets.values()))

    def __getitem__(self, place: Any) -> Any:
        """The row at a place; places count through the buckets, the shortest first."""
        wanted = range(len(self))[place]
        for pieces in self.buckets.values():
            if wanted < len(pieces):
                return {"input_ids": pieces[wanted], "labels": pieces[wanted]}
            wanted -= len(pieces)
        raise IndexError(place)

    def places(self, bucket: int) -> range:
        """Those of a bucket's rows."""
        first = sum(len(pieces) for each, pieces in self.buckets.items() if each < bucket)
        return range(first, first + len(self.buckets[bucket]))

    def tokens(self) -> dict[int, int]:
        """Bucket → targets in it."""
        return {bucket: len(pieces) * 2**bucket for bucket, pieces in self.buckets.items()}


class LengthCurriculum(Sampler[list[int]]):
    """Batches of one length each and as many tokens each, short ones likelier at first, again and again (Algorithm 1).

    Each bucket's batches are dealt out over the cycles. In a cycle a batch is drawn from those of the buckets that have
    any left, by fixed odds; so what is favoured ends first, and lengths drift. Every row is read once an epoch, but for
    what makes no whole batch. The order follows from the seed alone: all processes have the same.

    Args:
        rows: what is read.
        tokens: of a batch; bucket i gives tokens / 2^i rows.
        curriculum: one of `CURRICULA`, or odds, the shortest bucket first.
        cycles, epochs: in each epoch rows are dealt anew.

    Attributes:
        lengths: the bucket of each batch, in the order of training.
        done: batches that were given: where `iter` begins, for a resume.

    Raises:
        InputError: an unknown curriculum, odds for other buckets, no whole batch.

    Example:
        loader = DataLoader(rows, batch_sampler=LengthCurriculum(rows, tokens=2**16), collate_fn=stack)
    """

    def __init__(
        self,
        rows: Decomposition,
        tokens: int,
        curriculum: str | Sequence[float] = "grow_p2",
        cycles: int = 8,
        epochs: int = 1,
        seed: int = 0,
    ) -> None:
        if min(cycles, epochs) < 1:
            raise InputError(f"got cycles {cycles}, epochs {epochs}; expected 1 or more")
        buckets = list(rows.buckets)
        odds = _odds(curriculum, len(buckets))
        counts = [sequences(tokens, 2**bucket) for bucket in buckets]
        self._batches: list[Tensor] = []
        self.lengths: list[int] = []
        self.tokens = tokens
        for epoch in range(epochs):
            generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
            dealt = [
                _dealt(torch.tensor(rows.places(bucket)), count, generator)
                for bucket, count in zip(buckets, counts, strict=True)
            ]
            for i, batch in _drawn(dealt, odds, cycles, generator):
                self._batches.append(batch)
                self.lengths.append(buckets[i])
        if not self._batches:
            raise InputError(f"got {sum(rows.tokens().values()):,} tokens, which make no batch of {tokens:,}")
        self.done = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> list[int]:
        """Places of the rows of a batch."""
        found: list[int] = self._batches[number].tolist()
        return found

    def __iter__(self) -> Iterator[list[int]]:
        first, self.done = self.done % len(self), self.done % len(self)
        for number in range(first, len(self)):
            self.done = number + 1
            yield self[number]

    def state_dict(self) -> dict[str, int]:
        """What a resumed run needs beside the arguments."""
        return {"done": self.done}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Begin the next `iter` where `state` was taken."""
        self.done = state["done"]


@dataclass(frozen=True)
class DatasetDecomposition:
    """Train on pieces of documents, each batch of one length, in cycles from short to long.

    Joining documents and cutting them lets a token attend to documents that are not its own, cuts most documents in
    two, and pays for attention over the whole length. Here each document is split into pieces whose lengths are powers
    of two; a batch holds pieces of one length, the shorter the more of them, so that every step reads as many tokens.
    Short ones come first, in cycles.

    Use when documents are shorter than the context, as most are: steps cost less, by what attention costs. Nothing is
        gained on text that fills the context.

    Inputs: tokens of documents; a model that reads from position 0. It changes the rows of a training, and neither its
        loss nor the model; put it together with any `LossMethod`.
    Relation: packing with masks also keeps documents apart, but in rows of one length.

    Args:
        low, high: shortest and longest piece, as powers of two (2^8 to 2^13 tokens).
        curriculum: `"grow_p2"` (its best with cycles), `"grow_linear"`, `"uniform"`, or odds.
        cycles: from short to long, in an epoch (8).
        randomize: see `Decomposition`.
        seed: of the order, and of the lengths that are drawn.

    Example:
        from transformers import Trainer, TrainingArguments

        from broadsheet import models
        from broadsheet.train import DatasetDecomposition

        model, tokenizer = models.load("default", dtype="float32")
        documents = [tokenizer("Some text of yours. " * n + tokenizer.eos_token)["input_ids"] for n in range(4, 40)]
        rows = DatasetDecomposition(low=4, high=6, cycles=2).rows(documents, tokens=128)
        args = TrainingArguments(
            "runs/lengths", max_steps=2, per_device_train_batch_size=1, train_sampling_strategy="sequential",
            remove_unused_columns=False, report_to=[],
        )
        Trainer(model, args, train_dataset=rows, data_collator=rows.collate).train()

    Source: arXiv:2405.13226, Algorithm 1; pieces of 2^i + 1 tokens and the cutting of long documents as in the authors'
    code.
    """

    paper: ClassVar[str] = "dataset_decomposition"

    low: int = 8
    high: int = 13
    curriculum: str | Sequence[float] = "grow_p2"
    cycles: int = 8
    randomize: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, low=(0, None), high=(0, None), cycles=(1, None), seed=(0, None))

    def rows(self, documents: Sequence[Sequence[int]], tokens: int, *, epochs: int = 1, parts: int = 1) -> BatchRows:
        """A whole training's batches, in their order.

        Args:
            documents: tokens of each, an end of text at its end.
            tokens: of a step, on all devices together; a multiple of 2^high.
            parts: into which a step is cut: processes times gradient accumulation.
        """
        pieces = Decomposition(documents, self.low, self.high, randomize=self.randomize, seed=self.seed)
        return BatchRows(
            pieces, LengthCurriculum(pieces, tokens, self.curriculum, self.cycles, epochs, self.seed), parts
        )


class BatchRows(Sequence[dict[str, Tensor]]):
    """Whole batches as rows, for a `Trainer` that reads one a time, in order; or equal parts of them.

    With W processes and an accumulation of G a step reads W · G rows: with `parts` = W · G they are parts of one batch,
    so that all processes read one length at a time.

    Args:
        rows: what batches are made of.
        batches: places of the rows of each.
        parts: of a batch.

    Raises:
        InputError: a batch cannot be cut into so many.
    """

    in_order = True
    whole = True

    def __init__(self, rows: Decomposition, batches: LengthCurriculum, parts: int = 1) -> None:
        self.pieces, self.batches, self.parts = rows, batches, parts
        least = min(sequences(batches.tokens, 2**bucket) for bucket in set(batches.lengths))
        if parts < 1 or least % parts:
            raise InputError(f"got batches of {least} sequences at least; expected a multiple of {parts}, to be parted")

    def __len__(self) -> int:
        return len(self.batches) * self.parts

    def __getitem__(self, place: Any) -> Any:
        number, part = divmod(range(len(self))[place], self.parts)
        places = self.batches[number]
        own = places[part * len(places) // self.parts : (part + 1) * len(places) // self.parts]
        ids = torch.stack([self.pieces[i]["input_ids"] for i in own])
        return {"input_ids": ids, "labels": ids}

    @staticmethod
    def collate(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The one row, which is a batch already."""
        [batch] = rows
        return batch

    def identity(self) -> Any:
        """What tells these rows from others."""
        every = [self.pieces.buckets[each].flatten().tolist() for each in self.pieces.buckets]
        return [fingerprint(every), fingerprint([self.batches[i] for i in range(len(self.batches))]), self.parts]


def _odds(curriculum: str | Sequence[float], count: int) -> list[float]:
    if isinstance(curriculum, str):
        if curriculum not in CURRICULA:
            raise InputError(f"got curriculum {curriculum!r}; expected one of {', '.join(CURRICULA)}, or odds")
        return CURRICULA[curriculum](count)
    odds = [float(each) for each in curriculum]
    if len(odds) != count or min(odds) <= 0:
        raise InputError(f"got odds {odds} for {count} lengths; expected one above 0 for each")
    return odds


def _dealt(places: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(batches, count) of places in a random order; what fills no batch is left out."""
    mixed = places[torch.randperm(len(places), generator=generator)]
    return mixed[: len(mixed) // count * count].view(-1, count)


def _drawn(
    dealt: Sequence[Tensor], odds: Sequence[float], cycles: int, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """The batches of an epoch in their order, each with its bucket (Algorithm 1)."""
    for cycle in range(cycles):
        parts = [
            list(batches[len(batches) * cycle // cycles : len(batches) * (cycle + 1) // cycles]) for batches in dealt
        ]
        while any(parts):
            chances = torch.tensor(bucket_probabilities(odds, [len(part) for part in parts]))
            bucket = int(torch.multinomial(chances, 1, generator=generator))
            yield bucket, parts[bucket].pop(0)

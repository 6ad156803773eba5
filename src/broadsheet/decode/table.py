"""The tri-gram table of ADED (arXiv:2407.12021): T[(a, b)] = {c: p}, which tokens follow a pair, and how often.

Knows: token ids, counts, one file format. Does not know: models, search, verification.

Entries from a corpus are in five sorted arrays and never change; entries that adaptation made or changed are in a
dictionary, which takes precedence. An array entry takes 8 bytes and a pair 20.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from broadsheet.cache import atomic_write
from broadsheet.console import InputError, track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Source = Literal["corpus", "raised", "adapted"]

_FORMAT = "broadsheet tri-gram table 1"
_DTYPES = {
    "pairs": np.int64,
    "offsets": np.int64,
    "totals": np.int64,
    "tokens": np.int32,
    "values": np.float32,
    "adapted_pairs": np.int64,
    "adapted_tokens": np.int32,
    "adapted_values": np.float32,
}
_CHUNK = 1 << 22  # tri-grams sorted at once: 32 MB
_BATCH = 1 << 20  # characters tokenized at once
_ROWS = 1 << 16  # rows of the arrays that are kept as dictionaries


def pack(first: int, second: int) -> int:
    """A pair of tokens as one number."""
    return first << 32 | second


class TrigramTable:
    """Tri-gram values T[(a, b)] = {c: value}: probabilities from a corpus, nudged towards what was really written.

    Made by `from_sequences` or `from_texts`, read back by `load`; `TrigramTable()` is empty and grows by `adapt`.

    Args:
        arrays: `pairs` (P,) sorted packed pairs; `offsets` (P + 1,) where each pair's entries are; `totals` (P,) how
            often each pair was seen; `tokens` and `values` (E,) its successors, most probable first.
        vocabulary: the hash of the tokenizer that made the token ids (see `vocabulary_hash`), empty when unknown.

    Attributes:
        adapted: pair → {c: value} of every entry that adaptation made or changed.

    Example:
        table = TrigramTable.from_texts(texts, tokenizer)
        table.save("docs.table")
        table = TrigramTable.load("docs.table", tokenizer)
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]] | None = None, vocabulary: str = "") -> None:
        arrays = arrays or {}
        empty = {"offsets": np.zeros(1, np.int64)}
        given = {name: arrays.get(name, empty.get(name, np.zeros(0, dtype))) for name, dtype in _DTYPES.items()}
        self.pairs, self.offsets, self.totals = given["pairs"], given["offsets"], given["totals"]
        self.tokens, self.values = given["tokens"], given["values"]
        self.vocabulary = vocabulary
        self.adapted: dict[int, dict[int, float]] = {}
        columns = (given[f"adapted_{name}"].tolist() for name in ("pairs", "tokens", "values"))
        for pair, token, value in zip(*columns, strict=True):
            self.adapted.setdefault(pair, {})[token] = value
        self._rows: dict[int, tuple[dict[int, float], int]] = {}

    @classmethod
    def from_sequences(
        cls, sequences: Iterable[Sequence[int]], *, keep: int | None = 12, vocabulary: str = ""
    ) -> TrigramTable:
        """Count every tri-gram inside each sequence and divide by its pair's total.

        Args:
            sequences: token ids; no tri-gram is counted across two sequences, which may be short.
            keep: successors kept for each pair, the most probable ones (the paper's code: 12); None keeps all.
            vocabulary: see `TrigramTable`.

        Raises:
            InputError: a token id is negative or not below 2²¹.
        """
        counted = (np.zeros(0, np.int64), np.zeros(0, np.int64))
        for keys in _chunks(sequences):
            counted = _merge(counted, np.unique(keys, return_counts=True))
        return cls(_arrays(*counted, keep), vocabulary)

    @classmethod
    def from_texts(
        cls, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, keep: int | None = 12
    ) -> TrigramTable:
        """`from_sequences` over tokenized texts, one sequence a text, with a progress bar.

        Raises:
            InputError: `texts` is a single string.
        """
        if isinstance(texts, str):
            raise InputError("got one string; expected from_texts([text, …], tokenizer)")
        sequences = chain.from_iterable(_tokenize(batch, tokenizer) for batch in _batches(texts))
        return cls.from_sequences(
            track(sequences, "counting tri-grams"), keep=keep, vocabulary=vocabulary_hash(tokenizer)
        )

    def successors(self, first: int, second: int) -> Mapping[int, float]:
        """The tokens that may follow the pair, with their values; empty when there are none. Do not change it."""
        pair = pack(first, second)
        row = self._row(pair)[0]
        added = self.adapted.get(pair)
        return {**row, **added} if added else row

    def total(self, first: int, second: int) -> int:
        """How often the corpus had the pair with a successor."""
        return self._row(pack(first, second))[1]

    def source(self, first: int, second: int, third: int) -> Source:
        """Where the value of a tri-gram that has one comes from.

        Returns:
            `"corpus"`: its share there, as it was counted. `"raised"`: the corpus has it, and adaptation has raised its
            value. `"adapted"`: adaptation alone brought it.
        """
        pair = pack(first, second)
        if third not in self._row(pair)[0]:
            return "adapted"
        return "raised" if third in self.adapted.get(pair, ()) else "corpus"

    def adapt(self, tokens: Sequence[int], *, increment: float = 0.04, cap: float = 3.0) -> None:
        """Add `increment` to every tri-gram in `tokens`, up to `cap`; new ones start at 0. No value is renormalised."""
        if not increment:
            return  # else new tri-grams would have values of zero
        for first, second, third in zip(tokens, tokens[1:], tokens[2:], strict=False):
            pair = pack(first, second)
            added = self.adapted.setdefault(pair, {})
            value = added.get(third)
            if value is None:
                value = self._row(pair)[0].get(third, 0.0)
            added[third] = min(value + increment, cap)  # Step 2: T[(a, b)][c] ← min(T[(a, b)][c] + 0.04, 3)

    def fork(self) -> TrigramTable:
        """A table of the same content that adapts on its own; the corpus's arrays are shared."""
        twin = TrigramTable(self._corpus(), self.vocabulary)
        twin.adapted = {pair: dict(added) for pair, added in self.adapted.items()}
        twin._rows = self._rows
        return twin

    def __len__(self) -> int:
        """How many tri-grams have a value."""
        new = sum(
            token not in row for pair, added in self.adapted.items() for row in (self._row(pair)[0],) for token in added
        )
        return len(self.tokens) + new

    @property
    def largest(self) -> int:
        """The largest token id in the table, -1 when it is empty."""
        adapted = (max(pair >> 32, pair & 0xFFFFFFFF, *added) for pair, added in self.adapted.items())
        corpus = (int(array.max()) for array in (self.tokens, self.pairs >> 32) if len(array))
        return max(chain(adapted, corpus), default=-1)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: the arrays', and what the dictionary of adapted entries takes."""
        arrays = sum(array.nbytes for array in self._corpus().values())
        number = sys.getsizeof(1.0) + sys.getsizeof(1 << 40)
        rows = sum(sys.getsizeof(added) + number * len(added) for added in self.adapted.values())
        return arrays + sys.getsizeof(self.adapted) + rows + number * len(self.adapted)

    def save(self, path: str | Path) -> Path:
        """Write the table, adapted entries included, as a safetensors file: whole, or not at all."""
        from safetensors.numpy import save

        path = Path(path)
        columns = [
            (pair, token, value) for pair, added in sorted(self.adapted.items()) for token, value in added.items()
        ]
        split = list(zip(*columns, strict=True)) or [(), (), ()]
        adapted = {f"adapted_{name}": column for name, column in zip(("pairs", "tokens", "values"), split, strict=True)}
        arrays = {
            name: np.ascontiguousarray(array, dtype=_DTYPES[name])
            for name, array in {**self._corpus(), **adapted}.items()
        }
        with atomic_write(path, "wb") as file:
            file.write(save(arrays, {"format": _FORMAT, "vocabulary": self.vocabulary}))
        return path

    @classmethod
    def load(cls, path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> TrigramTable:
        """Read what `save` wrote.

        Args:
            tokenizer: when given, the table must have been made with its vocabulary.

        Raises:
            InputError: the file is missing or damaged, is no table, or belongs to another tokenizer.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise InputError(f"no table {path}; build one with TrigramTable.from_texts(…).save(…)") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged or no table ({error}); build it again") from None
        if metadata.get("format") != _FORMAT or not _is_sound(arrays):
            raise InputError(f"{path} is no {_FORMAT!r}, or its content is damaged; build it again")
        table = cls(arrays, metadata.get("vocabulary", ""))
        if tokenizer is not None:
            table.check(tokenizer, str(path))
        return table

    def check(self, tokenizer: PreTrainedTokenizerBase, name: str = "the table") -> None:
        """See that the table's token ids are this tokenizer's.

        Raises:
            InputError: they are another's.
        """
        wanted = vocabulary_hash(tokenizer)
        if self.vocabulary and self.vocabulary != wanted:
            raise InputError(
                f"{name} was built with another tokenizer (vocabulary {self.vocabulary}, this one's is {wanted}): "
                "build one from your texts with this tokenizer"
            )

    def _corpus(self) -> dict[str, NDArray[Any]]:
        return {name: getattr(self, name) for name in ("pairs", "offsets", "totals", "tokens", "values")}

    def _row(self, pair: int) -> tuple[dict[int, float], int]:
        """What the corpus knows of a pair: its successors, and its total."""
        known = self._rows.get(pair)
        if known is None:
            if len(self._rows) >= _ROWS:
                self._rows.clear()
            known = self._rows[pair] = self._read(pair)
        return known

    def _read(self, pair: int) -> tuple[dict[int, float], int]:
        place = int(np.searchsorted(self.pairs, pair))
        if place == len(self.pairs) or self.pairs[place] != pair:
            return {}, 0
        here = slice(int(self.offsets[place]), int(self.offsets[place + 1]))
        row = dict(zip(self.tokens[here].tolist(), self.values[here].tolist(), strict=True))
        return row, int(self.totals[place])


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that name a vocabulary: every token with its id."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    text = json.dumps(vocabulary, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in groups of about `_BATCH` characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if tokenizer.is_fast:  # the backend alone takes a third of the time, and does not warn of long texts
        return [encoding.ids for encoding in tokenizer._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def _chunks(sequences: Iterable[Sequence[int]]) -> Iterator[NDArray[np.int64]]:
    """Tri-grams as numbers of three 21-bit digits, about `_CHUNK` at a time."""
    waiting: list[NDArray[np.int64]] = []
    size = 0
    for sequence in sequences:
        tokens = np.asarray(sequence, dtype=np.int64)
        if len(tokens) < 3:
            continue
        waiting.append(tokens)
        size += len(tokens)
        if size >= _CHUNK:
            yield _trigrams(waiting)
            waiting, size = [], 0
    if waiting:
        yield _trigrams(waiting)


def _trigrams(sequences: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    tokens = np.concatenate(sequences)
    if tokens.min() < 0 or tokens.max() >> 21:
        raise InputError(f"got token ids from {tokens.min()} to {tokens.max()}; expected 0 to {(1 << 21) - 1}")
    keys = tokens[:-2] << 42 | tokens[1:-1] << 21 | tokens[2:]
    ends = np.cumsum([len(sequence) for sequence in sequences])[:-1]
    return np.delete(keys, np.concatenate([ends - 2, ends - 1]))  # those that reach into the next sequence


_Counted = tuple[NDArray[np.int64], NDArray[np.int64]]


def _merge(one: _Counted, other: _Counted) -> _Counted:
    """The sum of two sorted (keys, counts)."""
    if not len(one[0]):
        return other
    keys = np.concatenate([one[0], other[0]])
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], np.concatenate([one[1], other[1]])[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(counts, first)


def _arrays(keys: NDArray[np.int64], counts: NDArray[np.int64], keep: int | None) -> dict[str, NDArray[Any]]:
    """The arrays of a table out of counted tri-grams, sorted."""
    pairs, start, size = np.unique(keys >> 21, return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, start) if len(keys) else counts
    row = np.repeat(np.arange(len(pairs)), size)
    order = np.lexsort((keys, -counts, row))  # of equally frequent successors the smaller id comes first
    keys, counts = keys[order], counts[order]
    if keep is not None:
        kept = np.arange(len(keys)) - np.repeat(start, size) < keep
        keys, counts, row, size = keys[kept], counts[kept], row[kept], np.minimum(size, keep)
    return {
        "pairs": (pairs >> 21) << 32 | pairs & (1 << 21) - 1,
        "offsets": np.concatenate([[0], np.cumsum(size)]).astype(np.int64),
        "totals": totals.astype(np.int64),
        "tokens": (keys & (1 << 21) - 1).astype(np.int32),
        "values": (counts / totals[row]).astype(np.float32),  # T[(a, b)][c] = count(a, b, c) / count(a, b, ·)
    }


def _is_sound(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether arrays from a file are those of a table, so that every look-up stays inside them."""
    if {name: array.dtype for name, array in arrays.items()} != {n: np.dtype(d) for n, d in _DTYPES.items()}:
        return False
    if any(array.ndim != 1 for array in arrays.values()):
        return False
    pairs, offsets, values = arrays["pairs"], arrays["offsets"], arrays["values"]
    adapted = [len(arrays[f"adapted_{name}"]) for name in ("pairs", "tokens", "values")]
    return bool(
        len(offsets) == len(pairs) + 1 == len(arrays["totals"]) + 1
        and offsets[0] == 0
        and offsets[-1] == len(arrays["tokens"]) == len(values)
        and (np.diff(offsets) >= 0).all()
        and (np.diff(pairs) > 0).all()
        and len(set(adapted)) == 1
        and all((arrays[name] >= 0).all() for name in _DTYPES)
        and np.isfinite(values).all()
        and np.isfinite(arrays["adapted_values"]).all()
    )

"""Long documents as retrieval questions: which earlier chunk makes the next text likelier?

Knows: documents, a tokenizer, BM25. Does not know: models that score, embedders.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data.retrieval.duplicates import distinct
from broadsheet.data.retrieval.search import BM25

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from broadsheet.data.corpora import Document

_BEFORE = 3  # chunks that a document has before the one that asks
_MOST = 24  # chunks of a document, from its start
_DOCUMENTS = 400  # of each part
_TEST_SHARE = 0.3  # of the packages, or of the documents where there are none
_COMPARED = 4000  # characters of a document, to tell copies
_CHARACTERS = 2.5  # a token has at least, on average; a document with fewer is not looked at


@dataclass(frozen=True)
class Continuation:
    """A text, the output that should follow it, and candidates that might make that likelier.

    Args:
        id: of the document.
        query: a chunk of it; output: the text right after that.
        keys: candidate chunks, best first by BM25: of the document's earlier ones at most half, the others of other
            documents.
        right: the candidate that is known to be right, by its place; None where nobody knows.
    """

    id: str
    query: str
    output: str
    keys: tuple[str, ...]
    right: int | None = None


class _Chunked(NamedTuple):
    id: str
    chunks: list[str]
    ends: list[str]  # the first tokens of each chunk, as an output


def continuations(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    *,
    test: bool,
    chunk: int = 64,
    output: int = 24,
    candidates: int = 8,
    seed: int = 0,
) -> list[Continuation]:
    """One continuation a document, from the documents of the test or from the others.

    Documents are told apart by their package where they have one, and by their id where not; those that nearly repeat
    another are left out. No candidate is the query, its continuation, or later text of the document.

    Args:
        documents: read once.
        tokenizer: cuts chunks; a fast one.
        n: number of continuations.
        test: take the test's documents, or the others.
        chunk, output: tokens of a chunk and of an output.
        candidates: of each query.
        seed: of the split and the choices.

    Raises:
        InputError: the tokenizer has no offsets, or there are fewer than `n` documents that are long enough.
    """
    if not tokenizer.is_fast:
        raise InputError(
            "the tokenizer does not give the offsets of tokens, by which documents are cut; use a fast one"
        )
    if min(n, chunk, output, candidates) < 1:
        raise InputError(
            f"got {n} queries, chunk {chunk}, output {output}, candidates {candidates}; expected 1 or more"
        )
    needed = (_BEFORE + 2) * chunk
    able = [
        document
        for document in documents
        if len(document.text) >= _CHARACTERS * needed
        and (random.Random(f"{seed}/{document.metadata.get('package', document.id)}").random() < _TEST_SHARE) == test
    ]
    able.sort(key=lambda document: fingerprint([seed, document.id]))
    able = able[: 4 * max(n, _DOCUMENTS)]
    able = [document for document, new in zip(able, distinct(d.text[:_COMPARED] for d in able), strict=True) if new]
    parts = [_cut(document, tokenizer, chunk, output) for document in able[: 2 * max(n, _DOCUMENTS)]]
    parts = [part for part in parts if len(part.chunks) >= _BEFORE + 2][: max(n, _DOCUMENTS)]
    found = _ask(parts, n, candidates, seed)
    if len(found) < n:
        raise InputError(
            f"the data has {len(found)} documents for {'the test' if test else 'training'} with {needed} tokens and "
            f"{candidates} candidates; expected {n}: ask for fewer, or for shorter chunks"
        )
    return found


def _cut(document: Document, tokenizer: PreTrainedTokenizerBase, chunk: int, output: int) -> _Chunked:
    """A document's first chunks; each begins where the one before it ends, white space included."""
    text = document.text[: 12 * chunk * _MOST]
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    starts = [spans[i][0] for i in range(0, len(spans), chunk)][: _MOST + 1]
    chunks = [text[a:b] for a, b in pairwise(starts)]
    after = [spans[min(i * chunk + output, len(spans) - 1)][0] for i in range(len(chunks))]
    return _Chunked(document.id, chunks, [text[a:b] for a, b in zip(starts, after, strict=False)])


def _ask(parts: Sequence[_Chunked], n: int, candidates: int, seed: int) -> list[Continuation]:
    if not parts:
        return []
    places = [(d, c) for d, part in enumerate(parts) for c in range(len(part.chunks))]
    index = BM25([parts[d].chunks[c] for d, c in places])
    made: list[Continuation] = []
    for d, part in enumerate(parts):
        if len(made) == n:
            break
        generator = random.Random(f"{seed}/{part.id}")
        able = [c for c in range(_BEFORE, len(part.chunks) - 1) if part.chunks[c].strip() and part.ends[c + 1].strip()]
        if not able:
            continue
        asked = generator.choice(able)
        ranked, _ = index.search([part.chunks[asked]], len(places))[0]
        own = [places[i] for i in ranked if places[i][0] == d and places[i][1] < asked]
        others = [places[i] for i in ranked[: 8 * candidates + _MOST] if places[i][0] != d]
        chosen = {*own[: candidates // 2]}
        chosen |= {*others[: candidates - len(chosen)]}
        order = [places[i] for i in ranked if places[i] in chosen]
        if len(order) == candidates:
            keys = tuple(parts[a].chunks[b] for a, b in order)
            made.append(Continuation(part.id, part.chunks[asked], part.ends[asked + 1], keys))
    return made

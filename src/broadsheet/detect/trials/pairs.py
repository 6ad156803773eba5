"""Pairs of texts for a trial: a human passage, and what a model writes after the passage's first words.

Knows: documents, tokenizers, a teacher that continues texts. Does not know: detectors.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broadsheet.console import InputError
from broadsheet.data.corpora import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from broadsheet.teacher import Teacher

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class TextPair:
    """Two texts that begin alike and have the same number of words; `source` numbers the data set they are of."""

    id: str
    human: str
    machine: str
    source: int = 0


@dataclass(frozen=True)
class PairConfig:
    """How pairs are made (arXiv:2410.06072, Sec. 4): 30 tokens of a long human text, continued by sampling.

    Args:
        min_words: of a human passage.
        prompt_tokens: of the passage that the model is given.
        max_new_tokens: of a continuation.
        min_new_tokens: a continuation that the model ends before is not used.
        temperature, top_p: of the sampling (the paper: 1 and 1; its decoding ablation: 0.8, and 0.96).
    """

    min_words: int = 150
    prompt_tokens: int = 30
    max_new_tokens: int = 200
    min_new_tokens: int = 100
    temperature: float = 1.0
    top_p: float = 1.0


def passages(documents: Iterable[Document], n: int, protocol: PairConfig, seed: int) -> list[Document]:
    """A uniform sample of `n` documents that are long enough and do not begin alike, in random order, in one pass.

    Raises:
        InputError: there are none.
    """
    generator = random.Random(seed)
    kept: list[Document] = []
    beginnings: set[str] = set()
    for index, document in enumerate(_eligible(documents, protocol, beginnings)):
        if len(kept) < n:
            kept.append(document)
        elif (place := generator.randrange(index + 1)) < n:
            kept[place] = document
    if not kept:
        raise InputError(f"no document has {protocol.min_words} words; give a corpus of longer texts")
    generator.shuffle(kept)
    return kept


def _eligible(documents: Iterable[Document], protocol: PairConfig, beginnings: set[str]) -> Iterator[Document]:
    for document in documents:
        words = _WORD.findall(document.text)
        beginning = " ".join(words[:20])
        # Documentation repeats itself: texts that begin alike would give the model the same prompt twice.
        if len(words) >= protocol.min_words and beginning not in beginnings:
            beginnings.add(beginning)
            yield document


@dataclass(frozen=True)
class ContinuationWriter:
    """A model that continues passages, under a protocol.

    Args:
        teacher: continues the prompts; it batches them, and keeps what it wrote.
        tokenizer: counts the prompt's tokens.
    """

    teacher: Teacher
    tokenizer: PreTrainedTokenizerBase
    protocol: PairConfig

    def pairs(self, documents: list[Document], seed: int) -> list[TextPair | None]:
        """A pair for each document, None where the model stopped too early."""
        protocol = self.protocol
        prompts = [self._prompt(document.text) for document in documents]
        written = self.teacher.complete(
            prompts,
            temperature=protocol.temperature,
            top_p=protocol.top_p,
            max_tokens=protocol.max_new_tokens,
            seed=seed,
        )
        pairs: list[TextPair | None] = []
        for document, prompt, [completion] in zip(documents, prompts, written, strict=True):
            enough = (completion.tokens or 0) >= protocol.min_new_tokens
            pairs.append(_pair(document.id, document.text, prompt + completion.text) if enough else None)
        return pairs

    def _prompt(self, text: str) -> str:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids[: self.protocol.prompt_tokens]
        prompt = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return prompt.rstrip("\N{REPLACEMENT CHARACTER}")  # the cut may fall inside a character of several tokens


def write_pairs(
    documents: list[Document], n: int, writers: Mapping[str, ContinuationWriter], seed: int
) -> tuple[dict[str, list[TextPair]], int]:
    """The first `n` documents that every writer continued, as pairs by writer; and how many were passed over.

    Args:
        documents: human passages; more than `n`, to make up for those that a model stopped on.

    Raises:
        InputError: not one document was continued by every writer.
    """
    kept: list[tuple[TextPair, ...]] = []
    dropped = 0
    rest = list(documents)
    while rest and len(kept) < n:
        wanted = n - len(kept)
        batch, rest = rest[:wanted], rest[wanted:]
        made = [writer.pairs(batch, seed) for writer in writers.values()]
        whole = [tuple(pair for pair in row if pair) for row in zip(*made, strict=True)]
        kept += [row for row in whole if len(row) == len(writers)]
        dropped += sum(len(row) < len(writers) for row in whole)
    if not kept:
        raise InputError(f"all {dropped} continuations ended too early; give another generator")
    return {name: [row[i] for row in kept] for i, name in enumerate(writers)}, dropped


def _pair(name: str, human: str, machine: str) -> TextPair:
    """Both texts cut to the word count of the shorter."""
    words = min(len(_WORD.findall(human)), len(_WORD.findall(machine)))
    return TextPair(name, first_words(human, words), first_words(machine, words))


def match(human: Iterable[Document], machine: Iterable[Document]) -> list[TextPair]:
    """Pairs of texts that are there: by id where every human text's id has a machine text, else by order.

    The two texts of a pair are cut to the same number of words; pairs with an empty side are left out.

    Raises:
        InputError: the ids do not match, and there are not as many texts of one kind as of the other.
    """
    ours, theirs = list(human), list(machine)
    by_id = {document.id: document for document in theirs}
    if all(document.id in by_id for document in ours):
        theirs = [by_id[document.id] for document in ours]
    elif len(ours) != len(theirs):
        raise InputError(
            f"got {len(ours):,} human and {len(theirs):,} machine texts whose ids do not match; "
            "expected the same ids, or as many of one kind as of the other, in the same order"
        )
    pairs = [_pair(document.id, document.text, other.text) for document, other in zip(ours, theirs, strict=True)]
    return [pair for pair in pairs if pair.human]


def first_words(text: str, n: int) -> str:
    """The text up to the end of its n-th word, white space between words kept; the whole text if it has no more."""
    ends = [match.end() for match in _WORD.finditer(text)]
    if n <= 0:
        return ""
    return text[: ends[n - 1]] if n <= len(ends) else text

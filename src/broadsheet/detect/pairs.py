"""Pairs of texts for a trial: a human passage, and what a model writes after the passage's first words.

Knows: documents, tokenizers, a teacher that continues texts. Does not know: detectors.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broadsheet.console import InputError
from broadsheet.corpora import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from broadsheet.teacher import Teacher

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Pair:
    """Two texts that begin alike and have the same number of words."""

    id: str
    human: str
    machine: str


@dataclass(frozen=True)
class Protocol:
    """How pairs are made (arXiv:2410.06072, Sec. 4): 30 tokens of a long human text, continued by sampling.

    Args:
        min_words: of a human passage.
        prompt_tokens: of the passage that the model is given.
        max_new_tokens: of a continuation.
        min_new_tokens: a continuation that the model ends before so many is not used.
    """

    min_words: int = 150
    prompt_tokens: int = 30
    max_new_tokens: int = 200
    min_new_tokens: int = 100


def passages(documents: Iterable[Document], n: int, protocol: Protocol, seed: int) -> list[Document]:
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


def _eligible(documents: Iterable[Document], protocol: Protocol, beginnings: set[str]) -> Iterator[Document]:
    for document in documents:
        words = _WORD.findall(document.text)
        beginning = " ".join(words[:20])
        # Documentation repeats itself: texts that begin alike would give the model the same prompt twice.
        if len(words) >= protocol.min_words and beginning not in beginnings:
            beginnings.add(beginning)
            yield document


def write_pairs(
    documents: list[Document],
    n: int,
    teacher: Teacher,
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    seed: int,
) -> tuple[list[Pair], int]:
    """The first `n` usable pairs, and how many documents gave none because the model stopped too early.

    Args:
        documents: human passages; more than `n`, to make up for those that give no pair.
        teacher: continues the prompts at temperature 1; it batches them, and keeps what it wrote.
        tokenizer: counts the prompt's tokens.

    Raises:
        InputError: not one pair came out.
    """
    pairs: list[Pair] = []
    dropped = 0
    rest = list(documents)
    while rest and len(pairs) < n:
        wanted = n - len(pairs)
        batch, rest = rest[:wanted], rest[wanted:]
        prompts = [_prompt(document.text, tokenizer, protocol.prompt_tokens) for document in batch]
        written = teacher.complete(prompts, max_tokens=protocol.max_new_tokens, seed=seed)
        for document, prompt, completions in zip(batch, prompts, written, strict=True):
            if (completions[0].tokens or 0) < protocol.min_new_tokens:
                dropped += 1
                continue
            machine = prompt + completions[0].text
            words = min(len(_WORD.findall(document.text)), len(_WORD.findall(machine)))
            pairs.append(Pair(document.id, first_words(document.text, words), first_words(machine, words)))
    if not pairs:
        raise InputError(
            f"the model ended every continuation before {protocol.min_new_tokens} tokens; give another generator"
        )
    return pairs, dropped


def match(human: Iterable[Document], machine: Iterable[Document]) -> list[Pair]:
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
    pairs = []
    for document, other in zip(ours, theirs, strict=True):
        words = min(len(_WORD.findall(document.text)), len(_WORD.findall(other.text)))
        if words:
            pairs.append(Pair(document.id, first_words(document.text, words), first_words(other.text, words)))
    return pairs


def _prompt(text: str, tokenizer: PreTrainedTokenizerBase, n_tokens: int) -> str:
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:n_tokens]
    prompt = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return prompt.rstrip("\N{REPLACEMENT CHARACTER}")  # the cut may fall inside a character of several tokens


def first_words(text: str, n: int) -> str:
    """The text up to the end of its n-th word, white space between words kept; the whole text if it has no more."""
    ends = [match.end() for match in _WORD.finditer(text)]
    if n <= 0:
        return ""
    return text[: ends[n - 1]] if n <= len(ends) else text

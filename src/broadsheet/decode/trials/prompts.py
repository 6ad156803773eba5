"""Prompts for a trial, made from documents: text to copy, documentation to continue, questions to answer freely.

Knows: documents, a tokenizer. Does not know: models, arms.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from broadsheet.console import InputError
from broadsheet.data.corpora import Document
from broadsheet.models.tokens import rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["copying", "documentation", "free text"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_WORDS = 80  # of a document that a prompt is made from
_BEGINNING = 20  # words that tell documents apart
_COPIED, _AGAIN = 84, 14  # tokens of a text to copy, and how many of them begin the copy
_CONTINUED = 64  # tokens of documentation to continue
_SUBJECT = 12  # words of a subject to write about


@dataclass(frozen=True)
class DecodePrompt:
    """What a model is given: token ids, and the kind of task they are."""

    id: str
    kind: Kind
    tokens: tuple[int, ...]


def beginning(document: Document) -> str:
    """What a document is told apart by: documentation repeats itself, most of all where it begins."""
    return " ".join(document.text.split(maxsplit=_BEGINNING)[:_BEGINNING])


def choose(documents: Iterable[Document], n: int, seed: int, *, at_most: bool = False) -> list[Document]:
    """A uniform sample of `n` documents, long enough for a prompt, that do not begin alike, in random order.

    Args:
        at_most: half as many will do, where there are fewer.

    Raises:
        InputError: there are fewer.
    """
    generator = random.Random(seed)
    kept: list[Document] = []
    beginnings: set[str] = set()
    for document in documents:
        if len(document.text.split(maxsplit=_WORDS)) <= _WORDS or beginning(document) in beginnings:
            continue
        beginnings.add(beginning(document))
        if len(kept) < n:
            kept.append(document)
        elif (place := generator.randrange(len(beginnings))) < n:
            kept[place] = document
    if len(kept) < n and not (at_most and len(kept) >= n // 2):
        raise InputError(f"{len(kept)} documents have more than {_WORDS} words; expected {n}: give more, or --prompts")
    generator.shuffle(kept)
    return kept


def make(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> list[DecodePrompt]:
    """One prompt a document, of each kind in turn."""
    prompts = []
    for i, document in enumerate(documents):
        kind = KINDS[i % len(KINDS)]
        prompts.append(DecodePrompt(document.id, kind, tuple(_tokens(document.text, kind, tokenizer))))
    return prompts


def _tokens(text: str, kind: Kind, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    def ids(part: str) -> list[int]:
        found: list[int] = tokenizer.encode(part, add_special_tokens=False)
        return found

    if kind == "documentation":
        return ids(text)[:_CONTINUED]
    if kind == "copying":
        # Small models do not follow "repeat this", but all continue a text that stood there twice.
        passage, gap = ids(text)[:_COPIED], ids("\n\n\n")
        return [*passage, *gap, *passage, *gap, *passage[:_AGAIN]]
    subject = " ".join(text.split(maxsplit=_SUBJECT)[:_SUBJECT])
    request = f"Write a few paragraphs for a general reader about this: {subject}"
    if tokenizer.chat_template is None:
        return ids(f"{request}\n\n")
    chat = [{"role": "user", "content": request}]
    return ids(rendered(tokenizer, chat))

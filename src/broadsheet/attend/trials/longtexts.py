"""Long texts for a trial: a corpus's documents one after another, with passwords hidden among them.

Knows: documents, tokenizers. Does not know: models, attention, or what is measured on the texts.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING

from broadsheet.console import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from broadsheet.data.corpora import Corpus

CITIES = (
    "Athens Berlin Boston Cairo Chicago Dallas Delhi Denver Dublin Geneva Hamburg Lima Lisbon London Madrid Milan "
    "Moscow Munich Naples Oslo Paris Prague Rome Seattle Sydney Tokyo Toronto Venice Vienna Warsaw"
)
# No two begin alike, so that the first token of a word tells it from the others, even where a token is one letter.
WORDS = (
    "apple bridge candle desert engine forest garden hammer island jacket kettle lemon mirror needle orange pencil "
    "queen rabbit silver tiger umbrella violin window yellow zebra"
)


@dataclass(frozen=True)
class PasswordQuestion:
    """What asks for a password that is hidden in a text.

    Attributes:
        position: tokens of the text before the line that tells it.
        ids: the question; the next token is the first one of the password.
    """

    position: int
    ids: list[int]


@dataclass(frozen=True)
class LongText:
    """A text as tokens.

    Attributes:
        ids: exactly as many as were asked for.
        documents: ids of the documents in it, in order; the last one may be cut.
        questions: one for each hidden password, in order of position.
        answers: the first token of each password: answers[i] is the right answer to questions[i].
        words: the passwords.
    """

    ids: list[int]
    documents: list[str]
    questions: list[PasswordQuestion]
    answers: list[int]
    words: list[str]


@dataclass(frozen=True)
class Password:
    """A password: its word; as tokens the line that tells it, the question, and what the answer begins with."""

    word: str
    line: list[int]
    question: list[int]
    answer: int


def long_texts(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    length: int,
    *,
    questions: int = 10,
    clear: Sequence[range] = (),
    seed: int = 0,
) -> list[LongText]:
    """Join documents to long texts, and hide passwords at even depths.

    A text is a run of documents that follow one another in the corpus, each under its title, from a place that the seed
    chooses. Empty documents and repeated ones are left out, and no document is in two texts. Texts come in random
    order, so that the first few of them stand for all.

    Args:
        n: texts wanted; a small corpus may give fewer.
        length: tokens of a text.
        questions: passwords in a text, each at a random place in one of as many equal parts.
        clear: positions that no password's line touches.

    Raises:
        InputError: the corpus has less than `length` tokens, or there is no room for the passwords.

    Example:
        >>> texts = long_texts(corpora.load("pydocs"), tokenizer, 4, 16392)  # doctest: +SKIP
    """
    texts = []
    for i, (filler, documents) in enumerate(_runs(corpus, tokenizer, n, length, seed)):
        generator = random.Random(f"{seed} {i}")
        passwords = draw_passwords(tokenizer, questions, generator)
        positions = _places(passwords, length, clear, generator)
        asked = [PasswordQuestion(position, each.question) for position, each in zip(positions, passwords, strict=True)]
        ids = _insert(filler, {at: each.line for at, each in zip(positions, passwords, strict=True)})
        answers, words = [each.answer for each in passwords], [each.word for each in passwords]
        texts.append(LongText(ids, documents, asked, answers, words))
    random.Random(f"{seed} order").shuffle(texts)
    return texts


def draw_passwords(tokenizer: PreTrainedTokenizerBase, n: int, generator: random.Random) -> list[Password]:
    """`n` cities with a password each, no city and no word twice.

    Raises:
        InputError: the tokenizer does not tell `n` words apart by their first token.
    """
    words: dict[int, tuple[str, list[int]]] = {}
    for name in WORDS.split():
        ids = _encode(tokenizer, f"{name}\n\n")
        words.setdefault(ids[0], (name, ids))
    cities = CITIES.split()
    most = min(len(words), len(cities))
    if n > most:
        raise InputError(f"got --questions {n}; expected at most {most}, the words that differ in their first token")
    passwords = []
    for city, (name, word) in zip(generator.sample(cities, n), generator.sample(list(words.values()), n), strict=True):
        question = _encode(tokenizer, f"\n\n{city}=")
        # Joined as tokens, not as text: the question is the beginning of the line, whatever a tokenizer merges.
        passwords.append(Password(name, question + word, question, word[0]))
    return passwords


def _runs(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, n: int, length: int, seed: int
) -> list[tuple[list[int], list[str]]]:
    """Up to `n` times `length` tokens, and the ids of the documents they are from."""
    count = corpus.count if corpus.count is not None else sum(1 for _ in corpus)
    if not count:
        raise InputError(f"{corpus.spec} holds no documents")
    first, *others = sorted(random.Random(seed).sample(range(count), min(n, count)))
    found = list(islice(_join(corpus, tokenizer, length, first, [0, *(start - first for start in others)]), n))
    if len(found) < n:  # a small corpus: one text right behind the other
        found = list(islice(_join(corpus, tokenizer, length, first, [0] * n), n))
    if not found:
        raise InputError(
            f"{corpus.spec} has fewer than {length:,} tokens of text; give more documents, or shorter --lengths"
        )
    return found


def _join(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, length: int, first: int, starts: list[int]
) -> Iterator[tuple[list[int], list[str]]]:
    """Runs over the corpus from document `first` round to it again, each from its place in `starts` or a later one."""
    opening = [token for token in tokenizer("").input_ids if token == tokenizer.bos_token_id]
    waiting, met = deque(starts), set[str]()
    ids, names = [*opening], list[str]()
    for index, document in enumerate(chain(islice(corpus, first, None), islice(corpus, first))):
        text = document.text.strip()
        begun = bool(names)
        if not (begun or (waiting and waiting[0] <= index)) or not text or text in met:
            continue
        if not begun:
            waiting.popleft()
        met.add(text)
        ids += _encode(tokenizer, f"# {document.metadata.get('title') or document.id}\n\n{text}\n\n")
        names.append(document.id)
        if len(ids) >= length:
            yield ids[:length], names
            ids, names = [*opening], []


def _places(passwords: Sequence[Password], length: int, clear: Sequence[range], generator: random.Random) -> list[int]:
    """Where each line begins: one in each of equal parts of the places left free."""
    if not passwords:
        return []
    widest = max(len(each.line) for each in passwords)
    taken = {place for stretch in clear for place in range(stretch.start - widest + 1, stretch.stop)}
    free = [place for place in range(1, length - widest + 1) if place not in taken]
    part = len(free) // len(passwords)
    if part < widest:
        raise InputError(
            f"a text of {length:,} tokens has no room for {len(passwords)} passwords of up to {widest} tokens; "
            "give longer --lengths, or fewer --questions"
        )
    return [free[number * part + generator.randrange(part - widest + 1)] for number in range(len(passwords))]


def _insert(filler: list[int], lines: dict[int, list[int]]) -> list[int]:
    """The filler with a line at each position; as long as before, so that its end is cut."""
    ids: list[int] = []
    rest = iter(filler)
    for position, line in lines.items():
        ids += islice(rest, position - len(ids))
        ids += line
    return ids + list(islice(rest, len(filler) - len(ids)))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids

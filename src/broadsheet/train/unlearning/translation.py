"""A text with terms exchanged for stand-ins, and where each of its tokens went.

Knows: characters, terms, offsets of tokens. Does not know: tokenizers, models. A token is a range of characters, of
whatever tokenizer, so that names of several tokens, leading spaces and scripts without spaces are all alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from broadsheet.console import InputError

Array = np.ndarray[Any, Any]

# What a term must not stand directly beside: letters and digits, but for those of scripts that put no spaces between
# words (Thai, Lao, Burmese, Khmer, Japanese, Chinese).
_LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"


@dataclass(frozen=True)
class Translation:
    """A text and its translation.

    Attributes:
        text, translated: both.
        terms: the term of each occurrence, in order.
        spans: (occurrences, 2) characters of `text` that each takes, from and to; translated_spans: of `translated`.
    """

    text: str
    translated: str
    terms: tuple[str, ...]
    spans: Array
    translated_spans: Array


@dataclass(frozen=True)
class Alignment:
    """Where the tokens of a text are in its translation.

    Attributes:
        positions: (tokens,) of each token's counterpart among the translated tokens; it never falls.
        occurrences: (tokens,) which occurrence of a term a token belongs to; -1 for none.
        exact: (tokens,) whether the counterpart is a token of a stand-in, or begins at the same place of the text.
        stand_ins: (occurrences, 2) translated tokens of each stand-in, the first and the last.
    """

    positions: Array
    occurrences: Array
    exact: Array
    stand_ins: Array


class Translator:
    """Exchanges the terms of a dictionary for their stand-ins, of two that begin together the longer one.

    A term is found in its own case, where no letter or digit stands directly beside it.

    Args:
        dictionary: term → stand-in.

    Raises:
        InputError: a term or a stand-in is empty, or has spaces around it.

    Example:
        >>> Translator({"Harry": "Jon", "Harry Potter": "Jon Smith"})("Harry Potter met Harry's owl.").translated
        "Jon Smith met Jon's owl."
    """

    def __init__(self, dictionary: Mapping[str, str]) -> None:
        for term, stand_in in dictionary.items():
            for word in (term, stand_in):
                if not isinstance(word, str) or not word or word != word.strip():
                    raise InputError(
                        f"got {term!r} → {stand_in!r} in the dictionary; expected texts without spaces around them"
                    )
        self.dictionary = dict(dictionary)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        longest_first = sorted(self.dictionary, key=lambda term: (-len(term), term))
        beside = [
            (rf"(?<!{_LETTER})" if re.match(_LETTER, term) else "")
            + re.escape(term)
            + (rf"(?!{_LETTER})" if re.match(_LETTER, term[-1]) else "")
            for term in longest_first
        ]
        return re.compile("|".join(beside)) if beside else None

    def __call__(self, text: str) -> Translation:
        found = list(self._pattern.finditer(text)) if self._pattern else []
        parts, terms, spans, translated_spans = [], [], [], []
        end = length = 0
        for match in found:
            before, stand_in = text[end : match.start()], self.dictionary[match.group()]
            begin = length + len(before)
            end, length = match.end(), begin + len(stand_in)
            parts += [before, stand_in]
            terms.append(match.group())
            spans.append(match.span())
            translated_spans.append((begin, length))
        return Translation(
            text,
            "".join([*parts, text[end:]]),
            tuple(terms),
            np.array(spans, dtype=np.int64).reshape(-1, 2),
            np.array(translated_spans, dtype=np.int64).reshape(-1, 2),
        )


def align(
    translation: Translation, offsets: Sequence[tuple[int, int]], translated_offsets: Sequence[tuple[int, int]]
) -> Alignment:
    """Each token's counterpart.

    Outside of terms that is the token at the same place of the text. Of a term the first token goes with the first of
    the stand-in, and so on; what the term has more goes with the stand-in's last.

    Args:
        offsets: characters of `translation.text` that each token takes, from and to; translated_offsets: likewise.
    """
    (begins, ends), (new_begins, new_ends) = (
        np.array(each, dtype=np.int64).reshape(-1, 2).T for each in (offsets, translated_offsets)
    )
    spans, new_spans = translation.spans, translation.translated_spans
    tokens = np.arange(len(begins))

    # A token is in the first span that ends after it begins, where that also begins before it ends.
    occurrences = np.searchsorted(spans[:, 1], begins, side="right")
    inside = occurrences < len(spans)
    inside[inside] = ends[inside] > spans[occurrences[inside], 0]

    # Outside: the same place of the text, moved by what the spans before it grew; tokens that begin together (bytes of
    # one character) keep their order.
    moved = np.concatenate([[0], np.cumsum(np.diff(new_spans) - np.diff(spans))]).astype(np.int64)
    places = begins + moved[occurrences]
    first, after = (np.searchsorted(new_begins, places, side=side) for side in ("left", "right"))
    rank = tokens - np.searchsorted(begins, begins, side="left")
    positions = np.minimum(first + rank, after - 1)
    exact = after > first

    # Inside: by the place in the term.
    of_stand_in = np.stack(
        [np.searchsorted(new_ends, new_spans[:, 0], side="right"), np.searchsorted(new_begins, new_spans[:, 1]) - 1], 1
    ).astype(np.int64)
    begun = np.full(len(spans), len(tokens))
    np.minimum.at(begun, occurrences[inside], tokens[inside])
    of = occurrences[inside]
    positions[inside] = np.minimum(of_stand_in[of, 0] + tokens[inside] - begun[of], of_stand_in[of, 1])
    exact[inside] = True

    last = max(0, len(new_begins) - 1)
    return Alignment(
        np.clip(positions, 0, last),
        np.where(inside, occurrences, -1),
        exact,
        of_stand_in,
    )

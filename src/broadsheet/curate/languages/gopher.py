"""Gopher's two filters as datatrove has them, decision for decision and reason for reason, in less time.

Knows: datatrove's filters, whose numbers and checks these are. Does not know: where the thresholds come from.

What takes datatrove's time is Python for each letter of each word, and a string for each n-gram made of its words. Most
words are letters alone, which one call tells; and whether any n-gram comes again is told by hashes of all at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.text import PUNCTUATION_SET, split_into_words
from numpy.typing import NDArray

Decided = bool | tuple[bool, str]
Places = NDArray[np.int64]
_LONGEST = 1 << 20  # characters of a text that is hashed: the powers take 32 bytes for each
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64


class GopherQuality(GopherQualityFilter):
    """As `GopherQualityFilter`, which see; the same arguments, decisions and reasons.

    Source: arXiv:2112.11446, App. A.
    """

    def filter(self, doc: Document) -> Decided:
        """True, or False with the reason."""
        text = doc.text
        words = split_into_words(text, self.language)
        odd = [word for word in words if not word.isalpha()]  # punctuation is never a letter
        signs = [word for word in odd if PUNCTUATION_SET.issuperset(word)]
        number = len(words) - len(signs)
        if self.min_doc_words and number < self.min_doc_words:
            return False, "gopher_short_doc"
        if self.max_doc_words and number > self.max_doc_words:
            return False, "gopher_long_doc"
        letters = sum(map(len, words)) - sum(map(len, signs))
        average = letters / number if number else math.nan
        if self.min_avg_word_length and average < self.min_avg_word_length:
            return False, "gopher_below_avg_threshold"
        if self.max_avg_word_length and average > self.max_avg_word_length:
            return False, "gopher_above_avg_threshold"
        if most := self.max_symbol_word_ratio:
            if text.count("#") / len(words) > most:
                return False, "gopher_too_many_hashes"
            if (text.count("...") + text.count("…")) / len(words) > most:
                return False, "gopher_too_many_ellipsis"
        lines = text.splitlines()
        if most := self.max_bullet_lines_ratio:
            bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
            if bullets / len(lines) > most:
                return False, "gopher_too_many_bullets"
        if most := self.max_ellipsis_lines_ratio:
            open_ended = sum(line.rstrip().endswith(("...", "…")) for line in lines)
            if open_ended / len(lines) > most:
                return False, "gopher_too_many_end_ellipsis"
        if least := self.max_non_alpha_words_ratio:  # datatrove's name; it is the least share of words with a letter
            with_letter = len(words) - len(odd) + sum(any(map(str.isalpha, word)) for word in odd)
            if with_letter / len(words) < least:
                return False, "gopher_below_alpha_threshold"
        if self.min_stop_words and len(self.stop_words.intersection(words)) < self.min_stop_words:
            return False, "gopher_enough_stop_words"
        return True


class GopherRepetition(GopherRepetitionFilter):
    """As `GopherRepetitionFilter`, which see; the same arguments, decisions and reasons.

    Source: arXiv:2112.11446, Table A1.
    """

    def filter(self, doc: Document) -> Decided:
        """True, or False with the reason."""
        text = doc.text
        if not text:
            return False, "empty"
        if len(text) > _LONGEST:
            decided: Decided = super().filter(doc)
            return decided
        parts = (
            ("para", self.dup_para_frac, self.dup_para_char_frac, self.paragraph_exp, text.strip()),
            ("line", self.dup_line_frac, self.dup_line_char_frac, self._line_splitter, text),
        )
        for name, most, most_characters, ends, whole in parts:
            if most or most_characters:
                found = ends.split(whole)
                number, characters = _again(found)
                if most and number / len(found) > most:
                    return False, f"dup_{name}_frac"
                if most_characters and characters / len(text) > most_characters:
                    return False, f"dup_{name}_char_frac"
        words = split_into_words(text, self.language)
        if self.top_n_grams:
            spaced = NGrams(words, " ")
            for n, share in self.top_n_grams:
                if n <= len(words) and spaced.most_common(n) / len(text) > share:
                    return False, f"top_{n}_gram"
        if self.dup_n_grams:
            joined = NGrams(words, "")
            for n, share in self.dup_n_grams:
                if joined.repeated(n) / len(text) > share:
                    return False, f"duplicated_{n}_n_grams"
        return True


class NGrams:
    """Each n words of a text in a row, joined; what is equal is found by hashes, and is then compared.

    The hash of characters c_a … c_b is their sum of c_i p^(i-a) modulo 2^64, by prefix sums: equal n-grams have equal
    hashes, also where their words begin elsewhere. Others hardly ever do, and then the comparison tells.

    Args:
        words: of the text.
        between: what joins them.
    """

    def __init__(self, words: Sequence[str], between: str) -> None:
        self.text, self._gap = between.join(words), len(between)
        lengths = np.fromiter(map(len, words), np.int64, len(words)) + self._gap
        self._begins = np.concatenate(([0], np.cumsum(lengths)))
        letters = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
        powers, self._inverse = _powers(len(letters) + 1)
        self._sums = np.zeros(len(letters) + 1, np.uint64)
        np.cumsum(letters * powers[: len(letters)], out=self._sums[1:])

    def __call__(self, n: int) -> list[str]:
        """Those of n words; none where there are fewer."""
        begins, ends = self._spans(n)
        return [self.text[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]

    def most_common(self, n: int) -> int:
        """Characters of the one that stands there most often, or the first of those, all times together."""
        begins, ends = self._spans(n)
        hashes = self._hashes(begins, ends)
        _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
        most = int(counts.max())
        place = int(first[counts == most].min())
        length = int(ends[place] - begins[place])
        if most == 1:
            return length
        if len({self.text[begins[i] : ends[i]] for i in np.flatnonzero(hashes == hashes[place])}) == 1:
            return length * most
        exact = Counter(self(n))  # unequal ones of one hash: never seen, but for text that was made so
        gram = max(exact, key=exact.__getitem__)
        return len(gram) * exact[gram]

    def repeated(self, n: int) -> int:
        """Characters of those that stood there before; after one of them its n words are passed over."""
        begins, ends = self._spans(n)
        hashes = self._hashes(begins, ends)
        ordered = np.sort(hashes)
        same = ordered[1:] == ordered[:-1]
        if not same.any():
            return 0
        order = np.argsort(hashes)
        among = np.sort(order[np.append(same, False) | np.append(False, same)])  # places of what stands there again
        seen: set[str] = set()
        characters = after = 0
        for place in among.tolist():
            if place < after:
                continue
            gram = self.text[begins[place] : ends[place]]
            if gram in seen:
                characters += len(gram)
                after = place + n
            else:
                seen.add(gram)
        return characters

    def _spans(self, n: int) -> tuple[Places, Places]:
        return self._begins[: max(0, len(self._begins) - n)], self._begins[n:] - self._gap

    def _hashes(self, begins: Places, ends: Places) -> NDArray[np.uint64]:
        found: NDArray[np.uint64] = (self._sums[ends] - self._sums[begins]) * self._inverse[begins]
        return found


def _powers(number: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first powers of p and of its inverse, modulo 2^64, so many at least."""
    return _as_many(1 << max(16, number.bit_length()))


@lru_cache(maxsize=2)
def _as_many(number: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    found = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        powers = np.full(number, base, np.uint64)
        powers[0] = 1
        found.append(np.cumprod(powers, dtype=np.uint64))
    return found[0], found[1]


def _again(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts have stood there before, and of how many characters they are."""
    once = set(parts)
    if len(once) == len(parts):
        return 0, 0
    return len(parts) - len(once), sum(map(len, parts)) - sum(map(len, once))

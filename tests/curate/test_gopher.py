"""Gopher's filters decide as datatrove's do, whatever the text, the words and the thresholds."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.filters import gopher_repetition_filter as theirs
from datatrove.utils.word_tokenizers import WordTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from broadsheet.curate.languages import gopher
from broadsheet.curate.languages.gopher import GopherQuality, GopherRepetition, NGrams
from broadsheet.curate.words import WORDS
from broadsheet.data import corpora


class Split(WordTokenizer):
    """Signs are words too, as spaCy's."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


PIECES = [
    "a",
    "bc",
    "ab",
    "c",
    "the",
    "with",
    "…",
    "...",
    "#",
    "-",
    "•",
    "12",
    "x1",
    "_",
    "。",
    "字",
    "\n",
    "\n\n",
    "\n- ",
]
texts = st.lists(st.sampled_from(PIECES), max_size=60).map(" ".join)
words = st.sampled_from([WORDS, Split("any language")])
share = st.sampled_from([None, 0.01, 0.1, 0.3, 0.6])


@settings(max_examples=400, deadline=None)
@given(
    texts, words, st.sampled_from([1, 3, 50]), st.sampled_from([None, 20]), st.sampled_from([None, 1, 2.5]),
    st.sampled_from([None, 2, 10]), share, share, share, share, st.sampled_from([None, 1, 2]),
)  # fmt: skip
def test_quality_is_decided_alike(text, language, least, most, short, long, signs, bullets, ends, letters, stop):
    options = {
        "min_doc_words": least, "max_doc_words": most, "min_avg_word_length": short, "max_avg_word_length": long,
        "max_symbol_word_ratio": signs, "max_bullet_lines_ratio": bullets, "max_ellipsis_lines_ratio": ends,
        "max_non_alpha_words_ratio": letters, "min_stop_words": stop, "language": language,
    }  # fmt: skip
    document = Document(text, "1")
    assert GopherQuality(**options).filter(document) == GopherQualityFilter(**options).filter(document)


@settings(max_examples=400, deadline=None)
@given(
    texts, words, share, share, share, share, st.lists(st.tuples(st.integers(1, 4), st.just(0.05)), max_size=3),
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from([0.02, 0.3])), max_size=4),
)  # fmt: skip
def test_repetition_is_decided_alike(text, language, lines, paragraphs, line_letters, letters, top, repeated):
    options = {
        "dup_line_frac": lines, "dup_para_frac": paragraphs, "dup_line_char_frac": line_letters,
        "dup_para_char_frac": letters, "top_n_grams": tuple(top), "dup_n_grams": tuple(repeated), "language": language,
    }  # fmt: skip
    document = Document(text, "1")
    assert GopherRepetition(**options).filter(document) == GopherRepetitionFilter(**options).filter(document)


def test_a_huge_text_is_left_to_datatrove_so_that_memory_stays_small(monkeypatch):
    monkeypatch.setattr(gopher, "NGrams", None)
    document = Document("word " * 250_000, "1")
    assert len(document.text) > gopher._LONGEST
    assert GopherRepetition(language=WORDS).filter(document) == (False, "top_2_gram")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "ab", "", "ba"]), max_size=40), st.integers(1, 5))
def test_what_is_counted_is_the_same(given_words, n):
    spaced, grams = NGrams(given_words, " "), theirs.get_n_grams(given_words, n)
    assert spaced(n) == grams
    assert NGrams(given_words, "").repeated(n) == theirs.find_all_duplicate(given_words, n)
    assert gopher._again(given_words) == theirs.find_duplicates(given_words)
    if grams:
        assert spaced.most_common(n) == theirs.find_top_duplicate(grams)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "ab", "ba"]), min_size=6, max_size=40), st.integers(1, 5))
def test_equal_hashes_of_unequal_n_grams_change_nothing(given_words, n):
    with patch.object(NGrams, "_hashes", lambda self, begins, ends: np.zeros(len(begins), np.uint64)):
        assert NGrams(given_words, " ").most_common(n) == theirs.find_top_duplicate(theirs.get_n_grams(given_words, n))
        assert NGrams(given_words, "").repeated(n) == theirs.find_all_duplicate(given_words, n)


@pytest.mark.parametrize("kinds", [(GopherQuality, GopherQualityFilter), (GopherRepetition, GopherRepetitionFilter)])
def test_real_text_is_decided_alike_and_not_all_one_way(kinds):
    ours, datatroves = (kind(language=WORDS) for kind in kinds)
    reasons = set()
    for document in list(corpora.load("pydocs:stdlib"))[::40]:
        given_document = Document(document.text, document.id)
        found = ours.filter(given_document)
        assert found == datatroves.filter(given_document)
        reasons.add(str(found))
    assert len(reasons) > 2

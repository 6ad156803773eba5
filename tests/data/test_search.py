"""BM25: what shares words is found, ties keep their order, words that nothing has find nothing."""

from __future__ import annotations

import pytest

from broadsheet.console import InputError
from broadsheet.data.retrieval.search import BM25


def test_bm25_finds_what_shares_words_with_ties_in_order():
    index = BM25(["paths paths", "a list", "paths paths", "graph of paths and trees"])
    places, scores = index.search(["paths"], 3)[0]
    assert places == [0, 2, 3]
    assert scores[0] == scores[1] > scores[2] > 0


def test_a_query_of_unknown_words_gives_the_first_texts_and_k_is_capped():
    index = BM25(["join paths", "sort lists", "walk trees"])
    for query in ("", "?!", "unheard-of vocabulary", "the"):
        assert index.search([query], 2) == [([0, 1], [0.0, 0.0])]
    assert index.search(["trees"], 10)[0][0] == [2, 0, 1]
    assert BM25(["!", "?"]).search(["paths"], 1) == [([0], [0.0])]
    with pytest.raises(InputError, match="no passages"):
        BM25([])

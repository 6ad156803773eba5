"""Near-duplicates are found, different texts kept."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from broadsheet.retrieval.duplicates import distinct


def test_near_duplicates_are_found_whatever_their_distance_and_different_texts_kept():
    generator = random.Random(0)
    texts = [" ".join(f"w{generator.randrange(5000)}" for _ in range(60)) for _ in range(200)]
    changed = [text.replace(text.split()[30], "other", 1).upper() for text in texts]
    assert list(distinct(texts + changed)) == [True] * 200 + [False] * 200


@given(st.lists(st.text(max_size=40), max_size=8))
def test_any_text_is_distinct_once(texts):
    kept = list(distinct(texts))
    assert len(kept) == len(texts)
    assert list(distinct([*texts, *texts]))[len(texts) :] == [False] * len(texts)
    assert kept[:1] == [True][: len(texts)]

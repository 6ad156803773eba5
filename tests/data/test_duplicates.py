"""Near-duplicates are found, different texts kept."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from broadsheet.data.retrieval.duplicates import distinct, jaccard, near


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


def test_a_near_duplicate_names_the_text_it_repeats_most_and_how_much():
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(words), "a text of its own kind, unlike all others", " ".join([*words[:30], "x", *words[31:]])]
    texts.append(" ".join([*words[:35], "y"]))
    kept, other, one, two = near(texts, jaccard=0.5)
    assert (kept, other) == (None, None)
    # 38 runs of three words; the changed word breaks three of them.
    assert one == (0, 35 / 41)
    assert two == (0, 33 / 39)
    assert [jaccard(texts[0], text) for text in texts] == [1, 0, 35 / 41, 33 / 39]


def test_of_several_kept_texts_the_nearest_is_named():
    words = [f"w{i}" for i in range(40)]
    half = [*words[:20], *(f"v{i}" for i in range(20))]
    texts = [" ".join(words), " ".join(half), " ".join([*half[:38], "end", "word"])]
    first, second, found = near(texts, jaccard=0.4)
    assert first is second is None
    assert found == (1, jaccard(texts[1], texts[2]))
    assert jaccard(texts[0], texts[2]) < jaccard(texts[1], texts[2])

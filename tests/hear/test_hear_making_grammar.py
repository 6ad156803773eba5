"""The grammar of the made speech: what it can say, and what training may never say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.hear.data import grammar
from broadsheet.hear.data.sounds import CAPTIONS, NAMES

WAYS = (None, *grammar.WAYS)


@given(seed=st.integers(0, 2**32), way=st.sampled_from(WAYS), most=st.integers(4, 6), many=st.booleans())
def test_a_drawn_sentence_is_of_the_grammar_and_held_out_in_the_way_asked_for(seed, way, most, many):
    sentence = grammar.draw(np.random.default_rng(seed), way, most=most, many=many)
    assert set(sentence.split()) <= set(grammar.vocabulary(many))
    assert len(list(grammar.parses(sentence))) == 1
    assert grammar.held_out(sentence) == way
    assert 3 <= len(sentence.split()) <= most
    assert sentence == " ".join(sentence.split()).lower()


@given(st.text(alphabet=" abcdefgho", max_size=30))
def test_other_text_is_not_of_the_grammar(text):
    assert not list(grammar.parses(text))


@pytest.mark.parametrize(("many", "least", "most"), [(False, 55, 70), (True, 390, 420)])
def test_there_are_about_so_many_words_none_of_them_a_sound_and_over_a_hundred_thousand_sentences(many, least, most):
    words = grammar.vocabulary(many)
    assert least <= len(words) <= most
    assert not set(words) & {word for told in (*NAMES, *CAPTIONS.values()) for word in told.split() if word != "the"}
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert grammar.size(many) > 100_000
    assert sum(len(words) for words in grammar.words_of(many).values()) == len(words), "a word in two slots tells less"


def test_what_few_words_hold_out_many_hold_out_too():
    assert grammar.held_out_pairs() < grammar.held_out_pairs(many=True)
    nouns = [noun for _, noun in grammar.held_out_pairs(many=True)]
    assert sorted(nouns) == sorted((*grammar.MANY["who"], *grammar.MANY["what"]))
    assert all(grammar.held_out(f"the {left} {right} cried") == "pair" for left, right in grammar.held_out_pairs(True))


def test_every_word_of_a_held_out_pair_occurs_in_training_and_the_pair_never_does():
    rng = np.random.default_rng(0)
    said = [grammar.draw(rng) for _ in range(1500)]
    words = Counter(word for sentence in said for word in sentence.split())
    neighbours = {pair for sentence in said for pair in zip(sentence.split(), sentence.split()[1:], strict=False)}
    pairs = grammar.held_out_pairs()
    assert len(pairs) == len(grammar.WORDS["who"]) + len(grammar.WORDS["what"])
    assert all(words[left] and words[right] for left, right in pairs)
    assert not pairs & neighbours
    assert set(words) == set(grammar.vocabulary())


@pytest.mark.parametrize("slot", grammar.WORDS)
def test_a_text_only_guess_gains_nothing_as_words_are_drawn_evenly(slot):
    rng = np.random.default_rng(1)
    drawn = Counter(word for _ in range(3000) for word in grammar.draw(rng).split() if word in grammar.WORDS[slot])
    fair = drawn.total() / len(grammar.WORDS[slot])
    assert len(drawn) == len(grammar.WORDS[slot])
    assert max(drawn.values()) < 1.35 * fair
    assert min(drawn.values()) > 0.7 * fair


def test_about_a_tenth_of_the_other_sentences_is_held_out_whole():
    rng = np.random.default_rng(2)
    words = grammar.WORDS
    sentences = [
        " ".join(words[slot][int(rng.integers(len(words[slot])))] for slot in ("whose", "who", "acts", "whose", "what"))
        for _ in range(4000)
    ]
    share = np.mean([grammar.held_out(sentence) == "sentence" for sentence in sentences])
    assert 0.08 < share < 0.12

"""The measure of position bias."""

from __future__ import annotations

import random

import pytest

from broadsheet.rank.trials.bias import kendall, position_bias


def test_kendall_counts_pairs():
    assert kendall([0, 1, 2], [0, 1, 2]) == 1.0
    assert kendall([0, 1, 2], [2, 1, 0]) == -1.0
    assert kendall([0, 1, 2], [1, 0, 2]) == pytest.approx(1 / 3)
    assert kendall([3, 1, 0, 2], [3, 1, 0, 2]) == 1.0
    assert kendall([0], [0]) == 1.0


def test_a_reranker_that_ignores_places_shows_no_bias_and_one_that_copies_them_all_of_it():
    generator = random.Random(0)
    values = [generator.random() for _ in range(20)]
    by_value = sorted(range(20), key=lambda i: values[i])
    follows = []
    for _ in range(50):
        shuffle = generator.sample(range(20), 20)
        blind = position_bias(by_value, shuffle, sorted(range(20), key=lambda place: values[shuffle[place]]))
        assert (blind.agreement, blind.same_first) == (1.0, 1.0)
        follows.append(blind.follows)
        copy = position_bias(list(range(20)), shuffle, list(range(20)))
        assert (copy.follows, copy.first_from) == (1.0, 0.0)
        assert copy.agreement == kendall(list(range(20)), shuffle)
    assert abs(sum(follows) / 50) < 0.1
    with pytest.raises(ValueError, match="expected permutations"):
        position_bias([0, 1], [0, 0], [0, 1])

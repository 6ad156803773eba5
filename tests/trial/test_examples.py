"""Examples: which items are shown, and how they are put in words."""

from __future__ import annotations

import numpy as np
import pytest

from broadsheet.trial.examples import MOST, ending, excerpt, first_found, marked, most_apart, standing, together
from broadsheet.trial.results import Example


def test_items_on_which_arms_differ_most_come_first_and_equals_in_their_order():
    numbers = [{"a": 0.1, "b": 0.2}, {"a": 0.9, "b": 0.1}, {"a": 0.5, "b": 0.6}, {"a": 0.3, "b": 0.3}]
    assert most_apart(numbers) == [1, 0, 2, 3]
    assert most_apart(numbers, 1) == [1]
    words = [{"a": "x", "b": "x", "c": "x"}, {"a": "x", "b": "y", "c": "x"}, {"a": "x", "b": "y", "c": "z"}]
    assert most_apart(words) == [2, 1, 0]
    assert most_apart([]) == []
    assert most_apart([{}, {"a": 1.0}]) == [0, 1]


def test_a_value_stands_above_the_share_of_the_others_that_it_exceeds():
    np.testing.assert_allclose(standing([3.0, 1.0, 2.0]), [1.0, 0.0, 0.5])
    np.testing.assert_allclose(standing([1.0, 1.0, 2.0]), [0.25, 0.25, 1.0])
    np.testing.assert_allclose(standing([7.0]), [0.0])


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("one  two\nthree", "one two three", "one two three"),
        ("a" * 12 + " " + "b" * 12 + " " + "c" * 12, "aaaaaaaaaaaa …", "… cccccccccccc"),
        ("x" * 40, "x" * 20, "… " + "x" * 20),
        ("", "", ""),
    ],
)
def test_texts_are_cut_between_words_on_one_line(text, first, last):
    assert excerpt(text, 20) == first
    assert ending(text, 20) == last


def test_what_each_arm_puts_first_is_marked():
    made = first_found("a query", {"plain": (False, "wrong"), "method": (True, "right")}, "right")
    assert made == Example("a query", {"plain": "✗ wrong", "method": "✓ right"}, "Right: right")
    assert first_found("a query", {}).expected == ""
    assert marked(True, "it") == "✓ it"


def test_tasks_share_the_room_of_a_report():
    def some(name: str, n: int) -> list[Example]:
        return [Example(f"{name}{i}", {}) for i in range(n)]

    assert [each.item for each in together([some("a", 9), [], some("b", 9)])] == ["a0", "a1", "a2", "b0", "b1"]
    assert len(together([some("a", 9)])) == MOST
    assert together([[], []]) == []

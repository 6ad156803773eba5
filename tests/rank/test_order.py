"""Windows, sweeps and written rankings: every item once, the places that are sure, the calls it takes."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.rank import order
from broadsheet.rank.base import STRATEGIES, strategy_named
from broadsheet.rank.fullrank import full, multipass, multipass_calls
from broadsheet.rank.order import by_score, calls, complete, parse, run_lockstep, sliding, windows

VALUES = st.lists(st.integers(0, 1000), max_size=60, unique=True)
SHAPES = st.tuples(st.integers(2, 12), st.integers(1, 12)).filter(lambda shape: shape[1] <= shape[0])


def exact(values):
    """A comparison that knows each item's value; counts its calls."""

    def compare(items):
        compare.calls += 1
        return by_score([values[item] for item in items])

    compare.calls = 0
    return compare


def sweep(values, compare, window=20, step=10, strategy="sliding"):
    """One list through one strategy."""
    n = values if isinstance(values, int) else len(values)
    generator = strategy_named(strategy)(n, window, step)
    return run_lockstep([generator], lambda asked: [compare(items) for _, items in asked])[0]


@pytest.mark.parametrize(
    ("n", "window", "step", "expected"),
    [
        (100, 20, 10, [(80 - 10 * i, 100 - 10 * i) for i in range(9)]),
        (25, 20, 10, [(5, 25), (0, 15)]),
        (20, 20, 10, [(0, 20)]),
        (10, 20, 10, [(0, 10)]),  # n = window − step: the authors' loop makes no call
        (2, 20, 10, [(0, 2)]),
        (1, 20, 10, []),
        (0, 20, 10, []),
    ],
)
def test_windows_run_from_the_back_to_the_start(n, window, step, expected):
    assert windows(n, window, step) == expected


def test_a_sweep_may_begin_behind_frozen_items():
    assert windows(30, 20, 10, start=10) == [(10, 30)]
    assert windows(40, 20, 10, start=10) == [(20, 40), (10, 30)]


@given(st.integers(0, 200), SHAPES)
def test_windows_cover_every_item_and_overlap_their_neighbours(n, shape):
    window, step = shape
    found = windows(n, window, step)
    assert {item for first, end in found for item in range(first, end)} == (set(range(n)) if n > 1 else set())
    assert all(end - first <= window for first, end in found)
    assert all(after[1] >= before[0] for before, after in itertools.pairwise(found))
    if n > 1:
        assert found[-1][0] == 0
        assert len(found) == (1 if n <= window else 1 + math.ceil((n - window) / step))


@pytest.mark.parametrize(("window", "step"), [(1, 1), (0, 1), (10, 0), (10, 11), (10, -1)])
def test_a_window_or_step_that_skips_items_is_refused(window, step):
    with pytest.raises(InputError, match="expected"):
        windows(30, window, step)


@given(VALUES, SHAPES)
def test_a_sweep_with_an_exact_comparison_puts_the_first_window_minus_step_right(values, shape):
    window, step = shape
    compare = exact(values)
    found = sweep(values, compare, window, step)
    assert sorted(found) == list(range(len(values)))
    sure = len(values) if len(values) <= window else window - step
    assert found[:sure] == by_score(values)[:sure]
    assert compare.calls == calls(sliding, len(values), window, step)


def test_a_single_sweep_leaves_later_places_unsure():
    values = [6, 7, 4, 1, 3, 10, 8, 2, 0, 5, 9, 11]
    assert sweep(values, exact(values), 4, 2) != by_score(values)


@given(VALUES, SHAPES)
def test_several_passes_order_everything(values, shape):
    window, step = shape
    assume(step < window)
    compare = exact(values)
    assert sweep(values, compare, window, step, "multipass") == by_score(values)
    assert compare.calls == sum(multipass_calls(len(values), window, step))


def test_complete_labels_of_100_items_take_45_calls():
    assert multipass_calls(100, 20, 10) == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert calls(multipass, 100, 20, 10) == 45


def test_several_passes_need_windows_that_overlap():
    with pytest.raises(InputError, match="overlap"):
        sweep(5, lambda items: list(range(len(items))), 2, 2, "multipass")


@given(VALUES)
def test_full_is_one_call_and_what_a_window_as_long_as_the_list_gives(values):
    compare = exact(values)
    found = sweep(values, compare, 2, 1, "full")
    assert found == by_score(values)
    assert compare.calls == int(len(values) > 1)
    if len(values) > 1:
        assert found == sweep(values, exact(values), len(values), 1)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(InputError, match=r"bubble.*sliding"):
        sweep(3, list, strategy="bubble")


@given(st.lists(VALUES, max_size=5), st.sampled_from(["sliding", "full", "multipass"]))
def test_sweeps_side_by_side_give_what_each_gives_alone(lists, strategy):
    rounds = []

    def compare(asked):
        rounds.append(len(asked))
        return [by_score([lists[index][item] for item in items]) for index, items in asked]

    sweeps = [STRATEGIES[strategy](len(values), 5, 2) for values in lists]
    found = run_lockstep(sweeps, compare)
    assert found == [sweep(values, exact(values), 5, 2, strategy) for values in lists]
    assert len(rounds) == max((calls(STRATEGIES[strategy], len(values), 5, 2) for values in lists), default=0)


def test_a_comparison_that_loses_items_is_caught():
    with pytest.raises(ValueError, match="each of their positions once"):
        sweep(3, lambda items: [0, 0, 1])
    with pytest.raises(ValueError, match="0 orders for 1 windows"):
        run_lockstep([full(3, 2, 1)], lambda asked: [])


@pytest.mark.parametrize(
    ("text", "n", "identifiers", "expected"),
    [
        ("[C] > [A]", 5, "alpha", [2, 0, 1, 3, 4]),
        ("[B]>[B]>[Z]>[D]", 4, "alpha", [1, 3, 0, 2]),
        ("[3] > [1] > [2] > [1] > [9]", 4, "numeric", [2, 0, 1, 3]),
        ("I think A, then [AC] and [b]: [B]", 3, "alpha", [1, 0, 2]),
        ("12 of [0], [-1], [2", 3, "numeric", [0, 1, 2]),
        ("[ 2 ] > [03]", 3, "numeric", [1, 2, 0]),
        ("[٣] [9999999999999]", 3, "numeric", [0, 1, 2]),
        ("", 2, "alpha", [0, 1]),
    ],
)
def test_only_bracketed_identifiers_count_and_every_item_comes_once(text, n, identifiers, expected):
    assert complete(parse(text, n, identifiers), n) == expected


@given(st.text(alphabet="[]ABZ19 >I", max_size=60), st.integers(0, 9), st.sampled_from(["alpha", "numeric"]))
def test_whatever_is_written_the_order_is_a_permutation(text, n, identifiers):
    assert sorted(complete(parse(text, n, identifiers), n)) == list(range(n))


@given(st.permutations(range(9)), st.sampled_from(["alpha", "numeric"]))
def test_a_written_label_reads_back(ranking, identifiers):
    assert parse(order.label_text(ranking, identifiers), 9, identifiers) == ranking


@given(st.lists(st.integers(0, 3)))
def test_equal_scores_keep_their_order(scores):
    found = by_score(scores)
    assert all((-scores[a], a) < (-scores[b], b) for a, b in itertools.pairwise(found))

"""The draft as a tree, where pairs went on, how likely a proposal is, and what a step may cost."""

from __future__ import annotations

import random

import numpy as np
import pytest
from deciding import written
from hypothesis import assume, given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.decode.acceptance import Acceptance, copied, tabled
from broadsheet.decode.draft import Draft
from broadsheet.decode.history import LONGEST, SURE, History
from broadsheet.decode.step_cost import StepCost, measure

PATHS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=12)


@given(PATHS)
def test_a_trie_holds_every_prefix_once_parents_first(paths):
    draft = Draft.from_paths(paths)
    prefixes = {tuple(path[:n]) for path in paths for n in range(1, len(path) + 1)}
    assert sorted(map(tuple, map(draft.path, range(len(draft))))) == sorted(prefixes)
    assert all(parent < node for node, parent in enumerate(draft.parents))
    assert draft.depths() == sorted(draft.depths())


@given(PATHS)
def test_a_row_of_the_mask_has_the_node_and_its_ancestors(paths):
    draft = Draft.from_paths(paths)
    mask = draft.mask()
    assert mask[:, 0].all()
    np.testing.assert_array_equal(mask[1:, 1:].sum(1), draft.depths())
    for node in range(len(draft)):
        seen = [draft.tokens[other] for other in range(len(draft)) if mask[node + 1, other + 1]]
        assert seen == draft.path(node)


@given(PATHS, st.integers(0, 1000))
def test_the_longest_path_that_the_target_writes_is_accepted(paths, seed):
    draft = Draft.from_paths(paths)
    generator = random.Random(seed)
    choices = [generator.randrange(4) for _ in range(len(draft) + 1)]
    chosen = {tuple(draft.path(node)): choice for node, choice in enumerate(choices[1:])} | {(): choices[0]}

    def matching(path: list[int]) -> int:
        depth = 0
        while depth < len(path) and chosen[tuple(path[:depth])] == path[depth]:
            depth += 1
        return depth

    longest = max(paths, key=matching, default=[])
    tokens, nodes = written(draft, choices)
    accepted = longest[: matching(longest)]
    assert [draft.tokens[node] for node in nodes] == accepted
    assert tokens == [*accepted, chosen[tuple(accepted)]]  # and the target's own after them


@given(PATHS)
def test_the_two_tokens_before_a_node_end_its_path_or_the_context(paths):
    draft = Draft.from_paths(paths)
    for node in range(len(draft)):
        assert [*draft.before(node, [7, 8, 9])] == [7, 8, 9, *draft.path(node)[:-1]][-2:]


@given(PATHS, st.integers(0, 20), st.integers(0, 1000))
def test_the_best_nodes_are_a_tree(paths, size, seed):
    draft = Draft.from_paths(paths)
    generator = random.Random(seed)
    for node, parent in enumerate(draft.parents):
        above = draft.chances[parent] if parent >= 0 else 1.0
        draft.chances[node] = above * generator.choice([1.0, 0.5, 0.1])
    best = draft.best(size)
    assert len(best) == min(size, len(draft))
    assert sorted(best.chances) == sorted(sorted(draft.chances, reverse=True)[:size])
    paths_before = set(map(tuple, map(draft.path, range(len(draft)))))
    assert set(map(tuple, map(best.path, range(len(best))))) <= paths_before


def occurrences(tokens: list[int], tail: list[int]) -> dict[int, int]:
    """What `History.followers` should find, by looking everywhere."""
    found: dict[int, int] = {}
    for place in range(len(tokens) - 1, 1, -1):
        common = 0
        while common < min(place, len(tail), LONGEST) and tokens[place - 1 - common] == tail[-1 - common]:
            common += 1
        if common >= 2:
            found[tokens[place]] = max(common, found.get(tokens[place], 0))
            if common >= SURE:
                break
    return found


@given(st.lists(st.integers(0, 3), min_size=2, max_size=20), st.integers(2, 6))
def test_followers_are_what_came_after_the_longest_agreements(tokens, repeats):
    assume(tokens.count(tokens[-2]) <= 8)  # beyond, only the latest occurrences of a pair are looked at
    history = History()
    history.extend(tokens)
    assert history.followers(tokens) == occurrences(tokens, tokens)
    history.extend(tokens * repeats)
    assert history.followers(history.tokens[-LONGEST:])[tokens[0]] >= min(len(tokens), SURE)


def test_nothing_is_found_across_sequences_and_old_tokens_are_forgotten():
    history = History(capacity=20)
    history.extend([1, 2])
    history.end()
    history.end()
    history.extend([1, 2, 7])
    assert history.followers([1, 2]) == {7: 2}
    fork = history.fork()
    fork.extend([1, 2, 8])
    assert history.followers([1, 2]) == {7: 2}
    assert set(fork.followers([1, 2])) == {7, 8}
    history.extend([9] * 30)
    assert len(history.tokens) <= 20
    assert history.followers([1, 2]) == {}


def test_a_chance_follows_the_hits_and_recent_ones_count_more():
    acceptance = Acceptance()
    assert acceptance.chance((0,), 0.3) == pytest.approx(0.3)
    for _ in range(200):
        acceptance.observe((0,), True)
    assert acceptance.chance((0,), 0.3) > 0.9
    assert acceptance.chance((1,), 0.3) == pytest.approx(0.3)
    fork = acceptance.fork()
    for _ in range(200):
        fork.observe((0,), False)
    assert fork.chance((0,), 0.3) < 0.2
    assert acceptance.chance((0,), 0.3) > 0.9


def test_guesses_rise_with_what_speaks_for_a_token():
    lengths = [copied(n, 0, 0)[1] for n in (2, 4, 8, 16, 32)]
    assert lengths == sorted(lengths)
    assert copied(4, 1, 1)[1] < copied(4, 0, 1)[1] < copied(4, 0, 0)[1] < 1
    totals = [tabled(0.5, total, False)[1] for total in (0, 3, 10, 1000)]
    assert totals == sorted(totals)
    assert tabled(0.5, 10, True)[1] < tabled(0.5, 10, False)[1] < tabled(0.9, 10, False)[1] < 1


def test_as_many_draft_tokens_as_pay():
    chain = [1 + sum(0.9**d for d in range(1, n + 1)) for n in range(64)]
    hopeless = [1 + 0.02 * n for n in range(64)]
    flat = StepCost(dict.fromkeys((1, 2, 4, 8, 16, 32, 64), 1.0))
    steep = StepCost({n: float(n) for n in (1, 2, 4, 8)})
    bumpy = StepCost({1: 57, 2: 99, 4: 92, 8: 87, 16: 105})
    assert flat.best_draft_size(chain) == 63
    assert flat.best_draft_size(chain[:10]) == 7
    assert flat.best_draft_size([1.0]) == 0
    assert steep.best_draft_size(chain) == 0
    assert bumpy.best_draft_size(chain) == 15
    assert bumpy.best_draft_size(hopeless) == 0
    assert bumpy.best_draft_size(chain[:4]) == 3
    assert flat.least_chance == 0.01
    assert steep.least_chance == 1.0
    assert steep.largest == 7


def test_the_shortest_round_counts(monkeypatch):
    clock = iter([0, 5, 5, 7, 10, 13, 20, 29, 30, 33, 40, 47, 50, 54, 60, 66])
    monkeypatch.setattr("broadsheet.decode.step_cost.time.perf_counter", lambda: next(clock))
    read: list[int] = []
    assert measure(read.append, sizes=(1, 2), rounds=3).seconds == {1: 2, 2: 2}
    assert read == [1, 2] * 3
    assert measure(read.append, sizes=(1, 2), rounds=1).seconds == {1: 4, 2: 6}


@pytest.mark.parametrize("seconds", [{}, {2: 1.0}, {1: 0.0}, {0: 1.0, 1: 1.0}])
def test_impossible_times_are_refused(seconds):
    with pytest.raises(InputError, match="step seconds"):
        StepCost(seconds)

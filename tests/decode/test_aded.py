"""ADED as published: its constants, what it sees of a text, and its search."""

from __future__ import annotations

import math
from dataclasses import MISSING

import numpy as np
import pytest
from deciding import steps
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.decode import ADED, TrigramTable
from broadsheet.decode.aded import Node, TreeSearch, cut
from broadsheet.decode.draft import Draft
from broadsheet.decode.offers import weigh
from broadsheet.decode.table import pack
from broadsheet.methods import hyperparameters

PAPER = {
    "tree_size": 64,
    "depth": 4,
    "increment": 0.04,
    "window": 16,
    "cap": 3.0,
    "iterations": 150,
    "c1": 32.0,
    "c2": 8.0,
    "prefixes": 24,
    "reward": "sum",
}
OURS = {"chain": False, "step_seconds": None, "seed": 0, "table": MISSING}  # its table is empty and its own
RANDOM = TrigramTable.from_sequences([np.random.default_rng(seed).integers(0, 6, 200).tolist() for seed in range(9)])


@pytest.mark.parametrize("name", PAPER)
def test_every_default_is_the_papers(name):
    assert hyperparameters(ADED)[name] == PAPER[name]
    assert getattr(ADED(), name) == PAPER[name]


def test_there_is_nothing_else_to_set():
    assert hyperparameters(ADED) == PAPER | OURS
    assert len(ADED().table) == 0


def test_the_search_gets_the_drafters_fields(monkeypatch):
    made = []
    monkeypatch.setattr(TreeSearch, "paths", lambda self, table, pair: made.append((vars(self), pair)) or [])
    changed = {"depth": 3, "iterations": 7, "c1": 5.0, "c2": 6.0, "prefixes": 8, "reward": "authors", "seed": 9}
    for drafter in (ADED(RANDOM), ADED(RANDOM, tree_size=11, **changed)):
        drafter.fork()
        steps(drafter, [1, 2], [3, 4, 5, 6, 7, 8])
    (first, pair), (last, _), other = made[0], made[3], made[4][0]
    names = {"iterations", "prefixes", "c1", "c2", "reward"}
    assert {name: first[name] for name in names} == {name: PAPER[name] for name in names}
    assert (first["max_draft_tokens"], first["depth"], first["seed"], pair) == (64, 4, 0, (2, 3))
    assert last["depth"] == 1, "no deeper than there is room"
    assert {name: other[name] for name in changed} == changed
    assert other["max_draft_tokens"] == 11


def test_a_step_writes_one_to_five_tokens_of_up_to_64():
    text = np.random.default_rng(1).integers(0, 6, 60).tolist()
    table = TrigramTable.from_sequences([text])
    found = steps(ADED(table, iterations=40), text[:2], text[2:])
    assert {len(new) for _, new in found} <= {1, 2, 3, 4, 5}
    assert max(len(new) for _, new in found) == 5
    assert max(max(draft.depths(), default=0) for draft, _ in found) == 4
    assert 20 < max(len(draft) for draft, _ in found) <= 64


@pytest.mark.parametrize("size", [1, 5, 16])
def test_no_step_verifies_more_than_the_tree_size(size):
    """Repeated tokens count once in the cut, so that the trie can still be too large after it."""
    text = np.random.default_rng(2).integers(0, 2, 60).tolist()
    drafter = ADED(TrigramTable.from_sequences([text]), tree_size=size, prefixes=80, iterations=40)
    sizes = [len(draft) for draft, _ in steps(drafter, text[:2], text[2:])]
    assert max(sizes) == size


def test_where_the_trie_is_larger_than_the_tree_size_the_likeliest_nodes_stay():
    text = np.random.default_rng(1).integers(0, 2, 60).tolist()
    drafter = ADED(TrigramTable.from_sequences([text]), tree_size=12, prefixes=80, iterations=40)
    steps(drafter, text[:30], text[30:])  # learns what is right
    whole = Draft.from_paths(
        TreeSearch(40, prefixes=80, max_draft_tokens=12).paths(drafter.table, (text[-2], text[-1]))
    )
    weigh(whole, text, drafter._offers)
    best = whole.best(12)
    assert len(whole) > 12
    assert best.tokens != whole.tokens[:12], "the first twelve are not the likeliest"
    assert drafter.draft(100).tokens == best.tokens


def trigrams(tokens: list[int], increment: float = 0.04) -> dict[int, dict[int, float]]:
    return {pack(a, b): {c: increment} for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False)}


@pytest.mark.parametrize("window", [16, 5])
def test_of_a_prompt_the_last_tokens_alone_are_seen(window):
    prompt = list(range(100, 140))
    drafter = ADED(window=window)
    steps(drafter, prompt, [7])
    assert drafter.table.adapted == trigrams([*prompt, 7][-window:])
    assert len(drafter.table.adapted) == window - 2


@pytest.mark.parametrize(("between", "drafted"), [(11, [3]), (12, [])])
def test_what_lies_before_the_window_is_not_drafted(between, drafted):
    """1, 2, 3 and what follows, then 1, 2 again: 16 tokens from the first to the last, or 17."""
    prompt = [1, 2, 3, *range(50, 50 + between), 1]
    [(draft, _), *_] = steps(ADED(), prompt, [2, 9, 9])
    assert draft.tokens == drafted


def test_each_step_adds_to_every_trigram_of_the_window_up_to_the_cap():
    prompt, text = list(range(100, 120)), list(range(200, 240))
    drafter = ADED()
    steps(drafter, prompt, text)  # nothing is accepted: the window slides by one token a step
    values = {c: value for row in drafter.table.adapted.values() for c, value in row.items()}
    assert values[text[10]] == pytest.approx(14 * 0.04), "an occurrence is counted as long as it is in the window"
    assert values[text[-1]] == pytest.approx(0.04)
    assert values[text[-3]] == pytest.approx(3 * 0.04)
    assert values[prompt[-1]] == pytest.approx(13 * 0.04)
    steps(drafter, [1, 1], [1] * 40)
    assert drafter.table.successors(1, 1)[1] == 3.0


def test_the_chain_is_the_most_visited_of_the_longest_paths():
    table = TrigramTable.from_sequences([[1, 2, 3, 4, 5, 6]] * 9 + [[1, 2, 7, 8, 9, 10], [1, 2, 11]])
    [(draft, _), *_] = steps(ADED(table, chain=True), [1], [2, 3, 4, 5, 6, 0])
    assert (draft.tokens, draft.parents) == ([3, 4, 5, 6], [-1, 0, 1, 2])


def test_as_many_nodes_as_pay_are_verified_where_the_size_is_measured():
    text = np.random.default_rng(1).integers(0, 6, 60).tolist()
    sizes = {}
    for name, seconds in {"free": dict.fromkeys((1, 8, 64), 1.0), "dear": {n: float(n) for n in (1, 8, 64)}}.items():
        drafter = ADED(TrigramTable.from_sequences([text]), tree_size="auto", iterations=40, step_seconds=seconds)
        sizes[name] = [len(draft) for draft, _ in steps(drafter, text[:2], text[2:])]
    assert max(sizes["free"]) in (7, 63)
    assert min(sizes["free"]) >= 0
    assert set(sizes["dear"]) == {0}


# The search


@given(
    st.integers(1, 200),
    st.integers(1, 50),
    st.floats(0, 100),
    st.floats(0, 3),
    st.floats(0.01, 3),
)
def test_a_larger_prior_or_fewer_visits_never_lower_a_score(parent, visits, reward, prior, more):
    mean = reward / visits
    children = [
        Node(1, prior, (0, 1), visits, reward),
        Node(2, prior + more, (0, 2), visits, reward),
        Node(3, prior, (0, 3), visits + 1, mean * (visits + 1)),
        Node(4, prior, (0, 4)),
    ]
    score, likelier, visited, unvisited = TreeSearch().scores(Node(0, 1.0, (0, 0), parent, 0.0, children))
    assert likelier > score
    assert visited <= score * (1 + 1e-12)
    assert unvisited == math.inf


TABLE = TrigramTable.from_sequences(
    [np.random.default_rng(seed).integers(0, 12, 60).tolist() for seed in range(20)] + [[20, 21, 22]]
)


def test_a_search_depends_on_its_seed_and_pair_alone():
    search = TreeSearch(seed=3)
    first = search.paths(TABLE, (1, 2))
    search.paths(TABLE, (5, 5))
    assert search.paths(TABLE, (1, 2)) == first == TreeSearch(seed=3).paths(TABLE, (1, 2))
    assert len({tuple(TreeSearch(seed=seed, iterations=20).paths(TABLE, (1, 2))) for seed in range(5)}) > 1


@pytest.mark.parametrize("reward", ["sum", "authors"])
def test_paths_follow_the_table_within_the_limits(reward):
    paths = TreeSearch(reward=reward, prefixes=40, max_draft_tokens=100).paths(TABLE, (1, 2))
    assert 1 <= len(paths) <= 40
    assert max(map(len, paths)) == 4
    assert sum(len(set(path)) for path in paths) <= 100
    for path in paths:
        states = (1, 2, *path)
        for a, b, c in zip(states, states[1:], states[2:], strict=False):
            assert c in TABLE.successors(a, b)
        row = TABLE.successors(*states[-3:-1])
        assert row[path[-1]] == max(row.values())  # the last token is the likeliest one


@pytest.mark.parametrize(("reward", "total"), [("sum", 1 + 0.2 + 0.3 + 0.4), ("authors", 1)])
def test_a_visit_rewards_every_node_on_its_way_by_the_values_along_it(reward, total):
    """A table of one line, 1 to 6: a visit goes one state further than the one before, and simulates the others."""
    table = TrigramTable()
    for first, value in enumerate([0.2, 0.3, 0.4, 0.5], start=1):
        table.adapt([first, first + 1, first + 2], increment=value)
    search, root = TreeSearch(reward=reward), Node(2, 1.0, (1, 2))
    for visits in range(1, 6):  # four states in all: from the third visit on there is nothing to simulate
        search._visit(root, table)
        way, node = [root], root
        while node.children:
            [node] = node.children
            way.append(node)
        assert [each.token for each in way] == [2, 3, 4, 5][: visits + 1]
        assert [each.visits for each in way] == [visits, visits, visits - 1, visits - 2][: len(way)]
        assert [each.total_reward for each in way] == pytest.approx([total * each.visits for each in way])


def test_the_authors_look_values_up_at_the_token_before():
    table = TrigramTable()
    table.adapt([1, 1, 1], increment=0.5)
    table.adapt([1, 1, 2], increment=0.3)
    table.adapt([1, 2, 3], increment=0.7)
    rewards = {
        reward: {
            (node.children[0].visits or node.children[1].visits, node.total_reward)
            for seed in range(30)
            for node in [visited(TreeSearch(reward=reward, depth=2), table, seed)]
        }
        for reward in ("sum", "authors")
    }
    # From (1, 1) to 1 or to 2: the authors find the value of 1 either way.
    assert {round(total, 6) for _, total in rewards["sum"]} == {1.5, 1.3}
    assert {round(total, 6) for _, total in rewards["authors"]} == {1.5}
    moves = {reward: TreeSearch(reward=reward)._simulate((1, 2), 3, table) for reward in ("sum", "authors")}
    assert moves == {"sum": 0.7, "authors": 0.0}
    simulated = {round(TreeSearch(reward="authors", seed=0)._simulate((1, 1), 1, table), 6) for _ in range(30)}
    assert simulated == {0.5}


def visited(search: TreeSearch, table: TrigramTable, seed: int) -> Node:
    """The root (1, 1) after one visit."""
    search._random.seed(seed)
    root = Node(1, 1.0, (1, 1))
    search._visit(root, table)
    return root


def test_the_most_visited_prefixes_are_kept():
    search = TreeSearch(max_draft_tokens=10_000)
    root = Node(2, 1.0, (1, 2))
    assert len(search.paths(RANDOM, (1, 2))) == 24
    few = TreeSearch(prefixes=3, max_draft_tokens=10_000).paths(RANDOM, (1, 2))
    assert few == search.paths(RANDOM, (1, 2))[:3]
    search._random.seed("0 (1, 2)")
    search._expand(root, RANDOM)
    for _ in range(150):
        search._visit(root, RANDOM)
    first = {child.token: child.visits for child in root.children}
    assert sum(first.values()) == root.visits == 150
    assert few[0][0] == max(first, key=lambda token: first[token])


def test_the_reward_that_is_meant_finds_the_valuable_branch():
    # Both first tokens are as likely; what follows the second one is adapted to the cap, what follows the other not.
    table = TrigramTable.from_sequences([[1, 2, 3, 4, 5, 6], [1, 2, 7, 8, 9, 10]])
    for _ in range(200):
        table.adapt([2, 7, 8, 9, 10])
    first = {reward: TreeSearch(reward=reward, c1=0.5).paths(table, (1, 2))[0][0] for reward in ("sum", "authors")}
    assert first == {"sum": 7, "authors": 3}


def test_no_successor_no_paths_and_a_dead_end_ends_a_path():
    search = TreeSearch()
    assert search.paths(TABLE, (70, 71)) == []
    assert search.paths(TABLE, (20, 21)) == [(22,)]
    assert search.paths(TrigramTable(), (1, 2)) == []


def test_paths_of_many_different_tokens_are_cut_first():
    paths = [(1, 2), (1, 2, 3), (1, 1, 1, 1), (4,)]
    assert cut(paths, 7) == paths
    assert cut(paths, 6) == [(1, 2), (1, 1, 1, 1), (4,)]
    assert cut(paths, 2) == [(1, 1, 1, 1), (4,)]

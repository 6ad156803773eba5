"""The n-gram drafter: what it copies, what it takes from the table, and how far it drafts."""

from __future__ import annotations

import pytest
from deciding import steps

from broadsheet.decode import NgramDrafter, TrigramTable
from broadsheet.decode.acceptance import COPIED, TABLED
from broadsheet.decode.ngram import best_first
from broadsheet.decode.step_cost import SIZES
from broadsheet.page import discovery

FREE = dict.fromkeys(SIZES, 1.0)
PERIOD = [11, 12, 13, 14, 15, 16, 17]


def test_it_is_of_no_paper():
    assert not hasattr(NgramDrafter, "paper")
    assert not any(each.entry.endswith(":NgramDrafter") for each in discovery.classes())


def test_periodic_text_is_drafted_whole_after_one_period():
    found = steps(NgramDrafter(tree_size=6), PERIOD, PERIOD * 3)
    assert len(found[0][0]) == 0  # (17, 11) is new
    assert found[1][0].tokens == [*PERIOD[2:], PERIOD[0]]
    assert found[1][0].sources == ["copied"] * 6
    assert [len(new) for _, new in found[1:3]] == [7, 7]


def test_no_draft_is_deeper_than_there_is_room_or_than_is_asked_for():
    for depth, room, expected in (("auto", 3, 3), (2, 20, 2), (9, 4, 4)):
        drafter = NgramDrafter(tree_size=30, depth=depth)
        steps(drafter, PERIOD, PERIOD[:2])
        assert max(drafter.draft(room).depths()) == expected


def test_the_longest_agreement_is_copied_first():
    # (2, 3) went on with 9 after 1, and last with 8 after 7.
    prompt = [1, 2, 3, 9, 5, 7, 2, 3, 8, 5, 6]
    for before, after in ((1, 9), (7, 8)):
        drafter = NgramDrafter(tree_size=1)
        steps(drafter, [*prompt, before, 2], [3])
        assert drafter.draft(5).tokens == [after]


def test_without_recency_nothing_is_copied():
    drafter = NgramDrafter(tree_size=6, recency=False)
    found = steps(drafter, PERIOD, PERIOD * 3)
    assert {source for draft, _ in found for source in draft.sources} == {"adapted"}
    assert drafter.history_.tokens == []


@pytest.mark.parametrize("fed", [True, False])
def test_the_whole_prompt_feeds_the_table_once(fed):
    prompt = list(range(100, 140))
    drafter = NgramDrafter(feed_prompt=fed)
    steps(drafter, prompt, [7])
    values = {c: value for row in drafter.table.adapted.values() for c, value in row.items()}
    assert (102 in values) == fed
    assert values.get(110, 0) == pytest.approx(0.04 * fed)
    assert values[139] == pytest.approx(0.04 * (1 + fed))  # and the last 16 tokens once more after the step
    assert drafter.history_.tokens == [*prompt, 7]


def test_texts_that_were_read_before_are_copied_from():
    drafter = NgramDrafter(tree_size=4, feed_prompt=False)
    steps(drafter, [1, 2, 3, 4, 5, 6], [7])
    found = steps(drafter, [1, 2], [3, 4, 5, 6, 7])
    assert (found[0][0].tokens, found[0][0].sources) == ([4, 5, 6], ["copied"] * 3)


def test_the_corpus_is_credited_only_with_what_its_table_proposes():
    text = [1, 2, 3, 4, 5, 6, 7, 8]
    drafts = {}
    for name, prompt in {"table": [1, 2], "copy": [*text, 9, 1, 2]}.items():
        drafter = NgramDrafter(TrigramTable.from_sequences([text]), tree_size=2)
        [(drafts[name], _), *_] = steps(drafter, prompt, [3, 4, 5, 6])
    assert drafts["table"].tokens == drafts["copy"].tokens == [4, 5]
    assert drafts["table"].sources == ["corpus", "corpus"]
    assert drafts["copy"].sources == ["copied", "copied"], "though the corpus has the tri-grams too"


def test_a_step_drafts_as_far_as_it_pays():
    dear = {n: float(n) for n in SIZES}
    sizes = {
        name: [len(draft) for draft, _ in steps(NgramDrafter(step_seconds=seconds), PERIOD * 4, PERIOD * 4)]
        for name, seconds in {"free": FREE, "dear": dear}.items()
    }
    assert max(sizes["free"]) >= 7
    assert set(sizes["dear"]) == {0}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"depth": 2}, [[0], [1], [0, 0], [0, 1], [1, 0], [1, 1]]),
        ({"depth": 9, "limit": 4}, [[0], [1], [0, 0], [0, 1]]),
        ({"depth": 9, "least": 0.2}, [[0], [1], [0, 0]]),
        ({"depth": 3, "chain": True}, [[0], [0, 0], [0, 0, 0]]),
    ],
)
def test_the_likeliest_nodes_come_first_within_the_limits(limits, expected):
    read = []

    def offers(tail):
        read.append(tail)
        return [(1, 0.3, (TABLED, 0)), (0, 0.5, (COPIED, 0))]

    draft = best_first([7, 8], offers, **{"limit": 50, **limits})
    assert [draft.path(node) for node in range(len(draft))] == expected
    assert draft.chances == pytest.approx([0.5 ** path.count(0) * 0.3 ** path.count(1) for path in expected])
    assert [7, 8, *expected[0]] in read
    assert draft.sources == ["copied" if path[-1] == 0 else "" for path in expected]

"""The decision flow of arXiv:2304.13712: every set of answers, and every set with some of them missing."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from broadsheet.console import InputError
from broadsheet.page.guides import flow
from broadsheet.page.guides.advice import facts

# The survey's chart, read node by node: the question, where "yes" leads, where "no" leads.
CHART = {
    1: ("LLM", 2),
    2: ("LLM", 3),
    3: ("LLM", 4),
    4: ("fine-tuned", 5),
    5: ("LLM", 6),
    6: ("LLM", 7),
    7: ("LLM", 8),
    8: (9, "fine-tuned"),
    9: ("fine-tuned", 10),
    10: ("open", "LLM"),
}
ALL = list(product((True, False), repeat=10))


def walked(answers: tuple[bool, ...]) -> tuple[str, list[int]]:
    """Where the chart leads, and the questions on the way."""
    at, path = 1, []
    while True:
        path.append(at)
        leads = CHART[at][0 if answers[at - 1] else 1]
        if isinstance(leads, str):
            return leads, path
        at = leads


def test_all_sets_of_answers_come_to_what_the_chart_says():
    found = {answers: flow.follow(answers) for answers in ALL}
    assert Counter(each.decided for each in found.values()) == {"LLM": 953, "fine-tuned": 70, "open": 1}
    for answers, each in found.items():
        outcome, path = walked(answers)
        assert each.outcomes == (outcome,)
        assert each.path == tuple((number, answers[number - 1]) for number in path)


def test_what_is_not_asked_any_more_never_changes_a_decision():
    for answers in ALL:
        outcome, path = walked(answers)
        asked = [answer if number in path else None for number, answer in enumerate(answers, 1)]
        ended = answers[: path[-1]]
        for said in (asked, ended, [*ended, None]):
            if len(said) <= 10:
                assert flow.follow(said) == flow.follow(answers), "as if the rest were answered"
                assert flow.follow(said).decided == outcome


def test_an_answer_that_is_not_known_keeps_exactly_what_its_completions_come_to():
    could: dict[tuple[bool | None, ...], set[str]] = {answers: {walked(answers)[0]} for answers in ALL}
    for missing in range(11):
        for said in product((True, False, None), repeat=10):
            if said.count(None) != missing:
                continue
            if missing:
                at = said.index(None)
                could[said] = could[*said[:at], True, *said[at + 1 :]] | could[*said[:at], False, *said[at + 1 :]]
            found = flow.follow(said)
            assert set(found.outcomes) == could[said]
            assert len(found.outcomes) == len(could[said]), "each once"
    assert could[(None,) * 10] == {"LLM", "fine-tuned", "open"}


def test_the_path_has_both_branches_of_what_is_not_known_and_nothing_else():
    found = flow.follow([False, False, False, None, False, False, False, True, True])
    assert found.path == (
        (1, False),
        (2, False),
        (3, False),
        (4, None),
        *((n, False) for n in (5, 6, 7)),
        (8, True),
        (9, True),
    )
    assert found.decided == "fine-tuned", "both branches come to it"
    found = flow.follow([False, False, False, None, True])
    assert found.path == ((1, False), (2, False), (3, False), (4, None), (5, True))
    assert found.outcomes == ("fine-tuned", "LLM")
    assert found.decided == ""


def test_only_a_yes_to_the_second_question_rests_on_abilities_of_large_models():
    for answers in ALL:
        assert flow.follow(answers).emergent == (walked(answers)[1][-1] == 2)
    assert not flow.follow([]).emergent, "not known"


def test_more_answers_than_questions_are_refused():
    with pytest.raises(InputError, match="got 11 answers; the flow has 10 questions"):
        flow.follow([False] * 11)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, [None] * 10),
        ({"goal": "classify"}, [False, False, False, False, None, None, False, None, None, None]),
        ({"goal": "classify", "labels": "few"}, [False] * 4 + [True, None, False, None, None, None]),
        ({"goal": "extract", "need": "computed"}, [False, True, False, False, None, None, False, None, None, None]),
        ({"goal": "answer", "knowledge": "contrary"}, [False] * 4 + [None, None, None, True, False, True]),
        ({"goal": "data", "labels": "many"}, [False] * 4 + [False, None, True, None, None, None]),
    ],
)
def test_facts_say_what_they_say_of_the_questions(answers, said):
    assert flow.derived(answers) == said


def test_a_fact_more_never_brings_an_outcome_back():
    more = [(fact, value) for fact in facts() if fact != "goal" for value in facts()[fact].values]
    for goal in facts()["goal"].values:
        alone = set(flow.follow(flow.derived({"goal": goal})).outcomes)
        one = {(fact, value): flow.follow(flow.derived({"goal": goal, fact: value})) for fact, value in more}
        assert all(set(found.outcomes) <= alone for found in one.values())
        for (fact, value), (other, its) in product(more, more):
            if fact < other:
                both = set(flow.follow(flow.derived({"goal": goal, fact: value, other: its})).outcomes)
                assert both <= set(one[fact, value].outcomes) & set(one[other, its].outcomes)

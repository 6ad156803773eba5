"""The adviser: its data, what answers may change, and how often it names what thirty described cases expect."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest

from broadsheet.console import InputError
from broadsheet.page import evidence, papers
from broadsheet.page.guides import advice, longcontext
from broadsheet.page.guides.data import read

PAGE = {paper.id: paper for paper in papers.ours()}
GOALS = list(advice.facts()["goal"].values)
FURTHER = [(fact.id, value) for fact in advice.facts().values() if fact.id != "goal" for value in fact.values]
CASES = tomllib.loads(Path(__file__).with_name("advice_cases.toml").read_text(encoding="utf-8"))["case"]
NEEDS = {"weights", "labels", "pairs", "text", "teacher", "retriever", "interactions", "audio", "images", "GPU"}
EMERGENT = [rule for rule in advice.rules() if rule.emergent]


@pytest.fixture(autouse=True)
def _evidence_read_once(monkeypatch):
    monkeypatch.setattr(evidence, "read", cache(evidence.read))


def printed(made: advice.Advice) -> dict[str, advice.AdvisedPaper]:
    """What the command prints without --all: five papers a section."""
    return {each.paper.id: each for section in advice.SECTIONS for each in made.section(section)[: advice.SHOWN]}


def wanted(rule: advice.Rule) -> Iterator[dict[str, str]]:
    """Answers under which all of a rule's facts are known: the goal alone first, a fact more each time."""
    items = [(fact, values[0]) for fact, values in rule.when.items()]
    for known in range(1, len(items) + 1):
        yield dict(items[:known])


def test_every_id_stands_on_the_page_and_no_rule_id_twice():
    ids = [rule.id for rule in advice.rules()]
    assert len(ids) == len(set(ids))
    named = [paper for rule in advice.rules() for paper in rule.recommend]
    named += list(read("facets"))
    named += [paper for way in read("advice")["injection"] for paper in way["papers"]]
    named += [way.id for way in longcontext.ways()]
    named.append(read("advice")["flow"]["survey"])
    assert set(named) <= set(PAGE)
    for rule in advice.rules():
        assert rule.recommend
        assert len(set(rule.recommend)) == len(rule.recommend), rule.id


def test_every_rule_asks_for_facts_and_values_that_can_be_answered():
    for rule in advice.rules():
        assert len(rule.when["goal"]) == 1
        for fact, values in rule.when.items():
            assert values, rule.id
            assert set(values) <= set(advice.facts()[fact].values), (rule.id, fact)
            assert len(set(values)) == len(values)
            assert fact == "goal" or set(values) != set(advice.facts()[fact].values), f"{rule.id}: {fact} never matters"
    asked = {value for rule in advice.rules() for value in rule.when.get("need", ())}
    assert asked == set(advice.facts()["need"].values), "a case that no rule asks for"
    assert {way_need for way in longcontext.ways() for way_need in way.needs} <= asked


def test_facts_that_the_flow_is_derived_from_are_facts():
    for question in read("advice")["flow"]["question"]:
        for row in question["derive"]:
            assert row["answer"] in ("yes", "no")
            for fact, values in row["when"].items():
                assert set(values) <= set(advice.facts()[fact].values)


def test_every_paper_but_a_survey_has_facets():
    facets = read("facets")
    assert set(facets) == {paper.id for paper in PAGE.values() if paper.kind != "survey"}
    for paper, facet in facets.items():
        assert set(facet) == {"needs", "training"}, paper
        assert facet["needs"], paper
        assert set(facet["needs"]) <= NEEDS, paper
        assert facet["training"] in ("none", "light", "heavy"), paper
    for way in longcontext.ways():
        trained = {"none": "none", "light": "light", "full": "heavy"}[way.facets["training"]]
        assert facets[way.id]["training"] == trained, "the two files agree"


def test_every_rule_gives_one_sentence_and_its_source():
    surveys = {paper.id for paper in PAGE.values() if paper.kind == "survey"}
    for rule in advice.rules():
        assert rule.because.endswith(".")
        assert rule.because[0].isupper()
        assert len(rule.because) <= 160
        for source in rule.source.split("; "):
            assert source == "ours" or source.partition(",")[0] in surveys, rule.id


def test_no_rule_is_shadowed_and_each_of_the_79_is_printed_under_some_answers():
    shown: set[str] = set()
    for rule in advice.rules():
        because = set()
        for answers in wanted(rule):
            for paper, each in printed(advice.advise(answers)).items():
                shown.add(paper)
                if each.rules[0] is rule:
                    because.add(paper)
        assert because, f"{rule.id} never puts a paper among the printed ones"
        assert because <= set(rule.recommend)
    assert shown == set(PAGE)


def test_an_answer_more_never_adds_a_rule():
    def fired(answers: Mapping[str, str]) -> frozenset[str]:
        return frozenset(rule.id for each in advice.advise(answers).papers for rule in each.rules)

    everything = fired({})
    assert everything == {rule.id for rule in advice.rules()}
    for goal in GOALS:
        rules = [rule for rule in advice.rules() if rule.fires({"goal": goal})]
        alone = {rule.id for rule in rules}
        assert {rule.when["goal"] for rule in rules} == {(goal,)}, "a goal leaves its own rules alone"
        assert alone < everything
        one = {}
        for fact, value in FURTHER:
            one[fact, value] = {rule.id for rule in rules if rule.fires({"goal": goal, fact: value})}
            assert one[fact, value] <= alone
        for (fact, value), (other, its) in combinations(FURTHER, 2):
            if fact != other:
                both = {rule.id for rule in rules if rule.fires({"goal": goal, fact: value, other: its})}
                assert both == one[fact, value] & one[other, its], "each fact speaks for itself"
        for fact, value in FURTHER[:: len(FURTHER) // 8]:
            assert fired({"goal": goal, fact: value}) == one[fact, value], "advise lists what fires"


def test_a_rule_that_an_answer_contradicts_is_silent_and_one_that_is_not_answered_is_offered_with_if():
    made = {each.paper.id: each for each in advice.advise({"goal": "search", "weights": "frozen"}).papers}
    assert set(made) == {"token_prepending", "llm_embedder", "embedding_overview", "embedding_meets_llm"}
    assert made["token_prepending"].conditions == ()
    assert made["llm_embedder"].conditions == ("need: what is found feeds a language model",)
    (gem,) = [e for e in advice.advise({"goal": "search", "need": "keep-generation"}).papers if e.paper.id == "gem"]
    assert gem.conditions == ("weights: adapters beside it or all of it",)


def test_the_reason_is_that_of_the_rule_which_matches_most():
    made = {each.paper.id: each for each in advice.advise({"goal": "answer", "knowledge": "changing"}).papers}
    assert [rule.id for rule in made["internet_augmented"].rules] == ["answer-changing", "answer-closed"]
    assert made["internet_augmented"].conditions == ()
    assert made["internet_augmented"].to_dict()["reason"].startswith("What changes is looked up")


def test_papers_stand_by_facts_matched_then_rung_then_place_on_the_page():
    place = {paper: i for i, paper in enumerate(PAGE)}
    for goal in GOALS:
        for fact, value in FURTHER[::3]:
            answers = {"goal": goal, fact: value}
            keys = [
                (
                    each.paper.verdict == "refuted here",
                    -each.rules[0].matched(answers),
                    -each.paper.rung,
                    place[each.paper.id],
                )
                for each in advice.advise(answers).papers
            ]
            assert keys == sorted(keys)
            for each in advice.advise(answers).papers:
                matched = [rule.matched(answers) for rule in each.rules]
                assert matched == sorted(matched, reverse=True), "its best rule gives the reason"


@pytest.mark.parametrize(
    "answers",
    [
        {"goal": "search", "weights": "all", "labels": "many", "need": "feed-llm"},
        {"goal": "classify", "labels": "few", "size": "small", "unlabelled": "much"},
        {"goal": "domain", "weights": "adapters", "knowledge": "stable", "latency": "strict"},
    ],
)
def test_the_same_answers_give_the_same_bytes_in_whatever_order_they_come(answers):
    told = {json.dumps(advice.advise(dict(order)).to_dict()) for order in permutations(answers.items())}
    assert len(told) == 1
    assert list(json.loads(told.pop())["answers"]) == sorted(answers)


def test_kinds_stand_in_their_sections():
    sections = {"method": "try", "study": "measure with", "benchmark": "measure with", "survey": "read"}
    for goal in GOALS:
        for fact, value in [("size", "small"), *FURTHER[::5]]:
            made = advice.advise({"goal": goal, fact: value})
            assert sorted(p.paper.id for s in advice.SECTIONS for p in made.section(s)) == sorted(
                p.paper.id for p in made.papers
            )
            for section in advice.SECTIONS:
                assert all(sections[each.paper.kind] == section for each in made.section(section))


@pytest.mark.parametrize("refuted", ["label_supervised", "tnt_llm", "llm2llm"])
def test_what_was_refuted_here_comes_last_and_says_so(monkeypatch, refuted):
    answers = {"goal": "classify", "labels": "some"}
    monkeypatch.setattr(papers.Paper, "verdict", "open")
    before = [each.paper.id for each in advice.advise(answers).papers]
    monkeypatch.setattr(
        papers.Paper, "verdict", property(lambda paper: "refuted here" if paper.id == refuted else "open")
    )
    made = advice.advise(answers).papers
    assert [each.paper.id for each in made] == [paper for paper in before if paper != refuted] + [refuted]
    assert refuted in before
    assert "refuted here" in made[-1].warning
    assert f"broadsheet show {refuted}" in made[-1].warning
    assert made[-1].to_dict()["verdict"] == "refuted here"
    assert not any("refuted" in each.warning for each in made[:-1])


@pytest.mark.parametrize("rule", EMERGENT, ids=lambda rule: f"rule {rule.id}")
def test_what_only_large_models_can_do_is_said_unless_the_model_is_large(rule):
    *_, answers = wanted(rule)

    def warnings(**more: str) -> list[str]:
        return [each.warning for each in advice.advise(answers | more).papers if each.rules[0] is rule]

    assert warnings() == warnings(size="small") != []
    assert all("below about 10 billion" in warning for warning in warnings())
    assert warnings(size="large") == [""] * len(warnings())


def test_what_needs_no_large_model_has_no_warning():
    for each in advice.advise({}).papers:
        assert bool(each.warning) == (each.rules[0].emergent or each.paper.verdict == "refuted here")


def test_a_paper_says_what_it_needs_and_how_it_is_tried():
    made = {each.paper.id: each for each in advice.advise({}).papers}
    assert made["token_prepending"].command == "broadsheet try token_prepending --quick"
    assert made["token_prepending"].needs == ("weights",)
    assert (made["llm_survey"].needs, made["llm_survey"].training) == ((), "")
    for each in made.values():
        if each.paper.kind == "survey" and not each.paper.trial:
            assert each.command == f"broadsheet map {each.paper.id}"
        else:
            assert bool(each.command) == bool(each.paper.trial)
        told = each.to_dict()
        assert (told["rung"], told["verdict"]) == (papers.get(each.paper.id).rung, papers.get(each.paper.id).verdict)
        assert (told["reason"], told["source"]) == (each.rules[0].because, each.rules[0].source)


def conversations(
    answers: dict[str, str], skipped: frozenset[str]
) -> Iterator[tuple[int, dict[str, str], frozenset[str]]]:
    """Every way to answer or skip what is asked: (questions asked, answers, skipped) at each step."""
    yield len(answers) + len(skipped), answers, skipped
    fact = advice.next_fact(answers, skipped)
    if fact is not None:
        yield from conversations(answers, skipped | {fact.id})
        for value in advice.offered(fact.id, answers):
            yield from conversations(answers | {fact.id: value}, skipped)


def test_only_what_a_live_rule_needs_is_asked_and_nothing_twice():
    ends = 0
    for goal in GOALS:
        for asked, answers, skipped in conversations({"goal": goal}, frozenset()):
            fact = advice.next_fact(answers, skipped)
            live = [rule for rule in advice.rules() if rule.fires(answers)]
            needed = {fact for rule in live for fact in rule.when} | (
                {"size"} if any(rule.emergent for rule in live) else set()
            )
            left = needed - set(answers) - skipped
            assert asked <= advice.MOST_QUESTIONS
            if fact is None:
                ends += 1
                assert not left or asked == advice.MOST_QUESTIONS, "nothing that matters is left out"
                continue
            assert fact.id in left
            assert fact.id == next(each for each in advice.facts() if each in left), "in the order of the file"
            values = set(advice.offered(fact.id, answers))
            if fact.id == "need":
                assert values == {value for rule in live for value in rule.when.get("need", ())}
            else:
                assert values == set(advice.facts()[fact.id].values)
    assert ends > 500


def test_at_most_nine_questions_are_asked_though_all_are_skipped():
    skipped: list[str] = []
    while fact := advice.next_fact({}, frozenset(skipped)):
        skipped.append(fact.id)
    assert len(skipped) == 9
    assert skipped[:2] == ["goal", "need"]


def test_a_goal_is_offered_its_own_cases_alone():
    assert set(advice.offered("need", {"goal": "rerank"})) == {"many-candidates", "own-metric"}
    assert set(advice.offered("need", {"goal": "rerank", "weights": "frozen"})) == {"many-candidates"}
    for goal in GOALS:
        own = {v for rule in advice.rules() if rule.when["goal"] == (goal,) for v in rule.when.get("need", ())}
        assert set(advice.offered("need", {"goal": goal})) == own
    assert advice.next_fact({"goal": "understand"}) is None
    assert advice.next_fact({"goal": "recommend"}) is None
    first = advice.next_fact({})
    assert first is not None
    assert first.id == "goal"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"colour": "red"}, "got an answer to 'colour'; expected goal, need, labels"),
        ({"goal": "cook"}, "got goal 'cook'; expected one of classify, extract"),
        ({"goal": "classify", "labels": "lots"}, "got labels 'lots'; expected one of none, few, some, many"),
    ],
)
def test_an_unknown_fact_or_value_is_one_line(answers, message):
    for ask in (advice.advise, advice.check, lambda given: advice.why("llkd", given)):
        with pytest.raises(InputError) as refused:
            ask(answers)
        assert str(refused.value).startswith(message)
        assert "\n" not in str(refused.value)


def test_why_tells_each_rule_of_a_paper_and_what_spoke_against_it():
    told = {rule.id: came for rule, came in advice.why("label_supervised", {"goal": "classify", "labels": "some"})}
    assert told == {
        "classify-some-labels": "fired",
        "classify-many-labels": "labels is some, not many",
        "extract-fixed-types": "goal is classify, not extract",
        "domain-adapters": "goal is classify, not domain",
    }
    (gem,) = advice.why("gem", {"goal": "search"})
    assert gem[1] == "fired if need: one model has to embed and to write and weights: adapters beside it or all of it"
    for paper in PAGE:
        answers = {"goal": "search", "weights": "all"}
        fired = {each.paper.id: {rule.id for rule in each.rules} for each in advice.advise(answers).papers}
        came = {rule.id for rule, how in advice.why(paper, answers) if how.startswith("fired")}
        assert came == fired.get(paper, set())
    with pytest.raises(InputError, match="no rule recommends 'lastd'"):
        advice.why("lastd", {})


def test_the_flow_is_told_where_it_says_something_of_the_goal():
    assert {goal for goal in GOALS if advice.advise({"goal": goal}).flow} == {
        "classify",
        "extract",
        "answer",
        "translate",
        "data",
    }
    made = advice.advise({"goal": "classify", "labels": "few", "unlabelled": "much"})
    assert made.flow is not None
    assert made.flow.decided == "LLM"
    assert made.route == (
        "prompt a model as it is",
        "let a model label or write data for a small one, which then runs alone",
    )
    assert advice.advise({"goal": "classify", "labels": "few", "unlabelled": "much", "weights": "frozen"}).route == (
        "prompt a model as it is",
    )
    shifted = advice.advise({"goal": "classify", "labels": "many", "need": "shifted"})
    assert shifted.route == ("prompt a model as it is", "let a small tuned model help the large one")
    told = made.to_dict()["flow"]
    assert told["dated"] == "April 2023"
    assert told["outcomes"] == ["LLM"]
    assert told["path"][-1] == [5, True]


@pytest.mark.parametrize(
    ("answers", "left"),
    [
        ({}, {"dynamic", "static", "adapters", "prompt"}),
        ({"knowledge": "changing"}, {"dynamic"}),
        ({"weights": "frozen"}, {"dynamic", "prompt"}),
        ({"weights": "frozen", "knowledge": "stable"}, {"dynamic", "prompt"}),
        ({"weights": "frozen", "knowledge": "stable", "latency": "strict"}, {"prompt"}),
        ({"weights": "frozen", "knowledge": "in-model"}, {"dynamic", "prompt"}),
        ({"weights": "all", "knowledge": "stable", "latency": "strict"}, {"static", "adapters"}),
        ({"weights": "adapters"}, {"dynamic", "adapters", "prompt"}),
    ],
)
def test_ways_to_bring_knowledge_are_those_that_the_answers_leave(answers, left):
    made = advice.advise({"goal": "domain", **answers})
    assert {way["id"] for way in made.injection} == left
    assert [way["id"] for way in made.to_dict()["injection"]] == [way["id"] for way in made.injection]
    assert advice.advise({"goal": "answer", **answers}).injection == ()


def hit_rates(answers: list[dict[str, str]]) -> tuple[float, float]:
    """Shares of the cases: a paper expected is among the first three to try or to measure with; the best is printed."""
    among = best = 0
    for case, given in zip(CASES, answers, strict=True):
        made = advice.advise(given)
        first = [each.paper.id for each in made.papers if each.section != "read"][:3]
        among += bool(set(first) & set(case["expect"]))
        best += case["expect"][0] in printed(made)
    return among / len(CASES), best / len(CASES)


def test_the_cases_are_such_as_can_be_answered():
    assert len(CASES) == 30
    for case in CASES:
        advice.check(case["answers"])
        assert case["answers"]["goal"]
        assert 1 <= len(case["expect"]) <= 3
        assert set(case["expect"]) <= set(PAGE)


def test_rules_alone_name_what_the_cases_expect(capsys):
    among, best = hit_rates([case["answers"] for case in CASES])
    with capsys.disabled():
        print(f"\nrules alone: {among:.0%} of the cases have an expected paper among three, {best:.0%} print the best")
    # Floors well below what was measured (93 % and 87 %). The cases were written before the rules and measure them: no
    # rule may be changed for one of them, and a floor is never a reason to change one.
    assert among >= 0.8
    assert best >= 0.7


@pytest.mark.real
def test_a_free_text_alone_finds_the_goal_more_often_than_chance(monkeypatch, capsys, default_model):
    from broadsheet.cli.guides import nearest_goals
    from broadsheet.embed import base

    class Remembering:
        """An embedder that reads a text once: `nearest_goals` reads all goals each time."""

        def __init__(self, embedder: Any) -> None:
            self.embedder, self.known = embedder, {}

        def encode(self, texts: list[str], **settings: Any) -> Any:
            import numpy as np

            new = [text for text in dict.fromkeys(texts) if text not in self.known]
            if new:
                self.known |= dict(zip(new, self.embedder.encode(new, **settings), strict=True))
            return np.stack([self.known[text] for text in texts])

    embedder = Remembering(base.baseline("prompt-eol", default_model))
    embedder.encode([case["text"] for case in CASES], normalize_embeddings=True)
    monkeypatch.setattr(base, "baseline", lambda name: embedder if name == "prompt-eol" else pytest.fail(name))
    near = [nearest_goals(case["text"]) for case in CASES]
    found = [goals[0] for goals in near]
    three = sum(case["answers"]["goal"] in goals[:3] for goals, case in zip(near, CASES, strict=True)) / len(CASES)
    right = sum(goal == case["answers"]["goal"] for goal, case in zip(found, CASES, strict=True)) / len(CASES)
    among, best = hit_rates([{"goal": goal} for goal in found])
    with capsys.disabled():
        print(f"\nfree text alone: the goal of {right:.0%} of the cases, where chance finds 6 %; ", end="")
        print(f"among the three nearest in {three:.0%}; ", end="")
        print(f"{among:.0%} have an expected paper among three, {best:.0%} print the best")
    # Measured: 27 % (8 of 30; the goal is among the three nearest in 63 %). Chance would find six or more of the thirty
    # in fewer than one run of a hundred. The goal that was assumed is always said, so that it can be refused.
    assert right >= 0.2
    assert three >= 0.4  # chance: 17 %

"""The maps: whole trees, known places, one home a paper, and the places of the ways to read long inputs."""

from __future__ import annotations

from collections import Counter

import pytest

from broadsheet.console import InputError
from broadsheet.page import papers
from broadsheet.page.guides import longcontext, maps
from broadsheet.page.guides.advice import facts, rules
from broadsheet.page.guides.data import read, surveys

PAGE = {paper.id for paper in papers.ours()}


def test_every_survey_of_the_page_has_a_tree_and_the_goals_come_first():
    assert set(surveys()) == {paper.id for paper in papers.ours() if paper.kind == "survey"}
    assert maps.trees() == (maps.GOALS, *(paper.id for paper in papers.ours() if paper.kind == "survey"))


@pytest.mark.parametrize("name", surveys())
def test_a_file_is_one_tree_of_known_papers_and_says_how_each_node_is_known(name):
    table = read(f"surveys/{name}")
    assert set(table) == {"survey", "source", "mark", "node"}
    assert table["survey"] == name
    assert papers.get(name).arxiv in table["source"], "what was seen of it"
    places = [row["at"] for row in table["node"]]
    for number, row in enumerate(table["node"]):
        assert set(row) <= {"at", "title", "about", "examples", "papers", "mark"}, row["at"]
        parent, _, last = row["at"].rpartition("/")
        assert not parent or parent in places[:number], f"{row['at']} stands before its parent, or has none"
        assert last
        assert row["title"]
        assert row.get("mark", table["mark"]) in maps.MARKS
        assert set(row.get("papers", ())) <= PAGE
    root = maps.tree(name)
    assert root.title == papers.get(name).title
    nodes = list(root.walk())
    assert [node.at for node in nodes[1:]] == sorted(places, key=lambda at: _order(at, places)), "each once, nested"
    examples = Counter(example for node in nodes for example in node.examples)
    assert not [example for example, times in examples.items() if times > 1], "an example stands once in a tree"
    assert all(count == 1 for node in nodes for count in Counter(node.papers).values())


def _order(at: str, places: list[str]) -> list[int]:
    """Where a depth-first walk that keeps the file's order meets a place."""
    parts = at.split("/")
    return [places.index("/".join(parts[: i + 1])) for i in range(len(parts))]


@pytest.mark.parametrize("name", maps.trees())
def test_gaps_are_leaves_without_papers_and_json_says_so(name):
    def see(node: maps.MapNode, told: dict) -> None:
        assert told["gap"] is node.gap is (not node.papers and not node.children)
        assert (told["at"], told["mark"], told["papers"]) == (node.at, node.mark, list(node.papers))
        for child, below in zip(node.children, told["children"], strict=True):
            assert child.at.startswith(f"{node.at}/" if node.at else "")
            see(child, below)

    see(maps.tree(name), maps.tree(name).to_dict())


def test_known_gaps_are_shown_as_gaps():
    gaps = {node.at for node in maps.tree("alignment_survey").walk() if node.gap}
    assert any("online" in at for at in gaps), "no paper of the page trains online (PPO and its kin)"
    assert not any(node.gap for node in maps.tree(maps.GOALS).walk())


def test_the_tree_of_goals_is_the_rules():
    tree = maps.tree(maps.GOALS)
    assert [node.at for node in tree.children] == list(facts()["goal"].values)
    leaves = {node.at.partition("/")[2]: node for goal in tree.children for node in goal.children}
    assert set(leaves) == {rule.id for rule in rules()}
    for rule in rules():
        assert leaves[rule.id].at == f"{rule.when['goal'][0]}/{rule.id}"
        assert leaves[rule.id].papers == rule.recommend
        assert leaves[rule.id].mark == ("o" if rule.source == "ours" else "s")
    assert leaves["classify-no-labels"].title == "labels: none"
    assert leaves["rerank-metric"].title == (
        "a metric or reward of one's own counts; weights: adapters beside it or all of it"
    )


def test_each_of_the_79_has_one_home_which_is_the_first_place_that_lists_it():
    homes = maps.homes()
    assert set(homes) == PAGE
    order = [node.at for node in maps.tree(maps.GOALS).walk()]
    for paper, home in homes.items():
        where = [at for at in maps.places(paper) if "/" in at and at.partition("/")[0] in facts()["goal"].values]
        assert where
        assert home == min(where, key=order.index)


def test_every_place_can_be_found_and_lists_the_paper():
    total = 0
    for paper in papers.ours():
        for place in maps.places(paper.id):
            _, node = maps.find(place)
            assert paper.id in node.papers
            total += 1
    assert total == sum(len(node.papers) for name in maps.trees() for node in maps.tree(name).walk())


def test_find_takes_a_tree_a_goal_and_a_branch():
    assert maps.find("goals") == (maps.GOALS, maps.tree(maps.GOALS))
    assert maps.find("classify") == maps.find("goals/classify")
    assert maps.find("classify")[1].title == facts()["goal"].values["classify"]
    name, node = maps.find("llm_survey/adaptation")
    assert (name, node.at) == ("llm_survey", "adaptation")
    assert maps.find("llm_survey")[1].title == papers.get("llm_survey").title


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nope", ["no tree 'nope'", "goals", "llm_survey"]),
        ("salmonn", ["no tree 'salmonn'"]),
        ("llm_survey/nope", ["no leaf 'llm_survey/nope'", "llm_survey/adaptation"]),
        ("classify/nope", ["no leaf 'classify/nope'", "extract"]),
        ("llm_survey/", []),
    ],
)
def test_an_unknown_place_is_refused_and_what_there_is_is_named(place, words):
    if not words:
        assert maps.find(place)[1].at == ""
        return
    with pytest.raises(InputError) as refused:
        maps.find(place)
    assert "\n" not in str(refused.value)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize("ask", [maps.places, papers.get])
def test_an_unknown_paper_has_no_place(ask):
    with pytest.raises(InputError, match="no paper 'lm_infinit' on the page; did you mean lm_infinite"):
        ask("lm_infinit")


@pytest.mark.parametrize("way", longcontext.ways(), ids=lambda way: way.id)
def test_a_way_to_read_long_inputs_has_one_place_in_each_survey_that_lists_it(way):
    listed = [node.at for node in maps.tree("long_context_survey").walk() if way.id in node.papers]
    assert listed == [way.survey]
    listed = [node.at for node in maps.tree("long_context_architecture").walk() if way.id in node.papers]
    assert listed == [way.overview] * bool(way.overview)


def test_the_places_that_the_surveys_themselves_name_are_theirs_and_the_others_ours():
    marks = {way.id: maps.find(f"long_context_survey/{way.survey}")[1].mark for way in longcontext.ways()}
    assert marks == {
        "lm_infinite": "s",
        "infllm": "o",
        "longheads": "s",
        "flexprefill": "s",
        "aded": "o",
        "transnormer": "s",
    }

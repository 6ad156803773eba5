"""The map: each survey as a tree of branches, works and papers of the page; and the adviser's goals as one more tree.

Knows: `surveys/*.toml`, the adviser's rules, the page. Does not know: how a tree is printed or drawn. Each node says
how it is known: `s` read in the paper or its repository, `d` from a third party's digest, `m` from memory, `o` our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any

from broadsheet.console import InputError
from broadsheet.page.guides.advice import Rule, facts, rules
from broadsheet.page.guides.data import read, surveys
from broadsheet.page.papers import get, ours

GOALS = "goals"
ANY = "in any case"  # a rule without conditions
MARKS = {
    "s": "read in the paper or the authors' repository",
    "d": "from a third party's digest",
    "m": "from memory, not verified",
    "o": "our own mapping",
}


@dataclass(frozen=True)
class MapNode:
    """A branch or leaf of a tree.

    Attributes:
        at: its path within the tree, `"models/encoder"`; empty for the root.
        title, about: a few words, and a sentence or nothing.
        examples: works named there that are no papers of the page.
        papers: ids of papers of the page.
        mark: how it is known, a key of `MARKS`.
    """

    at: str
    title: str
    about: str = ""
    examples: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()
    mark: str = "s"
    children: tuple[MapNode, ...] = field(default=())

    @property
    def gap(self) -> bool:
        """A leaf that no paper of the page covers."""
        return not self.children and not self.papers

    def walk(self) -> Iterator[MapNode]:
        """It, and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "at": self.at,
            "title": self.title,
            "about": self.about,
            "examples": list(self.examples),
            "papers": list(self.papers),
            "mark": self.mark,
            "gap": self.gap,
            "children": [child.to_dict() for child in self.children],
        }


def trees() -> tuple[str, ...]:
    """Names of all trees: the goals first, then the surveys in page order."""
    return (GOALS, *(paper.id for paper in ours() if paper.id in surveys()))


@cache
def tree(name: str) -> MapNode:
    """The tree of the goals, or of a survey.

    Use when a reader wants to see what a survey covers, and which papers of the page stand where in it. Prefer
    `advice.advise` where the goal is known.

    Inputs: `"goals"`, or the id of a survey.

    Relation: `find` takes a path within a tree, `places` a paper.

    Raises:
        InputError: there is no tree of that name.

    Example:
        >>> [child.title for child in tree("peak_performance").children]  # doctest: +SKIP

    Source: the surveys themselves, each node with a mark that says how it is known: arXiv:2304.13712, arXiv:2303.18223,
    arXiv:2307.12966, arXiv:2310.12321, arXiv:2403.14469, arXiv:2409.04833, arXiv:2502.10708, arXiv:2311.12351,
    arXiv:2503.17407, and those of the stages.
    """
    if name == GOALS:
        return _goals()
    if name not in surveys():
        raise InputError(f"no tree {name!r}; expected one of {', '.join(trees())}")
    table = read(f"surveys/{name}")
    below: dict[str, list[dict[str, Any]]] = {}
    for row in table["node"]:
        below.setdefault(row["at"].rpartition("/")[0], []).append(row)

    def grown(at: str) -> tuple[MapNode, ...]:
        return tuple(
            MapNode(
                row["at"],
                row["title"],
                row.get("about", ""),
                tuple(row.get("examples", ())),
                tuple(row.get("papers", ())),
                row.get("mark", table["mark"]),
                grown(row["at"]),
            )
            for row in below.get(at, ())
        )

    return MapNode("", get(name).title, table["source"], mark=table["mark"], children=grown(""))


def find(place: str) -> tuple[str, MapNode]:
    """The tree and the node that a place names: `"goals"`, `"classify"`, `"llm_survey"`, `"llm_survey/adaptation"`.

    Raises:
        InputError: there is no such tree or node; the nodes of the tree are named.
    """
    name, _, at = place.partition("/")
    if name in facts()["goal"].values:
        name, at = GOALS, place
    elif name not in trees() and (near := get_close_matches(name, [*facts()["goal"].values, *trees()], n=2)):
        raise InputError(f"no tree {name!r}; did you mean {' or '.join(near)}?")
    root = tree(name)
    node = next((each for each in root.walk() if each.at == at), None)
    if node is None:
        known = ", ".join(f"{name}/{each.at}" if name != GOALS else each.at for each in root.children)
        raise InputError(f"no leaf {place!r}; {name} has {known}")
    return name, node


def homes() -> dict[str, str]:
    """Where each paper of the page stands in the tree of goals: the first place that lists it."""
    found: dict[str, str] = {}
    for node in tree(GOALS).walk():
        for paper in node.papers:
            found.setdefault(paper, node.at)
    return found


def places(paper_id: str) -> list[str]:
    """All places of a paper, in every tree, as `find` takes them.

    Raises:
        InputError: no such paper; the nearest ids are named.
    """
    paper_id = get(paper_id).id
    return [
        node.at if name == GOALS else f"{name}/{node.at}"
        for name in trees()
        for node in tree(name).walk()
        if paper_id in node.papers
    ]


def conditions(rule: Rule) -> list[tuple[str, str]]:
    """What a rule asks for beside its goal, a fact a pair: answers that `broadsheet advise` takes, and words.

    A `need` goes by its value alone; before the values of any other fact stands its name.

    Example:
        >>> conditions(next(rule for rule in rules() if rule.id == "classify-no-labels"))
        [('labels none', 'labels: none')]
    """
    found = []
    for fact, values in rule.when.items():
        words = " or ".join(facts()[fact].values[value] for value in values)
        if fact == "need":
            found.append((", ".join(values), words))
        elif fact != "goal":
            found.append((f"{fact} {', '.join(values)}", f"{fact}: {words}"))
    return found


def _goals() -> MapNode:
    """Goal → condition → papers, from the adviser's rules."""
    goals = []
    for goal, words in facts()["goal"].values.items():
        leaves = []
        for rule in rules():
            if rule.when["goal"] != (goal,):
                continue
            mark = "o" if rule.source == "ours" else "s"
            title = "; ".join(words for _, words in conditions(rule)) or ANY
            leaves.append(MapNode(f"{goal}/{rule.id}", title, rule.because, papers=rule.recommend, mark=mark))
        goals.append(MapNode(goal, words, mark="o", children=tuple(leaves)))
    return MapNode(
        "", "What do you want to do?", "Goals, conditions, papers of the page.", mark="o", children=tuple(goals)
    )

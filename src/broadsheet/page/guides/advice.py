"""The adviser: a few answers to papers of the page, each with its reason, its source and what is recorded of it.

Knows: `advice.toml`, `rules.toml`, `facets.toml`, the page. Does not know: how answers are asked for, or printed.

A rule fires where each of its facts is answered with a value that it lists, or not answered at all: then it is offered
"if" that fact holds. So an answer more can only take rules away. A survey's list is not evidence: what a trial recorded
here stands beside each paper, and a paper that was refuted comes after all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any

from broadsheet.console import InputError
from broadsheet.page.guides.data import read, surveys
from broadsheet.page.guides.flow import Flow, derived, follow
from broadsheet.page.papers import RUNGS, Paper, ours

SHOWN = 5  # papers to try that are printed without --all
MOST_QUESTIONS = 9
_REFUTED = "refuted here"
_LONG = 12  # values of a fact that an error still names
_KINDS = {"method": "try", "study": "measure with", "benchmark": "measure with", "survey": "read"}
SECTIONS = ("try", "measure with", "read")


@dataclass(frozen=True)
class Fact:
    """What is asked: an id, the question, and the values an answer may have, each in words."""

    id: str
    ask: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Rule:
    """Conditions under which papers are recommended, why, and who says so.

    Attributes:
        when: fact to the values that it may have; the goal is one of them.
        recommend: ids of papers.
        because: one sentence.
        source: a section or table of a survey; `"ours"` where the mapping is our own.
        emergent: what it rests on is an ability that only large models have.
    """

    id: str
    when: Mapping[str, tuple[str, ...]]
    recommend: tuple[str, ...]
    because: str
    source: str
    emergent: bool = False

    def fires(self, answers: Mapping[str, str]) -> bool:
        """Whether no answer speaks against it."""
        return all(answers.get(fact) in (None, *values) for fact, values in self.when.items())

    def matched(self, answers: Mapping[str, str]) -> int:
        """How many of its facts are answered as it wants them."""
        return sum(answers.get(fact) in values for fact, values in self.when.items())

    def open(self, answers: Mapping[str, str]) -> tuple[str, ...]:
        """Its facts that are not answered: it holds if they turn out as it wants them."""
        return tuple(fact for fact in self.when if fact not in answers)


@dataclass(frozen=True)
class AdvisedPaper:
    """A paper that is recommended.

    Attributes:
        rules: that recommend it, those with most facts matched first.
        conditions: what still has to be so, in words; empty where all facts of the first rule are known.
        warning: what stands against it; empty where nothing does.
    """

    paper: Paper
    rules: tuple[Rule, ...]
    conditions: tuple[str, ...] = ()
    warning: str = ""

    @property
    def section(self) -> str:
        return _KINDS[self.paper.kind]

    @property
    def needs(self) -> tuple[str, ...]:
        """What it takes: weights, labels, a teacher …"""
        return tuple(read("facets").get(self.paper.id, {}).get("needs", ()))

    @property
    def training(self) -> str:
        """What its training costs: `"none"`, `"light"`, `"heavy"`; empty for a survey."""
        return str(read("facets").get(self.paper.id, {}).get("training", ""))

    @property
    def command(self) -> str:
        """How it is tried here, or how a survey's tree is read; empty where it is not built yet."""
        if self.paper.trial:
            return f"broadsheet try {self.paper.id} --quick"
        return f"broadsheet map {self.paper.id}" if self.paper.id in surveys() else ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "id": self.paper.id,
            "title": self.paper.title,
            "section": self.section,
            "reason": self.rules[0].because,
            "source": self.rules[0].source,
            "rules": [rule.id for rule in self.rules],
            "if": list(self.conditions),
            "needs": list(self.needs),
            "training": self.training,
            "rung": self.paper.rung,
            "reached": RUNGS[self.paper.rung],
            "verdict": self.paper.verdict,
            "warning": self.warning,
            "command": self.command,
        }


@dataclass(frozen=True)
class Advice:
    """What the answers come to.

    Attributes:
        papers: all that are recommended, in the order in which they are to be looked at.
        flow: the decision flow of 2023 under these answers; None for a goal that it does not decide.
        route: what follows from the flow, in words.
        injection: the ways to bring knowledge to a model that the answers leave, where the goal is a field's.
    """

    answers: Mapping[str, str]
    papers: tuple[AdvisedPaper, ...]
    flow: Flow | None = None
    route: tuple[str, ...] = ()
    injection: tuple[Mapping[str, Any], ...] = field(default=())

    def section(self, name: str) -> tuple[AdvisedPaper, ...]:
        """Those of `"try"`, `"measure with"` or `"read"`."""
        return tuple(each for each in self.papers if each.section == name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; the same answers give the same bytes."""
        flow = self.flow
        return {
            "answers": dict(sorted(self.answers.items())),
            "flow": None
            if flow is None
            else {
                "survey": read("advice")["flow"]["survey"],
                "dated": read("advice")["flow"]["dated"],
                "outcomes": list(flow.outcomes),
                "path": [[number, answer] for number, answer in flow.path],
            },
            "route": list(self.route),
            "injection": [dict(way) for way in self.injection],
            "papers": [each.to_dict() for each in self.papers],
        }


@cache
def facts() -> dict[str, Fact]:
    """What may be asked, in the order in which it is."""
    return {row["id"]: Fact(row["id"], row["ask"], row["values"]) for row in read("advice")["fact"]}


@cache
def rules() -> tuple[Rule, ...]:
    """All rules, in the order of the file."""
    return tuple(
        Rule(
            row["id"],
            {"goal": (row["goal"],)} | {fact: tuple(values) for fact, values in row["when"].items()},
            tuple(row["recommend"]),
            row["because"],
            row["source"],
            row.get("emergent", False),
        )
        for row in read("rules")["rule"]
    )


def offered(fact: str, answers: Mapping[str, str]) -> dict[str, str]:
    """The values of a fact that are worth offering, in words: of `need`, those that a live rule asks for."""
    values = dict(facts()[fact].values)
    if fact != "need":
        return values
    asked = {value for rule in rules() if rule.fires(answers) for value in rule.when.get("need", ())}
    return {value: words for value, words in values.items() if value in asked}


def next_fact(answers: Mapping[str, str], skipped: frozenset[str] = frozenset()) -> Fact | None:
    """What to ask next: the first fact that a live rule needs; None where none does, or after nine questions."""
    if len(answers) + len(skipped) >= MOST_QUESTIONS:
        return None
    live = [rule for rule in rules() if rule.fires(answers)]
    needed = {fact for rule in live for fact in rule.when}
    if any(rule.emergent for rule in live):
        needed.add("size")
    return next(
        (fact for fact in facts().values() if fact.id in needed and fact.id not in answers and fact.id not in skipped),
        None,
    )


def check(answers: Mapping[str, str]) -> None:
    """See that answers are some that can be given.

    Raises:
        InputError: no such fact, or no such value; the values are named.
    """
    for fact, value in answers.items():
        if fact not in facts():
            raise InputError(f"got an answer to {fact!r}; expected {', '.join(facts())}")
        if value not in facts()[fact].values:
            others = {name: given for name, given in answers.items() if name != fact and name in facts()}
            values = list(offered(fact, others)) or list(facts()[fact].values)
            near = get_close_matches(value, values, n=3)
            if len(values) > _LONG and near:
                raise InputError(f"got {fact} {value!r}; did you mean {' or '.join(near)}?")
            more = ", …: give a goal too, and its own are named" * (len(values) > _LONG)
            raise InputError(f"got {fact} {value!r}; expected one of {', '.join(values[:_LONG])}{more}")


def advise(answers: Mapping[str, str]) -> Advice:
    """The papers that the answers lead to. A fact that is not among the answers is not known.

    Use when the goal is clear and the method is not. Prefer `broadsheet.page.papers.search` where a name is known.

    Inputs: answers by fact, as `facts` lists them.

    Relation: `why` says how each rule for one paper came out; `flow.follow` is the flow that is told beside the papers.

    Raises:
        InputError: no such fact or value.

    Example:
        >>> [each.paper.id for each in advise({"goal": "detect", "need": "attacker"}).section("try")]
        ['lastde', 'stochastic_parrots']

    Source: rules and tables of arXiv:2304.13712, arXiv:2307.12966 and arXiv:2502.10708, and our own mapping to papers
    of the page; each rule names its own.
    """
    check(answers)
    fired: dict[str, list[Rule]] = {}
    for rule in rules():
        if rule.fires(answers):
            for paper_id in rule.recommend:
                fired.setdefault(paper_id, []).append(rule)
    place = {paper.id: (i, paper) for i, paper in enumerate(ours())}
    found = []
    for paper_id, by in fired.items():
        by.sort(key=lambda rule: -rule.matched(answers))
        paper = place[paper_id][1]
        conditions = tuple(_words(fact, by[0].when[fact]) for fact in by[0].open(answers))
        found.append(AdvisedPaper(paper, tuple(by), conditions, _warning(paper, by[0], answers)))
    found.sort(
        key=lambda each: (
            each.paper.verdict == _REFUTED,
            -each.rules[0].matched(answers),
            -each.paper.rung,
            place[each.paper.id][0],
        )
    )
    flow = _flow(answers)
    return Advice(dict(answers), tuple(found), flow, _route(flow, answers), _injection(answers))


def why(paper_id: str, answers: Mapping[str, str]) -> list[tuple[Rule, str]]:
    """Every rule that recommends a paper, and how it came out: `"fired"`, `"fired if …"`, or what spoke against it.

    Raises:
        InputError: no such fact or value; no rule recommends it.
    """
    check(answers)
    found = []
    for rule in rules():
        if paper_id not in rule.recommend:
            continue
        against = [
            f"{fact} is {answers[fact]}, not {' or '.join(values)}"
            for fact, values in rule.when.items()
            if answers.get(fact) not in (None, *values)
        ]
        missing = [_words(fact, rule.when[fact]) for fact in rule.open(answers)]
        came = "; ".join(against) or ("fired" + f" if {' and '.join(missing)}" * bool(missing))
        found.append((rule, came))
    if not found:
        near = get_close_matches(paper_id, [paper for rule in rules() for paper in rule.recommend], n=1, cutoff=0.7)
        told = f"did you mean {near[0]}?" if near else "`broadsheet papers` lists the page"
        raise InputError(f"no rule recommends {paper_id!r}; {told}")
    return found


def _words(fact: str, values: tuple[str, ...]) -> str:
    """A condition in words: `"labels: none"`, `"need: the types to find are fixed"`."""
    return f"{fact.replace('-', ' ')}: {' or '.join(facts()[fact].values[value] for value in values)}"


def _warning(paper: Paper, rule: Rule, answers: Mapping[str, str]) -> str:
    if paper.verdict == _REFUTED:
        return f"refuted here, by the trial recorded: `broadsheet show {paper.id}`"
    if rule.emergent and answers.get("size") != "large":
        return "rests on abilities that models below about 10 billion parameters mostly lack"
    return ""


def _flow(answers: Mapping[str, str]) -> Flow | None:
    said = derived(answers)
    return follow(said) if said[0] is not None else None


def _route(flow: Flow | None, answers: Mapping[str, str]) -> tuple[str, ...]:
    """What the flow's outcome means today: it knew two ways, of four."""
    if flow is None or not flow.decided:
        return ()
    words = read("advice")["route"]
    if flow.decided == "open":
        return ("the survey leaves it open: look the knowledge up, or tune on texts that hold it",)
    found = [words[flow.decided]]
    if flow.decided == "LLM" and answers.get("weights") != "frozen" and answers.get("unlabelled") in ("much", "huge"):
        found.append(words["distil"])
    if answers.get("need") == "shifted":
        found.append(words["helped"])
    return tuple(found)


def _injection(answers: Mapping[str, str]) -> tuple[Mapping[str, Any], ...]:
    """Ways to bring a field's knowledge to a model: the rule of arXiv:2502.10708's table, read as conditions; ours."""
    if answers.get("goal") != "domain":
        return ()
    out = set()
    if answers.get("weights") == "frozen":
        out |= {"static", "adapters"}
    if answers.get("weights") == "adapters":
        out.add("static")
    if answers.get("knowledge") in ("changing", "stable") and answers.get("weights") != "frozen":
        out.add("prompt")  # where nothing can be trained, a smaller model may write it there
    if answers.get("knowledge") == "changing":
        out |= {"static", "adapters"}
    if answers.get("latency") == "strict":
        out.add("dynamic")
    return tuple(row for row in read("advice")["injection"] if row["id"] not in out)

"""The generated parts of docs/guide.md: goals, surveys, ways to read long inputs, and what commands print.

Knows: the guides' data, the command. Does not know: pages.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from textwrap import wrap
from typing import Any
from unittest.mock import patch

from speeds import table
from typer.testing import CliRunner

from broadsheet.cli.app import app
from broadsheet.page.guides import advice, longcontext, maps
from broadsheet.page.papers import RUNGS, get

COLUMNS = 78  # letters in a line of what a command prints
# Of the config of the default model what the guide reads: the docs are made without fetching it. A test compares.
DEFAULT_CONFIG = {
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def output(command: str) -> str:
    """A command, and what it prints on stdout, folded as a terminal does.

    Raises:
        ValueError: it ends with another status than 0.
    """
    environment = {"COLUMNS": str(COLUMNS), "TERM": "dumb", "FORCE_COLOR": None, "NO_COLOR": "1"}
    with patch("broadsheet.models.config", lambda name: DEFAULT_CONFIG):
        ran = CliRunner().invoke(app, shlex.split(command)[1:], env=environment)
    if ran.exit_code:
        raise ValueError(f"{command}: ended with {ran.exit_code}; {ran.exception or ran.output}")
    lines = (line.rstrip() for line in ran.stdout.rstrip().splitlines())
    printed = "\n".join(part for line in lines for part in wrap(line, COLUMNS) or [""])
    return f"```sh\n{command}\n```\n\n```text\n{printed}\n```"


def goals() -> str:
    """The adviser's rules below their goals: conditions in words and as answers, papers, and who says so."""
    rows: list[tuple[str, ...]] = []
    before = None
    for rule in advice.rules():
        (goal,) = rule.when["goal"]
        if goal != before:
            rows.append((f"**{goal}**: {advice.facts()['goal'].values[goal]}", "", ""))
        before = goal
        told = "; ".join(f"{words} (`{answers}`)" for answers, words in maps.conditions(rule)) or maps.ANY
        papers = ", ".join(f"`{paper}`" for paper in rule.recommend)
        rows.append((told, papers, "our own mapping" if rule.source == "ours" else rule.source))
    return table(("goal, and what has to be so", "papers", "source"), rows)


def surveys() -> str:
    """Each survey's tree: its size, its gaps, the papers of the page in it, and how its nodes are known."""
    rows = []
    for name in maps.trees()[1:]:
        _, *nodes = maps.tree(name).walk()
        leaves = [node for node in nodes if not node.children]
        known = Counter(node.mark for node in nodes)
        rows.append(
            (
                f"[{get(name).title}]({get(name).url})",
                f"`{name}`",
                str(len(nodes)),
                str(len(leaves)),
                str(sum(leaf.gap for leaf in leaves)),
                str(len({paper for node in nodes for paper in node.papers})),
                ", ".join(f"{known[mark]}&nbsp;{mark}" for mark in maps.MARKS if known[mark]),
            )
        )
    return table(("survey", "tree", "nodes", "leaves", "gaps", "papers of the page", "known by"), rows)


def marks() -> str:
    """How a node of a tree may be known."""
    return "\n".join(f"- **{mark}**: {words}." for mark, words in maps.MARKS.items())


def ways() -> str:
    """The ways to read long inputs, side by side: what each is for, changes and costs, and its rung."""
    lengths = {"within": "within the trained one", "beyond": "beyond the trained one", "any": "any"}
    found = longcontext.ways()

    def row(name: str, told: Callable[[longcontext.Way], str]) -> tuple[str, ...]:
        return (name, *(told(way) for way in found))

    def facet(name: str, told: Callable[[Any], str] = str) -> tuple[str, ...]:
        return row(_FACETS[name], lambda way: told(way.facets[name]))

    def keeps(way: longcontext.Way) -> str:
        return f"{way.tokens:,} tokens" if way.facets["keeps"] == "window" else str(way.facets["keeps"])

    def reached(way: longcontext.Way) -> str:
        return f"{way.paper.rung}&nbsp;{RUNGS[way.paper.rung]}" + f", {way.paper.verdict}" * bool(way.paper.verdict)

    rows = [
        row("need", lambda way: ", ".join(way.needs)),
        row("length of the text", lambda way: lengths[way.length]),
        facet("changes", ", ".join),
        facet("training"),
        facet("phase"),
        facet("cost"),
        row(_FACETS["keeps"], keeps),
        facet("lossless", lambda exact: "the same" if exact else "approximate"),
        facet("pre_rope", _yes),
        facet("batch", _yes),
        facet("hardware"),
        row("rung", reached),
    ]
    return table(("", *(f"`{way.id}`" for way in found)), rows)


_FACETS = {
    "changes": "changes",
    "training": "training",
    "phase": "acts in",
    "cost": "reading n tokens",
    "keeps": "cache on the device",
    "lossless": "output",
    "pre_rope": "keys before rotation",
    "batch": "uneven batches",
    "hardware": "hardware",
}


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"

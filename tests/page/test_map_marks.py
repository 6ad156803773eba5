"""`broadsheet map` says of each node how it is known, and of a condition what it is about."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from broadsheet.cli.app import app
from broadsheet.page.guides import maps
from broadsheet.page.guides.advice import rules


def printed(place: str) -> list[str]:
    """One line a node, as wide as it needs."""
    ran = CliRunner().invoke(app, ["map", place], env={"COLUMNS": "2000", "TERM": "dumb", "FORCE_COLOR": None})
    assert ran.exit_code == 0
    return ran.stdout.splitlines()


@pytest.mark.parametrize("name", maps.trees())
def test_a_node_without_a_mark_was_read_in_the_paper(name: str) -> None:
    nodes = list(maps.tree(name).walk())
    lines = printed(name)
    assert len(lines) == len(nodes)
    for node, line in zip(nodes, lines, strict=True):
        assert node.title in line
        assert (re.findall(r" ‹(\w)›", line) or ["s"]) == [node.mark], line


def test_a_branch_bears_its_own_mark() -> None:
    _, branch = maps.find("multimodal_review/text")
    assert branch.mark == "d"
    assert "‹d›" in printed("multimodal_review/text")[0]


def test_a_condition_names_its_fact_unless_it_is_a_need() -> None:
    named = {rule.id: maps.conditions(rule) for rule in rules()}
    assert named["classify-no-labels"] == [("labels none", "labels: none")]
    assert named["classify-noisy-labels"] == [("noisy-labels", "some labels are wrong")]
    assert named["search-pairs"] == [
        ("labels some, many", "labels: up to 5,000 or more"),
        ("weights adapters, all", "weights: adapters beside it or all of it"),
    ]
    assert named["detect-untrained"] == []
    assert any("labels: none: llkd" in line for line in printed("classify"))

"""The tools, as the protocol's own client calls them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from broadsheet.console import InputError
from broadsheet.page.papers import ours
from broadsheet.serve.agents import tools as agents_module
from broadsheet.serve.agents.tools import Agents
from broadsheet.serve.trials.jobs import Jobs

TOOLS = {"papers", "show", "evidence", "advise", "compare", "try_start", "try_watch", "try_stop", "try_result"}


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    results = tmp_path / "results"
    results.mkdir()
    for name, shift in (("a.csv", 0), ("b.csv", 1)):
        rows = [f"{i},{i % 7 + shift}" for i in range(30)]
        (results / name).write_text("\n".join(["id,score", *rows]))
    return Agents(Jobs(tmp_path / "jobs"), results=results)


def test_a_search_says_where_each_paper_stands(agents: Agents) -> None:
    found = {row["id"]: row for row in agents.papers("machine-generated text detection")}
    row = found["lastde"]
    assert row["rung"].startswith("3 helps")
    assert row["verdict"] == "shown"
    assert "[" in row["answer"], "with its interval"
    assert len(agents.papers()) == len(ours())
    assert all(row["answer"] == "nothing is recorded" for row in agents.papers(least_rung=0) if not row["built"])


def test_what_is_shown_of_a_paper_says_what_is_left_out(agents: Agents) -> None:
    told = agents.show("lastde")
    assert told["leaves_out"]
    assert {"Lastde", "LastdePP"} <= {each["class"] for each in told["classes"]}
    assert "Lastde().score" in told["classes"][0]["example"]
    assert agents.evidence("lastde")["command"].startswith("broadsheet try lastde")
    unbuilt = next(paper.id for paper in ours() if not paper.entry)
    assert agents.evidence(unbuilt)["recorded"] is False


def test_a_comparison_is_a_verdict_with_its_interval(agents: Agents) -> None:
    [found] = agents.compare("a.csv", "b.csv")
    assert (found["verdict"], found["n"]) == ("helps", 30)
    assert "[" in found["sentence"]
    [same] = agents.compare("a.csv", "a.csv")
    assert same["verdict"] == "no measurable difference"


@pytest.mark.parametrize("name", ["../jobs", "/etc/passwd", "c.csv", ""])
def test_a_file_is_named_from_the_list_alone(agents: Agents, name: str) -> None:
    with pytest.raises(InputError, match=r"there is a\.csv, b\.csv"):
        agents.compare("a.csv", name)


@pytest.mark.parametrize(
    "given", [{"model": "/root/model"}, {"data": "/etc"}, {"data": "--out"}, {"model": "org/other"}]
)
def test_models_and_data_are_those_that_are_offered(agents: Agents, given: dict[str, str]) -> None:
    with pytest.raises(InputError, match="it offers"):
        agents.try_start("lastde", **given)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        agents.try_start("--help")
    assert not list(agents.jobs)


def test_advice_asks_and_answers(agents: Agents) -> None:
    questions = agents.advise({})["questions"]
    assert "goal" in questions
    assert agents.advise({"goal": questions["goal"][0]})


def test_the_protocols_client_finds_and_calls_the_tools(tmp_path: Path) -> None:
    command = ["-m", "broadsheet", "mcp", "--jobs", str(tmp_path / "jobs")]
    parameters = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))

    async def talk() -> tuple[Any, Any, Any, Any]:
        async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
            begun = await session.initialize()
            tools = await session.list_tools()
            shown = await session.call_tool("show", {"paper": "lastde"})
            wrong = await session.call_tool("show", {"paper": "nothing-of-that-name"})
            return begun, tools, shown, wrong

    begun, tools, shown, wrong = asyncio.run(talk())
    assert "open" in begun.instructions
    assert "the models default and the data pydocs:stdlib, pydocs" in begun.instructions
    assert {tool.name for tool in tools.tools} == TOOLS
    assert all(tool.description for tool in tools.tools)
    assert json.loads(shown.content[0].text)["id"] == "lastde"
    assert wrong.is_error
    assert "nothing-of-that-name" in wrong.content[0].text


def test_the_skill_names_tools_and_commands_that_there_are() -> None:
    text = (Path(agents_module.__file__).parent / "SKILL.md").read_text("utf-8")
    head = text.split("---")[1]
    assert "name: broadsheet" in head
    assert "description: " in head
    named = set(re.findall(r"`([a-z_]+)`", text)) - {"quick"}
    assert named <= TOOLS
    for command in re.findall(r"`broadsheet (\w+)", text):
        assert command in {"try", "apply", "serve"}

"""The tools over HTTP, as the protocol's own client calls them: behind the guard's keys, names and limits."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from serving import Running, served, serving
from stub_trials import stubbed, wait
from test_agents import TOOLS
from typer.testing import CliRunner

from broadsheet.console import InputError
from broadsheet.serve import commands
from broadsheet.serve.agents.tools import Agents
from broadsheet.serve.app import create_app
from broadsheet.serve.guard import KeyRing, Limits
from broadsheet.serve.models.named import Models
from broadsheet.serve.trials import jobs
from broadsheet.serve.trials.jobs import Jobs

ALL, RUN, INFER, READ = "k" * 24, "r" * 24, "i" * 24, "d" * 24
ACCEPT = {"accept": "application/json, text/event-stream"}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agents]:
    """The tools, whose trials are a stub that ends once `go` is there."""
    popen, _ = stubbed(tmp_path)
    monkeypatch.setattr(jobs.subprocess, "Popen", popen)
    kept = Jobs(tmp_path / "jobs")
    yield Agents(kept, models=("org/model",))
    kept.close()


@pytest.fixture
def server(agents: Agents) -> Iterator[Running]:
    with serving(create_app(Models(), agents=agents)) as running:
        yield running


@pytest.fixture
def locked(agents: Agents) -> Iterator[Running]:
    """A server with keys."""
    keys = KeyRing([ALL, f"{RUN} run", f"{INFER} infer", f"{READ} read"])
    with serving(create_app(Models(), keys, Limits(10_000), agents)) as running:
        yield running


def talk(server: Running, said: Callable[[Client], Coroutine[Any, Any, Any]], key: str = "", mode: Any = "auto") -> Any:
    """What a conversation of the protocol's client comes to."""

    async def whole() -> Any:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(f"{server.url}/mcp", http_client=http), mode=mode) as client,
        ):
            return await said(client)

    return asyncio.run(whole())


async def call(client: Client, tool: str, **given: Any) -> Any:
    """What a tool returns."""
    answer = await client.call_tool(tool, given)
    text = [each.text for each in answer.content]  # type: ignore[union-attr]
    assert not answer.is_error, text
    return json.loads(text[0]) if len(text) == 1 else [json.loads(each) for each in text]


@pytest.mark.parametrize(("key", "mode"), [("", "auto"), ("", "legacy"), (ALL, "auto"), (RUN, "legacy")])
def test_the_protocols_client_reads_and_tries(request: pytest.FixtureRequest, key: str, mode: str) -> None:
    server: Running = request.getfixturevalue("locked" if key else "server")
    agents: Agents = request.getfixturevalue("agents")

    async def said(client: Client) -> None:
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
        found = {row["id"]: row for row in await call(client, "papers", words="machine-generated text detection")}
        assert found["lastde"]["rung"].startswith("3 helps")
        assert (await call(client, "show", paper="lastde"))["leaves_out"]
        wrong = await client.call_tool("try_start", {"paper": "lastde", "model": "/etc"})
        assert wrong.is_error
        assert "it offers org/model" in wrong.content[0].text  # type: ignore[union-attr]

        job = (await call(client, "try_start", paper="lastde", model="org/model"))["job"]
        await asyncio.to_thread(wait, lambda: agents.jobs.lines(job) == ["begun"])
        told = await call(client, "try_watch", job=job)
        assert (told["state"], told["said"]) == ("running", ["begun"])
        assert told["command"] == "broadsheet try lastde --model org/model --quick"
        assert (await call(client, "try_stop", job=job))["state"] == "stopped"
        await asyncio.to_thread(wait, lambda: agents.jobs._running is None)
        assert (await call(client, "try_watch", job=job))["state"] == "stopped"

    talk(server, said, key, mode)


def test_trials_need_the_right_to_run(locked: Running) -> None:
    def status(key: str) -> int:
        return locked.ask("/mcp", LIST, authorization=f"Bearer {key}", **ACCEPT)[0]

    assert locked.ask("/mcp", LIST, **ACCEPT)[0] == 401
    assert [status(key) for key in ("o" * 24, INFER, READ, RUN, ALL)] == [401, 403, 403, 200, 200]

    async def said(client: Client) -> None:
        pytest.fail("it was let in")

    with pytest.raises(ExceptionGroup) as refused:
        talk(locked, said, READ)
    assert refused.group_contains(MCPError, match="Server returned an error response")


def test_the_guard_holds_names_pages_and_bodies(server: Running, locked: Running) -> None:
    def status(asked: Running, body: Any = LIST, method: str = "POST", **headers: str) -> int:
        return asked.ask("/mcp", body, method, **ACCEPT, **headers)[0]

    assert status(server) == 200
    assert status(server, host="evil.example") == 421
    assert status(server, origin="http://elsewhere") == 403
    assert status(server, sec_fetch_site="cross-site") == 403
    long = {**LIST, "params": {"x": "x" * 10_000}}
    assert status(locked, long, authorization=f"Bearer {ALL}") == 413
    assert status(server, long) == 200


def test_no_stream_is_left_open(server: Running) -> None:
    """What would be waited for at the end: there is nothing that a server says by itself."""
    assert server.ask("/mcp", **ACCEPT)[0] == 405
    assert server.ask("/mcp", method="DELETE", **ACCEPT)[0] == 405
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
    listen = {
        **LIST,
        "method": "subscriptions/listen",
        "params": {"_meta": meta, "notifications": {"toolsListChanged": True}},
    }
    headers = {"mcp_protocol_version": "2026-07-28", "mcp_method": "subscriptions/listen"}
    status, told = server.ask("/mcp", listen, **ACCEPT, **headers)
    assert (status, told["error"]["code"]) == (404, -32601)


def test_while_it_closes_nothing_is_begun(server: Running, agents: Agents) -> None:
    server.app.app.state.serving.draining = True
    start = {"name": "try_start", "arguments": {"paper": "lastde"}}
    status, told = server.ask("/mcp", {**LIST, "method": "tools/call", "params": start}, **ACCEPT)
    assert (status, told["error"]["message"]) == (503, "the server is closing")
    assert not list(agents.jobs)


def test_it_is_counted_and_in_no_list_of_routes(server: Running) -> None:
    server.ask("/mcp", LIST, **ACCEPT)
    counted = 'broadsheet_requests_total{route="/mcp",status="200"} 1.0'
    wait(lambda: counted in server.ask("/metrics")[1])
    assert "/mcp" not in server.ask("/openapi.json")[1]["paths"]


def test_without_agents_there_are_no_tools() -> None:
    with serving(create_app(Models())) as server:
        assert server.ask("/mcp", LIST, **ACCEPT)[0] == 404


def test_what_fails_is_told_without_what_was_asked(
    server: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(words: str, **given: Any) -> None:
        raise RuntimeError(f"of {words}")

    monkeypatch.setattr("broadsheet.serve.agents.tools.search", broken)

    async def said(client: Client) -> Any:
        return await client.call_tool("papers", {"words": "secret"})

    answer = talk(server, said)
    assert answer.is_error
    assert "the tool failed: RuntimeError" in answer.content[0].text
    told = capfd.readouterr()
    assert "RuntimeError in test_agentroute.py, line" in told.err
    assert "secret" not in f"{answer}{told}"


def test_at_a_signal_a_trial_is_stopped_and_nobody_is_waited_for(tiny_folder: Path, tmp_path: Path) -> None:
    given = ["--agents", "--jobs", str(tmp_path / "jobs"), "--model", str(tiny_folder)]
    with served(tmp_path, *given, BROADSHEET_SERVE_KEYS=f"{RUN} run") as (process, server):

        async def said(client: Client) -> str:
            told = await call(client, "try_start", paper="lastde", model=str(tiny_folder), data="pydocs")
            name: str = told["job"]
            while (await call(client, "try_watch", job=name))["state"] == "waiting":
                await asyncio.sleep(0)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 30) == 0
            return name

        name = talk(server, said, RUN)
        kept = json.loads((tmp_path / "jobs" / name / "job.json").read_text())
        assert kept["state"] == "stopped"
        wait(lambda: jobs._found(kept["process"]) is None)
        assert (tmp_path / "jobs" / name / "result.json").read_text() == ""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--no-page", "--model", "default", "--data", "pydocs"], "got --data, which nothing that is served reads"),
        (["--no-page", "--model", "default", "--jobs", "."], "got --jobs, which nothing that is served reads"),
        (["--no-page", "--store", "x"], "got --store, which nothing that is served reads"),
        (["--results", "."], "got --results, which nothing that is served reads"),
        (["--no-page"], "expected something to serve"),
        (["--attend", "lm_infinite"], "give --model too"),
    ],
)
def test_what_nothing_that_is_served_reads_is_refused(given: list[str], told: str) -> None:
    found = CliRunner().invoke(commands.app, ["serve", *given])
    assert isinstance(found.exception, InputError)
    assert told in str(found.exception)


@pytest.mark.parametrize("command", [["serve", "--agents"], ["mcp"]])
def test_without_the_sdk_it_says_what_to_install(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    found = CliRunner().invoke(commands.app, command)
    assert isinstance(found.exception, InputError)
    assert "pip install -e '.[mcp]'" in str(found.exception)

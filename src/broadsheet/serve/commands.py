"""The commands `serve` and `mcp`: models behind OpenAI's routes, Cohere's and our own, and tools for agents."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broadsheet.console import InputError

if TYPE_CHECKING:
    from broadsheet.serve.agents.tools import Agents
    from broadsheet.serve.guard import Guard, KeyRing, Limits
    from broadsheet.serve.models.winning import Wanted
    from broadsheet.serve.workers import Shared

NAME = None
app = typer.Typer()
Data = Annotated[list[str] | None, typer.Option(help="That trials may run on; `pydocs` by default.")]
Results = Annotated[Path | None, typer.Option(help="A folder whose files may be compared.")]
Trials = Annotated[Path | None, typer.Option(help="Where trials are kept; in the cache folder by default.")]


@app.command(epilog="Example: broadsheet serve --model default --embedder runs/gem")
def serve(
    won: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[REPORT|FOLDER]…", help="The winner of a trial (runs/ID.json), or a saved model."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="That writes: `default`, a hub id, a folder, a .gguf file.")
    ] = None,
    embedder: Annotated[
        list[str] | None, typer.Option(help="That makes vectors: a folder, `resource:minilm`, or a model.")
    ] = None,
    reranker: Annotated[list[str] | None, typer.Option(help="That orders passages: a folder, or a model.")] = None,
    detector: Annotated[
        list[str] | None, typer.Option(help="Of machine-written text, as in 'lastdepp(n_samples=200)'.")
    ] = None,
    attend: Annotated[
        str | None, typer.Option(help="A method under which models read, as in 'lm_infinite(n_local=1024)'.")
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="By which a greedy answer that is alone is written faster: \"ngramdrafter(table='f.table')\"."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Where it listens; other than loopback, keys are needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    name: Annotated[
        list[str] | None, typer.Option(help="Another name by which this server is called (the Host of requests).")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="A file: a line for each key, then its rights and limits.")] = None,
    open_health: Annotated[bool, typer.Option("--open-health", help="/health needs no key.")] = False,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of a request.")] = 32,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Processes that answer, each with its own models: on CUDA each takes the memory again."
        ),
    ] = 1,
    device: Annotated[str | None, typer.Option(help="Where models run; chosen by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the models; chosen by default.")] = None,
    agents: Annotated[bool, typer.Option("--agents", help="The tools of `broadsheet mcp` too, at /mcp.")] = False,
    data: Data = None,
    results: Results = None,
    jobs: Trials = None,
) -> None:
    """Serve models to other programs: chat, completions, embeddings, rerank, score, classify, detect.

    The routes are those of OpenAI, Cohere and Jina, so that their clients work. Without --keys only this machine may
    ask. With --agents an agent searches the page and starts trials, on the models that are served and --data.
    """
    for option, given in (("data", data), ("results", results), ("jobs", jobs)):
        if given and not agents:
            raise InputError(f"got --{option} without --agents; it says what agents may use")
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise InputError("serve needs FastAPI and uvicorn: pip install -e '.[serve]'") from None
    from broadsheet.serve import running
    from broadsheet.serve.guard import KeyRing, Limits

    known = KeyRing.of(keys, os.environ)
    running.check_address(host, known)
    wanted = _wanted(won or ())
    attending = [attend] if attend else [each.attend for each in wanted if each.attend]
    if len(attending) > 1:
        raise InputError(f"got {len(attending)} methods to attend by; models read under one")
    kinds = {
        kind: [*(given or ()), *(name for each in wanted for name in getattr(each, kind))]
        for kind, given in (
            ("models", model),
            ("embedders", embedder),
            ("rerankers", reranker),
            ("detectors", detector),
        )
    }
    if not any(kinds.values()):
        kinds["models"] = ["default"]
    kinds = {kind: list(dict.fromkeys(given)) for kind, given in kinds.items()}
    about = {name: told for each in wanted for name, told in each.about.items()}
    way = {"attend": next(iter(attending), None), "draft": draft}
    options = {**kinds, **way, "about": about, "device": device, "dtype": dtype}
    limits = Limits(max_body * 2**20, hosts=running.names(host, name or ()), open_health=open_health)
    tools = _agents(kinds["models"], data, results, jobs) if agents else None
    if workers == 1:
        running.run(_app(options, limits, tools, known), host, port)
    else:
        from broadsheet.serve.workers import run

        run(partial(_app, options, limits, tools), known, workers, host, port)


def _wanted(won: Sequence[Path]) -> list[Wanted]:
    """What won in trials, and what folders hold."""
    if not won:
        return []
    from broadsheet.serve.models import winning

    return [winning.of(path) for path in won]


def _app(
    options: Mapping[str, Any],
    limits: Limits,
    agents: Callable[[], Agents] | None,
    keys: KeyRing,
    shared: Shared | None = None,
) -> Guard:
    """The server over models that it loads: what one process answers by."""
    from broadsheet.serve.app import create_app
    from broadsheet.serve.models.named import Models

    app: Guard = create_app(Models(**options), keys, limits, agents() if agents else None, shared)
    return app


@app.command(epilog="Example: broadsheet mcp --data corpus.jsonl")
def mcp(
    model: Annotated[list[str] | None, typer.Option(help="That trials may run on; `default` by default.")] = None,
    data: Data = None,
    results: Results = None,
    jobs: Trials = None,
) -> None:
    """Give the page, its evidence and its trials to an agent, as tools of the Model Context Protocol over stdio.

    An agent names papers, and of models, data and files those that are given here. A skill file for agents lies beside
    the code (`serve/agents/SKILL.md`). `broadsheet serve --agents` gives the same over HTTP.
    """
    tools = _agents(model or ("default",), data, results, jobs)()
    try:
        tools.server().run()
    finally:
        tools.jobs.close()


def _agents(
    models: Sequence[str], data: Sequence[str] | None, results: Path | None, jobs: Path | None
) -> Callable[[], Agents]:
    """What makes the tools over what may be used, in each process that answers.

    Raises:
        InputError: the protocol's SDK is not installed, or `results` is no folder.
    """
    try:
        import mcp as _  # noqa: F401
    except ImportError:
        raise InputError("tools for agents need the protocol's SDK: pip install -e '.[mcp]'") from None
    from broadsheet.cache import home

    if results is not None and not results.is_dir():
        raise InputError(f"got --results {results}; expected a folder")
    return partial(_made, jobs or home() / "jobs", models, data or ("pydocs", "pydocs:stdlib"), results)


def _made(jobs: Path, models: Sequence[str], data: Sequence[str], results: Path | None) -> Agents:
    from broadsheet.serve.agents.tools import Agents
    from broadsheet.serve.jobs import Jobs

    return Agents(Jobs(jobs), models, data, results)

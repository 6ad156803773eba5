"""The commands `serve` and `mcp`: models behind OpenAI's routes, Cohere's and our own, and tools for agents."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broadsheet.console import InputError, say

if TYPE_CHECKING:
    from broadsheet.daily.digest import Mail
    from broadsheet.serve.models.winning import Wanted

NAME = None
app = typer.Typer()
Data = Annotated[list[str] | None, typer.Option(help="That trials may run on; `pydocs` by default.")]
Results = Annotated[Path | None, typer.Option(help="A folder whose files may be compared.")]
Trials = Annotated[Path | None, typer.Option(help="Where trials are kept; in the cache folder by default.")]


@app.command(epilog="Example: broadsheet serve; broadsheet serve --model default --embedder runs/gem")
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
    page: Annotated[bool, typer.Option("--page/--no-page", help="The daily page, in a browser.")] = True,
    store: Annotated[
        str | None, typer.Option(help="The page's papers; `page.sqlite` in the cache folder by default.")
    ] = None,
    meaning: Annotated[
        str | None, typer.Option(help="An embedder by which the page's search knows meaning: `resource:minilm`.")
    ] = None,
    mail: Annotated[
        str | None, typer.Option(help="HOST or HOST:PORT that sends the page's digest; with --mail-from and --url.")
    ] = None,
    mail_from: Annotated[str | None, typer.Option(help="The address that it comes from.")] = None,
    url: Annotated[str | None, typer.Option(help="The page's address, as letters have it.")] = None,
    sync_every: Annotated[
        str | None, typer.Option(help="Ask the page's sources so often: `6h`, at least `15m`. Else nobody is asked.")
    ] = None,
    sync: Annotated[
        list[str] | None, typer.Option(help="With --sync-every, a source: `hf`, `arxiv:cs.CL`, …; `hf` by default.")
    ] = None,
) -> None:
    """Show the daily page, and serve models to other programs: chat, completions, embeddings, rerank, score, detect.

    Without arguments the page is shown: papers to read, search, follow, and try on your own model. The routes of models
    are those of OpenAI, Cohere and Jina, so that their clients work. Without --keys only this machine may ask. With
    --agents an agent searches the page and starts trials, on the models that are served and --data.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise InputError("serve needs FastAPI and uvicorn: pip install -e '.[serve]'") from None
    from broadsheet.cache import home
    from broadsheet.serve.guard import KeyRing, Limits
    from broadsheet.serve.plan import ServingPlan
    from broadsheet.serve.processes import running
    from broadsheet.serve.trials.offers import Offers

    known = KeyRing.of(keys, os.environ)
    running.check_address(host, known)
    named = {"models": model, "embedders": embedder, "rerankers": reranker, "detectors": detector}
    models = _models(named, _wanted(won or ()), attend, draft)
    for option, given, needed in (
        ("data", data, page or agents), ("jobs", jobs, page or agents), ("results", results, agents),
        ("store", store, page), ("meaning", meaning, page), ("mail", mail, page), ("sync-every", sync_every, page),
    ):  # fmt: skip
        if given and not needed:
            raise InputError(f"got --{option}, which nothing that is served reads; leave it out")
    if not (models or page or agents):
        raise InputError("got --no-page and no model; expected something to serve, such as --model default")
    plan = ServingPlan(
        limits=Limits(max_body * 2**20, hosts=running.names(host, name or ()), open_health=open_health),
        models=models | {"device": device, "dtype": dtype} if models else {},
        agents=agents,
        page=(store or home() / "page.sqlite") if page else None,
        meaning=meaning,
        mail=_mail(mail, mail_from, url) if page else None,
        url=url or "",
        **_asking(sync, sync_every),
        offers=Offers(tuple(models.get("models", ())) or ("default",), tuple(data or Offers.data)),
        results=results,
        jobs=jobs,
    )
    plan.check()
    if plan.sources:
        say(f"asks {plan.asks}")
    if workers == 1:
        running.run(plan.app(known), host, port, plan.what)
    else:
        from broadsheet.serve.processes.workers import run

        run(plan.app, known, workers, host, port, plan.what)


def _asking(sources: list[str] | None, every: str | None) -> dict[str, Any]:
    """Which sources are asked, and how often, as a plan has it; empty: nobody is asked.

    Raises:
        InputError: sources without a time, a time that is none or too short, or a package is missing.
    """
    if every is None:
        if sources:
            raise InputError("got --sync without --sync-every; say how often, as in --sync-every 6h")
        return {}
    try:
        from broadsheet.daily.sources.rounds import interval
    except ModuleNotFoundError as error:
        raise InputError(f"--sync-every needs {error.name}: pip install -e '.[page]'") from None
    try:
        return {"sources": tuple(sources or ("hf",)), "every": interval(every)}
    except InputError as error:
        raise InputError(f"--sync-every: {error}") from None


def _mail(server: str | None, sender: str | None, url: str | None) -> Mail | None:
    """By whom the digest is sent. The user and the password are BROADSHEET_SMTP_USER and BROADSHEET_SMTP_PASSWORD.

    Raises:
        InputError: a part of it is missing, or is none.
    """
    if not (server or sender or url):
        return None
    if not (server and sender and url):
        raise InputError("a digest needs --mail HOST, --mail-from ADDRESS and --url URL; give all of them or none")
    from broadsheet.daily.digest import Mail

    return Mail(
        server, sender, os.environ.get("BROADSHEET_SMTP_USER", ""), os.environ.get("BROADSHEET_SMTP_PASSWORD", "")
    )


def _models(
    named: Mapping[str, list[str] | None], wanted: Sequence[Wanted], attend: str | None, draft: str | None
) -> dict[str, Any]:
    """What of models is served, as `Models` takes it; empty: nothing.

    Raises:
        InputError: several methods to attend by, or methods without a model.
    """
    attending = [attend] if attend else [each.attend for each in wanted if each.attend]
    if len(attending) > 1:
        raise InputError(f"got {len(attending)} methods to attend by; models read under one")
    kinds = {
        kind: list(dict.fromkeys([*(given or ()), *(name for each in wanted for name in getattr(each, kind))]))
        for kind, given in named.items()
    }
    if (attend or draft) and not kinds["models"]:
        raise InputError("got --attend or --draft without a model; give --model too")
    if not any(kinds.values()):
        return {}
    about = {name: told for each in wanted for name, told in each.about.items()}
    return {**kinds, "attend": next(iter(attending), None), "draft": draft, "about": about}


def _wanted(won: Sequence[Path]) -> list[Wanted]:
    """What won in trials, and what folders hold."""
    if not won:
        return []
    from broadsheet.serve.models import winning

    return [winning.of(path) for path in won]


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
    from broadsheet.serve.agents.tools import Agents
    from broadsheet.serve.plan import check_agents, made_jobs
    from broadsheet.serve.trials.offers import Offers

    check_agents(results)
    kept = made_jobs(jobs)
    try:
        Agents(kept, model or ("default",), data or Offers.data, results).server().run()
    finally:
        kept.close()

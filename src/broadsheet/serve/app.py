"""The server as one app: models' routes, tools for agents, health and metrics, behind the guard.

Knows: what there is to be served. Does not know: how any of it works.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from broadsheet import __version__
from broadsheet.serve import failures, protocol
from broadsheet.serve.guard import Guard, KeyRing, Limits, Right
from broadsheet.serve.state import ServerState

if TYPE_CHECKING:
    from broadsheet.serve.agents.tools import Agents
    from broadsheet.serve.models.named import Models
    from broadsheet.serve.page import DailyPage
    from broadsheet.serve.processes.workers import Shared

RIGHTS: dict[str, Right] = {
    "/v1/models": "read", "/health": "read", "/metrics": "read", "/openapi.json": "read",
    "/v1/": "infer", "/v2/": "infer", "/tokenize": "infer", "/detokenize": "infer",
    "/api/": "read", "/feed": "read", "GET /": "read", "/mcp": "run",
}  # fmt: skip


def create_app(
    models: Models | None,
    keys: KeyRing | None = None,
    limits: Limits | None = None,
    agents: Agents | None = None,
    page: DailyPage | None = None,
    shared: Shared | None = None,
) -> Any:
    """The server as an ASGI app, behind its guard.

    Args:
        models: None: there are none, and no routes of theirs.
        agents: the tools that it gives at /mcp, whose trials it stops at its end; without them there is no such route.
        page: the daily page, which asks its sources meanwhile, and whose runs it stops at its end.
        shared: what it has in common with other processes of the same server; None: there are none.
    """
    state, limits = ServerState(models, shared), limits or Limits()
    tools = _tools(agents, limits, state) if agents else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        rounds = page.rounds if page else None
        if rounds:
            rounds.start()
        if tools:
            async with tools.running():
                yield
        else:
            yield
        if rounds:
            await asyncio.to_thread(rounds.end)
        for jobs in {id(each.jobs): each.jobs for each in (agents, page) if each}.values():
            await asyncio.to_thread(jobs.close)
        await asyncio.to_thread(state.models.close)

    told: dict[int | str, Any] = {
        status: {"model": protocol.Failure, "description": what} for status, what in failures.STATUSES.items()
    }
    app = FastAPI(
        title="broadsheet",
        version=__version__,
        docs_url=None,  # its page loads from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses=told,
        generate_unique_id_function=lambda route: route.name,
    )
    _schema(app)
    app.state.serving = state
    failures.install(app)
    _about(app, state)
    if models is not None:
        from broadsheet.serve.models import routes

        routes.install(app, state)
    if tools:
        app.router.add_route(tools.path, tools, methods=["POST"])
    keys, token = keys or KeyRing(), shared.token if shared else secrets.token_urlsafe(32)
    guard = Guard(app, keys, limits, RIGHTS, state.metrics.ended, token)
    if page:
        page.install(app, guard, lambda: state.draining, shared)
    return guard


def _tools(agents: Agents, limits: Limits, state: ServerState) -> Any:
    from broadsheet.serve.agents.route import AgentRoute

    return AgentRoute(agents, limits.body_bytes, lambda: state.draining)


def _schema(app: FastAPI) -> None:
    """The schema without FastAPI's own form of a refusal, which is not ours."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        schema = made()
        for methods in schema["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _about(app: FastAPI, state: ServerState) -> None:
    @app.get("/v1/models")
    async def models() -> Any:
        """What is served, and what is known of each."""
        rows: dict[str, dict[str, Any]] = {}
        for each in state.models:
            first = {
                "id": each.name,
                "object": "model",
                "created": state.started,
                "owned_by": "broadsheet",
                "kinds": [],
            }
            row = rows.setdefault(each.name, first)
            row["kinds"].append(each.kind)
            row |= each.about
        return {"object": "list", "data": list(rows.values())}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Any:
        for row in (await models())["data"]:
            if row["id"] == name:
                return row
        raise HTTPException(404, "no such model here")

    @app.get("/health/live")
    async def live() -> Any:
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready() -> Any:
        if state.draining:
            raise HTTPException(503, "the server is closing")
        for each in state.models:
            if not await each.ready():
                raise HTTPException(503, f"the server of {each.name} does not answer")
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")

"""The routes: OpenAI's, Cohere's and Jina's, and our own, over models that are served by name.

Knows: requests and answers as JSON. Does not know: how models run (`engine`), who may ask (`guard`).
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from broadsheet import __version__
from broadsheet.console import InputError
from broadsheet.serve import protocol
from broadsheet.serve.agentroute import AgentRoute
from broadsheet.serve.agents import Agents
from broadsheet.serve.engine import ClosingError, FullError
from broadsheet.serve.guard import Guard, KeyRing, Limits, Right
from broadsheet.serve.metrics import Metrics
from broadsheet.serve.named import Models
from broadsheet.serve.protocol import usage
from broadsheet.serve.remote import BackendError
from broadsheet.serve.served import Checker, Encoder, Ranker, Served
from broadsheet.serve.writer import Answered, Writer

if TYPE_CHECKING:
    from broadsheet.serve.workers import Shared

RIGHTS: dict[str, Right] = {
    "/v1/models": "read", "/health": "read", "/metrics": "read", "/openapi.json": "read",
    "/v1/": "infer", "/v2/": "infer", "/tokenize": "infer", "/detokenize": "infer",
}  # fmt: skip
_STATUSES = {
    400: "What was asked cannot be done.",
    401: "No key that is known.",
    403: "The key may not, or a browser came from elsewhere.",
    404: "No such model or route.",
    413: "The body is too large.",
    421: "The server is not called by that name.",
    429: "The key has used what it may.",
    500: "The request failed.",
    502: "The server behind this one failed.",
    503: "The queue is full, or the server is closing.",
    504: "The server behind this one does not answer.",
}
Kind = TypeVar("Kind", bound=Served)
T = TypeVar("T")


def create_app(
    models: Models,
    keys: KeyRing | None = None,
    limits: Limits | None = None,
    agents: Agents | None = None,
    shared: Shared | None = None,
) -> Any:
    """The server as an ASGI app, behind its guard.

    Args:
        agents: the tools that it gives at /mcp, whose trials it stops at its end; without them there is no such route.
        shared: what it has in common with other processes of the same server; None: there are none.
    """
    state, limits = _State(models, shared), limits or Limits()
    tools = AgentRoute(agents, limits.body_bytes, lambda: state.draining) if agents else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if tools:
            async with tools.running():
                yield
        else:
            yield
        if agents:
            await asyncio.to_thread(agents.jobs.close)
        await asyncio.to_thread(models.close)

    failures: dict[int | str, Any] = {
        status: {"model": protocol.Failure, "description": told} for status, told in _STATUSES.items()
    }
    app = FastAPI(
        title="broadsheet",
        version=__version__,
        docs_url=None,  # its page loads from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses=failures,
        generate_unique_id_function=lambda route: route.name,
    )
    _schema(app)
    app.state.serving = state
    _errors(app)
    _about(app, state)
    _writing(app, state)
    _vectors(app, state)
    _scores(app, state)
    if tools:
        app.router.add_route(tools.path, tools, methods=["POST"])  # type: ignore[arg-type]
    token = shared.token if shared else ""
    return Guard(app, keys or KeyRing(), limits, RIGHTS, state.metrics.ended, token)


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


class _State:
    """What the routes share."""

    def __init__(self, models: Models, shared: Shared | None) -> None:
        self.models = models
        self.metrics = Metrics(models.queues, shared.folder if shared else None)
        self.draining = False
        self.started = shared.started if shared else int(time.time())

    def get(self, name: str | None, kind: type[Kind]) -> Kind:
        """The model that is asked.

        Raises:
            HTTPException: there is none of that name and kind, or the server is draining.
        """
        if self.draining:
            raise HTTPException(503, "the server is closing", {"retry-after": "5"})
        try:
            found: Kind = self.models.get(name, kind)
        except LookupError:
            names = ", ".join(each.name for each in self.models if isinstance(each, kind))
            raise HTTPException(404, f"no such model here; for this there is: {names or 'none'}") from None
        return found

    def count(self, request: Request, model: Served, read: int, written: int = 0) -> None:
        """Book the tokens of an answer, with the key that asked too."""
        self.metrics.tokens.labels(model.name, "read").inc(read)
        self.metrics.tokens.labels(model.name, "written").inc(written)
        key = getattr(request.state, "key", None)
        if key is not None and key.tokens:
            key.tokens.spend(read + written)


def _errors(app: FastAPI) -> None:
    """Every failure as OpenAI has it, and nothing of what was asked in it."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

    def answer(status: int, message: str, headers: Any = None, **more: Any) -> JSONResponse:
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        return JSONResponse(protocol.error(message, kind, **more), status, headers)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, failure: HTTPException) -> JSONResponse:
        return answer(failure.status_code, str(failure.detail), failure.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, failure: RequestValidationError) -> JSONResponse:
        first = failure.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = first["msg"].removeprefix("Value error, ")
        return answer(400, f"{place}: {message}" if place else message, param=place or None)

    @app.exception_handler(InputError)
    async def bad(request: Request, failure: InputError) -> JSONResponse:
        return answer(400, str(failure))

    @app.exception_handler(FullError)
    async def full(request: Request, failure: FullError) -> JSONResponse:
        return answer(503, str(failure), {"retry-after": str(math.ceil(failure.seconds))})

    @app.exception_handler(ClosingError)
    async def closing(request: Request, failure: ClosingError) -> JSONResponse:
        return answer(503, "the server is closing", {"retry-after": "5"})

    @app.exception_handler(BackendError)
    async def behind(request: Request, failure: BackendError) -> JSONResponse:
        after = {"retry-after": failure.retry_after} if failure.retry_after else None
        return answer(failure.status, str(failure), after)

    @app.exception_handler(Exception)
    async def broken(request: Request, failure: Exception) -> JSONResponse:
        return answer(500, f"the request failed: {type(failure).__name__}")


def _about(app: FastAPI, state: _State) -> None:
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


# Writing


def _writing(app: FastAPI, state: _State) -> None:
    streamed: dict[int | str, Any] = {
        200: {"content": {"text/event-stream": {}}, "description": "Whole, or as events."}
    }

    @app.post("/v1/chat/completions", responses=streamed)
    async def chat(asked: protocol.ChatRequest, request: Request) -> Any:
        """Answer a conversation, as OpenAI's chat completions."""
        return await _answered(state, request, asked)

    @app.post("/v1/completions", responses=streamed)
    async def complete(asked: protocol.CompletionRequest, request: Request) -> Any:
        """Continue texts, as OpenAI's completions."""
        return await _answered(state, request, asked)

    @app.post("/tokenize")
    async def tokenize(asked: protocol.TokenizeRequest) -> Any:
        ids, context = await state.get(asked.model, Writer).tokenize(asked.prompt, asked.add_special_tokens)
        return {"tokens": ids, "count": len(ids), "max_model_len": context}

    @app.post("/detokenize")
    async def detokenize(asked: protocol.DetokenizeRequest) -> Any:
        return {"prompt": await state.get(asked.model, Writer).detokenize(asked.tokens)}


async def _answered(
    state: _State, request: Request, asked: protocol.ChatRequest | protocol.CompletionRequest
) -> Response:
    """The answers, as a stream or whole."""
    writer = state.get(asked.model, Writer)
    answered = await unless_gone(request, writer.answer(asked))

    async def close() -> None:
        await answered.close()
        state.count(request, writer, answered.read, answered.written)  # also what nobody waited for

    if asked.stream:
        return _Events(answered, close)
    try:
        return JSONResponse(await unless_gone(request, answered.whole()))
    finally:
        await close()


class _Events(StreamingResponse):
    """A stream of server-sent events, closed however it ends."""

    def __init__(self, answered: Answered, close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(_events(answered), media_type="text/event-stream", headers={"cache-control": "no-store"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()


async def _events(answered: Answered) -> AsyncIterator[bytes]:
    try:
        async for body in answered.events():
            yield _event(body)
        yield b"data: [DONE]\n\n"
    except BackendError as failure:  # the status is sent already
        yield _event(protocol.error(str(failure), "server_error"))
    except Exception as failure:
        yield _event(protocol.error(f"the request failed: {type(failure).__name__}", "server_error"))


def _event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


async def unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """What is awaited, unless the client goes away before; then it is cancelled.

    Raises:
        HTTPException: the client has gone (499, which nobody reads).
    """
    task = asyncio.ensure_future(answer)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(499, "the client has gone")
    finally:
        watch.cancel()
        task.cancel()


# Vectors and orders


def _vectors(app: FastAPI, state: _State) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(asked: protocol.EmbeddingRequest, request: Request) -> Any:
        """Vectors of texts, as OpenAI's embeddings; `input_type` says that they are queries or documents."""
        encoder = state.get(asked.model, Encoder)
        if asked.dimensions and asked.dimensions > encoder.width:
            raise InputError(f"got dimensions {asked.dimensions}; {encoder.name} has {encoder.width}")
        fitted = await encoder.aside(encoder.fit, asked.inputs, asked.input_type, asked.truncate)
        vectors = await unless_gone(request, encoder.vectors(fitted, asked.input_type))
        if asked.dimensions:  # a shortened vector has length 1 again, as OpenAI's have
            vectors = vectors[:, : asked.dimensions]
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        read = sum(each.tokens for each in fitted)
        state.count(request, encoder, read)
        data = [
            {"object": "embedding", "index": i, "embedding": protocol.vector(row, asked.encoding_format)}
            for i, row in enumerate(vectors)
        ]
        spent = usage(read, truncated=sum(each.cut for each in fitted))
        return JSONResponse({"object": "list", "data": data, "model": encoder.name, "usage": spent})

    @app.post("/v1/rerank")
    async def rerank(asked: protocol.OrderRequest, request: Request) -> Any:
        """Documents in order for a query, as Jina's rerank."""
        ranker, hits, told = await ranked(asked, request)
        results = [
            {"index": hit["corpus_id"], "relevance_score": hit["relevance"]}
            | ({"document": {"text": _text_of(asked.documents[hit["corpus_id"]])}} if asked.return_documents else {})
            for hit in hits
        ]
        return {"model": ranker.name, "results": results, "usage": usage(told["tokens"], truncated=told["cut"])}

    @app.post("/v2/rerank")
    async def rerank_again(asked: protocol.OrderRequest, request: Request) -> Any:
        """Documents in order for a query, as Cohere's rerank."""
        _, hits, told = await ranked(asked, request)
        results = [{"index": hit["corpus_id"], "relevance_score": hit["relevance"]} for hit in hits]
        meta = {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": told["tokens"]},
        }
        return {"id": str(uuid.uuid4()), "results": results, "meta": meta}

    async def ranked(
        asked: protocol.OrderRequest, request: Request
    ) -> tuple[Ranker, list[dict[str, Any]], dict[str, int]]:
        ranker = state.get(asked.model, Ranker)
        documents = [_text_of(each) for each in asked.documents]
        hits, told = await unless_gone(request, ranker.hits(asked.query, documents))
        state.count(request, ranker, told["tokens"])
        return ranker, hits[: asked.top_n], told


def _text_of(document: str | protocol.RankedDocument) -> str:
    """A document's text."""
    return document if isinstance(document, str) else document.text


# Scores


def _scores(app: FastAPI, state: _State) -> None:
    @app.post("/v1/score")
    async def score(asked: protocol.ContinuationsRequest, request: Request) -> Any:
        """The log-probability of each given continuation of a prompt, or answer to a conversation."""
        writer = state.get(asked.model, Writer)
        prompt: Any = asked.prompt
        if not isinstance(prompt, str):
            prompt = [each.plain() for each in prompt]
        rows, read = await unless_gone(request, writer.score([prompt], asked.continuations))
        state.count(request, writer, read)
        data = [{"index": i, "logprob": logprob, "tokens": tokens} for i, (logprob, tokens) in enumerate(rows[0])]
        return {"object": "list", "model": writer.name, "data": data, "usage": usage(read)}

    @app.post("/v1/classify")
    async def classify(asked: protocol.ClassifyRequest, request: Request) -> Any:
        """The likeliest of some labels as the answer to each text, and how likely each of them is."""
        writer = state.get(asked.model, Writer)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        wanted = (
            asked.instruction or f"Which label fits this text: {', '.join(asked.labels)}? Answer with the label alone."
        )
        prompts: list[Any] = [[{"role": "user", "content": f"{wanted}\n\n{text}"}] for text in texts]
        rows, read = await unless_gone(request, writer.score(prompts, asked.labels))
        state.count(request, writer, read)
        data = []
        for i, row in enumerate(rows):
            logs = np.array([logprob for logprob, _ in row])
            shares = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
            best = int(shares.argmax())
            data.append({"index": i, "label": asked.labels[best], "probs": shares.tolist(), "num_classes": len(row)})
        return {"object": "list", "model": writer.name, "data": data, "usage": usage(read)}

    @app.post("/v1/detect")
    async def detect(asked: protocol.DetectRequest, request: Request) -> Any:
        """How machine-written each text looks: higher is more so; null for a text that is too short."""
        checker = state.get(asked.model, Checker)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        values, read = await unless_gone(request, checker.scores(texts))
        state.count(request, checker, read)
        data = [{"index": i, "score": None if math.isnan(value) else value} for i, value in enumerate(values)]
        return {"object": "list", "model": checker.name, "data": data}

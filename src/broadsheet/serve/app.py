"""The routes: OpenAI's, Cohere's and Jina's, and our own, over models that are served by name.

Knows: requests and answers as JSON. Does not know: how models run (`engine`), who may ask (`guard`).
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from broadsheet import __version__
from broadsheet.console import InputError
from broadsheet.serve import protocol
from broadsheet.serve.engine import ClosingError, FullError
from broadsheet.serve.forms import ChatForm, Form, TextForm
from broadsheet.serve.guard import Guard, KeyRing, Limits, Right
from broadsheet.serve.metrics import Metrics
from broadsheet.serve.named import Checker, Encoder, Models, Ranker, Served, Writer
from broadsheet.serve.protocol import usage
from broadsheet.serve.writing import Answers
from broadsheet.teacher.base import Completion, Sampling
from broadsheet.teacher.live import Row

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
    503: "The queue is full, or the server is closing.",
}
Kind = TypeVar("Kind", bound=Served)
T = TypeVar("T")


def create_app(
    models: Models, keys: KeyRing | None = None, limits: Limits | None = None, shared: Shared | None = None
) -> Any:
    """The server as an ASGI app, behind its guard.

    Args:
        shared: what it has in common with other processes of the same server; None: there are none.
    """
    state = _State(models, shared)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
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
    token = shared.token if shared else ""
    return Guard(app, keys or KeyRing(), limits or Limits(), RIGHTS, state.metrics.ended, token)


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
        self.metrics = Metrics(models.engines, shared.folder if shared else None)
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
        writer = state.get(asked.model, Writer)
        messages = [{"role": _role(each.role), "content": each.text} for each in asked.messages]
        wanted = asked.max_completion_tokens or asked.max_tokens
        top = asked.top_logprobs or 0 if asked.logprobs else 0
        rows, cut = _rows(writer, [messages], asked, wanted, logprobs=asked.logprobs, top=top)
        form = ChatForm(f"chatcmpl-{uuid.uuid4().hex}", writer, asked.logprobs)
        return await _answered(state, request, writer, rows, cut, asked, form)

    @app.post("/v1/completions", responses=streamed)
    async def complete(asked: protocol.CompletionRequest, request: Request) -> Any:
        """Continue texts, as OpenAI's completions."""
        writer = state.get(asked.model, Writer)
        given: Any = asked.prompt
        several = isinstance(given, list) and not isinstance(given[0], int)
        prompts = given if several else [given]
        noted = asked.logprobs is not None
        rows, cut = _rows(writer, prompts, asked, asked.max_tokens or 16, logprobs=noted, top=asked.logprobs or 0)
        form = TextForm(f"cmpl-{uuid.uuid4().hex}", writer, noted)
        return await _answered(state, request, writer, rows, cut, asked, form)

    @app.post("/tokenize")
    async def tokenize(asked: protocol.TokenizeRequest) -> Any:
        writer = state.get(asked.model, Writer)
        ids = writer.local.tokenizer(asked.prompt, add_special_tokens=asked.add_special_tokens, verbose=False)[
            "input_ids"
        ]
        return {"tokens": ids, "count": len(ids), "max_model_len": writer.local.context}

    @app.post("/detokenize")
    async def detokenize(asked: protocol.DetokenizeRequest) -> Any:
        writer = state.get(asked.model, Writer)
        writer.check(asked.tokens)
        return {"prompt": writer.local.tokenizer.decode(asked.tokens, clean_up_tokenization_spaces=False)}


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _rows(
    writer: Writer,
    prompts: Sequence[Any],
    asked: protocol.WritingRequest,
    wanted: int | None,
    *,
    logprobs: bool,
    top: int,
) -> tuple[list[Row], int]:
    """An answer's row for each prompt and sample, and the tokens that prompts lost."""
    seed = asked.seed if asked.seed is not None else secrets.randbits(63)
    rows, lost = [], 0
    for prompt in prompts:
        read = writer.read(prompt, wanted, asked.truncate)
        lost += read.cut
        sampling = Sampling(asked.temperature, asked.top_p, read.limit, asked.stops, 0, logprobs)
        rows += [Row(read.ids, read.limit, f"{seed}/{i}", sampling, read.transcript, top) for i in range(asked.n)]
    return rows, lost


async def _answered(
    state: _State,
    request: Request,
    writer: Writer,
    rows: list[Row],
    cut: int,
    asked: protocol.WritingRequest,
    form: Form,
) -> Any:
    """The answers in their form, as a stream or whole."""
    answers = Answers(writer.engine, writer.local.reader, rows, pieces=asked.stream)
    prompt = sum(len(row.prompt) for row in rows[:: asked.n])

    def counted(completions: Sequence[Completion]) -> dict[str, int]:
        written = sum(each.tokens or 0 for each in completions)
        state.count(request, writer, prompt, written)
        return usage(prompt, written, cut)

    if not asked.stream:
        done = await unless_gone(request, answers.whole())
        return form.whole(answers, done, counted(done))

    async def events() -> AsyncIterator[bytes]:
        done: list[Completion] = []
        told = bool(asked.stream_options and asked.stream_options.include_usage)
        try:
            for first in form.first(len(rows)):
                yield _event(first)
            async for piece in answers:
                done += [piece.completion] if piece.completion else []
                yield _event(form.piece(answers, piece))
            spent = counted(done)
            if told:
                yield _event(form.body(choices=[], usage=spent))
            yield b"data: [DONE]\n\n"
        except Exception as failure:  # the status is sent already
            yield _event(protocol.error(f"the request failed: {type(failure).__name__}", "server_error"))

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})


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
        given: Any = asked.input
        several = isinstance(given, list) and not isinstance(given[0], int)
        texts = [each if isinstance(each, str) else encoder.text(each) for each in (given if several else [given])]
        width = encoder.width
        if asked.dimensions and asked.dimensions > width:
            raise InputError(f"got dimensions {asked.dimensions}; {encoder.name} has {width}")
        fitted = [encoder.fit(text, asked.truncate) for text in texts]
        items = [(text, max(1, tokens)) for text, tokens, _ in fitted]
        rows = await unless_gone(request, encoder.asked(encoder.by_type[asked.input_type], items))
        vectors = np.stack(rows)[:, : asked.dimensions]
        if asked.dimensions:  # a shortened vector has length 1 again, as OpenAI's have
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        read, lost = sum(tokens for _, tokens, _ in fitted), sum(cut for *_, cut in fitted)
        state.count(request, encoder, read)
        data = [
            {"object": "embedding", "index": i, "embedding": protocol.vector(row, asked.encoding_format)}
            for i, row in enumerate(vectors)
        ]
        return {"object": "list", "data": data, "model": encoder.name, "usage": usage(read, truncated=lost)}

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
        cost = max(1, (len(asked.query) + sum(map(len, documents))) // 4)
        [(hits, told)] = await unless_gone(request, ranker.asked(ranker.ranking, [((asked.query, documents), cost)]))
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
            prompt = [{"role": _role(each.role), "content": each.text} for each in prompt]
        rows, read = await scored(writer, request, [prompt], asked.continuations)
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
        prompts = [[{"role": "user", "content": f"{wanted}\n\n{text}"}] for text in texts]
        rows, read = await scored(writer, request, prompts, asked.labels)
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
        items = [(text, max(1, len(text) // 4)) for text in texts]
        values = await unless_gone(request, checker.asked(checker.scoring, items))
        read = sum(tokens for _, tokens in items)
        state.count(request, checker, read)
        data = [{"index": i, "score": None if math.isnan(value) else value} for i, value in enumerate(values)]
        return {"object": "list", "model": checker.name, "data": data}

    async def scored(
        writer: Writer, request: Request, prompts: Sequence[Any], answers: Sequence[str]
    ) -> tuple[list[list[tuple[float, int]]], int]:
        parts = [writer.pairs(prompt, answers) for prompt in prompts]
        items = [each for of_prompt in parts for each in of_prompt]
        found = iter(await unless_gone(request, writer.asked(writer.scoring, items)))
        read = sum(len(ids) + sum(map(len, choices)) for (ids, choices), _ in items)
        state.count(request, writer, read)
        return [[score for _ in of_prompt for score in next(found)] for of_prompt in parts], read

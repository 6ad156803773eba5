"""The routes of models: OpenAI's, Cohere's and Jina's, and our own.

Knows: requests and answers as JSON. Does not know: how models run (`engine`), who may ask (`guard`).
"""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from broadsheet.console import InputError
from broadsheet.serve import protocol
from broadsheet.serve.failures import BackendError
from broadsheet.serve.models.served import Checker, Encoder, Ranker
from broadsheet.serve.models.writer import Answered, Writer
from broadsheet.serve.protocol import usage
from broadsheet.serve.state import ServerState

T = TypeVar("T")


def install(app: FastAPI, state: ServerState) -> None:
    """Give an app these routes."""
    _writing(app, state)
    _vectors(app, state)
    _scores(app, state)


# Writing


def _writing(app: FastAPI, state: ServerState) -> None:
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
    state: ServerState, request: Request, asked: protocol.ChatRequest | protocol.CompletionRequest
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


def _vectors(app: FastAPI, state: ServerState) -> None:
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


def _scores(app: FastAPI, state: ServerState) -> None:
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

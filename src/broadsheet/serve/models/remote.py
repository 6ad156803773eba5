"""Models that write elsewhere, behind this server's guard: another server of OpenAI's protocol, or llama.cpp.

Knows: the teacher's endpoints, what they are asked and how they fail. Does not know: keys and rights of this server.
Requests are passed on with all that was asked, also what nothing here does (tools, penalties, images); answers come
back as the other server wrote them, under the model's name here. Its address and its key reach no client.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import openai

from broadsheet.console import InputError
from broadsheet.serve.failures import BackendError, ClosingError, FullError
from broadsheet.serve.models.writer import Answered, Writer
from broadsheet.serve.protocol import ChatRequest, CompletionRequest, WritingRequest
from broadsheet.teacher import protocol
from broadsheet.teacher.base import Meter, Prompt, Score, ScoreJob, Usage

if TYPE_CHECKING:
    from broadsheet.teacher.endpoint import Endpoint
    from broadsheet.teacher.llamacpp import LlamaCpp

_TOP = 20  # the most alternatives per token that the protocol lets one ask for
_MOST = 1024  # tokens that an answer is taken to have where its length is not limited
_HEALTHY = 5.0  # seconds for which an answer about its health holds
_PATIENCE = 3.0  # seconds in which it has to give one


class Room:
    """How many tokens are asked of another server at once.

    Args:
        queue_tokens: prompts, roughly, and answers at full length.
    """

    def __init__(self, name: str, queue_tokens: int = 131_072) -> None:
        self.name, self.queue_tokens = name, queue_tokens
        self._queued = 0
        self._watchers: list[Callable[[int], object]] = []
        self._closing = False

    @property
    def queued(self) -> int:
        """Tokens that were asked for and are not there."""
        return self._queued

    @contextmanager
    def take(self, cost: int) -> Iterator[None]:
        """Keep room for a request.

        Raises:
            FullError: there is none.
            ClosingError: nothing more is taken.
        """
        if self._closing:
            raise ClosingError
        if self._queued and self._queued + cost > self.queue_tokens:
            raise FullError(5.0)
        self._wait(cost)
        try:
            yield
        finally:
            self._wait(-cost)

    def watch(self, changed: Callable[[int], object]) -> None:
        """Have a function called with each change of what was asked, in tokens; and now with what was."""
        self._watchers.append(changed)
        changed(self._queued)

    def _wait(self, tokens: int) -> None:
        self._queued += tokens
        for changed in self._watchers:
            changed(tokens)

    def close(self, seconds: float | None = None) -> None:
        """Take nothing more."""
        self._closing = True


@dataclass(eq=False)
class RemoteWriter(Writer):
    """A model behind another server."""

    engine: Room
    endpoint: Endpoint = None  # type: ignore[assignment]
    _client: openai.AsyncOpenAI | None = field(default=None, init=False, repr=False)
    _seen: tuple[float, bool] = field(default=(0.0, False), init=False, repr=False)

    @property
    def client(self) -> openai.AsyncOpenAI:
        """Of the other server, in this thread's event loop."""
        if self._client is None:
            self._client = self.endpoint.async_client()
        return self._client

    async def answer(self, asked: ChatRequest | CompletionRequest) -> Answered:
        body = {"model": self.endpoint.model, **self._body(asked), **self.endpoint.extra}
        path = "/chat/completions" if isinstance(asked, ChatRequest) else "/completions"
        made = RemoteAnswers(self, asked, path, {name: value for name, value in body.items() if value is not None})
        try:
            await made.begin()
        except BaseException:
            await made.close()
            raise
        return made

    def _body(self, asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
        given = asked.passed_on()
        return given if isinstance(asked, ChatRequest) else {"max_tokens": 16, **given}

    async def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> tuple[list[list[Score]], int]:
        made = [await self._scores(prompt, answers) for prompt in prompts]
        return [scores for scores, _ in made], sum(read for _, read in made)

    async def _scores(self, prompt: Prompt, answers: Sequence[str]) -> tuple[list[Score], int]:
        """Whole answers after a text, first tokens after a conversation, as `Endpoint` says."""
        asked: dict[str, Any] = {"model": self.endpoint.model, "max_tokens": 1, "temperature": 0, **self.endpoint.extra}
        if isinstance(prompt, str):
            asked |= {"prompt": [prompt + answer for answer in answers], "echo": True, "logprobs": 1}
            body = await self.post("/completions", asked, _cost(prompt, 1) * len(answers))
            scores = self.parsed(lambda: protocol.echoed(body, prompt, answers))
        else:
            asked |= {"messages": prompt, "logprobs": True, "top_logprobs": _TOP}
            body = await self.post("/chat/completions", asked, _cost(prompt, 1))
            scores = self.parsed(lambda: protocol.first_tokens(body, answers))
        return scores, (protocol.usage(body) or (0, 0))[0]

    async def tokenize(self, text: str, special: bool) -> tuple[list[int], int | None]:
        """As vLLM does it, whose route lies beside /v1."""
        body = await self._beside("/tokenize", {"prompt": text, "add_special_tokens": special})
        return self.parsed(lambda: ([int(token) for token in body["tokens"]], body.get("max_model_len")))

    async def detokenize(self, ids: Sequence[int]) -> str:
        body = await self._beside("/detokenize", {"tokens": list(ids)})
        return self.parsed(lambda: str(body["prompt"]))

    async def ready(self) -> bool:
        """Whether the other server answers; asked for at most every few seconds."""
        since, well = self._seen
        if time.monotonic() - since > _HEALTHY:
            try:
                await self.client.get("/models", cast_to=str, options={"timeout": _PATIENCE})
                well = True
            except openai.APIStatusError as error:
                well = error.status_code < 500
            except openai.APIError:
                well = False
            self._seen = time.monotonic(), well
        return well

    async def post(self, path: str, body: dict[str, Any], cost: int) -> dict[str, Any]:
        """What the other server answers.

        Raises:
            BackendError: it fails or refuses.
        """
        with self.engine.take(cost):
            try:
                text = await self.client.post(path, cast_to=str, body=body)
            except openai.APIError as error:
                failure = self.failure(error)
            else:
                answer: dict[str, Any] = self.parsed(lambda: dict(json.loads(text)))
                return answer
        raise failure  # outside, since what the client raises carries the request and with it the key

    def failure(self, error: openai.APIError) -> BackendError:
        """What a client of ours is told of it."""
        if isinstance(error, openai.APIStatusError):
            status, after = error.status_code, error.response.headers.get("retry-after")
            if status in (400, 413, 422):
                return BackendError(f"the server of {self.name} says: {self.endpoint.clean(error.message)}", 400)
            if status in (429, 503):
                return BackendError(f"the server of {self.name} is busy", 503, after or "5")
            told = {401: "refuses its key", 403: "refuses its key", 404: "has no such model or route"}
            return BackendError(f"the server of {self.name} {told.get(status, f'failed (HTTP {status})')}", 502)
        if isinstance(error, openai.APITimeoutError):
            return BackendError(f"the server of {self.name} does not answer", 504)
        if isinstance(error, openai.APIConnectionError):
            return BackendError(f"the server of {self.name} cannot be reached", 502)
        return BackendError(f"the server of {self.name} failed", 502)

    async def _beside(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        url = self.endpoint.url.removesuffix("/v1") + path
        return await self.post(url, {"model": self.endpoint.model, **body}, 1)

    def parsed(self, parse: Callable[[], Any]) -> Any:
        """What a function makes of an answer; a `BackendError` where that does not follow the protocol."""
        try:
            return parse()
        except InputError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError):
            failure = BackendError(f"the server of {self.name} does not follow the protocol", 502)
        raise failure


@dataclass(eq=False)
class LlamaWriter(RemoteWriter):
    """A GGUF file read by llama.cpp in this process, which listens on loopback."""

    endpoint: LlamaCpp = None  # type: ignore[assignment]

    def _body(self, asked: ChatRequest | CompletionRequest) -> dict[str, Any]:
        if asked.n > 1:
            raise InputError(f"{self.name} writes one answer at a time; got n={asked.n}: ask for each")
        return super()._body(asked)

    async def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> tuple[list[list[Score]], int]:
        jobs = [ScoreJob(prompt, tuple(answers)) for prompt in prompts]
        spent = Usage()
        meter = Meter(spent, None)

        def score() -> dict[int, list[Score]]:
            return {place: scores for batch in self.endpoint.score(jobs, meter) for place, scores in batch}

        with self.engine.take(sum(_cost(prompt, len(answers)) for prompt in prompts)):
            try:
                found = await asyncio.to_thread(score)
            finally:
                meter.stop()  # where nobody waits for it
        return [found[i] for i in range(len(jobs))], spent.prompt_tokens

    async def tokenize(self, text: str, special: bool) -> tuple[list[int], int | None]:
        return await asyncio.to_thread(self.endpoint.tokenize, text, special=special), self.endpoint.context

    async def detokenize(self, ids: Sequence[int]) -> str:
        return await asyncio.to_thread(self.endpoint.detokenize, ids)


class RemoteAnswers(Answered):
    """Answers as another server writes them."""

    def __init__(self, writer: RemoteWriter, asked: WritingRequest, path: str, body: dict[str, Any]) -> None:
        self._writer, self._asked, self._path, self._body = writer, asked, path, body
        self._held = ExitStack()
        self._stream: openai.AsyncStream[Any] | None = None

    async def begin(self) -> None:
        """Ask, where it is a stream: a refusal comes before the first event."""
        if not self._asked.stream:
            return
        self._held.enter_context(self._writer.engine.take(self._cost))
        body = {**self._body, "stream_options": {"include_usage": True}}
        try:
            self._stream = await self._writer.client.post(
                self._path,
                cast_to=object,
                body={**body, "stream": True},
                stream=True,
                stream_cls=openai.AsyncStream[Any],
            )
            return
        except openai.APIError as error:
            failure = self._writer.failure(error)
        raise failure

    async def whole(self) -> dict[str, Any]:
        body = await self._writer.post(self._path, self._body, self._cost)
        self._count(body)
        return {**body, "model": self._writer.name}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        assert self._stream is not None
        try:
            async for event in self._stream:
                body = self._writer.parsed(partial(dict, event))
                self._count(body)
                if not self._asked.tells_usage:
                    body.pop("usage", None)
                if body.get("choices") or self._asked.tells_usage:
                    yield {**body, "model": self._writer.name}
            return
        except openai.APIError as error:
            failure = self._writer.failure(error)
        raise failure

    async def close(self) -> None:
        with self._held:  # whatever happens to the wait, cancelled as it may be
            if self._stream is not None:
                with suppress(openai.APIError, OSError):
                    await self._stream.close()

    @property
    def _cost(self) -> int:
        wanted = self._asked.max_tokens or getattr(self._asked, "max_completion_tokens", None) or _MOST
        return _cost(self._body.get("messages", self._body.get("prompt")), wanted * self._asked.n)

    def _count(self, body: dict[str, Any]) -> None:
        """Note what was used, where it is told; else an event is taken for a token."""
        counts = self._writer.parsed(lambda: protocol.usage(body))
        if counts:
            self.read, self.written = counts
        else:
            self.written += 1


def _cost(prompt: Any, answer: int) -> int:
    """About how many tokens a request takes."""
    return len(json.dumps(prompt)) // 4 + answer

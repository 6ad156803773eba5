"""A teacher behind HTTP: any server that speaks the OpenAI protocol (OpenAI, vLLM, llama-server, Ollama, …).

Knows: requests, answers, and which failures deserve another try. Does not know: tokens and templates; the server does.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai

from broadsheet.console import InputError, say
from broadsheet.redaction import redacted, redacted_values
from broadsheet.teacher import protocol
from broadsheet.teacher.base import Completion, Meter, Prompt, Sampling, Score, ScoreJob, TeacherJob
from broadsheet.teacher.bounds import HEADERS, bounded
from broadsheet.teacher.store import digest

T = TypeVar("T")
R = TypeVar("R")

_TOP = 20  # the most alternatives per token that the protocol lets one ask for
_LONGEST_WAIT = 120.0  # seconds


_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: no text holds it, and no file keeps it


class _RejectedError(InputError):
    """The server has refused the request for good."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Endpoint:
    """A backend over an OpenAI-compatible endpoint, through the official client.

    Time-outs, dropped connections, bodies that do not follow the protocol, and the statuses 408, 409, 429 and 5xx are
    tried again: after `Retry-After` where the server sends it (all workers wait), else after `backoff`, doubled each
    time, with jitter. Any other status fails at once. The `n` answers to a prompt are asked for in one request; a
    server that gives fewer, or refuses, is asked for one at a time.

    Scores: for conversations, the log-probability of each choice's *first token*, from the 20 alternatives of one
    generated token; the choices must differ in it and all be among those 20. With `raw`, the whole choice's, from
    `/completions` with `echo`, where the server has it (vLLM does; OpenAI and llama-server do not).

    Parameters:
        model: the model's name there.
        url: the base URL, most often ending in /v1; by default `$OPENAI_BASE_URL`, else OpenAI's.
        key: by default `$OPENAI_API_KEY`. It is never written to logs, caches or errors.
        concurrency: requests in flight at once.
        timeout: seconds without an answer, and seconds that an answer may take to come, after which a request counts
            as lost.
        retries: tries after the first.
        backoff: seconds before the first retry.
        extra: fields to add to each request's body, or to remove where the value is None; part of the cache key. For
            example `{"top_k": 0, "min_p": 0}` for a llama-server (whose defaults would narrow the sampling), or
            `{"max_tokens": None, "max_completion_tokens": 500}` for OpenAI's reasoning models.

    Raises:
        InputError: no model name, no key for OpenAI's own URL, a URL that is not http(s) or carries credentials.
    """

    def __init__(
        self,
        model: str,
        url: str | None = None,
        key: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 0.5,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if not model:
            raise InputError("no model name: expected 'endpoint:MODEL', with the name the server knows it by")
        self.model = model
        self.url = (url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1").rstrip("/")
        self._host = _host(self.url)
        self._key = (key or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError("the key holds characters that no HTTP header can carry; copy it again")
        if not self._key and self._host == "api.openai.com":
            raise InputError(
                "no key for api.openai.com: set OPENAI_API_KEY, or url or OPENAI_BASE_URL for another endpoint"
            )
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.backoff = backoff
        self.extra = dict(extra or {})
        transport = openai.DefaultHttpxClient(
            trust_env=self._trusts_proxies, event_hooks={"response": [bounded(timeout)]}
        )
        self._client = openai.OpenAI(**self._connection, http_client=transport, default_headers=HEADERS)
        self._jitter = random.Random()
        self._resume = 0.0  # no request before this time.monotonic(): the server has asked for a pause
        self._many = True  # until the server has shown that it ignores or refuses n

    def async_client(self) -> openai.AsyncOpenAI:
        """A client of the same endpoint for asyncio, which tries once; its errors carry the key."""
        transport = openai.DefaultAsyncHttpxClient(trust_env=self._trusts_proxies)
        return openai.AsyncOpenAI(**self._connection, http_client=transport)

    @property
    def key(self) -> str:
        """Its key; not to be shown to anybody."""
        return self._key

    @property
    def _connection(self) -> dict[str, Any]:
        return {"api_key": self._key or "none", "base_url": self.url, "timeout": self.timeout, "max_retries": 0}

    @property
    def _trusts_proxies(self) -> bool:
        """Whether a proxy named in the environment is used: it is not for this machine itself."""
        return self._host not in ("127.0.0.1", "localhost", "::1")

    def identity(self) -> dict[str, Any]:
        """URL, model name and extra fields. When another model moves in behind the name, pass cache=False."""
        return {"endpoint": self.url, "model": self.model, "extra": self.extra}

    def read(self, prompts: Sequence[Prompt], reserve: int | Sequence[str]) -> list[Any]:
        """The prompts as they are: the server has the template and the tokenizer."""
        return list(prompts)

    def generate(
        self, jobs: Sequence[TeacherJob], sampling: Sampling, meter: Meter
    ) -> Iterator[list[tuple[int, int, Completion]]]:
        """Yield the answers of each request as it comes back; then raise the first error there was."""
        tasks: deque[tuple[int, tuple[int, ...]]] = deque()

        def ask(position: int, samples: tuple[int, ...]) -> None:
            groups = [samples] if self._many and samples else [(sample,) for sample in samples]
            tasks.extend((position, group) for group in groups)

        for position, job in enumerate(jobs):
            ask(position, job.samples)

        def work(task: tuple[int, tuple[int, ...]]) -> list[Completion]:
            position, samples = task
            return self._ask(jobs[position], samples, sampling, meter)

        for (position, samples), completions in self._run(work, tasks, meter):
            ask(position, samples[len(completions) :])
            yield [(position, sample, answer) for sample, answer in zip(samples, completions, strict=False)]

    def score(self, jobs: Sequence[ScoreJob], meter: Meter) -> Iterator[list[tuple[int, list[Score]]]]:
        """Yield each prompt's scores as they come back."""

        def work(position: int) -> list[Score]:
            reading, choices = jobs[position].reading, jobs[position].choices
            asked: dict[str, Any] = {"max_tokens": 1, "temperature": 0}
            if isinstance(reading, str):
                asked |= {"prompt": [reading + choice for choice in choices], "echo": True, "logprobs": 1}
                return self._post("/completions", asked, lambda body: protocol.echoed(body, reading, choices), meter)
            asked |= {"messages": reading, "logprobs": True, "top_logprobs": _TOP}
            return self._post("/chat/completions", asked, lambda body: protocol.first_tokens(body, choices), meter)

        for position, scores in self._run(work, deque(range(len(jobs))), meter):
            yield [(position, scores)]

    def _ask(self, job: TeacherJob, samples: tuple[int, ...], sampling: Sampling, meter: Meter) -> list[Completion]:
        """One request for all of `samples`: as many answers as the server gives, none if it refuses to give several."""
        chat = not isinstance(job.reading, str)
        body = {
            "messages" if chat else "prompt": job.reading,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": int(digest([job.draw, samples[0]])[:8], 16) >> 1,  # servers expect a signed 32-bit number
            "stop": list(sampling.stop) or None,
            "logprobs": (True if chat else 1) if sampling.logprobs else None,
            "n": len(samples) if len(samples) > 1 else None,
        }
        try:
            answers = self._post("/chat/completions" if chat else "/completions", body, protocol.completions, meter)
        except _RejectedError as error:
            if len(samples) == 1 or error.status not in (400, 422):
                raise
            answers = []
        completions = answers[: len(samples)]
        if len(completions) < len(samples) and self._many:
            self._many = False
            say(f"{self._host} gives one answer per request: asking for each of the n answers by itself")
        return completions

    def _run(self, work: Callable[[T], R], tasks: deque[T], meter: Meter) -> Iterator[tuple[T, R]]:
        """Yield each task with what `work` makes of it, `concurrency` at a time, as they finish.

        Whoever iterates may add tasks meanwhile. After a failure no task starts; those in flight are still yielded,
        then the first failure is raised.
        """
        failure: BaseException | None = None
        running: dict[Future[R], T] = {}
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="teacher")
        try:
            while running or (tasks and failure is None):
                while tasks and failure is None and len(running) < self.concurrency:
                    task = tasks.popleft()
                    running[pool.submit(work, task)] = task
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running.pop(future)
                    if error := future.exception():
                        failure = failure or error
                        meter.stop()
                    else:
                        yield task, future.result()
        finally:
            meter.stop()
            pool.shutdown(wait=False)
        if failure:
            raise failure

    def _post(self, path: str, fields: Mapping[str, Any], parse: Callable[[dict[str, Any]], R], meter: Meter) -> R:
        """`parse` of the body that comes back, after as many tries as it takes."""
        merged = {"model": self.model, **fields, **self.extra}
        body = {name: value for name, value in merged.items() if value is not None}
        for attempt in range(self.retries + 1):
            if attempt and self._resume <= time.monotonic():
                meter.wait(self.backoff * 2 ** (attempt - 1) * (0.5 + self._jitter.random()))
            while (pause := self._resume - time.monotonic()) > 0:
                meter.wait(pause)
            meter.start()
            status, lasting, retry_after = 0, False, None
            try:
                answer = self._read(self._client.post(path, cast_to=str, body=body))
                self._book(answer, meter)
                return parse(answer)
            except openai.APIStatusError as error:
                status, problem = error.status_code, f"HTTP {error.status_code}: {self.clean(error.message)}"
                # A quota that is used up comes as 429 and does not come back by waiting.
                lasting = not (status in (408, 409, 429) or status >= 500) or error.code == "insufficient_quota"
                retry_after = error.response.headers.get("retry-after")
            except openai.APITimeoutError:
                problem = f"no answer within {self.timeout:g} s"
            except openai.APIConnectionError as error:
                problem = f"the connection failed ({self.clean(str(error.__cause__ or error))})"
            except InputError:
                raise
            except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
                problem = f"a body that does not follow the protocol ({self.clean(repr(error))})"
            # Raised outside the handlers: their exceptions carry the request, and with it the key.
            if lasting:
                raise _RejectedError(
                    f"{self.url}, model {self.model!r}: {problem}; {_REMEDIES.get(status, 'mend the request')}", status
                )
            self._pause(retry_after, problem)
        raise InputError(
            f"{self.url}, model {self.model!r}: no answer in {self.retries + 1} tries, the last: {problem}; "
            "run again when it is well, what was answered is kept"
        )

    def _read(self, body: str) -> dict[str, Any]:
        """The JSON of a body, without the key, should the server say it; half a surrogate pair becomes U+FFFD."""
        if "\\u" in body:
            body = _HALF.sub("\ufffd", json.dumps(json.loads(body), ensure_ascii=False))
        found: dict[str, Any] = redacted_values(json.loads(body), [self._key])
        return found

    def _book(self, answer: dict[str, Any], meter: Meter) -> None:
        counts = protocol.usage(answer)
        if counts:
            meter.spend(*counts)
        elif meter.counts_tokens and "choices" in answer:
            raise InputError(
                f"{self._host} does not say how many tokens it used, so a token budget cannot be kept; "
                "use Budget(requests=…)"
            )

    def _pause(self, retry_after: str | None, problem: str) -> None:
        """Hold all workers back for as long as the server asks."""
        seconds = _seconds(retry_after)
        if seconds > _LONGEST_WAIT:
            raise InputError(
                f"{self._host} asks to come back in {seconds:,.0f} s ({problem}); "
                "run again then, what was answered is kept"
            )
        resume = time.monotonic() + seconds
        if seconds >= 5 and resume > self._resume + 1:
            say(f"{self._host} asks for a pause of {seconds:.0f} s ({problem})")
        self._resume = max(self._resume, resume)

    def clean(self, text: str) -> str:
        """`text` on one line, not too long, without the key."""
        line = " ".join(redacted(text, [self._key]).split())
        return line if len(line) <= 300 else line[:300] + " …"


_REMEDIES = {
    400: "mend the request",
    401: "check the key (key or OPENAI_API_KEY)",
    403: "check the key and what it may use",
    404: "check the model's name and the URL, which most often ends in /v1",
    429: "check the account",
}


def _host(url: str) -> str:
    """The host of `url`, which is checked and never shown whole: it may carry a password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise InputError("cannot use the endpoint's URL: expected http(s)://host[:port]/v1; set url or OPENAI_BASE_URL")
    if parts.username or parts.password or parts.query:
        raise InputError(f"the URL of {host} carries credentials or a query; pass the key as key or OPENAI_API_KEY")
    return host


def _seconds(retry_after: str | None) -> float:
    """`Retry-After` in seconds, given as a number or a date; 0 where it is absent or neither."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(retry_after or "") - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0

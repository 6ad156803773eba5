"""What a teacher and its backends say to each other: settings, jobs, answers, accounts, and the `Backend` interface.

A backend knows one way to run a model. It does not know the cache, nor which answers were already there: it is handed
only what is missing, asks its `Meter` before each request, and yields answers as they come.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from broadsheet.console import InputError

Message = Mapping[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""

Conversation = str | Sequence[Message]
"""Messages that end with the user's; a plain `str` is one user message."""

Prompt = list[dict[str, str]] | str
"""What a backend reads: a conversation for the chat template, or a `str` to be continued as it stands."""


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token as text, and its natural-log probability under the model."""

    token: str
    logprob: float


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: the answer, without the stop string or end-of-text token that ended it.
        finish_reason: "stop" (ended by itself or at a stop string), "length" (`max_tokens` or the context is full), or
            what an endpoint says ("content_filter", …).
        tokens: tokens generated, the one that ended the answer included; None where an endpoint that was asked for
            several answers at once tells only their sum (`Teacher.usage` counts that sum).
        prompt_tokens: tokens read; None where an endpoint does not say.
        logprobs: one entry per token of `text` where they were asked for and the backend has them, else None.
    """

    text: str
    finish_reason: str
    tokens: int | None
    prompt_tokens: int | None
    logprobs: list[TokenLogprob] | None = None

    def to_json(self) -> dict[str, Any]:
        """This answer as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Completion:
        """The answer that `to_json` wrote."""
        logprobs = value["logprobs"]
        return cls(**{**value, "logprobs": logprobs and [TokenLogprob(**entry) for entry in logprobs]})


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; all of it is part of the cache key."""

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int
    logprobs: bool

    def __post_init__(self) -> None:
        checks = {
            "temperature": (self.temperature, self.temperature >= 0, "a number ≥ 0 (0 = greedy)"),
            "top_p": (self.top_p, 0 < self.top_p <= 1, "a number in (0, 1]"),
            "max_tokens": (self.max_tokens, self.max_tokens >= 1, "a whole number ≥ 1"),
            "stop": (self.stop, all(self.stop), "strings that are not empty"),
        }
        for name, (got, fine, expected) in checks.items():
            if not fine:
                raise InputError(f"{name}={got!r}: expected {expected}")


@dataclass(frozen=True)
class TeacherJob:
    """Answers still to be generated for one prompt.

    Attributes:
        draw: a digest of prompt, settings and seed; with a sample's index it seeds that sample's generator.
        reading: what the backend's `read` made of the prompt.
        samples: indices of the missing answers.
    """

    draw: str
    reading: Any
    samples: tuple[int, ...]


@dataclass(frozen=True)
class ScoreJob:
    """Choices to be scored after one prompt; `reading` as in `TeacherJob`."""

    reading: Any
    choices: tuple[str, ...]


Score = tuple[float, int]
"""A choice's summed log-probability, and how many of its tokens the sum covers."""


@dataclass
class Usage:
    """What a teacher has spent since it was loaded.

    Attributes:
        requests: HTTP requests sent, retries included; on a local model, answers generated and prompts scored.
        prompt_tokens: tokens read (a prompt shared by several answers of one request or batch counts once).
        completion_tokens: tokens generated.
        cache_hits: answers that came from the cache.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cache_hits: int = 0


@dataclass
class Budget:
    """A limit on what teachers may spend; give one to several teachers and they share it.

    No request starts once a limit is reached. `requests` is exact. What `tokens` counts is known only when an answer is
    there, so it can be passed by what was in flight: one request per worker on an endpoint, one batch on a local model.
    Cached answers cost nothing.

    Attributes:
        requests: the most requests, counted as in `Usage`; None = no limit.
        tokens: the most prompt plus completion tokens; None = no limit.
        spent_requests, spent_tokens: what was spent so far.
    """

    requests: int | None = None
    tokens: int | None = None
    spent_requests: int = field(default=0, init=False)
    spent_tokens: int = field(default=0, init=False)

    def left(self) -> int | None:
        """How many requests may start now; None = no limit."""
        if self.tokens is not None and self.spent_tokens >= self.tokens:
            return 0
        return None if self.requests is None else max(0, self.requests - self.spent_requests)

    def __str__(self) -> str:
        limits = {"requests": self.requests, "tokens": self.tokens}
        return " and ".join(f"{limit:,} {name}" for name, limit in limits.items() if limit is not None)


class BudgetExhausted(InputError):  # noqa: N818 (it is what happened, not a fault)
    """The budget is spent before all answers are there. Those that are stand in the cache: a rerun resumes from them.

    Attributes:
        finished: answers that are ready.
        wanted: answers that were asked for.
    """

    def __init__(self, message: str, finished: int, wanted: int) -> None:
        super().__init__(message)
        self.finished = finished
        self.wanted = wanted


class SpentError(Exception):
    """Tells a backend's caller that the meter refused a request; never leaves this package."""


class StoppedError(Exception):
    """Ends a worker whose run is over; never leaves this package."""


_ACCOUNTS = threading.Lock()


class Meter:
    """One call's accounts and brake. A backend calls `start` before a request and `spend` after it, from any thread."""

    def __init__(self, usage: Usage, budget: Budget | None) -> None:
        self._usage = usage
        self._budget = budget
        self._stop = threading.Event()

    def start(self, wanted: int = 1) -> int:
        """Ask to start `wanted` requests; returns how many may start, at least one.

        Raises:
            SpentError: none may start.
            StoppedError: the run is over.
        """
        if self._stop.is_set():
            raise StoppedError
        with _ACCOUNTS:
            left = self._budget.left() if self._budget else None
            granted = wanted if left is None else min(wanted, left)
            if granted == 0:
                raise SpentError
            self._usage.requests += granted
            if self._budget:
                self._budget.spent_requests += granted
        return granted

    def spend(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Book the tokens of finished requests."""
        with _ACCOUNTS:
            self._usage.prompt_tokens += prompt_tokens
            self._usage.completion_tokens += completion_tokens
            if self._budget:
                self._budget.spent_tokens += prompt_tokens + completion_tokens

    @property
    def counts_tokens(self) -> bool:
        """Whether a token budget has to be kept."""
        return self._budget is not None and self._budget.tokens is not None

    def wait(self, seconds: float) -> None:
        """Sleep, unless the run ends before.

        Raises:
            StoppedError: the run is over.
        """
        if self._stop.wait(seconds):
            raise StoppedError

    def stop(self) -> None:
        """End the run: no further request starts, sleepers wake."""
        self._stop.set()


class Backend(Protocol):
    """One way to run a model. What the user can mend is raised as `InputError`; `SpentError` comes from the meter."""

    def identity(self) -> dict[str, Any]:
        """What decides the answers beside the request, as JSON: the weights or the URL and model name. No keys."""

    def read(self, prompts: Sequence[Prompt], reserve: int | Sequence[str]) -> list[Any]:
        """What the model will read of each prompt, as JSON; part of the cache key.

        `reserve` is what has to fit into the context after the prompt: tokens, or the longest of these answers.
        """

    def generate(
        self, jobs: Sequence[TeacherJob], sampling: Sampling, meter: Meter
    ) -> Iterator[list[tuple[int, int, Completion]]]:
        """Yield finished answers as lists of (position in `jobs`, sample index, answer), in any order."""

    def score(self, jobs: Sequence[ScoreJob], meter: Meter) -> Iterator[list[tuple[int, list[Score]]]]:
        """Yield finished scores as lists of (position in `jobs`, one score per choice), in any order."""

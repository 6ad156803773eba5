"""Models that write: a conversation answered, a text continued, continuations scored. Here the one in this process.

Knows: prompts, answers, the engine. Does not know: HTTP, other servers (`remote`).
"""

from __future__ import annotations

import secrets
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError
from broadsheet.serve.models.engine import Batcher, Engine
from broadsheet.serve.models.forms import ChatForm, Form, TextForm
from broadsheet.serve.models.served import WORK_TOKENS, Served, worked
from broadsheet.serve.models.writing import Answers
from broadsheet.serve.protocol import ChatRequest, CompletionRequest, WritingRequest, usage
from broadsheet.teacher.base import Completion, Prompt, Sampling, Score
from broadsheet.teacher.live import Row

if TYPE_CHECKING:
    from broadsheet.teacher.local import Local

_MOST = 1024  # tokens of an answer whose length neither request nor model limits


class Answered(ABC):
    """The answers to one request. Whoever has it closes it.

    Attributes:
        read, written: tokens, as far as it has come.
    """

    read = 0
    written = 0

    @abstractmethod
    async def whole(self) -> dict[str, Any]:
        """The body, when all is written."""

    @abstractmethod
    def events(self) -> AsyncIterator[dict[str, Any]]:
        """The bodies of a stream, as they come."""

    @abstractmethod
    async def close(self) -> None:
        """Give up what is not written yet."""


class Writer(Served):
    """A model that writes, scores and tells its tokens."""

    async def answer(self, asked: ChatRequest | CompletionRequest) -> Answered:
        """Begin to answer; what cannot be begun is raised here."""
        raise NotImplementedError

    async def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> tuple[list[list[Score]], int]:
        """(log-probability, tokens) of each answer after each prompt, and the tokens that were read for it."""
        raise NotImplementedError

    async def tokenize(self, text: str, special: bool) -> tuple[list[int], int | None]:
        """A text's token ids, and how many the model can read."""
        raise NotImplementedError

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        raise NotImplementedError


@dataclass(frozen=True)
class Reading:
    """A prompt's token ids, how many it lost, the answer's longest length, and whether it is a transcript."""

    ids: tuple[int, ...]
    cut: int
    limit: int
    transcript: bool


@dataclass(eq=False)
class LocalWriter(Writer):
    """A model in this process."""

    engine: Engine
    local: Local = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.scoring: Batcher[Any, Any] = Batcher(self.local.score_ids, WORK_TOKENS)

    async def answer(self, asked: ChatRequest | CompletionRequest) -> Answered:
        if name := asked.not_done:
            raise InputError(f"{name} is not done by {self.name}; leave it out")
        rows, cut = await self.aside(self._rows, asked)
        return LocalAnswers(self, asked, rows, cut)

    async def score(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> tuple[list[list[Score]], int]:
        parts = await self.aside(lambda: [self._pairs(prompt, answers) for prompt in prompts])
        items = [each for of_prompt in parts for each in of_prompt]
        found = iter(await worked(self.engine, self.scoring, items))
        read = sum(len(ids) + sum(map(len, choices)) for (ids, choices), _ in items)
        return [[score for _ in of_prompt for score in next(found)] for of_prompt in parts], read

    async def tokenize(self, text: str, special: bool) -> tuple[list[int], int | None]:
        return await self.aside(self.local.encode, text, special), self.local.context

    async def detokenize(self, ids: Sequence[int]) -> str:
        self._check(ids)
        decode = self.local.tokenizer.decode
        return await self.aside(lambda: str(decode(ids, clean_up_tokenization_spaces=False)))

    def _rows(self, asked: ChatRequest | CompletionRequest) -> tuple[list[Row], int]:
        """An answer's row for each prompt and sample, and the tokens that prompts lost."""
        prompts: list[Any]
        if isinstance(asked, ChatRequest):
            prompts, wanted = [[each.plain() for each in asked.messages]], asked.max_completion_tokens
            noted, top = asked.logprobs, asked.top_logprobs or 0 if asked.logprobs else 0
        else:
            prompts, wanted = asked.prompts, asked.max_tokens or 16
            noted, top = asked.logprobs is not None, asked.logprobs or 0
        seed = asked.seed if asked.seed is not None else secrets.randbits(63)
        rows, lost = [], 0
        for prompt in prompts:
            read = self._reading(prompt, wanted or asked.max_tokens, asked.truncate)
            lost += read.cut
            sampling = Sampling(asked.temperature, asked.top_p, read.limit, asked.stops, 0, noted)
            rows += [Row(read.ids, read.limit, f"{seed}/{i}", sampling, read.transcript, top) for i in range(asked.n)]
        return rows, lost

    def _reading(self, prompt: Prompt | list[int], answer: int | None, truncate: str) -> Reading:
        """A prompt as it will be read: token ids, a text to continue, or a conversation.

        Args:
            answer: tokens that are wanted; None: as many as there is room for.

        Raises:
            InputError: it does not fit under "error", is empty, or names a token that there is not.
        """
        given: Any = prompt
        if isinstance(given, list) and isinstance(given[0], int):
            self._check(given)
            ids, transcript = given, False
        else:
            ids = self.local.prompt_ids(given)
            transcript = not isinstance(given, str) and not self.local.has_template
        context = self.local.context
        if context is None:
            return Reading(tuple(ids), 0, answer or _MOST, transcript)
        room = context - (answer or 1)
        if room < 1 or (len(ids) > room and truncate == "error"):
            raise InputError(
                f"{len(ids):,} tokens and {answer or 1:,} for the answer exceed the {context:,} of {self.name}; "
                "shorten the prompt, ask for fewer tokens, or pass truncate=left"
            )
        kept = ids[-room:]
        return Reading(tuple(kept), len(ids) - len(kept), answer or context - len(kept), transcript)

    def _pairs(
        self, prompt: Prompt, answers: Sequence[str]
    ) -> list[tuple[tuple[tuple[int, ...], list[list[int]]], int]]:
        """A prompt and the answers to be scored after it, as token ids: in parts that fit a batch, each with its cost.

        Raises:
            InputError: together they exceed the context, or an answer has no tokens.
        """
        from broadsheet.teacher.local import score_cost

        space = " " if not isinstance(prompt, str) and not self.local.has_template else ""
        choices = [self.local.encode(space + answer) for answer in answers]
        if not all(choices):
            raise InputError(f"a continuation has no tokens in the vocabulary of {self.name}")
        ids = self._reading(prompt, max(map(len, choices)), "error").ids
        most = max(1, self.local.batch_tokens // score_cost(ids, [max(choices, key=len)]))
        parts = [choices[start : start + most] for start in range(0, len(choices), most)]
        return [((ids, part), score_cost(ids, part)) for part in parts]

    def _check(self, ids: Sequence[int]) -> None:
        """Refuse, by an InputError, token ids that the model has not got."""
        if (largest := max(ids)) >= self.local.vocabulary:
            raise InputError(f"token {largest} is none of the {self.local.vocabulary:,} of {self.name}")


class LocalAnswers(Answered):
    """Answers of an engine, in OpenAI's form."""

    def __init__(self, writer: LocalWriter, asked: WritingRequest, rows: Sequence[Row], cut: int) -> None:
        noted = rows[0].sampling.logprobs
        self._form: Form = (
            ChatForm(f"chatcmpl-{uuid.uuid4().hex}", writer.name, noted, writer.local.reader.text)
            if isinstance(asked, ChatRequest)
            else TextForm(f"cmpl-{uuid.uuid4().hex}", writer.name, noted, writer.local.reader.text)
        )
        self._asked, self._cut = asked, cut
        self.read = sum(len(row.prompt) for row in rows[:: asked.n])
        self._answers = Answers(writer.engine, writer.local.reader, rows, pieces=asked.stream)

    @property
    def written(self) -> int:  # type: ignore[override]
        return sum(len(answer.tokens) for answer in self._answers.generation.answers)

    async def whole(self) -> dict[str, Any]:
        done = await self._answers.whole()
        return self._form.whole(self._answers, done, self._usage(done))

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        done: list[Completion] = []
        for first in self._form.first(len(self._answers.generation.rows)):
            yield first
        async for piece in self._answers:
            done += [piece.completion] if piece.completion else []
            yield self._form.piece(self._answers, piece)
        if self._asked.tells_usage:
            yield self._form.body(choices=[], usage=self._usage(done))

    async def close(self) -> None:
        self._answers.generation.leave()

    def _usage(self, done: Sequence[Completion]) -> dict[str, int]:
        return usage(self.read, sum(each.tokens or 0 for each in done), self._cut)

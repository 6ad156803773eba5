"""The engine: one thread owns one model, and alternates a decode step for all answers with a batch of other work.

Knows: answers that grow together (`teacher.live`), work as functions of items. Does not know: HTTP, keys, what is
asked. Nothing but its own thread touches the model. Requests join and leave between two steps. What fails, fails alone:
a request whose prompt cannot be read, or the requests of one batch of work; after a step that fails, the answers that
took part in it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from broadsheet.console import InputError, silence
from broadsheet.teacher.live import GrowingAnswer, LiveBatch, Row, TokenReader

Item = TypeVar("Item")
Result = TypeVar("Result")


class FullError(Exception):
    """The queue holds as many tokens as it may; `seconds` is about how long until there is room."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the queue is full; there is room in about {seconds:.0f} s")
        self.seconds = seconds


class ClosingError(Exception):
    """The engine takes no more requests."""


@dataclass(eq=False)
class AnswersAsked:
    """Answers that one request asks for.

    Attributes:
        rows: one for each answer.
        grown: called in the engine's thread, after each step, with the answers of this request that got a token.
        failed: called there instead, once, with what went wrong.
    """

    rows: Sequence[Row]
    grown: Callable[[list[GrowingAnswer]], None]
    failed: Callable[[BaseException], None]
    answers: list[GrowingAnswer] = field(default_factory=list)
    left: bool = False

    @property
    def cost(self) -> int:
        """Tokens that it may take, prompts and answers at full length."""
        return sum(map(_cost, self.rows))

    @property
    def going_cost(self) -> int:
        """Of that, those of the answers in progress."""
        return sum(_cost(answer.row) for answer in self.answers if not answer.completion)

    @property
    def ended(self) -> bool:
        """Whether every answer has."""
        return len(self.answers) == len(self.rows) and all(answer.completion for answer in self.answers)

    def leave(self) -> None:
        """Give the answers up; the engine drops them before its next step."""
        self.left = True


@dataclass(frozen=True, eq=False)
class Batcher(Generic[Item, Result]):
    """A function of many items to as many results, and how many tokens of them it takes at once."""

    run: Callable[[list[Item]], Sequence[Result]]
    batch_tokens: int


@dataclass(eq=False)
class Work(Generic[Item, Result]):
    """Items of one request that are to be worked on, in batches with items of other requests.

    Attributes:
        kind: what works on them; items of one kind may share a batch.
        items: with the tokens that each takes.
    """

    kind: Batcher[Item, Result]
    items: Sequence[tuple[Item, int]]
    future: Future[list[Result]] = field(default_factory=Future)
    results: list[Result] = field(default_factory=list)
    taken: int = 0

    @property
    def cost(self) -> int:
        return sum(tokens for _, tokens in self.items)


def _cost(row: Row) -> int:
    return len(row.prompt) + row.limit


class Engine:
    """The thread of one model.

    Args:
        reader: of a language model; None where the model does other work alone.
        batch_tokens: positions that the answers in progress may take together, at full length.
        queue_tokens: what may wait.
    """

    def __init__(
        self, name: str, reader: TokenReader | None = None, *, batch_tokens: int = 16_384, queue_tokens: int = 131_072
    ) -> None:
        self.name = name
        self.batch_tokens, self.queue_tokens = batch_tokens, queue_tokens
        self._live = LiveBatch(reader) if reader else None
        self._going: list[AnswersAsked] = []
        self._waiting: deque[AnswersAsked] = deque()
        self._works: deque[Work[Any, Any]] = deque()
        self._queued = 0
        self._watchers: list[Callable[[int], object]] = []
        self._speed = 0.0  # tokens a second, lately
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"engine of {name}", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Tokens that wait."""
        return self._queued

    def watch(self, changed: Callable[[int], object]) -> None:
        """Have a function called with each change of what waits, in tokens; and now with what does."""
        with self._changed:
            self._watchers.append(changed)
            changed(self._queued)

    @property
    def live(self) -> int:
        """Answers in progress."""
        return len(self._live) if self._live is not None else 0

    def generate(self, generation: AnswersAsked) -> None:
        """Take a request for answers.

        Raises:
            FullError: too much is waiting.
            InputError: its answers together may take more than ever waits.
            ClosingError: the engine is closing.
        """
        with self._changed:
            self._admit(generation.cost, alone=len(generation.rows) == 1)
            self._waiting.append(generation)
            self._changed.notify()

    def work(self, work: Work[Item, Result]) -> Future[list[Result]]:
        """Take items to be worked on; raises as `generate` does."""
        with self._changed:
            self._admit(work.cost, alone=True)  # it is done in batches, however much it is
            self._works.append(work)
            self._changed.notify()
        return work.future

    def close(self, seconds: float | None = None) -> None:
        """Take nothing more, finish what was taken, and end; wait for that at most so long."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)

    def _admit(self, cost: int, *, alone: bool) -> None:
        if self._closing:
            raise ClosingError
        if cost > self.queue_tokens and not alone:
            raise InputError(
                f"the request may take {cost:,} tokens, prompts and answers at full length; expected at most "
                f"{self.queue_tokens:,} in several answers: ask in parts"
            )
        if self._queued and self._queued + cost > self.queue_tokens:
            raise FullError(min(60.0, max(1.0, self._queued / self._speed if self._speed else 1.0)))
        self._queue(cost)

    def _queue(self, tokens: int) -> None:
        """So many tokens more wait, or fewer."""
        self._queued += tokens
        for changed in self._watchers:
            changed(tokens)

    # The thread

    def _run(self) -> None:
        silence()
        while True:
            with self._changed:
                while not (self._waiting or self._works or self._live):
                    if self._closing:
                        return
                    self._changed.wait()
            self._drop()
            self._join()
            self._step()
            self._batch()

    def _drop(self) -> None:
        """Let answers go that nobody waits for."""
        for generation in [each for each in self._going if each.left]:
            assert self._live is not None
            self._live.leave(generation.answers)
            self._going.remove(generation)

    def _join(self) -> None:
        """Read the prompts of those who wait, as far as there is room: of the first in the queue perhaps a part."""
        room = self.batch_tokens - sum(each.going_cost for each in self._going)
        while self._waiting:
            generation = self._waiting[0]
            rows: list[Row] = []
            for row in () if generation.left else generation.rows[len(generation.answers) :]:
                if _cost(row) > room and (rows or self._live):
                    break
                rows.append(row)
                room -= _cost(row)
            whole = generation.left or len(generation.answers) + len(rows) == len(generation.rows)
            if not (rows or whole):
                return
            if whole:
                self._dequeue(generation)
            if rows and not self._joined(generation, rows) and not whole:
                self._dequeue(generation)
            if not whole:
                return

    def _joined(self, generation: AnswersAsked, rows: Sequence[Row]) -> bool:
        """Whether rows of a request could join; else it has failed, and its answers leave."""
        assert self._live is not None
        try:
            generation.answers += self._live.join(rows)
        except Exception as error:
            self._live.leave(generation.answers)
            self._going = [each for each in self._going if each is not generation]
            generation.failed(error)
            return False
        if generation not in self._going:
            self._going.append(generation)
        return True

    def _dequeue(self, generation: AnswersAsked) -> None:
        with self._changed:
            self._waiting.remove(generation)
            self._queue(-generation.cost)

    def _step(self) -> None:
        """One token for every answer in progress."""
        if not self._live:
            return
        start = time.perf_counter()
        try:
            grown = {id(answer) for answer in self._live.step()}
        except Exception as error:
            self._live.clear()
            for generation in self._going:
                generation.leave()  # what of it still waits does not begin
                generation.failed(error)
            self._going.clear()
            return
        self._measure(len(grown), time.perf_counter() - start)
        for generation in list(self._going):
            generation.grown([answer for answer in generation.answers if id(answer) in grown])
            if generation.ended:
                self._going.remove(generation)

    def _batch(self) -> None:
        """One batch of other work: items of one kind, of as many requests as fit."""
        with self._changed:
            for work in [each for each in self._works if each.future.cancelled()]:  # nobody waits for it
                self._works.remove(work)
                self._queue(-work.cost)
            works = [work for work in self._works if work.kind is self._works[0].kind] if self._works else []
        if not works:
            return
        kind, room = works[0].kind, works[0].kind.batch_tokens
        taken: list[tuple[Work[Any, Any], Any]] = []
        for work in works:
            while work.taken < len(work.items) and (not taken or work.items[work.taken][1] <= room):
                item, tokens = work.items[work.taken]
                taken.append((work, item))
                work.taken += 1
                room -= tokens
        start = time.perf_counter()
        try:
            results: Sequence[Any] = kind.run([item for _, item in taken])
            for (work, _), result in zip(taken, results, strict=True):
                work.results.append(result)
        except Exception as error:
            for work in {id(work): work for work, _ in taken}.values():
                self._finish(work, error)
        self._measure(kind.batch_tokens - room, time.perf_counter() - start)
        for work in works:
            if len(work.results) == len(work.items) and not work.future.done():
                self._finish(work)

    def _finish(self, work: Work[Any, Any], error: Exception | None = None) -> None:
        with self._changed:
            self._works.remove(work)
            self._queue(-work.cost)
        if not work.future.set_running_or_notify_cancel():
            return
        if error:
            work.future.set_exception(error)
        else:
            work.future.set_result(work.results)

    def _measure(self, tokens: int, seconds: float) -> None:
        speed = tokens / max(seconds, 1e-6)
        self._speed = speed if not self._speed else 0.9 * self._speed + 0.1 * speed

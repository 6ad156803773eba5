"""The engine: one thread owns one model, and alternates a decode step for all answers with a batch of other work.

Knows: answers that grow together (`teacher.live`), work as functions of items. Does not know: HTTP, keys, what is
asked. Nothing but its own thread touches the model. Requests join and leave between two steps, and a long prompt is
read in parts, with a step after each. What fails, fails alone: a request whose prompt cannot be read, or the requests
of one batch of work; after a step that fails, the answers that took part in it.
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
from broadsheet.serve.failures import ClosingError, FullError
from broadsheet.teacher.live import GrowingAnswer, JoiningRows, LiveBatch, ReadAhead, Row, TokenReader

Item = TypeVar("Item")
Result = TypeVar("Result")


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


@dataclass(eq=False)
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


@dataclass(eq=False)
class _Joining:
    """Requests whose prompts are being read, all or some of their answers."""

    asked: list[tuple[AnswersAsked, list[Row]]]
    reading: JoiningRows


class Engine:
    """The thread of one model.

    Args:
        reader: of a language model; None where the model does other work alone.
        ahead: reads an answer that is written alone several tokens a step.
        read_tokens: of prompts, that are read between two steps; None: whole prompts, for a method that has to see
            them so.
        batch_tokens: positions that the answers in progress may take together, at full length.
        queue_tokens: what may wait.
    """

    def __init__(
        self,
        name: str,
        reader: TokenReader | None = None,
        *,
        ahead: ReadAhead | None = None,
        read_tokens: int | None = 512,
        batch_tokens: int = 16_384,
        queue_tokens: int = 131_072,
    ) -> None:
        self.name = name
        self.read_tokens, self.batch_tokens, self.queue_tokens = read_tokens, batch_tokens, queue_tokens
        self._reader = reader
        self._live = LiveBatch(reader, ahead) if reader else None
        self._joining: _Joining | None = None
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
                while not (self._waiting or self._works or self._live or self._joining):
                    if self._closing:
                        return
                    self._changed.wait()
            self._drop()
            self._read()
            self._step()
            self._batch()

    def _drop(self) -> None:
        """Let answers go that nobody waits for; of prompts that are read together, once all of them are."""
        read = [generation for generation, _ in self._joining.asked] if self._joining else []
        if all(generation.left for generation in read):
            self._joining, read = None, []
        for generation in [each for each in self._going if each.left and each not in read]:
            assert self._live is not None
            self._live.leave(generation.answers)
            self._going.remove(generation)

    def _read(self) -> None:
        """Read prompts of those who wait, as far as there is room and between two steps as much as is allowed."""
        left = self.read_tokens
        while left is None or left > 0:
            joining = self._joining = self._joining or self._next()
            if joining is None:
                return
            try:
                read = joining.reading.read(left)
            except Exception as error:
                self._refuse(joining, error)
                continue
            if joining.reading.done:
                assert self._live is not None
                self._live.add(joining.reading)
                self._joining = None
            left = None if left is None else left - read

    def _next(self) -> _Joining | None:
        """Those who are to be read next, in their order; of the last perhaps a part. None: no room, or nobody waits."""
        assert self._reader is not None or not self._waiting
        room = self.batch_tokens - sum(each.going_cost for each in self._going)
        asked: list[tuple[AnswersAsked, list[Row]]] = []
        longest = prompts = 0
        while self._waiting:
            generation = self._waiting[0]
            taken: list[Row] = []
            for row in () if generation.left else generation.rows[len(generation.answers) :]:
                if _cost(row) > room and (taken or asked or self._live):
                    break
                taken.append(row)
                room -= _cost(row)
            longest, prompts = max([longest, *(len(row.prompt) for row in taken)]), prompts + len(taken)
            if asked and longest * prompts > (self.read_tokens or 0):
                break  # it is read after these
            whole = generation.left or len(generation.answers) + len(taken) == len(generation.rows)
            if taken:
                asked.append((generation, taken))
            if not whole:
                break
            self._dequeue(generation)
        return self._begin(asked) if asked else None

    def _begin(self, asked: list[tuple[AnswersAsked, list[Row]]]) -> _Joining:
        """Begin to read the prompts of some rows."""
        assert self._reader is not None
        reading = JoiningRows(self._reader, [row for _, rows in asked for row in rows])
        answers = iter(reading.answers)
        for generation, rows in asked:
            generation.answers += [next(answers) for _ in rows]
            if generation not in self._going:
                self._going.append(generation)
        return _Joining(asked, reading)

    def _refuse(self, joining: _Joining, error: Exception) -> None:
        """What cannot be read together is read one request after another; what cannot alone, fails."""
        self._joining = None
        for generation, rows in joining.asked:
            del generation.answers[len(generation.answers) - len(rows) :]
        if len(joining.asked) == 1:
            self._fail(joining.asked[0][0], error)
            return
        for generation, rows in joining.asked:
            if generation.left:
                continue
            alone = self._begin([(generation, rows)])
            try:
                alone.reading.read()
            except Exception as own:
                self._fail(generation, own)
            else:
                assert self._live is not None
                self._live.add(alone.reading)

    def _only_reads(self, generation: AnswersAsked) -> bool:
        """Whether a request's prompts are being read, and none of its answers has begun."""
        asked = self._joining.asked if self._joining else []
        return any(each is generation and len(rows) == len(generation.answers) for each, rows in asked)

    def _fail(self, generation: AnswersAsked, error: BaseException) -> None:
        """Tell a request that it has failed, and drop what there is of it."""
        assert self._live is not None
        self._live.leave(generation.answers)
        self._going = [each for each in self._going if each is not generation]
        if generation in self._waiting:  # a part of it
            self._dequeue(generation)
        generation.leave()
        generation.failed(error)

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
            for generation in [each for each in self._going if not self._only_reads(each)]:
                self._fail(generation, error)  # what of it still waits does not begin
            return
        self._measure(len(grown), time.perf_counter() - start)
        for generation in list(self._going):
            if answers := [answer for answer in generation.answers if id(answer) in grown]:
                generation.grown(answers)
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

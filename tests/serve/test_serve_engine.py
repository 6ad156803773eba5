"""The engine: requests join, leave and fail without touching one another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from broadsheet.console import InputError, progress, say
from broadsheet.serve.failures import ClosingError, FullError
from broadsheet.serve.metrics import Metrics
from broadsheet.serve.models.engine import AnswersAsked, Batcher, Engine, Work
from broadsheet.teacher.base import Sampling
from broadsheet.teacher.live import GrowingAnswer, LiveBatch, Row, TokenReader

SAMPLING = Sampling(0, 1, 100, (), 0, False)


class Asked:
    """A request, and what came of it."""

    def __init__(self, *rows: Row, hold: threading.Event | None = None) -> None:
        self.ended, self.began, self.hold = threading.Event(), threading.Event(), hold
        self.steps = 0
        self.error: BaseException | None = None
        self.generation = AnswersAsked(rows, self.grown, self.failed)

    def grown(self, answers: list[GrowingAnswer]) -> None:
        self.steps += 1
        self.began.set()
        if self.hold:
            assert self.hold.wait(30)
        if self.generation.ended:
            self.ended.set()

    def failed(self, error: BaseException) -> None:
        self.error = error
        self.ended.set()

    def wait(self) -> Asked:
        assert self.ended.wait(30)
        return self


def row(tokens: int = 6, limit: int = 8) -> Row:
    return Row(tuple(range(20, 20 + tokens)), limit, "0", SAMPLING)


@pytest.fixture
def reader(tiny_model, tiny_tokenizer) -> TokenReader:
    model = tiny_model()
    model.generation_config.eos_token_id = None
    made = TokenReader(model, tiny_tokenizer())
    made.ends = set()  # so that answers have the length that they are given
    return made


@pytest.fixture
def engine(reader) -> Iterator[Engine]:
    made = Engine("tiny", reader, batch_tokens=200, queue_tokens=300)
    yield made
    made.close(30)


def test_an_answer_grows_token_by_token(engine, reader):
    asked = Asked(row())
    engine.generate(asked.generation)
    assert asked.wait().steps == 8
    live = LiveBatch(reader)
    [alone] = live.join([row()])
    while live:
        live.step()
    assert asked.generation.answers[0].tokens == alone.tokens


def test_who_comes_later_begins_before_the_earlier_answer_has_ended(engine):
    hold = threading.Event()
    early, late = Asked(row(limit=60), hold=hold), Asked(row(tokens=9, limit=3))
    engine.generate(early.generation)
    assert early.began.wait(30)
    engine.generate(late.generation)
    hold.set()
    late.wait()
    assert not early.ended.is_set() or early.steps > late.steps
    assert early.wait().steps == 60
    assert len(late.generation.answers[0].tokens) == 3


def test_a_long_prompt_is_read_in_parts_with_a_step_after_each(reader):
    engine = Engine("tiny", reader, read_tokens=10)
    hold = threading.Event()
    early, late = Asked(row(limit=60), hold=hold), Asked(row(tokens=95, limit=2))
    engine.generate(early.generation)
    assert early.began.wait(30)
    steps = []
    grown = late.grown
    late.generation.grown = lambda answers: (steps.append(early.steps), grown(answers))
    engine.generate(late.generation)
    hold.set()
    late.wait()
    assert 9 <= steps[0] <= 11, "the early answer got a token after each ten of the late one's prompt"
    assert early.wait().steps == 60
    engine.close(30)


def test_a_prompt_that_is_given_up_while_it_is_read_is_read_no_further(reader):
    engine = Engine("tiny", reader, read_tokens=5)
    hold = threading.Event()
    early, late = Asked(row(limit=40), hold=hold), Asked(row(tokens=100, limit=2))
    engine.generate(early.generation)
    assert early.began.wait(30)
    engine.generate(late.generation)
    grown = early.grown

    def until_some_is_read(answers: list[GrowingAnswer]) -> None:
        if early.steps == 4:
            late.generation.leave()
        grown(answers)

    early.generation.grown = until_some_is_read
    hold.set()
    assert early.wait().steps == 40
    assert late.steps == 0
    assert engine.queued == 0
    assert engine.live == 0
    engine.close(30)


def test_a_step_that_fails_leaves_prompts_alone_that_are_still_read(reader, monkeypatch):
    engine = Engine("tiny", reader, read_tokens=5)
    hold, forward, fails = threading.Event(), reader.forward, threading.Event()

    def failing(ids, *others, **more):
        if fails.is_set() and ids.shape[1] == 1:
            fails.clear()
            raise RuntimeError("out of memory")
        return forward(ids, *others, **more)

    monkeypatch.setattr(reader, "forward", failing)
    early, late = Asked(row(limit=40), hold=hold), Asked(row(tokens=100, limit=2))
    engine.generate(early.generation)
    assert early.began.wait(30)
    engine.generate(late.generation)
    grown = early.grown

    def then_fail(answers: list[GrowingAnswer]) -> None:
        if early.steps == 4:
            fails.set()
        grown(answers)

    early.generation.grown = then_fail
    hold.set()
    assert str(early.wait().error) == "out of memory"
    assert late.wait().error is None
    assert late.steps == 2
    engine.close(30)


def test_of_prompts_that_are_read_together_the_bad_one_fails_alone(engine):
    hold = threading.Event()
    first = Asked(row(limit=3), hold=hold)
    engine.generate(first.generation)
    assert first.began.wait(30)
    together = [Asked(row()), Asked(Row((10**6,), 5, "0", SAMPLING)), Asked(row(tokens=9))]
    for each in together:
        engine.generate(each.generation)
    hold.set()
    good, bad, other = (each.wait() for each in together)
    assert isinstance(bad.error, Exception)
    assert good.error is other.error is None
    assert [len(each.generation.answers[0].tokens) for each in (good, other)] == [8, 8]


def test_an_answer_that_is_given_up_is_dropped_before_the_next_step(engine):
    hold = threading.Event()
    asked, other = Asked(row(limit=90), hold=hold), Asked(row(limit=5))
    engine.generate(asked.generation)
    assert asked.began.wait(30)
    asked.generation.leave()
    hold.set()
    engine.generate(other.generation)
    other.wait()
    assert len(asked.generation.answers[0].tokens) == 1


def test_a_prompt_that_cannot_be_read_fails_alone(engine):
    good, bad = Asked(row(limit=20)), Asked(Row((10**6,), 5, "0", SAMPLING))
    engine.generate(good.generation)
    engine.generate(bad.generation)
    assert isinstance(bad.wait().error, Exception)
    assert good.wait().error is None
    assert engine.generate(again := Asked(row()).generation) is None
    assert again.rows


def test_a_step_that_fails_ends_the_answers_that_took_part_and_no_others(engine, reader, monkeypatch):
    forward, fails = reader.forward, threading.Event()

    def failing(ids, *others, **more):
        if fails.is_set() and ids.shape[1] == 1:
            fails.clear()
            raise RuntimeError("out of memory")
        return forward(ids, *others, **more)

    monkeypatch.setattr(reader, "forward", failing)
    fails.set()
    asked = Asked(row())
    engine.generate(asked.generation)
    assert str(asked.wait().error) == "out of memory"
    after = Asked(row())
    engine.generate(after.generation)
    assert after.wait().error is None


def test_what_waits_is_bounded_and_one_that_is_too_large_is_still_taken_alone(engine):
    hold = threading.Event()
    first = Asked(row(tokens=6, limit=100), hold=hold)
    engine.generate(first.generation)
    assert first.began.wait(30)
    waiting = [Asked(row(tokens=50, limit=90)) for _ in range(2)]
    for each in waiting:
        engine.generate(each.generation)
    with pytest.raises(FullError) as full:
        engine.generate(Asked(row(tokens=50, limit=90)).generation)
    assert 1 <= full.value.seconds <= 60
    hold.set()
    for each in (first, *waiting):
        assert each.wait().error is None
    large = Asked(row(tokens=150, limit=60))
    engine.generate(large.generation)
    assert large.wait().error is None
    assert engine.queued == 0


def test_work_is_done_in_batches_of_several_requests_between_steps(engine):
    batches: list[list[int]] = []
    hold = threading.Event()

    def double(items: list[int]) -> list[int]:
        batches.append(items)
        return [2 * item for item in items]

    asked = Asked(row(limit=30), hold=hold)
    engine.generate(asked.generation)
    assert asked.began.wait(30)
    kind = Batcher(double, batch_tokens=10)
    works = [Work(kind, [(i, 3) for i in range(4)]), Work(kind, [(i, 3) for i in range(10, 12)])]
    futures = [engine.work(work) for work in works]
    hold.set()
    assert [future.result(30) for future in futures] == [[0, 2, 4, 6], [20, 22]]
    assert batches == [[0, 1, 2], [3, 10, 11]], "the second request's items join the first one's rest"
    assert asked.wait().steps == 30


def test_what_work_says_is_not_told(engine, capsys):
    def talk(items: list[int]) -> list[int]:
        say("1 of 1 texts were cut")
        with progress("windows", 1):
            return items

    assert engine.work(Work(Batcher(talk, 10), [(1, 1)])).result(30) == [1]
    assert capsys.readouterr().err == ""
    say("here")
    assert capsys.readouterr().err == "here\n"


def test_a_batch_that_fails_fails_its_requests_alone(engine):
    def fail(items: list[int]) -> list[int]:
        raise RuntimeError("no")

    bad, good = Work(Batcher(fail, 10), [(1, 1)]), Work(Batcher(lambda items: items, 10), [(1, 1)])
    futures = engine.work(bad), engine.work(good)
    with pytest.raises(RuntimeError, match="no"):
        futures[0].result(30)
    assert futures[1].result(30) == [1]


def test_work_that_nobody_waits_for_is_not_done(engine):
    done: list[int] = []
    hold = threading.Event()
    blocking = Asked(row(limit=3), hold=hold)
    engine.generate(blocking.generation)
    assert blocking.began.wait(30)
    work = Work(Batcher(lambda items: done.extend(items) or items, 10), [(1, 1)])
    future = engine.work(work)
    assert future.cancel()
    hold.set()
    blocking.wait()
    with pytest.raises(CancelledError):
        future.result(30)
    engine.close(30)
    assert done == []
    assert engine.queued == 0


def test_it_closes_when_what_was_taken_is_done(reader):
    engine = Engine("tiny", reader)
    asked = Asked(row(limit=20))
    engine.generate(asked.generation)
    engine.close(30)
    assert asked.ended.is_set()
    with pytest.raises(ClosingError):
        engine.generate(Asked(row()).generation)
    with pytest.raises(ClosingError):
        engine.work(Work(Batcher(lambda items: items, 1), [(1, 1)]))


def test_the_answers_of_a_large_request_begin_as_there_is_room(engine):
    most = []
    asked = Asked(*[row(tokens=6, limit=20) for _ in range(10)])  # 260 tokens, in a batch of 200
    grown = asked.generation.grown

    def watched(answers: list[GrowingAnswer]) -> None:
        most.append(engine.live)
        grown(answers)

    asked.generation.grown = watched
    asked.grown = watched  # type: ignore[method-assign]
    engine.generate(asked.generation)
    assert asked.wait().error is None
    assert max(most) == 200 // 26
    assert [len(answer.tokens) for answer in asked.generation.answers] == [20] * 10
    assert engine.queued == 0


def test_a_request_of_more_than_ever_waits_is_refused(engine):
    with pytest.raises(InputError, match="at most 300 in several answers"):
        engine.generate(Asked(*[row(limit=100) for _ in range(5)]).generation)
    assert engine.queued == 0


def test_what_waits_in_the_engines_of_one_name_is_counted_together(reader):
    engines = [Engine("tiny", reader), Engine("tiny", reader)]
    metrics = Metrics(engines)
    hold, began = threading.Event(), threading.Event()

    def run(items: list[int]) -> list[int]:
        began.set()
        hold.wait(30)
        return items

    futures = [
        engine.work(Work(Batcher(run, 10), [(1, tokens)])) for engine, tokens in zip(engines, (3, 4), strict=True)
    ]
    assert began.wait(30)
    assert b'broadsheet_queued_tokens{model="tiny"} 7.0' in metrics.text()
    hold.set()
    assert [future.result(30) for future in futures] == [[1], [1]]
    assert b'broadsheet_queued_tokens{model="tiny"} 0.0' in metrics.text()
    for engine in engines:
        engine.close(30)

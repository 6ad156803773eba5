"""Answers that are decoded together: each is what it would be alone, whoever joins and leaves."""

from __future__ import annotations

import pytest
import torch

from broadsheet.attend import LMInfinite
from broadsheet.teacher.base import Sampling
from broadsheet.teacher.live import GrowingAnswer, JoiningRows, LiveBatch, Row, TokenReader

GREEDY, DRAWN = Sampling(0, 1, 12, (), 0, True), Sampling(1.0, 0.9, 12, (), 0, True)


@pytest.fixture
def reader(tiny_model, tiny_tokenizer) -> TokenReader:
    return TokenReader(tiny_model(), tiny_tokenizer())


def row(tokens: int, sampling: Sampling = GREEDY, seed: str = "0", limit: int = 12) -> Row:
    return Row(tuple(range(20, 20 + tokens)), limit, seed, sampling)


def finished(live: LiveBatch) -> None:
    while live:
        live.step()


def alone(reader: TokenReader, one: Row) -> GrowingAnswer:
    live = LiveBatch(reader)
    [answer] = live.join([one])
    finished(live)
    return answer


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_an_answer_does_not_depend_on_who_joins_and_leaves(reader, sampling):
    rows = [row(9, sampling, "a"), row(3, DRAWN, "b"), row(30, GREEDY, "c"), row(14, sampling, "d")]
    live = LiveBatch(reader)
    first = live.join(rows[:2])
    live.step()
    [late] = live.join(rows[2:3])  # longer than those that are there
    live.step()
    live.leave(first[1:])
    [last] = live.join(rows[3:])
    finished(live)
    for one, answer in zip([rows[0], rows[2], rows[3]], [first[0], late, last], strict=True):
        expected = alone(reader, one)
        assert answer.tokens == expected.tokens
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert answer.completion.text == expected.completion.text
    assert len(first[1].tokens) == 2, "it has left"


def test_answers_to_one_prompt_read_it_once_and_draw_by_their_own_seeds(reader, monkeypatch):
    read = []
    padded = reader.padded
    monkeypatch.setattr(reader, "padded", lambda prompts: read.extend(prompts) or padded(prompts))
    live = LiveBatch(reader)
    answers = live.join([row(8, DRAWN, str(i % 3)) for i in range(6)])
    finished(live)
    assert len(read) == 1
    tokens = [answer.tokens for answer in answers]
    assert tokens[:3] == tokens[3:]
    assert tokens[0] != tokens[1]


def test_what_nobody_needs_is_let_go_of(reader):
    live = LiveBatch(reader)
    long, short = live.join([row(40, limit=3), row(4, limit=30)])
    assert live.held == 2 * 40
    for _ in range(3):
        live.step()
    assert long.completion
    assert live.held == 4 + 3, "the padding in front of the short one has gone with the long one"
    expected = alone(reader, row(4, limit=30))
    finished(live)
    assert short.tokens == expected.tokens
    assert live.held == 0


def test_prompts_that_are_read_in_parts_are_as_read_at_once(reader):
    rows = [row(50, GREEDY, "a"), row(7, DRAWN, "b"), row(50, DRAWN, "c")]
    joining = JoiningRows(reader, rows)
    parts = []
    while not joining.done:
        parts.append(joining.read(20))
    assert parts == [20, 20, 20, 20, 20], "ten tokens at a time of two prompts, since two rows share one"
    live = LiveBatch(reader)
    live.add(joining)
    finished(live)
    for one, answer in zip(rows, joining.answers, strict=True):
        expected = alone(reader, one)
        assert answer.tokens == expected.tokens
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_under_a_method_that_remembers_in_its_own_way_answers_are_as_alone(reader):
    with LMInfinite(n_global=2, n_local=16)(reader.model):
        rows = [row(40, GREEDY, "a"), row(5, GREEDY, "b")]
        live = LiveBatch(reader)
        one = live.join(rows[:1])
        live.step()
        other = live.join(rows[1:])
        finished(live)
        assert [answer.tokens for answer in one + other] == [alone(reader, each).tokens for each in rows]


def test_alternatives_are_the_likeliest_tokens(reader):
    live = LiveBatch(reader)
    [answer] = live.join([Row(tuple(range(20, 28)), 4, "0", GREEDY, False, 3)])
    finished(live)
    for token, logprob, top in zip(answer.tokens, answer.logprobs, answer.top, strict=True):
        assert top[0] == (token, pytest.approx(logprob))
        assert [value for _, value in top] == sorted((value for _, value in top), reverse=True)
        assert len(top) == 3
    with torch.inference_mode():
        logits = reader.model(torch.tensor([list(range(20, 28))])).logits[0, -1]
    assert [token for token, _ in answer.top[0]] == logits.topk(3).indices.tolist()

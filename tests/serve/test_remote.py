"""Models elsewhere, behind our guard: another server of the protocol, and llama.cpp; what they do and how they fail."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import openai
import pytest
from loopback import Loopback, body, drop, status
from serving import Running, serving

from broadsheet.console import InputError
from broadsheet.serve.app import create_app
from broadsheet.serve.guard import KeyRing
from broadsheet.serve.models.named import Models
from broadsheet.serve.models.writer import Writer
from broadsheet.serve.protocol import CompletionRequest
from broadsheet.teacher import Teacher

CHAT = [{"role": "user", "content": "the hat on the mat"}]
UPSTREAM_KEY = "upstream-key-0123456789"


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any) -> Iterator[Running]:
    """A server of the protocol with a real model, which asks for a key."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(max_position_embeddings=1024).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with serving(create_app(Models([str(folder)], dtype="float32"), KeyRing([UPSTREAM_KEY]))) as running:
        yield running


@pytest.fixture
def front(behind: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{behind.url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", UPSTREAM_KEY)
    with serving(create_app(Models(["endpoint:tiny"]))) as running:
        yield running


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[[Loopback], Any]:
    """Our server before one that may misbehave."""

    def made(upstream: Loopback) -> Any:
        monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
        monkeypatch.setenv("OPENAI_API_KEY", UPSTREAM_KEY)
        return serving(create_app(Models(["endpoint:tiny"])))

    return made


def client_of(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


def test_answers_are_those_of_the_server_behind(front, behind):
    asked: dict[str, Any] = {"model": "tiny", "messages": CHAT, "seed": 3, "max_tokens": 12, "n": 2}
    ours = client_of(front).chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    theirs = client_of(behind, UPSTREAM_KEY).chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert ours.choices == theirs.choices
    assert ours.usage == theirs.usage
    text = client_of(front).completions.create(model="tiny", prompt=["the hat", "a"], temperature=0, max_tokens=5)
    own = client_of(behind, UPSTREAM_KEY).completions.create(
        model="tiny", prompt=["the hat", "a"], temperature=0, max_tokens=5
    )
    assert text.choices == own.choices


def test_a_stream_passes_through_in_pieces(front):
    asked: dict[str, Any] = {"model": "tiny", "messages": CHAT, "temperature": 0, "max_tokens": 12}
    whole = client_of(front).chat.completions.create(**asked)
    pieces = list(client_of(front).chat.completions.create(**asked, stream=True))
    assert "".join(c.delta.content or "" for p in pieces for c in p.choices) == whole.choices[0].message.content
    assert len(pieces) > 5
    assert all(piece.choices for piece in pieces), "usage was asked of the server behind alone"
    told = list(client_of(front).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert told[-1].usage == whole.usage


def test_tokens_are_told_and_the_models_list_says_where_from(front, behind):
    _, ours = front.ask("/tokenize", {"prompt": "the hat"})
    _, theirs = behind.ask("/tokenize", {"prompt": "the hat"}, authorization=f"Bearer {UPSTREAM_KEY}")
    assert ours == theirs
    _, back = front.ask("/detokenize", {"tokens": ours["tokens"]})
    assert back["prompt"].endswith("the hat")
    [row] = front.ask("/v1/models")[1]["data"]
    assert (row["id"], row["backend"]) == ("tiny", "endpoint")
    assert behind.url.split("//")[1] not in str(row)


def test_first_tokens_are_scored_after_a_conversation_and_texts_where_the_server_echoes(front, before):
    status, refused = front.ask("/v1/score", {"prompt": "the hat", "continuations": [" a", " b"]})
    assert status == 400, "the server behind has no echo"
    assert "echo" in refused["error"]["message"]
    with Loopback(top=[("yes", -0.5), ("no", -1.5)]) as upstream, before(upstream) as server:
        _, answer = server.ask("/v1/score", {"prompt": CHAT, "continuations": ["yes", "no"]})
        assert [each["logprob"] for each in answer["data"]] == [-0.5, -1.5]
        _, answer = server.ask("/v1/classify", {"input": "the sea", "labels": ["yes", "no"]})
        assert answer["data"][0]["label"] == "yes"
        _, answer = server.ask("/v1/score", {"prompt": "one two", "continuations": [" three four"]})
        assert answer["data"] == [{"index": 0, "logprob": pytest.approx(-5.0), "tokens": 2}]


def test_all_that_was_asked_is_passed_on_also_what_nothing_here_does(before):
    with Loopback() as upstream, before(upstream) as server:
        tools = [{"type": "function", "function": {"name": "f"}}]
        asked = {"messages": CHAT, "tools": tools, "presence_penalty": 0.5, "top_k": 3, "model": "tiny"}
        assert server.ask("/v1/chat/completions", asked)[0] == 200
        [sent] = upstream.bodies
        assert sent == {**asked, "temperature": 1.0, "top_p": 1.0}
        assert upstream.keys == [f"Bearer {UPSTREAM_KEY}"]
        status_, refused = server.ask("/v1/chat/completions", {"messages": CHAT, "truncate": "left"})
        assert status_ == 400
        assert "truncate" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("fault", "expected", "said"),
    [
        (status(400, f"too long, {UPSTREAM_KEY}"), 400, "too long, ***"),
        (status(401, UPSTREAM_KEY), 502, "refuses its key"),
        (status(404), 502, "no such model"),
        (status(429, retry_after="7"), 503, "busy"),
        (status(500), 502, "failed (HTTP 500)"),
        (drop(), 502, "cannot be reached"),
        (body("no JSON"), 502, "does not follow the protocol"),
        (body("[" * 100_000), 502, "does not follow the protocol"),
        (body('{"choices": [], "usage": {"prompt_tokens": "many"}}'), 502, "does not follow the protocol"),
    ],
)
def test_a_failure_behind_is_told_without_address_or_key(before, fault, expected, said):
    with Loopback(faults=[fault, None]) as upstream, before(upstream) as server:
        got, answer = server.ask("/v1/chat/completions", {"messages": CHAT})
        assert (got, said in answer["error"]["message"]) == (expected, True), answer
        assert UPSTREAM_KEY not in str(answer)
        assert upstream.url.split("//")[1] not in str(answer)
        assert server.ask("/v1/chat/completions", {"messages": CHAT})[0] == 200
        assert all(each.queued == 0 for each in server.app.app.state.serving.models.queues)


def test_a_refusal_of_a_stream_comes_before_its_first_event(before):
    with Loopback(faults=[status(429, retry_after="7")]) as upstream, before(upstream) as server:
        got, _ = server.ask("/v1/chat/completions", {"messages": CHAT, "stream": True})
        assert got == 503


def test_who_hangs_up_ends_the_request_behind(front, behind):
    engine = next(iter(behind.app.app.state.serving.models)).engine
    stream = client_of(front).completions.create(model="tiny", prompt="the", max_tokens=900, stream=True)
    next(iter(stream))
    assert engine.live == 1
    stream.close()
    wait_until(lambda: engine.live == 0)
    wait_until(lambda: all(each.queued == 0 for each in front.app.app.state.serving.models.queues))


def test_a_stream_whose_end_is_cancelled_keeps_no_room(monkeypatch):
    async def cancelled() -> None:
        raise asyncio.CancelledError

    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    writer = Models(["endpoint:tiny"]).get("tiny", Writer)
    asked = CompletionRequest(model="tiny", prompt="a", max_tokens=90, stream=True)
    monkeypatch.setattr(writer.client, "post", AsyncMock(return_value=SimpleNamespace(close=cancelled)))

    async def end() -> None:
        answered = await writer.answer(asked)
        assert writer.engine.queued >= 90
        with pytest.raises(asyncio.CancelledError):
            await answered.close()
        assert writer.engine.queued == 0

    asyncio.run(end())


def test_what_is_asked_at_once_is_bounded(before):
    hold = threading.Barrier(2)
    with Loopback(together=hold) as upstream, before(upstream) as server:
        room = next(iter(server.app.app.state.serving.models)).engine
        room.queue_tokens = 100
        first = threading.Thread(target=server.ask, args=("/v1/completions", {"prompt": "a", "max_tokens": 90}))
        first.start()
        wait_until(lambda: len(upstream.requests) == 1)
        got, _ = server.ask("/v1/completions", {"prompt": "a", "max_tokens": 90})
        assert got == 503
        hold.abort()
        first.join()
        assert room.queued == 0


def test_it_is_ready_while_the_server_behind_is(monkeypatch):
    monkeypatch.setattr("broadsheet.serve.models.remote._HEALTHY", 0.0)
    with serving(create_app(Models())) as upstream:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{upstream.url}/v1")
        with serving(create_app(Models(["endpoint:tiny"]))) as server:
            assert server.ask("/health/ready")[0] == 200
            monkeypatch.setattr(next(iter(server.app.app.state.serving.models)), "_client", None)
            monkeypatch.setattr(
                server.app.app.state.serving.models.get("tiny", Writer).endpoint, "url", "http://127.0.0.1:9/v1"
            )
            got, answer = server.ask("/health/ready")
            assert (got, server.ask("/health/live")[0]) == (503, 200)
            assert "does not answer" in answer["error"]["message"]


def test_tokens_of_a_model_elsewhere_count_for_the_key(before, monkeypatch):
    with Loopback() as upstream:
        monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
        ring = KeyRing(["0123456789abcdef infer,read tokens=20"])
        with serving(create_app(Models(["endpoint:tiny"]), ring)) as server:
            given = {"authorization": "Bearer 0123456789abcdef"}
            codes = [server.ask("/v1/chat/completions", {"messages": CHAT}, **given)[0] for _ in range(3)]
            assert codes == [200, 200, 429], "12 tokens each"


def test_methods_are_for_models_in_this_process(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="models in this process"):
        Models(["endpoint:tiny"], attend="lm_infinite")


def test_llama_cpp_answers_and_scores_as_the_teacher_does(tiny_gguf):
    pytest.importorskip("xllamacpp")
    teacher = Teacher.load(f"llamacpp:{tiny_gguf}", cache=False, slots=2, context=256, threads=1)
    with serving(create_app(Models([f"llamacpp:{tiny_gguf}"]))) as server:
        name = tiny_gguf.name
        client = client_of(server)
        answer = client.completions.create(model=name, prompt="the hat on", temperature=0, max_tokens=6)
        [[expected]] = teacher.complete(["the hat on"], temperature=0, max_tokens=6)
        assert answer.choices[0].text == expected.text
        asked: dict[str, Any] = {"model": name, "messages": CHAT, "temperature": 0, "max_tokens": 6}
        whole = client.chat.completions.create(**asked)
        pieces = client.chat.completions.create(**asked, stream=True)
        assert "".join(c.delta.content or "" for p in pieces for c in p.choices) == whole.choices[0].message.content
        choices = [" the", " in", "and there"]
        _, scored = server.ask("/v1/score", {"prompt": "the hat", "continuations": choices})
        [values] = teacher.score(["the hat"], choices, raw=True)
        assert [each["logprob"] for each in scored["data"]] == pytest.approx(list(values), abs=0.02)
        _, told = server.ask("/tokenize", {"prompt": "the hat", "add_special_tokens": False})
        _, back = server.ask("/detokenize", {"tokens": told["tokens"]})
        assert back["prompt"].strip() == "the hat"
        got, refused = server.ask("/v1/completions", {"prompt": "a", "n": 2})
        assert got == 400
        assert "n=2" in refused["error"]["message"]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def test_json_is_what_is_told(before):
    """An answer with characters of every kind arrives as it was sent."""
    text = "é \u4e2d \U0001f600 \x00"
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    with Loopback(faults=[body(json.dumps(answer))]) as upstream, before(upstream) as server:
        _, got = server.ask("/v1/chat/completions", {"messages": CHAT})
        assert got["choices"][0]["message"]["content"] == text

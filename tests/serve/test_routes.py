"""The routes as the official clients call them, over tiny models: what is served is what the library gives."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cohere
import numpy as np
import openai
import pytest
from serving import Running, serving

from broadsheet.detect import Likelihood
from broadsheet.embed.base import baseline, load
from broadsheet.rank import ListwiseReranker
from broadsheet.serve.app import create_app
from broadsheet.serve.models.named import Models
from broadsheet.teacher import Teacher

CHAT = [{"role": "user", "content": "the hat on the mat"}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    tiny_model(max_position_embeddings=1024).save_pretrained(root / "tiny")
    tiny_tokenizer().save_pretrained(root / "tiny")
    baseline("mean", str(root / "tiny"), max_seq_length=24).save_pretrained(str(root / "vectors"))
    ListwiseReranker.load(root / "tiny", window=4, step=2).save(root / "orders")
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture(scope="module")
def server(folders: dict[str, str]) -> Iterator[Running]:
    kinds = {"models": [folders["tiny"]], "embedders": [folders["vectors"]], "rerankers": [folders["orders"]]}
    with serving(create_app(Models(**kinds, detectors=["likelihood"], dtype="float32"))) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def teacher(folders: dict[str, str]) -> Teacher:
    return Teacher.load(folders["tiny"], cache=False, dtype="float32")


def test_a_chat_is_answered_as_the_teacher_answers(client, teacher):
    answer = client.chat.completions.create(model="tiny", messages=CHAT, temperature=0, max_tokens=12)
    [[expected]] = teacher.chat([CHAT], temperature=0, max_tokens=12)
    [choice] = answer.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == expected.tokens
    assert (answer.model, answer.object) == ("tiny", "chat.completion")


def test_a_stream_is_the_whole_in_pieces(client):
    asked: dict[str, Any] = {"model": "tiny", "messages": CHAT, "seed": 3, "max_tokens": 16, "n": 2}
    whole = client.chat.completions.create(**asked)
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    texts = ["", ""]
    for piece in pieces:
        for choice in piece.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert len({texts[0], texts[1]}) == 2
    assert len(pieces) > 6
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    reasons = {
        choice.index: choice.finish_reason for piece in pieces for choice in piece.choices if choice.finish_reason
    }
    assert reasons == {i: choice.finish_reason for i, choice in enumerate(whole.choices)}


def test_a_seed_gives_the_same_again_and_no_seed_does_not(client):
    def written(**more: Any) -> str:
        return client.completions.create(model="tiny", prompt="the", max_tokens=20, **more).choices[0].text

    assert written(seed=1) == written(seed=1) != written(seed=2)
    assert len({written() for _ in range(3)}) > 1


def test_a_stop_string_ends_an_answer_before_it_and_is_never_streamed(client, teacher):
    [[plain]] = teacher.complete(["the hat"], temperature=0, max_tokens=24)
    stop = plain.text[6:9]
    asked: dict[str, Any] = {"model": "tiny", "prompt": "the hat", "temperature": 0, "max_tokens": 24, "stop": [stop]}
    whole = client.completions.create(**asked)
    assert whole.choices[0].text == plain.text[: plain.text.index(stop)]
    assert whole.choices[0].finish_reason == "stop"
    streamed = "".join(
        piece.choices[0].text for piece in client.completions.create(**asked, stream=True) if piece.choices
    )
    assert streamed == whole.choices[0].text


def test_several_prompts_and_token_ids_are_continued(client, server):
    texts = ["the hat", "a mat"]
    _, told = server.ask("/tokenize", {"prompt": texts[0]})
    many = client.completions.create(model="tiny", prompt=texts, temperature=0, max_tokens=6, n=2)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    by_ids = client.completions.create(model="tiny", prompt=told["tokens"], temperature=0, max_tokens=6)
    assert by_ids.choices[0].text == many.choices[0].text == many.choices[1].text
    _, back = server.ask("/detokenize", {"tokens": told["tokens"]})
    assert back["prompt"].endswith(texts[0])
    assert told["count"] == len(told["tokens"]) == by_ids.usage.prompt_tokens


def test_log_probabilities_are_those_of_the_tokens(client, teacher):
    [[expected]] = teacher.chat([CHAT], temperature=0, max_tokens=5, logprobs=True)
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(model="tiny", messages=CHAT, **asked)
    content = answer.choices[0].logprobs.content
    assert [each.logprob for each in content] == pytest.approx([each.logprob for each in expected.logprobs], abs=1e-5)
    assert "".join(each.token for each in content) == answer.choices[0].message.content
    assert all(each.top_logprobs[0].logprob == each.logprob for each in content), "greedy takes the likeliest"
    text = client.completions.create(model="tiny", prompt="the", temperature=0, max_tokens=4, logprobs=2)
    told = text.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 4
    assert all(value <= 0 for value in told.token_logprobs)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_are_the_librarys(server, folders, encoding):
    texts = ["the hat on a mat", "red sea", "x"]
    _, answer = server.ask("/v1/embeddings", {"model": "vectors", "input": texts, "encoding_format": encoding})
    rows = [each["embedding"] for each in answer["data"]]
    if encoding == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    np.testing.assert_allclose(np.array(rows), load(folders["vectors"], dtype="float32").encode(texts), atol=1e-5)
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]


def test_the_clients_own_request_for_vectors_works_with_tokens_and_dimensions(client, server, folders):
    whole = client.embeddings.create(model="vectors", input="the hat on a mat")  # asks for base64 by itself
    ids = load(folders["vectors"]).tokenizer("the hat on a mat", add_special_tokens=False)["input_ids"]
    by_ids = client.embeddings.create(model="vectors", input=ids)
    assert by_ids.data[0].embedding == pytest.approx(whole.data[0].embedding, abs=1e-5)
    short = client.embeddings.create(model="vectors", input="the hat on a mat", dimensions=4).data[0].embedding
    cut = np.array(whole.data[0].embedding[:4])
    assert short == pytest.approx((cut / np.linalg.norm(cut)).tolist(), abs=1e-5)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="vectors", input="a", dimensions=10_000)


def test_what_is_cut_is_told_or_refused(client, server):
    text = "the hat on a mat and then " * 20
    _, answer = server.ask("/v1/embeddings", {"input": text})
    read, lost = answer["usage"]["prompt_tokens"], answer["usage"]["truncated_tokens"]
    assert read == 24
    assert lost > 50
    _, left = server.ask("/v1/embeddings", {"input": text, "truncate": "left"})
    assert left["data"][0]["embedding"] != answer["data"][0]["embedding"]
    with pytest.raises(openai.BadRequestError, match="exceeds the 24"):
        client.embeddings.create(model="vectors", input=text, extra_body={"truncate": "error"})
    with pytest.raises(openai.BadRequestError, match="truncate=left"):
        client.completions.create(model="tiny", prompt=text * 40, max_tokens=5)
    cut = client.completions.create(model="tiny", prompt=text * 40, max_tokens=5, extra_body={"truncate": "left"})
    assert cut.usage.truncated_tokens > 0


def test_documents_are_ordered_as_the_library_orders_them(server, folders):
    documents = ["a mat", "the hat", "red sea", "nine reeds", "an inn"]
    expected = ListwiseReranker.load(folders["orders"], dtype="float32").rank("the hat", documents)
    _, jina = server.ask(
        "/v1/rerank", {"model": "orders", "query": "the hat", "documents": documents, "return_documents": True}
    )
    assert [each["index"] for each in jina["results"]] == [hit["corpus_id"] for hit in expected]
    assert jina["results"][0]["document"]["text"] == documents[expected[0]["corpus_id"]]
    scores = [each["relevance_score"] for each in jina["results"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < scores[0] <= 1
    found = cohere.ClientV2("none", base_url=server.url).rerank(
        model="orders", query="the hat", documents=documents, top_n=2
    )
    assert [each.index for each in found.results] == [hit["corpus_id"] for hit in expected[:2]]


def test_continuations_get_their_log_probabilities(server, teacher):
    choices = ["hat", "red sea", "mat"]
    _, answer = server.ask("/v1/score", {"prompt": CHAT, "continuations": choices})
    expected = teacher.score([CHAT], choices)[0]
    assert [each["logprob"] for each in answer["data"]] == pytest.approx(expected.tolist(), abs=1e-4)
    _, raw = server.ask("/v1/score", {"prompt": "the hat", "continuations": choices})
    assert [each["logprob"] for each in raw["data"]] == pytest.approx(
        teacher.score(["the hat"], choices, raw=True)[0].tolist(), abs=1e-4
    )


def test_many_continuations_are_read_in_parts_that_fit(server, monkeypatch):
    writer = next(each for each in server.app.app.state.serving.models if each.name == "tiny")
    choices = [f"{word} {i}" for i in range(20) for word in ("hat", "sea")]
    _, whole = server.ask("/v1/score", {"prompt": "the hat", "continuations": choices})
    sizes: list[int] = []
    score = writer.local.score_ids
    monkeypatch.setattr(writer.local, "batch_tokens", 300)
    monkeypatch.setattr(writer.scoring, "run", lambda pairs: sizes.extend(len(c) for _, c in pairs) or score(pairs))
    _, parted = server.ask("/v1/score", {"prompt": "the hat", "continuations": choices})
    assert sum(sizes) == len(choices)
    assert max(sizes) < 10
    assert [each["logprob"] for each in parted["data"]] == pytest.approx(
        [each["logprob"] for each in whole["data"]], abs=1e-4
    )


def test_texts_are_classified_by_the_likeliest_label(server):
    labels = ["hat", "sea"]
    _, answer = server.ask("/v1/classify", {"input": ["the red sea", "a hat"], "labels": labels})
    for each in answer["data"]:
        assert sum(each["probs"]) == pytest.approx(1)
        assert each["label"] == labels[int(np.argmax(each["probs"]))]


def test_texts_are_checked_as_the_detector_checks_them(server, folders):
    texts = ["the hat on a mat and then", "x"]
    _, answer = server.ask("/v1/detect", {"model": "likelihood", "input": texts})
    expected = Likelihood(model=folders["tiny"]).score(texts)
    assert answer["data"][0]["score"] == pytest.approx(expected[0], abs=1e-5)
    assert (answer["data"][1]["score"] is None) == bool(np.isnan(expected[1]))


def test_the_list_names_what_is_served(client, server):
    assert {each.id for each in client.models.list().data} == {"tiny", "vectors", "orders", "likelihood"}
    assert client.models.retrieve("vectors").id == "vectors"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")
    with pytest.raises(openai.NotFoundError, match="for this there is: vectors"):
        client.embeddings.create(model="tiny", input="a")


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "judge", "content": "x"}]}, "role"),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "messages of text alone"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": None}]}, "messages of text alone"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages of text alone",
        ),
        ("/v1/chat/completions", {"messages": CHAT, "tools": [{"type": "function"}]}, "tools is not done by tiny"),
        ("/v1/chat/completions", {"messages": CHAT, "temperature": -1}, "temperature"),
        ("/v1/completions", {"prompt": ""}, ""),
        ("/v1/completions", {"prompt": [10**9]}, "token 1000000000"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 3000}, "input"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, ""),
        ("/v1/score", {"prompt": "a", "continuations": ["b"] * 5000}, "continuations"),
        ("/v1/score", {"prompt": [], "continuations": ["b"]}, "prompt"),
        ("/v1/completions", {"prompt": "a", "stop": [""]}, "stop"),
        ("/v1/completions", {"prompt": "a", "max_tokens": "7"}, "max_tokens"),
        ("/v1/completions", b"{", ""),
        ("/v1/completions", b'{"prompt": NaN}', ""),
        ("/v1/completions", b'{"prompt": "\\ud800"}', ""),
        ("/v1/completions", b"[" * 100_000, ""),
        ("/v1/completions", b"\xff\xfe", ""),
        ("/detokenize", {"tokens": [10**9]}, "token"),
    ],
)
def test_what_cannot_be_done_is_an_error_as_openai_has_it(server, path, body, said):
    status, answer = server.ask(path, body)
    if path == "/v1/completions" and body == {"prompt": ""} and status == 200:
        return  # a model that has a token to begin with
    assert status == 400
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert said in answer["error"]["message"]


def test_nothing_that_was_asked_is_in_an_error_or_in_the_metrics(server):
    secret = "a-very-secret-text"
    server.ask("/v1/chat/completions", {"messages": [{"role": secret, "content": secret}], "model": secret})
    _, answer = server.ask("/v1/embeddings", {"model": secret, "input": secret})
    assert secret not in str(answer)
    _, text = server.ask("/metrics")
    assert secret not in text
    assert 'broadsheet_tokens_total{kind="read",model="tiny"}' in text


def test_health_and_metrics_answer(server):
    assert server.ask("/health/live")[0] == server.ask("/health/ready")[0] == 200
    assert server.ask("/nowhere")[0] == 404
    assert server.ask("/v1/models", {}, "POST")[0] == 405


def test_requests_are_counted_by_route_and_status(server):
    server.ask("/health/live")
    server.ask("/v1/chat/completions", {"messages": []})
    server.ask("/v1/whatever-a-client-likes")
    _, text = server.ask("/metrics")
    assert 'broadsheet_requests_total{route="/health/live",status="200"}' in text
    assert 'broadsheet_requests_total{route="/v1/chat/completions",status="400"}' in text
    assert 'broadsheet_requests_total{route="none",status="404"}' in text
    assert "whatever" not in text


def test_who_hangs_up_frees_what_was_asked(server):
    """A stream, and an answer that is waited for: both are given up within a step."""
    engine = next(each.engine for each in server.app.app.state.serving.models if each.name == "tiny")
    host, port = server.url.removeprefix("http://").split(":")
    for stream in (True, False):
        body = json.dumps({"prompt": "the", "max_tokens": 900, "temperature": 0, "stream": stream, "stop": ["never"]})
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            wait_until(lambda: engine.live == 1)
            if stream:
                assert b"200 OK" in connection.recv(100)
        wait_until(lambda: engine.live == 0)
    assert server.app.active == 0


def test_sixteen_at_once_get_what_each_would_get_alone(server, teacher):
    prompts = [f"the {'hat on a mat ' * i}" for i in range(16)]
    expected = [answer.text for [answer] in teacher.complete(prompts, temperature=0, max_tokens=10)]

    def asked(prompt: str) -> str:
        _, answer = server.ask("/v1/completions", {"prompt": prompt, "temperature": 0, "max_tokens": 10})
        return answer["choices"][0]["text"]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(asked, prompts)) == expected


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def test_a_failure_of_ours_is_500_and_neither_it_nor_the_log_holds_what_was_asked(server, monkeypatch, capsys):
    def broken(self, *asked):
        raise RuntimeError(f"failed on {asked}")

    monkeypatch.setattr("broadsheet.serve.models.writer.LocalWriter._reading", broken)
    secret = "a-very-secret-text"
    status, answer = server.ask("/v1/completions", {"prompt": secret})
    assert (status, answer["error"]["type"]) == (500, "server_error")
    assert secret not in str(answer)
    said: list[str] = []

    def logged() -> bool:
        said.append(capsys.readouterr().err)
        return "RuntimeError in test_routes.py, line" in "".join(said)

    wait_until(logged)
    assert secret not in "".join(said)


def test_two_hundred_at_once_are_all_answered(server):
    def asked(i: int) -> int:
        if i % 2:
            return server.ask("/v1/embeddings", {"input": f"hat {i}"})[0]
        return server.ask("/v1/completions", {"prompt": "a", "max_tokens": 2})[0]

    with ThreadPoolExecutor(200) as pool:
        assert set(pool.map(asked, range(200))) == {200}

"""The teacher over HTTP, against a real server on loopback: answers, faults, cache, budget, scores from an endpoint."""

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from forks import begin
from loopback import Loopback, body, call, drip, drop, encoded, slow, status

from broadsheet.console import InputError
from broadsheet.teacher import Budget, BudgetExhausted, Teacher, TokenLogprob, bounds
from broadsheet.teacher.calibrate import batch_median, content_free

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "BROADSHEET_TEACHER"):
        monkeypatch.delenv(name, raising=False)


def load(server, **options):
    options = {"key": KEY, "backoff": 0.001, "timeout": 5.0} | options
    return Teacher.load("endpoint:tiny", url=server.url, **options)


def texts(answers):
    return [[answer.text for answer in row] for row in answers]


# What goes over the wire, and what comes back


def test_a_request_carries_every_setting_and_the_key():
    with Loopback() as server:
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        load(server).chat([chat], temperature=0.5, top_p=0.9, max_tokens=7, stop=["\n"], logprobs=True)
    [(path, sent)] = server.requests
    seed = sent.pop("seed")
    assert path == "/v1/chat/completions"
    assert sent == {
        "model": "tiny",
        "messages": chat,
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "stop": ["\n"],
        "logprobs": True,
    }
    assert 0 <= seed < 2**31
    assert server.keys == [f"Bearer {KEY}"]


def test_answers_come_in_the_order_of_the_conversations():
    with Loopback() as server:
        teacher = load(server, concurrency=4)
        answers = teacher.chat([f"word{i}" for i in range(20)])
    assert [row[0].text.split()[0] for row in answers] == [f"word{i}" for i in range(20)]
    assert (teacher.usage.requests, teacher.usage.prompt_tokens, teacher.usage.completion_tokens) == (20, 200, 40)
    assert {(row[0].tokens, row[0].prompt_tokens, row[0].finish_reason) for row in answers} == {(2, 10, "stop")}


def test_logprobs_and_stop():
    with Loopback() as server:
        teacher = load(server)
        [[with_logprobs]] = teacher.chat(["a b"], logprobs=True)
        [[without]] = teacher.chat(["a b"])
        [[stopped]] = teacher.chat(["a b"], stop=" b")
        [[raw]] = teacher.complete(["a b"], logprobs=True)
    assert with_logprobs.logprobs[:2] == [TokenLogprob("a", -0.5), TokenLogprob(" b", -0.5)]
    assert without.logprobs is None
    assert stopped.text == "a"
    assert raw.logprobs[1] == TokenLogprob(" b", -0.5)
    assert server.requests[-1][0] == "/v1/completions"
    assert server.bodies[-1]["prompt"] == "a b"


@pytest.mark.parametrize(("several", "requests"), [("honoured", 1), ("ignored", 5), ("refused", 6)])
def test_n_answers_however_the_server_takes_n(several, requests):
    with Loopback(several=several) as server:
        teacher = load(server)
        [answers] = teacher.chat(["hi"], n=5)
        more = teacher.chat(["hi"], n=7)[0]
    assert len({answer.text for answer in answers}) == 5
    assert more[:5] == answers, "a larger n keeps the answers that are there"
    assert len({answer.text for answer in more}) == 7
    assert len(server.requests) == requests + (1 if several == "honoured" else 2)


def test_seeds_differ_by_seed_and_prompt_and_repeat():
    def seeds(**settings):
        with Loopback() as server:
            load(server, concurrency=1).chat(["a", "b"], **settings)
        return [sent["seed"] for sent in server.bodies]

    assert seeds(seed=1) == seeds(seed=1), "even where the server has moved to another port"
    assert len({*seeds(seed=1), *seeds(seed=2)}) == 4


def test_greedy_answers_are_asked_for_once():
    with Loopback() as server:
        [answers] = load(server).chat(["hi"], n=4, temperature=0)
    assert len(server.requests) == 1
    assert "n" not in server.bodies[0]
    assert len(answers) == 4
    assert len(set(texts([answers])[0])) == 1


def test_extra_fields_are_sent_and_removed_and_keyed():
    with Loopback() as server:
        load(server).chat(["hi"])
        load(server, extra={"max_tokens": None, "max_completion_tokens": 9}).chat(["hi"])
    assert len(server.requests) == 2
    assert server.bodies[1]["max_completion_tokens"] == 9
    assert "max_tokens" not in server.bodies[1]


def test_url_key_and_model_from_the_environment(monkeypatch):
    with Loopback() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
        monkeypatch.setenv("BROADSHEET_TEACHER", "endpoint:from-environment")
        Teacher.load().chat(["hi"])
    assert server.bodies[0]["model"] == "from-environment"
    assert server.keys == [f"Bearer {KEY}"]


# Faults


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(503),
        status(429, retry_after="0.01"),
        status(408),
        drop(),
        body("{not json"),
        body("[]"),
        body('{"choices": []}'),
        body('{"choices": [{"message": {"content": 5}}]}'),
        body('{"error": {"message": "upstream is down"}}'),
    ],
    ids=["500", "503", "429", "408", "dropped", "malformed", "list", "no choices", "content 5", "error as 200"],
)
def test_a_passing_fault_is_tried_again(fault):
    with Loopback(faults=[fault, None, fault]) as server:
        teacher = load(server, concurrency=1)
        answers = teacher.chat(["a", "b"])
    assert [row[0].text.split()[0] for row in answers] == ["a", "b"]
    assert len(server.requests) == teacher.usage.requests == 4


def test_an_answer_that_does_not_come_in_time_is_asked_for_again():
    with Loopback(faults=[slow(0.5)]) as server:
        [[answer]] = load(server, timeout=0.1).chat(["a"])
    assert answer.text.startswith("a ")
    assert len(server.requests) == 2


def test_retry_after_is_honoured_and_a_long_one_is_said(monkeypatch):
    waits = []
    monkeypatch.setattr("broadsheet.teacher.base.Meter.wait", lambda self, seconds: waits.append(seconds))
    clock = iter(range(0, 1000, 40))
    monkeypatch.setattr("broadsheet.teacher.endpoint.time.monotonic", lambda: next(clock))
    with Loopback(faults=[status(429, retry_after="110")]) as server:
        load(server, concurrency=1).chat(["a"])
    assert waits, "it waited"
    assert 0 < max(waits) <= 110
    with (
        Loopback(faults=[status(429, retry_after="7200")]) as server,
        pytest.raises(InputError, match=r"7,200 s .*run again"),
    ):
        load(server).chat(["a"])
    assert len(server.requests) == 1


def test_an_answer_that_drips_is_given_up_in_time():
    begun = time.monotonic()
    with Loopback(faults=[drip(0.02)] * 2) as server:
        assert load(server, timeout=0.3, retries=2).chat(["a"])
    assert time.monotonic() - begun < 10, "a byte now and then holds nobody"
    with Loopback(faults=[drip(0.02)] * 9) as server, pytest.raises(InputError, match=r"no answer within 0\.3 s"):
        load(server, timeout=0.3, retries=1).chat(["a"])


def test_an_answer_that_is_too_large_or_compressed_is_not_read(monkeypatch):
    monkeypatch.setattr("broadsheet.teacher.endpoint.bounded", lambda seconds: bounds.bounded(seconds, 10_000))
    with (
        Loopback(faults=[body("[" + " " * 20_000)] * 9) as server,
        pytest.raises(InputError, match="more than 10,000 bytes"),
    ):
        load(server, retries=1).chat(["a"])
    bomb = gzip.compress(b" " * 5_000_000)
    with Loopback(faults=[encoded("gzip", bomb)] * 9) as server, pytest.raises(InputError, match="a body in 'gzip'"):
        load(server, retries=1).chat(["a"])
    with Loopback() as server:
        load(server).chat(["a"])
        assert server.bodies


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        json.dumps({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1e300}}),
        json.dumps({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": -1}}),
        '{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": NaN}}',
        '{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1000000000}}',
    ],
    ids=["deep", "1e300 tokens", "fewer than none", "no number", "a thousand million"],
)
def test_an_absurd_body_is_tried_again_and_costs_nothing(text):
    with Loopback(faults=[body(text)]) as server:
        teacher = load(server)
        assert teacher.chat(["a"])
        assert len(server.requests) == 2
        assert teacher.usage.prompt_tokens < 100


def test_half_a_surrogate_pair_in_an_answer_harms_nothing(tmp_path):
    answer = '{"choices": [{"message": {"content": "a \\ud83d b \\u00e9 \\ud83d\\ude00"}}]}'
    with Loopback(faults=[body(answer)]) as server:
        first = load(server, cache=True).chat(["a"])
        again = load(server, cache=True).chat(["a"])
        assert len(server.requests) == 1, "it was kept"
    assert first[0][0].text == "a \ufffd b é 😀"
    assert again[0][0].text == first[0][0].text


def test_an_answer_that_says_the_key_is_kept_without_it(tmp_path):
    key = "sk-0123456789abcdef"
    hidden = base64.b64encode(f"Bearer {key}".encode()).decode()
    answer = json.dumps({"choices": [{"message": {"content": f"you sent {key}, or {hidden}"}}]})
    with Loopback(faults=[body(answer)]) as server:
        said = load(server, key=key, cache=True).chat(["a"])
    assert said[0][0].text.startswith("you sent ***, or ")
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert kept, "it is in the cache"
    assert key.encode() not in kept
    assert hidden.encode() not in kept


def test_giving_up_names_the_last_fault():
    with Loopback(faults=[status(500)] * 9) as server, pytest.raises(InputError, match=r"3 tries.*HTTP 500"):
        load(server, retries=2).chat(["a"])
    assert len(server.requests) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_a_lasting_fault_fails_at_once_in_one_line_without_the_key(code, capfd, tmp_path):
    refusal = status(code, f"bad key {KEY}\nsecond line")
    with Loopback(faults=[refusal] * 9) as server, pytest.raises(InputError) as caught:
        load(server).chat(["a"])
    assert len(server.requests) == 1
    assert f"HTTP {code}" in str(caught.value)
    assert "\n" not in str(caught.value)
    error, seen = caught.value, []
    while error:
        seen.append(f"{error!r}")
        error = error.__cause__ or error.__context__
    said = capfd.readouterr()
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in "".join(seen) + said.out + said.err
    assert KEY.encode() not in files


def test_answers_before_a_lasting_fault_are_kept():
    with Loopback(faults=[None, None, status(401)]) as server:
        with pytest.raises(InputError):
            load(server, concurrency=1).chat(["a", "b", "c", "d"])
        teacher = load(server)
        teacher.chat(["a", "b", "c", "d"])
    assert teacher.usage.cache_hits == 2
    assert len(server.requests) == 3 + 2


def test_nobody_listens():
    with Loopback() as server:
        url = server.url
    with pytest.raises(InputError, match="2 tries"):
        Teacher.load("endpoint:tiny", url=url, retries=1, backoff=0.001).chat(["a"])


def test_requests_in_flight_reach_the_bound_and_stay_within_it():
    with Loopback(together=threading.Barrier(3)) as server:
        load(server, concurrency=3, retries=0).chat([f"{i}" for i in range(12)])
    assert server.peak == 3


# The cache


def test_a_second_run_asks_nothing():
    with Loopback() as server:
        first = load(server).chat(["a", "b"], n=2, logprobs=True)
        again = load(server)
        second = again.chat(["b", "a"], n=2, logprobs=True)
    assert second == first[::-1]
    assert len(server.requests) == 2
    assert (again.usage.requests, again.usage.cache_hits) == (0, 4)


def test_every_setting_is_part_of_the_key():
    settings = [
        {},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"max_tokens": 9},
        {"stop": "x"},
        {"seed": 1},
        {"logprobs": True},
    ]
    with Loopback() as server:
        teacher = load(server)
        for setting in settings:
            teacher.chat(["a"], **setting)
        teacher.complete(["a"])
        Teacher.load("endpoint:other", url=server.url).chat(["a"])
    assert len(server.requests) == len(settings) + 2


def test_cache_false_asks_each_time_and_writes_nothing(tmp_path):
    with Loopback() as server:
        teacher = load(server, cache=False)
        assert teacher.chat(["a"]) == teacher.chat(["a"])
    assert len(server.requests) == 2
    assert not (tmp_path / "teacher").exists()


def test_equal_conversations_are_asked_once():
    with Loopback() as server:
        answers = load(server).chat(["a", "b", "a"])
    assert answers[0] == answers[2]
    assert len(server.requests) == 2


def test_a_killed_run_resumes_with_what_is_missing(tmp_path):
    program = (
        "import sys; from broadsheet.teacher import Teacher\n"
        "Teacher.load('endpoint:tiny', url=sys.argv[1], concurrency=1).chat([f'p{i}' for i in range(10)])\n"
    )
    children = []
    kill = call(lambda: os.kill(children[0].process.pid, signal.SIGKILL))
    with Loopback(faults=[None] * 4 + [kill]) as server:
        children.append(begin(program, server.url))
        assert children[0].finish().returncode == -signal.SIGKILL
        assert len(server.requests) == 5
        teacher = load(server)
        answers = teacher.chat([f"p{i}" for i in range(10)])
    assert [row[0].text.split()[0] for row in answers] == [f"p{i}" for i in range(10)]
    assert len(server.requests) == 5 + 6
    assert teacher.usage.cache_hits == 4


def test_two_processes_share_the_cache(tmp_path):
    program = (
        "import sys; from pathlib import Path; from broadsheet.teacher.store import Store\n"
        "for i in range(40):\n"
        "    with Store(Path(sys.argv[1])) as store: store.put({f'{sys.argv[2]}{i}': i, f'both{i}': sys.argv[2]})\n"
    )
    path = tmp_path / "cache.sqlite"
    children = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "ab"]
    assert [child.wait(60) for child in children] == [0, 0]
    from broadsheet.teacher.store import Store

    with Store(path) as store:
        found = store.get([f"{name}{i}" for name in ("a", "b", "both") for i in range(40)])
    assert len(found) == 120


@pytest.mark.parametrize("damage", ["whole", "inside"])
def test_a_damaged_cache_is_said_and_moved_aside(damage, tmp_path, capsys):
    path = tmp_path / "teacher" / "cache.sqlite"
    with Loopback() as server:
        load(server).chat([f"{i} " + "long " * 50 for i in range(50)])
        content = path.read_bytes()
        assert len(content) > 3 * 4096
        path.write_bytes(
            b"not a database" * 500 if damage == "whole" else content[:4096] + b"\xff" * (len(content) - 4096)
        )
        load(server).chat([f"{i} " + "long " * 50 for i in range(50)])
        assert "damaged" in capsys.readouterr().err
        assert len(list(path.parent.glob("cache.sqlite.damaged-*"))) == 1
        assert len(server.requests) == 100
        load(server).chat([f"{i} " + "long " * 50 for i in range(50)])
        assert len(server.requests) == 100, "the new cache serves"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "teacher").write_text("a file where the folder should be")
    with Loopback() as server, pytest.raises(InputError, match="cache=False"):
        load(server).chat(["a"])


# The budget


def test_a_request_budget_is_exact_and_a_larger_one_goes_on():
    with Loopback() as server:
        with pytest.raises(BudgetExhausted, match=r"5 requests.*5 of 12") as caught:
            load(server, budget=Budget(requests=5)).chat([f"{i}" for i in range(12)])
        assert (caught.value.finished, caught.value.wanted, len(server.requests)) == (5, 12, 5)
        teacher = load(server, budget=Budget(requests=7))
        teacher.chat([f"{i}" for i in range(12)])
        assert len(server.requests) == 12
        teacher.chat([f"{i}" for i in range(12)])
    assert len(server.requests) == 12, "cached answers cost nothing"


def test_retries_count_as_requests():
    with Loopback(faults=[status(500)] * 9) as server, pytest.raises(BudgetExhausted):
        load(server, budget=Budget(requests=3)).chat(["a"])
    assert len(server.requests) == 3


def test_a_token_budget_stops_once_passed():
    budget = Budget(tokens=30)
    with Loopback() as server, pytest.raises(BudgetExhausted):
        load(server, budget=budget, concurrency=1).chat([f"{i}" for i in range(9)])
    assert len(server.requests) == 3, "12 tokens each: the third passes 30"
    assert budget.spent_tokens == 36


def test_a_token_budget_needs_a_server_that_counts():
    with Loopback(counts=False) as server, pytest.raises(InputError, match=r"Budget\(requests"):
        load(server, budget=Budget(tokens=30)).chat(["a"])


def test_a_budget_is_shared_between_teachers():
    budget = Budget(requests=3)
    with Loopback() as server:
        load(server, budget=budget).chat(["a", "b"])
        with pytest.raises(BudgetExhausted):
            load(server, budget=budget).chat(["c", "d"])
    assert len(server.requests) == 3


# Scores from an endpoint


def test_conversations_are_scored_by_first_tokens():
    top = [("pos", -0.1), (" neg", -3.0), ("neg", -4.0), ("ne", -2.0), ("", -1.0), ("other", -5.0)]
    with Loopback(top=top) as server:
        scores = load(server).score(["good film", "bad film"], ["positive", "negative"])
    assert server.bodies[0]["top_logprobs"] == 20
    assert server.bodies[0]["max_tokens"] == 1
    np.testing.assert_allclose(scores, [[-0.1, np.logaddexp(-3.0, -4.0)]] * 2)


@pytest.mark.parametrize(
    ("choices", "message"),
    [(["positive", "unlikely"], "unlikely.*likeliest"), (["positive", "possible"], "both begin with the token 'pos'")],
)
def test_choices_that_first_tokens_cannot_tell(choices, message):
    with Loopback(top=[("pos", -0.1)]) as server, pytest.raises(InputError, match=message):
        load(server).score(["good film"], choices)
    assert len(server.requests) == 1, "no use in trying again"


def test_no_alternatives_no_scores():
    with Loopback() as server, pytest.raises(InputError, match="no log-probabilities"):
        load(server).score(["good film"], ["yes", "no"])


def test_texts_are_scored_by_echo():
    with Loopback() as server:
        teacher = load(server)
        scores = teacher.score(["one two"], [" three", " three four"], raw=True)
        by_token = teacher.score(["one two"], [" three", " three four"], raw=True, per_token=True)
    np.testing.assert_allclose(scores, [[-2.0, -2.0 - 3.0]])
    np.testing.assert_allclose(by_token, [[-2.0, -2.5]])
    assert len(server.requests) == 1, "one request for all choices, then the cache"


def test_a_server_that_ignores_echo_is_found_out():
    with Loopback(echoes=False) as server, pytest.raises(InputError, match="echo"):
        load(server).score(["one two"], [" three", " four"], raw=True)


# Calibration


def test_batch_median_centres_each_choice_and_ignores_what_all_prompts_share():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(11, 3)) + np.array([0.0, 9.0, -4.0])
    calibrated = batch_median(scores)
    np.testing.assert_allclose(np.median(calibrated, axis=0), 0, atol=1e-12)
    per_prompt = rng.normal(size=(11, 1))
    np.testing.assert_allclose(batch_median(scores + per_prompt), calibrated, atol=1e-12)
    two = batch_median(scores[:10, :2])
    assert (two.argmax(axis=1) == 0).sum() == 5, "two choices split the batch in halves"


def test_content_free_inputs_score_nothing_themselves_and_a_common_taste_cancels():
    rng = np.random.default_rng(0)
    scores, baseline = rng.normal(size=(5, 3)), rng.normal(size=(1, 3))
    np.testing.assert_allclose(content_free(baseline, baseline), 0, atol=1e-12)
    taste = np.array([5.0, 0.0, -5.0])
    np.testing.assert_array_equal(
        content_free(scores + taste, baseline + taste).argmax(1), content_free(scores, baseline).argmax(1)
    )
    shares = np.exp(baseline) / np.exp(baseline).sum()
    expected = np.log(np.exp(scores) / np.exp(scores).sum(1, keepdims=True)) - np.log(shares)
    np.testing.assert_allclose(content_free(scores, np.repeat(baseline, 3, axis=0)), expected)


# What cannot be used


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ("a bare string", r"wrap it: \[prompt\]"),
        ({"role": "user", "content": "x"}, "wrap it"),
        ([{"role": "user", "content": "x"}], r"conversation 0: got a single message"),
        (["fine", []], "conversation 1: expected messages"),
        ([[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]], "end with the user's"),
        ([[{"role": "robot", "content": "x"}]], "role 'robot'"),
        ([[{"role": "user"}]], "'content'"),
        ([[{"role": "user", "content": 3}]], "got int, expected str"),
        (["\ud800"], "surrogate"),
    ],
)
def test_conversations_that_cannot_be_used(conversations, message):
    with Loopback() as server, pytest.raises(InputError, match=message):
        load(server).chat(conversations)
    assert not server.requests


@pytest.mark.parametrize(
    "setting",
    [{"n": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_tokens": 0}, {"stop": [""]}],
    ids=str,
)
def test_settings_that_cannot_be_used(setting):
    with Loopback() as server, pytest.raises(InputError, match=f"{next(iter(setting))}="):
        load(server).chat(["a"], **setting)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"choices": []}, "choices"),
        ({"choices": ["a", "a"]}, "different"),
        ({"choices": ["a", ""]}, "empty"),
        ({"choices": [["a", "b"]]}, "for 1 prompts"),
        ({"choices": [["a", "b"], ["a"]]}, "equally long"),
        ({"choices": "ab"}, "wrap"),
        ({"choices": [["a", "b"], ["c", "d"]], "calibration": "batch_median"}, "same choices"),
        ({"choices": ["a", "b"], "calibration": "median"}, "calibration='median'"),
        ({"choices": ["a", "b"], "calibration": "content_free"}, "content_free_prompts"),
        ({"choices": ["a", "b"], "content_free_prompts": ["N/A"]}, "content_free_prompts"),
        ({"prompts": ["x"], "choices": ["a", "b"], "calibration": "batch_median"}, "two prompts"),
    ],
)
def test_scoring_that_cannot_be_done(arguments, message):
    with Loopback() as server, pytest.raises(InputError, match=message):
        load(server).score(**{"prompts": ["x", "y"], **arguments})
    assert not server.requests


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("endpoint:", {"url": "http://127.0.0.1:1/v1"}, "no model name"),
        ("endpoint:m", {}, "OPENAI_API_KEY"),
        ("endpoint:m", {"url": "localhost:8000"}, "http"),
        ("endpoint:m", {"url": "http://host:port/v1"}, "http"),
        ("endpoint:m", {"url": f"https://user:{KEY}@example.com/v1"}, "credentials"),
        ("endpoint:m", {"url": f"https://example.com/v1?key={KEY}"}, "credentials"),
        ("endpoint:m", {"url": "http://127.0.0.1:1/v1", "key": f"{KEY}\n{KEY}"}, "no HTTP header"),
        ("endpoint:m", {"url": "http://127.0.0.1:1/v1", "slots": 3}, "slots"),
        ("llamacpp:/nowhere/model.gguf", {}, "no such file"),
    ],
)
def test_teachers_that_cannot_be_loaded(spec, options, message):
    if spec.startswith("llamacpp"):
        pytest.importorskip("xllamacpp")
    with pytest.raises(InputError, match=message) as caught:
        Teacher.load(spec, **options)
    assert KEY not in str(caught.value)


def test_importing_the_package_is_cheap():
    program = (
        "import sys, broadsheet.teacher; print(sorted({'torch', 'openai', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_the_cache_holds_answers_only(tmp_path):
    with Loopback() as server:
        load(server).chat(["a private question"], stop="private")
    import sqlite3

    connection = sqlite3.connect(tmp_path / "teacher" / "cache.sqlite")
    [(key, value)] = connection.execute("SELECT * FROM answers")
    connection.close()
    assert len(key.split("/")[0]) == 64
    assert json.loads(value)["text"] == "a "

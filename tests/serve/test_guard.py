"""The guard, by raw requests to an app behind it: who may pass, how much, how large."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from broadsheet.console import InputError
from broadsheet.serve.guard import COOKIE, Bucket, Guard, KeyRing, Limits

ALL, INFER, OTHER = "k" * 24, "i" * 24, "o" * 24
RIGHTS: Any = {"/v1/models": "read", "/v1/": "infer", "/health": "read", "/metrics": "read"}


async def _app(scope: Any, receive: Any, send: Any) -> None:
    """Says how long the body was."""
    size = len((await receive()).get("body", b""))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def guard(*lines: str, **limits: Any) -> Guard:
    return Guard(_app, KeyRing(lines), Limits(**limits), RIGHTS)


def ask(
    made: Guard, path: str, method: str = "GET", parts: tuple[bytes, ...] = (b"",), stall: bool = False, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of a request whose body comes in parts."""
    given = {"host": "localhost:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    sent: list[Any] = []
    messages = [
        {"type": "http.request", "body": part, "more_body": stall or i + 1 < len(parts)} for i, part in enumerate(parts)
    ]

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": raw}
    asyncio.run(made(scope, receive, send))
    start, body = sent
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body["body"]


def error(body: bytes) -> str:
    found = json.loads(body)["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    return found["type"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/v1/chat/completions", "/health/live", "/metrics", "/nothing", "//v1/x"]
)
@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", f"Bearer {OTHER}", f"Basic {ALL}", f"Bearer {ALL}x", ALL]
)
def test_without_a_key_that_is_known_nothing_passes(path, method, authorization):
    headers = {"authorization": authorization} if authorization else {}
    status, head, body = ask(guard(ALL), path, method, **headers)
    assert status == 401
    assert head["www-authenticate"] == "Bearer"
    assert error(body) == "authentication_error"
    assert ALL.encode() not in body


def test_a_key_passes_where_it_has_the_right():
    made = guard(ALL, f"{INFER} infer")
    assert ask(made, "/metrics", authorization=f"Bearer {ALL}")[0] == 200
    assert ask(made, "/v1/embeddings", "POST", authorization=f"bearer {INFER}")[0] == 200
    for path in ("/metrics", "/v1/models", "/mcp", "/"):
        status, _, body = ask(made, path, authorization=f"Bearer {INFER}")
        assert (status, error(body)) == (403, "permission_error")
    assert ask(made, "/mcp", authorization=f"Bearer {ALL}")[0] == 200


def test_health_needs_no_key_where_it_is_open_and_nothing_else_does():
    made = guard(ALL, open_health=True)
    assert ask(made, "/health/live")[0] == 200
    assert ask(made, "/v1/models")[0] == 401


def test_a_key_has_so_many_requests_and_tokens_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("broadsheet.serve.guard._now", lambda: now[0])
    made = guard(f"{ALL} requests=2", f"{INFER} tokens=100")
    for _ in range(2):
        assert ask(made, "/v1/models", authorization=f"Bearer {ALL}")[0] == 200
    status, head, body = ask(made, "/v1/models", authorization=f"Bearer {ALL}")
    assert (status, error(body), head["retry-after"]) == (429, "rate_limit_error", "30")
    now[0] += 30
    assert ask(made, "/v1/models", authorization=f"Bearer {ALL}")[0] == 200
    bucket = Bucket(100)
    bucket.spend(160)
    assert bucket.wait() == pytest.approx(61 * 60 / 100)
    now[0] += 61 * 60 / 100
    assert bucket.wait() == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://elsewhere"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"origin": "http://localhost:8000", "cookie": f"{COOKIE}=guess"}, 403),
        ({"origin": "http://localhost:8000", "cookie": "TOKEN"}, 200),
        ({"origin": "http://localhost:3000", "cookie": "TOKEN"}, 403),  # of the same site, so the cookie comes
        ({"sec_fetch_site": "same-site", "cookie": "TOKEN"}, 403),
        ({"origin": "https://in.front.example", "sec_fetch_site": "same-origin", "cookie": "TOKEN"}, 200),
    ],
)
def test_a_browser_needs_the_pages_cookie_for_what_changes_something(headers, status):
    made = guard()
    given = {name: value.replace("TOKEN", f"a=b; {COOKIE}={made.token}") for name, value in headers.items()}
    assert ask(made, "/v1/chat/completions", "POST", **given)[0] == status
    assert ask(made, "/v1/models", "GET", **given)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("", 421),
        ("localhost.evil", 421),
    ],
)
def test_only_names_that_are_its_own_are_answered(host, status):
    assert ask(guard(), "/v1/models", host=host)[0] == status
    assert ask(guard(hosts=("models.example",)), "/v1/models", host="models.example:80")[0] == 200


def test_a_body_is_as_long_as_may_be_whether_it_says_so_or_not():
    made = guard(body_bytes=10)
    assert ask(made, "/v1/x", "POST", (b"12345", b"67890"))[2] == b"10"
    for parts, headers in (
        ((b"x",), {"content_length": "11"}),
        ((b"123456", b"789012"), {}),
        ((b"x",), {"content_length": "-1"}),
    ):
        status, head, body = ask(made, "/v1/x", "POST", parts, **headers)
        assert (status, error(body), head["connection"]) == (413, "invalid_request_error", "close")


def test_a_body_that_does_not_come_is_not_waited_for():
    status, _, body = ask(guard(body_seconds=0.05), "/v1/x", "POST", (b"begun",), stall=True)
    assert (status, error(body)) == (408, "invalid_request_error")


def test_what_is_answered_in_parts_passes_as_it_comes():
    seen: list[Any] = []

    async def parts(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for i in range(3):
            assert len(seen) == i + 1, "each part is out before the next is made"
            await send({"type": "http.response.body", "body": str(i).encode(), "more_body": i < 2})

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        seen.append(message)

    made = Guard(parts, KeyRing(), Limits(), RIGHTS)
    scope = {"type": "http", "path": "/mcp", "method": "POST", "headers": [(b"host", b"localhost")]}
    asyncio.run(made(scope, receive, send))
    assert [each.get("body") for each in seen] == [None, b"0", b"1", b"2"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("short", "fewer than 16"),
        (f"{ALL} everything", "something else"),
        (f"{ALL} tokens=many", "something else"),
        (f"{ALL} infer,write", "something else"),
        (f"{ALL} requests=0", "something else"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_without_telling_the_key(line, said):
    with pytest.raises(InputError, match=said) as refused:
        KeyRing(["# ours", "", line])
    assert ALL not in str(refused.value)
    assert "key 3" in str(refused.value)


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path):
    (tmp_path / "keys").write_text(f"# ours\n\n{ALL} infer,read\n")
    assert KeyRing.of(tmp_path / "keys", {}).find(f"Bearer {ALL}").rights == {"infer", "read"}
    assert KeyRing.of(None, {"BROADSHEET_SERVE_KEYS": ALL}).find(f"Bearer {ALL}")
    assert not KeyRing.of(None, {})
    with pytest.raises(InputError, match="cannot read the keys"):
        KeyRing.of(tmp_path / "missing", {})


def test_copies_of_a_ring_in_other_processes_share_what_is_left(monkeypatch, tmp_path: Path):
    now = [0.0]
    monkeypatch.setattr("broadsheet.serve.guard._now", lambda: now[0])
    ring = KeyRing([ALL, f"{INFER} requests=2 tokens=100", f"{OTHER} requests=2"])
    ring.share(tmp_path)
    first, second = (pickle.loads(pickle.dumps(ring)) for _ in range(2))
    one, two = (each.find(f"Bearer {INFER}") for each in (first, second))
    assert [one.admit(), two.admit(), one.admit(), two.admit()] == [0, 0, 30, 30]
    now[0] += 30
    assert one.admit() == 0
    assert two.admit() == pytest.approx(30)
    now[0] += 60
    one.tokens.spend(160)
    assert two.admit() == pytest.approx(61 * 60 / 100)
    assert second.find(f"Bearer {OTHER}").admit() == 0, "each key has its own"

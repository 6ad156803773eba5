"""The guard: who may ask what, how much at once, and how large. It stands in front of every route.

Knows: headers, keys, bytes. Does not know: what a route does. Keys are compared by their SHA-256 in constant time, and
are in no log, error or metric. A program gives its key with each request; a person gives it once, and is known by a
cookie (`sessions`). A browser sends that whoever has made it ask, so what changes something must come from this
server's own page.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
import struct
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broadsheet.console import InputError, say, where
from broadsheet.serve.protocol import error
from broadsheet.serve.sessions import SESSION, Sessions

Right = Literal["infer", "read", "run"]
Why = Literal["", "old page", "elsewhere", "infer", "read", "run"]
RIGHTS: tuple[Right, ...] = ("infer", "read", "run")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
COOKIE = "broadsheet_token"
_now = time.monotonic
_OPEN_BYTES = 4096  # of a body that needs no key
_SAFE = ("GET", "HEAD", "OPTIONS")
_STATE = struct.Struct("dd")  # what is left of a bucket, and when it was


@dataclass(eq=False)
class Bucket:
    """So much a minute: full at first, refilled steadily; spending may leave it in debt.

    Attributes:
        file: that holds what is left where several processes spend of it; None in a process alone.
    """

    per_minute: float
    left: float = field(init=False)
    at: float = field(init=False)
    file: Path | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.left, self.at = self.per_minute, _now()

    def share(self, file: Path) -> None:
        """Keep what is left in a file, of which copies of this bucket in other processes spend too."""
        file.write_bytes(_STATE.pack(self.left, self.at))
        self.file = file

    def wait(self) -> float:
        """Seconds until there is something left; 0 if there is."""
        return self.take(0)

    def take(self, amount: float) -> float:
        """Spend where there is something left; else the seconds until there is."""
        with self._held():
            if self.left > 1 - 1e-9:
                self.left -= amount
                return 0.0
            return (1 - self.left) * 60 / self.per_minute

    def spend(self, amount: float) -> None:
        """Spend, whatever is left."""
        with self._held():
            self.left -= amount

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The state as it is now, which nobody else changes meanwhile."""
        if self.file is None:
            self._refill()
            yield
            return
        import fcntl

        with self.file.open("r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a process that is killed lets go of it
            self.left, self.at = _STATE.unpack(file.read(_STATE.size))
            self._refill()
            yield
            file.seek(0)
            file.write(_STATE.pack(self.left, self.at))

    def _refill(self) -> None:
        now = _now()
        self.left = min(self.per_minute, self.left + (now - self.at) * self.per_minute / 60)
        self.at = now


@dataclass(eq=False)
class Key:
    """A key's digest, what it may do, and how much of it a minute."""

    digest: bytes
    rights: frozenset[Right] = frozenset(RIGHTS)
    requests: Bucket | None = None
    tokens: Bucket | None = None

    def admit(self) -> float:
        """Take one request of what the key may; where nothing is left, the seconds until there is."""
        return (self.tokens.wait() if self.tokens else 0.0) or (self.requests.take(1) if self.requests else 0.0)


class KeyRing:
    """The keys that are known; without any, everybody on this machine may ask everything.

    Args:
        given: lines: the key, perhaps then its rights with commas between, perhaps then `requests=60` and
            `tokens=100000`, both a minute. Lines that are empty or begin with # are left out.

    Raises:
        InputError: a line that cannot be read (which is not told), or a key of fewer than 16 characters.
    """

    def __init__(self, given: Iterable[str] = ()) -> None:
        self._keys = [
            _key(line, number) for number, line in enumerate(given, 1) if line.strip() and line.strip()[0] != "#"
        ]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    @classmethod
    def of(cls, file: Path | None, environment: Mapping[str, str]) -> KeyRing:
        """Those of a file, or of `BROADSHEET_SERVE_KEYS`."""
        if file is None:
            return cls(environment.get("BROADSHEET_SERVE_KEYS", "").splitlines())
        try:
            return cls(file.read_text("utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as failure:
            raise InputError(f"cannot read the keys of {file}: {failure.__class__.__name__}") from None

    def share(self, folder: Path) -> None:
        """Keep what is left of each limit in a folder, so that copies of this ring in other processes share it."""
        for number, key in enumerate(self._keys):
            for name, bucket in (("requests", key.requests), ("tokens", key.tokens)):
                if bucket:
                    bucket.share(folder / f"key {number} {name}")

    def find(self, authorization: str) -> Key | None:
        """The key of an `Authorization: Bearer …`; every one is compared, whichever fits."""
        kind, _, value = authorization.partition(" ")
        digest = hashlib.sha256(value.strip().encode("utf-8", "surrogateescape")).digest()
        fits = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return fits[0] if fits and kind.lower() == "bearer" else None


def _key(line: str, number: int) -> Key:
    value, *more = line.split()
    if len(value) < 16:
        raise InputError(f"key {number} has fewer than 16 characters; make one by `openssl rand -hex 24`")
    rights: frozenset[Right] = frozenset(RIGHTS)
    limits: dict[str, Bucket] = {}
    for word in more:
        name, equals, amount = word.partition("=")
        if equals and name in ("requests", "tokens") and amount.isdigit() and int(amount):
            limits[name] = Bucket(int(amount))
        elif not equals and set(word.split(",")) <= set(RIGHTS):
            rights = frozenset(word.split(","))  # type: ignore[arg-type]
        else:
            raise InputError(
                f"key {number} is followed by something else than rights ({', '.join(RIGHTS)}), requests=N and tokens=N"
            )
    return Key(hashlib.sha256(value.encode()).digest(), rights, limits.get("requests"), limits.get("tokens"))


@dataclass(frozen=True)
class Limits:
    """What a request may be.

    Args:
        body_bytes: of it at most.
        body_seconds: in which it has to be there.
        hosts: names by which this server is called, with or without a port; empty: any.
        open_health: /health needs no key.
    """

    body_bytes: int = 32 * 2**20
    body_seconds: float = 60.0
    hosts: tuple[str, ...] = LOOPBACK
    open_health: bool = False


class Guard:
    """ASGI middleware that lets through what may pass, with the body read whole.

    Args:
        rights: of a path, by its beginning; the longest that fits decides, and `run` holds where none does. One that
            begins with `GET ` is of what is read alone.
        ended: called with route, status and seconds of each request that has ended; the route is empty where there is
            none, or the request was refused.
        token: of the cookie that a page of this server's own is given; a new one by default.
        screen: how a person's browser is told of a refusal; None, or where it gives None: as machines are.
        sessions: of persons; None: there are none, and every request needs its key.
        open: paths that need no key, but where something is changed this server's own page.
        links: paths that need nothing: to know one is to have been sent it.

    Attributes:
        active: requests that were let through and have not ended.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        limits: Limits,
        rights: Mapping[str, Right],
        ended: Callable[[str, int, float], None] = lambda *_: None,
        token: str = "",
        screen: Callable[[Scope, RefusedError], ASGIApp | None] | None = None,
        sessions: Sessions | None = None,
        open: Container[str] = (),
        links: re.Pattern[str] | None = None,
    ) -> None:
        self.app, self.keys, self.limits, self.ended = app, keys, limits, ended
        self.screen, self.sessions = screen or (lambda *_: None), sessions
        self.open, self.links = open, links
        self.active = 0
        self.rights = dict(sorted(rights.items(), key=lambda each: -len(each[0].removeprefix("GET "))))
        self.token = token or secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError("there are no web sockets here")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is None:
            try:
                receive = await self._read(headers, receive, _OPEN_BYTES if self._keyless(scope["path"]) else None)
            except RefusedError as failure:
                refused = failure
        if refused is not None:
            await (self.screen(scope, refused) or refused)(scope, receive, send)
            self.ended("", refused.status, 0.0)
            return
        status, start = 500, _now()

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self.active += 1
        try:
            await self.app(scope, receive, watched)
        except Exception as failure:  # it has been answered; what was asked may stand in its message
            say(where(failure))
        finally:
            self.active -= 1
            self.ended(getattr(scope.get("route"), "path", ""), status, _now() - start)

    def _refused(self, scope: Scope, headers: Mapping[str, str]) -> RefusedError | None:
        """Why a request may not pass; None where it may."""
        path, method = scope["path"], scope["method"]
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        if self.limits.hosts and headers.get("host", "") not in self.limits.hosts and host not in self.limits.hosts:
            return RefusedError(421, "this server is not called by that name", "invalid_request_error")
        if path.startswith("/health") and self.limits.open_health:
            return None
        if self._linked(path):
            return None
        if self.keys and path not in self.open:
            return self._locked(scope, headers)
        if method not in _SAFE and (self.keys or "origin" in headers or "sec-fetch-site" in headers):
            return self._foreign(headers)
        return None

    def _linked(self, path: str) -> bool:
        return bool(self.links and self.links.fullmatch(path))

    def _keyless(self, path: str) -> bool:
        return path in self.open or self._linked(path)

    def _locked(self, scope: Scope, headers: Mapping[str, str]) -> RefusedError | None:
        """Why a request may not pass where there are keys; None where it may."""
        state = scope.setdefault("state", {})
        key = self.keys.find(headers.get("authorization", ""))
        if key is None and self.sessions and "authorization" not in headers:
            key = self.sessions.find(_cookies(headers).get(SESSION, ""))
            state["signed"] = key is not None
        if key is None:
            return RefusedError(
                401, "no key, or one that is not known: Authorization: Bearer KEY", "authentication_error",
                {"www-authenticate": "Bearer"},
            )  # fmt: skip
        if state.get("signed") and scope["method"] not in _SAFE and (refused := self._foreign(headers)):
            return refused
        right = self._right(scope["method"], scope["path"])
        if right not in key.rights:
            return RefusedError(403, f"this key may not {right}", "permission_error", why=right)
        if seconds := key.admit():
            return RefusedError(
                429, "this key has used what it may in a minute", "rate_limit_error",
                {"retry-after": str(max(1, round(seconds)))},
            )  # fmt: skip
        state["key"] = key
        return None

    def _foreign(self, headers: Mapping[str, str]) -> RefusedError | None:
        """Why what a browser wants to change may not come from where it comes from; None where it may.

        A page of another site may send requests here; it has not got the cookie, nor may it read it. One of another
        port of this machine is of the same site, and its requests bring the cookie: the browser says where it is from.
        """
        site, origin = headers.get("sec-fetch-site", ""), headers.get("origin", "").partition("//")[2]
        own = site in ("same-origin", "none") if site else origin == headers.get("host", "")
        cookie = _cookies(headers).get(COOKIE, "")
        if own and hmac.compare_digest(cookie.encode(), self.token.encode()):
            return None
        why: Why = "old page" if own else "elsewhere"
        return RefusedError(
            403, "a browser may ask this from this server's own page alone", "permission_error", why=why
        )

    def _right(self, method: str, path: str) -> Right:
        asked = f"{'GET' if method in _SAFE else method} {path}"
        return next(
            (right for start, right in self.rights.items() if asked.startswith(start) or path.startswith(start)), "run"
        )

    async def _read(self, headers: Mapping[str, str], receive: Receive, most: int | None) -> Receive:
        """The body, read whole; then what the server says of the connection."""
        most = min(most or self.limits.body_bytes, self.limits.body_bytes)
        too_long = RefusedError(413, f"a body of at most {most:,} bytes is read", "invalid_request_error")
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > most:
            raise too_long
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return _replay(message, receive)
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_long
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise RefusedError(408, "the body took too long", "invalid_request_error") from None
        return _replay({"type": "http.request", "body": b"".join(parts), "more_body": False}, receive)


def _cookies(headers: Mapping[str, str]) -> dict[str, str]:
    return dict(each.strip().partition("=")[::2] for each in headers.get("cookie", "").split(";"))


def _replay(first: Message, receive: Receive) -> Receive:
    """Gives a message that was taken already, then those that come."""
    kept: list[Message] = [first]

    async def again() -> Message:
        return kept.pop() if kept else await receive()

    return again


class RefusedError(Exception):
    """Why a request may not pass; as an app, what machines are answered.

    Attributes:
        why: of 403: a page of this server's own asked with the cookie of an earlier server, or none; or another page
            did; or the right that the key lacks.
    """

    def __init__(
        self, status: int, message: str, kind: str, headers: Mapping[str, str] | None = None, why: Why = ""
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.why = status, kind, why
        self.headers = {"connection": "close", **(headers or {})}  # nobody has read the body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.dumps(error(str(self), self.kind)).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

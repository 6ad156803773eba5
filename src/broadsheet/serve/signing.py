"""How a person's browser passes the guard: the screen on which a key is given once, and those that tell of refusals.

Knows: keys, sessions, how a screen is made. Does not know: what may be asked. A key comes in a form, and is in no
address, answer or log.
"""

from __future__ import annotations

import ipaddress
import string
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Request, Response
from starlette.types import Scope

from broadsheet.daily.screens import routes
from broadsheet.serve.guard import COOKIE, Bucket, Guard, RefusedError
from broadsheet.serve.rendering import screen
from broadsheet.serve.sessions import SECONDS, SESSION, Sessions

if TYPE_CHECKING:
    from broadsheet.serve.processes.workers import Shared

PER_MINUTE = 10.0  # wrong keys from one address
OPEN = ("/sign-in", "/sign-out", "/static/page.css")
_LACKING = {
    "read": "This key does not let you read the page.",
    "run": "This key lets you read the page, and not start or change anything.",
    "infer": "This key does not let you ask models.",
}
_ADDRESSES = 1024  # from which wrong keys are remembered
_MACHINES = ("/v1/", "/v2/", "/api/", "/mcp", "/metrics", "/health")


class Attempts:
    """Keys that were wrong, from each address: so many a minute."""

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._left: dict[str, Bucket] = {}

    def wait(self, address: str) -> float:
        """Seconds until another may be tried from there; 0 if one may."""
        bucket = self._left.get(_network(address))
        return bucket.wait() if bucket else 0.0

    def failed(self, address: str) -> None:
        """One was wrong."""
        name = _network(address)
        bucket = self._left.pop(name, None) or Bucket(self._per_minute)
        bucket.spend(1)
        self._left[name] = bucket  # the last; those that have failed longest ago are forgotten first
        while len(self._left) > _ADDRESSES:
            del self._left[next(iter(self._left))]


def _network(address: str) -> str:
    """An address, or of IPv6 the network, which one person has whole."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(known) if known.version == 4 else str(ipaddress.ip_network(f"{known}/64", strict=False))


class Signing:
    """The screens that stand for a guard's refusals; where it has keys, also those on which a person signs in and out.

    Args:
        guard: it gets the screens, and sessions.
    """

    def __init__(self, guard: Guard, shared: Shared | None = None) -> None:
        self.keys, self.token = guard.keys, guard.token
        self.sessions = Sessions(guard.keys, shared.secret if shared else "", shared.folder if shared else None)
        self.attempts = Attempts(max(1.0, PER_MINUTE / (shared.workers if shared else 1)))
        guard.screen = self.refused
        if guard.keys:
            guard.sessions, guard.open = self.sessions, OPEN

    def routes(self, like: APIRouter) -> APIRouter:
        """The screens on which a person signs in and out, made as those of a router are."""
        router = APIRouter(route_class=like.route_class, include_in_schema=False)

        @routes.get(router, "/sign-in")
        async def form(request: Request) -> Response:
            if self.sessions.find(request.cookies.get(SESSION, "")):
                return routes.to("/")
            return self._form(request, 200)

        @router.post("/sign-in")
        async def sign_in(form: routes.Form, request: Request) -> Response:
            address, to = request.client.host if request.client else "", _local(form.get("to", ""))
            if seconds := self.attempts.wait(address):
                said = f"Too many keys were wrong. Try again in {seconds:.0f} seconds."
                return self._form(request, 429, said, to, {"retry-after": str(max(1, round(seconds)))})
            key = self.keys.find(f"Bearer {form.get('key', '')}")
            if key is None:
                self.attempts.failed(address)
                return self._form(request, 401, "There is no such key here.", to)
            found = routes.to(to)
            self._keep(found, SESSION, self.sessions.begin(key), request, SECONDS)
            return found

        @router.post("/sign-out")
        async def sign_out(request: Request) -> Response:
            self.sessions.end(request.cookies.get(SESSION, ""))
            found = routes.to("/sign-in")
            found.delete_cookie(SESSION, path="/", httponly=True, samesite="strict")
            return found

        return router

    def refused(self, scope: Scope, failure: RefusedError) -> Response | None:
        """The screen on which a person's browser is told of a refusal; None where a program asks."""
        request = Request(scope)
        if not is_read(request) or failure.status == 421:
            return None
        routes.TRYING.set(True)
        routes.SIGNED.set(scope.get("state", {}).get("signed", False))
        title, message, back = "That was not taken", f"{str(failure)[:1].upper()}{str(failure)[1:]}.", ""
        if failure.status == 401:
            asks = request.method in ("GET", "HEAD")
            found = self._form(request, 401, to=_asked(scope) if asks else _sent_from(request))
        else:
            if failure.why == "old page":
                title, back = "Send it once more", _sent_from(request)
                message = "The page that you sent this from is older than this server, so nothing was changed."
            elif failure.why == "elsewhere":
                message = "Another site has sent this, so nothing was changed."
            elif failure.why:
                title, message = "Not with this key", _LACKING[failure.why]
            found = screen("refused", failure.status, title=title, message=message, back=back)
        found.headers.update({**routes.HEADERS, **failure.headers})
        if failure.status == 401 or failure.why == "old page":  # with it the form is taken that comes next
            self._keep(found, COOKIE, self.token, request)
        return found

    def _form(
        self, request: Request, status: int, said: str = "", to: str = "/", headers: dict[str, str] | None = None
    ) -> Response:
        # The cookie is not sent where another site has led here, so one may be signed in all the same.
        led = request.headers.get("sec-fetch-site", "") in ("cross-site", "same-site")
        found = screen("sign_in", status, said=said, to=to, led=led and request.method == "GET")
        found.headers.update({**(headers or {}), "cache-control": "no-store"})
        return found

    def _keep(self, found: Response, name: str, value: str, request: Request, seconds: int | None = None) -> None:
        """Have the browser keep a cookie, which no script reads and no other site has sent."""
        secure = request.url.scheme == "https"
        found.set_cookie(name, value, max_age=seconds, httponly=True, samesite="strict", path="/", secure=secure)


def is_read(request: Request) -> bool:
    """Whether a person asks, who reads what comes."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(_MACHINES)


def _asked(scope: Scope) -> str:
    """The address that is asked for, as it was sent."""
    path, query = scope.get("raw_path") or scope["path"].encode(), scope["query_string"]
    return _local((path + b"?" * bool(query) + query).decode("latin-1"))


def _sent_from(request: Request) -> str:
    """The address on this server of the page that has sent a form."""
    try:
        told = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        return "/"
    return _local(told.path + (f"?{told.query}" if told.query else ""))


def _local(address: str) -> str:
    """An address on this server, or the front page's."""
    found = quote(address, safe=string.punctuation.replace("\\", ""))  # "/\host" is another server to browsers
    return "/" if found.startswith(("//", "/sign-")) or not found.startswith("/") else found

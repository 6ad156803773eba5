"""How a person's browser is told of what the guard refuses.

Knows: refusals, how a screen is made. Does not know: why something is refused.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request, Response
from starlette.types import Scope

from broadsheet.daily.screens import routes
from broadsheet.serve import screens
from broadsheet.serve.guard import COOKIE, RefusedError

_MACHINES = ("/v1/", "/v2/", "/api/", "/mcp", "/metrics", "/health")


def is_read(request: Request) -> bool:
    """Whether a person asks, who reads what comes."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(_MACHINES)


def refused(scope: Scope, failure: RefusedError, token: str) -> Response | None:
    """The screen on which a person's browser is told of a refusal; None where a program asks.

    Args:
        token: with which the browser can send again what a page of an earlier server has sent.
    """
    request = Request(scope)
    if not is_read(request) or failure.status == 421:
        return None
    title, message, back = "That was not taken", f"{str(failure)[:1].upper()}{str(failure)[1:]}.", ""
    if failure.old:
        title, back = "Send it once more", _sent_from(request)
        message = "The page that you sent this from is older than this server, so nothing was changed."
    elif failure.status == 403:
        message = "Another site has sent this, so nothing was changed."
    routes.TRYING.set(True)
    found = screens.page("refused", failure.status, title=title, message=message, back=back)
    found.headers.update({**routes.HEADERS, **failure.headers})
    if failure.old:
        found.set_cookie(COOKIE, token, httponly=True, samesite="strict", path="/")
    return found


def _sent_from(request: Request) -> str:
    """The address on this server of the page that has sent a form."""
    try:
        told = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        return "/"
    return "/" + told.path.lstrip("/") + (f"?{told.query}" if told.query else "")

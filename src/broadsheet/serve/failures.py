"""What goes wrong, and how it is told: as OpenAI's errors, with nothing of what was asked in them.

Knows: kinds of failures, their statuses. Does not know: what raises them.
"""

from __future__ import annotations

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from broadsheet.console import InputError
from broadsheet.serve import protocol

STATUSES = {
    400: "What was asked cannot be done.",
    401: "No key that is known.",
    403: "The key may not, or a browser came from elsewhere.",
    404: "No such model or route.",
    413: "The body is too large.",
    421: "The server is not called by that name.",
    429: "The key has used what it may.",
    500: "The request failed.",
    502: "The server behind this one failed.",
    503: "The queue is full, or the server is closing.",
    504: "The server behind this one does not answer.",
}
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class FullError(Exception):
    """The queue holds as many tokens as it may; `seconds` is about how long until there is room."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the queue is full; there is room in about {seconds:.0f} s")
        self.seconds = seconds


class ClosingError(Exception):
    """The engine takes no more requests."""


class BackendError(Exception):
    """The other server fails or refuses.

    Attributes:
        status: what this server answers: 502, 503 or 504, or 400 where the other refuses what was asked.
        retry_after: seconds, where the other server has said so.
    """

    def __init__(self, message: str, status: int, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


def answer(status: int, message: str, headers: Any = None, **more: Any) -> JSONResponse:
    """A failure as OpenAI has it."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return JSONResponse(protocol.error(message, kind, **more), status, headers)


def install(app: FastAPI) -> None:
    """Have an app tell every failure so."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, failure: HTTPException) -> JSONResponse:
        return answer(failure.status_code, str(failure.detail), failure.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, failure: RequestValidationError) -> JSONResponse:
        first = failure.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        message = first["msg"].removeprefix("Value error, ")
        return answer(400, f"{place}: {message}" if place else message, param=place or None)

    @app.exception_handler(InputError)
    async def bad(request: Request, failure: InputError) -> JSONResponse:
        return answer(400, str(failure))

    @app.exception_handler(FullError)
    async def full(request: Request, failure: FullError) -> JSONResponse:
        return answer(503, str(failure), {"retry-after": str(math.ceil(failure.seconds))})

    @app.exception_handler(ClosingError)
    async def closing(request: Request, failure: ClosingError) -> JSONResponse:
        return answer(503, "the server is closing", {"retry-after": "5"})

    @app.exception_handler(BackendError)
    async def behind(request: Request, failure: BackendError) -> JSONResponse:
        after = {"retry-after": failure.retry_after} if failure.retry_after else None
        return answer(failure.status, str(failure), after)

    @app.exception_handler(Exception)
    async def broken(request: Request, failure: Exception) -> JSONResponse:
        return answer(500, f"the request failed: {type(failure).__name__}")

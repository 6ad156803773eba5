"""The screens on which a digest is asked for, confirmed and ended.

Knows: the digest, forms. Does not know: how letters are sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from broadsheet.console import InputError
from broadsheet.daily.digest import Digest, Subscriber
from broadsheet.daily.records import line
from broadsheet.daily.screens import routes
from broadsheet.daily.screens.views import MissingError
from broadsheet.daily.store import Topic

LINK = re.compile(r"/subscribe/[0-9a-f]{32}(/confirm|/leave)?")  # as letters have them
_OPEN = 50  # addresses that may have been asked and have not answered
_QUERY = 400


def subscribing(digest: Digest | None, like: APIRouter, topics: Callable[[], Sequence[Topic]] = tuple) -> APIRouter:
    """These screens, made as those of a router are; without a digest they name the feeds alone, those of topics too."""
    router = APIRouter(route_class=like.route_class, include_in_schema=False, dependencies=like.dependencies)

    def shown(said: str = "", subscriber: Subscriber | None = None, query: str = "") -> Response:
        given: dict[str, Any] = {"said": said, "subscriber": subscriber, "query": query, "mailing": digest is not None}
        given["topics"] = () if subscriber else topics()
        return routes.page("subscribe", **given)

    @routes.get(router, "/subscribe")
    def form(request: Request) -> Response:
        return shown(query=line(request.query_params.get("q", ""))[:_QUERY])

    @router.post("/subscribe")
    def ask(form: routes.Form) -> Response:
        if digest is None:
            raise MissingError("This page sends no mail.")
        if sum(not each.confirmed for each in digest.subscribers()) >= _OPEN:
            raise InputError(f"{_OPEN} addresses were asked and have not answered yet; expected fewer")
        digest.ask(form.get("address", "").strip(), form.get("query", "")[:_QUERY])
        digest.send()
        return shown("Look into your mail: a letter asks whether you want it.")

    @routes.get(router, "/subscribe/{secret}")
    def one(secret: str) -> Response:
        return shown(subscriber=_of(digest, secret))

    @router.post("/subscribe/{secret}/confirm")
    def confirm(secret: str) -> Response:
        _of(digest, secret)
        assert digest
        return shown("You will get it.", digest.confirm(secret))

    @router.post("/subscribe/{secret}/leave")
    def leave(secret: str) -> Response:
        _of(digest, secret)
        assert digest
        digest.leave(secret)
        return shown("It is ended.")

    return router


def _of(digest: Digest | None, secret: str) -> Subscriber:
    for each in digest.subscribers() if digest else []:
        if each.secret == secret:
            return each
    raise MissingError("Nobody has asked by this link, or it was ended.")

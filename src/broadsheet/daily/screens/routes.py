"""The routes of the screens: addresses, forms, headers.

Knows: requests, answers, which view and template belongs to an address. Does not know: what a screen shows (`views`).
A form is sent as browsers send it without script, and is answered by a redirect to where it was sent from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Annotated, Any
from unicodedata import category
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from broadsheet.console import InputError
from broadsheet.daily.databases.base import NoDatabaseError
from broadsheet.daily.records import line
from broadsheet.daily.screens import dates, guiding, standing, views
from broadsheet.daily.screens.shown import cut, search_address, topic_address, web
from broadsheet.daily.screens.views import MissingError, Views
from broadsheet.daily.search import Likes
from broadsheet.daily.store import Store, Topic

COOKIE = "broadsheet_token"  # that the guard asks of a browser
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
# A report carries its own style, and needs nothing else.
REPORT = "sandbox; default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_FORM = 200_000  # bytes
_NAME, _QUERY = 80, 400  # characters of a topic's name and query
_MARKS = ("read", "later", "hidden", "seed")
_LOCAL = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")
_PLACE = re.compile(r"[\w./-]{1,80}", re.ASCII)  # on a screen, to come back to
_STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
Given = dict[str, str]
TRYING: ContextVar[bool] = ContextVar("TRYING", default=False)  # whether the screen that is made leads to runs


async def _form(request: Request) -> Given:
    """The fields of a form; of several of one name the last.

    Raises:
        InputError: it is too large, or no form.
    """
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise InputError("expected a form (application/x-www-form-urlencoded)")
    body = await request.body()
    if len(body) > _FORM:
        raise InputError(f"got a form of {len(body):,} bytes; expected at most {_FORM:,}")
    try:
        return dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=50))
    except ValueError:
        raise InputError("got a form that is no UTF-8, or has more than 50 fields") from None


Form = Annotated[Given, Depends(_form)]


def routes(
    store: Store,
    find: Callable[..., Any] | None,
    token: Callable[[], str],
    *,
    similar: Callable[..., Any] | None = None,
    likes: Likes | None = None,
    trying: bool = False,
    asks: str = "",
) -> APIRouter:
    """The screens of a store.

    Args:
        find: `find(query, limit)` gives hits with `article`, `why`, `snippet`; None where there is no search.
        similar: `similar(identifier, limit)` gives hits for papers like one; None where they are not told.
        token: that a form has to bring back as the cookie `broadsheet_token`; the guard asks for it.
        likes: by which papers are ranked that are like some that the reader likes; None: the search decides alone.
        asks: which sources the server asks how often, in words; empty: none.
        trying: whether somebody else gives the screens on which papers are tried (/runs, /papers/ID/try).
    """
    shown = Views(store, find, similar, likes)

    class Screen(APIRoute):
        """A route whose refusals are screens too, and whose answers carry the headers."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            ask = super().get_route_handler()

            async def answer(request: Request) -> Response:
                TRYING.set(trying)
                try:
                    found = await ask(request)
                except MissingError as error:
                    found = _refusal(404, "Not here", str(error))
                except NoDatabaseError as error:
                    found = _refusal(503, "The papers are away", f"{error}.")
                except InputError as error:
                    found = _refusal(400, "That cannot be asked", f"{str(error)[:1].upper()}{str(error)[1:]}.")
                for name, value in HEADERS.items():
                    found.headers.setdefault(name, value)
                if request.method in ("GET", "HEAD") and found.headers.get("content-type", "").startswith("text/html"):
                    found.set_cookie(COOKIE, token(), httponly=True, samesite="strict", path="/")
                return found

            return answer

    router = APIRouter(
        route_class=Screen,
        include_in_schema=False,
        default_response_class=Response,
        dependencies=[Depends(shown.standings.refresh)],
    )
    _reading(router, shown)
    _papers(router, shown)
    _topics(router, shown)
    _others(router, shown, asks)
    return router


def missing(message: str = "There is nothing at this address.") -> Response:
    """The screen for an address that no route has."""
    found = _refusal(404, "Not here", message)
    found.headers.update(HEADERS)
    return found


def _reading(router: APIRouter, shown: Views) -> None:
    """The front page, and what was listed when."""

    @get(router, "/")
    def front() -> Response:
        return page("front", screen=shown.front())

    @get(router, "/day")
    @get(router, "/week")
    @get(router, "/month")
    def last(request: Request) -> Response:
        return to(shown.latest(request.url.path.strip("/")).url)  # type: ignore[arg-type]

    def edition(kind: dates.Kind, key: str, request: Request) -> Response:
        number = views.number_of(request.query_params)
        hidden = request.query_params.get("hidden") == "1"
        return page("edition", screen=shown.edition(dates.span(kind, key), number, hidden=hidden))

    @get(router, "/day/{key:path}")
    def day(key: str, request: Request) -> Response:
        return edition("day", key, request)

    @get(router, "/week/{key:path}")
    def week(key: str, request: Request) -> Response:
        return edition("week", key, request)

    @get(router, "/month/{key:path}")
    def month(key: str, request: Request) -> Response:
        return edition("month", key, request)


def _papers(router: APIRouter, shown: Views) -> None:
    """All papers; one; what the reader says of it."""

    @get(router, "/papers")
    def shelf(request: Request) -> Response:
        return page("shelf", screen=shown.shelf(request.query_params), offers=views)

    @get(router, "/papers/{name:path}/report")
    def report(name: str) -> Response:
        from broadsheet.report.html import html

        known = shown.standing(name)
        found = standing.result(known.paper) if known else None
        if found is None:
            raise MissingError("No trial of this paper is recorded here.")
        return Response(html(found), media_type="text/html", headers={"content-security-policy": REPORT})

    @get(router, "/papers/{name:path}")
    def paper(name: str) -> Response:
        return page("paper", screen=shown.paper(name))

    @router.post("/papers/{name:path}/marks")
    def mark(name: str, form: Form, request: Request) -> Response:
        identifier = shown.identifier(name)
        at = form.pop("at", "")
        said = _said(form)
        shown.store.mark(identifier, **said)
        own = "noted" if "note" in said else "marks"
        where = at if _PLACE.fullmatch(at) else own if _is_of(request, name) else f"p-{identifier}"
        return to(f"{_from(request, f'/papers/{quote(name)}')}#{quote(where)}")


def _topics(router: APIRouter, shown: Views) -> None:
    """What the reader follows."""

    @get(router, "/topics")
    def topics() -> Response:
        return page("topics", topics=shown.topics())

    @get(router, "/topics/{name:path}")
    def topic(name: str) -> Response:
        return page("topic", screen=shown.topic(name))

    @router.post("/topics")
    def follow(form: Form) -> Response:
        name, query = line(form.get("name", "")), line(form.get("query", ""))
        if not name or len(name) > _NAME or name in (".", ".."):
            raise InputError(f"got the name {name[:40]!r}; expected 1 to {_NAME} characters, not only dots")
        if len(query) > _QUERY:
            raise InputError(f"got a query of {len(query):,} characters; expected at most {_QUERY}")
        with shown.store.writing():
            known = next((each for each in shown.store.topics() if each.name == name), Topic(name))
            shown.store.follow(replace(known, query=query, changed=""))
        return to(topic_address(name))

    @router.post("/topics/{name:path}/papers")
    def judge(name: str, form: Form, request: Request) -> Response:
        identifier, liked = shown.identifier(form.get("paper", "")), form.get("is", "")
        if liked not in ("like", "dislike", "neither"):
            raise InputError(f"got {liked[:40]!r}; expected like, dislike or neither")
        with shown.store.writing():
            known = shown.topic_of(name)
            likes = tuple(each for each in known.likes if each != identifier)
            dislikes = tuple(each for each in known.dislikes if each != identifier)
            likes += (identifier,) * (liked == "like")
            dislikes += (identifier,) * (liked == "dislike")
            shown.store.follow(replace(known, likes=likes, dislikes=dislikes, changed=""))
        return to(f"{_from(request, topic_address(name))}#{quote(f'p-{identifier}')}")

    @router.post("/topics/{name:path}/unfollow")
    def unfollow(name: str) -> Response:
        shown.store.unfollow(shown.topic_of(name).name)
        return to("/topics")


def _others(router: APIRouter, shown: Views, asks: str) -> None:
    """Search, guides, what this is, and what screens load."""

    @get(router, "/search")
    def search(request: Request) -> Response:
        query = request.query_params.get("q", "")
        return page("search", screen=shown.search(query, views.number_of(request.query_params)))

    @get(router, "/map")
    def map_(request: Request) -> Response:
        name = request.query_params.get("tree", guiding.LONG)
        if name == guiding.LONG:
            return page("long", screen=guiding.long_screen(request.query_params), sizes=guiding.SIZES, tree=name)
        return page("map", screen=guiding.atlas(name), tree=name, known=shown.by_id())

    @get(router, "/advise")
    def advise(request: Request) -> Response:
        return page("advise", screen=guiding.advised(request.query_params), known=shown.by_id())

    @get(router, "/about")
    def about() -> Response:
        count = len(shown.store)
        return page("about", path=shown.store.name, count=count, asks=asks, asked=shown.asked())

    @get(router, "/static/{name}")
    def static(name: str, request: Request) -> Response:
        if name not in _STATIC:
            raise MissingError("There is no such file.")
        data, tag = _static(name)
        headers = {"etag": tag, "cache-control": "no-cache"}
        asked = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
        if tag in asked or "*" in asked:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=_STATIC[name], headers=headers)


def get(router: APIRouter, path: str) -> Callable[[Any], Any]:
    """A route that is read: by GET, and by HEAD without its body."""
    return router.api_route(path, methods=["GET", "HEAD"])


def _said(form: Given) -> dict[str, bool | str]:
    """What a form says of a paper.

    Raises:
        InputError: nothing, or what cannot be said.
    """
    said: dict[str, bool | str] = {}
    for name, value in form.items():
        if name == "note":
            note = value.replace("\r\n", "\n").strip()
            if len(note) > views.NOTE:
                raise InputError(f"got a note of {len(note):,} characters; expected at most {views.NOTE:,}")
            said["note"] = "".join(each for each in note if each in "\n\t" or category(each) not in ("Cc", "Cs"))
        elif name in _MARKS and value in ("0", "1"):
            said[name] = value == "1"
        else:
            raise InputError(f"got {name[:40]} = {value[:40]!r}; expected a note, or {', '.join(_MARKS)} as 0 or 1")
    if not said:
        raise InputError(f"got an empty form; expected a note, or {', '.join(_MARKS)} as 0 or 1")
    return said


def _from(request: Request, otherwise: str) -> str:
    """The address on this server from which a form was sent."""
    try:
        told = urlsplit(request.headers.get("referer", ""))
    except ValueError:
        return otherwise
    path = told.path + (f"?{told.query}" if told.query else "")
    return path if _LOCAL.fullmatch(path) else otherwise


def _is_of(request: Request, name: str) -> bool:
    """Whether a form was sent from the paper's own screen."""
    return _from(request, "/papers/").partition("?")[0] in ("/papers/", f"/papers/{quote(name)}")


def to(url: str) -> Response:
    """Lead there, as the answer to a form."""
    return Response(status_code=303, headers={"location": url})


def _refusal(status: int, title: str, message: str) -> Response:
    return page("refusal", status, title=title, message=message)


def page(template: str, status: int = 200, **given: Any) -> Response:
    """A screen: a template with what it is given."""
    text = templates().get_template(f"{template}.html.jinja").render(trying=TRYING.get(), **given)
    # A text may hold half a character that no encoding has.
    data = text.encode("utf-8", "replace")
    return Response(data, status, {"cache-control": "no-cache"}, "text/html; charset=utf-8")


@cache
def templates() -> Environment:
    """The templates of the screens."""
    from broadsheet.report.view import CLAIM_MARKS

    pages = Environment(
        loader=PackageLoader("broadsheet.daily.screens"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    pages.filters |= {
        "web": web,
        "day": dates.words,
        "cut": cut,
        "topic_url": topic_address,
    }
    pages.filters |= {"found_by": search_address, "asked": lambda value, name: f"?{urlencode({name: value})}"}
    pages.filters |= {"list_twice": lambda each: (each, each), "numbered": _numbered, "ticked": _ticked}
    pages.globals |= {"claim_marks": CLAIM_MARKS, "RUNGS": views.RUNGS}
    pages.globals |= {"weekday": dates.weekday, "day_words": dates.day_words}
    return pages


def _ticked(text: str) -> Markup:
    """A text whose parts between backticks are code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>" if i % 2 else "{}").format(part) for i, part in enumerate(parts))


def _numbered(name: str, names: tuple[str, ...]) -> tuple[str, str]:
    number = str(names.index(name))
    return number, f"{number} {name}"


@cache
def _static(name: str) -> tuple[bytes, str]:
    """A file that screens load, and the tag that changes with it. The stylesheet begins with what reports share."""
    data = files("broadsheet.daily.screens").joinpath("static", name).read_bytes()
    if name == "page.css":
        data = files("broadsheet.report").joinpath("templates", "base.css").read_bytes() + data
    return data, f'"{hashlib.sha256(data).hexdigest()[:20]}"'

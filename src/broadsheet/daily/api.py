"""The papers as JSON under the addresses and names of HF's papers API, and feeds that readers of feeds follow.

Knows: that API's forms, Atom and JSON Feed. Does not know: HTML. What is not known of a paper is left out of its row:
nobody here counts upvotes, so there are some only where a source told them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from broadsheet.daily import ids
from broadsheet.daily.export import atom
from broadsheet.daily.screens import dates
from broadsheet.daily.store import Article, Listing, Store

_FEED = 50  # papers of a feed
_FIRST_TIME = "1991-01-01T00:00:00Z"
Find = Callable[..., Any]


def routes(store: Store, find: Find) -> APIRouter:
    """The API of a store.

    Args:
        find: `find(query, limit)` gives hits with `article`.
    """
    router = APIRouter(include_in_schema=False)

    @router.get("/api/daily_papers")
    def daily(
        date: str = "",
        week: str = "",
        month: str = "",
        sort: str = "publishedAt",
        p: int = Query(0, ge=0, le=10_000),
        limit: int = Query(50, ge=1, le=100),
    ) -> Response:
        """Papers that were listed on a day, in a week or month; without one of them the last that were."""
        if sort not in ("publishedAt", "trending"):
            raise HTTPException(400, f"got sort {sort[:40]!r}; expected publishedAt or trending")
        rows = _listed(store, date, week, month)
        if sort == "publishedAt":
            rows.sort(key=lambda row: row[0].published, reverse=True)
        else:  # by the upvotes that a source told last, and then by place
            votes = {row[0].id: _votes(store, row[0].id) for row in rows}
            rows.sort(key=lambda row: (-votes[row[0].id], min(each.rank for each in row[1])))
        chosen = rows[p * limit : (p + 1) * limit]
        return JSONResponse([row_of(store, article, listings) for article, listings in chosen])

    @router.get("/api/papers/search")
    def search(q: str = Query("", max_length=250), limit: int = Query(50, ge=1, le=120)) -> Response:
        """Papers that a search finds."""
        return JSONResponse([row_of(store, hit.article) for hit in find(q, limit)])

    @router.get("/api/papers/{name:path}")
    def one(name: str) -> Response:
        """One paper."""
        found = _article(store, name)
        row = row_of(store, found)
        return JSONResponse({**row["paper"], "paper": row["paper"]})

    @router.get("/papers/{name:path}.md")
    def markdown(name: str) -> Response:
        """What is known of one paper, as Markdown."""
        found = _article(store, name)
        text = f"# {found.title}\n\n{', '.join(found.authors)}\n\n{found.url}\n\n{found.abstract}\n"
        return Response(text, media_type="text/markdown; charset=utf-8")

    @router.get("/feed.atom")
    def atom_feed(request: Request, q: str = Query("", max_length=400)) -> Response:
        """What a search finds, the latest first; without one what was listed last."""
        articles = _fed(store, find, q)
        title = f"broadsheet: {q}" if q else "broadsheet"
        body = atom(articles, title=title, at=_changed(articles), url=_address(request, q))
        return _kept(request, body, "application/atom+xml")

    @router.get("/feed.json")
    def json_feed(request: Request, q: str = Query("", max_length=400)) -> Response:
        """The same as a JSON Feed, version 1.1."""
        articles = _fed(store, find, q)
        base = str(request.base_url).rstrip("/")
        feed = {
            "version": "https://jsonfeed.org/version/1.1",
            "title": f"broadsheet: {q}" if q else "broadsheet",
            "feed_url": _address(request, q),
            "items": [_item(base, each) for each in articles],
        }
        return _kept(request, json.dumps(feed, ensure_ascii=False).encode("utf-8", "replace"), "application/feed+json")

    return router


def row_of(store: Store, article: Article, listings: Sequence[Listing] = ()) -> dict[str, Any]:
    """A paper as the daily list has it."""
    facts = {key: fact.value for key, (fact, _) in store.facts(article.id).items()}
    days = sorted(each.day for each in listings or store.listings(article.id))
    paper: dict[str, Any] = {
        "id": article.id,
        "title": article.title,
        "authors": [{"name": name, "hidden": False} for name in article.authors],
    }
    published = _time(article.published or ids.month(article.id))
    told = {
        "summary": article.abstract,
        "publishedAt": published,
        "submittedOnDailyAt": _time(days[-1]) if days else "",
        "githubRepo": facts.get("repository", ""),
        "projectPage": facts.get("project page", ""),
    }
    paper |= {name: value for name, value in told.items() if value}
    paper |= {
        name: int(facts[key])
        for name, key in (("upvotes", "upvotes"), ("githubStars", "stars"))
        if facts.get(key, "").isdecimal()
    }
    return {"paper": paper, "title": article.title, "summary": article.abstract, "publishedAt": published}


def _listed(store: Store, day: str, week: str, month: str) -> list[tuple[Article, tuple[Listing, ...]]]:
    given = [(kind, key) for kind, key in (("day", day), ("week", week), ("month", month)) if key]
    if len(given) > 1:
        raise HTTPException(400, "got several of date, week and month; expected one")
    if not given:
        last = next(iter(store.days()), "")
        return store.listed(last, last) if last else []
    [(kind, key)] = given
    span = dates.span(kind, key)  # type: ignore[arg-type]
    if span.begin > date.today():
        raise HTTPException(400, f"{key} has not come yet")
    return store.listed(span.begin.isoformat(), span.end.isoformat())


def _article(store: Store, name: str) -> Article:
    found = ids.whole(name)
    articles = store.articles([found.bare]) if found else []
    if not articles:
        raise HTTPException(404, "there is no such paper here")
    return articles[0]


def _votes(store: Store, identifier: str) -> int:
    fact = store.facts(identifier).get("upvotes")
    return int(fact[0].value) if fact and fact[0].value.isdecimal() else 0


def _fed(store: Store, find: Find, query: str) -> list[Article]:
    if query:
        found = [hit.article for hit in find(query, 10 * _FEED)]
        return sorted(found, key=lambda each: (each.listed or each.published, each.id), reverse=True)[:_FEED]
    days = list(store.days())[:7]
    return [article for article, _ in store.listed(days[-1], days[0])][:_FEED] if days else []


def _changed(articles: Sequence[Article]) -> str:
    """When the latest of them was changed or listed: a feed of the same papers says the same."""
    return max((_time(each.listed or each.updated or each.published) for each in articles), default="") or _FIRST_TIME


def _item(base: str, article: Article) -> dict[str, Any]:
    item = {
        "id": f"https://arxiv.org/abs/{article.id}",
        "url": f"{base}/papers/{article.id}",
        "title": article.title,
        "content_text": article.abstract or article.title,
        "authors": [{"name": name} for name in article.authors],
    }
    when = _time(article.listed or article.published)
    return {**item, "date_published": when} if when else item


def _kept(request: Request, body: bytes, kind: str) -> Response:
    """A feed, or 304 where the reader has it."""
    tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=kind, headers=headers)


def _address(request: Request, query: str) -> str:
    return f"{request.url.replace(query='')}" + (f"?{urlencode({'q': query})}" if query else "")


def _time(told: str) -> str:
    """A date, a month or a time as a time, `2024-08-18T00:00:00.000Z`; empty where there is none."""
    if not told:
        return ""
    if "T" in told:
        return told.replace("Z", ".000Z") if "." not in told else told
    return f"{told}{'-01' * (2 - told.count('-'))}T00:00:00.000Z"

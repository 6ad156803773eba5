"""The papers as JSON under the addresses and names of HF's papers API.

Knows: that API's forms. Does not know: HTML, feeds. What is not known of a paper is left out of its row:
nobody here counts upvotes, so there are some only where a source told them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from broadsheet.daily import ids
from broadsheet.daily.screens import dates
from broadsheet.daily.store import Article, Listing, Store

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


def _time(told: str) -> str:
    """A date, a month or a time as a time, `2024-08-18T00:00:00.000Z`; empty where there is none."""
    if not told:
        return ""
    if "T" in told:
        return told.replace("Z", ".000Z") if "." not in told else told
    return f"{told}{'-01' * (2 - told.count('-'))}T00:00:00.000Z"

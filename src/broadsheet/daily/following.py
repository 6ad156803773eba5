"""Feeds as they are asked for: what was listed last, a search, an author, a topic, the runs of this page; and OPML.

Knows: requests, which entries a feed has, what a reader of feeds has already. Does not know: the formats (`feeds`).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request, Response
from starlette.exceptions import HTTPException

from broadsheet.daily import feeds
from broadsheet.daily.feeds import Feed
from broadsheet.daily.finished import finished
from broadsheet.daily.search import Likes
from broadsheet.daily.store import Article, Store, Topic

MOST = 30  # entries of a feed, as papers of a screen
_KEPT = 1_000  # feeds of which it is kept when they changed
_KINDS = {"atom": "application/atom+xml", "json": "application/feed+json"}
_WRITE = {"atom": feeds.atom, "json": feeds.json_feed}
Find = Callable[..., Any]


@dataclass
class Answers:
    """Answers that a reader who has them does not get again, by their tag or by their time.

    When a text changed is not known, only since when this process has seen it: that is never before it changed, so that
    no reader misses anything; after a restart one that asks by time alone gets it once more.

    Args:
        clock: seconds since 1970.
    """

    clock: Callable[[], float] = time.time
    _seen: OrderedDict[str, tuple[str, int]] = field(default_factory=OrderedDict)  # (tag, since when), by address
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, request: Request, body: bytes, kind: str) -> Response:
        """The body, or 304 where the reader has it."""
        tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
        since = self._since(str(request.url), tag)
        headers = {
            "etag": tag,
            "last-modified": format_datetime(datetime.fromtimestamp(since, UTC), usegmt=True),
            "cache-control": "no-cache",
        }
        if self._has(request, tag, since):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=kind, headers=headers)

    def _since(self, address: str, tag: str) -> int:
        with self._lock:
            known, since = self._seen.pop(address, ("", 0))
            if known != tag:
                since = max(int(self.clock()), since + 1)  # two texts of one second have different times
            self._seen[address] = tag, since
            while len(self._seen) > _KEPT:
                self._seen.popitem(last=False)
        return since

    def _has(self, request: Request, tag: str, since: int) -> bool:
        given = request.headers.get("if-none-match")
        if given is not None:  # by which the time does not count
            return any(each.strip().removeprefix("W/") in (tag, "*") for each in given.split(","))
        try:
            told = parsedate_to_datetime(request.headers.get("if-modified-since", "")).timestamp()
        except (TypeError, ValueError):
            return False
        return since <= told <= self.clock() + 1  # a time that has not come is no time


def routes(store: Store, find: Find, likes: Likes, runs: Path | None = None) -> APIRouter:
    """The feeds of a store.

    Args:
        find: `find(query, limit)` gives hits with `article`.
        likes: by which papers of topics are found.
        runs: the folder of the runs of this page.
    """
    router, answers = APIRouter(include_in_schema=False), Answers()

    def answer(request: Request, kind: str, feed: Feed) -> Response:
        return answers.answer(request, _WRITE[kind](feed), _KINDS[kind])

    @router.api_route("/feed.{kind}", methods=["GET", "HEAD"])
    def papers(
        request: Request,
        kind: str,
        q: str = Query("", max_length=400),
        author: str = Query("", max_length=200),
        topic: str = Query("", max_length=200),
    ) -> Response:
        """What a search finds, an author wrote, or a topic has, the latest first; without one what was listed last."""
        _check(kind)
        if sum(map(bool, (q, author, topic))) > 1:
            raise HTTPException(400, "got several of q, author and topic; expected one")
        base = _base(request)
        if topic:
            known = next((each for each in store.topics() if each.name == topic), None)
            if known is None:
                raise HTTPException(404, "there is no such topic here")
            return answer(request, kind, _filled(of_topic(known, base, kind), _of_topic(store, likes, known), base))
        if author:
            feed = of_author(author, base, kind)
            return answer(request, kind, _filled(feed, _latest(find(_authored(author), 10 * MOST)), base))
        articles = _latest(find(q, 10 * MOST)) if q else _listed(store)
        return answer(request, kind, _filled(of_query(q, base, kind), articles, base))

    @router.api_route("/feed/runs.{kind}", methods=["GET", "HEAD"])
    def found(request: Request, kind: str) -> Response:
        """What the runs of this page found, the last first."""
        _check(kind)
        base = _base(request)
        feed, ended = of_runs(base, kind), finished(runs) if runs else []
        entries = tuple(feeds.of_run(each, base) for each in ended[:MOST])
        return answer(request, kind, Feed(feed.title, entries, feed.name, feed.url, feed.home))

    @router.api_route("/feeds.opml", methods=["GET", "HEAD"])
    def outline(request: Request) -> Response:
        """The feeds of this page: what was listed last, each topic, the runs."""
        return answers.answer(request, opml(store, _base(request)), "text/x-opml")

    return router


def opml(store: Store, base: str) -> bytes:
    """The feeds of a page as OPML.

    Args:
        base: the address of the page.
    """
    topics = [of_topic(each, base) for each in store.topics()]
    return feeds.opml("broadsheet", [of_query("", base), *topics, of_runs(base)])


def of_query(query: str, base: str, kind: str = "atom") -> Feed:
    """The feed of a search, without its entries; of what was listed last where it is empty."""
    title = f"broadsheet: {query}" if query else "broadsheet"
    home = f"{base}/search?{urlencode({'q': query})}" if query else f"{base}/"
    return Feed(title, (), "", _address(base, kind, q=query), home)


def of_author(author: str, base: str, kind: str = "atom") -> Feed:
    """The feed of what an author wrote, without its entries."""
    home = f"{base}/search?{urlencode({'q': _authored(author)})}"
    return Feed(f"broadsheet: by {author}", (), f"author:{author}", _address(base, kind, author=author), home)


def of_topic(topic: Topic, base: str, kind: str = "atom") -> Feed:
    """The feed of a topic, without its entries."""
    home = f"{base}/topics/{quote(topic.name, safe='')}"
    return Feed(f"broadsheet: {topic.name}", (), f"topic:{topic.name}", _address(base, kind, topic=topic.name), home)


def of_runs(base: str, kind: str = "atom") -> Feed:
    """The feed of what the runs of a page found, without its entries."""
    return Feed("broadsheet: runs", (), "runs", f"{base}/feed/runs.{kind}", f"{base}/runs")


def _filled(feed: Feed, articles: Sequence[Article], base: str) -> Feed:
    return Feed(feed.title, tuple(feeds.of_paper(each, base) for each in articles), feed.name, feed.url, feed.home)


def _listed(store: Store) -> list[Article]:
    """What was listed last, as far as it is of interest."""
    days = list(store.days())[:7]
    listed = [article for article, _ in store.listed(days[-1], days[0])] if days else []
    return [each for each in listed if not each.mark.hidden][:MOST]


def _of_topic(store: Store, likes: Likes, topic: Topic) -> list[Article]:
    """The right papers of a topic and those that it finds, the latest first."""
    found = [hit.article for hit in likes.followed(topic, 2 * MOST, explain=False)]
    return _newest([*store.articles(topic.likes), *found])


def _latest(hits: Sequence[Any]) -> list[Article]:
    return _newest([hit.article for hit in hits])


def _newest(articles: Sequence[Article]) -> list[Article]:
    return sorted(articles, key=lambda each: (each.listed or each.published, each.id), reverse=True)[:MOST]


def _authored(author: str) -> str:
    return 'author:"' + " ".join(author.replace('"', " ").split()) + '"'


def _check(kind: str) -> None:
    if kind not in _KINDS:
        raise HTTPException(404, f"there is no such feed; expected .{' or .'.join(_KINDS)}")


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _address(base: str, kind: str, **given: str) -> str:
    asked = urlencode({name: value for name, value in given.items() if value})
    return f"{base}/feed.{kind}" + (f"?{asked}" if asked else "")

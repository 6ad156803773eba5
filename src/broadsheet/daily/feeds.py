"""Feeds as they are written: Atom (RFC 4287), JSON Feed 1.1, and OPML 2.0, a list of feeds.

Knows: the formats, papers and runs as entries. Does not know: which entries a feed has, HTTP.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from broadsheet.daily import ids
from broadsheet.daily.finished import Finished
from broadsheet.daily.records import line
from broadsheet.daily.store import Article, ours

_ATOM = "http://www.w3.org/2005/Atom"
_DATE = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d:\d\dZ)?)?)?", re.ASCII)
_FIRST = "1991-01-01T00:00:00Z"


@dataclass(frozen=True)
class Entry:
    """What a feed tells.

    Attributes:
        id: a name that never changes and nothing else has.
        url: where it can be read.
        updated: to the second, `"2024-08-18T00:00:00Z"`; `published` too, or empty.
        related: another address of the same; may be empty.
    """

    id: str
    title: str
    url: str
    updated: str
    published: str = ""
    text: str = ""
    authors: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    related: str = ""


@dataclass(frozen=True)
class Feed:
    """Entries under a title.

    Attributes:
        name: from which its identifier follows; the title by default.
        url: where the feed can be had; `home`: the screen that shows the same.
        at: when it was changed, where it has no entries.
    """

    title: str
    entries: tuple[Entry, ...]
    name: str = ""
    url: str = ""
    home: str = ""
    at: str = _FIRST

    @property
    def updated(self) -> str:
        """When it was changed last."""
        return max((each.updated for each in self.entries), default=self.at)


def of_paper(article: Article, base: str = "") -> Entry:
    """A paper as an entry.

    Args:
        base: the address of the page, where it leads there; else it leads to arXiv.
    """
    listed = f"{article.listed}T00:00:00Z" if base and _DATE.fullmatch(article.listed) else ""
    published = listed or (article.published if len(article.published) == 20 else "")
    return Entry(
        id=article.url,
        title=article.title or article.id,
        url=f"{base}/papers/{article.id}" if base else article.url,
        updated=max(whole(article), listed),
        published=published,
        text=article.abstract or (ours(article.id) if base else ""),
        authors=article.authors or ("authors not known here",),  # else the feed's would be taken for the paper's
        categories=article.categories,
        related=article.url if base else "",
    )


def of_run(run: Finished, base: str) -> Entry:
    """What a run found as an entry."""
    return Entry(
        id=f"broadsheet:run:{run.id}",
        title=f"{run.title}: {run.verdict}" if run.verdict else run.title,
        url=f"{base}/runs/{run.id}",
        updated=run.at,
        published=run.at,
        text=run.answer,
        authors=("broadsheet",),
        related=f"{base}/papers/{quote(run.paper)}",
    )


def atom(feed: Feed) -> bytes:
    """A feed as Atom, the latest entry first. Identifiers follow from those of entries, and from the feed's name."""
    from lxml import etree

    top = etree.Element(f"{{{_ATOM}}}feed", nsmap={None: _ATOM})

    def put(parent: Any, tag: str, text: str = "", **attributes: str) -> Any:
        made = etree.SubElement(parent, f"{{{_ATOM}}}{tag}", {name: line(value) for name, value in attributes.items()})
        made.text = line(text) or None
        return made

    put(top, "title", feed.title)
    put(top, "id", urn(f"broadsheet:feed:{feed.name or feed.title}"))
    put(top, "updated", feed.updated)
    put(put(top, "author"), "name", "broadsheet")
    for rel, href in (("self", feed.url), ("alternate", feed.home)):
        if href:
            put(top, "link", rel=rel, href=href)
    for each in sorted(feed.entries, key=lambda each: each.updated, reverse=True):
        entry = put(top, "entry")
        put(entry, "title", each.title)
        put(entry, "id", urn(each.id))
        put(entry, "updated", each.updated)
        if each.published:
            put(entry, "published", each.published)
        for author in each.authors:
            put(put(entry, "author"), "name", author)
        for kind in each.categories:
            put(entry, "category", term=kind)
        put(entry, "link", rel="alternate", href=each.url)
        if each.related:
            put(entry, "link", rel="related", href=each.related)
        put(entry, "summary", each.text, type="text")
    return bytes(etree.tostring(top, xml_declaration=True, encoding="utf-8", pretty_print=True))


def json_feed(feed: Feed) -> bytes:
    """A feed as a JSON Feed, its entries in their order."""
    told = {
        "version": "https://jsonfeed.org/version/1.1",
        "title": feed.title,
        "home_page_url": feed.home,
        "feed_url": feed.url,
        "items": [_item(each) for each in feed.entries],
    }
    return json.dumps({name: value for name, value in told.items() if value != ""}, ensure_ascii=False).encode(
        "utf-8", "replace"
    )


def opml(title: str, feeds: Sequence[Feed]) -> bytes:
    """A list of feeds as OPML, as readers of feeds take it in."""
    from lxml import etree

    top = etree.Element("opml", version="2.0")
    etree.SubElement(etree.SubElement(top, "head"), "title").text = line(title)
    body = etree.SubElement(top, "body")
    for each in feeds:
        told = {"type": "rss", "text": each.title, "title": each.title, "xmlUrl": each.url, "htmlUrl": each.home}
        etree.SubElement(body, "outline", {name: line(value) for name, value in told.items()})
    return bytes(etree.tostring(top, xml_declaration=True, encoding="utf-8", pretty_print=True))


def whole(article: Article) -> str:
    """When an article was changed last, to the second, as Atom wants it."""
    given = (article.updated, article.published)
    date = next((each for each in given if _DATE.fullmatch(each)), ids.month(article.id))
    return date + "0000-01-01T00:00:00Z"[len(date) :]


def urn(name: str) -> str:
    """An identifier that follows from a name."""
    return uuid.uuid5(uuid.NAMESPACE_URL, name).urn


def _item(entry: Entry) -> dict[str, Any]:
    told = {
        "id": entry.id,
        "url": entry.url,
        "external_url": entry.related,
        "title": line(entry.title),
        "content_text": entry.text or entry.title,
        "authors": [{"name": name} for name in entry.authors],
        "tags": list(entry.categories),
        "date_published": entry.published,
        "date_modified": entry.updated,
    }
    return {name: value for name, value in told.items() if value}

"""arXiv's three ways to tell of papers: the query API (Atom), the daily lists (RSS or Atom), and OAI-PMH.

Knows: their XML. A list's `replace` is a new version, not a listing. OAI tells of the latest version, by no number.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from broadsheet.daily import ids
from broadsheet.daily.records import Listing, Record, line
from broadsheet.daily.sources import xml
from broadsheet.daily.sources.base import ExpiredError, Page, SourceError, exactly, moment, told
from broadsheet.daily.sources.xml import ARXIV, ATOM, DC, META, OAI, SEARCH

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

NEW = ("new", "cross")  # the announcements that list a paper
_CATEGORY = re.compile(r"[a-z]+(-[a-z]+)*(\.[A-Za-z]+(-[A-Za-z]+)*)?")
_ANNOUNCED = re.compile(r"^arXiv:\S+\s+Announce Type:\s*(\S+)\s*(?:Abstract:\s*)?", re.IGNORECASE)


def query(data: bytes, *, name: str = "arxiv-query") -> Page:
    """Read an answer of the query API.

    Raises:
        SourceError: arXiv answers with an error, which is a feed too; or it is no such feed.
    """
    feed = xml.root(data, name)
    if feed.tag != f"{ATOM}feed":
        raise SourceError(f"{name}: got XML that begins with {_short(feed.tag)}; expected an Atom feed")
    found, left, entries = [], [], list(feed.iterfind(f"{ATOM}entry"))
    for entry in entries:
        address = xml.text(entry, f"{ATOM}id")
        if "/api/errors" in address:
            raise SourceError(f"{name}: arXiv refuses the query: {xml.text(entry, f'{ATOM}summary') or address}")
        identifier = exactly(address)
        if identifier is None:
            left.append("no arXiv identifier")
            continue
        found.append(
            told(
                identifier,
                "arxiv",
                title=xml.text(entry, f"{ATOM}title"),
                abstract=xml.text(entry, f"{ATOM}summary"),
                authors=xml.texts(entry, f"{ATOM}author/{ATOM}name"),
                categories=_classes(entry),
                published=moment(xml.text(entry, f"{ATOM}published")),
                updated=moment(xml.text(entry, f"{ATOM}updated")),
                comment=xml.text(entry, f"{ARXIV}comment"),
                journal=xml.text(entry, f"{ARXIV}journal_ref"),
                doi=xml.text(entry, f"{ARXIV}doi"),
            )
        )
    total = xml.text(feed, f"{SEARCH}totalResults")
    return Page(
        tuple(found),
        tuple(left),
        len(entries),
        total=int(total) if re.fullmatch(r"[0-9]{1,9}", total) else None,
        at=moment(xml.text(feed, f"{ATOM}updated")),
    )


def announced(data: bytes, *, listing: str = "", name: str = "arxiv") -> Page:
    """Read a daily list, RSS or Atom: what is new and cross-listed is listed, what is replaced is told of alone.

    Args:
        listing: what the list is called, `"arxiv:cs.CL"`; by the list's own title where it is not given.

    Raises:
        SourceError: it is no such list.
    """
    top = xml.root(data, name)
    if top.tag == f"{ATOM}feed":
        feed, items, atom = top, list(top.iterfind(f"{ATOM}entry")), True
    elif top.tag == "rss" and (channel := top.find("channel")) is not None:
        feed, items, atom = channel, list(channel.iterfind("item")), False
    else:
        raise SourceError(f"{name}: got XML that begins with {_short(top.tag)}; expected RSS or Atom")
    space = ATOM if atom else ""
    listing = listing or f"arxiv:{(xml.text(feed, f'{space}title') or 'all').split()[0]}"
    when = ("updated",) if atom else ("pubDate", "lastBuildDate")
    day = next((known for each in when if (known := _day(xml.text(feed, f"{space}{each}")))), "")
    found: list[Record] = []
    left: list[str] = []
    kinds = Counter[str]()
    for rank, item in enumerate(items):
        identifier = exactly(xml.text(item, f"{space}{'id' if atom else 'guid'}")) or exactly(_link(item, space))
        if identifier is None:
            left.append("no arXiv identifier")
            continue
        text = xml.text(item, f"{space}{'summary' if atom else 'description'}")
        said = _ANNOUNCED.match(text)
        kind = xml.text(item, f"{ARXIV}announce_type") or (said[1] if said else "")
        own = _day(xml.text(item, f"{space}{'published' if atom else 'pubDate'}")) or day
        day = day or own
        kinds[kind] += 1
        record = told(
            identifier,
            "rss",
            title=xml.text(item, f"{space}title"),
            abstract=text[said.end() :] if said else text,
            authors=_names(item, space),
            categories=_classes(item),
            journal=xml.text(item, f"{ARXIV}journal_reference"),
            doi=xml.text(item, f"{ARXIV}DOI"),
        )
        found.append(replace(record, listings=(Listing(listing, own, rank),) if kind in NEW and own else ()))
    return Page(tuple(found), tuple(left), len(items), day=day, kinds=dict(kinds))


def oai(data: bytes, *, name: str = "arxiv-oai") -> Page:
    """Read an answer of ListRecords or GetRecord in the format `arXiv`.

    Returns:
        A page whose `more` is the resumption token. A deleted record is left out: what is known of it stays.

    Raises:
        ExpiredError: the resumption token is not known any more.
        SourceError: another error, or no such answer.
    """
    top = xml.root(data, name)
    if top.tag != f"{OAI}OAI-PMH":
        raise SourceError(f"{name}: got XML that begins with {_short(top.tag)}; expected OAI-PMH")
    at = moment(xml.text(top, f"{OAI}responseDate"))
    for error in top.iterfind(f"{OAI}error"):
        code, said = error.get("code", ""), line("".join(error.itertext()))
        if code == "noRecordsMatch":
            return Page(at=at, left=("no records match",))
        raise (ExpiredError if code == "badResumptionToken" else SourceError)(f"{name}: {code}: {said}".rstrip(": "))
    records = list(top.iterfind(f"*/{OAI}record"))
    found: list[Record] = []
    left: list[str] = []
    for record in records:
        header, body = record.find(f"{OAI}header"), record.find(f"{OAI}metadata/{META}arXiv")
        if header is None or (body is None and header.get("status") != "deleted"):
            raise SourceError(f"{name}: record {len(found) + len(left) + 1} is in another format than arXiv")
        if body is None:
            left.append("deleted at the source")
            continue
        identifier = exactly(xml.text(body, f"{META}id"))
        if identifier is None:
            left.append("no arXiv identifier")
            continue
        updated = moment(xml.text(body, f"{META}updated"))
        found.append(
            told(
                # Of an article that was never updated there is one version.
                ids.ArxivId(identifier.bare, 0 if updated else 1),
                "oai",
                title=xml.text(body, f"{META}title"),
                abstract=xml.text(body, f"{META}abstract"),
                authors=tuple(name for each in body.iterfind(f"{META}authors/{META}author") if (name := _person(each))),
                categories=_sorted(xml.text(body, f"{META}categories").split()),
                published=moment(xml.text(body, f"{META}created")),
                updated=updated or moment(xml.text(body, f"{META}created")),
                comment=xml.text(body, f"{META}comments"),
                journal=xml.text(body, f"{META}journal-ref"),
                doi=xml.text(body, f"{META}doi"),
            )
        )
    return Page(tuple(found), tuple(left), len(records), more=xml.text(top, f"*/{OAI}resumptionToken"), at=at)


def oai_set(category: str) -> str:
    """The set of a category: `"cs:cs:CL"` of cs.CL, `"physics:hep-th"` of hep-th, `"cs"` of cs.

    Raises:
        SourceError: arXiv has no such archive.
    """
    archive, _, kind = category.partition(".")
    groups = ("cs", "econ", "eess", "math", "q-bio", "q-fin", "stat")
    physics: tuple[str, ...] = (
        "astro-ph",
        "cond-mat",
        "gr-qc",
        "hep-ex",
        "hep-lat",
        "hep-ph",
        "hep-th",
        "math-ph",
        "nlin",
    )
    physics += ("nucl-ex", "nucl-th", "physics", "quant-ph")
    if archive not in groups + physics or not _CATEGORY.fullmatch(category):
        raise SourceError(f"got the category {line(category)!r}; expected one of arXiv's, as in arxiv:cs.CL")
    group = archive if archive in groups else "physics"
    return ":".join([group, archive, kind] if kind else [group] if group == archive else [group, archive])


def record_kind(feed: Element) -> str:
    """Whether an Atom feed is a daily list (`"announced"`) or an answer of the query API (`"query"`)."""
    first = feed.find(f"{ATOM}entry")
    listed = first is not None and (
        first.find(f"{ARXIV}announce_type") is not None or xml.text(first, f"{ATOM}id").startswith("oai:")
    )
    return "announced" if listed or xml.text(feed, f"{ATOM}title").endswith("updates on arXiv.org") else "query"


def _classes(entry: Element) -> tuple[str, ...]:
    """arXiv's classes, the primary one first; those of other schemes (ACM, MSC) are left out."""
    primary = entry.find(f"{ARXIV}primary_category")
    terms = [primary.get("term", "")] if primary is not None else []
    terms += [each.get("term", "") for each in entry.iterfind(f"{ATOM}category")] + list(xml.texts(entry, "category"))
    return _sorted(terms)


def _sorted(terms: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for each in terms if _CATEGORY.fullmatch(each)))


def _names(item: Element, space: str) -> tuple[str, ...]:
    """Authors: of a list's one string, or an element each."""
    given = xml.texts(item, f"{DC}creator") or xml.texts(item, f"{space}author/{space}name")
    parts = given[0].split(",") if len(given) == 1 else given
    return tuple(name for each in parts if (name := line(each)))


def _person(author: Element) -> str:
    names = (xml.text(author, f"{META}{part}") for part in ("forenames", "keyname", "suffix"))
    return " ".join(name for name in names if name)


def _link(item: Element, space: str) -> str:
    link = item.find(f"{space}link")
    return "" if link is None else link.get("href") or line(link.text or "")


def _day(text: str) -> str:
    """The day of a time in the zone in which it is written: arXiv's lists are those of a day in its own zone."""
    from email.utils import parsedate_to_datetime

    if re.match(r"\d{4}-\d\d-\d\d", text):
        return moment(text[:10])
    try:
        return parsedate_to_datetime(text).date().isoformat()
    except ValueError:
        return ""


def _short(tag: object) -> str:
    return f"<{str(tag).rpartition('}')[2]}>"

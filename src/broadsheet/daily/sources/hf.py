"""The daily list and the search of Hugging Face, as JSON: rows with a `paper` in each.

Knows: that every field but the identifier and the title may be missing; that a list's day is stored as midnight UTC.
Does not know: the client library, whose objects lose fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from broadsheet.daily import ids
from broadsheet.daily.records import Fact, Listing, Record
from broadsheet.daily.sources.base import Page, SourceError, address, document, exactly, moment, told, word

SOURCE = "hf"
_FACTS = {"upvotes": "upvotes", "githubStars": "stars"}
_LINKS = {"githubRepo": "repo", "projectPage": "project"}


def parse(data: bytes, *, at: str, day: str = "", first: int = 0, name: str = SOURCE) -> Page:
    """Read rows of the daily list, of a search, or papers by themselves.

    Args:
        at: when it was fetched, which is when its counts were so.
        day: of the list, for rows that do not say it themselves.
        first: the place of the first row.

    Raises:
        SourceError: it is no such JSON; then nothing of it is kept.
    """
    rows = document(data, name)
    if isinstance(rows, Mapping):
        if "error" in rows:
            raise SourceError(f"{name}: {word(rows['error']) or 'an error without words'}")
        rows = rows.get("papers", [rows])
    if not isinstance(rows, list):
        raise SourceError(f"{name}: got JSON without rows; expected a list of papers")
    found, left = [], []
    for number, row in enumerate(rows):
        record = _record(row, number, at, day, first, name)
        if record is None:
            left.append("no arXiv identifier")
        else:
            found.append(record)
    return Page(tuple(found), tuple(left), len(rows), day=day)


def _record(row: Any, number: int, at: str, day: str, first: int, name: str) -> Record | None:
    outer = row if isinstance(row, Mapping) else {}
    paper = outer.get("paper", outer)
    if not isinstance(paper, Mapping) or not isinstance(paper.get("id"), str):
        raise SourceError(f"{name}: row {number + 1} has no paper with an id; expected {{'paper': {{'id': …}}}}")
    title = word(paper.get("title")) or word(outer.get("title"))
    if not title:
        raise SourceError(f"{name}: row {number + 1} ({word(paper['id'])}) has no title")
    identifier = exactly(paper["id"])
    if identifier is None:
        return None
    # Midnight UTC is the day before in American zones: the day is read off, never converted.
    listed = moment(paper.get("submittedOnDailyAt"))[:10] or day
    return replace(
        told(
            ids.ArxivId(identifier.bare, identifier.version),
            SOURCE,
            title=title,
            abstract=word(paper.get("summary")) or word(outer.get("summary")),
            authors=_authors(paper.get("authors")),
            published=moment(paper.get("publishedAt")) or moment(outer.get("publishedAt")),
        ),
        listings=(Listing(SOURCE, listed, first + number),) if listed else (),
        facts=tuple(_facts(paper, at)),
    )


def _authors(given: Any) -> tuple[str, ...]:
    """Names, without those that are hidden."""
    people = [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
    return tuple(name for each in people if each.get("hidden") is not True and (name := word(each.get("name"))))


def _facts(paper: Mapping[str, Any], at: str) -> list[Fact]:
    counts = {
        key: str(value)
        for field, key in _FACTS.items()
        if isinstance(value := paper.get(field), int) and not isinstance(value, bool) and 0 <= value < 1 << 53
    }
    links = {key: link for field, key in _LINKS.items() if (link := address(paper.get(field)))}
    return [Fact(key, value, at) for key, value in (counts | links).items()]

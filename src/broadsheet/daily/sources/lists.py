"""Plain lists: identifiers or addresses, a paper a line as JSON, and a saved page's text whose titles are known.

Titles are compared without case and punctuation. A paper that is known by its title alone is told as unconfirmed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from broadsheet.daily import ids
from broadsheet.daily.records import Fact, Record, line, plain
from broadsheet.daily.sources import hf
from broadsheet.daily.sources.base import Page, SourceError, decoded, exactly, moment, told, word, words

UNCONFIRMED = "unconfirmed"
_WRAPPED = 4  # lines over which a title may run
_SHORTEST = 8  # letters and digits of a title that is looked for


def identifiers(data: bytes, *, name: str = "list") -> Page:
    """Read all identifiers and addresses of a text, each article once.

    Raises:
        SourceError: it is no text, or names none.
    """
    found = ids.find(decoded(data, name))
    if not found:
        raise SourceError(f"{name}: found no arXiv identifier; expected one a line, as in 2407.12021, or addresses")
    return Page(tuple(told(each, "list") for each in found), (), len(found))


def jsonl(data: bytes, *, at: str, name: str = "jsonl") -> Page:
    """Read a paper a line: `id`, and what else is there of `title`, `abstract`, `authors`, `categories`, ….

    A line with a `paper` in it is a row of the daily list (`hf`).

    Raises:
        SourceError: a line is none; then nothing of the file is kept.
    """
    found: list[Record] = []
    left: list[str] = []
    rows = 0
    for number, text in enumerate(decoded(data, name).split("\n"), 1):
        if not text.strip():
            continue
        rows += 1
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            raise SourceError(f"{name}, line {number}: got broken JSON; nothing of the file is kept") from None
        if not isinstance(row, Mapping):
            raise SourceError(f"{name}, line {number}: got {line(text)[:40]}; expected an object with an id")
        if "paper" in row:
            page = hf.parse(json.dumps([row]).encode(), at=at, first=rows - 1, name=f"{name}, line {number}")
            found.extend(page.records)
            left.extend(page.left)
            continue
        given = (row.get(each) for each in ("id", "arxiv_id", "arxiv", "eprint", "url"))
        identifier = next((known for each in given if (known := exactly(each)) is not None), None)
        if identifier is None:
            left.append("no arXiv identifier")
            continue
        found.append(
            told(
                identifier,
                "list",
                title=word(row.get("title")),
                abstract=word(row.get("abstract")) or word(row.get("summary")),
                authors=_people(row.get("authors")),
                categories=words(_parts(row.get("categories"), " ")),
                published=moment(row.get("published")) or moment(row.get("publishedAt")),
                updated=moment(row.get("updated")),
                comment=word(row.get("comments")) or word(row.get("comment")),
                journal=word(row.get("journal-ref")) or word(row.get("journal")),
                doi=word(row.get("doi")),
            )
        )
    return Page(tuple(found), tuple(left), rows)


def titles(data: bytes, known: Mapping[str, str], *, at: str, name: str = "text") -> Page:
    """Find the titles of known papers in a text, also where they run over several lines.

    Args:
        known: identifiers by `records.plain` title.

    Raises:
        SourceError: it is no text, or has no title that is known.
    """
    lines = [letters for each in decoded(data, name).splitlines() if (letters := plain(each))]
    hits: dict[str, None] = {}
    for begin in range(len(lines)):
        joined = ""
        for each in lines[begin : begin + _WRAPPED]:
            joined += each
            if len(joined) >= _SHORTEST and joined in known:
                hits[known[joined]] = None
    if not hits:
        raise SourceError(
            f"{name}: found neither an arXiv identifier nor a title of a paper that is here; expected a file of "
            "JSON, Atom, RSS, OAI, BibTeX, JSONL, identifiers, or a saved page's text"
        )
    mark = Fact(UNCONFIRMED, "known by its title alone", at)
    records = tuple(told(ids.ArxivId(each, 0), "text", facts=(mark,)) for each in hits)
    return Page(records, (), len(hits), kinds={UNCONFIRMED: len(hits)})


def _people(given: Any) -> tuple[str, ...]:
    """Names of a list of texts, of objects with a name, or of one text."""
    given = _parts(given, ",")
    return words([each.get("name") if isinstance(each, Mapping) else each for each in given])


def _parts(given: Any, separator: str) -> list[Any]:
    if isinstance(given, str):
        return given.replace(" and ", ",").split(",") if separator == "," else given.split()
    return given if isinstance(given, list) else []

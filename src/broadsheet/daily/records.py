"""What a source says of a paper, and how several sources' words become one paper.

Knows: fields, versions, sources. Does not know: formats, the database. Putting records together is commutative and
idempotent: any order, and any number of times, gives the same paper.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

# Whose word counts among sources that tell of the same version, the best first; any other comes last.
SOURCES = ("arxiv", "oai", "rss", "hf", "bibtex", "export", "broadsheet")
UNRANKED = 1_000_000
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Listing:
    """That a source listed a paper on a day, at a place.

    Attributes:
        source: `"hf"`, or of arXiv's lists the class too, `"arxiv:cs.CL"`.
        day: `"2024-08-18"`, as the source has it.
        rank: the place on the list, from 0; `UNRANKED` where the source does not say.
    """

    source: str
    day: str
    rank: int


@dataclass(frozen=True)
class Fact:
    """What a source said about a paper at a time, which may have changed since: stars, upvotes, a repository."""

    key: str
    value: str
    at: str


@dataclass(frozen=True)
class Record:
    """What one source says of one paper. What it does not say is empty.

    Attributes:
        id: the bare arXiv identifier.
        source: who says it, `"arxiv"`, `"hf"`, …
        version: of the article, from 1; 0 where the source does not say.
        title, abstract: on one line each.
        published: when version 1 was submitted, `"2024-07-02T17:00:00Z"`, or a part of it.
        updated: when this version was.
        comment, journal, doi: as arXiv has them.
        listings, facts: see there.
    """

    id: str
    source: str
    version: int = 0
    title: str = ""
    abstract: str = ""
    authors: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    published: str = ""
    updated: str = ""
    comment: str = ""
    journal: str = ""
    doi: str = ""
    listings: tuple[Listing, ...] = field(default=(), compare=False)
    facts: tuple[Fact, ...] = field(default=(), compare=False)

    def told(self) -> dict[str, Any]:
        """What is said, without empty fields, listings and facts."""
        mine = asdict(self)
        return {name: mine[name] for name in TOLD if mine[name]}


TOLD = tuple(each.name for each in fields(Record) if each.name not in ("id", "source", "version", "listings", "facts"))


def together(records: Iterable[Record]) -> Record:
    """One paper out of what sources say of it: each field from the highest version that has it.

    Among equal versions the better source counts (`SOURCES`), then the later update. Categories are those of all.

    Raises:
        ValueError: no records, or of several papers.
    """
    ranked = sorted(records, key=_trust, reverse=True)
    if len({each.id for each in ranked}) != 1:
        raise ValueError(f"got records of {sorted({each.id for each in ranked})}; expected those of one paper")
    merged: dict[str, Any] = {
        name: next((value for each in ranked if (value := getattr(each, name))), "") for name in TOLD
    }
    merged["authors"] = tuple(merged["authors"] or ())
    merged["categories"] = tuple(dict.fromkeys(kind for each in ranked for kind in each.categories))
    dates = [each.published for each in ranked if each.published]
    merged["published"] = min(dates, key=lambda date: (-len(date), date)) if dates else ""
    return Record(ranked[0].id, ranked[0].source, max(each.version for each in ranked), **merged)


def _trust(record: Record) -> tuple[Any, ...]:
    place = SOURCES.index(record.source) if record.source in SOURCES else len(SOURCES)
    return record.version, -place, record.updated, repr(sorted(record.told().items()))


def line(text: str) -> str:
    """A text on one line, normalised, without control characters and halves of characters."""
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFC", text)).split())


def plain(title: str) -> str:
    """A title by which the same paper is known: small letters and digits alone."""
    return "".join(char for char in unicodedata.normalize("NFKD", title).casefold() if char.isalnum())


def names(given: Sequence[str]) -> tuple[str, ...]:
    """Authors' names on one line each, without empty ones."""
    return tuple(name for each in given if (name := line(each)))

"""Our own export: all that sources said, and all that the user said. Reading it anywhere gives an equal store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from broadsheet.daily import ids
from broadsheet.daily.records import TOLD, Fact, Listing, Record
from broadsheet.daily.sources.base import Page, SourceError, document
from broadsheet.daily.store import Mark, Topic

FORMAT = 1
KEY = "broadsheet"
_LISTS = ("authors", "categories")
_HALF = re.compile(r"[\ud800-\udfff\x00]")
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


def parse(data: bytes, *, name: str = "export") -> Page:
    """Read an export of `broadsheet page export`.

    Raises:
        SourceError: it is none, of a later format, or something in it is not as we write it: nothing of it is kept.
    """
    given = document(data, name)
    if not isinstance(given, Mapping) or KEY not in given:
        raise SourceError(f"{name}: got JSON without “{KEY}”; expected an export of broadsheet page")
    if given[KEY] != FORMAT:
        raise SourceError(f"{name}: got format {given[KEY]!r}; this broadsheet reads {FORMAT}: update it")
    read = _Reader(name)
    records = [read.record(each, f"papers[{i}]") for i, each in enumerate(read.a(list, given, "papers", ""))]
    marks = {
        read.identifier(key, "marks"): read.mark(each, f"marks[{key}]")
        for key, each in read.a(dict, given, "marks", "").items()
    }
    topics = [read.topic(each, f"topics[{i}]") for i, each in enumerate(read.a(list, given, "topics", ""))]
    return Page(tuple(records), (), len(records), marks=marks, topics=tuple(topics))


class _Reader:
    """Takes values out of JSON, and names the place of one that is of another kind than expected."""

    def __init__(self, name: str) -> None:
        self.name = name

    def wrong(self, where: str, expected: str) -> SourceError:
        return SourceError(f"{self.name}: {where} is not as we write it; expected {expected}; nothing of it is kept")

    def a(self, kind: type, given: Any, key: str, where: str) -> Any:
        """`given[key]`, of this kind; the kind's empty value where it is missing."""
        if not isinstance(given, Mapping):
            raise self.wrong(where, "an object")
        value: Any = given.get(key, kind())
        if type(value) is not kind:
            raise self.wrong(f"{where}.{key}".strip("."), {int: "a number", str: "a text"}.get(kind, kind.__name__))
        if isinstance(value, str) and _HALF.search(value):
            raise self.wrong(f"{where}.{key}".strip("."), "a text without halves of characters")
        if isinstance(value, int) and not -(1 << 53) < value < 1 << 53:
            raise self.wrong(f"{where}.{key}".strip("."), "a smaller number")
        return value

    def strings(self, given: Any, key: str, where: str) -> tuple[str, ...]:
        values = self.a(list, given, key, where)
        return tuple(self.a(str, {str(i): value}, str(i), f"{where}.{key}") for i, value in enumerate(values))

    def identifier(self, value: Any, where: str) -> str:
        found = ids.parse(value) if isinstance(value, str) else None
        if found is None or found.bare != value:
            raise self.wrong(where, "an arXiv identifier")
        return value

    def record(self, given: Any, where: str) -> Record:
        said: dict[str, Any] = {
            field: self.strings(given, field, where) if field in _LISTS else self.a(str, given, field, where)
            for field in TOLD
        }
        return Record(
            self.identifier(self.a(str, given, "id", where), f"{where}.id"),
            self.a(str, given, "source", where) or "export",
            self.a(int, given, "version", where),
            **said,
            listings=tuple(self.listing(each, f"{where}.listings") for each in self.a(list, given, "listings", where)),
            facts=tuple(
                Fact(*(self.a(str, each, key, f"{where}.facts") for key in ("key", "value", "at")))
                for each in self.a(list, given, "facts", where)
            ),
        )

    def listing(self, given: Any, where: str) -> Listing:
        found = Listing(
            self.a(str, given, "source", where), self.a(str, given, "day", where), self.a(int, given, "rank", where)
        )
        if not _DAY.fullmatch(found.day):
            raise self.wrong(f"{where}.day", "a day as in 2024-08-18")
        return found

    def mark(self, given: Any, where: str) -> Mark:
        flags = {key: self.a(bool, given, key, where) for key in ("read", "later", "hidden", "seed")}
        return Mark(**flags, note=self.a(str, given, "note", where), changed=self.a(str, given, "changed", where))

    def topic(self, given: Any, where: str) -> Topic:
        name, changed = self.a(str, given, "name", where), self.a(str, given, "changed", where)
        if not name or not changed:
            raise self.wrong(where, "a name, and when it was changed")
        likes, dislikes = (self.strings(given, key, where) for key in ("likes", "dislikes"))
        return Topic(name, self.a(str, given, "query", where), likes, dislikes, changed)

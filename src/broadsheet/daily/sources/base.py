"""What all sources share: a page of records, times and texts as they are kept, bytes that are too many refused."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from broadsheet.console import InputError
from broadsheet.daily import ids
from broadsheet.daily.records import Record, line
from broadsheet.daily.store import Mark, Topic

LARGEST = 64 << 20  # bytes of one page, unpacked
LONGEST = 2_000  # characters of a fact


class SourceError(InputError):
    """What a source sent cannot be used: one line that names the source and what is wrong."""


class ExpiredError(SourceError):
    """Where a source was to go on is not known to it any more: begin again."""


@dataclass(frozen=True)
class Page:
    """What one answer, or one file, holds.

    Attributes:
        records: in the source's order.
        left: what was left out, a reason each.
        rows: how many the source sent, those left out among them.
        total: how many it says there are; None where it does not say.
        more: where to go on; empty at the end.
        day: of the list, where the page is one.
        at: when the source answered, by its own clock.
        kinds: how many of which kind of announcement.
        marks, topics: what the user has said elsewhere.
    """

    records: tuple[Record, ...] = ()
    left: tuple[str, ...] = ()
    rows: int = 0
    total: int | None = None
    more: str = ""
    day: str = ""
    at: str = ""
    kinds: Mapping[str, int] = field(default_factory=dict)
    marks: Mapping[str, Mark] = field(default_factory=dict)
    topics: tuple[Topic, ...] = ()


def told(identifier: ids.ArxivId, source: str, **said: Any) -> Record:
    """What a source says of a paper; where it does not say when it was submitted, its identifier tells the month."""
    said["published"] = said.get("published") or ids.month(identifier.bare)
    return Record(identifier.bare, source, said.pop("version", 0) or identifier.version, **said)


def exactly(text: object) -> ids.ArxivId | None:
    """The identifier that a text is, with or without `arXiv:` or an address before it; None where it is another."""
    found = ids.find(text.strip()) if isinstance(text, str) and len(text) < 200 and " " not in text.strip() else []
    return found[0] if len(found) == 1 else None


def moment(text: object) -> str:
    """A time in UTC, `"2024-07-02T17:00:00Z"`, or a day where the text names no more; empty where it names none.

    A time without a zone is UTC's, wherever this machine stands.
    """
    if not isinstance(text, str):
        return ""
    text = text.strip()
    try:
        if len(text) == 10:
            return date.fromisoformat(text).isoformat()
        found = datetime.fromisoformat(text)
    except ValueError:
        try:
            found = parsedate_to_datetime(text)
        except ValueError:
            return ""
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    try:
        return found.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError):
        return ""


def word(value: object) -> str:
    """A text on one line; empty where it is none."""
    return line(value) if isinstance(value, str) else ""


def words(values: object) -> tuple[str, ...]:
    """The texts of a list, each on one line, each once; what is no text is left out."""
    given = values if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping) else ()
    return tuple(dict.fromkeys(found for each in given if (found := word(each))))


def address(value: object) -> str:
    """An http address; empty where it is none, or another kind."""
    text = word(value)
    return text if text.startswith(("https://", "http://")) and len(text) <= LONGEST and " " not in text else ""


def decoded(data: bytes, name: str) -> str:
    """Bytes as UTF-8 text.

    Raises:
        SourceError: they are none.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{name}: byte {error.start} is no UTF-8; expected text in UTF-8") from None


def document(data: bytes, name: str) -> Any:
    """Bytes as JSON.

    Raises:
        SourceError: they are none, or a web page, or cut.
    """
    text = decoded(data, name)
    try:
        return json.loads(text)
    except RecursionError:
        raise SourceError(f"{name}: got JSON that is nested too deeply; expected a list of papers") from None
    except ValueError as error:
        if text.lstrip()[:1] == "<":
            raise SourceError(f"{name}: got a web page; expected JSON") from None
        raise SourceError(
            f"{name}: got JSON that is cut or broken ({line(str(error))[:70]}); nothing of it is kept"
        ) from None


def unpacked(data: bytes, name: str, largest: int = LARGEST) -> bytes:
    """Bytes without gzip around them.

    Raises:
        SourceError: they are cut, broken, or more than `largest` without it.
    """
    parts, rest, size = [], data, 0
    while rest[:2] == b"\x1f\x8b":
        unpacker = zlib.decompressobj(31)
        try:
            part = unpacker.decompress(rest, largest - size + 1)
        except zlib.error as error:
            raise SourceError(f"{name}: got broken gzip ({error}); nothing of it is kept") from None
        size += len(part)
        if size > largest:
            raise SourceError(f"{name}: got more than {largest >> 20} MiB out of {len(data):,} bytes of gzip")
        if not unpacker.eof:
            raise SourceError(f"{name}: got gzip that is cut; nothing of it is kept")
        parts.append(part)
        rest = unpacker.unused_data
    return b"".join(parts) if parts else data

"""Which format a file is in, told by its first bytes, not by its name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial

from broadsheet.daily import ids
from broadsheet.daily.sources import arxiv, bibtex, hf, lists, own, xml
from broadsheet.daily.sources.base import Page, SourceError, decoded, unpacked

_ENTRY = re.compile(rb"^\s*@\w+\s*[{(]", re.MULTILINE)
LARGEST = 256 << 20  # bytes of a file, unpacked: an export of some 100,000 papers
Parser = Callable[[], Page]


def sniff(data: bytes, *, at: str, known: Callable[[], Mapping[str, str]] = dict, name: str = "input") -> Parser:
    """The parser of these bytes, which may be gzipped: call it for their page.

    Args:
        at: when they were fetched: counts in them were so then.
        known: gives identifiers by plain title; called where a text has no identifiers.

    Raises:
        SourceError: they are empty, too many, or of no format that is known.
    """
    data = unpacked(data, name, LARGEST)
    if len(data) > LARGEST:
        raise SourceError(f"{name}: got {len(data) >> 20} MiB; expected at most {LARGEST >> 20}")
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if not start:
        raise SourceError(f"{name}: it is empty; expected papers")
    if start == b"<" or b"\0" in data[:4]:  # UTF-16 is XML's or nobody's
        return _xml(data, name)
    if start in b"[{":
        return _json(data, at, name)
    if _ENTRY.search(data):
        return partial(bibtex.parse, data, name=name)
    if ids.find(decoded(data, name)):
        return partial(lists.identifiers, data, name=name)
    return lambda: lists.titles(data, known(), at=at, name=name)


def _xml(data: bytes, name: str) -> Parser:
    top = xml.root(data, name)
    if top.tag == "rss":
        return partial(arxiv.announced, data, name=name)
    if top.tag == f"{xml.OAI}OAI-PMH":
        return partial(arxiv.oai, data, name=name)
    if top.tag == f"{xml.ATOM}feed":
        return partial(arxiv.announced if arxiv.record_kind(top) == "announced" else arxiv.query, data, name=name)
    raise SourceError(f"{name}: got XML that begins with {top.tag}; expected Atom, RSS or OAI-PMH of arXiv")


def _json(data: bytes, at: str, name: str) -> Parser:
    first = data.removeprefix(b"\xef\xbb\xbf").strip().split(b"\n", 1)
    if len(first) == 2 and first[0].rstrip().endswith(b"}"):
        try:
            json.loads(first[0])
        except (ValueError, RecursionError):
            pass
        else:
            return partial(lists.jsonl, data, at=at, name=name)
    if re.match(rb'\s*\{\s*"%s"\s*:' % own.KEY.encode(), data.removeprefix(b"\xef\xbb\xbf")):
        return partial(own.parse, data, name=name)
    return partial(hf.parse, data, at=at, name=name)

"""The papers as files that leave: our own JSON (everything), BibTeX, Atom, notes as Markdown.

Knows: the store, the formats' signs and how each is escaped. Does not know: where the files go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from broadsheet.daily import feeds, ids
from broadsheet.daily.sources import own
from broadsheet.daily.store import Article, Mark, Store

_LATEX = {
    "\\": r"{\textbackslash}",
    "{": r"{\textbraceleft}",
    "}": r"{\textbraceright}",
    "^": r"{\textasciicircum}",
    "~": r"{\textasciitilde}",
    **{sign: f"\\{sign}" for sign in "$&#_%"},
}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~&$:@=\"'])")
_FLAGS = {"later": "to read", "read": "read", "hidden": "of no interest", "seed": "more like it"}


def everything(store: Store) -> Iterator[str]:
    """All that sources and the user said, as JSON in pieces, a paper's statement a line: `sources.own` reads it.

    Two stores that know the same give the same text.
    """
    yield f'{{"{own.KEY}": {own.FORMAT},\n"papers": ['
    before = "\n"
    for record in store.records():
        said: dict[str, Any] = {"id": record.id, "source": record.source, "version": record.version, **record.told()}
        said |= {name: [asdict(each) for each in getattr(record, name)] for name in ("listings", "facts")}
        yield before + _json({name: value for name, value in said.items() if value not in ([], 0)})
        before = ",\n"
    yield '\n],\n"marks": {'
    before = "\n"
    for identifier, mark in store.marks().items():
        yield f"{before}{_json(identifier)}: {_json(asdict(mark))}"
        before = ",\n"
    yield '\n},\n"topics": ['
    before = "\n"
    for topic in store.topics():
        yield before + _json(asdict(topic))
        before = ",\n"
    yield "\n]}\n"


def bibtex(articles: Iterable[Article]) -> Iterator[str]:
    """An entry a paper; its key is the bare identifier, which never changes."""
    for each in articles:
        year, _, month = (each.published or ids.month(each.id)).partition("-")
        fields = {
            "title": f"{{{_latex(each.title)}}}",
            "author": " and ".join(_person(author) for author in each.authors),
            "year": year,
            "month": month[:2].lstrip("0"),
            "eprint": each.id + (f"v{each.version}" if each.version else ""),
            "archiveprefix": "arXiv",
            "primaryclass": next(iter(each.categories), ""),
            "journal": _latex(each.journal),
            "doi": _latex(each.doi),
            "url": each.url,
            "abstract": _latex(each.abstract),
        }
        said = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value.strip("{}"))
        yield f"@{'article' if each.journal else 'misc'}{{{each.id},\n{said}\n}}\n\n"


def atom(articles: Iterable[Article], *, title: str, at: str, url: str = "") -> bytes:
    """An Atom feed (RFC 4287), the latest paper first.

    An entry's identifier follows from the paper's, the feed's from its title: neither ever changes.

    Args:
        title: of the feed.
        at: `updated` of a feed without entries.
        url: where the feed can be had.
    """
    return feeds.atom(feeds.Feed(title, tuple(map(feeds.of_paper, articles)), url=url, at=at))


def markdown(store: Store) -> Iterator[str]:
    """What the user said of papers, in words: each paper with a mark or a note, its title, its marks, its note."""
    yield "# What I said of papers\n"
    marks = store.marks()
    known = {each.id: each for each in store.articles(list(marks))}
    for identifier, mark in marks.items():
        if mark == Mark(changed=mark.changed):
            continue
        title = known[identifier].title if identifier in known else ""
        yield f"\n## {_marked_down(title or identifier)}\n\n<https://arxiv.org/abs/{identifier}>\n"
        said = [words for name, words in _FLAGS.items() if getattr(mark, name)]
        if said:
            yield f"\nMarked: {', '.join(said)}\n"
        if mark.note.strip():
            yield "\n" + _quoted(mark.note)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _person(name: str) -> str:
    """A name as BibTeX takes it apart; one with a comma or an “and” within is one name."""
    told = _latex(name)
    return f"{{{told}}}" if "," in name or re.search(r"\band\b", name, re.IGNORECASE) else told


def _marked_down(text: str) -> str:
    """A text that Markdown shows as it is."""
    return _MARKDOWN.sub(r"\\\1", re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text)).strip()


def _quoted(note: str) -> str:
    """A note as a quotation, line by line as it was typed."""
    rows = "\n".join(_marked_down(row) for row in note.splitlines()).strip("\n").split("\n")
    ends = ["\\" if row and after else "" for row, after in zip(rows, [*rows[1:], ""], strict=True)]
    return "".join(f"> {row}{end}".rstrip(" ") + "\n" for row, end in zip(rows, ends, strict=True))

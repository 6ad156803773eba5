"""What leaves is well formed whatever stands in it, is the same each time, and can be read back."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree
from newsstand import AT, entry, feed

from broadsheet.daily import export
from broadsheet.daily.records import Record, line
from broadsheet.daily.sources import arxiv, bibtex
from broadsheet.daily.store import Article, Store

ATOM = "{http://www.w3.org/2005/Atom}"
WHOLE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
HOSTILE = (
    r"""</title><script>alert(1)</script> & "a" 'b' ]]> {x} }{ $a_i^2$ 50% of \emph{it} # ~ ``q'' @misc{y, <!-- |*_"""
)


def article(identifier: str = "2408.00001", **told: Any) -> Article:
    return Article(
        **{
            "id": identifier,
            "version": 1,
            "title": "A paper",
            "abstract": "It is.",
            "authors": ("Ada Lind",),
            "categories": ("cs.CL",),
            "published": "2024-08-01T09:00:00Z",
            "updated": "",
            "comment": "",
            "journal": "",
            "doi": "",
            "listed": "",
        }
        | told
    )


def check(data: bytes) -> list[Any]:
    """See that a feed has all that RFC 4287 requires; its entries."""
    top = etree.fromstring(data, etree.XMLParser(resolve_entities=False))
    assert top.tag == f"{ATOM}feed"
    for element in (top, *top.iterfind(f"{ATOM}entry")):
        for name in ("id", "title", "updated"):
            [found] = element.findall(f"{ATOM}{name}")
            assert found.text
        assert WHOLE.fullmatch(element.findtext(f"{ATOM}updated"))
        assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", element.findtext(f"{ATOM}id"))
        assert all(each.text for each in element.findall(f"{ATOM}author/{ATOM}name"))
        assert element.find(f"{ATOM}author") is not None
    entries = top.findall(f"{ATOM}entry")
    assert len({each.findtext(f"{ATOM}id") for each in entries}) == len(entries)
    assert all(each.find(f"{ATOM}link[@rel='alternate']") is not None for each in entries)
    return entries


def test_a_feed_has_what_the_format_requires():
    bare = article("math/0309136", title="", authors=(), published="", abstract="", version=0)
    first, second = check(export.atom([bare, article(updated="2024-08-16T09:00:00Z")], title="Papers", at=AT))
    assert first.findtext(f"{ATOM}title") == "A paper"  # the later one
    assert first.findtext(f"{ATOM}published") == "2024-08-01T09:00:00Z"
    assert first.find(f"{ATOM}link").get("href") == "https://arxiv.org/abs/2408.00001"
    assert second.findtext(f"{ATOM}updated") == "2003-09-01T00:00:00Z"


def test_a_feed_without_entries_is_one():
    assert check(export.atom([], title="Nothing", at=AT)) == []


def test_identifiers_of_a_feed_never_change():
    def ids(data: bytes) -> list[str]:
        return re.findall(r"urn:uuid:[0-9a-f-]+", data.decode())

    one = ids(export.atom([article()], title="Papers", at=AT))
    assert one == ids(export.atom([article(title="New", version=2, updated=AT, authors=())], title="Papers", at=AT))
    # As they are since the first of them was made: a reader of feeds knows papers by them.
    assert one == ["urn:uuid:cf949f3a-3aa5-5c0c-b35c-227816b73106", "urn:uuid:52c8ff3e-09b1-59dd-919c-c165a5f3c1ca"]


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_a_feed_is_well_formed_whatever_stands_in_it(text):
    odd = article(title=text, abstract=text, authors=(text or "x", "Y"), categories=(text,), updated=text)
    [found] = check(export.atom([odd], title=text or "x", at=AT)) if line(text) else [None]
    assert found is None or found.findtext(f"{ATOM}title") == line(text)


def read_back(articles: list[Article]) -> list[Record]:
    return list(bibtex.parse("".join(export.bibtex(articles)).encode()).records)


@pytest.mark.parametrize(
    "text", [HOSTILE, "}", "{", "\\", "50% of it\\", "a_b^c~d", "Ä ö € 𝕏", "{\\o}", "$x$", "-- ---"]
)
def test_bibtex_brings_back_what_went_into_it(text):
    [found] = read_back([article(title=text, abstract=text, journal="", doi="10.1000/a_b%c")])
    same = str.maketrans({"–": "--", "—": "---", "“": "``", "”": "''", "’": "'", "‘": "`", "¿": "?`", "¡": "!`"})
    assert found.title.translate(same) == text
    assert found.abstract.translate(same) == text
    assert (found.id, found.version) == ("2408.00001", 1)


def test_bibtex_entries_stand_by_themselves():
    people = ("Ada Lind", "The Team, Inc", "Bo and Co", "Jörg van der Öst")
    found = read_back(
        [article(authors=people), article("math/0309136", journal=HOSTILE, version=0), article("2408.00003")]
    )
    assert [each.id for each in found] == ["2408.00001", "math/0309136", "2408.00003"]
    assert found[0].authors == people
    text = "".join(export.bibtex([article(journal="J. Text")]))
    assert text.startswith("@article{2408.00001,\n")
    assert "  year = {2024},\n  month = {8},\n" in text


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_no_title_breaks_the_file(text):
    found = read_back([article(title=line(text)), article("2408.00003", title="Next")])
    assert [each.id for each in found] == ["2408.00001", "2408.00003"]
    assert found[1].title == "Next"


def test_notes_as_markdown(tmp_path):
    store = Store(tmp_path / "page.sqlite", clock=lambda: AT)
    store.add(arxiv.query(feed(entry("2408.00001v1", "On *stars* & <b>"), entry("2408.00002v1", "No word"))).records)
    store.mark("2408.00001", later=True, seed=True, note="# Not a heading\n<script>\n\n- and more\r\x00")
    store.mark("2408.00002", read=True)
    store.mark("2408.00002", read=False)
    assert "".join(export.markdown(store)) == (
        "# What I said of papers\n"
        "\n## On \\*stars\\* \\& \\<b\\>\n"
        "\n<https://arxiv.org/abs/2408.00001>\n"
        "\nMarked: to read, more like it\n"
        "\n> \\# Not a heading\\\n> \\<script\\>\n>\n> \\- and more\n"
    )


def test_everything_is_the_same_text_each_time(tmp_path):
    store = Store(tmp_path / "page.sqlite", clock=lambda: AT)
    store.add(arxiv.query(feed(entry("2408.00001v1", HOSTILE))).records)
    assert "".join(export.everything(store)) == "".join(export.everything(Store(store.name)))

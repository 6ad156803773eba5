"""What sources send becomes records: each field where it belongs, and nothing of what is cut, broken or hostile."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest
from newsstand import (
    AT,
    BOMB,
    DELETED,
    OUTSIDE,
    atom_list,
    entry,
    error_feed,
    feed,
    full_row,
    harvested,
    item,
    listed,
    row,
    rows,
    rss,
)
from newsstand import oai as oai_answer

from broadsheet.console import InputError
from broadsheet.daily import ids
from broadsheet.daily.records import UNRANKED, Fact, Listing, plain
from broadsheet.daily.sources import arxiv, base, bibtex, hf, lists, own, sniff
from broadsheet.page import papers


def test_a_full_row_keeps_each_field_and_no_hidden_author():
    [found] = hf.parse(rows(full_row()), at=AT).records
    assert (found.id, found.source, found.title) == ("2408.00001", "hf", "Reading twice")
    assert found.abstract == "We read twice & more."
    assert found.authors == ("Ada Lind", "Bo Öst")
    assert found.published == "2024-08-15T17:59:02Z"
    assert found.listings == (Listing("hf", "2024-08-18", 0),)
    assert found.facts == (
        Fact("upvotes", "0", AT),  # zero is a count, not a gap
        Fact("stars", "12", AT),
        Fact("repo", "https://github.com/ada/twice", AT),
    )
    assert "words" not in repr(found)  # what HF's model wrote is not ours to keep


def test_a_row_with_nothing_optional_is_a_paper():
    [found] = hf.parse(rows(row("2408.00002", "Bare")), at=AT).records
    assert (found.title, found.abstract, found.authors, found.listings, found.facts) == ("Bare", "", (), (), ())
    assert found.published == "2024-08"  # the identifier tells that much


def test_optional_fields_of_another_kind_are_as_if_missing():
    odd = row("2408.00002", "Odd", authors="me", upvotes=True, githubStars=-1, githubRepo=7, publishedAt=3, summary=[])
    [found] = hf.parse(rows(odd), at=AT).records
    assert (found.abstract, found.authors, found.facts, found.published) == ("", (), (), "2024-08")


@pytest.mark.parametrize(
    ("stored", "day"),
    [
        ("2024-08-18T00:00:00.000Z", "2024-08-18"),
        ("2024-08-17T20:00:00-04:00", "2024-08-18"),
        ("2024-08-18T00:00:00", "2024-08-18"),
        ("2024-08-18", "2024-08-18"),
    ],
)
@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Pacific/Auckland", "UTC"])
def test_the_day_of_a_list_is_utc_wherever_the_machine_stands(stored, day, zone, monkeypatch):
    import time

    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        [found] = hf.parse(rows(full_row(submittedOnDailyAt=stored)), at=AT).records
        [announced] = arxiv.announced(rss(item())).records
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found.listings[0].day == day
    assert found.published == "2024-08-15T17:59:02Z"
    assert announced.listings[0].day == "2024-08-19"


def test_the_day_that_was_asked_for_serves_where_a_row_has_none():
    one, two = hf.parse(rows(row(), full_row("2408.00002")), at=AT, day="2024-08-20", first=100).records
    assert one.listings == (Listing("hf", "2024-08-20", 100),)
    assert two.listings == (Listing("hf", "2024-08-18", 101),)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"<!doctype html><html>", "got a web page"),
        (rows(full_row(), full_row("2408.00002"))[:-40], "cut or broken"),
        (b'{"error": "no such day"}', "no such day"),
        (b'"papers"', "without rows"),
        (b'[{"paper": {"title": "x"}}]', "row 1 has no paper with an id"),
        (b'[{"paper": {"id": "2408.00001"}}]', "has no title"),
        (b"[7]", "row 1 has no paper"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1" + b"0" * 5000 + b"]", "cut or broken"),
        (b"\xff\xfe[", "no UTF-8"),
    ],
    ids=range(10),
)
def test_what_is_no_daily_list_is_told_in_one_line(data, wrong):
    with pytest.raises(base.SourceError, match=wrong) as caught:
        hf.parse(data, at=AT)
    assert str(caught.value).startswith("hf: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_weekend_is_an_empty_list_and_another_kind_of_id_is_left_out():
    assert hf.parse(b"[]", at=AT) == base.Page()
    page = hf.parse(rows(row("not-an-arxiv-id"), row()), at=AT)
    assert (len(page.records), page.left, page.rows) == (1, ("no arXiv identifier",), 2)


def test_an_answer_of_the_query_api():
    more = (
        "<arxiv:comment>9\n pages</arxiv:comment><arxiv:journal_ref>J. 1</arxiv:journal_ref>"
        "<arxiv:doi>10.1000/x</arxiv:doi>"
    )
    page = arxiv.query(
        feed(entry("2408.00001v2", "On\n  <b> & $x_i$", "a < b & c\n $x_i$", more), entry("math/0309136v1"), total=9)
    )
    one, old = page.records
    assert (one.id, one.version, one.source) == ("2408.00001", 2, "arxiv")
    assert (one.title, one.abstract) == ("On <b> & $x_i$", "a < b & c $x_i$")
    assert (one.authors, one.categories) == (("Ada Lind", "Bo Öst"), ("cs.CL", "cs.LG"))  # no ACM, no MSC
    assert (one.published, one.updated) == ("2024-08-01T09:00:00Z", "2024-08-16T09:00:00Z")
    assert (one.comment, one.journal, one.doi) == ("9 pages", "J. 1", "10.1000/x")
    assert (old.id, old.version) == ("math/0309136", 1)
    assert (page.total, page.rows, one.listings) == (9, 2, ())


def test_an_error_is_a_feed_and_told_as_an_error():
    with pytest.raises(base.SourceError, match="arXiv refuses the query: incorrect id format for 1234"):
        arxiv.query(error_feed())


def test_only_new_and_cross_lists_are_listings():
    kinds = ("new", "cross", "replace", "replace-cross")
    page = arxiv.announced(rss(*(item(f"2408.0000{i}v{i}", kind) for i, kind in enumerate(kinds, 1))))
    assert [each.listings for each in page.records] == [
        (Listing("arxiv:cs.CL", "2024-08-19", 0),),
        (Listing("arxiv:cs.CL", "2024-08-19", 1),),
        (),
        (),
    ]
    assert [each.version for each in page.records] == [1, 2, 3, 4]
    one = page.records[0]
    assert (one.abstract, one.authors, one.categories) == ("It is.", ("Ada Lind", "Bo Öst"), ("cs.CL", "cs.IR"))
    assert (page.day, dict(page.kinds)) == ("2024-08-19", dict.fromkeys(kinds, 1))


def test_the_same_list_in_atom_says_the_same():
    kinds = ("new", "replace")
    one = arxiv.announced(rss(*(item(f"2408.0000{i}v1", kind) for i, kind in enumerate(kinds))))
    two = arxiv.announced(atom_list(*(listed(f"2408.0000{i}v1", kind) for i, kind in enumerate(kinds))))

    def told(page):
        return [(each.id, each.title, each.abstract, each.authors, each.listings) for each in page.records]

    assert told(one) == told(two)
    assert one.day == two.day


def test_a_weekend_feed_is_empty_and_keeps_its_day():
    page = arxiv.announced(rss(date="Sat, 17 Aug 2024 00:00:00 -0400"))
    assert (page.records, page.day, page.rows) == ((), "2024-08-17", 0)


def test_two_thousand_items_are_read():
    page = arxiv.announced(rss(*(item(f"2408.{i:05}v1") for i in range(2000))))
    assert len({each.id for each in page.records}) == 2000
    assert [each.listings[0].rank for each in page.records] == list(range(2000))


def test_harvested_records():
    page = arxiv.oai(oai_answer(harvested(), harvested("2408.00002", updated="2024-08-18"), DELETED, token="t1"))
    one, two = page.records
    assert (one.id, one.title, one.abstract) == ("2408.00001", "A paper", "It is.")
    assert (one.authors, one.categories) == (("Ada Lind", "Bo Öst Jr"), ("cs.CL", "cs.IR"))
    assert (one.published, one.comment, one.doi) == ("2024-08-01", "9 pages", "10.1000/x")
    assert (one.version, two.version) == (1, 0)  # one that was updated is of a version that OAI does not tell
    assert (page.more, page.at, page.left) == ("t1", AT, ("deleted at the source",))
    assert one.listings == ()  # a datestamp is that of a change


def test_errors_of_a_harvest():
    assert arxiv.oai(oai_answer(error=("noRecordsMatch", "none"))).records == ()
    with pytest.raises(base.ExpiredError, match="badResumptionToken"):
        arxiv.oai(oai_answer(error=("badResumptionToken", "too old")))
    with pytest.raises(base.SourceError, match="badArgument: no such set"):
        arxiv.oai(oai_answer(error=("badArgument", "no such set")))


@pytest.mark.parametrize(
    ("category", "name"),
    [("cs.CL", "cs:cs:CL"), ("hep-th", "physics:hep-th"), ("cs", "cs"), ("cond-mat.str-el", "physics:cond-mat:str-el")],
)
def test_sets_of_categories(category, name):
    assert arxiv.oai_set(category) == name


@pytest.mark.parametrize("data", [BOMB, OUTSIDE, BOMB.decode().encode("utf-16")])
@pytest.mark.parametrize("read", [arxiv.query, arxiv.announced, arxiv.oai])
def test_document_types_are_refused(data, read):
    with pytest.raises(base.SourceError, match="document type"):
        read(data)


def test_the_depth_of_xml_is_limited():
    with pytest.raises(base.SourceError, match="cut or broken"):
        arxiv.announced(b"<rss>" + b"<a>" * 100_000)


@pytest.mark.parametrize("read", [arxiv.query, arxiv.announced, arxiv.oai])
@pytest.mark.parametrize("data", [feed(entry())[:-30], rss(item())[:-30], oai_answer(harvested())[:-30], b""])
def test_a_cut_body_gives_nothing(read, data):
    with pytest.raises(base.SourceError, match="cut or broken"):
        read(data)


def test_bibtex_entries_that_name_an_article():
    text = r"""
@string{prep = "arXiv preprint arXiv:2408.00003"}
@comment{not this}
@article{one, title={{Deep} {\"o}ld {\'e}t{\'e}: $x_i$ \& 50% of it}, author={M{\"u}ller, Hans and {The Team, Inc}
  and Jane van Doe}, eprint={2408.00001v2}, archivePrefix={arXiv}, journal={J. Text}, doi={10.1000/a_b}}
@misc{two, title="By address", url = "https://arxiv.org/abs/math/0309136"}
@article{three, title={By journal}, journal=prep, year=2024}
@inproceedings{four, title={Elsewhere}, eprint={12345}, eprinttype={pubmed}}
@misc{one, title={Its key is another's too}, author={Solo}, doi={10.48550/arXiv.2408.00004}}
"""
    page = bibtex.parse(text.encode())
    found = {each.id: each for each in page.records}
    assert list(found) == ["2408.00001", "math/0309136", "2408.00003", "2408.00004"]
    one = found["2408.00001"]
    assert one.title == "Deep öld été: $x_i$ & 50% of it"
    assert one.authors == ("Hans Müller", "The Team, Inc", "Jane van Doe")
    assert (one.version, one.journal, one.doi) == (2, "J. Text", "10.1000/a_b")
    assert (found["2408.00003"].journal, found["2408.00004"].doi) == ("", "")  # a preprint is in no journal
    assert found["2408.00004"].authors == ("Solo",)
    assert page.left == ("no arXiv identifier",)


def test_a_cut_entry_is_named_by_its_line():
    with pytest.raises(base.SourceError, match=r"refs.bib, line 3: .*cut or broken"):
        bibtex.parse(b"@misc{a, title={x}, eprint={2408.00001}}\n\n@misc{b, title={y", name="refs.bib")


def test_identifiers_and_addresses_in_a_list():
    text = (
        "2408.00001v2\nhttps://arxiv.org/pdf/2408.00002\nhttps://huggingface.co/papers/2408.00003 # good\narXiv:2408.1"
    )
    page = lists.identifiers((text + "\nmath.GT/0309136\n2408.00001").encode())
    assert [(each.id, each.version) for each in page.records] == [
        ("2408.00001", 2),
        ("2408.00002", 0),
        ("2408.00003", 0),
        ("math/0309136", 0),
    ]


def test_papers_a_line_as_json():
    lines = [
        {
            "id": "2408.00001",
            "title": "One",
            "abstract": "A\nB",
            "authors": "A. One, B. Two",
            "categories": "cs.CL cs.AI",
        },
        {"arxiv_id": "2408.00002v3", "title": "Two", "authors": [{"name": "C"}, "D"], "published": "2024-08-02"},
        full_row("2408.00003"),
        {"id": "10.1/x", "title": "Elsewhere"},
    ]
    page = lists.jsonl(b"\n".join(json.dumps(each).encode() for each in lines) + b"\n\n", at=AT)
    one, two, three = page.records
    assert (one.title, one.abstract, one.authors, one.categories) == (
        "One",
        "A B",
        ("A. One", "B. Two"),
        ("cs.CL", "cs.AI"),
    )
    assert (two.version, two.authors, two.published) == (3, ("C", "D"), "2024-08-02")
    assert three.source == "hf"
    assert three.facts
    assert page.left == ("no arXiv identifier",)
    with pytest.raises(base.SourceError, match="mine, line 2: got broken JSON"):
        lists.jsonl(b'{"id": "2408.00001"}\n{"id":', at=AT, name="mine")


def test_a_saved_page_is_matched_by_titles_and_told_as_unconfirmed():
    ours = [(each.arxiv, each.title) for each in papers.page()]
    known = {plain(title): identifier for identifier, title in ours}
    text = "Daily Papers\nby AK and the research community\nAug 18\n"
    for i, (_, title) in enumerate(ours):
        words = title.upper().replace(":", " –").split() if i % 2 else title.split()
        half = len(words) // 2
        text += f"Submitted by\nak\n{i}\n{' '.join(words[:half])}{chr(10) if i % 3 else ' '}{' '.join(words[half:])}\n"
    page = lists.titles(text.encode(), known, at=AT)
    assert {each.id for each in page.records} == {identifier for identifier, _ in ours}
    assert all(each.facts == (Fact("unconfirmed", "known by its title alone", AT),) for each in page.records)
    with pytest.raises(base.SourceError, match="neither an arXiv identifier nor a title"):
        lists.titles(b"Daily Papers\nnothing here", known, at=AT)


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (rows(full_row()), "hf"),
        (b"\xef\xbb\xbf" + rows(full_row()), "hf"),
        (feed(entry()), "arxiv"),
        (rss(item()), "rss"),
        (atom_list(listed()), "rss"),
        (oai_answer(harvested()), "oai"),
        (b"% my references\n@misc{a, eprint={2408.00001}, title={T}}", "bibtex"),
        (b'{"id": "2408.00001"}\n{"id": "2408.00001"}\n', "list"),
        (b"2408.00001\n", "list"),
        (b"Reading, TWICE!\n", "text"),
        (b'{"broadsheet": 1, "papers": [{"id": "2408.00001", "source": "mine"}]}', "mine"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_formats_are_told_by_their_first_bytes(data, source, pack):
    page = sniff.sniff(pack(data), at=AT, known=lambda: {"readingtwice": "2408.00001"})()
    assert {(each.id, each.source) for each in page.records} == {("2408.00001", source)}


@pytest.mark.parametrize("data", [b"", b" \n", b"\xff\xff", b"<html><body>2408.00001", b"<svg/>", b"no papers at all"])
def test_what_is_no_format_is_told_in_one_line(data):
    with pytest.raises(InputError, match=r"^my file: .*expected"):
        sniff.sniff(data, at=AT, name="my file")()


def test_gzip_that_unpacks_to_too_much_or_is_cut():
    bomb = gzip.compress(bytes(5 << 20))
    assert len(bomb) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(base.SourceError, match="more than 1 MiB out of"):
            base.unpacked(bomb, "it", 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # it is not unpacked first and measured then
    finally:
        tracemalloc.stop()
    with pytest.raises(base.SourceError, match="more than 1 MiB out of"):
        base.unpacked(gzip.compress(bytes(1 << 19)) * 3, "it", 1 << 20)  # several in one
    with pytest.raises(base.SourceError, match="gzip that is cut"):
        base.unpacked(bomb[:-20], "it")
    with pytest.raises(base.SourceError, match="broken gzip"):
        base.unpacked(bomb[:20] + b"garbage" + bomb[27:], "it")


@pytest.mark.parametrize(
    "change",
    [
        {"broadsheet": 2},
        {"papers": {}},
        {"papers": [{"id": "2408.00001v2"}]},
        {"papers": [{"id": "2408.00001", "title": 3}]},
        {"papers": [{"id": "2408.00001", "title": "\ud800"}]},
        {"papers": [{"id": "2408.00001", "version": True}]},
        {"papers": [{"id": "2408.00001", "version": 1 << 70}]},
        {"papers": [{"id": "2408.00001", "listings": [{"source": "hf", "day": "yesterday", "rank": 0}]}]},
        {"papers": [{"id": "2408.00001", "facts": ["x"]}]},
        {"marks": {"x": {}}},
        {"marks": {"2408.00001": {"read": 1}}},
        {"topics": [{"name": "", "changed": AT}]},
    ],
)
def test_an_export_that_was_changed_by_hand_is_refused_by_place(change):
    with pytest.raises(base.SourceError, match="export: "):
        own.parse(json.dumps({"broadsheet": 1} | change).encode())


def test_an_identifier_is_one_in_all_its_forms():
    forms = ["math/0309136", "math.GT/0309136", "MATH/0309136v2", "https://arxiv.org/abs/math.gt/0309136"]
    assert {ids.parse(each).bare for each in forms} == {"math/0309136"}
    assert ids.parse("٢٤٠٨.٠٠٠٠١") is None  # digits of another script are no identifier
    assert UNRANKED > 2000

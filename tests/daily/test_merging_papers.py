"""Imports in any order, any number of times, make the same store; and nothing that was said is lost to less."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from newsstand import AT, DELETED, entry, feed, full_row, harvested, item, oai, row, rows, rss

from broadsheet.daily import export
from broadsheet.daily.records import Fact, Listing, Record, together
from broadsheet.daily.sources import arxiv, bibtex, hf, lists, own
from broadsheet.daily.sources.base import Page
from broadsheet.daily.store import Mark, Store, Topic

LATER = "2024-08-20T12:00:00Z"
TOPIC = Topic("reading", "read*", ("2408.00001",), (), AT)


@cache
def pages() -> tuple[Page, ...]:
    """What each kind of source tells of a few papers."""
    one, two, three = "2408.00001", "2408.00002", "2408.00003"
    return (
        hf.parse(rows(full_row(one), full_row(two), full_row(three)), at=AT),
        hf.parse(rows(full_row(two, upvotes=9)), at=LATER),  # a shorter list of the same day
        hf.parse(rows(row(one, "Reading twice")), at=AT, day="2024-08-18"),
        hf.parse(rows(full_row(one, upvotes=1)), at=AT),  # another count of the same time
        arxiv.query(feed(entry(f"{one}v1", "Reading"), entry(f"{two}v1"))),
        arxiv.query(feed(entry(f"{one}v2", "Reading, again"))),
        arxiv.announced(rss(item(f"{one}v1"), item(f"{three}v1", "cross"), item(f"{two}v3", "replace"))),
        arxiv.announced(rss(item(f"{one}v1", title="Reading"), name="cs.LG")),
        arxiv.oai(oai(harvested(one), harvested(three, updated="2024-08-19"), DELETED)),
        bibtex.parse(b"@misc{a, eprint={2408.00001v2}, title={Elsewhere}, author={A and B}, journal={J. Text}}"),
        lists.identifiers(b"2408.00004\n2408.00002v7"),
        Page(marks={one: Mark(read=True, note="then", changed=AT)}, topics=(TOPIC,)),
        Page(marks={one: Mark(later=True, note="now", changed=LATER), "2408.00009": Mark(seed=True, changed=AT)}),
        Page(topics=(Topic("reading", "read", changed=LATER), Topic("other", "x", changed=AT))),
    )


def told(given: Iterable[Page]) -> list[str]:
    """The export of a store that has taken in these pages, line by line."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "page.sqlite")
        for page in given:
            take(store, page)
        text = "".join(export.everything(store))
        shown = [repr(each) for each in store.latest(-1)]
        store.close()
        return [*text.splitlines(), *shown]


def take(store: Store, page: Page) -> None:
    store.add(page.records)
    store.take_marks(dict(page.marks))
    for topic in page.topics:
        store.follow(topic)


@cache
def expected() -> list[str]:
    return told(pages())


COUNT = 14
orders = st.permutations(range(COUNT)).flatmap(
    lambda order: st.lists(st.sampled_from(range(COUNT)), max_size=6).map(lambda more: [*more, *order, *more[::-1]])
)


@settings(max_examples=40)
@given(orders)
@example(list(range(COUNT))[::-1])
def test_any_order_and_repetition_gives_the_same_store(order):
    assert len(pages()) == COUNT
    assert sorted(set(told(pages()[i] for i in order)) ^ set(expected())) == []


said = st.builds(
    Record,
    st.sampled_from(["2408.00001", "2408.00002"]),
    st.sampled_from(["hf", "arxiv", "rss", "unheard of"]),
    st.integers(0, 2),
    title=st.sampled_from(["", "A", "B"]),
    abstract=st.sampled_from(["", "a", "b"]),
    authors=st.sampled_from([(), ("X",), ("X", "Y")]),
    categories=st.sampled_from([(), ("cs.CL",), ("cs.LG", "cs.CL")]),
    published=st.sampled_from(["", "2024-08", "2024-08-01", "2024-08-02"]),
    updated=st.sampled_from(["", "2024-08-03", "2024-08-04"]),
    listings=st.lists(
        st.builds(Listing, st.sampled_from(["hf", "arxiv:cs.CL"]), st.sampled_from(["2024-08-18"]), st.integers(0, 3)),
        max_size=2,
    ).map(tuple),
    facts=st.lists(
        st.builds(Fact, st.just("stars"), st.sampled_from(["9", "10"]), st.sampled_from([AT, LATER])), max_size=2
    ).map(tuple),
)


@settings(max_examples=30)
@given(st.lists(said, min_size=1, max_size=6).flatmap(lambda some: st.tuples(st.just(some), st.permutations(some * 2))))
def test_records_of_any_kind_commute(given):
    one, other = given
    assert sorted(set(told([Page(tuple(one))])) ^ set(told([Page(tuple(other))]))) == []


@given(st.lists(said.filter(lambda record: record.id == "2408.00001"), min_size=1, max_size=5))
def test_what_any_source_says_is_told(some):
    whole = together(some)
    for name in ("title", "abstract", "authors"):
        assert bool(getattr(whole, name)) == any(getattr(each, name) for each in some)
    assert set(whole.categories) == {kind for each in some for kind in each.categories}
    assert whole.version == max(each.version for each in some)


def test_the_newest_version_wins_and_a_later_list_without_an_abstract_takes_none_away(tmp_path):
    store = Store(tmp_path / "page.sqlite")
    store.add(arxiv.query(feed(entry("2408.00001v2", "Second"))).records)
    store.add(arxiv.query(feed(entry("2408.00001v1", "First"))).records)
    store.add(hf.parse(rows(full_row("2408.00001")), at=AT).records)
    store.add(hf.parse(rows(row("2408.00001", "Titled later")), at=LATER).records)
    [article] = store.articles(["2408.00001"])
    assert (article.title, article.version, article.abstract) == ("Second", 2, "It is.")
    store.add(hf.parse(rows(full_row("2408.00002")), at=AT).records)
    store.add(hf.parse(rows(row("2408.00002", "Z")), at=LATER).records)
    assert store.articles(["2408.00002"])[0].abstract == "We read twice & more."


def test_marks_and_notes_survive_every_import(tmp_path):
    store = Store(tmp_path / "page.sqlite")
    store.add(pages()[0].records)
    mark = store.mark("2408.00001", read=True, note="my words")
    for page in pages()[:11]:
        store.add(page.records)
    assert store.marks() == {"2408.00001": mark}


def test_an_export_makes_an_equal_store_and_importing_it_again_changes_nothing(tmp_path):
    store = Store(tmp_path / "page.sqlite")
    for page in pages():
        take(store, page)
    store.mark("2408.00001", note="line\nline “” \\ \t <b> 𝕏")
    text = "".join(export.everything(store))
    other = Store(tmp_path / "other.sqlite")
    for _ in range(2):
        take(other, own.parse(text.encode()))
        assert sorted(set("".join(export.everything(other)).splitlines()) ^ set(text.splitlines())) == []
        assert other.latest(-1) == store.latest(-1)
    added = store.add(own.parse(text.encode()).records)
    assert (added.new, added.changed, added.listings) == (0, 0, 0)

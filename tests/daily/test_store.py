"""The store of the daily page: what is said adds up in any order, what the user says stays, a file is never spoilt."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from broadsheet.console import InputError
from broadsheet.daily import ids
from broadsheet.daily.databases import base
from broadsheet.daily.ids import ArxivId
from broadsheet.daily.records import Fact, Listing, Record, plain, together
from broadsheet.daily.store import Added, Mark, Store, Topic
from broadsheet.page import papers

ID = "2401.00001"
ONE = Record(
    ID, "arxiv", 1, "Old title", "Abstract", ("Ann",), ("cs.CL",), "2024-01-02T10:00:00Z", "2024-01-02T10:00:00Z"
)
TWO = replace(ONE, version=2, title="New title", updated="2024-03-01T10:00:00Z")
HF = Record(
    ID, "hf", title="A title of theirs", published="2024-01-02T10:00:00Z",
    listings=(Listing("hf", "2024-01-03", 4),), facts=(Fact("upvotes", "7", "2024-01-04T00:00:00Z"),),
)  # fmt: skip


@pytest.fixture
def store(place: str) -> Store:
    ticks = itertools.count()
    return Store(place, clock=lambda: f"2024-08-18T00:00:{next(ticks):02}Z")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2407.12021", ArxivId("2407.12021", 0)),
        ("arXiv:2407.12021v3", ArxivId("2407.12021", 3)),
        ("https://arxiv.org/pdf/2407.12021v2.pdf", ArxivId("2407.12021", 2)),
        ("https://huggingface.co/papers/2407.12021", ArxivId("2407.12021", 0)),
        ("10.48550/arXiv.0704.0001", ArxivId("0704.0001", 0)),
        ("http://arxiv.org/abs/math.GT/0309136v1", ArxivId("math/0309136", 1)),
        ("HEP-TH/9901001", ArxivId("hep-th/9901001", 0)),
        ("2413.12021", None),
        ("12407.120211", None),
        ("1234.56789", None),
        ("", None),
    ],
)
def test_identifiers_are_read_with_their_versions(text, expected):
    assert ids.parse(text) == expected


def test_old_identifiers_of_two_archives_are_two_papers_and_a_class_makes_no_other():
    found = [each.bare for each in ids.find("math.GT/0309136, math/0309136 and hep-th/0309136")]
    assert found == ["math/0309136", "hep-th/0309136"]
    assert (ids.month("math/0309136"), ids.month("2407.12021")) == ("2003-09", "2024-07")


@pytest.mark.parametrize("order", list(itertools.permutations([ONE, TWO, HF])))
def test_the_newest_version_counts_then_the_better_source_in_any_order(order):
    merged = together(order)
    assert (merged.title, merged.version, merged.abstract) == ("New title", 2, "Abstract")
    assert merged.published == "2024-01-02T10:00:00Z"
    assert together([HF, replace(HF, source="bibtex", title="X")]).title == "A title of theirs"
    with pytest.raises(ValueError, match="one paper"):
        together([ONE, replace(ONE, id="2401.00002")])


def test_what_is_taken_in_is_counted_and_nothing_is_lost_by_a_shorter_word(store):
    before = len(store)
    assert store.add([ONE, HF]) == Added(1, 0, 1, 1), "of the second, only the listing is new"
    assert store.add([ONE, HF]) == Added(0, 0, 2, 0)
    assert store.add([TWO]) == Added(0, 1, 0, 0)
    assert store.add([ONE]) == Added(0, 0, 1, 0), "an older version changes nothing"
    [article] = store.articles([ID])
    assert (article.title, article.listed, len(store)) == ("New title", "2024-01-03", before + 1)
    assert (
        store.add([replace(HF, listings=(Listing("hf", "2024-01-03", 9), Listing("hf", "2024-01-09", 1)))]).listings
        == 1
    )
    assert store.listings(ID) == (Listing("hf", "2024-01-03", 4), Listing("hf", "2024-01-09", 1))
    assert store.days() == {"2024-01-09": 1, "2024-01-03": 1}
    assert [each.id for each, _ in store.listed("2024-01-01", "2024-01-31")] == [ID]
    assert store.facts(ID) == {"upvotes": (Fact("upvotes", "7", "2024-01-04T00:00:00Z"), "hf")}
    assert {each.source for each in store.records(ID)} == {"arxiv", "hf"}


def test_an_import_that_fails_leaves_nothing(store):
    def failing():
        yield ONE
        raise RuntimeError("cut")

    before = len(store)
    with pytest.raises(RuntimeError):
        store.add(failing())
    assert len(store) == before
    assert store.articles([ID]) == []


def test_the_papers_of_this_project_are_there_from_the_start_and_once(tmp_path):
    store = Store(tmp_path / "page.sqlite")
    assert len(store) == len({paper.arxiv for paper in papers.page()})
    assert len(Store(tmp_path / "page.sqlite")) == len(store)
    for paper in papers.page():
        [article] = store.articles([paper.arxiv])
        assert plain(article.title) == plain(paper.title)
        assert article.published == ids.month(paper.arxiv)


def test_marks_stay_whatever_is_imported_and_the_later_of_two_holds(store):
    store.add([ONE])
    store.mark(ID, read=True, note="nice")
    store.mark(ID, later=True)
    store.add([TWO, HF])
    [article] = store.articles([ID])
    assert (article.mark.read, article.mark.later, article.mark.note) == (True, True, "nice")
    assert [each.id for each in store.marked("later")] == [ID]
    with pytest.raises(InputError, match="no paper 2499"):
        store.mark("2499.00001", read=True)
    assert store.take_marks({ID: Mark(note="older", changed="2020-01-01T00:00:00Z")}) == 0
    assert store.take_marks({ID: Mark(note="newer", changed="2030-01-01T00:00:00Z")}) == 1
    assert store.marks()[ID].note == "newer"


def test_topics_are_followed_and_left(store):
    store.follow(Topic("long", "long context", likes=(ID,)))
    store.follow(Topic("long", "older", changed="2020-01-01T00:00:00Z"))
    [topic] = store.topics()
    assert (topic.query, topic.likes) == ("long context", (ID,))
    store.unfollow("long")
    assert store.topics() == []


def test_a_file_of_another_program_of_a_later_version_or_damaged_is_refused_untouched(tmp_path):
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (a)")
    db.close()
    later = tmp_path / "later.sqlite"
    Store(later).close()
    with sqlite3.connect(later) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"no database at all" * 100)
    for path, told in ((other, "another program"), (later, "version 99"), (damaged, "not a database")):
        before = path.read_bytes()
        with pytest.raises(InputError, match=told):
            Store(path)
        assert path.read_bytes() == before, path


def test_a_file_of_an_earlier_version_is_copied_and_then_brought_up(tmp_path, monkeypatch):
    path = tmp_path / "page.sqlite"
    store = Store(path)
    store.add([ONE])
    store.mark(ID, note="kept")
    store.close()
    steps = tmp_path / "broadsheet" / "sqlite_steps"
    steps.mkdir(parents=True)
    real = sorted((Path(base.__file__).parent / "sqlite_steps").glob("*.sql"))
    for each in real:
        (steps / each.name).write_text(each.read_text())
    now = len(real)
    (steps / f"{now + 1:04}_more.sql").write_text(
        "CREATE TABLE more (a TEXT) STRICT;\nINSERT INTO more VALUES ('x');\n"
    )
    monkeypatch.setattr("broadsheet.daily.databases.base.files", lambda _: steps.parent)
    later = Store(path)
    assert later.db.rows("SELECT a FROM more") == [("x",)]
    assert later.marks()[ID].note == "kept"
    copy = sqlite3.connect(tmp_path / f"page.sqlite.{now}")
    assert copy.execute("PRAGMA user_version").fetchone() == (now,)
    assert copy.execute("SELECT note FROM mark").fetchone() == ("kept",)
    copy.close()
    later.close()
    (steps / f"{now + 2:04}_bad.sql").write_text(
        "CREATE TABLE half (a TEXT) STRICT;\nINSERT INTO nowhere VALUES (1);\n"
    )
    with pytest.raises(InputError, match="nowhere"):
        Store(path)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (now + 1,)
        assert not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'half'").fetchall(), "all of a step or nothing"
    db.close()


def test_many_threads_read_while_one_writes(store):
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(50):
                store.latest(10)
                store.days()
        except BaseException as error:
            failures.append(error)
        finally:
            store.close()

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for i in range(30):
        store.add([replace(ONE, id=f"2405.{i:05}")])
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("after", [1, 7, 40])
def test_a_kill_in_the_middle_of_an_import_leaves_all_of_it_or_nothing(place, after):
    Store(place).close()
    program = f"""
import os, signal
from broadsheet.daily.records import Record
from broadsheet.daily.store import Store
def some():
    for i in range(50):
        if i == {after}:
            os.kill(os.getpid(), signal.SIGKILL)
        yield Record(f"2405.{{i:05}}", "arxiv", 1, "t")
Store({place!r}).add(some())
"""
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    store = Store(place)
    assert store.articles(["2405.00000"]) == []
    assert store.add([replace(ONE, id="2405.00000")]).new == 1


def test_of_two_only_one_has_the_turn(place):
    one, other = Store(place), Store(place)
    with one.db.turn("x") as first, other.db.turn("x") as second, other.db.turn("y") as third:
        assert (first, second, third) == (True, False, True)
    with other.db.turn("x") as again:
        assert again


def test_sources_online_that_were_asked_the_last_first(place):
    times = iter(["2024-08-18T00:00:00Z", "2024-08-20T00:00:00Z", "2024-08-19T00:00:00Z", "2024-08-21T00:00:00Z"])
    store = Store(place)
    store.clock = lambda: next(times)
    for source in ("hf", "arxiv-query:cat:cs.CL AND ti:a", "arxiv:cs.CL", "host:hf"):
        store.note_asked(source, f"{source}: 0 new")
    assert store.asked_online() == [
        ("arxiv-query:cat:cs.CL AND ti:a", "2024-08-20T00:00:00Z", "arxiv-query:cat:cs.CL AND ti:a: 0 new"),
        ("arxiv:cs.CL", "2024-08-19T00:00:00Z", "arxiv:cs.CL: 0 new"),
        ("hf", "2024-08-18T00:00:00Z", "hf: 0 new"),
    ]

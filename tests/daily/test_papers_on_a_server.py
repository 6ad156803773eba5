"""Papers on a PostgreSQL server: the same store as in a file, for several processes; what fails is told in a line."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress

import numpy as np
import psycopg
import pytest
from postgres import ON_A_SERVER
from reading import records
from serving import serving

from broadsheet.console import InputError
from broadsheet.daily import export
from broadsheet.daily.databases import base, postgres, sqlite
from broadsheet.daily.databases.base import NoDatabaseError
from broadsheet.daily.query import Query
from broadsheet.daily.records import Record
from broadsheet.daily.store import Choice, Store, Topic
from broadsheet.page import papers
from broadsheet.serve.app import create_app
from broadsheet.serve.page import DailyPage
from broadsheet.serve.trials.jobs import Jobs
from broadsheet.serve.trials.offers import Offers

pytestmark = ON_A_SERVER
AT = "2024-08-18T00:00:00Z"


def told(store: Store) -> str:
    return "".join(export.everything(store))


def test_it_holds_what_a_file_holds_in_whatever_order_it_came(database, tmp_path):
    made = [*records(30), Record("2408.99999", "arxiv", 1, "Ähnlich, %s and ? signs", "_\\%'\"", categories=("cs.CL",))]
    file, server = Store(tmp_path / "page.sqlite", clock=lambda: AT), Store(database, clock=lambda: AT)
    file.add(made)
    server.add(made[::-1])
    server.add(made[::2])
    for store in (file, server):
        store.mark("2408.99999", note="a % and a ?", later=True)
        store.follow(Topic("zebras", "title", ("2408.99999",)))
    assert told(file) == told(server)
    for order in ("newest", "listed", "title"):
        assert file.chosen(Choice(order=order)) == server.chosen(Choice(order=order)), "texts are ordered by bytes"
    assert file.days() == server.days()
    assert [each.id for each in server.latest(40)] == [each.id for each in file.latest(40)]


def test_two_processes_may_make_the_tables_at_once(postgres_server):
    url = postgres_server.database()
    program = f"from broadsheet.daily.store import Store; print(len(Store({url!r})))"
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [each.communicate()[0].strip() for each in both]
    postgres_server.drop(url)
    assert counts == [str(len(papers.page()))] * 2


def test_a_step_that_fails_leaves_nothing_and_a_later_version_is_refused(database, monkeypatch):
    real = base.steps("postgres_steps")
    bad = [*real, (len(real) + 1, "CREATE TABLE half (a text); INSERT INTO nowhere VALUES (1)")]
    monkeypatch.setattr(postgres, "steps", lambda _: bad)
    with pytest.raises(InputError, match="nowhere"):
        Store(database)
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT to_regclass('broadsheet.half')").fetchone() == (None,)
    monkeypatch.setattr(postgres, "steps", lambda _: [*real, (len(real) + 1, "CREATE TABLE more (a text)")])
    Store(database)
    monkeypatch.setattr(postgres, "steps", lambda _: real)
    with pytest.raises(InputError, match=f"is of version {len(real) + 1}; this broadsheet knows {len(real)}"):
        Store(database)


def test_tables_of_others_are_left_alone(postgres_server):
    url = postgres_server.database()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE paper (mine text)")
    assert len(Store(url)) > 70
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM public.paper").fetchone() == (0,)
    postgres_server.drop(url)


@pytest.mark.parametrize("what", ["postgresql://me:secret@127.0.0.1:1/none", "postgresql://me:secret@%zz/x"])
def test_a_server_that_cannot_be_reached_is_told_in_one_line_without_a_password(run, what):
    status, out, err = run("page", "list", "--store", what)
    assert (status, out) == (2, "")
    assert "secret" not in err
    assert "expected a PostgreSQL database" in " ".join(err.split())


def test_a_server_that_goes_away_is_told_and_found_again(postgres_server, tmp_path, monkeypatch):
    monkeypatch.setattr(postgres, "_PATIENCE", 1)
    url = postgres_server.database()
    store = Store(url)
    store.add([Record("2408.00001", "arxiv", 1, "Kept")])
    page = DailyPage(store, Jobs(tmp_path / "jobs"), Offers((), ()))
    with serving(create_app(None, page=page)) as running:
        assert running.ask("/papers/2408.00001")[0] == 200
        postgres_server.stop()
        try:
            with pytest.raises(NoDatabaseError, match="does not answer"):
                store.latest(1)
            for path in ("/papers/2408.00001", "/api/daily_papers"):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(running.url + path, timeout=30)
                assert (refused.value.code, b"try again later" in refused.value.read()) == (503, True)
        finally:
            postgres_server.start()
        deadline = time.monotonic() + 90
        while True:  # connections are looked for again after a while, which doubles each time
            with suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{running.url}/papers/2408.00001") as found:
                assert b"Kept" in found.read()
                break
            assert time.monotonic() < deadline
    assert "Kept" in [each.title for each in store.latest(100)]
    postgres_server.drop(url)


def test_one_at_a_time_asks_sources_even_from_several_machines(database):
    one, other = Store(database), Store(database)
    order: list[str] = []
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with one.db.alone("fetch"):
            held.set()
            done.wait(10)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(0.3, done.set).start()
    with other.db.alone("fetch"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_without_pgvector_words_find_and_meaning_is_refused(database):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("GRANT USAGE, CREATE ON SCHEMA broadsheet TO reader")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA broadsheet TO reader")
    store = Store(database.replace("//postgres@", "//reader@"))
    assert store.db.find_words(Query(words=("decoding",)), "TRUE", [], 5)
    with pytest.raises(InputError, match="meaning needs the extension pgvector"):
        store.db.vector_texts("any")


@pytest.mark.parametrize("place", ["file", "server"])
def test_many_vectors_are_found_by_a_graph(place, tmp_path, monkeypatch, request):
    for module in (sqlite, postgres):
        monkeypatch.setattr(module, "GRAPH_FROM", 300)
    store = Store(tmp_path / "page.sqlite" if place == "file" else request.getfixturevalue("database"))
    rows = np.random.default_rng(1).standard_normal((400, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    store.db.keep_vectors("e'", [(f"2408.{i:05}", str(i), row) for i, row in enumerate(rows)])
    exact = [store.db.nearest("e'", row, 1) for row in rows[:20]]
    assert exact == [[f"2408.{i:05}"] for i in range(20)]
    store.db.settle_vectors("e'")
    if place == "server":
        [plan] = store.db.rows("SELECT indexdef FROM pg_indexes WHERE tablename = 'vectors' AND indexdef LIKE '%hnsw%'")
        assert "vector(16)" in plan[0]
    else:
        assert store.db._folder("e'").is_dir()
    assert [store.db.nearest("e'", row, 1) for row in rows[:20]] == exact
    store.db.keep_vectors("e'", [("2408.00000", "other", rows[399])])
    store.db.settle_vectors("e'")
    assert set(store.db.nearest("e'", rows[399], 2)) == {"2408.00000", "2408.00399"}, "a vector that changed"
    assert store.db.vector_texts("e'")["2408.00000"] == "other"

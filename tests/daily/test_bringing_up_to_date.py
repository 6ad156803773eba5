"""A run takes in what sources tell, goes on where it was stopped, and says in one line what came of each."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs

import pytest
from newsstand import DELETED, NOON, Clock, entry, error_feed, feed, full_row, harvested, item, oai, row, rows, rss
from werkzeug import Response

from broadsheet.daily import export
from broadsheet.daily.sources.fetch import Fetcher, Places
from broadsheet.daily.sources.sync import Outcome, Spec, sync
from broadsheet.daily.store import Store

DAY = 86_400


@dataclass
class Stand:
    """The sources on loopback: an answer, or a function of the parameters that gives one, for each.

    Attributes:
        asked: path and parameters of each request, and the time at which it came.
    """

    clock: Clock
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], float]] = field(default_factory=list)
    inside: int = 0

    def __call__(self, request: Any) -> Response:
        self.inside += 1
        assert self.inside == 1, "two requests at once"
        given = {name: values[0] for name, values in parse_qs(request.query_string.decode()).items()}
        self.asked.append((request.path, given, self.clock.now))
        answer = next(value for path, value in self.answers.items() if request.path.startswith(path))
        answer = answer(given) if callable(answer) and not isinstance(answer, Response) else answer
        answer = answer.pop(0) if isinstance(answer, list) else answer
        self.inside -= 1
        return answer if isinstance(answer, Response) else Response(answer)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def stand(httpserver, clock):
    found = Stand(clock)
    httpserver.expect_request(re.compile(".*")).respond_with_handler(found)
    return found


@pytest.fixture
def places(httpserver):
    base = f"http://127.0.0.1:{httpserver.port}"
    return Places(f"http://localhost:{httpserver.port}", f"{base}/api/query", f"{base}/rss", f"{base}/oai")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "page.sqlite")


@pytest.fixture
def ask(store, places, clock, stand):
    """`ask("hf", …)`: the outcomes of a run."""

    def run(*specs: str, **options: Any) -> list[Outcome]:
        fetcher = Fetcher(store, places, clock=clock, sleep=clock.sleep, lookup=lambda *_: ["127.0.0.1"])
        return list(sync(store, [Spec.of(each) for each in specs], fetcher, **options))

    return run


def everything(store: Store) -> str:
    return "".join(export.everything(store))


def many(count: int, first: int = 1, day: str = "2024-08-19") -> list[dict[str, Any]]:
    return [full_row(f"2408.{i:05}", day=day, title=f"Paper {i}") for i in range(first, first + count)]


# Hugging Face


def test_a_day_is_read_page_by_page_to_its_end(ask, stand, store):
    pages = {"0": rows(*many(100)), "1": rows(*many(100, 101)), "2": b"[]"}
    stand.answers["/api/daily_papers"] = lambda given: pages[given["p"]]
    [outcome] = ask("hf:2024-08-19")
    assert (outcome.status, outcome.added.new, outcome.added.listings) == (0, 200, 200)
    assert outcome.line == "hf:2024-08-19: 200 new"
    assert [given for _, given, _ in stand.asked] == [
        {"date": "2024-08-19", "limit": "100", "p": str(p)} for p in range(3)
    ]
    assert [listing.rank for _, [listing] in store.listed("2024-08-19", "2024-08-19")] == list(range(200))


@pytest.mark.parametrize(("spec", "name"), [("hf:2024-W33", "week"), ("hf:2024-08", "month")])
def test_a_week_or_a_month_is_asked_for_as_such(ask, stand, store, spec, name):
    stand.answers["/api/daily_papers"] = rows(
        full_row("2408.00001", "2024-08-12"), full_row("2408.00002", "2024-08-13")
    )
    [outcome] = ask(spec)
    assert stand.asked[0][1][name] == spec[3:]
    assert store.days() == {"2024-08-13": 1, "2024-08-12": 1}
    assert outcome.added.new == 2


def test_the_days_since_the_last_time(ask, stand, store, clock):
    lists = {
        f"2024-08-{day}": rows(full_row(f"2408.000{day}", f"2024-08-{day}")) for day in (12, 13, 14, 15, 16, 19, 20)
    }
    stand.answers["/api/daily_papers"] = lambda given: lists.get(given["date"], b"[]")
    ask("hf")
    assert [given["date"] for _, given, _ in stand.asked] == [f"2024-08-{day}" for day in range(12, 20)]
    stand.asked.clear()
    clock.now += DAY
    [outcome] = ask("hf")
    assert [given["date"] for _, given, _ in stand.asked] == ["2024-08-19", "2024-08-20"]  # the last may have grown
    assert outcome.line == "hf: 1 new, 1 known"
    assert len(store.days()) == 7


def test_zero_is_explained(ask, stand, clock):
    stand.answers["/api/daily_papers"] = rows(row())
    ask("hf:2024-08-19")
    [again] = ask("hf:2024-08-19")
    assert again.line == "hf:2024-08-19: 0 new: all 1 are here already"
    stand.answers["/api/daily_papers"] = b"[]"
    [weekend] = ask("hf:2024-08-17")
    assert weekend.line == "hf:2024-08-17: 0 new: Saturday 2024-08-17, the list may stay empty at weekends"
    [empty] = ask("hf:2024-08-14")
    assert empty.line == "hf:2024-08-14: 0 new: the list of 2024-08-14 is empty"
    stand.answers["/api/daily_papers"] = Response('{"error": "Invalid date"}', 400)
    [future] = ask("hf:2024-08-20")
    assert (future.line, future.status) == ("hf:2024-08-20: 0 new: 2024-08-20 is not open yet", 0)
    [past] = ask("hf:2024-08-01")
    assert (past.line, past.status) == ("hf:2024-08-01: 0 new: 400: Invalid date", 2)
    stand.answers["/api/daily_papers"] = Response("<html>Not found</html>", 404)
    [gone] = ask("hf:2024-08-02")
    assert (gone.line, gone.status) == ("hf:2024-08-02: 0 new: 404", 2)
    stand.answers["/api/daily_papers"] = Response("", 429, {"RateLimit": '"api";r=0;t=42'})
    [busy] = ask("hf:2024-08-03")
    assert busy.line.startswith("hf:2024-08-03: 0 new: 429, ask again after 2024-08-19 12:")
    assert busy.status == 1
    clock.now += 43
    stand.answers["/api/daily_papers"] = Response("", 502)
    [broken] = ask("hf:2024-08-04")
    assert (broken.line, broken.status) == ("hf:2024-08-04: 0 new: 502; ask again later", 1)


@pytest.mark.parametrize(
    ("answer", "why"),
    [("<html>Please wait</html>", "got a web page; expected JSON"), (rows(row("2408.00009"))[:-9], "cut or broken")],
)
def test_a_page_that_is_none_leaves_what_was_read_and_the_rest_of_the_run(ask, stand, store, answer, why):
    pages = {"0": rows(*many(100)), "1": answer}
    stand.answers["/api/daily_papers"] = lambda given: pages[given["p"]]
    stand.answers["/rss"] = rss(item("2408.05000v1"))
    before = len(store)
    broken, well = ask("hf:2024-08-19", "arxiv:cs.CL")
    assert why in broken.line
    assert (broken.status, broken.added.new) == (2, 100)
    assert (well.status, well.added.new) == (0, 1)
    assert len(store) == before + 101


def test_a_shorter_list_takes_nothing_away(ask, stand, store):
    stand.answers["/api/daily_papers"] = rows(*many(5))
    ask("hf:2024-08-19")
    before = everything(store)
    stand.answers["/api/daily_papers"] = rows(*many(2))
    [outcome] = ask("hf:2024-08-19")
    assert outcome.line == "hf:2024-08-19: 0 new: 2024-08-19 lists 2 now, 5 before; those stay"
    assert len(store.listed("2024-08-19", "2024-08-19")) == 5
    at = [line for line in everything(store).splitlines() if line not in before]
    assert len(at) == 2  # the later snapshots of two papers' counts
    stand.answers["/api/daily_papers"] = b"[]"
    ask("hf:2024-08-19")
    assert len(store.listed("2024-08-19", "2024-08-19")) == 5


# arXiv's lists


def test_the_list_of_the_day(ask, stand, store):
    kinds = ("new", "cross", "replace", "replace-cross")
    stand.answers["/rss"] = rss(*(item(f"2408.0000{i}v{i}", kind) for i, kind in enumerate(kinds, 1)))
    [outcome] = ask("arxiv:cs.CL")
    assert (outcome.added.new, outcome.added.listings) == (2, 2)
    assert outcome.line == "arxiv:cs.CL: 2 new, 2 changed"  # what is replaced is not new, whoever sees it first
    assert [article.id for article, _ in store.listed("2024-08-19", "2024-08-19")] == ["2408.00001", "2408.00002"]
    assert [path for path, _, _ in stand.asked] == ["/rss/cs.CL"]
    [again] = ask("arxiv:cs.CL")
    assert again.line == "arxiv:cs.CL: 0 new: the list of 2024-08-19 is here already"


def test_a_weekend_and_a_holiday_say_so(ask, stand, clock):
    stand.answers["/rss"] = rss(date="Sat, 17 Aug 2024 00:00:00 -0400")
    [weekend] = ask("arxiv:cs.CL")
    assert weekend.line == "arxiv:cs.CL: 0 new: Saturday, arXiv announces Sunday to Thursday"
    stand.answers["/rss"] = rss()
    [holiday] = ask("arxiv:cs.LG")
    assert holiday.line == "arxiv:cs.LG: 0 new: the list is empty on a Monday: a holiday, or arXiv is late"


def test_missed_days_are_caught_up_from_the_last_answer(ask, stand, store, clock):
    stand.answers["/rss"] = rss(item())
    ask("arxiv:cs.CL+cs.LG")
    clock.now += 3 * DAY
    stand.asked.clear()
    stand.answers["/rss"] = rss(item("2408.00005v1"), date="Thu, 22 Aug 2024 00:00:00 -0400")
    harvest = {
        "cs:cs:CL": oai(harvested("2408.00003", created="2024-08-16"), DELETED, token="t1"),
        "t1": oai(harvested("2408.00004", updated="2024-08-21"), token=""),
        "cs:cs:LG": oai(error=("noRecordsMatch", "nothing")),
    }
    stand.answers["/oai"] = lambda given: harvest[given.get("resumptionToken") or given["set"]]
    [outcome] = ask("arxiv:cs.CL+cs.LG")
    assert (outcome.status, outcome.added.new, outcome.added.changed) == (0, 2, 1)  # one is old, and has changed
    assert [given for path, given, _ in stand.asked if path == "/oai"] == [
        {"verb": "ListRecords", "metadataPrefix": "arXiv", "set": "cs:cs:CL", "from": "2024-08-19"},
        {"verb": "ListRecords", "resumptionToken": "t1"},
        {"verb": "ListRecords", "metadataPrefix": "arXiv", "set": "cs:cs:LG", "from": "2024-08-19"},
    ]
    assert store.articles(["2408.00004"])[0].updated == "2024-08-21"
    stand.asked.clear()
    ask("arxiv:cs.CL+cs.LG")  # nothing was missed since
    assert [path for path, _, _ in stand.asked] == ["/rss/cs.CL+cs.LG"]


def test_over_a_weekend_nothing_is_missed(ask, stand, clock):
    clock.now -= 3 * DAY  # Friday
    stand.answers["/rss"] = rss(item(), date="Fri, 16 Aug 2024 00:00:00 -0400")
    ask("arxiv:cs.CL")
    clock.now += 3 * DAY
    stand.answers["/rss"] = rss(item("2408.00002v1"))
    [outcome] = ask("arxiv:cs.CL")
    assert outcome.added.new == 1
    assert {path for path, _, _ in stand.asked} == {"/rss/cs.CL"}


def test_a_catch_up_goes_on_where_it_was_and_begins_again_where_its_place_is_forgotten(ask, stand, store, clock):
    stand.answers["/rss"] = rss(item())
    ask("arxiv:cs.CL")
    clock.now += 3 * DAY
    stand.answers["/rss"] = rss(date="Thu, 22 Aug 2024 00:00:00 -0400")
    stand.answers["/oai"] = [oai(harvested("2408.00003"), token="t1"), Response("", 503)]
    [stopped] = ask("arxiv:cs.CL")
    assert stopped.status == 1
    assert "0 new, 1 changed: catching up from 2024-08-19: 503 without a time" in stopped.line
    clock.now += 2 * DAY
    stand.asked.clear()
    stand.answers["/oai"] = [
        oai(error=("badResumptionToken", "it died")),
        oai(harvested("2408.00003"), token="t2"),
        oai(harvested("2408.00004")),
    ]
    [whole] = ask("arxiv:cs.CL")
    assert (whole.status, whole.added.changed) == (0, 1)
    harvest = [given for path, given, _ in stand.asked if path == "/oai"]
    assert [given.get("resumptionToken", given.get("from")) for given in harvest] == ["t1", "2024-08-19", "t2"]
    clock.now += 5 * DAY
    stand.asked.clear()
    stand.answers["/rss"] = rss(date="Thu, 29 Aug 2024 00:00:00 -0400")
    stand.answers["/oai"] = oai(error=("noRecordsMatch", "nothing"))
    ask("arxiv:cs.CL")
    # What changed after the harvest began is not in it: the next one is from that day.
    assert stand.asked[-1][1]["from"] == "2024-08-22"


def test_a_place_that_is_forgotten_twice_is_an_error(ask, stand, clock):
    stand.answers["/rss"] = rss(item())
    ask("arxiv:cs.CL")
    clock.now += 3 * DAY
    dead = oai(error=("badResumptionToken", "it died"))
    stand.answers["/oai"] = [oai(harvested("2408.00003"), token="t1"), dead, oai(harvested(), token="t2"), dead]
    stand.answers["/rss"] = rss(date="Thu, 22 Aug 2024 00:00:00 -0400")
    [outcome] = ask("arxiv:cs.CL")
    assert outcome.status == 2
    assert "badResumptionToken" in outcome.line


# arXiv's query API


def query(total: int, size: int = 2) -> Any:
    """Answers a query of so many papers, slice by slice."""

    def answer(given: dict[str, str]) -> bytes:
        start = int(given["start"])
        ids = range(start + 1, min(start + int(given["max_results"]), total) + 1)
        return feed(*(entry(f"2408.{i:05}v1") for i in ids), total=total, start=start)

    return answer


def test_a_query_is_read_slice_by_slice_three_seconds_apart(ask, stand):
    stand.answers["/api/query"] = query(3)
    [outcome] = ask("arxiv-query:cat:cs.CL+AND+submittedDate:[202408010000+TO+202408190000]", size=2)
    assert (outcome.status, outcome.added.new) == (0, 3)
    asked = [
        (given["start"], given["max_results"], given["sortBy"], given["search_query"]) for _, given, _ in stand.asked
    ]
    words = "cat:cs.CL AND submittedDate:[202408010000 TO 202408190000]"
    assert asked == [("0", "2", "submittedDate", words), ("2", "2", "submittedDate", words)]
    assert stand.asked[1][2] - stand.asked[0][2] >= 3
    [again] = ask("arxiv-query:cat:cs.CL+AND+submittedDate:[202408010000+TO+202408190000]", size=2)
    assert again.line.endswith("0 new: asked today already; what arXiv finds changes once a day")
    assert len(stand.asked) == 2


def test_a_query_takes_the_latest_and_says_what_it_leaves(ask, stand, clock):
    stand.answers["/api/query"] = query(50)
    [outcome] = ask("arxiv-query:ti:rank", size=2, most=4)
    assert outcome.line == "arxiv-query:ti:rank: 4 new; the latest 4 of 50 were asked for"
    assert len(stand.asked) == 2
    [more] = ask("arxiv-query:ti:rank", size=2, most=6)  # on the same day, it goes on
    assert more.added.new == 2
    assert [given["start"] for _, given, _ in stand.asked] == ["0", "2", "4"]
    clock.now += DAY
    ask("arxiv-query:ti:rank", size=2, most=2)
    assert stand.asked[-1][1]["start"] == "0"


def test_an_empty_page_within_is_asked_for_again_and_told(ask, stand, store):
    whole = query(3)
    empty = feed(total=3, start=2)
    stand.answers["/api/query"] = [
        whole({"start": "0", "max_results": "2"}),
        empty,
        whole({"start": "2", "max_results": "2"}),
    ]
    [outcome] = ask("arxiv-query:ti:a", size=2)
    assert (outcome.status, outcome.added.new) == (0, 3)
    stand.answers["/api/query"] = [whole({"start": "0", "max_results": "2"}), empty, empty]
    [short] = ask("arxiv-query:ti:b", size=2)
    assert short.status == 1
    assert short.line.endswith("incomplete, 2 of 3: arXiv sends empty pages; run again to go on")
    stand.answers["/api/query"] = whole
    ask("arxiv-query:ti:b", size=2)
    assert stand.asked[-1][1]["start"] == "2"
    assert len(store.articles(["2408.00001", "2408.00002", "2408.00003"])) == 3


@pytest.mark.parametrize("status", [200, 400])
def test_a_query_that_arxiv_refuses_is_one_line(ask, stand, status):
    stand.answers["/api/query"] = Response(error_feed("malformed query"), status)
    [outcome] = ask("arxiv-query:ti:(")
    assert outcome.status == 2
    assert outcome.line == "arxiv-query:ti:(: 0 new: arXiv refuses the query: malformed query"


def test_a_query_without_matches(ask, stand):
    stand.answers["/api/query"] = query(0)
    [outcome] = ask("arxiv-query:ti:xyzzy")
    assert (outcome.line, outcome.status) == ("arxiv-query:ti:xyzzy: 0 new: no paper matches", 0)


def test_papers_without_an_abstract_get_one(ask, stand, store):
    def answer(given):
        return feed(*(entry(f"{each}v1", "Told by arXiv") for each in given["id_list"].split(",")))

    stand.answers["/api/query"] = answer
    count = len(store)
    [outcome] = ask("arxiv-known")
    assert (
        outcome.line
        == f"arxiv-known: 0 new, {count} changed: {count} of {count} papers without an abstract have one now"
    )
    assert {article.abstract for article in store.latest(-1)} == {"It is."}
    [again] = ask("arxiv-known")
    assert again.line == "arxiv-known: 0 new: every paper here has an abstract"


# Together


def test_all_of_arxiv_is_asked_at_a_distance_and_what_came_is_noted(ask, stand, store):
    stand.answers = {"/rss": rss(item()), "/api/query": query(1), "/api/daily_papers": rows(row())}
    outcomes = ask("arxiv:cs.CL", "hf:2024-08-19", "arxiv-query:ti:a", "arxiv:cs.LG", "arxiv:cs.LG")
    assert len(outcomes) == 4
    times = [when for path, _, when in stand.asked if "daily_papers" not in path]
    assert all(after - before >= 3 for before, after in pairwise(times))
    for outcome in outcomes:
        assert store.asked(outcome.source)[1] == outcome.line


def test_a_run_that_is_killed_is_completed_by_the_next_without_doubles(ask, stand, store, places, clock, tmp_path):
    child = None

    def answer(given):
        if given["p"] == "1" and child is not None:
            child.send_signal(signal.SIGKILL)
            child.wait()
        return rows(*many(100 if given["p"] == "0" else 30, 1 + 100 * int(given["p"])))

    stand.answers["/api/daily_papers"] = answer
    program = f"""
        from pathlib import Path
        from broadsheet.daily.sources.fetch import Fetcher, Places
        from broadsheet.daily.store import Store
        from broadsheet.daily.sources.sync import Spec, sync

        store = Store(Path({str(store.name)!r}))
        fetcher = Fetcher(store, Places(hf={places.hf!r}), clock=lambda: {NOON}, sleep=lambda seconds: None)
        list(sync(store, [Spec.of("hf:2024-08-19")], fetcher))
    """
    count = len(store)
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    assert child.wait(60) == -signal.SIGKILL
    assert len(store) == count + 100  # the page that was whole
    child = None
    [outcome] = ask("hf:2024-08-19")
    assert (outcome.status, outcome.added.new) == (0, 30)
    untouched = Store(tmp_path / "other.sqlite")
    fetcher = Fetcher(untouched, places, clock=lambda: NOON, sleep=lambda _: None, lookup=lambda *_: ["127.0.0.1"])
    list(sync(untouched, [Spec.of("hf:2024-08-19")], fetcher))
    killed, whole = ([(each, each.listings) for each in one.records()] for one in (store, untouched))
    assert len(killed) == len(whole)
    assert [one for one, other in zip(killed, whole, strict=True) if one != other] == []


def test_a_page_is_taken_in_whole_or_not_at_all(store):
    program = f"""
        import os, signal
        from pathlib import Path
        from broadsheet.daily.records import Record
        from broadsheet.daily.store import Store

        def papers():
            for number in range(1, 2000):
                if number == 1500:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield Record(f"2408.{{number:05}}", "hf", title="A paper")

        Store(Path({str(store.name)!r})).add(papers())
    """
    before = everything(store).splitlines()
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert set(everything(store).splitlines()) ^ set(before) == set()


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:today",
        "hf:2024-13",
        "hf:2024-W60",
        "hf:2024-02-30",
        "arxiv:",
        "arxiv:cs.C L",
        "arxiv:no.XX",
        "arxiv:cs.CL+",
        "arxiv:../x",
        "arxiv-query:",
        "arxiv-query: ",
        "arxiv-known:x",
    ],
)
def test_sources_that_are_none_are_refused_before_anything_is_asked(text):
    with pytest.raises(ValueError, match="expected"):
        Spec.of(text)


def test_what_is_no_source_may_be_a_file():
    assert Spec.of("papers.bib") is None
    assert Spec.of("C:papers.bib") is None
    assert str(Spec.of("arxiv:cs.CL+hep-th")) == "arxiv:cs.CL+hep-th"

"""Rounds to the sources while a server runs: when each is due, what is told, how they end, and who makes them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from newsstand import Clock, full_row, rows, rss
from serving import serving
from typer.testing import CliRunner
from werkzeug import Response

from broadsheet.console import InputError
from broadsheet.daily.sources import rounds as rounds_module
from broadsheet.daily.sources.fetch import Fetcher, Places, StoppedError
from broadsheet.daily.sources.rounds import Rounds, interval
from broadsheet.daily.sources.sync import BEGUN, Spec
from broadsheet.daily.store import Store
from broadsheet.serve import commands
from broadsheet.serve.app import create_app
from broadsheet.serve.page import DailyPage
from broadsheet.serve.trials.jobs import Jobs
from broadsheet.serve.trials.offers import Offers

HOUR = 3600.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Store:
    return Store(tmp_path / "page.sqlite", lambda: f"{datetime.fromtimestamp(clock.now, UTC):%Y-%m-%dT%H:%M:%SZ}")


@pytest.fixture
def made(store: Store, clock: Clock, httpserver: Any) -> Iterator[Callable[..., Rounds]]:
    """`made("hf", …)`: rounds every six hours, with what they told as `told`."""
    base, ends = f"http://127.0.0.1:{httpserver.port}", []

    def make(*sources: str, **more: Any) -> Rounds:
        places = Places(f"http://localhost:{httpserver.port}", f"{base}/api/query", f"{base}/rss", f"{base}/oai")
        fetcher = Fetcher(store, places, clock=clock, sleep=clock.sleep, lookup=lambda *_: ["127.0.0.1"])
        told: list[str] = []
        found = Rounds(store, [Spec.online(each) for each in sources], 6 * HOUR, fetcher, tell=told.append, **more)
        found.told = told  # type: ignore[attr-defined]
        ends.append(found.end)
        return found

    yield make
    for end in ends:
        end()


def wait(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


@pytest.mark.parametrize(("text", "seconds"), [("6h", 21_600), ("15m", 900), (" 90 min", 5400), ("1d", 86_400)])
def test_an_interval_is_read(text: str, seconds: float) -> None:
    assert interval(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "6", "h", "14m", "0h", "-6h", "6.5h", "6h 1m", "32d", "9999999999d", "٦h", "6H\n7"]
)
def test_one_that_is_none_or_too_short_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="from 15m to 31d"):
        interval(text)


def test_each_source_is_asked_when_its_time_has_come_and_a_line_is_told_and_kept(made, httpserver, clock, store):
    httpserver.expect_request("/api/daily_papers").respond_with_data(rows(full_row()))
    httpserver.expect_request("/rss/cs.CL").respond_with_data(rss())
    news: list[int] = []
    rounds = made("hf:2024-08-18", "arxiv:cs.CL", news=lambda: news.append(len(store)))
    assert rounds.wait() == 0
    rounds.make()
    lines = ["hf:2024-08-18: 1 new", "arxiv:cs.CL: 0 new: the list is empty on a Monday: a holiday, or arXiv is late"]
    assert rounds.told == lines
    assert news == [80], "what is new is told where vectors are made of it"
    assert sorted(outcome for _, _, outcome in store.asked_online()) == sorted(lines)
    assert {at[:16] for _, at, _ in store.asked_online()} == {"2024-08-19T12:00"}
    assert 6 * HOUR - 60 < rounds.wait() <= 6 * HOUR
    assert rounds.make() == []
    clock.now += rounds.wait()
    rounds.make()
    assert rounds.told[2:] == ["hf:2024-08-18: 0 new: all 1 are here already", lines[1]]
    assert len(news) == 1


def test_at_the_start_nobody_is_asked_who_was_asked_lately(made, clock, store):
    rounds = made("hf")
    store.note_asked("hf", "hf: 0 new: of another run")
    clock.now += 5 * HOUR
    assert rounds.wait() == HOUR
    clock.now += HOUR
    assert rounds.wait() == 0
    clock.now -= 9 * HOUR
    assert rounds.wait() == 0, "a clock that was set back makes nobody wait for long"
    store.note_asked("hf", BEGUN)
    assert rounds.wait() == 0, "a run that was ended in its middle goes on"


def test_a_failure_is_a_line_and_who_gave_no_answer_is_asked_again_sooner(made, httpserver, clock, store, monkeypatch):
    httpserver.expect_request("/api/daily_papers").respond_with_data("", 500)
    httpserver.expect_request("/rss/cs.CL").respond_with_data("", 404)
    rounds = made("hf:2024-08-18", "arxiv:cs.CL")
    rounds.make()
    assert rounds.told == ["hf:2024-08-18: 0 new: 500; ask again later", "arxiv:cs.CL: 0 new: 404"]
    waits = []
    for _ in range(6):
        waits.append(rounds.wait())
        clock.now += rounds.wait()
        rounds.make()
    assert [round(each / 60) for each in waits] == [15, 30, 60, 120, 135, 105], "the fifth is of the refused one"
    monkeypatch.setattr(store, "add", lambda _: 1 / 0)
    httpserver.clear()
    httpserver.expect_request("/api/daily_papers").respond_with_data(rows(full_row()))
    clock.now += 6 * HOUR
    rounds.told.clear()
    rounds.make()
    assert rounds.told[0] == "hf:2024-08-18: ZeroDivisionError: division by zero"
    monkeypatch.undo()
    clock.now += 6 * HOUR
    assert rounds.make()[0].line == "hf:2024-08-18: 1 new"


def test_what_cannot_be_made_of_what_is_new_is_a_line_too(made, httpserver):
    httpserver.expect_request("/api/daily_papers").respond_with_data(rows(full_row()))
    rounds = made("hf:2024-08-18", news=lambda: 1 / 0)
    rounds.make()
    assert rounds.told[1].startswith("what is new is here, but is not found by meaning yet: ZeroDivisionError")


def test_one_of_several_makes_them_and_where_it_ends_another_goes_on(made, httpserver, clock, store, monkeypatch):
    monkeypatch.setattr(rounds_module, "LOOK", 0.01)
    inside, leave = threading.Event(), threading.Event()

    def answer(request: Any) -> Response:
        inside.set()
        leave.wait(20)
        return Response(b"[]")

    httpserver.expect_request("/api/daily_papers").respond_with_handler(answer)
    first, second = made("hf:2024-08-18"), made("hf:2024-08-18")
    first.start()
    assert inside.wait(20)
    looked, real = [], store.db.turn

    @contextmanager
    def turn(what: str) -> Iterator[bool]:
        with real(what) as mine:
            looked.append(mine)
            yield mine

    monkeypatch.setattr(store.db, "turn", turn)
    second.start()
    wait(lambda: looked)
    assert not any(looked), "it lets the other one ask"
    leave.set()
    wait(lambda: first.told)
    assert second.wait() == 6 * HOUR
    first.end()
    assert not first._thread.is_alive(), "in the middle of a wait"
    clock.now += 6 * HOUR
    wait(lambda: second.told)
    assert len(first.told) == 1


def test_a_database_that_is_away_is_a_line_and_rounds_go_on(made, httpserver, store, monkeypatch):
    monkeypatch.setattr(rounds_module, "LEAST", 0.01)
    httpserver.expect_request("/api/daily_papers").respond_with_data(b"[]")
    rounds, real = made("hf:2024-08-18"), store.asked
    monkeypatch.setattr(store, "asked", lambda source: real(source) if rounds.told else 1 / 0)
    rounds.start()
    wait(lambda: len(rounds.told) == 2)
    assert rounds.told[0] == "no source is asked: ZeroDivisionError: division by zero"


def test_it_ends_in_the_middle_of_a_request_and_the_next_goes_on(made, httpserver, store, clock):
    inside, leave = threading.Event(), threading.Event()
    many = rows(*(full_row(f"2408.{i:05}") for i in range(1, 101)))

    def answer(request: Any) -> Response:
        if request.args["p"] == "0" or leave.is_set():
            return Response(many if request.args["p"] == "0" else b"[]")
        inside.set()
        leave.wait(20)
        return Response(b"[]")

    httpserver.expect_request("/api/daily_papers").respond_with_handler(answer)
    rounds = made("hf:2024-08-18")
    rounds.start()
    assert inside.wait(20)
    rounds.end()
    assert not rounds._thread.is_alive()
    leave.set()
    assert rounds.told == [], "an end is no failure"
    assert store.days() == {"2024-08-18": 100}, "what was read is kept"
    assert store.asked("hf:2024-08-18")[1] == BEGUN
    with pytest.raises(StoppedError):
        rounds.fetcher.get(rounds.fetcher.places.hf)
    again = made("hf:2024-08-18")
    again.make()
    assert again.told == ["hf:2024-08-18: 0 new: all 100 are here already"]


def test_the_server_makes_them_shows_what_came_and_ends_them(made, httpserver, store, tmp_path):
    httpserver.expect_request("/api/daily_papers").respond_with_data(b"[]")
    rounds = made("hf:2024-08-18")
    page = DailyPage(store, Jobs(tmp_path / "jobs"), Offers(), rounds=rounds)
    with serving(create_app(None, page=page)) as server:
        wait(lambda: rounds.told)
        said = "19 August 2024, 12:00 UTC"
        line = "hf:2024-08-18: 0 new: Sunday 2024-08-18, the list may stay empty at weekends"
        assert f"Asked {said}: {line}" in server.ask("/")[1]
        about = server.ask("/about")[1]
        assert "This server asks hf:2024-08-18 every 6 h (http://localhost" in about
        assert f"<dt>{said}</dt><dd>{line}</dd>" in about
    assert not rounds._thread.is_alive()


def test_without_the_option_nobody_is_asked(store, tmp_path):
    with serving(create_app(None, page=DailyPage(store, Jobs(tmp_path / "jobs"), Offers()))) as server:
        assert "This server asks nobody." in server.ask("/about")[1]
        assert "rounds" not in {each.name for each in threading.enumerate()}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--sync-every", "14m"], "--sync-every: got 14m; expected from 15m to 31d"),
        (["--sync", "hf"], "got --sync without --sync-every"),
        (["--sync-every", "6h", "--sync", "refs.bib"], "got refs.bib; expected hf, hf:2024-08-18"),
        (["--sync-every", "6h", "--no-page", "--agents"], "got --sync-every, which nothing that is served reads"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_served(home, given, said):
    found = CliRunner().invoke(commands.app, ["serve", *given])
    assert isinstance(found.exception, InputError)
    assert said in str(found.exception)
    assert not (home / "page.sqlite").exists()


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpcore2", None)
    for name in ("rounds", "fetch"):
        monkeypatch.delitem(sys.modules, f"broadsheet.daily.sources.{name}")
    with pytest.raises(InputError, match=r"--sync-every needs httpcore2: pip install -e '.\[page\]'"):
        commands._asking(None, "6h")

"""`broadsheet page …` as it is typed: what it prints, its exit status, and that bad input touches nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import sys

import pytest
from newsstand import AT, BOMB, NOON, Clock, entry, error_feed, feed, full_row, item, row, rows, rss

from broadsheet.daily import commands, export
from broadsheet.daily.sources.fetch import Fetcher, Places
from broadsheet.daily.store import Store, default_path


@pytest.fixture(autouse=True)
def alone(home, monkeypatch):
    """An empty store, and no host but those of a test."""
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return home


@pytest.fixture
def stand(httpserver, monkeypatch):
    """The sources on loopback, and a clock that nobody waits for."""
    base = f"http://127.0.0.1:{httpserver.port}"
    clock = Clock()

    def fetcher(store):
        return Fetcher(
            store, Places(base, f"{base}/api/query", f"{base}/rss", f"{base}/oai"), clock=clock, sleep=clock.sleep
        )

    monkeypatch.setattr(commands, "_fetcher", fetcher)
    return httpserver


def everything() -> list[str]:
    return "".join(export.everything(Store(default_path()))).splitlines()


def fits(text: str) -> bool:
    return all(len(line) < 80 for line in text.splitlines())


def test_files_are_added_and_listed_and_exported_and_added_elsewhere(run, tmp_path):
    day = tmp_path / "day.json"
    day.write_bytes(rows(full_row("2408.00001"), full_row("2408.00002", title="Long " * 40), row("x-1")))
    os.utime(day, (NOON, NOON))
    refs = tmp_path / "refs.bib.gz"
    refs.write_bytes(gzip.compress(b"@misc{a, eprint={2408.00003}, title={By hand}}"))
    status, out, err = run("page", "add", str(day), str(refs))
    assert status == 0, err
    said = " ".join(out.split())
    assert (
        said == f"{day}: 2 new, 0 changed, 0 known, 1 left out (no arXiv identifier) {refs}: 1 new, 0 changed, 0 known"
    )

    status, out, _ = run("page", "list")
    assert status == 0
    first, one, two = out.splitlines()
    assert first == "Sunday, 18 August 2024: 2 papers"
    assert one == "2408.00001        Reading twice"
    assert two.endswith("…")
    assert fits(out)

    assert {fact.at for fact, _ in Store(default_path()).facts("2408.00001").values()} == {AT}  # the file's time
    before = everything()
    assert run("page", "add", str(day), str(refs))[0] == 0
    assert everything() == before  # adding files again changes nothing, counts and their time included

    copy = tmp_path / "all.json"
    assert run("page", "export", "--out", str(copy))[0] == 0
    other = tmp_path / "other.sqlite"
    status, out, _ = run("page", "add", str(copy), "--store", str(other))
    assert status == 0
    assert "".join(export.everything(Store(other))).splitlines() == before


@pytest.mark.parametrize("format", commands.FORMATS)
def test_exports_go_to_stdout(run, format):
    status, out, _ = run("page", "export", "--format", format)
    assert status == 0
    begins = {"json": '{"broadsheet": 1', "bibtex": "@misc{", "atom": "<?xml", "markdown": "# What I said"}
    assert out.startswith(begins[format])


def test_stdin_is_a_file_too(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"arXiv:2408.00001v3\n")))
    status, out, _ = run("page", "add", "-")
    assert (status, out) == (0, "stdin: 1 new, 0 changed, 0 known\n")
    status, out, _ = run("page", "export", "--format", "bibtex")
    assert "eprint = {2408.00001v3}" in out


def test_a_saved_page_is_told_as_unconfirmed(run, tmp_path):
    saved = tmp_path / "page.txt"
    titles = [each.title for each in Store(default_path()).latest(3)]
    saved.write_text("Daily Papers\n" + "\n12\n".join(titles))
    status, out, _ = run("page", "add", str(saved))
    assert status == 0
    assert "unconfirmed" in out
    assert "3 known" in out


def test_a_file_that_is_empty_of_papers_says_so(run, tmp_path):
    (tmp_path / "weekend.json").write_text("[]")
    out = run("page", "add", str(tmp_path / "weekend.json"))[1]
    assert " ".join(out.split()).endswith("0 new: it lists no papers")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (rows(full_row())[:-20], "cut or broken"),
        (BOMB, "document type"),
        (gzip.compress(bytes(300 << 20), 1), "more than 256 MiB"),
        (error_feed("no"), "arXiv refuses the query: no"),
        (b"nothing of ours", "neither an arXiv identifier nor a title"),
    ],
    ids=["cut", "entities", "gzip", "error", "text"],
)
def test_a_bad_file_is_one_line_and_touches_nothing_not_even_by_the_files_before_it(run, tmp_path, data, why):
    good, bad = tmp_path / "good.json", tmp_path / "bad.bin"
    good.write_bytes(rows(full_row()))
    bad.write_bytes(data)
    before = everything()
    status, out, err = run("page", "add", str(good), str(bad))
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"broadsheet: {bad}\b.*{why}.*\n", err)
    assert everything() == before


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["add", "nowhere.bib"], "there is no file nowhere.bib"),
        (["add", "."], r"\.: Is a directory"),
        (["add", "hf:tomorrow"], "expected hf, hf:2024-08-18"),
        (["add", "x", "--at", "noon"], "got --at noon"),
        (["sync"], "got no source; expected one or more of hf"),
        (["sync", "papers.bib"], "broadsheet page add papers.bib"),
        (["sync", "arxiv:cs.XX!"], "expected one of arXiv's"),
        (["list", "--day", "2024-8-1"], "got --day 2024-8-1; expected one as in 2024-08-18"),
        (["list", "--week", "2024-W54"], "got --week 2024-W54"),
        (["list", "--month", "2024-13"], "got --month 2024-13"),
        (["list", "--day", "2024-08-18", "--week", "2024-W33"], "got --day and --week"),
        (["export", "--format", "pdf"], "got --format pdf; expected json, bibtex, atom, markdown"),
    ],
)
def test_bad_input_is_one_line(run, arguments, why):
    status, out, err = run("page", *arguments)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"broadsheet: .*{why}.*\n", err)


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("day", "2024-08-18", "Sunday, 18 August 2024"),
        ("week", "2024-W33", "Week 33 of 2024, from 12 August"),
        ("month", "2024-08", "August 2024"),
    ],
)
def test_lists_of_days_weeks_and_months(run, tmp_path, option, value, name):
    (tmp_path / "a.json").write_bytes(rows(full_row(), full_row("2408.00002", "2024-09-01")))
    run("page", "add", str(tmp_path / "a.json"))
    status, out, _ = run("page", "list", f"--{option}", value)
    assert (status, out) == (0, f"{name}: 1 paper\n2408.00001        Reading twice\n")


def test_a_day_without_a_list_names_the_nearest(run, tmp_path):
    (tmp_path / "a.json").write_bytes(rows(full_row()))
    assert run("page", "list", "--day", "2024-08-20")[2] == "there are no lists yet: broadsheet page sync hf\n"
    run("page", "add", str(tmp_path / "a.json"))
    status, out, err = run("page", "list", "--day", "2024-08-20")
    assert (status, out) == (0, "Tuesday, 20 August 2024: 0 papers\n")
    assert err == "the nearest list is that of 2024-08-18\n"


def test_sync_says_where_it_asks_and_what_came_of_it(run, stand):
    stand.expect_request("/rss/cs.CL").respond_with_data(rss(item()))
    stand.expect_request("/api/daily_papers").respond_with_data(b"[]")
    status, out, err = run("page", "sync", "arxiv:cs.CL", "hf:2024-08-17")
    assert status == 0, err
    assert [line.split()[0] for line in err.splitlines()] == ["asking", "asking"]
    assert f"http://127.0.0.1:{stand.port}" in err
    assert out.splitlines()[0] == "arxiv:cs.CL: 1 new"
    assert "0 new: Saturday 2024-08-17" in " ".join(out.split())
    assert fits(out)


def test_online_sources_are_added_by_add_too(run, stand):
    stand.expect_request("/api/query").respond_with_data(feed(entry()))
    status, out, _ = run("page", "add", "arxiv-query:ti:paper")
    assert (status, out) == (0, "arxiv-query:ti:paper: 1 new\n")


def test_exit_statuses_tell_later_from_never(run, stand):
    stand.expect_request("/api/query").respond_with_data(error_feed("malformed"))
    stand.expect_request("/rss/cs.CL").respond_with_data("", status=503)
    status, out, _ = run("page", "sync", "arxiv:cs.CL")
    assert (status, out) == (1, "arxiv:cs.CL: 0 new: 503 without a time; ask again in some minutes\n")
    status, out, _ = run("page", "sync", "arxiv:cs.CL", "arxiv-query:ti:(")
    assert status == 2
    assert out.endswith("arxiv-query:ti:(: 0 new: arXiv refuses the query: malformed\n")


def test_nothing_is_asked_without_a_command_that_says_where(run, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("asked")

    monkeypatch.setattr("socket.getaddrinfo", refused)
    monkeypatch.setattr("socket.create_connection", refused)
    for arguments in (["list"], ["export"], ["sync"], ["--help"]):
        assert run("page", *arguments)[0] in (0, 2)


def test_bytes_that_came_are_json_lines_of_a_time(run, tmp_path):
    """Counts are snapshots: they are kept with the time at which they were so."""
    (tmp_path / "a.json").write_bytes(rows(full_row()))
    run("page", "add", str(tmp_path / "a.json"), "--at", "2024-08-18T10:00:00+02:00")
    facts = Store(default_path()).facts("2408.00001")
    assert {fact.at for fact, _ in facts.values()} == {"2024-08-18T08:00:00Z"}
    assert json.loads("".join(everything()))["broadsheet"] == 1

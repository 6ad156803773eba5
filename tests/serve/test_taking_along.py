"""Files that are taken along from the page: whole, named, of their kind, and readable anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ended_runs import keep
from lxml import etree, html
from starlette.testclient import TestClient

from broadsheet.daily import export
from broadsheet.daily.records import Record
from broadsheet.daily.screens import leaving
from broadsheet.daily.sources import bibtex, own
from broadsheet.daily.store import Store, Topic
from broadsheet.serve.app import create_app
from broadsheet.serve.guard import KeyRing
from broadsheet.serve.page import DailyPage
from broadsheet.serve.trials.jobs import Jobs
from broadsheet.serve.trials.offers import Offers

NOW = "2024-08-20T09:30:00Z"


@pytest.fixture
def page(tmp_path: Path) -> DailyPage:
    store = Store(tmp_path / "page.sqlite", clock=lambda: NOW)
    store.add([Record(f"2408.{i:05}", "arxiv", 1, f"Paper {i} é", "It is. " * 40) for i in range(1, 41)])
    store.mark("2408.00007", later=True, note="Mine <b>")
    store.follow(Topic("zebras", "zebra"))
    return DailyPage(store, Jobs(tmp_path / "jobs"), Offers())


def test_each_file_is_whole_named_and_of_its_kind(page: DailyPage, tmp_path: Path) -> None:
    found = keep(page.jobs.folder, "aa", "lastde")
    client = TestClient(create_app(None, page=page).app)
    told: dict[str, Any] = {}
    for link in html.fromstring(client.get("/about").text).xpath("//a[@download]/@href"):
        answer = client.get(link)
        stem, suffix = link.rpartition("/")[2].split(".")
        named = f'attachment; filename="broadsheet-{stem}-2024-08-20.{suffix}"'
        assert (answer.status_code, answer.headers["content-disposition"]) == (200, named)
        assert answer.headers["x-content-type-options"] == "nosniff"
        head = client.head(link)
        assert (head.content, head.headers["content-type"]) == (b"", answer.headers["content-type"])
        told[f"{stem}.{suffix}"] = answer.headers["content-type"].partition(";")[0], answer.content
    kinds = {name: kind for name, (kind, _) in told.items()}
    assert kinds == {
        "papers.json": "application/json", "papers.bib": "application/x-bibtex", "notes.md": "text/markdown",
        "feeds.opml": "text/x-opml", "runs.json": "application/json",
    }  # fmt: skip
    again, taken = Store(tmp_path / "again.sqlite", clock=lambda: NOW), own.parse(told["papers.json"][1])
    again.add(taken.records)
    again.take_marks(dict(taken.marks))
    for topic in taken.topics:
        again.follow(topic)
    assert list(export.everything(again)) == list(export.everything(page.store))
    assert len(list(bibtex.parse(told["papers.bib"][1]).records)) == len(page.store)
    assert "> Mine \\<b\\>" in told["notes.md"][1].decode()
    outlines = etree.fromstring(told["feeds.opml"][1]).findall("body/outline")
    assert "http://testserver/feed.atom?topic=zebras" in [each.get("xmlUrl") for each in outlines]
    [run] = json.loads(told["runs.json"][1])["runs"]
    assert (run["id"], run["command"], run["result"]) == ("aa", "broadsheet try lastde --quick", found)


def test_what_there_is_not_is_missing_and_only_those_who_may_read_take_anything(page: DailyPage) -> None:
    read, infer = "r" * 24, "d" * 24
    client = TestClient(
        create_app(None, KeyRing([f"{read} read", f"{infer} infer"]), page=page), base_url="http://localhost"
    )
    for name, key, status in (("papers.json", read, 200), ("papers.json", infer, 403), ("other", read, 404)):
        answer = client.get(f"/export/{name}", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == status, name
    assert client.post("/export/papers.json", headers={"authorization": f"Bearer {read}"}).status_code == 403


def test_a_file_is_sent_in_pieces_and_a_failure_at_its_beginning_has_a_status(page, monkeypatch) -> None:
    parts = list(export.everything(page.store))
    sent = list(leaving.pieces(parts, 2_000))
    assert b"".join(sent) == "".join(parts).encode()
    assert len(parts) > 4 * len(sent) > 8
    assert all(len(each) >= 2_000 for each in sent[:-1])
    assert list(leaving.pieces(["\ud800"])) == [b"?"]
    monkeypatch.setattr(export, "everything", lambda store: (1 / 0 for _ in "x"))
    client = TestClient(create_app(None, page=page).app, raise_server_exceptions=False)
    assert client.get("/export/papers.json").status_code == 500

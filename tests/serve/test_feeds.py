"""Feeds of the page, as readers of feeds see them: what is in them, what names stay, what is not sent again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from ended_runs import keep
from fastapi import FastAPI
from lxml import etree, html
from starlette.testclient import TestClient

from broadsheet.daily import following
from broadsheet.daily.finished import finished
from broadsheet.daily.records import Listing, Record
from broadsheet.daily.store import Store, Topic
from broadsheet.page import evidence, papers
from broadsheet.report.answer import TrialAnswer
from broadsheet.serve.app import create_app
from broadsheet.serve.jobs import Jobs
from broadsheet.serve.offers import Offers
from broadsheet.serve.page import DailyPage
from broadsheet.trial.results import TrialResult

feedparser = pytest.importorskip("feedparser", reason="needs feedparser: pip install -e '.[dev]'")
BASE = "http://testserver"
EVIL = "<b>a & b</b> \"c\" 'd' ]]> é/?#&"


@pytest.fixture
def page(tmp_path: Path) -> DailyPage:
    store = Store(tmp_path / "page.sqlite")
    store.add(
        [
            Record(
                f"2408.0000{i}", "hf", 1, f"Zebra {i} <i>", f"About {i} & more", ("Ann Lee", "Bo"), ("cs.CL",),
                f"2024-08-0{i}T00:00:00Z", listings=(Listing("hf", f"2024-08-1{i}", i),),
            )
            for i in range(1, 5)
        ]
    )  # fmt: skip
    store.mark("2408.00004", hidden=True)
    store.follow(Topic("stripes", "zebra", ("2408.00001",), ("2408.00002",)))
    store.follow(Topic(EVIL, "nothing of the kind"))
    return DailyPage(store, Jobs(tmp_path / "jobs"), Offers())


@pytest.fixture
def client(page: DailyPage) -> Iterator[TestClient]:
    with TestClient(create_app(None, page=page).app) as made:
        yield made


def read(client: TestClient, path: str) -> Any:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    found = feedparser.parse(answer.content, response_headers={"content-type": answer.headers["content-type"]})
    assert not found.bozo, found.get("bozo_exception")
    assert found.version == "atom10"
    return found


def links(client: TestClient, path: str) -> dict[str, str]:
    """The feeds that a screen belongs to, by their type."""
    page = html.fromstring(client.get(path).text)
    return {each.get("type"): each.get("href") for each in page.xpath("//link[@rel='alternate']")}


def test_a_feed_has_what_it_is_of_in_both_formats(client):
    for asked, wanted in (
        ("", "321"), ("?q=zebra", "321"), ("?author=Ann%20Lee", "321"), ("?author=Nobody", ""),
        ("?topic=stripes", "31"), ("?q=zebra%20after:2024-08-02", "32"),
    ):  # fmt: skip
        found = read(client, f"/feed.atom{asked}")
        assert [each.link for each in found.entries] == [f"{BASE}/papers/2408.0000{i}" for i in wanted], asked
        told = client.get(f"/feed.json{asked}").json()
        assert told["version"] == "https://jsonfeed.org/version/1.1"
        assert {item["url"] for item in told["items"]} == {each.link for each in found.entries}
        assert (told["title"], told["home_page_url"]) == (found.feed.title, found.feed.link)
        assert client.get(told["home_page_url"]).status_code == 200, "the screen that shows the same"
        [itself] = [each.href for each in found.feed.links if each.rel == "self"]
        assert read(client, itself).entries == found.entries
        assert told["feed_url"].startswith(f"{BASE}/feed.json")


def test_an_entry_says_all_that_a_reader_of_feeds_shows(client):
    [entry] = read(client, "/feed.atom?q=zebra%20after:2024-08-03").entries
    assert (unescape(entry.title), unescape(entry.summary)) == ("Zebra 3 <i>", "About 3 & more")
    assert [each.name for each in entry.authors] == ["Ann Lee", "Bo"]
    assert [each.term for each in entry.tags] == ["cs.CL"]
    assert entry.updated == entry.published == "2024-08-13T00:00:00Z", "the day on which it was listed"
    assert {each.href for each in entry.links if each.rel == "related"} == {"https://arxiv.org/abs/2408.00003"}
    [item] = client.get("/feed.json?q=zebra%20after:2024-08-03").json()["items"]
    assert item["id"] == item["external_url"] == "https://arxiv.org/abs/2408.00003"


def test_names_stay_whatever_changes(client, page):
    before = {each.link: each.id for each in read(client, "/feed.atom?topic=stripes").entries}
    name = read(client, "/feed.atom?topic=stripes").feed.id
    page.store.add([Record("2408.00001", "hf", 2, "A new title", published="2024-08-01T00:00:00Z")])
    page.store.follow(Topic("stripes", "zebra", ("2408.00001",)))
    after = read(client, "/feed.atom?topic=stripes")
    assert after.feed.id == name
    assert {each.link: each.id for each in after.entries}.items() >= before.items()
    assert (
        len({read(client, path).feed.id for path in ("/feed.atom", "/feed.atom?q=stripes", "/feed/runs.atom")} | {name})
        == 4
    )


def test_what_runs_found_is_a_feed(client, page):
    assert read(client, "/feed/runs.atom").entries == []
    folder = page.jobs.folder
    keep(folder, "aa", "lastde", date="2024-08-18T12:00:00+02:00")
    keep(folder, "bb", "gem", state="running", date="2024-08-19T00:00:00+00:00")
    keep(folder, "cc", "gem", state="failed")
    keep(folder, "dd", "gem", state="stopped")
    keep(folder, "ee", "gem", state="running")
    (folder / "ee" / "result.json").write_text("")  # it runs
    (folder / "ff").mkdir()
    gem, lastde = read(client, "/feed/runs.atom").entries
    recorded = TrialResult.from_dict(evidence.read("lastde"))
    assert lastde.title == f"{papers.get('lastde').title}: {recorded.verdict}"
    assert lastde.summary == " ".join(str(TrialAnswer(recorded)).split())
    assert (lastde.updated, gem.updated) == ("2024-08-18T10:00:00Z", "2024-08-19T00:00:00Z")
    assert lastde.link == f"{BASE}/runs/aa"
    assert [each["id"] for each in client.get("/feed/runs.json").json()["items"]] == [
        "broadsheet:run:bb",
        "broadsheet:run:aa",
    ]
    keep(folder, "gg", "gem")
    assert lastde.id in [each.id for each in read(client, "/feed/runs.atom").entries]
    (folder / "gg" / "result.json").write_text("{")
    assert {each.id for each in finished(folder)} == {"aa", "bb"}, "what cannot be read is left out"


def test_screens_lead_to_their_feeds(client):
    for path, feed in (
        ("/", "/feed/runs"), ("/search?q=zebra", "/feed"), ("/topics/stripes", "/feed"), ("/runs", "/feed/runs"),
        (f"/topics/{following.quote(EVIL, safe='')}", "/feed"),
    ):  # fmt: skip
        found = links(client, path)
        assert set(found) == {"application/atom+xml", "application/feed+json"}, path
        assert found["application/atom+xml"].startswith(f"{feed}.atom")
        home = read(client, found["application/atom+xml"]).feed.link
        assert path in ("/", home.removeprefix(BASE)), path
    assert links(client, "/search") == links(client, "/about") == {}
    shown = html.fromstring(client.get("/subscribe").text).xpath("//main//a/@href")
    assert {"/feed.atom", "/feed.json?topic=stripes", "/feed/runs.atom", "/feeds.opml"} <= set(shown)


def test_an_outline_names_every_feed_that_is_followed(client):
    answer = client.get("/feeds.opml")
    assert answer.headers["content-type"].startswith("text/x-opml")
    top = etree.fromstring(answer.content)
    assert (top.tag, top.get("version"), top.findtext("head/title")) == ("opml", "2.0", "broadsheet")
    outlines = top.findall("body/outline")
    assert [each.get("text") for each in outlines] == [
        "broadsheet", f"broadsheet: {EVIL}", "broadsheet: stripes", "broadsheet: runs",
    ]  # fmt: skip
    for each in outlines:
        assert each.get("type") == "rss"
        assert unescape(read(client, each.get("xmlUrl")).feed.title) == each.get("text")
        assert client.get(each.get("htmlUrl")).status_code == 200


def test_what_there_is_not_is_refused(client):
    for path, status in (
        ("/feed.xml", 404), ("/feed/runs.html", 404), ("/feed.atom?topic=none", 404), ("/feed.atom?q=a&author=b", 400),
        ("/feed.atom?q=" + "x" * 401, 400),
    ):  # fmt: skip
        assert client.get(path).status_code == status, path
    assert client.head("/feed.atom").headers["content-type"] == "application/atom+xml"


class Time:
    def __init__(self) -> None:
        self.now = 1_724_068_800.4

    def __call__(self) -> float:
        return self.now


def test_who_has_it_does_not_get_it_again():
    time, body = Time(), [b"one"]
    app, answers = FastAPI(), following.Answers(time)

    @app.get("/feed")
    def feed(request: following.Request) -> Any:
        return answers.answer(request, body[0], "text/plain")

    client = TestClient(app)

    def status(**headers: str) -> int:
        return client.get("/feed", headers={key.replace("_", "-"): value for key, value in headers.items()}).status_code

    first = client.get("/feed")
    tag, since = first.headers["etag"], first.headers["last-modified"]
    assert since == "Mon, 19 Aug 2024 12:00:00 GMT"
    time.now += 60
    assert [status(if_none_match=each) for each in (tag, f"W/{tag}", f'"x", {tag}', "*", '"x"')] == [304] * 4 + [200]
    assert status(if_modified_since=since) == 304
    assert client.get("/feed", headers={"if-modified-since": since}).content == b""
    later = format_datetime(datetime.fromtimestamp(time.now, UTC), usegmt=True)
    assert status(if_modified_since=later) == 304
    assert status(if_modified_since="Mon, 19 Aug 2024 11:59:59 GMT") == 200
    assert status(if_modified_since="Mon, 19 Aug 2044 11:59:59 GMT") == 200, "a time that has not come"
    assert status(if_modified_since="yesterday") == 200
    assert status(if_none_match='"x"', if_modified_since=since) == 200, "the tag alone counts"
    body[0] = b"two"
    second = client.get("/feed")
    assert second.headers["last-modified"] == later
    body[0] = b"three"
    third = client.get("/feed", headers={"if-modified-since": second.headers["last-modified"]})
    assert third.content == b"three", "two texts of one second have different times"
    assert re.fullmatch(r'"[0-9a-f]{20}"', third.headers["etag"])

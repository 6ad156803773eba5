"""The daily page within the server: read, tried in a browser's way, asked as HF's API, followed as a feed."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from lxml import etree, html
from serving import Browser, Running, serving
from stub_trials import stubbed, wait

from broadsheet.daily.digest import Digest, Mail
from broadsheet.daily.records import Fact, Listing, Record
from broadsheet.daily.store import Store
from broadsheet.page import evidence
from broadsheet.serve.app import create_app
from broadsheet.serve.guard import COOKIE, KeyRing
from broadsheet.serve.page import DailyPage
from broadsheet.serve.trials import jobs as jobs_module
from broadsheet.serve.trials.jobs import Jobs
from broadsheet.serve.trials.offers import Offers

DAY = "2024-08-18"
ATOM = {"a": "http://www.w3.org/2005/Atom"}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DailyPage, Path]:
    popen, go = stubbed(tmp_path)
    monkeypatch.setattr(jobs_module.subprocess, "Popen", popen)
    store = Store(tmp_path / "page.sqlite")
    store.add(
        [
            Record(
                f"2408.0000{i}", "hf", title=f"Zebra {i} <script>alert(1)</script>", abstract=f"About {i}",
                authors=("Ann",), published=f"2024-08-1{i}T00:00:00Z", listings=(Listing("hf", DAY, i),),
                facts=(Fact("upvotes", str(9 - i), "2024-08-18T00:00:00Z"),),
            )
            for i in range(1, 4)
        ]
    )  # fmt: skip
    return DailyPage(store, Jobs(tmp_path / "jobs"), Offers(("default",), ("pydocs:stdlib",))), go


@pytest.fixture
def server(made: tuple[DailyPage, Path]) -> Iterator[Running]:
    with serving(create_app(None, page=made[0])) as running:
        yield running


def test_the_page_is_read_and_needs_no_model(server):
    browser = Browser(server)
    status, told, body = browser.ask("/")
    page = html.fromstring(body)
    assert status == 200
    assert page.xpath("//nav//a[@href='/runs']")
    assert "default-src 'none'" in told["content-security-policy"]
    assert page.xpath("//*[contains(text(), 'Zebra 1 <script>')]")
    status, _, body = browser.ask("/nothing/here")
    assert status == 404
    assert html.fromstring(body).xpath("//h1")
    assert server.ask("/v1/nothing")[1]["error"]["type"] == "not_found_error"
    assert server.ask("/v1/models")[1]["data"] == []
    status, _, body = browser.ask("/papers/lastde")
    assert html.fromstring(body).xpath("//a[@href='/papers/lastde/try']")


def test_a_papers_screen_leads_to_papers_like_it(server):
    page = html.fromstring(Browser(server).ask("/papers/2408.00001")[2])
    like = page.xpath("//section[@aria-labelledby='like']//a[@class='title']/@href")
    assert set(like[:2]) == {"/papers/2408.00002", "/papers/2408.00003"}


def test_a_paper_is_tried_watched_stopped_and_gone_on_with(server, made):
    page, go = made
    browser = Browser(server)
    form = html.fromstring(browser.ask("/papers/lastde/try")[2]).xpath("//form[@class='try']")[0]
    names = {each.get("name") for each in form.xpath(".//input | .//select")}
    assert {"model", "data", "quick", "seed", "pairs"} <= names
    assert {"peer", "generator", "method", "out"}.isdisjoint(names)
    status, told, _ = browser.ask(form.get("action"), {"model": "default", "quick": "yes", "pairs": "12"})
    assert status == 303
    address, _, place = told["location"].partition("#")
    assert place == "state", "where what can be done comes next"
    wait(lambda: b"<b>Runs</b>" in browser.ask(address)[2])
    shown = html.fromstring(browser.ask(address)[2])
    assert shown.xpath("//pre")[0].text_content() == "broadsheet try lastde --model default --quick --pairs 12"
    assert shown.xpath("//section[@id='live']/@data-live")
    [job] = page.jobs
    (page.jobs.folder / job.id / "events.jsonl").write_text(
        json.dumps({"n": 1, "at": 0, "event": "said", "text": "<b>"}) + "\n"
    )
    assert b"&lt;b&gt;" in browser.ask(address)[2], "what a run says is text"
    assert browser.ask(f"{address}/stop", {})[0] == 303
    wait(lambda: page.jobs.get(job.id).state == "stopped" and not page.jobs._running)
    assert html.fromstring(browser.ask(address)[2]).xpath(f"//form[@action='{address}/resume']")
    go.touch()
    assert browser.ask(f"{address}/resume", {})[0] == 303
    wait(lambda: page.jobs.get(job.id).state == "done")
    (page.jobs.folder / job.id / "result.json").write_text(json.dumps(evidence.read("lastde")))
    (page.jobs.folder / job.id / "lastde.html").write_text("<script>alert(1)</script>")
    assert html.fromstring(browser.ask(address)[2]).xpath(f"//a[@href='{address}/report']")
    (page.jobs.folder / job.id / "index.html").write_text("all trials of the folder")
    status, told, body = browser.ask(f"{address}/report")
    assert (status, body) == (200, b"<script>alert(1)</script>")
    assert told["content-security-policy"].startswith("sandbox;")
    (page.jobs.folder / job.id / "lastde.html").unlink()
    assert browser.ask(f"{address}/report")[0] == 400
    assert html.fromstring(browser.ask("/runs")[2]).xpath(f"//a[@href='{address}']")


def test_a_run_is_followed_by_events_until_it_ends(server, made, monkeypatch):
    monkeypatch.setattr("broadsheet.serve.trials.runs.LOOK", 0.01)
    page, go = made
    job = page.jobs.start(["lastde"])
    wait(lambda: page.jobs.get(job.id).state == "running")
    parts = []
    with urllib.request.urlopen(f"{server.url}/runs/{job.id}/events", timeout=30) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream:
            if line.startswith(b"data: "):
                parts.append(json.loads(line[6:]))
                go.touch()
    assert "Runs" in parts[0]["html"]
    assert parts[-1]["ended"]


def test_streams_end_when_the_server_closes(server, made, monkeypatch):
    monkeypatch.setattr("broadsheet.serve.trials.runs.LOOK", 0.01)
    page, go = made
    job = page.jobs.start(["lastde"])
    wait(lambda: page.jobs.get(job.id).state == "running")
    threading.Timer(0.2, lambda: setattr(server.app.app.state.serving, "draining", True)).start()
    with urllib.request.urlopen(f"{server.url}/runs/{job.id}/events", timeout=30) as stream:
        stream.read()
    go.touch()


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fjobs", "%00", "a%00b", "turn.lock", "x" * 300])
def test_a_run_that_there_is_not_is_not_here(server, name):
    browser = Browser(server)
    for path in (f"/runs/{name}", f"/runs/{name}/report", f"/runs/{name}/events"):
        assert browser.ask(path)[0] in (303, 307, 404), path
    browser.ask("/")
    for path in (f"/runs/{name}/stop", f"/runs/{name}/resume"):
        assert browser.ask(path, {})[0] in (404, 405), path


@pytest.mark.parametrize(
    "form",
    [{"model": "/etc/passwd"}, {"peer": "x"}, {"pairs": "1; rm"}, {"quick": "yes", "out": "/"}, {"data": "hf:a/b"}],
)
def test_what_was_not_offered_starts_nothing(server, made, form):
    browser = Browser(server)
    browser.ask("/")
    status, _, body = browser.ask("/papers/lastde/try", form)
    assert status == 400
    assert html.fromstring(body).xpath("//h1")
    assert list(made[0].jobs) == []


def test_another_site_starts_and_marks_nothing(server, made):
    browser = Browser(server)
    for path in ("/papers/lastde/try", "/papers/2408.00001/marks", "/topics"):
        assert browser.ask(path, {"quick": "yes"}, origin="http://evil.example")[0] == 403
    assert list(made[0].jobs) == []
    browser.ask("/")
    assert browser.ask("/papers/2408.00001/marks", {"read": "1"})[0] == 303
    assert made[0].store.marks()["2408.00001"].read


def test_a_form_of_an_earlier_servers_page_is_told_how_to_be_sent_again(server, made):
    browser = Browser(server)
    browser.cookies[COOKIE] = "of-an-earlier-server"
    form, sent_from = {"note": "Kept"}, f"{server.url}/papers/2408.00001?x=%3Cb%3E"
    status, told, body = browser.ask("/papers/2408.00001/marks", form, referer=sent_from)
    assert (status, told["content-type"]) == (403, "text/html; charset=utf-8")
    assert "default-src 'none'" in told["content-security-policy"]
    page = html.fromstring(body)
    assert page.xpath("//h1/text()") == ["Send it once more"]
    assert page.xpath("//main//a/@href") == ["/papers/2408.00001?x=%3Cb%3E"]
    assert made[0].store.marks() == {}
    assert browser.ask("/papers/2408.00001/marks", form)[0] == 303, "what was given with the refusal holds"
    assert made[0].store.marks()["2408.00001"].note == "Kept"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"}, {"referer": "http://[", "origin": "http://evil.example"},
    ],
)  # fmt: skip
def test_another_sites_form_is_given_nothing(server, headers):
    browser = Browser(server)
    status, told, body = browser.ask("/papers/2408.00001/marks", {"read": "1"}, **headers)
    assert status == 403
    assert "set-cookie" not in told
    assert "Another site has sent this" in html.fromstring(body).text_content()


def test_programs_are_refused_in_json(server):
    browser = Browser(server)
    for path, accept in (("/papers/2408.00001/marks", "*/*"), ("/v1/chat/completions", "text/html")):
        status, told, body = browser.ask(path, {"read": "1"}, accept=accept)
        assert (status, told["content-type"]) == (403, "application/json")
        assert json.loads(body)["error"]["type"] == "permission_error"
    status, told, _ = browser.ask("/", host="elsewhere.example")
    assert (status, told["content-type"]) == (421, "application/json")


def test_the_hub_client_reads_it(server):
    api = HfApi(endpoint=server.url, token=False)
    daily = list(api.list_daily_papers(date=DAY))
    assert [each.id for each in daily] == ["2408.00003", "2408.00002", "2408.00001"]
    assert daily[0].title == "Zebra 3 <script>alert(1)</script>"
    assert next(iter(api.list_daily_papers(date=DAY, sort="trending"))).id == "2408.00001"
    assert [each.id for each in api.list_daily_papers(week="2024-W33", limit=2, p=1)] == ["2408.00001"]
    assert [each.id for each in api.list_daily_papers()] == [each.id for each in daily], "the last day"
    assert {each.id for each in api.list_papers(query="zebra")} == {each.id for each in daily}
    assert api.paper_info("2408.00002").summary == "About 2"
    assert api.read_paper("2408.00002").startswith("# Zebra 2")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/daily_papers?date=soon", 400), ("/api/daily_papers?date=2199-01-01", 400),
        ("/api/daily_papers?date=2024-08-18&week=2024-W33", 400), ("/api/daily_papers?limit=1000", 400),
        ("/api/daily_papers?sort=x", 400), ("/api/papers/search?q=" + "x" * 251, 400), ("/api/papers/none", 404),
        ("/api/papers/2499.00001", 404), ("/api/daily_papers?date=2024-08-17", 200),
    ],
)  # fmt: skip
def test_the_api_refuses_as_apis_do(server, path, status):
    got, answer = server.ask(path)
    assert got == status
    if status != 200:
        assert answer["error"]["message"]


def test_feeds_are_followed_and_told_when_nothing_is_new(server):
    with urllib.request.urlopen(f"{server.url}/feed.atom?q=zebra") as answer:
        tag, body = answer.headers["etag"], answer.read()
    feed = etree.fromstring(body)
    assert feed.xpath("count(a:entry)", namespaces=ATOM) == 3
    assert feed.xpath("string(a:title)", namespaces=ATOM) == "broadsheet: zebra"
    assert len(set(feed.xpath("a:entry/a:id/text()", namespaces=ATOM))) == 3
    request = urllib.request.Request(f"{server.url}/feed.atom?q=zebra", headers={"if-none-match": tag})
    with pytest.raises(urllib.error.HTTPError) as same:
        urllib.request.urlopen(request)
    assert same.value.code == 304
    with urllib.request.urlopen(f"{server.url}/feed.json") as answer:
        told = json.loads(answer.read())
    assert told["version"].endswith("1.1")
    assert [item["url"].rpartition("/")[2] for item in told["items"]] == ["2408.00001", "2408.00002", "2408.00003"]


def test_without_mail_the_feeds_are_named(server):
    browser = Browser(server)
    page = html.fromstring(browser.ask("/subscribe?q=zebra")[2])
    assert page.xpath("//a[@href='/feed.atom?q=zebra']")
    assert not page.xpath("//form[@action='/subscribe']")
    assert browser.ask("/subscribe", {"address": "a@b.example"})[0] == 404


def test_a_digest_is_asked_for_confirmed_and_ended_by_one_click(made, tmp_path):
    sent: list[Any] = []
    page = made[0]
    digest = Digest(page.store, "http://127.0.0.1:8000", Mail("127.0.0.1:1", "page@example.org"))
    digest.send = lambda: sent.extend(digest.waiting()) or (1, [])
    with serving(create_app(None, page=replace(page, digest=digest))) as server:
        browser = Browser(server)
        assert html.fromstring(browser.ask("/subscribe")[2]).xpath("//form[@action='/subscribe']")
        assert browser.ask("/subscribe", {"address": "no address"})[0] == 400
        status, _, body = browser.ask("/subscribe", {"address": "reader@example.org", "query": "<b>zebra"})
        assert status == 200
        assert html.fromstring(body).xpath("//*[@role='status'][contains(text(), 'your mail')]")
        [subscriber] = digest.subscribers()
        assert subscriber.secret.encode() not in body, "the link is in the letter alone"
        assert len(sent) == 1
        link = f"/subscribe/{subscriber.secret}"
        shown = html.fromstring(browser.ask(link)[2])
        assert shown.xpath("//b[text()='<b>zebra']")
        assert not digest.subscribers()[0].confirmed, "to look is not to say yes"
        assert browser.ask(f"{link}/confirm", {})[0] == 200
        assert digest.subscribers()[0].confirmed
        # A mail program sends this without cookie and without saying where it comes from.
        status, _ = server.ask(
            f"{link}/leave", b"List-Unsubscribe=One-Click", content_type="application/x-www-form-urlencoded"
        )
        assert status == 200
        assert digest.subscribers() == []
        assert browser.ask(link)[0] == 404


def test_where_there_are_keys_the_links_of_letters_need_none(made):
    page = made[0]
    digest = Digest(page.store, "http://127.0.0.1:8000", Mail("127.0.0.1:1", "page@example.org"))
    digest.ask("reader@example.org")
    link = f"/subscribe/{digest.subscribers()[0].secret}"
    with serving(create_app(None, KeyRing(["d" * 24 + " read"]), page=replace(page, digest=digest))) as server:
        browser = Browser(server)
        assert browser.ask(link)[0] == 200
        assert browser.ask(f"{link}/confirm", {})[0] == 200
        assert digest.subscribers()[0].confirmed
        for other in ("/subscribe", f"{link}/other", "/subscribe/" + "z" * 32, "/papers"):
            assert browser.ask(other)[0] == 401, other
        form = {"content_type": "application/x-www-form-urlencoded"}
        assert server.ask(f"{link}/leave", b"List-Unsubscribe=One-Click", **form)[0] == 200
        assert digest.subscribers() == []
        assert browser.ask(link)[0] == 404, "a link that was ended opens nothing"


def test_with_keys_readers_read_and_only_those_who_may_run_start(made):
    run, read = "r" * 24, "d" * 24
    with serving(create_app(None, KeyRing([f"{run} run", f"{read} read"]), page=made[0])) as server:
        assert server.ask("/api/daily_papers")[0] == 401
        assert server.ask("/api/daily_papers", authorization=f"Bearer {read}")[0] == 200
        asked = {"content_type": "application/x-www-form-urlencoded"}
        assert server.ask("/papers/lastde/try", b"quick=yes", authorization=f"Bearer {read}", **asked)[0] == 403

"""The daily page's screens: what stands on them, what cannot be smuggled onto them, and who may change anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from lxml import html
from reading import NOW, TOKEN, finder, records, screens, stored
from starlette.testclient import TestClient

from broadsheet.daily.records import Fact, Listing, Record
from broadsheet.daily.screens import guiding, routes, shown
from broadsheet.daily.screens.standing import Standings
from broadsheet.daily.store import Store, Topic
from broadsheet.page import evidence, papers
from broadsheet.report.answer import TrialAnswer
from broadsheet.serve import guard
from broadsheet.trial.results import TrialResult

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
SCREENS = (
    "/", "/day/2024-08-19", "/day/2024-08-18", "/week/2024-W33", "/month/2024-08", "/papers", "/papers?stage=embed",
    "/papers?sort=rung", "/papers/lastde", "/papers/2408.10395", "/papers/math/0309136", "/search",
    "/search?q=attention", "/topics", "/topics/a%20topic", "/map", "/map?tree=goals", "/map?tree=long_context_survey",
    "/advise",     "/advise?goal=classify", "/about",
)  # fmt: skip
OLD = Record(
    "math/0309136",
    "arxiv",
    1,
    title="An old one",
    abstract="Of knots.",
    authors=("W. Haken",),
    published="2003-09-08",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = stored(tmp_path / "page.sqlite", 400)
    made.add([OLD])
    made.follow(Topic("a topic", "attention context", ("2408.10390",), ("2408.10391",)))
    return made


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(screens(store, finder(store)), follow_redirects=False) as made:
        yield made


def get(client: TestClient, path: str, status: int = 200) -> Any:
    answer = client.get(path)
    assert answer.status_code == status, answer.text[:300]
    return html.fromstring(answer.text)


def words(node: Any) -> str:
    return " ".join(node.text_content().split())


def titles(page: Any) -> list[str]:
    return [
        words(link) for link in page.xpath('//*[@data-item]//a[@class="title"]')
    ]  # fmt: skip


# What stands on the screens


def test_the_front_page_leads_with_the_newest_evidence_in_its_own_words(client: TestClient) -> None:
    page = get(client, "/")
    [masthead] = page.xpath("//h1")
    assert words(masthead) == "broadsheet"
    assert "Tuesday, 20 August 2024" in words(page.xpath('//*[@class="line"]')[0])
    recorded = sorted(Standings().all().values(), key=lambda each: each.recorded)[-1]
    [lead] = page.xpath('//*[@class="lead"]')
    assert recorded.paper.title in words(lead)
    assert " ".join(recorded.answer.split()) in words(lead)
    assert lead.xpath(".//svg")


def test_a_verdict_stands_as_it_is(client: TestClient) -> None:
    for name in ("token_prepending", "aded"):
        page = get(client, f"/papers/{name}")
        assert "refuted here" in words(page.xpath("//aside")[0])
    assert "do not differ measurably" in words(get(client, "/papers/token_prepending").xpath('//*[@class="answer"]')[0])


def test_the_columns_say_what_was_listed_what_runs_and_what_is_missing(client: TestClient) -> None:
    page = get(client, "/")
    sections = {words(each.xpath("./h2")[0]): each for each in page.xpath('//*[@class="columns"]/section')}
    assert list(sections) == ["Listed lately", "Run here", "Gaps"]
    assert sections["Listed lately"].xpath('.//h3/a[@href="/day/2024-08-19"]')
    known = papers.page()
    assert all(
        papers.get(link.rpartition("/")[2]).rung for link in sections["Run here"].xpath('.//a[@class="title"]/@href')
    )
    unbuilt = sum(not paper.entry for paper in known)
    assert f"{unbuilt} papers" in words(sections["Gaps"])
    linked = [papers.get(link.rpartition("/")[2]) for link in sections["Gaps"].xpath('.//a[@class="title"]/@href')]
    undecided = [paper for paper in linked if paper.verdict == "open"]
    assert undecided
    assert all(f"{paper.title} Wanted: {paper.missing}" in words(sections["Gaps"]) for paper in undecided)


def test_a_store_without_listings_says_so_and_shows_the_papers_of_the_page(tmp_path: Path) -> None:
    bare = Store(tmp_path / "bare.sqlite", clock=lambda: NOW)
    with TestClient(screens(bare)) as client:
        listed = get(client, "/").xpath('//*[@class="columns"]/section')[0]
        assert "No source has listed papers here yet" in words(listed)
        assert len(listed.xpath('.//a[@class="title"]')) == 10
        assert "There is no search here" in words(get(client, "/search?q=x"))


def test_a_day_has_its_papers_in_their_places_and_its_neighbours_are_days_with_papers(
    client: TestClient, store: Store
) -> None:
    page = get(client, "/day/2024-08-19")
    expected = [article.title for article, _ in store.listed("2024-08-19", "2024-08-19")]
    assert titles(page) == expected
    assert page.xpath('//*[@id="previous"]/@href') == ["/day/2024-08-16"]  # the Friday before
    assert page.xpath('//*[@id="next"]/@href') == ["/day/2024-08-20"]  # nothing later: the day after
    assert "/week/2024-W34" in page.xpath('//nav[@class="turn"]//a/@href')


def test_every_empty_day_says_why(client: TestClient) -> None:
    def nothing(day: str) -> str:
        return words(get(client, f"/day/{day}").xpath('//*[@class="nothing"]')[0])

    assert nothing("2024-08-18") == "A Sunday: arXiv lists nothing on Saturdays and Sundays."
    assert nothing("2024-08-21") == "This day has not come yet."
    assert nothing("2024-05-01").startswith("No source has listed a paper here for this day.")


def test_weeks_and_months_hold_their_days(client: TestClient) -> None:
    week = get(client, "/week/2024-W33")
    assert [words(h) for h in week.xpath("//h1")] == ["Week 33, 12 to 18 August 2024"]
    assert [a.rpartition("-")[2] for a in week.xpath("//h2/a/@href")] == ["16", "15", "14", "13", "12"]
    month = get(client, "/month/2024-08")
    assert {a[:12] for a in month.xpath("//h2/a/@href")} == {"/day/2024-08"}
    assert month.xpath('//*[@id="previous"]/@href') == ["/month/2024-07"]
    assert words(get(client, "/week/2024-W31").xpath("//h1")[0]) == "Week 31, 29 July to 4 August 2024"


@pytest.mark.parametrize(
    ("path", "to"), [("/day", "/day/2024-08-19"), ("/week", "/week/2024-W34"), ("/month", "/month/2024-08")]
)
def test_the_last_of_each_is_found(client: TestClient, path: str, to: str) -> None:
    assert client.get(path).headers["location"] == to


def test_a_paper_has_all_that_is_known_of_it(client: TestClient, store: Store) -> None:
    given = Record(
        "2410.06072", "hf", 2, title="Its title", abstract="Its abstract with $x_i$.", authors=("A. One", "B. Two"),
        categories=("cs.CL",), published="2024-10-08T14:23:19Z", updated="2025-02-20T00:00:00Z", doi="10.1/x y",
        listings=(Listing("hf", "2024-08-19", 3),), facts=(Fact("stars", "120", "2024-08-19T01:00:00Z"),),
    )  # fmt: skip
    store.add([given])
    store.mark("2410.06072", note="My own words.\nTwo lines.")
    page = get(client, "/papers/lastde")
    text = words(page)
    for expected in ("A. One, B. Two", "Its abstract with $x_i$.", "8 October 2024", "20 February 2025, version 2"):
        assert expected in text
    assert "120 HF daily papers, 19 August 2024" in text  # a fact never stands without its time
    assert page.xpath("//textarea")[0].text.strip() == "My own words.\nTwo lines."
    assert page.xpath('//*[@class="authors"]/a/@href') == [
        "/search?q=author%3A%22A.+One%22",
        "/search?q=author%3A%22B.+Two%22",
    ]
    assert page.xpath('//a[text()="cs.CL"]/@href') == ["/search?q=cat%3Acs.CL"]
    paper = papers.get("lastde")
    assert paper.summary in text
    assert all(phrase in text for phrase in (*paper.implements, *paper.leaves_out))
    code = " ".join(words(each) for each in page.xpath("//pre"))
    assert "from broadsheet.detect import Lastde" in code
    assert "broadsheet try lastde --quick" in code
    assert f"For the next rung: {paper.missing}." in text
    assert len(page.xpath("//figure//svg")) >= 3
    assert not page.xpath("//*[@style] | //style")  # which the policy forbids
    assert page.xpath('//a[contains(@href, "doi.org")]/@href') == ["https://doi.org/10.1/x%20y"]


def test_a_paper_says_how_its_method_fares_beside_others(client: TestClient) -> None:
    told = TrialAnswer(TrialResult.from_dict(evidence.read("infllm", evidence.folder()) or {})).beside
    assert told
    assert f"Beside others. {' '.join(told)}" in words(get(client, "/papers/infllm"))
    assert "Beside others." not in words(get(client, "/papers/lastde"))


def test_a_paper_is_found_by_either_name_and_by_a_version(client: TestClient) -> None:
    one, other = client.get("/papers/lastde"), client.get("/papers/2410.06072")
    assert one.text == other.text == client.get("/papers/2410.06072v2").text
    for name in ("math/0309136", "math.GT/0309136", "math.gt/0309136v1", "math%2f0309136"):
        assert words(get(client, f"/papers/{name}").xpath("//h1")[0]) == "An old one"


def test_what_is_missing_follows_the_rung() -> None:
    for paper in papers.page():
        assert bool(paper.missing) == (paper.rung < 4)
        if not paper.entry:
            assert paper.missing == "its code, and a trial of it"
    claims = papers.get("aded")
    assert claims.missing == "every claim shown (of 2, 1 is refuted here)"


def test_the_shelf_filters_sorts_and_turns_pages(client: TestClient, store: Store) -> None:
    page = get(client, "/papers?stage=embed&verdict=shown")
    found = [link.rpartition("/")[2] for link in page.xpath('//a[@class="title"]/@href')]
    assert sorted(found) == sorted(p.id for p in papers.page() if p.stage == "embed" and p.verdict == "shown")
    assert page.xpath('//select[@id="f-stage"]/option[@selected]/@value') == ["embed"]
    by_title = titles(get(client, "/papers?sort=title"))
    assert by_title == sorted(by_title, key=str.lower)
    rungs = [
        papers.get(link.rpartition("/")[2]).rung
        for link in get(client, "/papers?sort=rung").xpath('//a[@class="title"]/@href')[:15]
    ]
    assert rungs == sorted(rungs, reverse=True)
    first, second = titles(get(client, "/papers")), titles(get(client, "/papers?p=2"))
    assert len(first) == len(second) == shown.ROWS
    assert get(client, "/papers?sort=title&p=2").xpath('//a[@rel="next"]/@href') == ["?sort=title&p=3"]
    by_rung = [
        link
        for p in range(1, 17)
        for link in get(client, f"/papers?sort=rung&p={p}").xpath('//a[@class="title"]/@href')
    ]
    assert len(set(by_rung)) == len(by_rung) == len(store)
    everything = [title for p in range(1, 17) for title in titles(get(client, f"/papers?sort=title&p={p}"))]
    assert len(everything) == len(store)


def test_a_search_shows_why_and_where(client: TestClient) -> None:
    page = get(client, "/search?q=attention+context")
    hits = page.xpath('//*[@class="list"]/li')
    assert hits
    for hit in hits:
        assert {words(mark).lower() for mark in hit.xpath(".//mark")} <= {"attention", "context"}
        assert words(hit.xpath('.//*[@class="by"]')[0]).endswith("found by words")
    assert page.xpath('//input[@id="q"]/@value') == ["attention context"]
    assert "0 papers" in words(get(client, "/search?q=zebra").xpath('//*[@role="status"]')[0])
    assert "You follow it as a topic" in words(page)


def test_the_guides_are_forms(client: TestClient) -> None:
    long = get(client, "/map?length=1000&memory=1")
    assert "within the 8,192" in words(long)
    assert "it fits" in words(long)
    tree = get(client, "/map?tree=goals")
    assert tree.xpath('//a[@href="/papers/lastde"]')
    advised = get(client, "/advise?goal=detect&need=attacker")
    assert {"/papers/lastde", "/papers/stochastic_parrots"} <= set(advised.xpath('//a[@class="title"]/@href'))
    # A question of one goal does not stand in the way of another goal.
    assert get(client, "/advise?goal=classify&need=attacker").xpath('//*[@class="title"]')
    assert guiding.advised({"goal": "classify", "need": "attacker"}).answers == {"goal": "classify"}


def test_what_a_reader_keeps_can_be_seen_again(client: TestClient, store: Store) -> None:
    store.mark("2408.10395", later=True)
    store.mark("2408.10396", hidden=True)
    [kept] = get(client, "/papers?mark=later").xpath("//*[@data-item]")
    assert kept.xpath('.//a[@class="title"]/@id') == ["p-2408.10395"]
    assert kept.xpath('.//button[@name="later"]/@aria-pressed') == ["true"]
    day = get(client, "/day/2024-08-19")
    assert not day.xpath('//*[@id="p-2408.10396"]')
    assert "1 of no interest to you left out" in words(day)
    assert get(client, "/day/2024-08-19?hidden=1").xpath('//*[@id="p-2408.10396"]')


# What is recorded is read again once it changes


def test_rungs_are_kept_until_an_evidence_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "evidence"
    folder.mkdir()
    (folder / "lastde.json").write_bytes((evidence.folder() / "lastde.json").read_bytes())
    monkeypatch.setattr(evidence, "folder", lambda: folder)
    standings = Standings()
    kept = standings.all()
    assert kept["2410.06072"].rung == 1
    standings.refresh()
    assert standings.all() is kept
    (folder / "gem.json").write_text("{ no JSON")
    standings.refresh()
    broken = next(each for each in standings.all().values() if each.paper.id == "gem")
    assert broken.problem == "its evidence cannot be read: JSONDecodeError"
    assert standings.all()["2410.06072"].rung == 1  # one that is broken costs the others nothing
    (folder / "lastde.json").unlink()
    standings.refresh()
    assert standings.all()["2410.06072"].rung == 0


# What cannot be smuggled in


def test_nothing_that_is_written_becomes_markup(client: TestClient, store: Store) -> None:
    evil = Record(
        "2408.19999", "hf", 1, title=f"A {EVIL} title", abstract=f"attention {EVIL}", authors=(EVIL, "Eve"),
        categories=(EVIL,), published="2024-08-19T01:00:00Z", comment=EVIL, journal=EVIL, doi=f"10.1/{EVIL}",
        listings=(Listing("hf", "2024-08-19", 0), Listing(EVIL, "2024-08-19", 0)),
        facts=(Fact(EVIL, EVIL, NOW), Fact("page", "javascript:alert(1)", NOW), Fact("data", "data:text/html,x", NOW)),
    )  # fmt: skip
    store.add([evil])
    store.mark("2408.19999", note=f"</textarea>{EVIL}")
    store.follow(Topic(EVIL, f"attention {EVIL}", ("2408.19999",)))
    for path in (
        "/", "/day/2024-08-19", "/week/2024-W34", "/month/2024-08", "/papers/2408.19999", "/papers?mark=note",
        "/search?q=attention", f"/search?q={quote(EVIL)}", "/topics", f"/topics/{quote(EVIL, safe='')}",
        f"/papers/{quote(EVIL)}", f"/day/{quote(EVIL)}", f"/papers?stage={quote(EVIL)}", f"/map?tree={quote(EVIL)}",
        f"/map?length={quote(EVIL)}", f"/advise?goal={quote(EVIL)}", f"/papers?p={quote(EVIL)}",
    ):  # fmt: skip
        page = html.fromstring(client.get(path).text)
        assert page.xpath("//script/@src") == ["/static/page.js"], path
        assert not page.xpath("//script[not(@src)] | //img | //@onerror | //@style | //style"), path
        links = [each.lower() for each in page.xpath("//@href | //@src | //@action")]
        assert all(each.startswith(("/", "#", "?", "https://", "http://", "data:,")) for each in links), path
        assert len(page.xpath("//@id")) == len(set(page.xpath("//@id"))), path
        assert all(
            each.get("rel") == "noopener noreferrer" for each in page.xpath("//a[starts-with(@href, 'http')]")
        ), path
    page = get(client, "/papers/2408.19999")
    assert words(page.xpath("//h1")[0]) == " ".join(f"A {EVIL} title".split())
    assert page.xpath("//textarea")[0].text.strip() == f"</textarea>{EVIL}"
    assert "javascript:alert(1)" in words(page)  # told, but no link


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("https://a.org/x", "https://a.org/x"), ("HTTP://a.org", "HTTP://a.org"), ("javascript:alert(1)", ""),
        (" https://a.org", ""), ("https://a.org/\nx", ""), ("data:text/html,x", ""), ("//a.org", ""), ("", ""),
        ("java\tscript:x", ""), ("ftp://a.org", ""), ("https://" + "a" * 600, ""),
    ],
)  # fmt: skip
def test_only_addresses_of_the_web_become_links(text: str, link: str) -> None:
    assert shown.web(text) == link


@pytest.mark.parametrize(
    "path",
    [
        "/day/2024-02-30", "/day/2024-8-1", "/day/20240818", "/day/0000-01-01", "/day/9999-12-31", "/day/today",
        "/day/2024-08-18/", "/day/..%2f..", "/day/2024-08-18%00", "/day/٢٠٢٤-٠٨-١٨", "/week/2024-W54", "/week/2024-W00",
        "/week/2023-W53", "/week/2024-33", "/month/2024-13", "/month/2024-1", "/papers?stage=none", "/papers?kind=x",
        "/papers?rung=9", "/papers?verdict=x", "/papers?mark=x%27", "/papers?sort=;", "/papers?p=0", "/papers?p=-1",
        "/papers?p=x", "/papers?p=9999999", "/papers?p=²", "/map?tree=none", "/map?length=-1", "/map?length=1e400",
        "/map?memory=nan", "/map?dtype=x", "/map?heads=0", "/map?need=x", "/advise?goal=none",
        "/advise?goal=classify&labels=x",
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_as_a_page(client: TestClient, path: str) -> None:
    page = get(client, path, 400)
    assert words(page.xpath("//h1")[0]) == "That cannot be asked"
    assert "expected " in words(page.xpath('//*[@class="nothing"]')[0])


@pytest.mark.parametrize(
    "name",
    [
        "none", "%2e%2e", "..%2f..%2fetc%2fpasswd", "2408.10395%00", "%00", "2408.10395/x", "a/2408.10395",
        "9999.99999", "lastde/../gem%2f", "2408.10395,2408.10396", "%ff", "' OR 1=1 --", "LASTDE%20",
        "x" * 3000,
    ],
)  # fmt: skip
def test_what_is_not_here_is_missing_as_a_page(client: TestClient, name: str) -> None:
    page = get(client, f"/papers/{name}", 404)
    assert words(page.xpath("//h1")[0]) == "Not here"
    assert len(page.xpath('//*[@class="nothing"]')[0].text_content()) < 120


def test_other_things_that_are_not_here(client: TestClient) -> None:
    for path in (
        "/topics/none",
        "/static/routes.py",
        "/static/..%2froutes.py",
        "/papers/none/report",
        "/papers/selfguide/report",
    ):
        assert client.get(path).status_code == 404, path
    assert routes.missing().status_code == 404
    split = client.get("/papers/2408.10395%0d%0aSet-Cookie:x")
    assert (split.status_code, split.headers.get("set-cookie")) == (404, None)


# Who may change anything


def test_every_screen_carries_its_headers_and_the_cookie(client: TestClient) -> None:
    for path in (*SCREENS, "/day/x", "/papers/none"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; script-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(f"{guard.COOKIE}={TOKEN};")
        assert {"httponly", "path=/", "samesite=strict"} <= {each.strip().lower() for each in cookie.split(";")[1:]}
    assert routes.COOKIE == guard.COOKIE
    report = client.get("/papers/lastde/report")
    assert report.headers["content-security-policy"].startswith(
        "sandbox; default-src 'none'; style-src 'unsafe-inline'"
    )


def test_a_form_needs_the_cookie_where_a_browser_sends_it(client: TestClient, store: Store) -> None:
    def send(path: str, data: dict[str, str]) -> int:
        headers = {"origin": "http://evil.org", "sec-fetch-site": "cross-site"}
        return client.post(path, data=data, headers=headers).status_code

    before = store.marks(), store.topics()
    for path, data in (
        ("/papers/2408.10395/marks", {"read": "1"}),
        ("/topics", {"name": "x"}),
        ("/topics/a%20topic/papers", {"paper": "2408.10395", "is": "like"}),
        ("/topics/a%20topic/unfollow", {}),
    ):
        client.cookies.clear()
        assert send(path, data) == 403
        client.cookies.set(guard.COOKIE, "another")
        assert send(path, data) == 403
        client.get(path)  # nothing is changed by a link
        client.cookies.clear()
    assert (store.marks(), store.topics()) == before
    client.get("/")
    assert (
        client.post("/papers/2408.10395/marks", data={"read": "1"}, headers={"origin": "http://testserver"}).status_code
        == 303
    )
    assert store.marks()["2408.10395"].read


def test_marks_change_what_they_name_and_lead_back(client: TestClient, store: Store) -> None:
    def mark(referer: str = "", name: str = "2408.10395", **data: str) -> str:
        headers = {"referer": f"http://testserver{referer}"} if referer else {}
        answer = client.post(f"/papers/{name}/marks", data=data, headers=headers)
        assert answer.status_code == 303, answer.text
        return str(answer.headers["location"])

    assert mark("/day/2024-08-19?hidden=1", later="1") == "/day/2024-08-19?hidden=1#p-2408.10395"
    assert mark("/papers/2408.10395", note="Zwei\r\nZeilen \u200d\x07") == "/papers/2408.10395#noted"
    assert mark(read="1") == "/papers/2408.10395#marks"
    assert mark("/", read="1", at="r-2408.10395") == "/#r-2408.10395"
    assert mark("/", read="1", at="x\r\ny") == "/#p-2408.10395"
    assert mark("/papers/lastde", "lastde", seed="1") == "/papers/lastde#marks"
    found = store.marks()["2408.10395"]
    assert (found.later, found.read, found.hidden, found.note) == (True, True, False, "Zwei\nZeilen \u200d")
    assert store.marks()["2410.06072"].seed
    mark(read="0")
    assert not store.marks()["2408.10395"].read
    assert mark("/papers", "math/0309136", read="1") == "/papers#p-math/0309136"
    for evil in ("//evil.org/x", "/\\evil.org", "/a\\b", ""):
        assert mark(evil, read="1") == "/papers/2408.10395#marks"
    answer = client.post("/papers/2408.10395/marks", data={"read": "1"}, headers={"referer": "http://[broken"})
    assert answer.headers["location"] == "/papers/2408.10395#marks"


@pytest.mark.parametrize(
    "data",
    [{}, {"read": "2"}, {"changed": "1"}, {"read": "1", "id": "x"}, {"note": "x" * 10_001}, {"note": "x" * 300_000}],
)
def test_what_a_form_cannot_say_is_refused(client: TestClient, store: Store, data: dict[str, str]) -> None:
    before = store.marks()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/papers/2408.10395/marks", data=data, headers=headers).status_code == 400
    assert store.marks() == before


def test_a_form_is_a_form(client: TestClient, store: Store) -> None:
    before = store.marks()
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/papers/2408.10395/marks", json={"read": "1"}).status_code == 400
    assert client.post("/papers/2408.10395/marks", content=b"note=%ff", headers=form).status_code == 400
    assert client.post("/papers/2408.10395/marks", content=b"read=1&" * 60, headers=form).status_code == 400
    assert client.post("/papers/none/marks", data={"read": "1"}).status_code == 404
    assert store.marks() == before


def test_topics_are_followed_judged_and_left(client: TestClient, store: Store) -> None:
    def topic(name: str) -> Topic:
        return next(each for each in store.topics() if each.name == name)

    name = "long/er & <b>"
    answer = client.post("/topics", data={"name": f" {name} ", "query": "attention"})
    where = answer.headers["location"]
    assert where == f"/topics/{quote(name, safe='')}"
    page = get(client, where)
    [first, second] = [each.rpartition("/")[2] for each in page.xpath('//a[@class="title"]/@href')[:2]]
    client.post(f"{where}/papers", data={"paper": first, "is": "like"})
    client.post(f"{where}/papers", data={"paper": second, "is": "like"})
    client.post(f"{where}/papers", data={"paper": first, "is": "dislike"})  # within the same second
    assert (topic(name).likes, topic(name).dislikes) == ((second,), (first,))
    page = get(client, where)
    found = page.xpath('//section[@aria-labelledby="found"]//a[@class="title"]/@href')
    assert not {f"/papers/{first}", f"/papers/{second}"} & set(found)
    assert page.xpath('//section[@aria-labelledby="likes"]//a[@class="title"]/@href') == [f"/papers/{second}"]
    client.post(f"{where}/papers", data={"paper": second, "is": "neither"})
    client.post("/topics", data={"name": name, "query": "decoding"})  # changes the search, and keeps what was said
    assert topic(name) == Topic(name, "decoding", (), (first,), NOW)
    assert client.post(f"{where}/papers", data={"paper": first, "is": "x"}).status_code == 400
    assert client.post(f"{where}/papers", data={"paper": "none", "is": "like"}).status_code == 404
    assert client.post(f"{where}/unfollow").headers["location"] == "/topics"
    assert [each.name for each in store.topics()] == ["a topic"]
    for bad in ("", "  ", "..", "x" * 81):
        assert client.post("/topics", data={"name": bad}).status_code == 400


def test_files_are_sent_again_only_where_they_changed(client: TestClient) -> None:
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        first = client.get(f"/static/{name}")
        assert first.headers["content-type"].startswith(kind)
        tag = first.headers["etag"]
        again = client.get(f"/static/{name}", headers={"if-none-match": f'"other", W/{tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(f"/static/{name}", headers={"if-none-match": '"other"'}).status_code == 200
    assert len(client.get("/static/page.js").content) <= 15_000
    assert client.get("/static/page.css").text.startswith("/* What all pages of broadsheet share")
    assert client.head("/").status_code == 200


# What a screen may cost


def test_no_screen_grows_with_what_sources_say(tmp_path: Path) -> None:
    store = Store(tmp_path / "page.sqlite", clock=lambda: NOW)
    store.add(records(5_000))
    wide = "“Ω & <漢字> 漢字漢字漢字漢字漢字”" * 40
    names = tuple(f"{'漢' * 30} {i}" for i in range(3_000))
    store.add(
        Record(f"2408.3{i:04}", "rss", 1, title=wide, abstract="attention " + wide * 4, authors=names,
               categories=(wide,) * 9, published="2024-08-19T00:00:00Z", listings=(Listing("rss", "2024-08-19", i),),
               facts=tuple(Fact(f"{wide} {k}", wide, NOW) for k in range(30)))
        for i in range(60)
    )  # fmt: skip
    for i in range(20):
        store.follow(Topic(f"{i} {'漢' * 70}", "attention"))
    day = max(store.days())
    with TestClient(screens(store, finder(store))) as client:
        for path in (
            *SCREENS[:-9], "/search?q=attention", "/topics", "/map?tree=goals", "/about", f"/day/{day}?p=2",
            "/papers/2408.30001", "/papers/aded", "/papers/salmonn",
            *(f"/map?tree={name}" for name, _ in guiding.trees()),
            *(f"/advise?goal={goal}" for goal in guiding.advised({}).asked[0][1]),
        ):  # fmt: skip
            answer = client.get(path)
            assert answer.status_code in (200, 404), path
            assert len(answer.content) <= 60_000, (path, len(answer.content))


@pytest.mark.parametrize("text", ["", "a b", "word " * 100, "漢字" * 300, "<" * 400, "x" * 500, "é" * 300])
def test_a_cut_text_keeps_to_its_size(text: str) -> None:
    import html as escaping

    kept = shown.cut(text, 100)
    assert len(kept) <= 100
    assert len(escaping.escape(kept).encode()) <= 200
    assert kept == text if len(text) < 40 else kept.endswith("…")


def test_no_model_is_loaded_to_read(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from reading import NOW, finder, records, screens
from broadsheet.daily.store import Store
from starlette.testclient import TestClient
store = Store(Path({str(tmp_path)!r}) / "page.sqlite", clock=lambda: NOW)
store.add(records(50))
client = TestClient(screens(store, finder(store)))
for path in {SCREENS!r}:
    assert client.get(path).status_code in (200, 404), path
print([name for name in ("torch", "transformers", "sentence_transformers", "scipy", "sklearn") if name in sys.modules])
"""
    environment = {
        "PYTHONPATH": ":".join(each for each in sys.path if each),
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]

"""A person signs in: a key given once, a cookie instead, and nothing that another site could send."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lxml import html
from serving import Browser, Running, serving
from stub_trials import stubbed

from broadsheet.daily.records import Record
from broadsheet.daily.store import Store
from broadsheet.serve import sessions as sessions_module
from broadsheet.serve import signing
from broadsheet.serve.app import create_app
from broadsheet.serve.guard import COOKIE, KeyRing, Limits
from broadsheet.serve.page import DailyPage
from broadsheet.serve.sessions import SESSION, Sessions
from broadsheet.serve.signing import Attempts
from broadsheet.serve.trials import jobs as jobs_module
from broadsheet.serve.trials.jobs import Jobs
from broadsheet.serve.trials.offers import Offers

RUN, READ, INFER, FEW = "r" * 24, "d" * 24, "i" * 24, "f" * 24
PAPER = "/papers/2408.00001"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DailyPage:
    monkeypatch.setattr(jobs_module.subprocess, "Popen", stubbed(tmp_path)[0])
    store = Store(tmp_path / "page.sqlite")
    store.add([Record("2408.00001", "hf", title="Zebra", published="2024-08-11T00:00:00Z")])
    return DailyPage(store, Jobs(tmp_path / "jobs"), Offers())


@pytest.fixture
def server(page: DailyPage) -> Iterator[Running]:
    ring = KeyRing([f"{RUN} read,run", f"{READ} read", f"{INFER} infer", f"{FEW} read requests=2"])
    with serving(create_app(None, ring, Limits(body_bytes=2**20), page=page)) as running:
        yield running


def sign_in(browser: Browser, key: str, to: str = "/", **headers: str) -> tuple[int, dict[str, str], bytes]:
    browser.ask("/sign-in")
    return browser.ask("/sign-in", {"key": key, "to": to}, **headers)


def test_who_has_no_key_is_shown_where_to_give_it(server):
    browser = Browser(server)
    for path in ("/", f"{PAPER}?x=1", "/runs", "/nothing"):
        status, told, body = browser.ask(path)
        assert status == 401
        form = html.fromstring(body).xpath("//form[@method='post'][@action='/sign-in']")[0]
        assert form.xpath(".//input[@name='to']/@value") == [path]
        assert form.xpath(".//input[@name='key']/@type") == ["password"]
        assert b"Zebra" not in body
        assert told["cache-control"] == "no-store"
        assert told["www-authenticate"] == "Bearer"
    assert browser.ask("/static/page.css")[0] == 200
    assert browser.ask("/static/page.js")[0] == 401


def test_a_wrong_key_is_refused_and_told_nowhere(server, capfd):
    browser, wrong = Browser(server), "w" * 24
    for key in (wrong, f"{RUN}x", RUN[:-1], "", f"{RUN}\r\nx"):
        status, told, body = sign_in(browser, key, PAPER)
        assert (status, SESSION in browser.cookies) == (401, False)
        assert "no such key" in html.fromstring(body).text_content()
        assert html.fromstring(body).xpath("//input[@name='to']/@value") == [PAPER]
        assert wrong not in f"{told}{body!r}"
    assert browser.ask("/")[0] == 401
    assert wrong not in "".join(capfd.readouterr())
    assert wrong not in server.ask("/metrics", authorization=f"Bearer {RUN}")[1]


def test_a_key_is_given_once_and_holds_until_one_signs_out(server, page):
    browser = Browser(server)
    status, told, _ = sign_in(browser, RUN, f"{PAPER}?x=1")
    assert (status, told["location"]) == (303, f"{PAPER}?x=1")
    kept = {part.strip().lower() for part in told["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/", "max-age=604800"} <= kept
    assert "secure" not in kept
    assert RUN not in told["set-cookie"]
    status, _, body = browser.ask(PAPER)
    assert status == 200
    assert html.fromstring(body).xpath("//footer//form[@action='/sign-out']")
    assert browser.ask(f"{PAPER}/marks", {"read": "1"})[0] == 303
    assert page.store.marks()["2408.00001"].read
    assert browser.ask("/papers/lastde/try", {"quick": "yes"})[0] == 303
    assert browser.ask("/sign-in")[1]["location"] == "/"
    before = dict(browser.cookies)
    assert browser.ask("/sign-out", {})[0] == 303
    assert SESSION not in browser.cookies
    assert browser.ask(PAPER)[0] == 401
    browser.cookies = before
    assert browser.ask(PAPER)[0] == 401, "who has kept the cookie is not known by it either"


def test_where_it_is_https_the_cookie_goes_nowhere_else(server):
    _, told, _ = sign_in(Browser(server), READ, **{"x-forwarded-proto": "https"})
    assert "; secure" in told["set-cookie"].lower()


def test_a_person_may_what_the_key_may(server, page):
    reader, other, few = Browser(server), Browser(server), Browser(server)
    sign_in(reader, READ)
    assert [reader.ask(path)[0] for path in ("/", "/runs", "/feed.atom", "/api/daily_papers")] == [200] * 4
    for path, form in ((f"{PAPER}/marks", {"read": "1"}), ("/papers/lastde/try", {"quick": "yes"}), ("/mcp", {})):
        status, _, body = reader.ask(path, form)
        assert status == 403
    assert page.store.marks() == {}
    assert list(page.jobs) == []
    status, _, body = reader.ask(f"{PAPER}/marks", {"read": "1"})
    shown = html.fromstring(body)
    assert "lets you read the page, and not" in shown.text_content()
    assert shown.xpath("//form[@action='/sign-out']"), "to sign in by another"
    assert sign_in(other, INFER)[0] == 303
    assert other.ask("/")[0] == 403
    sign_in(few, FEW)
    assert [few.ask("/")[0] for _ in range(3)] == [200, 200, 429]
    assert few.ask("/", authorization=f"Bearer {READ}")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "http://evil.example"},
        {"origin": "null"}, {"origin": "http://127.0.0.1:1"},
    ],
)  # fmt: skip
def test_another_site_neither_signs_in_nor_out_nor_changes_anything(server, page, headers):
    browser = Browser(server)
    status, _, body = sign_in(browser, RUN, **headers)
    assert (status, SESSION in browser.cookies) == (403, False), "in the name of whoever has the key"
    assert "Another site" in html.fromstring(body).text_content()
    sign_in(browser, RUN)
    assert browser.ask("/sign-out", {}, **headers)[0] == 403
    assert browser.ask(f"{PAPER}/marks", {"read": "1"}, **headers)[0] == 403
    assert browser.ask("/papers/lastde/try", {"quick": "yes"}, **headers)[0] == 403
    assert page.store.marks() == {}
    assert list(page.jobs) == []
    assert browser.ask("/")[0] == 200


def test_without_the_pages_own_cookie_nobody_signs_in(server):
    browser = Browser(server)
    for cookie in ({}, {COOKIE: "guess"}):
        browser.cookies = dict(cookie)
        assert browser.ask("/sign-in", {"key": RUN, "to": "/"})[0] == 403
        assert SESSION not in browser.cookies
    assert browser.ask("/sign-in", {"key": RUN, "to": "/"}, origin=None)[0] == 403


def test_programs_are_refused_as_ever(server):
    told = {
        "message": "no key, or one that is not known: Authorization: Bearer KEY", "type": "authentication_error",
        "param": None, "code": None,
    }  # fmt: skip
    browser = Browser(server)
    for path, accept in (("/", "*/*"), ("/api/daily_papers", "text/html"), ("/v1/models", "text/html")):
        status, headers, body = browser.ask(path, accept=accept)
        assert (status, headers["www-authenticate"], headers["content-type"]) == (401, "Bearer", "application/json")
        assert json.loads(body) == {"error": told}
        assert "set-cookie" not in headers
    sign_in(browser, READ)
    assert browser.ask("/", authorization="Bearer wrong")[0] == 401, "a key that is given is the one that counts"


@pytest.mark.parametrize(
    "to", ["//evil.example", "/\\evil.example", "http://evil.example", "javascript:alert(1)", "", "/sign-in", "\n//x"]
)
def test_one_is_led_nowhere_else(server, to):
    status, told, _ = sign_in(Browser(server), READ, to)
    assert status == 303
    assert told["location"] in ("/", "/%5Cevil.example")


def test_so_many_wrong_keys_a_minute(server, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("broadsheet.serve.guard._now", lambda: now[0])
    browser = Browser(server)
    assert [sign_in(browser, "wrong")[0] for _ in range(12)] == [401] * 10 + [429] * 2
    status, told, body = sign_in(browser, READ)
    assert (status, told["retry-after"]) == (429, "6"), "nor the right one, or it could be guessed on"
    assert "Try again in 6 seconds" in html.fromstring(body).text_content()
    assert sign_in(Browser(server), READ, **{"x-forwarded-for": "192.0.2.7"})[0] == 303, "others may"
    assert browser.ask("/", authorization=f"Bearer {READ}")[0] == 200
    now[0] += 6
    assert sign_in(browser, READ)[0] == 303


def test_addresses_of_one_network_count_together_and_few_are_kept():
    attempts = Attempts(1)
    attempts.failed("2001:db8:0:1::1")
    assert attempts.wait("2001:db8:0:1::2") > 0
    assert attempts.wait("2001:db8:0:2::1") == attempts.wait("192.0.2.1") == attempts.wait("") == 0
    for number in range(signing._ADDRESSES):
        attempts.failed(str(number))
    assert attempts.wait("2001:db8:0:1::1") == 0
    assert len(attempts._left) == signing._ADDRESSES


def test_nobody_without_a_key_sends_much(server):
    browser = Browser(server)
    browser.ask("/sign-in")
    assert browser.ask("/sign-in", {"key": "x" * 5000})[0] == 413
    assert browser.ask("/v1/chat/completions", {"key": "x" * 5000}, authorization=f"Bearer {INFER}")[0] != 413


def test_a_session_is_known_while_its_key_is_and_for_a_week(monkeypatch):
    now = [1_000_000.0]
    monkeypatch.setattr(sessions_module, "_clock", lambda: now[0])
    ring = KeyRing([f"{RUN} run", READ])
    [first, second] = ring
    made = Sessions(ring, "secret")
    cookie = made.begin(first)
    assert made.find(cookie) is first
    assert made.find(made.begin(second)) is second
    assert made.begin(first) != cookie
    assert Sessions(KeyRing([READ]), "secret").find(cookie) is None, "its key is no more"
    assert Sessions(ring, "another").find(cookie) is None, "it is of another server"
    name, until, seal = cookie.split(".")
    for forged in (
        "", "..", f"{name}.{until}.", f"{name}.{int(until) + 1}.{seal}", f"0{name}.{until}.{seal}",
        f"{name}.{until}.{seal}é", f"{cookie}.x",
    ):  # fmt: skip
        assert made.find(forged) is None
        made.end(forged)
    now[0] += 7 * 24 * 3600
    assert made.find(cookie) is first
    now[0] += 1
    assert made.find(cookie) is None


def test_one_that_is_ended_is_so_for_all_processes(tmp_path):
    ring = KeyRing([RUN])
    one, two = (Sessions(ring, "secret", tmp_path) for _ in range(2))
    cookie, other = (one.begin(next(iter(ring))) for _ in range(2))
    assert two.find(cookie)
    one.end(cookie)
    assert (one.find(cookie), two.find(cookie)) == (None, None)
    assert two.find(other)


def test_without_keys_nobody_signs_in(page):
    with serving(create_app(None, page=page)) as server:
        browser = Browser(server)
        assert browser.ask("/sign-in")[0] == 404
        assert b"/sign-out" not in browser.ask("/")[2]
        assert browser.ask(f"{PAPER}/marks", {"read": "1"})[0] == 303


def test_without_the_page_there_is_nothing_to_sign_in_to():
    with serving(create_app(None, KeyRing([RUN]))) as server:
        status, told, _ = Browser(server).ask("/sign-in")
        assert (status, told["content-type"]) == (401, "application/json")

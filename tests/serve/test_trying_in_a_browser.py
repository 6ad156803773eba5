"""Papers tried in Chromium: a run started, watched, stopped, gone on with and read, by keyboard and without script."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browsing import check_access, chromium, marks, open_page, sync_api
from serving import serving
from stub_trials import Paced, wait

from broadsheet.daily.digest import Digest, Mail
from broadsheet.daily.store import Store
from broadsheet.page import evidence
from broadsheet.report.html import html
from broadsheet.serve.app import create_app
from broadsheet.serve.guard import COOKIE, KeyRing
from broadsheet.serve.page import DailyPage
from broadsheet.serve.trials import jobs as jobs_module
from broadsheet.serve.trials.jobs import Jobs
from broadsheet.serve.trials.offers import Offers
from broadsheet.trial.results import TrialResult

pytestmark = marks
expect = sync_api.expect
RUNNING = ["lastde", "--quick"]


@dataclass
class Trying:
    """A server whose trials go on as they are let."""

    url: str
    jobs: Jobs
    paced: Paced
    page: DailyPage

    def start(self, words: list[str], state: str = "running") -> str:
        """A trial of these words, once it is in that state; returns its address."""
        job = self.jobs.start(words)
        wait(lambda: self.jobs.get(job.id).state == state)
        return f"{self.url}/runs/{job.id}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def recorded() -> tuple[dict[str, Any], str]:
    found = evidence.read("lastde")
    return found, html(TrialResult.from_dict(found))


@pytest.fixture
def trying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Any, recorded: tuple[dict[str, Any], str]
) -> Iterator[Trying]:
    paced = Paced(tmp_path, *recorded)
    monkeypatch.setattr(jobs_module.subprocess, "Popen", paced.popen)  # after the browser has begun
    monkeypatch.setattr("broadsheet.serve.trials.runs.LOOK", 0.02)
    monkeypatch.setattr("broadsheet.serve.trials.runs.AGAIN", 100)
    store, jobs = Store(tmp_path / "page.sqlite"), Jobs(tmp_path / "jobs")
    page = DailyPage(
        store, jobs, Offers(("default", "tiny"), ("pydocs:stdlib",)),
        digest=Digest(store, "http://127.0.0.1", Mail("127.0.0.1:1", "page@example.org")),
    )  # fmt: skip
    with serving(create_app(None, page=page)) as running:
        yield Trying(running.url, jobs, paced, page)
    jobs.close()


def tab_to(page: Any, name: str) -> None:
    """Press Tab until what has that name has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        named = "e => (e.labels?.length ? e.labels[0].textContent : e.textContent).trim()"
        if page.evaluate(f"({named})(document.activeElement)") == name:
            return
    raise AssertionError(f"no Tab leads to {name!r}")


def enter(page: Any) -> None:
    with page.expect_navigation():
        page.keyboard.press("Enter")


def state(page: Any) -> Any:
    return page.locator("#state b")


def test_a_paper_is_tried_by_keyboard(browser: Any, trying: Trying) -> None:
    page, wrong = open_page(browser)
    page.goto(f"{trying.url}/papers/lastde")
    with page.expect_navigation():
        page.keyboard.press("t")
    tab_to(page, "Model")
    page.keyboard.type("tiny")
    tab_to(page, "More options")
    page.keyboard.press("Enter")
    tab_to(page, "pairs")
    page.keyboard.type("12")
    tab_to(page, "Start")
    enter(page)
    address = page.url.partition("#")[0]
    assert page.get_by_label("The command").inner_text() == "broadsheet try lastde --model tiny --quick --pairs 12"
    expect(state(page)).to_have_text("Runs")
    expect(page.locator("#lines")).to_contain_text("begins at 0")
    arms = page.get_by_role("region", name="So far").locator("tbody tr")
    for block in (1, 2):
        trying.paced.let(block)
        expect(arms.nth(1)).to_have_text(f"ours0.5{block}0")
        expect(arms.nth(0)).to_have_text("plain *0.500")
        expect(page.get_by_role("progressbar")).to_have_js_property("value", block / 4)
        assert page.locator("main .chip").count() == 0, "no verdict while it runs"
        assert not re.search(r"\b(helps|hurts|shown|refuted|better|worse)\b", page.locator("#live").inner_text())
    assert page.evaluate("document.activeElement.id") == "state"
    trying.paced.busy(True)
    tab_to(page, "Stop")
    enter(page)
    assert state(page).inner_text() == "Is being stopped"
    assert page.locator("#live button").count() == 0
    page.keyboard.press("Tab")  # to the values
    page.evaluate("document.activeElement.kept = true")
    trying.paced.busy(False)
    expect(state(page)).to_have_text("Stopped")
    expect(page.get_by_role("status").first).to_have_text("Stopped")
    assert page.title().startswith("Stopped: ")
    assert page.evaluate("document.activeElement.id + document.activeElement.kept") == "armstrue", (
        "it is left as it was"
    )
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "Go on"
    enter(page)
    expect(page.locator("#lines")).to_contain_text("begins at 2")
    tab_to(page, "Stop")
    trying.paced.let(4)
    expect(state(page)).to_have_text("Done")
    assert page.evaluate("document.activeElement.id") == "state", "not lost where the button is gone"
    assert page.locator("#live .chip").count() == 1
    assert page.url.partition("#")[0] == address
    tab_to(page, "The report")
    with page.expect_response(f"{address}/report") as answer:
        enter(page)
    policy = answer.value.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'; style-src 'unsafe-inline'")
    expect(page.locator("h1")).to_be_visible()
    assert page.title().startswith("Training-free"), "not the list of trials beside it"
    assert page.evaluate("self.origin") == "null", "a report is of no site"
    assert not wrong
    page.context.close()


def test_a_paper_is_tried_without_script(browser: Any, trying: Trying) -> None:
    page, wrong = open_page(browser, java_script_enabled=False)
    page.goto(f"{trying.url}/papers/lastde")
    page.get_by_role("link", name="Try it on your model").click()
    page.get_by_role("button", name="Start").click()
    again, address = page.get_by_role("link", name="look again"), page.url.partition("#")[0]
    [job] = trying.jobs
    trying.paced.let(1)
    wait(lambda: len(trying.jobs.events(job.id)[0]) == 2)
    again.click()
    assert state(page).inner_text() == "Runs"
    assert "0.51" in page.get_by_role("region", name="So far").inner_text()
    page.get_by_role("button", name="Stop").click()
    wait(lambda: not trying.jobs.get(job.id).lives)
    page.goto(address)
    assert state(page).inner_text() == "Stopped"
    assert again.count() == 0
    trying.paced.let(4)
    page.get_by_role("button", name="Go on").click()
    wait(lambda: trying.jobs.get(job.id).state == "done")
    page.reload()
    assert state(page).inner_text() == "Done"
    page.get_by_role("link", name="The report").click()
    assert page.locator("h1").count() == 1
    assert not wrong
    page.context.close()


def test_the_screens_of_trials_are_open_to_all(browser: Any, trying: Trying) -> None:
    jobs = trying.jobs
    screens = {"Failed": trying.start(["gem"], "failed"), "Stopped": trying.start(["first"])}
    stopped = jobs.stop(screens["Stopped"].rpartition("/")[2])
    wait(lambda: not stopped.lives)
    trying.paced.let(1)
    screens |= {"Runs": trying.start(RUNNING), "Waits for 1 other": trying.start(["llm_ql"], "waiting")}
    (jobs.folder / "done").mkdir()
    (jobs.folder / "done" / "job.json").write_text('{"id": "done", "command": ["try", "lastde"], "state": "done"}')
    (jobs.folder / "done" / "result.json").write_text((trying.paced.folder / "result.json").read_text())
    page, wrong = open_page(browser)
    for told, address in (screens | {"Done": f"{trying.url}/runs/done"}).items():
        page.goto(address)
        expect(state(page)).to_have_text(told)
        if told == "Runs":
            expect(page.locator("#arms")).to_be_visible()
        check_access(page)
    for path in ("/papers/lastde/try", "/runs", "/subscribe"):
        page.goto(trying.url + path)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        check_access(page)
    assert not wrong
    page.context.close()


def test_seven_tabs_that_watch_leave_room_for_an_eighth(browser: Any, trying: Trying) -> None:
    address = trying.start(RUNNING)
    page, wrong = open_page(browser)
    page.context.set_default_navigation_timeout(10_000)
    tabs = [page, *(page.context.new_page() for _ in range(6))]
    for each in tabs:
        each.goto(address)
    assert {each.evaluate("document.visibilityState") for each in tabs} == {"visible"}
    eighth = page.context.new_page()
    eighth.goto(f"{trying.url}/runs")
    assert eighth.locator("a.title").count() == 1
    trying.paced.let(1)
    for each in tabs:
        expect(each.locator("#arms")).to_contain_text("0.51")
    assert not wrong
    page.context.close()


def test_a_hidden_tab_does_not_listen_and_goes_on_from_what_it_has_seen(browser: Any, trying: Trying) -> None:
    page, _ = open_page(browser)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/events" in request.url else None)
    page.goto(trying.start(RUNNING))
    trying.paced.let(1)
    expect(page.locator("#arms")).to_contain_text("0.51")

    def hide(hidden: bool) -> None:  # Chromium without a window shows all tabs
        page.evaluate(
            "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
            "document.dispatchEvent(new Event('visibilitychange')); }",
            hidden,
        )

    with page.expect_event("requestfailed", lambda request: "/events" in request.url):  # the stream is closed
        hide(True)
    trying.paced.let(2)
    wait(lambda: len(trying.jobs.events(page.url.rpartition("/")[2])[0]) == 3)
    with page.expect_event("requestfinished", lambda request: request.url.endswith("/static/run.css")):
        page.evaluate("fetch('/static/run.css').then(answer => answer.text())")
    assert "0.51" in page.locator("#arms").inner_text()
    hide(False)
    expect(page.locator("#arms")).to_contain_text("0.52")
    assert len(asked) == 2
    assert re.search(r"after=[0-9a-f]{16}$", asked[1])
    assert asked[0] != asked[1], "it says what it has seen"
    page.context.close()


def test_a_server_that_does_not_answer_is_told_and_asked_again(browser: Any, trying: Trying) -> None:
    page, _ = open_page(browser)
    page.clock.install(time=0)
    page.clock.pause_at(1000)  # from here on time passes in this test alone, however slow the machine
    refused: list[str] = []
    page.route("**/events?*", lambda route: (refused.append(route.request.url), route.fulfill(status=503)))
    page.goto(trying.start(RUNNING))
    lost = page.locator("#lost")

    def later(holds: Callable[[], bool]) -> None:  # the page may hear of a refusal a moment after the request ended
        def tried() -> bool:
            page.clock.fast_forward(11_000)
            return holds()

        wait(tried)

    wait(lambda: page.evaluate("true") and len(refused) == 1)
    assert not lost.is_visible()
    for asked in (2, 3):  # refused, and refused again
        later(lambda asked=asked: lost.is_visible() and len(refused) >= asked)
    page.unroute("**/events?*")
    trying.paced.let(1)
    later(lambda: "0.51" in page.locator("#arms").inner_text())
    expect(lost).to_be_hidden()
    page.context.close()


def test_what_was_written_on_an_old_page_is_sent_once_more(browser: Any, trying: Trying) -> None:
    page, wrong = open_page(browser)
    page.goto(f"{trying.url}/papers/lastde")
    page.context.add_cookies([{"name": COOKIE, "value": "of-an-earlier-server", "url": trying.url}])
    page.get_by_label("Note", exact=True).fill("Long thought of")
    page.get_by_role("button", name="Keep the note").click()
    assert page.locator("h1").inner_text() == "Send it once more"
    check_access(page)
    page.go_back()
    assert page.get_by_label("Note", exact=True).input_value() == "Long thought of"
    page.get_by_role("button", name="Keep the note").click()
    assert "Last changed" in page.locator("form.note").inner_text()
    assert not wrong
    page.context.close()


def test_a_person_signs_in_and_out_by_keyboard(browser: Any, trying: Trying) -> None:
    key = "k" * 24
    with serving(create_app(None, KeyRing([key]), page=trying.page)) as server:
        page, wrong = open_page(browser)
        page.goto(f"{server.url}/papers/lastde")
        check_access(page)
        for given in ("not the key", key):
            expect(page.get_by_label("Key")).to_be_focused()  # a browser sees to it when it first draws
            page.keyboard.type(given)
            enter(page)
        assert page.url == f"{server.url}/papers/lastde"
        assert page.evaluate("document.cookie") == "", "no script reads it"
        with page.expect_navigation():
            page.keyboard.press("t")
        tab_to(page, "Start")
        enter(page)
        expect(state(page)).to_have_text("Runs")
        trying.paced.let(1)
        expect(page.locator("#arms")).to_contain_text("0.51")
        tab_to(page, "Sign out")
        enter(page)
        assert page.get_by_label("Key").input_value() == ""
        page.go_back()
        page.reload()
        assert page.locator("h1").inner_text() == "Sign in"
        assert not wrong
        page.context.close()

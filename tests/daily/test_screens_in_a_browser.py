"""The daily page's screens in Chromium: read by keyboard alone, without script, by whatever means of access."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import check_access, chromium, marks, open_page
from reading import NOW, finder, screens, stored
from serving import serving

from broadsheet.daily.records import Fact, Listing, Record
from broadsheet.daily.store import Store, Topic

pytestmark = marks
SCREENS = {
    "front": "/", "day": "/day/2024-08-19", "empty": "/day/2024-08-18", "week": "/week/2024-W33",
    "month": "/month/2024-08", "measured": "/papers/lastde", "plain": "/papers/2408.10398", "shelf": "/papers",
    "chosen": "/papers?mark=later", "search": "/search?q=attention", "nothing": "/search?q=zebra", "topics": "/topics",
    "topic": "/topics/long%20inputs", "long": "/map", "tree": "/map?tree=long_context_survey", "adviser": "/advise",
    "advised": "/advise?goal=domain", "about": "/about", "refused": "/day/never", "missing": "/papers/none",
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = stored(tmp_path / "page.sqlite", 400)
    made.add(
        [
            Record(
                "2410.06072", "hf", 2, title="Detection", abstract="Of $x_i$.", authors=("A. One",),
                categories=("cs.CL",), published="2024-10-08T14:23:19Z", updated="2025-02-20T00:00:00Z", doi="10.1/x",
                comment="A comment", listings=(Listing("hf", "2024-08-19", 0),),
                facts=(Fact("repository", "https://example.org/x", NOW),),
            )
        ]
    )  # fmt: skip
    made.mark("2408.10398", later=True, read=True, note="Two\nlines")
    made.follow(Topic("long inputs", "attention context", ("2408.10390",), ("2408.10391",)))
    return made


@pytest.fixture
def address(store: Store) -> Iterator[str]:
    with serving(screens(store, finder(store))) as running:
        yield running.url


def test_every_screen_is_open_to_all(browser: Any, address: str) -> None:
    page, wrong = open_page(browser)
    for path in SCREENS.values():
        page.goto(address + path)
        check_access(page)
    assert not wrong
    page.context.close()


def test_targets_are_large_enough(browser: Any, address: str) -> None:
    page, _ = open_page(browser, viewport={"width": 320, "height": 900})
    for path in ("/", "/day/2024-08-19", "/papers/lastde", "/topics/long%20inputs", "/map"):
        page.goto(address + path)
        small = page.evaluate(
            "[...document.querySelectorAll('button, select, input:not([type=hidden]), .bar nav a')]"
            ".filter(e => e.offsetParent).map(e => [e.getBoundingClientRect(), e.outerHTML.slice(0, 80)])"
            ".filter(([r]) => r.height < 24 || r.width < 24).map(([, html]) => html)"
        )
        assert not small
    page.context.close()


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.textContent.trim()"))


def test_a_reading_day_by_keyboard(browser: Any, address: str, store: Store) -> None:
    page, wrong = open_page(browser)
    page.goto(address)
    press = page.keyboard.press

    def go(*keys: str) -> None:
        """Press keys the last of which leads elsewhere."""
        for key in keys[:-1]:
            press(key)
        with page.expect_navigation():
            press(keys[-1])

    titles = page.locator("[data-item] a.title")
    press("s")
    assert page.get_by_role("status").inner_text() == "Choose a paper first: j"
    for _ in range(titles.count()):
        press("j")
    last = titles.last.inner_text()
    go("s")  # a paper of the last column, which has no buttons here
    assert focused(page) == last
    assert store.marked("later")[0].title == last
    go("g", "d")
    assert page.url == f"{address}/day/2024-08-19"
    listed = [article for article, _ in store.listed("2024-08-19", "2024-08-19")]
    press("j")
    assert focused(page) == titles.nth(0).inner_text()
    press("j")
    press("j")
    press("k")
    second = titles.nth(1).inner_text()
    assert focused(page) == second
    go("s")  # which sends a form, and comes back to the same paper
    assert page.url.startswith(f"{address}/day/2024-08-19#p-")
    assert focused(page) == second
    go("r")
    assert focused(page) == second
    mark = store.marks()[listed[1].id]
    assert mark.later
    assert mark.read
    go("r")
    assert not store.marks()[listed[1].id].read
    go("Enter")
    assert page.locator("h1").inner_text() == second
    press("n")
    page.keyboard.type("jkr/ are letters here?")  # no shortcut while one types
    assert page.url.startswith(f"{address}/papers/")
    press("Tab")
    go("Enter")
    assert store.marks()[listed[1].id].note == "jkr/ are letters here?"
    go("g", "d")
    press("j")
    go("n")  # from a list too
    assert page.url.endswith("#note")
    page.keyboard.type("x")
    assert page.get_by_label("Note", exact=True).input_value() == "x"
    page.locator("h1").click()
    go("g", "d")
    go("[")
    assert page.url == f"{address}/day/2024-08-16"
    go("]")
    assert page.url == f"{address}/day/2024-08-19"
    go("g", "w")
    assert page.url == f"{address}/week/2024-W34"
    go("g", "m")
    assert page.url == f"{address}/month/2024-08"
    press("/")
    page.keyboard.type("attention g d")
    go("Enter")
    assert page.url == f"{address}/search?q=attention+g+d"
    press("?")
    assert page.locator("dialog[open] dt").count() >= 9
    press("j")  # no shortcut while the keys are shown
    press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert not wrong
    page.context.close()


def test_the_shortcuts_can_be_switched_off_for_good(browser: Any, address: str) -> None:
    page, _ = open_page(browser)
    page.goto(f"{address}/day/2024-08-19")
    switch = page.get_by_role("button", name="Keyboard shortcuts: on")
    switch.focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("button", name="Keyboard shortcuts: off").is_visible()
    page.goto(f"{address}/day/2024-08-16")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.tagName") == "BODY"
    page.get_by_role("button", name="Keyboard shortcuts: off").click()
    page.locator("h1").click()
    page.keyboard.press("Control+j")
    assert page.evaluate("document.activeElement.className") != "title"
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.className") == "title"
    page.context.close()


def test_the_first_tab_skips_to_the_papers(browser: Any, address: str) -> None:
    page, _ = open_page(browser)
    page.goto(address)
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the papers"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    page.context.close()


def test_all_can_be_read_and_said_without_script(browser: Any, address: str, store: Store) -> None:
    page, _ = open_page(browser, java_script_enabled=False)
    for path in SCREENS.values():
        page.goto(address + path)
        assert page.locator("h1").inner_text()
        assert not page.locator("#keys-switch").is_visible()
    page.goto(f"{address}/papers/2408.10395")
    page.get_by_role("button", name="Later").click()
    page.get_by_label("Note", exact=True).fill("Kept without script")
    page.get_by_role("button", name="Keep the note").click()
    assert page.get_by_role("button", name="Later").get_attribute("aria-pressed") == "true"
    found = store.marks()["2408.10395"]
    assert (found.later, found.note) == (True, "Kept without script")
    page.get_by_label("Search").fill("attention")
    page.get_by_role("button", name="Find").click()
    page.get_by_label("Name").fill("mine")
    page.get_by_role("button", name="Follow").click()
    assert page.url == f"{address}/topics/mine"
    page.get_by_role("button", name="Right").first.click()
    assert len(next(topic for topic in store.topics() if topic.name == "mine").likes) == 1
    page.context.close()


def test_a_list_reads_as_what_it_is(browser: Any, address: str) -> None:
    page, _ = open_page(browser)
    page.goto(f"{address}/day/2024-08-19")
    told = page.locator("main").aria_snapshot()
    assert '- heading "Monday 19 August 2024" [level=1]' in told
    assert '- navigation "Other days"' in told
    assert '- button "Later" [pressed]' in told  # the one that is kept
    assert told.count("- listitem:") >= 15
    page.context.close()


def test_another_site_cannot_mark_a_paper(browser: Any, address: str, store: Store, tmp_path: Path) -> None:
    other = address.replace("127.0.0.1", "localhost")  # another site to the browser
    page, _ = open_page(browser)
    page.goto(address)
    page.goto(f"{other}/about")
    page.context.clear_cookies(domain="localhost")
    with page.expect_navigation() as sent:
        page.evaluate(
            "url => { const form = document.createElement('form'); form.method = 'post'; form.action = url;"
            "document.body.append(form); form.innerHTML = '<input name=read value=1>';"
            "document.querySelector('meta').remove(); form.submit(); }",
            f"{other}/papers/2408.10395/marks",
        )
    assert sent.value.status == 403
    assert "2408.10395" not in store.marks()
    page.context.close()

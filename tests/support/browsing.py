"""Chromium, for tests of what is served: what is loaded from elsewhere is told, and what axe finds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
axe_module = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
ALL_RULES = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
COLOURS = {"resultTypes": ["violations"], "runOnly": ["color-contrast", "link-in-text-block"]}
_TOLD = "found => found.violations.map(({ id, nodes }) => [id, nodes[0].html.slice(0, 200), nodes[0].failureSummary])"
marks = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs a Chromium at {CHROMIUM}; $CHROMIUM names another"),
    pytest.mark.xdist_group("chromium"),
]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield found
        found.close()


def open_page(browser: Any, **options: Any) -> tuple[Any, list[str]]:
    """A page of a new context, and what goes wrong: errors on it, and requests of the context beyond loopback."""
    context = browser.new_context(**options)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda message: wrong.append(message.text) if "Content Security Policy" in message.text else None
    )
    context.on(
        "request",
        lambda request: None if request.url.startswith(("http://127.0.0.1:", "data:")) else wrong.append(request.url),
    )
    return page, wrong


def check_access(page: Any) -> None:
    """Fail where axe finds anything, light or dark, narrow or wide, where the screen is wider than that, or where
    landmarks are missing. What depends on colours is looked at four times, the rest twice."""
    page.evaluate(axe_module.Axe().axe_script)
    for width in (1280, 320):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme, rules in (("light", ALL_RULES), ("dark", COLOURS)):
            page.emulate_media(color_scheme=scheme)
            told = page.evaluate(f"axe.run({json.dumps(rules)}).then({_TOLD})")
            assert not told, (page.url, width, scheme, told)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (page.url, width)
    assert page.locator("h1").count() == 1
    assert page.locator("main").count() == page.locator("header").count() == page.locator("footer").count() == 1

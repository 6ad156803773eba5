"""Make the pictures of the daily page in the docs: what a reader sees in a browser.

    python docs/screens.py [NAME …]    all of them, or those named

The page is opened on a new store, so that nobody's marks or notes are seen, on the day after that of the last recorded
trial. The trial that runs is one that is recorded, with the values that it ended with. `docs/images/page/made.json`
keeps the state of the files that draw the screens: a test compares it with theirs. It needs Chromium, and playwright
(`pip install -e '.[dev]'`).
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from broadsheet.cache import fingerprint
from broadsheet.page import evidence, papers

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images" / "page"
READ, RUN = "lastde", "llm_ql"  # whose screen is shown, and whose trial runs
BLOCKS, DONE = 25, 18  # of the trial that runs
SCHEMES = ("light", "dark")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--font-render-hinting=none", "--no-first-run")


@dataclass(frozen=True)
class Screen:
    """A screen, and the files whose change makes its pictures old, below `src/broadsheet/`."""

    path: str
    drawn_by: tuple[str, ...]
    width: int = 1200
    height: int = 900


_ALL = ("report/templates/base.css", "daily/screens/static/page.css", "daily/screens/templates/base.html.jinja")
SCREENS = {
    "front": Screen("/", (*_ALL, "daily/screens/templates/front.html.jinja")),
    "paper": Screen(f"/papers/{READ}", (*_ALL, "daily/screens/templates/paper.html.jinja")),
    "run": Screen(
        "/runs/shown",
        (
            *_ALL,
            "serve/trials/static/run.css",
            "serve/trials/templates/run.html.jinja",
            "serve/trials/templates/live.html.jinja",
        ),
        height=690,
    ),
}


def state(screen: Screen) -> str:
    """16 hex digits that change when a file that draws the screen does."""
    return fingerprint([(ROOT / "src" / "broadsheet" / name).read_text(encoding="utf-8") for name in screen.drawn_by])


def main(names: list[str]) -> int:
    from playwright.sync_api import sync_playwright

    chromium = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), "")
    if not chromium:
        raise SystemExit("a screenshot needs Chromium: apt-get install chromium")
    IMAGES.mkdir(parents=True, exist_ok=True)
    kept = IMAGES / "made.json"
    made = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for name in names or SCREENS:
            for scheme in SCHEMES:
                picture(browser, address, SCREENS[name], scheme, IMAGES / f"{name}-{scheme}.webp")
            made[name] = state(SCREENS[name])
        browser.close()
    kept.write_text(json.dumps(dict(sorted(made.items())), indent=1) + "\n", encoding="utf-8")
    return 0


def picture(browser: Any, address: str, screen: Screen, scheme: str, path: Path) -> None:
    """Write what a screen looks like at its top."""
    size = {"width": screen.width, "height": screen.height}
    page = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce").new_page()
    page.goto(address + screen.path)
    page.wait_for_function("document.fonts.ready.then(() => true)")
    drawn = page.context.new_cdp_session(page).send("Page.captureScreenshot", {"format": "webp", "quality": 88})
    path.write_bytes(base64.b64decode(drawn["data"]))
    page.context.close()
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The page's address, on a free port of loopback."""
    import uvicorn

    from broadsheet.daily.store import Store
    from broadsheet.serve.app import create_app
    from broadsheet.serve.page import DailyPage
    from broadsheet.serve.trials.jobs import Jobs
    from broadsheet.serve.trials.offers import Offers

    ours = [paper.id for paper in papers.page() if paper.ours]
    recorded = [found for name in ours if (found := evidence.read(name, evidence.folder()))]
    last = max(datetime.fromisoformat(each["provenance"]["date"]) for each in recorded)
    day = (last + timedelta(days=1)).strftime("%Y-%m-%dT08:00:00Z")
    with started(folder / "jobs"):
        page = DailyPage(Store(folder / "page.sqlite", clock=lambda: day), Jobs(folder / "jobs"), Offers())
        server = uvicorn.Server(uvicorn.Config(create_app(None, page=page), port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True  # which stops the trial
            for each in threading.enumerate():
                if each is thread or each.name == "trials":
                    each.join()


def told() -> dict[str, Any]:
    """What a trial that is recorded would have told in its course."""
    found = evidence.read(RUN, evidence.folder())
    assert found
    arms = [
        {
            "name": arm["name"],
            "role": arm["role"],
            "values": {name: value["estimate"] for name, value in arm["values"].items()}
            | {f"{found['item']}s/s": arm["items_per_second"]["estimate"]},
            "error": "",
        }
        for arm in found["arms"]
    ]
    items = found["arms"][0]["n_items"] * DONE // BLOCKS
    speeds = [1 / arm["items_per_second"]["estimate"] for arm in found["arms"]]
    left = sum(speeds) * items * (BLOCKS - DONE) / DONE
    block = {"n": 1, "at": 0, "event": "block", "done": DONE, "of": BLOCKS, "items": items, "piloting": False}
    return block | {"left": left, "arms": arms}


@contextmanager
def started(jobs: Path) -> Iterator[None]:
    """In a folder of jobs, one of a server that is no more, whose process goes on."""
    import psutil

    folder = jobs / "shown"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text(json.dumps(told()) + "\n", encoding="utf-8")
    words = [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL); input()"]
    process = psutil.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
    mark = [process.pid, process.create_time()]
    job = {"id": "shown", "command": ["try", RUN], "state": "running", "process": mark}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

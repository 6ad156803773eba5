"""Make the pictures of the README and the docs: what a reader sees of the demo and of a report.

    python docs/pictures.py [NAME …]    all of them, or those named

`docs/images/made.json` keeps, for each picture, the state of the files that draw it: a test compares it with theirs.
A screenshot needs Chromium; the demo runs the default model for a minute, on an otherwise idle machine.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from broadsheet.cache import fingerprint
from broadsheet.page import evidence

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
_SHOWN = "lastde"  # whose report is shown
_WIDTH, _HEIGHT = 1200, 900


@dataclass(frozen=True)
class Picture:
    """A picture, how it is made, and the files whose change makes it old, below `src/broadsheet/`."""

    make: Callable[[Path], None]
    drawn_by: tuple[str, ...]


def demo(path: Path) -> None:
    """The demo's output as a terminal would show it."""
    from rich.console import Console

    from broadsheet.decode.demo import show

    console = Console(record=True, width=100, highlight=False)
    show(console)
    # Rich names a font on another host; a reader's own monospaced one does.
    drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="broadsheet demo"), flags=re.DOTALL)
    path.write_text(drawn, encoding="utf-8")


def report(path: Path) -> None:
    """The first screen of a recorded trial's report."""
    from broadsheet.report.html import html
    from broadsheet.trial.results import TrialResult

    chromium = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
    )
    if not chromium:
        raise SystemExit("a screenshot needs Chromium: apt-get install chromium")
    recorded = evidence.read(_SHOWN, evidence.folder())
    assert recorded
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(html(TrialResult.from_dict(recorded)), encoding="utf-8")
        size = f"--window-size={_WIDTH},{_HEIGHT}"
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size, f"--screenshot={path}")
        subprocess.run([chromium, *options, page.as_uri()], check=True, capture_output=True)


PICTURES = {
    "demo.svg": Picture(demo, ("decode/demo.py",)),
    "report.png": Picture(
        report,
        (
            "report/answer.py",
            "report/html.py",
            "report/plots.py",
            "report/view.py",
            "report/templates/base.css",
            "report/templates/report.html.jinja",
        ),
    ),
}


def state(picture: Picture) -> str:
    """16 hex digits that change when a file that draws the picture does."""
    return fingerprint([(ROOT / "src" / "broadsheet" / name).read_text(encoding="utf-8") for name in picture.drawn_by])


def main(names: list[str]) -> int:
    kept = IMAGES / "made.json"
    made = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for name in names or PICTURES:
        PICTURES[name].make(IMAGES / name)
        made[name] = state(PICTURES[name])
        kept.write_text(json.dumps(dict(sorted(made.items())), indent=1) + "\n", encoding="utf-8")
        print(f"docs/images/{name}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

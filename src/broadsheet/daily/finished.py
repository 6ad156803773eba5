"""Runs of the page that have ended, and what each found.

Knows: the folder in which a server keeps its runs; it is only read. Does not know: processes, how a run is started.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from broadsheet.daily.records import line
from broadsheet.page import papers

LARGEST = 64 << 20  # bytes of a result that are read


@dataclass(frozen=True)
class Finished:
    """What a run found.

    Attributes:
        paper: its id on the page; `arxiv` its identifier, empty for one that is not of the page.
        answer: of the trial to its own question, on one line.
        verdict: "shown", "refuted here", "open"; may be empty.
        at: when it had been measured, `"2024-08-18T12:00:00Z"`.
    """

    id: str
    paper: str
    arxiv: str
    title: str
    command: str
    answer: str
    verdict: str
    at: str


def finished(folder: Path) -> list[Finished]:
    """Runs whose result is there, the last first; what cannot be read is left out."""
    found: list[Finished] = []
    for path in folder.glob("*/result.json"):
        try:
            state, told = path.with_name("job.json").stat().st_mtime_ns, path.stat()
            run = _read(path, state, told.st_mtime_ns, told.st_size) if told.st_size <= LARGEST else None
        except OSError:
            continue
        if run is not None:
            found.append(run)
    return sorted(found, key=lambda each: (each.at, each.id), reverse=True)


def result(folder: Path, run: Finished) -> dict[str, Any]:
    """All that a run found, as its report has it."""
    found: dict[str, Any] = json.loads((folder / run.id / "result.json").read_text("utf-8"))
    return found


@lru_cache(maxsize=1000)
def _read(path: Path, *state: int) -> Finished | None:
    """A run, as long as its files stay as they are."""
    from broadsheet.report.answer import TrialAnswer
    from broadsheet.trial.results import TrialResult

    try:
        job = json.loads(path.with_name("job.json").read_text("utf-8"))
        if job["state"] not in ("done", "running"):  # what a server that was killed left running may be done
            return None
        told = json.loads(path.read_text("utf-8"))
        found = TrialResult.from_dict(told)
        words: Sequence[str] = job["command"]
        paper = next((each for each in papers.page() if each.id == words[1]), None)
        return Finished(
            id=path.parent.name,
            paper=words[1],
            arxiv=paper.arxiv if paper else "",
            title=line(paper.title if paper else found.title),
            command=line(shlex.join(["broadsheet", *words])),
            answer=line(str(TrialAnswer(found))),
            verdict=found.verdict,
            at=_moment(told.get("provenance", {}).get("date"), path),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _moment(told: Any, path: Path) -> str:
    """When it was measured, as it says; else when it was written."""
    try:
        when = datetime.fromisoformat(told)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
    except (TypeError, ValueError):
        when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"

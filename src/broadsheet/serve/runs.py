"""Runs: trials that are started, watched, stopped and gone on with in a browser.

Knows: jobs, what a form may ask for (`offers`), how a run is told while it lasts. Does not know: trials.
While a run lasts values are shown and no verdict: one that is looked at again and again will once be there by chance.
The live part of a screen is made here and sent whole, as server-sent events; without script the screen loads itself
anew.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broadsheet.console import InputError, duration
from broadsheet.page import papers
from broadsheet.serve.jobs import Job, Jobs
from broadsheet.serve.offers import fields

LOOK = 0.5  # seconds between two looks at a run
BEAT = 15.0  # seconds after which an open connection is told that it is
TOLD = {
    "waiting": "waits for its turn",
    "running": "runs",
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
    "interrupted": "interrupted",
}


@dataclass(frozen=True)
class Line:
    """An arm while the run lasts: its value in each metric so far, as text."""

    name: str
    role: str
    values: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True)
class TrialRun:
    """A run as its screen shows it.

    Attributes:
        state: see `TOLD`; "interrupted" where neither its end nor a stop was told.
        step: what it does, with how far it is, in words.
        done: the share that is done; None: not known.
        left: about how long it takes still, in words.
        answer: what it found, once it is done.
        last: the number of the last event.
    """

    id: str
    paper: str
    title: str
    command: str
    state: str
    step: str = ""
    done: float | None = None
    left: str = ""
    items: int = 0
    metrics: tuple[str, ...] = ()
    arms: tuple[Line, ...] = ()
    said: tuple[str, ...] = ()
    answer: str = ""
    verdict: str = ""
    ahead: int = 0
    last: int = 0

    @property
    def url(self) -> str:
        return f"/runs/{self.id}"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state not in ("waiting", "running")

    @property
    def told(self) -> str:
        """Its state in words."""
        if self.state == "waiting" and self.ahead:
            return f"waits for {self.ahead} other{'s' * (self.ahead > 1)}"
        return TOLD[self.state]


@dataclass
class Follower:
    """What has happened in a run, read on from where it was read to."""

    jobs: Jobs
    id: str
    events: list[dict[str, Any]] = field(default_factory=list)
    offset: int = 0

    def look(self) -> int:
        """Read on; returns how many events there are."""
        found, self.offset = self.jobs.events(self.id, self.offset)
        self.events += found
        return self.events[-1]["n"] if self.events else 0


def run_of(jobs: Jobs, job: Job, events: Sequence[Mapping[str, Any]]) -> TrialRun:
    """A run as it is now."""
    paper = job.command[1]
    title = next((each.title for each in papers.page() if each.id == paper), paper)
    state = str(job.state)
    if state in ("stopped", "failed") and not (events and events[-1]["event"] == "ended"):
        state = "interrupted" if events else state
    block = next((each for each in reversed(events) if each["event"] == "block"), None)
    step = next((each for each in reversed(events) if each["event"] in ("progress", "block", "said")), None)
    metrics = tuple(dict.fromkeys(name for arm in (block or {}).get("arms", ()) for name in arm["values"]))
    lines = tuple(
        Line(arm["name"], arm["role"], tuple(_value(arm["values"].get(name)) for name in metrics), arm["error"])
        for arm in (block or {}).get("arms", ())
    )
    answer = verdict = ""
    if state == "done":
        answer, verdict = _answer(jobs, job)
    return TrialRun(
        id=job.id,
        paper=paper,
        title=title,
        command=shlex.join(["broadsheet", *job.command]),
        state=state,
        step=_step(step) if state == "running" else "",
        done=_share(step) if state == "running" else None,
        left=duration(block["left"]) if state == "running" and block and block.get("left") else "",
        items=(block or {}).get("items", 0),
        metrics=metrics,
        arms=lines,
        said=tuple(jobs.lines(job.id)),
        answer=answer,
        verdict=verdict,
        ahead=sum(each.state in ("waiting", "running") for each in jobs) - 1 if state == "waiting" else 0,
        last=events[-1]["n"] if events else 0,
    )


def all_runs(jobs: Jobs) -> list[TrialRun]:
    """All runs, the last begun or changed first."""

    def changed(job: Job) -> float:
        return (jobs.folder / job.id / "job.json").stat().st_mtime

    return [run_of(jobs, job, jobs.events(job.id)[0]) for job in sorted(jobs, key=changed, reverse=True)]


async def live(
    jobs: Jobs, name: str, render: Callable[[TrialRun], str], closing: Callable[[], bool], after: int = -1
) -> AsyncIterator[bytes]:
    """The live part of a run's screen as server-sent events, whenever it changes, until the run or the server ends.

    Args:
        after: the number of the event that the reader has seen last; -1: it has seen nothing.
    """
    follower, loop = Follower(jobs, name), asyncio.get_running_loop()
    shown: str | None = None
    beat = loop.time()
    while not closing():
        last = await asyncio.to_thread(follower.look)
        run = await asyncio.to_thread(lambda: run_of(jobs, jobs.get(name), follower.events))
        text = render(run)
        if shown is None and last == after and not run.ended:
            shown = text  # the reader has it
        if text != shown:
            shown, beat = text, loop.time()
            yield f"id: {last}\nevent: run\ndata: {json.dumps({'html': text, 'ended': run.ended})}\n\n".encode()
        if run.ended:
            return
        if loop.time() - beat > BEAT:
            beat = loop.time()
            yield b": still here\n\n"
        await asyncio.sleep(LOOK)


def tryable(paper: str) -> bool:
    """Whether a paper has a trial."""
    try:
        papers.get_trial(paper)
    except InputError:
        return False
    return True


def form_of(paper: str) -> list[Any]:
    """The options that a paper's form offers."""
    return fields(papers.get_trial(paper)[0])


def _answer(jobs: Jobs, job: Job) -> tuple[str, str]:
    from broadsheet.report.answer import TrialAnswer
    from broadsheet.trial.results import TrialResult

    try:
        result = TrialResult.from_dict(jobs.result(job.id))
    except (InputError, KeyError, TypeError, ValueError):
        return "", ""
    return str(TrialAnswer(result)), result.verdict


def _step(event: Mapping[str, Any] | None) -> str:
    if event is None:
        return "begins"
    if event["event"] == "said":
        return str(event["text"])
    what = event.get("what", "running the arms")
    of = event.get("of")
    return f"{what}: {event['done']:,.0f}" + (f" of {of:,.0f}" if of else "")


def _share(event: Mapping[str, Any] | None) -> float | None:
    if event is None or not event.get("of"):
        return None
    return min(1.0, max(0.0, event["done"] / event["of"]))


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"

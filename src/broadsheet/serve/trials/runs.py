"""Runs: trials that are started, watched, stopped and gone on with in a browser.

Knows: jobs, what a form may ask for (`offers`), how a run is told while it lasts. Does not know: trials.
While a run lasts values are shown and no verdict: one that is looked at again and again will once be there by chance.
The live part of a screen is made here and sent whole, as server-sent events. A browser has six connections to a
server, over all its tabs: so few streams are held, and who finds no seat is told what is new and asks again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import shlex
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from broadsheet.console import InputError, duration
from broadsheet.page import papers
from broadsheet.serve.trials.jobs import Job, Jobs

LOOK = 0.5  # seconds between two looks at a run
BEAT = 15.0  # seconds after which an open connection is told that it is
SEATS = 4  # streams that a server holds, of the six connections that a browser has to it
AGAIN = 2000  # milliseconds after which a browser asks again whose stream has ended
TOLD = {
    "waiting": "waits for its turn",
    "running": "runs",
    "stopping": "is being stopped",
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
        state: see `TOLD`; "stopping" while its process takes its time to end, "interrupted" where neither its end nor
            a stop was told.
        why: it has failed.
        step: what it does, with how far it is, in words.
        done: the share that is done; None: not known.
        left: about how long it takes still, in words.
        answer: what it found, once it is done.
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
    why: str = ""

    @property
    def url(self) -> str:
        return f"/runs/{self.id}"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state not in ("waiting", "running", "stopping")

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

    def look(self) -> TrialRun:
        """Read on; returns the run as it is now."""
        job = self.jobs.get(self.id)
        found, self.offset = self.jobs.events(self.id, self.offset)
        self.events += found
        return run_of(self.jobs, job, self.events)


class Seats:
    """Streams that may be held at once."""

    def __init__(self, count: int = SEATS) -> None:
        self.left = count

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Whether there was one left, which is held until the block ends."""
        held = self.left > 0
        self.left -= held
        try:
            yield held
        finally:
            self.left += held


def run_of(jobs: Jobs, job: Job, events: Sequence[Mapping[str, Any]]) -> TrialRun:
    """A run as it is now."""
    paper = job.command[1]
    title = next((each.title for each in papers.page() if each.id == paper), paper)
    state, end = str(job.state), events[-1] if events and events[-1]["event"] == "ended" else None
    if state == "stopped" and job.lives:
        state = "stopping"
    elif state in ("stopped", "failed") and events and not end:
        state = "interrupted"
    block = next((each for each in reversed(events) if each["event"] == "block"), None)
    ends = [i for i, each in enumerate(events) if each["event"] == "ended"]
    now = events[ends[-1] + 1 :] if ends else events  # since it has gone on
    step = next((each for each in reversed(now) if each["event"] in ("progress", "block", "said")), None)
    far = next((each for each in reversed(now) if each["event"] in ("progress", "block")), None)
    if step and step["event"] == "said" and not (far and step["text"].startswith(far.get("what", "\0"))):
        far = None  # another step has begun, of which it is not known how far it is
    arms = (block or {}).get("arms", ())
    metrics = tuple(dict.fromkeys(name for arm in arms for name in arm["values"]))
    columns = [_column([arm["values"].get(name) for arm in arms]) for name in metrics]
    lines = tuple(
        Line(arm["name"], arm["role"], tuple(column[i] for column in columns), arm["error"])
        for i, arm in enumerate(arms)
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
        done=_share(far) if state == "running" else None,
        left=duration(step["left"]) if state == "running" and step and step.get("left") else "",
        items=(block or {}).get("items", 0),
        metrics=metrics,
        arms=lines,
        said=tuple(jobs.lines(job.id)),
        answer=answer,
        verdict=verdict,
        ahead=sum(each.state in ("waiting", "running") for each in jobs) - 1 if state == "waiting" else 0,
        why=str(end.get("why", "")) if state == "failed" and end else "",
    )


def all_runs(jobs: Jobs) -> list[TrialRun]:
    """All runs, the last begun or changed first."""

    def changed(job: Job) -> float:
        return (jobs.folder / job.id / "job.json").stat().st_mtime

    return [run_of(jobs, job, jobs.events(job.id)[0]) for job in sorted(jobs, key=changed, reverse=True)]


async def live(
    jobs: Jobs,
    name: str,
    render: Callable[[TrialRun], str],
    closing: Callable[[], bool],
    seats: Seats,
    seen: str = "",
) -> AsyncIterator[bytes]:
    """The live part of a run's screen as server-sent events, whenever it changes, until the run or the server ends.

    Args:
        seats: where none is left, it ends after what is new, and the browser asks again.
        seen: the `mark` of what the reader has; it is not sent again.
    """
    follower, loop = Follower(jobs, name), asyncio.get_running_loop()
    with seats.taken() as held:
        yield f"retry: {AGAIN}\n\n".encode()
        beat = loop.time()
        while not closing():
            run = await asyncio.to_thread(follower.look)
            text = render(run)
            if mark(text) != seen or run.ended:
                seen, beat = mark(text), loop.time()
                yield f"id: {seen}\nevent: run\ndata: {json.dumps({'html': text, 'ended': run.ended})}\n\n".encode()
            if run.ended or not held:
                return
            if loop.time() - beat > BEAT:
                beat = loop.time()
                yield b": still here\n\n"
            await asyncio.sleep(LOOK)


def mark(text: str) -> str:
    """16 hex digits by which a reader says what it has seen."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


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


def _column(values: Sequence[float | None]) -> list[str]:
    """A metric's values as text, with as many decimals each, so that they can be read down."""
    most = max((abs(value) for value in values if value is not None), default=0.0)
    if 0 < most < 0.01:
        return ["" if value is None else f"{value:.3g}" for value in values]
    decimals = max(0, 3 - max(0, math.floor(math.log10(most)))) if most else 3
    return ["" if value is None else f"{value:,.{decimals}f}" for value in values]

"""Trials as jobs: each a process of its own, one at a time, whose lines and result can be asked for meanwhile.

Knows: processes, folders. Does not know: who asks. What may be tried, and on what, is decided by who starts the server.
What is known of a job stands in its folder, so that servers of one folder see each other's, take turns, and find again
what a server that was killed has left running.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock

from broadsheet.cache import atomic_write
from broadsheet.console import InputError

State = Literal["waiting", "running", "done", "failed", "stopped"]
_LINES = 20  # of what a trial has said, that are told
_POLL = 0.2  # seconds between two looks at what is no child of this process
_AGAIN = 5.0  # seconds after which what was stopped and lives on is told again
_CLOCK = 2.0  # seconds by which the machine's clock may have been set since a process began


@dataclass
class Job:
    """One trial.

    Attributes:
        id: by which it is asked for.
        command: without the program's name.
        state: `failed` and `stopped` ones go on from there when the same is started again.
        process: while it runs, or once it ran here.
    """

    id: str
    command: list[str]
    state: State = "waiting"
    process: psutil.Process | None = field(default=None, repr=False, compare=False)

    @property
    def lives(self) -> bool:
        """Whether its process is there still: one that was stopped takes its time."""
        return self.process is not None and _lives(self.process)


class Jobs:
    """The trials of one server, kept in a folder. Servers of one folder run one trial at a time between them.

    Args:
        folder: a folder of each job's: what it said, its result, its report.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own: dict[str, Job] = {}  # that were started here, or taken over
        self._running: Job | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._server = _mark(psutil.Process())
        folder.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._run, name="trials", daemon=True).start()

    def __iter__(self) -> Iterator[Job]:
        return iter([self.get(path.parent.name) for path in sorted(self.folder.glob("*/job.json"))])

    def start(self, arguments: Sequence[str]) -> Job:
        """Queue `broadsheet try …`; one of the same words that waits or runs is that job.

        Args:
            arguments: after `try`.
        """
        command = ["try", *arguments]
        with self._changed:
            for job in self:
                if job.command == command and job.state in ("waiting", "running"):
                    return job
            job = Job(secrets.token_hex(6), command)
            self._own[job.id] = job
            self._keep(job, "waiting")
            self._changed.notify()
        return job

    def get(self, name: str) -> Job:
        """The job of that id.

        Raises:
            InputError: there is none.
        """
        path = self.folder / name / "job.json"
        if name not in {each.name for each in self.folder.iterdir()} or not path.is_file():
            raise InputError(f"there is no job {name!r}")
        with self._changed:
            kept = json.loads(path.read_text("utf-8"))
            job = self._own.get(name)
            if job is None:
                job = Job(name, kept["command"], process=_found(kept.get("process")))
                if kept["state"] in ("waiting", "running") and not _found(kept.get("server")):
                    kept["state"] = self._left(kept["state"], job)
            job.state = kept["state"]  # another server may have stopped it
        return job

    def stop(self, name: str) -> Job:
        """Stop it as Ctrl-C does: what it has measured is kept, and the same trial goes on from there."""
        with self._changed:
            job = self.get(name)
            runs = job.state == "running" and job.lives
            if runs or job.state == "waiting":
                self._keep(job, "stopped")
            if runs:
                _interrupt(job)
        return job

    def resume(self, name: str) -> Job:
        """Go on with one that was stopped or has failed, from what it has measured.

        Raises:
            InputError: it waits, runs, or is done.
        """
        with self._changed:
            job = self.get(name)
            if job.state not in ("stopped", "failed"):
                raise InputError(f"job {name} is {job.state}; one that was stopped or has failed goes on")
            job.process = None
            self._own[job.id] = job
            self._keep(job, "waiting")
            self._changed.notify()
        return job

    def report(self, name: str) -> Path:
        """The page of what it found.

        Raises:
            InputError: it is not done.
        """
        found = self.folder / name / f"{self.result(name).get('paper')}.html"  # beside it lies a list of trials
        if not found.is_file():
            raise InputError(f"job {name} has left no report; run it again")
        return found

    def events(self, name: str, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """What has happened in it from a place in its file on (see `broadsheet.events`), and the place after that."""
        path = self.folder / self.get(name).id / "events.jsonl"
        if not path.exists():
            return [], 0
        with path.open("rb") as file:
            file.seek(offset)
            read = file.read()
        whole = read[: read.rfind(b"\n") + 1]  # the last may be half a line
        return [json.loads(line) for line in whole.splitlines()], offset + len(whole)

    def lines(self, name: str) -> list[str]:
        """What it said last."""
        path = self.folder / self.get(name).id / "log"
        return path.read_text("utf-8", "replace").splitlines()[-_LINES:] if path.exists() else []

    def result(self, name: str) -> dict[str, Any]:
        """What it found, as its report has it.

        Raises:
            InputError: it is not done.
        """
        job = self.get(name)
        if job.state != "done":
            raise InputError(f"job {name} is {job.state}; a result is there once it is done")
        found: dict[str, Any] = json.loads((self.folder / job.id / "result.json").read_text("utf-8"))
        return found

    def close(self) -> None:
        """Stop what runs here, and start nothing more."""
        with self._changed:
            self._closed = True
            for job in self._own.values():
                if job is self._running or job.state == "waiting":
                    self.stop(job.id)
            self._changed.notify()

    def _keep(self, job: Job, state: State) -> None:
        """Put a job into a state; it is in its folder first, where others look."""
        told = {"id": job.id, "command": job.command, "state": state, "server": self._server}
        with atomic_write(self.folder / job.id / "job.json") as file:
            json.dump(told | ({"process": _mark(job.process)} if job.process else {}), file)
        job.state = state

    def _left(self, state: State, job: Job) -> State:
        """The state of a job whose server has ended before it."""
        if state == "running" and job.process:
            return "running"
        return "done" if state == "running" and self._whole(job) else "stopped"

    def _whole(self, job: Job) -> bool:
        try:
            return bool(json.loads((self.folder / job.id / "result.json").read_text("utf-8")))
        except (OSError, ValueError):
            return False

    def _run(self) -> None:
        while not self._closed:
            with FileLock(self.folder / "turn.lock").acquire(poll_interval=_POLL):
                for job in self._taken_over():
                    self._watch(job)
                if began := self._begun():
                    self._watch(began)
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next())

    def _next(self) -> Job | None:
        return next((job for job in self._own.values() if job.state == "waiting"), None)

    def _taken_over(self) -> list[Job]:
        """Those whose process lives and whose server does not: while the turn is ours, nobody else watches any."""
        with self._changed:
            left = [job for job in self if job.process and job.id not in self._own]
            for job in left:
                self._own[job.id] = job
                self._keep(job, job.state)
        return left

    def _begun(self) -> Job | None:
        """The next job, whose process has begun."""
        with self._changed:
            job = self._next()
            if self._closed or job is None or self.get(job.id).state != "waiting":
                return None
            folder = self.folder / job.id
            with (folder / "log").open("ab") as log, (folder / "result.json").open("wb") as result:
                words = [sys.executable, "-m", "broadsheet", *job.command, "--json", "--out", str(folder)]
                words += ["--events", str(folder / "events.jsonl")]
                job.process = psutil.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=result, stderr=log, start_new_session=True
                )
            self._keep(job, "running")
            self._running = job  # from here on it is this server's to stop
        return job

    def _watch(self, job: Job) -> None:
        """Wait for the end of its process, and keep what came of it."""
        assert job.process is not None
        with self._changed:
            self._running = job
        status = _end(job)
        with self._changed:
            self._running = None
            if self.get(job.id).state == "running":
                self._keep(job, "done" if not status and self._whole(job) else "failed")


def _mark(process: psutil.Process) -> tuple[int, float] | None:
    """What tells a process from a later one of the same id: the id, and when it began."""
    try:
        return process.pid, process.create_time()
    except psutil.Error:
        return None


def _found(mark: Sequence[Any] | None) -> psutil.Process | None:
    """The process of that mark, while it lives."""
    if not mark:
        return None
    try:
        process = psutil.Process(mark[0])
        same = abs(process.create_time() - mark[1]) < _CLOCK
    except psutil.Error:
        return None
    return process if same and _lives(process) else None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _interrupt(job: Job) -> None:
    assert job.process is not None
    with suppress(ProcessLookupError):
        os.killpg(job.process.pid, signal.SIGINT)


def _end(job: Job) -> int | None:
    """Wait for the end of a job's process; its status, or None where it is no child of this one.

    Python passes over an interrupt that comes while it runs a callback, such as an object's `__del__`: one that was
    stopped and lives on is interrupted again.
    """
    process = job.process
    assert process is not None
    told = time.monotonic()
    while _lives(process):
        if isinstance(process, psutil.Popen):
            with suppress(psutil.TimeoutExpired):
                return process.wait(_POLL)
        else:
            time.sleep(_POLL)
        if job.state != "stopped":
            told = time.monotonic()
        elif time.monotonic() - told > _AGAIN:
            _interrupt(job)
            told = time.monotonic()
    return process.wait() if isinstance(process, psutil.Popen) else None

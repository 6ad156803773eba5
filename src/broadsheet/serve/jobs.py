"""Trials as jobs: each a process of its own, one at a time, whose lines and result can be asked for meanwhile.

Knows: processes, folders. Does not know: who asks. What may be tried, and on what, is decided by who starts the server.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from broadsheet.cache import atomic_write
from broadsheet.console import InputError

State = Literal["waiting", "running", "done", "failed", "stopped"]
_LINES = 20  # of what a trial has said, that are told


@dataclass
class Job:
    """One trial.

    Attributes:
        id: by which it is asked for.
        command: without the program's name.
        state: `failed` and `stopped` ones go on from there when the same is started again.
    """

    id: str
    command: list[str]
    state: State = "waiting"
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False, compare=False)


class Jobs:
    """The trials of one server, kept in a folder.

    Args:
        folder: a folder of each job's: what it said, its result, its report.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*/job.json")):
            kept = json.loads(path.read_text("utf-8"))
            unfinished = kept["state"] in ("waiting", "running")  # the server has ended before it
            self._jobs[kept["id"]] = Job(kept["id"], kept["command"], "stopped" if unfinished else kept["state"])
        threading.Thread(target=self._run, name="trials", daemon=True).start()

    def __iter__(self) -> Any:
        return iter(list(self._jobs.values()))

    def start(self, arguments: Sequence[str]) -> Job:
        """Queue `broadsheet try …`; one of the same words that waits or runs is that job.

        Args:
            arguments: after `try`.
        """
        command = ["try", *arguments]
        with self._changed:
            for job in self._jobs.values():
                if job.command == command and job.state in ("waiting", "running"):
                    return job
            job = Job(secrets.token_hex(6), command)
            self._jobs[job.id] = job
            self._keep(job)
            self._changed.notify()
        return job

    def get(self, name: str) -> Job:
        """The job of that id.

        Raises:
            InputError: there is none.
        """
        if name not in self._jobs:
            raise InputError(f"there is no job {name!r}")
        return self._jobs[name]

    def stop(self, name: str) -> Job:
        """Stop it as Ctrl-C does: what it has measured is kept, and the same trial goes on from there."""
        job = self.get(name)
        with self._changed:
            if job.process is not None and job.state == "running":
                job.state = "stopped"
                os.killpg(job.process.pid, signal.SIGINT)
            elif job.state == "waiting":
                job.state = "stopped"
            self._keep(job)
        return job

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
        """Stop what runs."""
        for job in self:
            if job.state in ("waiting", "running"):
                self.stop(job.id)

    def _keep(self, job: Job) -> None:
        folder = self.folder / job.id
        folder.mkdir(exist_ok=True)
        with atomic_write(folder / "job.json") as file:
            json.dump({"id": job.id, "command": job.command, "state": job.state}, file)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (waiting := [job for job in self._jobs.values() if job.state == "waiting"]):
                    self._changed.wait()
                job, folder = waiting[0], self.folder / waiting[0].id
                with (folder / "log").open("wb") as log, (folder / "result.json").open("wb") as result:
                    words = [sys.executable, "-m", "broadsheet", *job.command, "--json", "--out", str(folder)]
                    job.process = subprocess.Popen(
                        words, stdin=subprocess.DEVNULL, stdout=result, stderr=log, start_new_session=True
                    )
                job.state = "running"
                self._keep(job)
            status = job.process.wait()
            with self._changed:
                if job.state == "running":
                    job.state = "failed" if status else "done"
                self._keep(job)

"""Trials as jobs: one at a time, watched, stopped, kept over the server's end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broadsheet.console import InputError
from broadsheet.serve import jobs
from broadsheet.serve.jobs import Job, Jobs

PROGRAM = """
import json, pathlib, sys, time
print("begun", file=sys.stderr, flush=True)
while not pathlib.Path({go!r}).exists():
    time.sleep(0.01)
if "fail" in sys.argv:
    sys.exit("broadsheet: no such data")
print(json.dumps({{"argv": sys.argv[1:]}}))
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Jobs, Path]:
    """Jobs whose program ends once a file is there."""
    go = tmp_path / "go"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(go=str(go)))
    real = jobs.subprocess.Popen

    def popen(words: list[str], **settings: object) -> object:
        assert words[1:3] == ["-m", "broadsheet"]
        return real([words[0], str(program), *words[3:]], **settings)  # type: ignore[call-overload]

    monkeypatch.setattr(jobs.subprocess, "Popen", popen)
    return Jobs(tmp_path / "jobs"), go


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_one_runs_and_others_wait_their_turn(made: tuple[Jobs, Path]) -> None:
    all_jobs, go = made
    first, second = all_jobs.start(["lastde", "--quick"]), all_jobs.start(["gem"])
    assert all_jobs.start(["lastde", "--quick"]) is first, "the same is not started twice"
    wait(lambda: all_jobs.lines(first.id) == ["begun"])
    assert (first.state, second.state) == ("running", "waiting")
    with pytest.raises(InputError, match="is running"):
        all_jobs.result(first.id)
    go.touch()
    wait(lambda: second.state == "done")
    assert first.state == "done"
    words = all_jobs.result(first.id)["argv"]
    assert words[:3] == ["try", "lastde", "--quick"]
    assert words[3:] == ["--json", "--out", str(all_jobs.folder / first.id)]


def test_one_that_fails_says_why(made: tuple[Jobs, Path]) -> None:
    all_jobs, go = made
    go.touch()
    job = all_jobs.start(["lastde", "fail"])
    wait(lambda: job.state == "failed")
    assert all_jobs.lines(job.id)[-1] == "broadsheet: no such data"


def test_one_can_be_stopped_whether_it_runs_or_waits(made: tuple[Jobs, Path]) -> None:
    all_jobs, _ = made
    first, second = all_jobs.start(["lastde"]), all_jobs.start(["gem"])
    wait(lambda: all_jobs.lines(first.id) == ["begun"])
    all_jobs.stop(second.id)
    all_jobs.stop(first.id)
    assert first.process is not None
    assert first.process.wait(20) != 0
    wait(lambda: not [job for job in all_jobs if job.state in ("waiting", "running")])
    assert {job.state for job in all_jobs} == {"stopped"}
    assert second.process is None


def test_what_ran_when_the_server_ended_is_told_as_stopped(made: tuple[Jobs, Path]) -> None:
    all_jobs, go = made
    go.touch()
    done = all_jobs.start(["lastde"])
    wait(lambda: done.state == "done")
    (all_jobs.folder / "x").mkdir()
    (all_jobs.folder / "x" / "job.json").write_text(
        json.dumps({"id": "x", "command": ["try", "gem"], "state": "running"})
    )
    again = {job.id: job.state for job in Jobs(all_jobs.folder)}
    assert again == {done.id: "done", "x": "stopped"}


def test_a_job_that_is_not_there_is_one_line(made: tuple[Jobs, Path]) -> None:
    for ask in (made[0].get, made[0].lines, made[0].result, made[0].stop):
        with pytest.raises(InputError, match="no job 'nothing'"):
            ask("nothing")
    assert isinstance(made[0].start(["a"]), Job)

"""Trials as jobs: one at a time, watched, stopped, kept over the server's end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import stub_trials
from filelock import FileLock, Timeout
from stub_trials import stubbed, wait

from broadsheet.console import InputError
from broadsheet.serve.trials import jobs
from broadsheet.serve.trials.jobs import Job, Jobs

MISSES_ONE = """
import sys, time
print("begun", file=sys.stderr, flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("missed", file=sys.stderr, flush=True)
time.sleep(60)
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Jobs, Path]]:
    """Jobs whose program ends once a file is there."""
    popen, go = stubbed(tmp_path)
    monkeypatch.setattr(jobs.subprocess, "Popen", popen)
    made = Jobs(tmp_path / "jobs")
    yield made, go
    made.close()


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
    folder = all_jobs.folder / first.id
    assert words[3:] == ["--json", "--out", str(folder), "--events", str(folder / "events.jsonl")]


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


def test_one_that_has_missed_the_interrupt_is_interrupted_again(
    made: tuple[Jobs, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_jobs, _ = made
    monkeypatch.setattr(jobs, "_AGAIN", 0.3)
    (tmp_path / "program.py").write_text(MISSES_ONE)
    job = all_jobs.start(["lastde"])
    wait(lambda: all_jobs.lines(job.id) == ["begun"])
    all_jobs.stop(job.id)
    wait(lambda: not job.lives)
    assert all_jobs.lines(job.id)[1] == "missed"
    assert all_jobs.get(job.id).state == "stopped"


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


# After a server that was killed


@pytest.fixture
def orphan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, psutil.Process, Path]]:
    """A trial whose server was killed while it ran: its id, its process, and the file at which it ends."""
    server = subprocess.Popen(
        [sys.executable, stub_trials.__file__, str(tmp_path), "lastde"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    with server:
        name = server.stdout.readline().strip()
        kept, log = tmp_path / "jobs" / name / "job.json", tmp_path / "jobs" / name / "log"
        wait(lambda: log.exists() and "begun" in log.read_text() and "process" in json.loads(kept.read_text()))
        server.kill()
    process = psutil.Process(json.loads(kept.read_text())["process"][0])
    popen, go = stubbed(tmp_path)
    monkeypatch.setattr(jobs.subprocess, "Popen", popen)
    yield name, process, go
    if ended(process):
        return
    process.kill()


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_trial_outlives_its_server_and_others_wait_for_it(
    orphan: tuple[str, psutil.Process, Path], tmp_path: Path
) -> None:
    name, process, go = orphan
    again = Jobs(tmp_path / "jobs")
    assert not ended(process)
    assert again.get(name).state == "running"
    assert again.start(["lastde"]).id == name, "the same is not started twice"
    other = again.start(["gem"])
    wait(lambda: again._running is not None)
    assert again._running.id == name
    assert other.state == "waiting"
    go.touch()
    wait(lambda: other.state == "done")
    assert again.get(name).state == "done"
    assert again.result(name)["argv"][:2] == ["try", "lastde"]


def test_it_is_stopped_as_any_other(orphan: tuple[str, psutil.Process, Path], tmp_path: Path) -> None:
    name, process, _ = orphan
    again = Jobs(tmp_path / "jobs")
    assert again.stop(name).state == "stopped"
    wait(lambda: ended(process))
    assert "KeyboardInterrupt" in again.lines(name)[-1], "as Ctrl-C stops it"
    other = again.start(["gem"])
    wait(lambda: other.state == "running")
    assert Jobs(tmp_path / "jobs").get(name).state == "stopped"
    again.close()


def test_closing_stops_it_too(orphan: tuple[str, psutil.Process, Path], tmp_path: Path) -> None:
    name, process, _ = orphan
    again = Jobs(tmp_path / "jobs")
    wait(lambda: again._running is not None)
    again.close()
    wait(lambda: ended(process))
    assert Jobs(tmp_path / "jobs").get(name).state == "stopped"


def test_one_that_dies_without_a_whole_result_has_failed(
    orphan: tuple[str, psutil.Process, Path], tmp_path: Path
) -> None:
    name, process, _ = orphan
    again = Jobs(tmp_path / "jobs")
    wait(lambda: again._running is not None)
    (tmp_path / "jobs" / name / "result.json").write_text('{"argv": [')
    process.kill()
    wait(lambda: again.get(name).state == "failed")


def test_one_that_has_ended_meanwhile_is_told_by_its_result(
    orphan: tuple[str, psutil.Process, Path], tmp_path: Path
) -> None:
    name, process, go = orphan
    go.touch()
    wait(lambda: ended(process))
    assert Jobs(tmp_path / "jobs").get(name).state == "done"
    (tmp_path / "jobs" / name / "result.json").write_text('{"argv": [')
    assert Jobs(tmp_path / "jobs").get(name).state == "stopped"


def test_a_process_of_the_same_number_that_began_later_is_another(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        folder = tmp_path / "jobs" / "x"
        folder.mkdir(parents=True)
        mark = [other.pid, psutil.Process(other.pid).create_time() - 60]
        kept = {"id": "x", "command": ["try", "gem"], "state": "running", "process": mark}
        (folder / "job.json").write_text(json.dumps(kept))
        again = Jobs(tmp_path / "jobs")
        assert again.get("x").state == "stopped"
        again.stop("x")
        assert other.poll() is None
        with pytest.raises(InputError, match="no job"):
            again.get("../jobs/x")
        other.kill()


# Beside another server


def test_servers_of_one_folder_take_turns_and_see_each_others(made: tuple[Jobs, Path]) -> None:
    first, go = made
    second = Jobs(first.folder)
    job = first.start(["lastde"])
    wait(lambda: first.lines(job.id) == ["begun"])
    assert second.get(job.id).state == "running"
    assert second.start(["lastde"]).id == job.id
    with pytest.raises(Timeout):
        FileLock(first.folder / "turn.lock").acquire(timeout=0)
    waits = second.start(["gem"])
    assert first.get(waits.id).state == "waiting"
    second.close()
    assert (waits.state, job.state) == ("stopped", "running"), "it stops its own alone"
    third = Jobs(first.folder)
    last = third.start(["gem"])
    go.touch()
    wait(lambda: last.state == "done")
    assert job.state == "done", "the first had ended before"


def test_what_another_server_stops_is_stopped(made: tuple[Jobs, Path]) -> None:
    first, _ = made
    runs, waits = first.start(["lastde"]), first.start(["gem"])
    wait(lambda: first.lines(runs.id) == ["begun"])
    second = Jobs(first.folder)
    second.stop(waits.id)
    second.stop(runs.id)
    wait(lambda: first._running is None)
    assert (first.get(runs.id).state, first.get(waits.id).state) == ("stopped", "stopped")
    assert waits.process is None


def test_one_that_has_just_begun_is_stopped_at_the_end_too(
    made: tuple[Jobs, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    all_jobs, _ = made
    began = threading.Event()
    monkeypatch.setattr(all_jobs, "_watch", lambda job: began.set())  # it never comes to watch it
    job = all_jobs.start(["lastde"])
    assert began.wait(20)
    all_jobs.close()
    assert job.process is not None
    assert job.process.wait(20) != 0

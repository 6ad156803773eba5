"""Runs as they are shown: what has happened so far, no verdict before the end, and events that are read on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_trials import stubbed, wait

from broadsheet.page import evidence
from broadsheet.page.papers import get
from broadsheet.report.answer import TrialAnswer
from broadsheet.serve.trials import jobs as jobs_module
from broadsheet.serve.trials import runs
from broadsheet.serve.trials.jobs import Job, Jobs
from broadsheet.trial.results import TrialResult

ARMS = [
    {"name": "plain", "role": "baseline", "values": {"AUROC": 0.5, "texts/s": 12_345.0}, "error": ""},
    {"name": "ours", "role": "method", "values": {"AUROC": 0.75, "texts/s": None}, "error": ""},
    {"name": "weak", "role": "sibling", "values": {}, "error": "in block 2: no"},
]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Jobs, Path]]:
    popen, go = stubbed(tmp_path)
    monkeypatch.setattr(jobs_module.subprocess, "Popen", popen)
    made = Jobs(tmp_path / "jobs")
    yield made, go
    made.close()


def tell(jobs: Jobs, job: Job, *lines: dict[str, Any]) -> None:
    path = jobs.folder / job.id / "events.jsonl"
    n = path.read_bytes().count(b"\n") if path.exists() else 0
    with path.open("ab") as file:
        for i, line in enumerate(lines, n + 1):
            file.write(json.dumps({"n": i, "at": 0, **line}).encode() + b"\n")


def shown(jobs: Jobs, job: Job) -> runs.TrialRun:
    return runs.run_of(jobs, jobs.get(job.id), jobs.events(job.id)[0])


def test_a_run_is_shown_with_values_so_far_and_without_a_verdict(made):
    jobs, go = made
    job, other = jobs.start(["lastde", "--quick"]), jobs.start(["gem"])
    wait(lambda: jobs.get(job.id).state == "running")
    assert (shown(jobs, other).told, shown(jobs, other).ahead) == ("waits for 1 other", 1)
    tell(jobs, job, {"event": "said", "text": "8 pairs"})
    assert (shown(jobs, job).step, shown(jobs, job).done) == ("8 pairs", None)
    tell(jobs, job, {"event": "progress", "what": "reading", "done": 1, "of": 4})
    tell(jobs, job, {"event": "said", "text": "reading: 1 of 4, about 30 s left"})
    assert (shown(jobs, job).step, shown(jobs, job).done) == ("reading: 1 of 4, about 30 s left", 0.25)
    tell(jobs, job, {"event": "said", "text": "training"})
    assert (shown(jobs, job).step, shown(jobs, job).done) == ("training", None)
    tell(jobs, job, {"event": "block", "done": 2, "of": 8, "items": 16, "piloting": False, "left": 90.0, "arms": ARMS})
    run = shown(jobs, job)
    assert (run.step, run.done, run.left, run.items) == ("running the arms: 2 of 8", 0.25, "90 s", 16)
    assert run.metrics == ("AUROC", "texts/s")
    assert [(line.name, line.values) for line in run.arms[:2]] == [
        ("plain", ("0.500", "12,345")),
        ("ours", ("0.750", "")),
    ]
    assert run.arms[2].error == "in block 2: no"
    assert run.verdict == run.answer == ""
    assert run.command == "broadsheet try lastde --quick"
    assert run.title.startswith("Training-free")
    go.touch()


def test_what_was_found_is_told_at_the_end(made):
    jobs, go = made
    job = jobs.start(["lastde"])
    wait(lambda: jobs.get(job.id).state == "running")
    go.touch()
    wait(lambda: jobs.get(job.id).state == "done")
    recorded = evidence.read("lastde")
    (jobs.folder / job.id / "result.json").write_text(json.dumps(recorded))
    run = shown(jobs, job)
    assert run.ended
    assert run.answer == str(TrialAnswer(TrialResult.from_dict(recorded)))
    assert run.verdict == get("lastde").verdict


def test_one_whose_end_nobody_told_is_interrupted_and_goes_on(made):
    jobs, go = made
    job = jobs.start(["lastde"])
    wait(lambda: jobs.get(job.id).state == "running")
    wait(lambda: jobs.lines(job.id) == ["begun"])
    tell(jobs, job, {"event": "said", "text": "begun"})
    job.process.kill()
    wait(lambda: jobs.get(job.id).state == "failed")
    assert shown(jobs, job).told == "interrupted"
    go.touch()
    jobs.resume(job.id)
    wait(lambda: jobs.get(job.id).state == "done")
    assert len(jobs.lines(job.id)) == 2, "its log goes on"
    tell(jobs, job, {"event": "ended", "how": "done"})
    assert shown(jobs, job).state == "done"
    stopped = jobs.start(["gem"])
    wait(lambda: jobs.get(stopped.id).state == "done")
    with pytest.raises(ValueError, match="is done"):
        jobs.resume(stopped.id)


def test_events_are_read_on_and_half_a_line_is_left(made):
    jobs, go = made
    job = jobs.start(["lastde"])
    wait(lambda: jobs.get(job.id).state == "running")
    tell(jobs, job, {"event": "said", "text": "one"})
    found, offset = jobs.events(job.id)
    assert [each["text"] for each in found] == ["one"]
    with (jobs.folder / job.id / "events.jsonl").open("ab") as file:
        file.write(b'{"n": 2, "event": "said", "te')
    assert jobs.events(job.id, offset) == ([], offset)
    go.touch()


def test_the_live_part_is_sent_when_it_changes_and_ends_with_the_run_or_the_server(made, monkeypatch):
    monkeypatch.setattr(runs, "LOOK", 0.01)
    jobs, go = made
    job = jobs.start(["lastde"])
    wait(lambda: jobs.get(job.id).state == "running")
    tell(jobs, job, {"event": "said", "text": "one"})

    def render(run: runs.TrialRun) -> str:
        return f"{run.state} {run.step}"

    async def listened() -> list[dict[str, Any]]:
        got = []
        async for part in runs.live(jobs, job.id, render, lambda: False, seats):
            lines = dict(line.split(": ", 1) for line in part.decode().splitlines() if ": " in line)
            if "data" not in lines:
                continue
            assert seats.left == 3
            got.append({"id": lines["id"], **json.loads(lines["data"])})
            if len(got) == 1:
                await asyncio.sleep(0.1)  # nothing new: nothing is sent
                tell(jobs, job, {"event": "said", "text": "two"})
            if len(got) == 2:
                go.touch()
        return got

    seats = runs.Seats(4)
    got = asyncio.run(listened())
    assert [(each["html"], each["ended"]) for each in got] == [
        ("running one", False), ("running two", False), ("done ", True),
    ]  # fmt: skip
    assert seats.left == 4

    async def resumed(seen: str, closing: bool) -> list[bytes]:
        return [part async for part in runs.live(jobs, job.id, render, lambda: closing, seats, seen)][1:]

    assert len(asyncio.run(resumed(got[-1]["id"], False))) == 1, "the end is told also to who has seen all"
    assert asyncio.run(resumed("", True)) == []


def test_who_finds_no_seat_is_told_what_is_new_and_asks_again(made):
    jobs, go = made
    job, seats = jobs.start(["lastde"]), runs.Seats(0)
    wait(lambda: jobs.get(job.id).state == "running")

    async def asked(seen: str) -> list[str]:
        parts = runs.live(jobs, job.id, lambda run: f"{run.state} {run.step}", lambda: False, seats, seen)
        return [part.decode() async for part in parts]

    first, told = asyncio.run(asked(""))
    assert first == "retry: 2000\n\n"
    seen = told.split()[1]
    assert json.loads(told.splitlines()[2].removeprefix("data: ")) == {"html": "running begins", "ended": False}
    assert asyncio.run(asked(seen)) == [first], "nothing is new"
    tell(jobs, job, {"event": "said", "text": "one"})
    assert "running one" in asyncio.run(asked(seen))[1]
    go.touch()
    assert seats.left == 0


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.5, 0.0371, None], ["0.500", "0.037", ""]), ([12.345, 7.0], ["12.35", "7.00"]),
        ([12345.6, 0.2], ["12,346", "0"]), ([0.0004, -0.00123], ["0.0004", "-0.00123"]), ([0.0, None], ["0.000", ""]),
        ([None], [""]), ([-103.25, 9.99], ["-103.2", "10.0"]),
    ],
)  # fmt: skip
def test_values_of_a_metric_have_as_many_decimals(values, shown):
    assert runs._column(values) == shown


def test_one_that_goes_on_keeps_its_values_and_begins_anew(made):
    jobs, go = made
    job = jobs.start(["lastde"])
    wait(lambda: jobs.lines(job.id) == ["begun"])
    tell(jobs, job, {"event": "block", "done": 2, "of": 8, "items": 16, "piloting": False, "left": 90.0, "arms": ARMS})
    tell(jobs, job, {"event": "said", "text": "stopped"}, {"event": "ended", "how": "stopped"})
    jobs.stop(job.id)
    wait(lambda: not job.lives)
    assert shown(jobs, job).told == "stopped"
    jobs.resume(job.id)
    wait(lambda: jobs.get(job.id).state == "running")
    run = shown(jobs, job)
    assert (run.step, run.done, run.left) == ("begins", None, "")
    assert run.arms[0].values == ("0.500", "12,345")
    tell(jobs, job, {"event": "said", "text": "8 pairs"})
    assert shown(jobs, job).step == "8 pairs"
    go.touch()

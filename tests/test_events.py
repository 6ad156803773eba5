"""What a run tells to a file: lines that can be followed, gone on with, and that never spoil the run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from broadsheet import events
from broadsheet.console import InputError, progress, say
from broadsheet.trial.engine import Arm, Metric, run_arms


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_lines_are_told_with_numbers_and_an_end(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    with events.to(path):
        say("é of a line")
        events.tell("block", value=float("nan"), list=[1, float("inf")])
    assert [(each["n"], each["event"]) for each in told(path)] == [(1, "said"), (2, "block"), (3, "ended")]
    assert told(path)[0]["text"] == "é of a line"
    assert (told(path)[1]["value"], told(path)[1]["list"]) == (None, [1, None])
    assert told(path)[2]["how"] == "done"
    say("nobody follows")
    assert len(told(path)) == 3


def test_a_run_that_goes_on_counts_on_and_half_a_line_is_dropped(tmp_path):
    path = tmp_path / "run.jsonl"
    with events.to(path):
        say("one")
    with path.open("ab") as file:
        file.write(b'{"n": 3, "event": "sa')
    with events.to(path):
        say("two")
    assert [each["n"] for each in told(path)] == [1, 2, 3, 4]
    assert [each.get("text") for each in told(path)] == ["one", None, "two", None]


@pytest.mark.parametrize(
    ("error", "how", "why"),
    [(KeyboardInterrupt(), "stopped", ""), (InputError("no such model"), "failed", "no such model"),
     (RuntimeError("a text"), "failed", "RuntimeError")],
)  # fmt: skip
def test_how_it_ended_is_told(tmp_path, error, how, why):
    with pytest.raises(type(error)), events.to(tmp_path / "run.jsonl"):
        raise error
    [end] = told(tmp_path / "run.jsonl")
    assert (end["how"], end["why"]) == (how, why)


def test_to_nobody_is_nothing(tmp_path):
    with events.to(None):
        assert not events.followed()
        say("x")
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_while_it_lasts_and_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("broadsheet.console._STEP", 0.01)
    path = tmp_path / "run.jsonl"
    with events.to(path), progress("reading", total=4) as bar:
        with progress("within", total=9):
            time.sleep(0.05)
        bar.advance(bar.task_ids[0], 3)
    steps = [each for each in told(path) if each["event"] == "progress"]
    assert {each["what"] for each in steps} == {"reading"}, "the outermost alone"
    assert (steps[0]["done"], steps[-1]["done"], steps[-1]["of"]) == (0, 3, 4)
    assert len(steps) == 2, "once for each state, however long it lasts"


def test_a_trial_tells_what_arms_have_made_and_no_verdict(tmp_path):
    def arm(name: str, gain: float, role: str) -> Arm:
        return Arm(name, lambda block: {"score": [item + gain for item in block]}, role=role)  # type: ignore[arg-type]

    def fails(block: list[float]) -> dict[str, list[float]]:
        if 4.0 in block:
            raise RuntimeError("broken")
        return {"score": list(block)}

    path = tmp_path / "run.jsonl"
    arms = [arm("plain", 0.0, "baseline"), arm("ours", 1.0, "method"), Arm("weak", fails)]
    with events.to(path):
        run_arms(arms, [float(i) for i in range(8)], [Metric("score")], block_size=2)
    blocks = [each for each in told(path) if each["event"] == "block"]
    assert [(each["done"], each["of"], each["items"]) for each in blocks] == [(i, 4, 2 * i) for i in range(5)]
    assert blocks[2]["arms"][0]["values"]["score"] == pytest.approx(1.5)
    assert blocks[2]["arms"][1]["values"]["score"] == pytest.approx(2.5)
    assert (blocks[0]["left"], blocks[-1]["left"]) == (None, 0)
    assert "RuntimeError: broken" in blocks[-1]["arms"][2]["error"]
    assert not {"verdict", "interval", "p_value"} & {key for each in blocks[-1]["arms"] for key in each}


def test_a_disk_that_is_full_ends_the_telling_and_not_the_run(tmp_path, monkeypatch, capsys):
    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(28, "No space left on device")

    with events.to(tmp_path / "run.jsonl"), monkeypatch.context() as patched:
        patched.setattr(events, "_file", Full())
        say("it goes on")
    assert capsys.readouterr().err == "it goes on\n"

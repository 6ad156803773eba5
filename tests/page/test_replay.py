"""Replaying evidence: commands are those that are stored, those that trained first, and none is silently left out."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from broadsheet.console import InputError
from broadsheet.page import evidence, replay, staleness

REAL = replay.steps()


@pytest.mark.parametrize("step", REAL, ids=lambda step: step.name)
def test_each_stored_command_is_read_by_todays_options_or_marked_with_the_reason(step):
    stored = (evidence.read(step.name) or {})["command"]
    if step.problem:
        assert shlex.join(step.commands[-1]) == stored
        assert len(step.problem) > 20
    else:
        assert step.commands[-1][:2] == shlex.split(stored)[:2]
        assert "--record" in step.commands[-1]


def test_every_file_with_a_command_is_there_and_some_can_be_replayed():
    stored = {path.stem for path in evidence.folder().glob("*.json") if "command" in json.loads(path.read_text())}
    assert {step.name for step in REAL} == stored
    lastde = next(step for step in REAL if step.name == "lastde")
    assert lastde.problem == ""
    assert shlex.join(lastde.commands[0]).startswith("broadsheet try lastde --data resource:")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`stored(name, command, **more)` in an evidence folder of its own."""
    folder = tmp_path / "evidence"
    folder.mkdir()
    monkeypatch.setattr(evidence, "folder", lambda: folder)

    def write(name: str, command: str, **more) -> None:
        (folder / f"{name}.json").write_text(json.dumps({"command": command, **more}))

    return write


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("broadsheet try lastde --pairs 20 --record", ""),
        ("broadsheet try lastde --record --pairs 20 --out runs", ""),
        ("broadsheet try lastde --no-such 1 --record", "no option --no-such; expected one of --model, "),
        ("broadsheet try lastde --pairs 1 --record", "got --pairs 1; expected 2 or more"),
        ("broadsheet try nobody --record", "no paper or stage 'nobody'"),
        ("broadsheet try lastde --machine ../gone.jsonl --record", "its data is not at ../gone.jsonl: give the folder"),
        ("broadsheet apply detect pydocs --out runs/x --method lastde --on-error skip --force", ""),
        ("python benchmarks/gone.py --record", "benchmarks/gone.py is gone"),
        ("rm -rf /", "rm -rf / is no command that is recorded"),
        ("broadsheet papers", "broadsheet papers is no command that is recorded"),
    ],
)
def test_a_command_is_checked_before_it_is_run(stored, command, problem):
    stored("x", command)
    (step,) = replay.steps(["x"])
    assert step.problem.startswith(problem)
    assert bool(step.problem) == bool(problem)
    assert shlex.join(step.commands[-1]) == command


def test_data_that_has_moved_is_found_by_name(stored, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "texts.jsonl").write_text("")
    stored("x", "broadsheet try lastde --machine ../old/texts.jsonl --record")
    (step,) = replay.steps(["x"], tmp_path / "mine")
    assert step.problem == ""
    assert str(tmp_path / "mine" / "texts.jsonl") in step.commands[0]


def test_a_renamed_option_is_translated(stored, monkeypatch):
    monkeypatch.setitem(replay.RENAMED, ("try", "lastde", "--couples"), "--pairs")
    stored("x", "broadsheet try lastde --couples 20 --record")
    (step,) = replay.steps(["x"])
    assert (step.problem, step.commands[0][3:5]) == ("", ["--pairs", "20"])


def test_what_trained_the_models_runs_first(stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, command in {
        "easy": "broadsheet apply first pydocs --out runs/easy",
        "hard": "broadsheet apply first pydocs --reranker runs/easy --out runs/hard",
    }.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "training.json").write_text(json.dumps({"command": command}))
    (tmp_path / "runs" / "bare").mkdir()
    given = {
        "reranker": "runs/hard",
        "data": "pydocs",
        "seed": 0,
        "other": "runs/bare",
        "again": "runs/hard",
        "x": "y" * 500,
    }
    made = replay.trained(given)
    assert [each.split("--out ")[1] for each in made] == ["runs/easy", "runs/hard"]
    stored(
        "x", "broadsheet try lastde --record", provenance={"trained": ["broadsheet apply detect pydocs --out runs/d"]}
    )
    (step,) = replay.steps(["x"])
    assert [command[1] for command in step.commands] == ["apply", "try"]


def test_a_model_that_was_trained_on_itself_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text(
            json.dumps({"command": f"broadsheet apply x {other} --out {name}"})
        )
    assert "broadsheet apply x b --out a" in replay.trained({"model": "a"})


def test_the_command_lists_runs_and_reports(stored, tmp_path, monkeypatch, capsys):
    ran = []

    def fake(command, **settings):
        ran.append(command)
        return type("Done", (), {"returncode": int("detect" in command)})

    monkeypatch.setattr(replay.subprocess, "run", fake)
    stored("good", "broadsheet try lastde --record")
    stored("bad", "broadsheet try nobody --record")
    stored("fails", "broadsheet try detect --record")
    assert replay.main(["--list"]) == 0
    assert ran == []
    out = capsys.readouterr().out
    assert "# bad cannot be replayed: no paper or stage 'nobody'" in out
    assert "\nbroadsheet try lastde --record\n" in f"\n{out}"
    assert replay.main([]) == 1
    assert [command[-3:] for command in ran] == [["try", "detect", "--record"], ["try", "lastde", "--record"]]
    assert "failed: fails" in capsys.readouterr().err
    assert replay.main(["good"]) == 0
    assert replay.main(["bad"]) == 1
    assert replay.main(["nobody"]) == 2
    assert "no evidence of 'nobody'; expected one of bad, fails, good" in capsys.readouterr().err


def test_what_is_up_to_date_is_not_run_again_unless_it_is_named(stored, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(
        replay.subprocess, "run", lambda command, **_: ran.append(command[3]) or type("Done", (), {"returncode": 0})
    )
    stored("old", "broadsheet try lastde --record")
    stored("new", "broadsheet try detect --record")
    monkeypatch.setattr(staleness, "stale", lambda name: "" if name == "new" else "older than its code")
    assert replay.main(["--list"]) == 0
    assert capsys.readouterr().out == "broadsheet try lastde --record\n"
    for arguments, commands in (([], 1), (["new"], 1), (["--again"], 2)):
        ran.clear()
        assert replay.main(arguments) == 0
        assert len(ran) == commands
    monkeypatch.setattr(staleness, "stale", lambda name: "")
    ran.clear()
    assert (replay.main([]), ran) == (0, [])
    assert "new: up to date with its code; name it to record it again" in capsys.readouterr().err


def test_the_users_folder_of_data_is_searched_and_handed_on(stored, tmp_path, monkeypatch):
    seen = []

    def fake(command, **_):
        seen.append((command[-2], os.environ["BROADSHEET_DATA"]))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(replay.subprocess, "run", fake)
    monkeypatch.setenv("BROADSHEET_DATA", "")
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "texts.jsonl").write_text("")
    stored("x", "broadsheet try lastde --record --machine ../old/texts.jsonl --quick")
    assert replay.main(["x"]) == 1
    assert replay.main(["x", "--data", str(tmp_path / "mine")]) == 0
    monkeypatch.setenv("BROADSHEET_DATA", str(tmp_path / "theirs"))
    assert replay.main(["x"]) == 0
    assert seen == [(str(tmp_path / each / "texts.jsonl"), str(tmp_path / each)) for each in ("mine", "theirs")]


def test_a_training_whose_result_stands_is_not_repeated(stored, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        replay.subprocess, "run", lambda command, **_: ran.append(command) or type("Done", (), {"returncode": 0})
    )
    stored(
        "x", "broadsheet try lastde --record", provenance={"trained": ["broadsheet apply detect pydocs --out runs/d"]}
    )
    assert replay.main(["x"]) == 0
    (tmp_path / "runs" / "d").mkdir(parents=True)
    assert replay.main(["x"]) == 0
    assert [command[3] for command in ran] == ["apply", "try", "try"]


def test_unknown_names_are_refused(stored):
    stored("x", "broadsheet try lastde")
    with pytest.raises(InputError, match="no evidence of 'y'; expected one of x"):
        replay.steps(["y"])

"""What is said while work is done: progress in lines where no terminal shows it, times in words, how to go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from broadsheet import console
from broadsheet.console import duration, plain, progress, track
from broadsheet.took import Took


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (4.6e-6, "4.6 µs"),
        (0.00461, "4.61 ms"),
        (0.919, "919 ms"),
        (0.9997, "1 s"),
        (2.345, "2.35 s"),
        (99, "99 s"),
        (720, "12 min"),
        (36000, "10 h"),
        (4e6, "1111 h"),
    ],
)
def test_a_duration_is_said_in_three_figures_at_most(seconds, said):
    assert duration(seconds) == said


def test_progress_is_told_in_lines_where_no_terminal_shows_it(capsys, monkeypatch):
    monkeypatch.setattr(console, "_EVERY", 0.05)
    with progress("reading", total=4) as bar:
        bar.advance(bar.task_ids[0])
        with progress("within", total=2):
            time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 6
    assert all(re.fullmatch(r"reading: 1 of 4, about [\d.]+ m?s left", line) for line in lines), "the outermost alone"
    with progress("unknown"):
        time.sleep(0.2)
    assert set(capsys.readouterr().err.splitlines()) == {"unknown: 0"}
    with progress("secret", total=2, shown=False):
        time.sleep(0.2)
    assert list(track([1, 2], "short")) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("completed", "kept", "total", "seconds", "left"),
    [
        (2, 0, 10, 4.0, 16.0),
        (9, 8, 10, 4.0, 4.0),  # one since, in four seconds
        (8, 8, 10, 4.0, 0.0),  # none yet
        (10, 8, 10, 4.0, 0.0),
        (3, 0, None, 4.0, 0.0),
    ],
)
def test_the_time_left_rests_on_what_was_done_since(completed, kept, total, seconds, left):
    assert console._left(completed, kept, total, seconds) == left


def test_what_an_earlier_run_did_is_done_and_says_nothing_of_the_time_left():
    with progress("resumed", total=10, done=8, shown=False) as bar:
        [task] = bar.tasks
        assert (task.completed, task.total, task.fields["kept"]) == (8, 10, 8)
        begun = task.fields["begun"]
        console.resumed(bar, 9)
        assert (task.completed, task.total, task.fields["kept"]) == (9, 10, 9)
        assert task.fields["begun"] >= begun


def test_an_error_within_a_progress_lets_the_next_one_be_told(capsys, monkeypatch):
    monkeypatch.setattr(console, "_EVERY", 0.05)
    with pytest.raises(ZeroDivisionError), progress("failing", total=1):
        1 / 0  # noqa: B018
    with progress("next", total=1):
        time.sleep(0.2)
    assert "next: 0 of 1" in capsys.readouterr().err


def test_how_long_a_trial_took_is_known_the_next_time(monkeypatch, tmp_path):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))
    took = Took("gem", {"quick": True})
    assert took.before is None
    took.keep(12.34)
    assert Took("gem", {"quick": True}).before == 12.34
    assert Took("gem", {}).before is None
    Took("gem", {}).keep(100)
    assert Took("gem", {"quick": True}).before == 12.34
    took.path.write_text("half a li")
    assert took.before is None
    took.keep(1.0)
    assert took.before == 1.0


def test_ctrl_c_says_that_a_trial_stopped_and_how_to_go_on(tmp_path):
    code = (
        "import sys, time\n"
        "from broadsheet.cli import app, trials\n"
        "class Slow:\n"
        "    def for_paper(self, paper): return self\n"
        "    def given(self): return {}\n"
        "    def run(self):\n"
        "        print('running', flush=True)\n"
        "        time.sleep(60)\n"
        "trials_load = lambda entry: Slow\n"
        "from broadsheet import options\n"
        "from broadsheet.page import papers\n"
        "papers.load = trials_load\n"
        "options.construct = lambda kind, given: Slow()\n"
        "trials.own_options = lambda context, kind: ({}, [])\n"
        "sys.argv = ['broadsheet', 'try', 'lastde']\n"
        "app.main()\n"
    )
    environment = {**os.environ, "BROADSHEET_HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "running\n"
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "stopped; what is finished is kept, and the same command goes on from there" in err
    assert "Traceback" not in err


def test_what_would_move_a_terminal_is_spelt_out():
    assert plain("a\x1b[2J\x07\x00 b") == r"a\x1b[2J\x07\x00 b"
    assert plain("\u202egnirts \ud800") == r"\u202egnirts \ud800"
    assert plain("12\u202f% of é,\n\tand 字") == "12\u202f% of é,\n\tand 字"

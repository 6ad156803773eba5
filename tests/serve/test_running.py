"""The command: where it listens, what it refuses, how it ends; and what won, served."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from serving import served, stream_until_signal

from broadsheet.console import InputError
from broadsheet.models import card
from broadsheet.page import evidence
from broadsheet.serve.guard import KeyRing
from broadsheet.serve.models import winning
from broadsheet.serve.processes.running import check_address
from broadsheet.trial.claims import Claim, judge
from broadsheet.trial.engine import Arm, Metric, run_arms
from broadsheet.trial.results import TrialResult

KEY = "k" * 24


def test_a_signal_is_followed_by_503_the_rest_of_the_answers_and_the_end(endless_folder: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--model", str(endless_folder), BROADSHEET_SERVE_KEYS=KEY) as (process, server):
        assert server.ask("/v1/models")[0] == 401
        status, listed = server.ask("/v1/models", authorization=f"Bearer {KEY}")
        assert (status, [each["id"] for each in listed["data"]]) == (200, [endless_folder.name])
        text, statuses = stream_until_signal(process, server, KEY)
        assert 503 in statuses
        assert b"data: [DONE]" in text
        assert process.wait(30) == 0
        assert process.stderr
        assert KEY not in process.stderr.read()


def test_a_second_signal_ends_it_at_once(endless_folder: Path, tmp_path: Path) -> None:
    with served(tmp_path, "--model", str(endless_folder), BROADSHEET_SERVE_KEYS=KEY) as (process, server):
        text, _ = stream_until_signal(process, server, KEY, (process.pid, signal.SIGTERM), tokens=8000)
        assert b"[DONE]" not in text
        assert process.wait(30) not in (0, -signal.SIGKILL)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "models.example"])
def test_off_loopback_it_does_not_start_without_a_key(host: str) -> None:
    with pytest.raises(InputError, match="without keys"):
        check_address(host, KeyRing())
    check_address(host, KeyRing([KEY]))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_on_loopback_it_does(host: str) -> None:
    check_address(host, KeyRing())


# What won


def result(paper: str, arms: dict[str, float], description: str = "", **options: Any) -> TrialResult:
    """A trial on made-up values, by arm; the first is the baseline, the last the method."""
    names = list(arms)

    def arm(name: str, shift: float) -> Arm:
        role: Any = "baseline" if name == names[0] else "method"
        return Arm(name, lambda block: {"score": [x + shift for x in block]}, role, description=description)

    made = [arm(*each) for each in arms.items()]
    results, comparisons = run_arms(made, [0.1 * i for i in range(20)], [Metric("score")], item="text")
    judged = judge([Claim("score", names[0], names[-1])], comparisons)
    return TrialResult(
        paper=paper, title="t", question="q", setting={}, arms=results, comparisons=comparisons, item="text",
        judged=judged, command=f"broadsheet try {paper}", options=options, provenance=evidence.provenance(seed=0),
    )  # fmt: skip


def written(folder: Path, made: TrialResult) -> Path:
    path = folder / f"{made.paper}.json"
    path.write_text(json.dumps(evidence.finite(made.to_dict())))
    return path


def test_the_winner_of_a_trial_is_served_with_what_was_found(tmp_path: Path) -> None:
    made = result("lastde", {"Likelihood": 0.0, "LRR": 0.5, "Lastde++": 1.0}, model="org/model")
    wanted = winning.of(written(tmp_path, made))
    assert (wanted.detectors, wanted.models) == (["LastdePP"], ["org/model"])
    told = wanted.about["lastdepp"]
    assert told["answer"].startswith("Lastde++ beats Likelihood: score")
    assert (told["paper"], told["verdict"], told["command"]) == ("lastde", made.verdict, "broadsheet try lastde")


def test_where_the_baseline_won_it_is_what_is_served(tmp_path: Path) -> None:
    wanted = winning.of(written(tmp_path, result("lastde", {"Likelihood": 1.0, "Lastde": 0.0})))
    assert wanted.detectors == ["Likelihood"]


def test_a_method_that_won_is_what_models_read_under(tmp_path: Path) -> None:
    made = result("lm_infinite", {"full attention": 0.0, "LM-Infinite": 1.0}, "LMInfinite(n_local=512)")
    wanted = winning.of(written(tmp_path, made))
    assert (wanted.models, wanted.attend) == (["default"], "LMInfinite(n_local=512)")


def test_what_a_trial_has_trained_is_gone_with_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`broadsheet apply gem --help` makes one"):
        winning.of(written(tmp_path, result("gem", {"mean pooling": 0.0, "GEM": 1.0})))


def test_a_saved_folder_is_served_by_what_it_is_with_its_papers_evidence(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    card.write(folder, paper="token_prepending", base="default")
    wanted = winning.of(folder)
    assert wanted.embedders == [str(folder)]
    assert wanted.about["mine"]["paper"] == "token_prepending"
    assert wanted.about["mine"]["verdict"] in ("shown", "refuted here", "open")
    assert wanted.about["mine"]["command"].startswith("broadsheet try token_prepending")


@pytest.mark.parametrize("name", ["missing", "text.txt", "broken.json", "other.json", "empty"])
def test_what_is_neither_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match=re.escape(str(tmp_path / name))):
        winning.of(tmp_path / name)

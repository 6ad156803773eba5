"""The oracle runner can fail: wrong numbers, missing keys, wrong lengths and broken adapters are all seen."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

import oracles

RUNNER = Path(oracles.__file__)
FOLDER = RUNNER.parent / "oracles"


@pytest.mark.parametrize("paper", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_the_product_computes_what_the_paper_says(paper, capsys):
    counts = oracles.run_file(FOLDER / f"{paper}.json")
    assert counts["passed"] > 0
    assert counts["failed"] == counts["skipped"] == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("expected", "tolerance", "got", "passes"),
    [
        ({"a": 1.0}, 1e-6, {"a": 1.0000001}, True),
        ({"a": 1.0}, 1e-6, {"a": 1.00001}, False),
        ({"a": 1.0}, 1e-6, {}, False),
        ({"a": [1.0, 2.0]}, 0, {"a": [1.0, 2.0]}, True),
        ({"a": [1.0, 2.0]}, 0, {"a": [1.0]}, False),
        ({"a": [[1.0], [2.0]]}, 0.1, {"a": [[1.05], [2.2]]}, False),
        ({"a": {"b": "x"}}, 0, {"a": {"b": "y"}}, False),
        ({"a": True}, 0, {"a": 1}, True),
        ({"a": None}, 0, {"a": 0}, False),
        ({"a": math.nan}, 0, {"a": math.nan}, True),
        ({"a": 1.0}, 1e-6, {"a": "1.0"}, False),
        ({"a": 100.0, "b": 1.0}, {"a": 1.0, "relative": 0.01}, {"a": 100.9, "b": 1.009}, True),
        ({"a": 100.0, "b": 1.0}, {"a": 1.0, "relative": 0.01}, {"a": 100.9, "b": 1.02}, False),
        ({"a": 100.0}, {"relative_scores": 0.01}, {"a": 102.0}, False),
        ({"a": 1.0}, {"b": 1.0}, {"a": 1.0}, False),
    ],
)
def test_a_case_passes_only_within_its_tolerance(expected, tolerance, got, passes):
    assert (oracles.check({"expected": expected, "tolerance": tolerance}, got) == "") is passes


def test_relative_tolerance_by_kind():
    case = {"expected": {"a": 1000.0}, "tolerance": 0.01, "tolerance_kind": "relative"}
    assert oracles.check(case, {"a": 1009.0}) == ""
    assert oracles.check(case, {"a": 1011.0}) != ""


def case(name: str, **changes) -> dict:
    values = {"human": [0.0], "machine": [1.0]}
    return {"name": name, "input": {"fn": "auroc", **values}, "expected": {"auroc": 1.0}, "tolerance": 1e-9} | changes


def test_the_command_counts_and_its_status_tells(tmp_path, monkeypatch, capsys):
    def run(folder: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["oracles.py", str(folder)])
        status, said = oracles.main(), capsys.readouterr()
        return status, said.out + said.err

    good = [case("right")]
    bad = [case("wrong", expected={"auroc": 0.5}), case("broken", input={"fn": "no such function"})]
    (tmp_path / "lastde.json").write_text(json.dumps({"slug": "lastde", "cases": good}))
    (tmp_path / "unbuilt.json").write_text(json.dumps({"slug": "unbuilt", "cases": [case("x")]}))
    status, text = run(tmp_path)
    assert status == 0
    assert text.splitlines()[-1] == "1 passed, 0 failed, 1 skipped"
    (tmp_path / "lastde.json").write_text(json.dumps({"slug": "lastde", "cases": good + bad}))
    status, text = run(tmp_path)
    assert status == 1
    assert text.splitlines()[-1] == "1 passed, 2 failed, 1 skipped"
    assert "FAILED   lastde/wrong: auroc: got 1.0, expected 0.5" in text
    assert "FAILED   lastde/broken: KeyError" in text
    status, text = run(tmp_path / "nowhere")
    assert status == 2
    assert "no <slug>.json" in text

"""The study's tables on a tiny model: which cells they hold, which they share, and what is said about them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from shown import shown
from small_docs import documentation

from broadsheet import report
from broadsheet.console import InputError
from broadsheet.embed.data import tasks
from broadsheet.embed.trials.dense_retrieval_study import DenseRetrievalStudyTrial
from broadsheet.embed.trials.study_presets import PRESETS
from broadsheet.trial.results import TrialResult


@pytest.fixture
def run(monkeypatch, tmp_path, tiny_folder):
    """`run(preset="A", **options)`: the trial's result over made-up documentation."""
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tasks, "documentation", documentation)

    def make(**options: Any) -> TrialResult:
        settings = {"model": str(tiny_folder), "quick": True, "steps": 5, "batch": 3, "words": 10, "device": "cpu"}
        settings |= {"length": 150, "learning_rate": 5e-3}  # the tiny tokenizer reads bytes
        return DenseRetrievalStudyTrial(**settings | options).run()

    return make


def values(result: TrialResult, arm: str, metric: str = "nDCG@10") -> list[float]:
    return next(each for each in result.arms if each.name == arm).samples[metric]


def test_a_and_b_share_their_runs_and_the_last_step_of_b_is_a(run, tmp_path):
    a = run(preset="A")
    assert [arm.name for arm in a.arms] == [
        "1 layers", "2 layers", "1 layers, untrained", "2 layers, untrained"
    ]  # fmt: skip
    runs = set((tmp_path / "home" / "study").glob("run-*"))
    assert len(runs) == 2
    b = run(preset="B")
    assert set((tmp_path / "home" / "study").glob("run-*")) == runs
    assert [arm.name for arm in b.arms] == [f"{n} layers, {s} steps" for n in (1, 2) for s in (1, 2, 5)]
    for size in ("1 layers", "2 layers"):
        assert values(b, f"{size}, 5 steps") == values(a, size)
    (curve,) = b.figures
    assert curve.x == [1.0, 2.0, 5.0]
    assert curve.lines["2 layers"][-1] == pytest.approx(np.mean(values(a, "2 layers")))


def test_a_compares_each_size_with_its_raw_model_and_says_what_a_cell_cost(run, tmp_path):
    result = run(preset="A")
    assert ("1 layers, untrained", "1 layers") in {(c.baseline, c.arm) for c in result.comparisons}
    assert result.claims == [("nDCG@10", "1 layers", "2 layers")]
    arm = result.arms[0]
    assert arm.role == "baseline"
    assert "5 steps" in arm.description
    assert "besides embeddings" in arm.description
    (cell,) = result.provenance["cells"]["1 layers"]
    assert {"model", "parameters", "non_embedding", "seed", "steps", "tokens", "seconds", "peak_bytes"} <= cell.keys()
    assert "values" not in cell
    assert any(note.startswith("Power: with 10 queries") for note in result.notes)
    assert any("pre-training" in note for note in result.notes)
    assert {"nDCG@10", "RR@10", "Recall@10", "Recall@100"} == set(arm.values)
    data, page = report.write(result, tmp_path)
    assert TrialResult.from_dict(json.loads(data.read_text())).arms[0].values == arm.values
    assert "2 layers, untrained" in page.read_text()
    for example in shown(result):
        assert set(example.answers) == {each.name for each in result.arms}
        assert all(re.search(r"at place \d+$|no right passage", answer) for answer in example.answers.values())


def test_c_asks_other_sets_of_one_run(run):
    result = run(preset="C")
    assert set(result.arms[0].values) == {f"{m} ({s})" for m in ("nDCG@10", "RR@10") for s in ("name", "half")}
    assert result.claims == [(f"nDCG@10 ({s})", "1 layers", "2 layers") for s in ("name", "half")]


def test_d_changes_the_cut_off_alone_and_a_cut_off_beyond_the_context_is_missing_not_zero(run, tmp_path):
    result = run(preset="D", queries=4, passages=6, cutoffs=(16, 64, 512))
    assert len(list((tmp_path / "home" / "study").glob("run-*"))) == 1
    assert [(arm.name, arm.status) for arm in result.arms] == [
        ("first 16 tokens", "ok"), ("first 64 tokens", "ok"), ("first 512 tokens", "failed")
    ]  # fmt: skip
    assert "reads at most 256 tokens" in result.arms[2].error
    assert result.figures[0].lines["2 layers"][2] is None


def test_e_starts_from_the_cell_of_a_and_unseen_wordings_are_asked_of_the_same_run(run, tmp_path):
    a, e = run(preset="A"), run(preset="E")
    assert values(e, "no instruction") == values(a, "2 layers")
    assert len(list((tmp_path / "home" / "study").glob("run-*"))) == 3  # A's two and the instructed one
    assert e.claims == [("nDCG@10", "no instruction", "instruction")]
    assert {"unseen wording 1", "unseen wording 2", "instruction left out"} <= {arm.name for arm in e.arms}


def test_f_asks_every_task_of_the_joint_and_of_each_single_run(run):
    f = run(preset="F")
    assert [arm.name for arm in f.arms] == ["joint", "summary alone", "name alone"]
    steps = {name: cells[0]["steps"] for name, cells in f.provenance["cells"].items()}
    assert steps == {"joint": 10, "summary alone": 5, "name alone": 5}
    assert set(f.arms[0].values) == {f"{m} ({s})" for m in ("nDCG@10", "RR@10") for s in ("summary", "name")}


def test_the_grid_is_every_combination(run):
    result = run(
        preset="grid", layers=(1,), poolings=("last-token", "mean"), attentions=("causal", "bidirectional"),
        instructions=("without", "with"), steps=1,
    )  # fmt: skip
    assert len(result.arms) == 8
    assert result.arms[0].name == "1 layers, last-token, causal"
    assert "1 layers, mean, bidirectional, instructed" in {arm.name for arm in result.arms}
    assert len({tuple(arm.samples["nDCG@10"]) for arm in result.arms}) > 4


def test_several_seeds_are_several_training_runs(run):
    single = [run(preset="A", layers=(1,), runs=n) for n in (1, 2)]
    one, two = (values(result, "1 layers") for result in single)
    assert one != two
    assert [cell["seed"] for cell in single[1].provenance["cells"]["1 layers"]] == [0, 1]
    assert any(note.startswith("Between seeds") for note in single[1].notes)
    runs = {arm.name: arm.runs for arm in single[1].arms}
    assert (runs["1 layers"], runs["1 layers, untrained"]) == (2, 1)
    compared = next(c for c in single[1].comparisons if (c.metric, c.arm) == ("nDCG@10", "1 layers, untrained"))
    assert compared.runs == (2, 1)
    assert compared.run_error > 0, "intervals cover training runs"
    assert len(two) == len(one) == 10


def test_bad_options_are_named(run):
    assert set(PRESETS) == {"A", "B", "C", "D", "E", "F", "grid"}
    for options, said in (
        ({"preset": "G"}, "got --preset 'G'"),
        ({"layers": (1, 3)}, "got --layers 1,3; .* has 2"),
        ({"poolings": ("max",)}, "got --poolings 'max'"),
        ({"attentions": ()}, "got --attentions with nothing in it"),
        ({"losses": ("infonce", "infonce")}, "expected each value once"),
        ({"sets": ("/nowhere",), "preset": "C"}, "nowhere"),
        ({"steps": 0}, "got --steps 0"),
        ({"train_on": ("long",), "preset": "F"}, "got --train-on 'long'"),
    ):
        with pytest.raises(InputError, match=said):
            run(**options)

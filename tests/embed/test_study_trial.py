"""The study's tables on a tiny model: which cells they hold, which they share, and what is said about them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from shown import shown
from small_docs import documentation, documents

from broadsheet import report
from broadsheet.console import InputError
from broadsheet.embed.data import tasks
from broadsheet.embed.dense_retrieval_study import Study, StudyQuestion, StudyRecipe
from broadsheet.embed.modules import from_scratch
from broadsheet.embed.trials import dense_retrieval_study
from broadsheet.embed.trials.dense_retrieval_study import DenseRetrievalStudyTrial
from broadsheet.embed.trials.study_presets import PRESETS, Axes
from broadsheet.training.scratch import SIZES, Size
from broadsheet.trial.results import TrialResult

CHOSEN: dict[str, Any] = {"learning_rate": None, "quick": False, "runs": 1, "queries": 10, "passages": 40}


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


@pytest.fixture
def whole(tmp_path, tiny_folder, tiny_model, tiny_tokenizer):
    """Two backbones, the larger one first."""
    large = tmp_path / "large"
    tiny_model(num_hidden_layers=3).save_pretrained(large)
    tiny_tokenizer().save_pretrained(large)
    return str(large), str(tiny_folder)


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
    assert result.claims == [], "the first layers of a model are no smaller backbone"
    assert any(note.startswith("Rows with fewer layers than others") for note in result.notes)
    arm = result.arms[0]
    assert arm.role == "baseline"
    assert "5 steps" in arm.description
    assert "learning rate 0.005" in arm.description
    assert "besides embeddings" in arm.description
    (cell,) = result.provenance["cells"]["1 layers"]
    assert {"model", "parameters", "non_embedding", "seed", "steps", "tokens", "seconds", "peak_bytes"} <= cell.keys()
    assert "values" not in cell
    assert any(note.startswith("Power: with 10 queries") for note in result.notes)
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
    assert result.claims == []


def test_claims_on_size_are_about_whole_backbones_the_smallest_against_the_largest(run, whole):
    result = run(preset="A", backbones=whole, steps=1)
    assert [arm.name for arm in result.arms] == ["tiny", "large", "tiny, untrained", "large, untrained"]
    assert result.arms[0].role == "baseline"
    assert result.claims == [("nDCG@10", "tiny", "large")]
    assert [claim.target for claim in result.judged] == [0.062]
    assert not any("fewer layers" in note for note in result.notes)
    assert any("is not held fixed" in note for note in result.notes)
    # A depth that one of them has whole.
    cut = run(preset="A", backbones=whole, layers=(2,), steps=1)
    assert [arm.name for arm in cut.arms[:2]] == ["tiny", "large, 2 layers"]
    assert cut.claims == []


@pytest.mark.parametrize("preset", ["B", "C"])
def test_so_are_those_of_steps_and_other_sets(preset):
    axes = Axes(("small", "middle", "large"), {"small": (0,), "middle": (0,), "large": (4, 0)})
    made = PRESETS[preset](axes, StudyRecipe(), StudyQuestion())
    first, last = ("small, 5 steps", "large, 5 steps") if preset == "B" else ("small", "large")
    assert {(claim.baseline, claim.arm) for claim in made.claims} == {(first, last)}
    assert made.rows[0].name == first
    assert made.rows[0].role == "baseline"
    assert {first, last} < {row.name for row in made.rows}
    assert not PRESETS[preset](Axes(("one",), {"one": (2, 4)}), StudyRecipe(), StudyQuestion()).claims


def test_what_is_claimed_is_compared_where_the_first_row_is_another():
    axes = Axes(("small", "large"), {"small": (1, 0), "large": (1, 0)})
    made = PRESETS["A"](axes, StudyRecipe(), StudyQuestion())
    answers = {row.name: {"nDCG@10": np.linspace(0, 1, 12)[None]} for row in made.rows}
    (claim,) = made.claims
    assert claim.baseline != made.rows[0].name
    compared = dense_retrieval_study._comparisons(made, answers, 0, {})
    assert (claim.baseline, claim.arm) in {(each.baseline, each.arm) for each in compared}


def test_each_training_takes_the_best_of_as_many_rates_and_that_run_is_the_table_s(run, whole, tmp_path, monkeypatch):
    best = {1: 3e-4, 2: 1.0, 3: 1e-3}
    tried = {1: (*dense_retrieval_study.RATES, 1e-4), 2: (*dense_retrieval_study.RATES, 3e-2, 1e-1)}
    scored = []

    def score(self, recipe, asked):
        scored.append(recipe)
        self.trained(recipe)
        return -abs(recipe.learning_rate - best[recipe.layers or self.backbone(recipe).depth])

    monkeypatch.setattr(Study, "score", score)
    result = run(preset="A", **CHOSEN, layers=(1, 2))
    assert [(recipe.layers, recipe.learning_rate) for recipe in scored] == [
        (layers, rate) for layers, rates in tried.items() for rate in rates
    ]
    assert len(list((tmp_path / "home" / "study").glob("run-*"))) == 5 + 6
    assert [re.search(r"learning rate (\S+)", arm.description)[1] for arm in result.arms[:2]] == ["0.0003", "0.1"]
    assert {cell["steps"] for name in ("1 layers", "2 layers") for cell in result.provenance["cells"][name]} == {5}
    told = {name: text for name, text in result.setting.items() if name.startswith("tuning of ")}
    assert list(told) == ["tuning of layers 1", "tuning of layers 2"]
    assert told["tuning of layers 1"].startswith("0.0003, the best of 5 on the summary of a docstring finds its body: ")
    assert "the lowest or the highest that was tried: 0.1 (layers 2)." in "".join(result.notes)
    # B is of the same trainings, and chooses the same rates; rows of one training share its rate.
    b = run(preset="B", **CHOSEN, layers=(1, 2))
    assert values(b, "2 layers, 5 steps") == values(result, "2 layers")
    assert len(list((tmp_path / "home" / "study").glob("run-*"))) == 5 + 6
    middle = run(preset="A", **CHOSEN, backbones=whole[:1], layers=(3,))
    assert not any("that was tried" in note for note in middle.notes)


def test_a_training_that_fails_is_a_failed_row_and_the_others_are_chosen_for(run, monkeypatch):
    def score(self, recipe, asked):
        self.raw(recipe)
        return recipe.learning_rate

    def raw(self, recipe, made=Study.raw):
        if recipe.layers == 1:
            raise InputError("no end-of-text token")
        return made(self, recipe)

    monkeypatch.setattr(Study, "score", score)
    monkeypatch.setattr(Study, "raw", raw)
    result = run(preset="A", **CHOSEN, layers=(1, 2), steps=1)
    assert [arm.status for arm in result.arms] == ["failed", "ok", "failed", "ok"]
    assert "no end-of-text token" in result.arms[0].error
    assert [name for name in result.setting if name.startswith("tuning of ")] == ["tuning of layers 2"]


def test_rates_that_were_scored_are_not_scored_again_after_a_kill(run, monkeypatch):
    scored = []

    def score(self, recipe, asked):
        if len(scored) == 4:
            scored.append("killed")
            raise KeyboardInterrupt
        scored.append((recipe.layers, recipe.learning_rate))
        return recipe.learning_rate

    monkeypatch.setattr(Study, "score", score)
    with pytest.raises(KeyboardInterrupt):
        run(preset="A", **CHOSEN, layers=(1, 2))
    run(preset="A", **CHOSEN, layers=(1, 2))
    scored.remove("killed")
    rates = (*dense_retrieval_study.RATES, 3e-2, 1e-1)  # the best is an end
    assert scored == [(layers, rate) for layers in (1, 2) for rate in rates]
    run(preset="A", **CHOSEN, layers=(1, 2), steps=6)
    assert len(scored) == 4 * len(rates), "another training has its own choice"


def test_sizes_are_made_here_where_no_model_is_given(run, monkeypatch):
    monkeypatch.setattr(tasks, "_pydocs", lambda data: documents())
    monkeypatch.setitem(SIZES, "1M", Size(1, 16, 2))
    monkeypatch.setitem(SIZES, "3M", Size(2, 32, 2))
    monkeypatch.setattr(from_scratch, "BATCH", 2)
    result = run(preset="A", model="default", pretraining=2)
    assert [arm.name for arm in result.arms[:2]] == ["scratch:1M", "scratch:3M"]
    assert result.claims == [("nDCG@10", "scratch:1M", "scratch:3M")]
    assert result.setting["backbone"] == "scratch:1M, scratch:3M"
    (note,) = (note for note in result.notes if note.startswith("Pre-trained here, once each: 1,024 tokens"))
    losses = [result.provenance["models"][name]["pretrained"]["loss"] for name in ("scratch:1M", "scratch:3M")]
    assert all(f"{loss:.3f}" in note for loss in losses)
    assert not any("is not held fixed" in note or "fewer layers" in note for note in result.notes)
    assert "/" not in json.dumps([each["model"] for cells in result.provenance["cells"].values() for each in cells])


def test_more_seeds_follow_where_they_would_decide_a_claim(run, monkeypatch):
    asked = []

    def extended(self, judged, spent):
        asked.append(self._runs)
        self.__dict__["_decided"] = 4
        return len(asked) == 1

    monkeypatch.setattr(dense_retrieval_study.DenseRetrievalStudyTrial, "_extended", extended)
    result = run(preset="A", layers=(1,), quick=False, queries=10, passages=40, steps=1)
    assert asked == [3, 4]
    assert [arm.runs for arm in result.arms] == [4, 1]
    assert result.setting["seeds"] == "0, 1, 2, 3"


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


@pytest.mark.parametrize("preset", ["A", "C"])
def test_a_margin_is_that_of_its_metric_whatever_is_asked(run, preset):
    result = run(
        preset=preset, layers=(1, 2), runs=1, margin=("nDCG@10=0.1",), **({"sets": ("name",)} if preset == "C" else {})
    )
    told = {c.metric: c.margin for c in result.comparisons}
    assert {margin for metric, margin in told.items() if metric.startswith("nDCG@10")} == {0.1}
    assert {margin for metric, margin in told.items() if not metric.startswith("nDCG@10")} == {None}


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
        ({"margin": ("MRR=0.1",)}, "got --margin MRR; expected some of nDCG@10, RR@10"),
        ({"train_on": ("long",), "preset": "F"}, "got --train-on 'long'"),
    ):
        with pytest.raises(InputError, match=said):
            run(**options)

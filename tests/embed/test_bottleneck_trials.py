"""The trials of GEM and LLM-QL on a tiny model: equal data for all arms, what they say, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_docs import documentation
from training_runs import differ, weights

from broadsheet.console import InputError
from broadsheet.embed.data import tasks
from broadsheet.embed.trials import gem as gem_trial
from broadsheet.embed.trials import llm_ql as llm_ql_trial
from broadsheet.embed.trials.gem import GEMTrial, perplexities
from broadsheet.embed.trials.llm_ql import LONGER, MAIN, OPEN, PLAIN, LLMQLTrial
from broadsheet.trial.results import ArmResult
from broadsheet.trial.stats import Interval


@pytest.fixture
def options(monkeypatch: Any, tmp_path: Path, tiny_folder: Path) -> dict[str, Any]:
    """A tiny model, and documentation that is read in no time."""
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tasks, "documentation", documentation)
    return {"model": str(tiny_folder), "quick": True, "device": "cpu"}


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A BEIR folder of forty passages, with a query each in training or test."""
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": f"d{i}", "text": f"number {i} and {i * i} and its root"}) for i in range(40)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    lines = [json.dumps({"_id": f"q{i}", "text": f"what of {i}"}) for i in range(40)]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    for split, numbers in (("train", range(10, 40)), ("test", range(10))):
        rows = "".join(f"q{i}\td{i}\t1\n" for i in numbers)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return folder


def test_gem_against_pooling_with_what_generation_has_lost(options: dict[str, Any], tmp_path: Path) -> None:
    sts = tmp_path / "sts.tsv"
    sts.write_text("score\tsentence1\tsentence2\n" + "".join(f"{i % 5}\tword {i}\tthing {i * i}\n" for i in range(12)))
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text("".join(json.dumps({"id": str(i), "text": f"a word {i} of {i * i}"}) + "\n" for i in range(9)))
    options |= {"sts": str(sts), "specials": 2, "learning_rate": 1e-2, "runs": 2, "elsewhere": str(elsewhere)}
    # As with --quick, but the rate of contrast is chosen for each arm.
    options |= {"quick": False, "steps": 3, "contrast_steps": 3, "batch": 4, "queries": 10, "passages": 40, "words": 15}
    trial = GEMTrial(**options)
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert list(arms) == [gem_trial.MEAN, gem_trial.LAST, gem_trial.CONTRAST, gem_trial.NTP, gem_trial.MAIN]
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    metrics = {"Spearman", "nDCG@10", "RR@10", "Recall@100", "perplexity", "perplexity elsewhere"}
    assert all(set(arm.values) == metrics for arm in result.arms)
    perplexity = {name: arm.values["perplexity"].estimate for name, arm in arms.items()}
    assert perplexity[gem_trial.MEAN] == pytest.approx(perplexity[gem_trial.LAST])
    assert len({round(value, 3) for value in perplexity.values()}) == 4  # the trained arms have moved, differently
    pairs = [(gem_trial.MEAN, gem_trial.MAIN), (gem_trial.MEAN, gem_trial.NTP), (gem_trial.CONTRAST, gem_trial.MAIN)]
    assert set(result.claims) == {(m, *pair) for m in ("Spearman", "nDCG@10") for pair in pairs}
    assert {f"tuning of {name}" for name in (gem_trial.CONTRAST, gem_trial.NTP, gem_trial.MAIN)} <= set(result.setting)
    assert set(result.claims) <= {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    assert sum("trained in 3 steps of 4" in note for note in result.notes) == 3
    assert sum("contrast alone: trained in 6 steps of 4" in note for note in result.notes) == 1
    assert "per cent of the model as it came" in result.notes[0]
    assert differ(trial, gem_trial._FIRST, gem_trial.CONTRAST, gem_trial.NTP, gem_trial.MAIN)
    again = GEMTrial(**options).run()  # what was trained is read back
    assert {a.name: a.samples["nDCG@10"] for a in again.arms} == {a.name: a.samples["nDCG@10"] for a in result.arms}
    trial.finish()


def test_rates_of_gem_are_chosen_by_passages_that_it_does_not_learn(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gem_trial, "_TUNING", 30)
    trial = GEMTrial(**options | {"quick": False, "steps": 200, "batch": 4, "queries": 10, "passages": 40, "words": 15})
    trial.tasks()
    every = {row["positive"] for row in tasks.training_pairs(4000, words=15)}
    assert len(trial._texts) == len(every) - 30, "all but those, where there are not as many as steps ask for"
    task = trial.tuning(trial._texts)
    assert not set(task.corpus.values()) & set(trial._texts)
    assert len(task.queries) == 30


def test_gem_trains_on_passages_that_are_not_searched(options: dict[str, Any], collection: Path) -> None:
    trial = GEMTrial(**options | {"data": str(collection)}, passages=20)
    trial.tasks()
    texts = trial._texts
    task = tasks.retrieval(str(collection), 10, 20, words=15)
    assert len(texts) == 20
    assert not set(texts) & set(task.corpus.values())
    with pytest.raises(InputError, match="give fewer --passages"):
        GEMTrial(**options | {"data": str(collection)}, passages="all").run()


def test_perplexity_is_said_in_per_cent_of_the_base() -> None:
    arms = [
        ArmResult("base", "baseline", values={"perplexity": Interval(20.0, 19, 21)}),
        ArmResult("GEM", "method", values={"perplexity": Interval(23.0, 22, 24)}),
    ]
    assert "(20.0): GEM 23.0 (115%)" in perplexities(arms, "base")


@pytest.mark.parametrize("source", ["pydocs", "collection"])
def test_llm_ql_before_equal_contrastive_steps(options: dict[str, Any], collection: Path, source: str) -> None:
    if source == "collection":
        options["data"] = str(collection)
    runs = 2 if source == "collection" else 1
    # As with --quick, but the contrastive rate is chosen for each arm where documentation is trained on.
    options |= {"quick": False, "steps": 3, "ql_steps": 3, "batch": 4, "queries": 10, "passages": 40, "words": 15}
    rate = None if source == "pydocs" else 1e-2
    trial = LLMQLTrial(**options, learning_rate=rate, ql_learning_rate=1e-2, runs=runs)
    result = trial.run()
    names = [llm_ql_trial.UNTRAINED, PLAIN, OPEN, MAIN, LONGER]
    assert [arm.name for arm in result.arms] == names
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    told = {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    assert set(result.claims) == {("nDCG@10", PLAIN, MAIN), ("nDCG@10", OPEN, MAIN)}
    assert {*result.claims, ("nDCG@10", LONGER, MAIN)} <= told
    trained = [note for note in result.notes if ": trained in" in note]
    assert sum("query likelihood: trained in 3 steps of 4" in note for note in trained) == 2
    assert sum("contrast: trained in 3 steps of 4" in note for note in trained) >= 3
    assert any("times as long" in note for note in result.notes)
    assert runs == 1 or differ(trial, PLAIN, OPEN, MAIN)
    tuned = {f"tuning of {name}" for name in (PLAIN, OPEN, MAIN)}
    assert tuned <= set(result.setting) if rate is None else not tuned & set(result.setting)
    left = [each.name for each in trial.workdir.iterdir() if each.is_dir()]
    assert len(left) == runs * (len(names) - 1 + 2), "of each arm a run, and of two a first stage; none of rates"
    trial.finish()


def test_what_llm_ql_learns_first_is_the_same_for_every_rate(options: dict[str, Any], tmp_path: Path) -> None:
    trial = LLMQLTrial(**options, ql_learning_rate=1e-2, runs=1)
    trial.tasks()
    trial.workdir = tmp_path / "work"
    trial.arms()
    first = weights(trial._first(MAIN, 0))
    assert first == weights(trial._first(MAIN, 0)), "trained once"
    assert first != weights(trial._first(OPEN, 0))
    for rate in (1e-2, 1e-3):
        trial._contrast(MAIN, rate, 0, trial.workdir / f"{rate}")
    assert first == weights(trial._first(MAIN, 0))
    assert len({*map(tuple, (weights(trial.workdir / f"{rate}") for rate in (1e-2, 1e-3)))}) == 2


def test_passages_that_are_trained_on_choose_no_rate(options: dict[str, Any]) -> None:
    trial = LLMQLTrial(**options, runs=1)
    trial.tasks()
    trained = {pair["positive"] for pair in trial._pairs}
    task = trial.tuning(trained)
    asked = {task.corpus[query.id] for query in task.queries}
    searched = tasks.retrieval("pydocs", 10, 40, words=15)
    assert asked
    assert not asked & trained
    assert not set(task.corpus) & set(searched.corpus), "nor does what the test searches"
    every = [entry.text for entry in tasks.documentation(15).entries]
    with pytest.raises(InputError, match="train on fewer"):
        trial.tuning(every)


def test_bad_options_are_named(options: dict[str, Any]) -> None:
    for kind, changes, said in (
        (GEMTrial, {"batch": 0}, "--batch 0"),
        (GEMTrial, {"init": "zero"}, "--init 'zero'"),
        (GEMTrial, {"method": "gem(raw_share=2)"}, "raw_share 2"),
        (GEMTrial, {"method": "gem(contrast=none)"}, "contrast 'none'"),
        (GEMTrial, {"method": "gem(colour=1)"}, "GEM has no field 'colour'"),
        (GEMTrial, {"method": "grl"}, "got --method grl"),
        (LLMQLTrial, {"batch": 1}, "--batch 1"),
        (LLMQLTrial, {"method": "llm_ql(labels=all)"}, "labels 'all'"),
        (LLMQLTrial, {"method": "llm_ql(scale=0)"}, "scale 0"),
    ):
        with pytest.raises(InputError, match=said):
            kind(**options, **changes).run()

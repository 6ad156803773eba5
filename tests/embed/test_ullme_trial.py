"""GRL's trial on a tiny model and documentation of its own: equal data for all arms, and what it says about them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from small_docs import documentation
from training_runs import differ

from broadsheet.console import InputError
from broadsheet.data.retrieval.lists import RankList
from broadsheet.embed.base import embedder
from broadsheet.embed.data import tasks
from broadsheet.embed.trials import ullme as ullme_trial
from broadsheet.trial.base import ModelArm
from broadsheet.trial.lazy import LazyModel


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Documentation that is read in no time."""
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))

    monkeypatch.setattr(tasks, "documentation", documentation)


def test_kendall_s_tau_is_one_where_cosine_and_likelihood_agree(tiny_model, tiny_tokenizer, monkeypatch):
    model = embedder((tiny_model(), tiny_tokenizer()), "mean")
    one = RankList("q", "a query", ("a", "b", "c"), ("one", "two words", "three of them"))
    queries = model.encode_query(["a query"], normalize_embeddings=True)
    cosines = model.encode_document(list(one.documents), normalize_embeddings=True) @ queries[0]
    arm = ullme_trial.agreement([one]).arm(ModelArm("x", lambda: model), LazyModel(lambda: model), None)
    for scores, tau in ((cosines, 1.0), (-cosines, -1.0), (np.zeros(3), 0.0)):
        monkeypatch.setattr(
            "broadsheet.embed.data.writing.mean_log_probs", lambda *_, scores=scores: np.asarray(scores)
        )
        assert arm.run([one])["Kendall τ"] == [pytest.approx(tau)]
    assert arm.run([one])["sharpness"] == [pytest.approx(1 / 3)]


def test_the_trial_trains_every_arm_on_the_same_and_reports_the_direct_claim(small, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ullme_trial, "RATES", (1e-4, 3e-4, 1e-3))
    sts = tmp_path / "sts.tsv"
    sts.write_text("score\tsentence1\tsentence2\n" + "".join(f"{i % 5}\tword {i}\tthing {i * i}\n" for i in range(12)))
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_text("".join(json.dumps({"id": str(i), "text": f"a word {i} of {i * i}"}) + "\n" for i in range(9)))
    options: dict[str, Any] = {"model": str(tiny_folder), "quick": True, "sts": str(sts), "batch": 4, "device": "cpu"}
    # As with --quick, but rates are chosen, and a query has two wrong passages.
    options |= {"quick": False, "steps": 2, "queries": 10, "passages": 40, "words": 12, "lists": 4, "candidates": 4}
    options |= {"negatives": 2, "also": ("sft", "printed", "kept"), "runs": 2, "pairs": 12, "elsewhere": str(elsewhere)}
    trial = ullme_trial.UllmeTrial(**options)
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert list(arms) == [ullme_trial.UNTRAINED, *ullme_trial.ARMS]
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    metrics = {"nDCG@10", "RR@10", "Recall@100", "Kendall τ", "perplexity", "perplexity elsewhere", "Spearman"}
    assert all(set(arm.values) == metrics for arm in result.arms)
    own = ullme_trial.GRL_CODE
    wanted = {("nDCG@10", ullme_trial.CONTRASTIVE, own), ("nDCG@10", ullme_trial.DPO, own)}
    assert set(result.claims) == wanted | {("Kendall τ", ullme_trial.CONTRASTIVE, own)}
    told = {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    assert set(result.claims) <= told
    assert {f"tuning of {name}" for name in ullme_trial.ARMS} <= set(result.setting)
    # Every arm was trained: perplexity moves, and differs between arms that learn differently.
    perplexities = [arms[name].values["perplexity"].estimate for name in arms]
    assert len({round(value, 9) for value in perplexities}) == len(perplexities)
    notes = [note for note in result.notes if ": trained in 2 steps of 4" in note]
    assert len(notes) == len(ullme_trial.ARMS)
    assert differ(trial, *ullme_trial.ARMS)
    for name, (fields, _) in ullme_trial.ARMS.items():
        told = json.loads((trial.folder(name) / "training.json").read_text())["settings"]["objective"]
        assert told["projector"] is False
        assert {key: told[key] for key in fields} == fields
    fewer = ullme_trial.UllmeTrial(**options | {"also": ()})
    fewer.tasks()
    fewer.workdir = tmp_path / "fewer"
    fewer._rate = lambda name: 1e-3
    assert [arm.name for arm in fewer.arms()] == [ullme_trial.UNTRAINED, ullme_trial.CONTRASTIVE, ullme_trial.DPO, own]
    assert {name for pair in fewer.also_compare() for name in pair} <= {arm.name for arm in fewer.arms()}
    again = ullme_trial.UllmeTrial(**options).run()  # what was trained is read back
    assert {a.name: a.samples["nDCG@10"] for a in again.arms} == {a.name: a.samples["nDCG@10"] for a in result.arms}
    trial.finish()


def test_bad_options_are_named():
    for options, said in (
        ({"data": "other"}, "got --data other"),
        ({"candidates": 1}, "got --candidates 1; expected 2 or more"),
    ):
        with pytest.raises(InputError, match=said):
            ullme_trial.UllmeTrial(**options).run()

"""The trial of CLEAR: what is planted, what each arm is trained on, and what is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from training_runs import differ, weights

from broadsheet.console import InputError
from broadsheet.curate.clear import Verdicts
from broadsheet.curate.trials.clear import (
    ALL,
    AUROC,
    CORRECT,
    FILTER,
    LOG_PROBABILITY,
    LOSS,
    ORACLE,
    PMI,
    RANDOM,
    ClearTrial,
)

TINY = {"pairs": 20, "texts": 6, "steps": 2, "batch": 4, "lora_rank": 2, "lr": 1e-3, "runs": 1, "method": "clear(k=2)"}


@pytest.fixture
def data(tmp_path, home) -> str:
    path = tmp_path / "rows.jsonl"
    numbers = np.random.default_rng(0).permutation(np.arange(100, 370)).reshape(90, 3).tolist()
    rows = [{"prompt": f"what is {a}", "completion": f"It is {b} and {c}."} for a, b, c in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def model(tmp_path, tiny_model, tiny_tokenizer) -> str:
    folder = tmp_path / "tiny-long"
    tiny_model(max_position_embeddings=2048).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def trial(data, model) -> ClearTrial:
    return ClearTrial(data=data, model=model, **TINY)


def test_targets_are_shuffled_among_a_share_of_the_rows_and_none_is_held_out(trial):
    trial.tasks()
    rows = map(json.loads, Path(trial.data).read_text().splitlines())
    own = {row["prompt"]: row["completion"] for row in rows}
    wrong = [own[each.prompt[0]["content"]] != each.target for each in trial._rows]
    assert wrong == trial._wrong.tolist()
    assert sum(wrong) == round(0.3 * 20)
    assert {each.target for each in trial._rows} == {own[each.prompt[0]["content"]] for each in trial._rows}
    away = {each.target for each in [*trial._held, *trial._tuning_rows]}
    assert len(away) == 6 + 32
    assert all(own[each.prompt[0]["content"]] == each.target for each in trial._held), "what is held out is clean"
    assert not away & {each.target for each in trial._rows}


def test_each_half_has_the_same_size_and_is_chosen_as_it_is_to_be(trial):
    trial.tasks()
    kept = {name: trial._kept(name, 0) for name in (ALL, RANDOM, ORACLE, FILTER, CORRECT, PMI, LOG_PROBABILITY)}
    assert len(kept[ALL]) == 20
    assert {len(places) for name, places in kept.items() if name != ALL} == {10}
    assert not trial._wrong[kept[ORACLE]].any()
    assert kept[FILTER] == kept[CORRECT]
    assert trial._kept(RANDOM, 0) == kept[RANDOM] != trial._kept(RANDOM, 1)
    assert trial._kept(PMI, 1) == kept[PMI], "scored once"
    scores = trial._score(PMI, 0)
    assert min(scores[kept[PMI]]) >= np.median(scores)


def test_a_whole_trial_trains_every_arm_on_its_rows_and_judges_the_claims(data, model):
    trial = ClearTrial(data=data, model=model, **{**TINY, "runs": 2})
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert {name: arm.error for name, arm in arms.items()} == dict.fromkeys(trial._names, "")
    assert arms[ALL].values[AUROC].estimate == 0.5
    assert arms[ORACLE].values[AUROC].estimate == 1.0
    assert arms[FILTER].values[AUROC].estimate == arms[CORRECT].values[AUROC].estimate
    losses = {name: arm.values[LOSS].estimate for name, arm in arms.items()}
    assert len({round(losses[name], 9) for name in (ALL, RANDOM, FILTER, PMI, ORACLE)}) == 5, "each from its own rows"
    assert differ(trial, ALL, RANDOM, FILTER, PMI, ORACLE)
    trial._train(PMI, 0, trial.workdir / "again")
    assert weights(trial.workdir / "again") == weights(trial.run_folder(PMI, 0)), "each begins with the model itself"
    assert not hasattr(trial.loaded.model, "peft_config"), "the model is as it was"
    judged = [(claim.metric, claim.baseline, claim.arm) for claim in result.judged]
    assert judged == [(AUROC, RANDOM, FILTER), (LOSS, ALL, FILTER), (LOSS, RANDOM, FILTER), (LOSS, FILTER, CORRECT)]
    told = " ".join(result.notes)
    assert f"{ORACLE} 100 %" in told
    assert "of 10 targets that were dropped" in told


def test_corrected_targets_are_trained_on_beside_what_was_kept(trial, monkeypatch):
    seen: list = []
    done = SimpleNamespace(finished=True)
    monkeypatch.setattr(type(trial), "_fitted", lambda self, rows, seed, out, rate: seen.append(rows) or done)
    trial.tasks()
    trial.workdir = Path(trial.data).parent / "work"
    trial.workdir.mkdir()
    filtered = trial.run_folder(FILTER, 0)
    filtered.mkdir()
    (filtered / "training.json").write_text("{}")
    monkeypatch.setattr("broadsheet.curate.trials.clear.adapters.attach", lambda *_, **__: None)
    judged = type(trial._clear)
    monkeypatch.setattr(judged, "propose", lambda self, rows, tuned: ["better"] * len(rows))
    found = Verdicts(["candidate", "candidate", *["target"] * 8], np.array([0.9, 0.8, *[0.99] * 8]))
    monkeypatch.setattr(judged, "judge", lambda self, rows, candidates: found)
    trial._train_corrected(0, trial.workdir / "out")
    [rows] = seen
    assert [each.target for each in rows].count("better") == 1
    assert len(rows) == 11


def test_too_few_rows_and_odd_options_are_refused(data, model, tmp_path):
    with pytest.raises(InputError, match="expected 10 rows or more"):
        ClearTrial(data=data, model=model, **{**TINY, "texts": 50}).tasks()
    with pytest.raises(InputError, match=r"expected 0\.9 or less"):
        ClearTrial(noise=1.0)
    with pytest.raises(InputError, match="lr"):
        ClearTrial(lr=-1.0)

"""The trial of prompting over tables: faults are as planted, every arm answers every case, claims are the paper's."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from broadsheet.console import InputError
from broadsheet.curate.data_preprocessors import TablePreprocessor
from broadsheet.curate.trials import data_preprocessors as trials
from broadsheet.curate.trials.data_preprocessors import (
    BALANCED,
    BARE,
    CLUSTERED,
    EXACT,
    FOUND,
    MAJORITY,
    MATCHED,
    ONE,
    OURS,
    REGRESSION,
    SCORED,
    TFIDF,
    ZERO,
    DataPreprocessorsTrial,
    best_threshold,
    prompt_tokens,
)
from broadsheet.curate.trials.planted_tables import CHECKED, planted, table, typo
from broadsheet.data.corpora import Document
from broadsheet.models import Loaded

PARTS = ("stream", "buffer", "socket", "parser", "archive", "signal", "locale", "queue")


def documents(n: int = 400) -> list[Document]:
    found = []
    for i in range(n):
        package = PARTS[i % len(PARTS)]
        module = f"{package}.{PARTS[i // 8 % len(PARTS)]}{i % 3}"
        summary = f"Return the {PARTS[i * 3 % 8]} {PARTS[i * 5 % 7]} of number {i} as it is, or None, and so on and on."
        told = {"kind": "class" if i % 5 == 0 else "function", "module": module, "package": package, "summary": summary}
        found.append(Document(f"{module}.make_{i}", "text", told))
    return [*found, Document("x.<locals>.y", "", {**found[0].metadata}), Document("a", "", {"kind": "module"})]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, home: Path, tiny_model, tiny_tokenizer) -> str:
    monkeypatch.setattr(trials.corpora, "load", lambda spec: documents())
    loaded = Loaded(tiny_model(max_position_embeddings=8192), tiny_tokenizer(), "tiny")
    monkeypatch.setattr(DataPreprocessorsTrial, "loaded", loaded)
    return "pydocs:stdlib"


def test_a_table_holds_functions_and_classes_alone():
    rows = table(documents())
    assert len(rows) == 400
    assert list(rows[0]) == ["name", "module", "package", "kind", "summary"]
    assert len(rows[0]["summary"].split()) == 8


def test_faults_are_as_planted_and_records_are_of_one_task_alone():
    made = planted(documents(), 60, 40, 4, seed=0)
    assert made == planted(documents(), 60, 40, 4, seed=0) != planted(documents(), 60, 40, 4, seed=1)
    names = []
    for name, task in made.items():
        assert (len(task.asked), len(task.labelled), len(task.shots)) == (60, 40, 4)
        assert [case.number for case in task.asked] == list(range(60))
        first = [case.about if name != "entities" else case.about[0] for case in [*task.asked, *task.labelled]]
        names += [row["name"] for row in first]
        if name != "impute":
            assert [bool(case.gold) for case in task.asked].count(True) == 30
            assert [bool(shot.answer) for shot in task.shots].count(True) == 2
        assert all(shot.reason for shot in task.shots)
    assert len(set(names)) == len(names) == 300
    of = {row["name"]: row for row in table(documents())}
    elsewhere = 0
    for case in made["errors"].asked:
        assert (case.about[CHECKED] != of[case.about["name"]][CHECKED]) == case.gold
        elsewhere += not case.gold and case.about["summary"] != of[case.about["name"]]["summary"]
        assert case.group == of[case.about["name"]][CHECKED]
    assert elsewhere > 5, "a typo that is not asked for"
    for case in made["entities"].asked:
        left, right = case.about
        assert left == of[left["name"]]
        missing = [name for name, value in right.items() if value is None]
        assert len(missing) == 1
        assert case.gold or right["name"] != left["name"]
    assert all(case.gold == case.about["package"] for case in made["impute"].asked)
    with pytest.raises(InputError, match="got 400 functions and classes; expected 600 for 200 cases of three tasks"):
        planted(documents(), 100, 96, 4, seed=0)


def test_a_typo_changes_a_text_by_one_slip():
    drawn = random.Random(0)
    for text in ("asyncio.events", "a", "", "x.", "aa"):
        for _ in range(30):
            made = typo(text, drawn)
            assert made != text
            assert abs(len(made) - len(text)) <= 1


def test_every_arm_answers_every_case(data):
    trial = DataPreprocessorsTrial(quick=True, method="data_preprocessors(answer_tokens=3)")
    result = trial.run()
    assert {arm.name: arm.status for arm in result.arms} == dict.fromkeys(
        (ZERO, ONE, OURS, MAJORITY, TFIDF, REGRESSION), "ok"
    )
    arms = {arm.name: arm for arm in result.arms}
    values = {arm.name: {name: each.estimate for name, each in arm.values.items()} for arm in result.arms}
    assert values[MAJORITY][BALANCED["errors"]] == 0.5
    assert values[TFIDF][FOUND] > values[MAJORITY][FOUND], "the module names the package"
    assert values[REGRESSION][BALANCED["errors"]] > 0.5
    for told in ("errors", "gaps", "matches"):
        assert values[MAJORITY][f"tokens, {told}"] == 0
        first = {name: values[name][f"prompt tokens asked first, {told}"] for name in (ZERO, ONE, OURS)}
        assert first[OURS] < first[ONE] > first[ZERO]
        assert values[OURS][f"not read, {told}"] == 1, "a random model keeps to no form"
        assert values[OURS][f"tokens, {told}"] > values[ONE][f"tokens, {told}"], "and each row is asked twice"
        assert set(arms[OURS].samples[f"asked twice, {told}"]) == {1.0}
    assert values[OURS][BALANCED["entities"]] == 0.5, "what cannot be read is no"
    assert {claim.arm for claim in result.judged} == {OURS}
    assert not any(claim.verdict == "shown" for claim in result.judged)
    assert any("broadsheet try data_preprocessors --model" in note for note in result.notes)
    assert any("nothing here reproduces it" in note for note in result.notes)
    [curve] = result.figures
    for line in curve.lines.values():
        assert line == sorted(line, reverse=True)
        assert line[0] > line[-1]
    assert result.examples
    assert json.dumps(result.to_dict())


def test_the_whole_trial_claims_for_the_paper_alone(data):
    trial = DataPreprocessorsTrial(cases=16, labelled=16)
    tasks = trial.tasks()
    arms = {arm.name: arm for arm in trial.arms()}
    assert set(arms) == {ZERO, ONE, OURS, CLUSTERED, BARE, SCORED, MAJORITY, TFIDF, REGRESSION}
    assert {name for name, arm in arms.items() if arm.paper} == {OURS, CLUSTERED}
    assert {claim.arm for claim in trial.claims()} == {OURS}
    assert {claim.baseline for claim in trial.claims()} == {ZERO, ONE, TFIDF, REGRESSION}
    assert TablePreprocessor.paper == trial.paper
    metrics = [metric.name for task in tasks for metric in task.metrics]
    assert {claim.metric for claim in trial.claims()} <= set(metrics)
    assert {MATCHED, EXACT} <= set(metrics)
    assert len(set(metrics)) == len(metrics)
    assert all(task.pilot == 0 for task in tasks)
    whole = DataPreprocessorsTrial(labelled=8, shots=2, method="data_preprocessors(batch_size=1)")
    monkey = planted(documents(520), 160, 8, 2, 0)
    whole._planted, whole._block = monkey, 4
    assert all(whole._task(name, made).pilot == 20 for name, made in monkey.items())


def test_a_request_is_a_cluster_of_costs(data):
    trial = DataPreprocessorsTrial(cases=20, labelled=16, shots=2)
    [errors, _, _] = trial.tasks()
    assert errors.block_size == 16
    answers = trial._asked(trial._method(answer_tokens=1), 2)
    tokens = [row.prompt_tokens for block in (errors.items[:16], errors.items[16:]) for row in answers("errors", block)]
    [cost] = [metric for metric in errors.metrics if metric.name == "tokens, errors"]
    of = [cost.cluster(case) for case in errors.items]
    assert len(set(of)) == 5
    shares = {cluster: {tokens[i] for i in range(20) if of[i] == cluster} for cluster in of}
    assert all(len(each) == 1 for each in shares.values()), "rows of a request have equal shares"


def test_scored_answers_have_a_threshold_from_labelled_cases(data):
    trial = DataPreprocessorsTrial(cases=8, labelled=16, shots=2)
    trial.tasks()
    scored = trial._scored()
    made = trial._planted["errors"]
    rows = scored("errors", made.asked)
    known = TablePreprocessor(trial._teacher, scorer="log-probabilities")
    odds = [each.score for each in known.ask(trials.TASKS["errors"], [c.about for c in made.labelled], made.shots)]
    threshold = best_threshold([bool(case.gold) for case in made.labelled], odds)
    own = [each.score for each in known.ask(trials.TASKS["errors"], [c.about for c in made.asked], made.shots)]
    assert [row.value for row in rows] == [score > threshold for score in own]
    gaps = scored("impute", trial._planted["impute"].asked[:2])
    assert {row.value for row in gaps} <= {case.gold for case in trial._planted["impute"].labelled}


def test_the_best_threshold_parts_what_can_be_parted():
    assert 0.2 < best_threshold([False, False, True, True], [0.1, 0.2, 0.7, 0.9]) < 0.7
    assert best_threshold([True, True], [1.0, 2.0]) < 1


def test_prompt_tokens_are_counted_as_the_model_reads_them(data):
    trial = DataPreprocessorsTrial(cases=8, labelled=16, shots=2)
    trial.tasks()
    made, task = trial._planted["errors"], trials.TASKS["errors"]
    each = [prompt_tokens(trial._teacher, task, made, size) for size in (1, 2, 4, 8)]
    shared = (each[0] - each[1]) * 2
    assert each == pytest.approx([each[0] - shared * (1 - 1 / size) for size in (1, 2, 4, 8)], rel=0.02)
    assert np.all(np.diff(each) < 0)

"""The trial of models of periods: who learns from what, what is asked, and for whom it claims."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from training_runs import differ

from broadsheet.console import InputError
from broadsheet.curate.diachronic import Diachronic
from broadsheet.curate.periods.counts import words_of
from broadsheet.curate.periods.planting import RENAMED
from broadsheet.curate.trials.diachronic import (
    BITS,
    COMPANY,
    COUNTS,
    LEAK,
    NAMES,
    OURS,
    OWN,
    PLAIN,
    TUNED,
    DiachronicTrial,
)
from broadsheet.training.scratch import Size

TINY = {"texts": 12, "steps": 12, "batch": 4, "length": 32, "vocabulary": 300, "planted": 8, "lr": 1e-2}


@pytest.fixture
def data(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forty texts of each of three periods, which share most words; some come later."""
    monkeypatch.setattr("broadsheet.training.scratch.SIZES", {"0.4M": Size(1, 16, 2)})
    drawn = random.Random(0)
    shared = ["".join(drawn.choices("abcdefghij", k=5)) for _ in range(90)]
    rows = []
    for period in ("1800", "1850", "1900"):
        own = [f"{each}{period[1:]}".translate(str.maketrans("0589", "wxyz")) for each in ("tele", "radio", "motor")]
        for i in range(40):
            words = random.Random(f"{period} {i}").choices([*shared, *own], k=130)
            rows.append({"id": f"{period} {i}", "text": " ".join(words), "label": period})
    path = tmp_path / "periods.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_all_ways_are_compared_and_each_run_has_seeds_of_its_own(data):
    trial = DiachronicTrial(data=data, quick=True, periods=2, runs=2, **TINY)
    result = trial.run()
    assert {arm.name: arm.status for arm in result.arms} == dict.fromkeys((TUNED, PLAIN, OURS, COUNTS), "ok")
    assert {arm.name: arm.role for arm in result.arms} == {
        TUNED: "baseline", PLAIN: "sibling", OURS: "method", COUNTS: "sibling",
    }  # fmt: skip
    values = {arm.name: {name: each.estimate for name, each in arm.values.items()} for arm in result.arms}
    for told in values.values():
        assert {BITS, OWN, LEAK, NAMES, COMPANY} <= set(told)
        assert 0 < told[LEAK] < 1e6
        assert 1 < told[BITS] < 9
    assert len({told[BITS] for told in values.values()}) == 4, "they are different models"
    assert values[COUNTS][NAMES] == 1, "log-odds find every new name where nothing else changes"
    assert differ(trial, TUNED, PLAIN, OURS)
    assert {(each.metric, each.baseline, each.arm) for each in result.judged} == {
        (LEAK, TUNED, OURS), (OWN, TUNED, OURS), (COMPANY, COUNTS, OURS), (NAMES, COUNTS, OURS),
    }  # fmt: skip
    assert any("own model" in note for note in result.notes)


def test_what_is_asked_is_held_out_and_later_words_are_later(data):
    trial = DiachronicTrial(data=data, **TINY)
    held, changed = trial.tasks()
    assert trial._names == ["1800", "1850", "1900"]
    assert {item.period for item in held.items} == {0, 1, 2}
    made_up = {each.word for each in changed.items if each.kind == RENAMED}
    assert made_up
    for place, some in enumerate(trial._held):
        assert not set(some.train) & set(some.held_out)
        known = {word for each in trial._held[: place + 1] for text in each.train for word in words_of(text)}
        later = {word for each in trial._held[place + 1 :] for text in each.train for word in words_of(text)}
        assert not set(trial._later[place]) & (known | made_up)
        assert set(trial._later[place]) <= later
    assert [len(words) > 0 for words in trial._later] == [True, True, False]
    leak = next(metric for metric in held.metrics if metric.name == LEAK)
    assert {leak.only(item) for item in held.items if item.period == 2} == {False}


def test_a_student_has_two_teachers_and_the_tuned_model_has_read_every_period(data, monkeypatch):
    trial = DiachronicTrial(data=data, periods=2, method="diachronic(weight_decay=0.5)", **TINY)
    trial.tasks()
    trial.workdir = Path(data).parent / "work"
    trial.arms()
    asked = []
    objective = Diachronic.objective

    def watched(self, teachers, *rest):
        asked.append((self.weight_decay, [each.lm_head.weight.clone() for each in teachers]))
        return objective(self, teachers, *rest)

    monkeypatch.setattr(Diachronic, "objective", watched)
    ours = trial._model(OURS, 0, 0)
    [(decay, teachers)] = asked
    assert decay == 0.5
    plain = trial._model(PLAIN, 0, 0)
    assert np.array_equal(teachers[0].detach(), plain.model.lm_head.weight.detach())
    assert not np.array_equal(teachers[0].detach(), teachers[1].detach())
    assert ours.tokenizer.get_vocab() == plain.tokenizer.get_vocab()
    tuned = [trial._model(TUNED, place, 0) for place in (0, 1)]
    begun = trial._begun(0)
    assert tuned[0].tokenizer.get_vocab() == tuned[1].tokenizer.get_vocab() == begun.tokenizer.get_vocab()
    assert plain.tokenizer.get_vocab() != begun.tokenizer.get_vocab()
    record = json.loads((trial.run_folder("all periods", 0) / "training.json").read_text())
    assert record["steps"] == 2 * 12, "each text as often as a period's own model reads it"


def test_each_way_has_as_many_rates_to_choose_from_and_the_prior_too(data):
    trial = DiachronicTrial(data=data, periods=2, **{**TINY, "lr": None})
    trial.tasks()
    trial.workdir = Path(data).parent / "work"
    trial.arms()
    assert {name: kept["given"] for name, kept in trial._tuning.items()} == dict.fromkeys(
        (PLAIN, OURS, TUNED, COUNTS), 3
    )


def test_what_cannot_be_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="got texts of 0 periods in the field 'year'"):
        DiachronicTrial(data=data, period_field="year", **TINY).run()
    with pytest.raises(InputError, match="more than 0"):
        DiachronicTrial(data=data, **{**TINY, "lr": -1.0}).check()
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": "one text", "label": "1"}\n{"text": "another", "label": "2"}\n')
    with pytest.raises(InputError, match="give more text"):
        DiachronicTrial(data=str(few), **TINY).run()

"""The laboratory: every arm learns from the same rows, is compared by loss and pace, and ends when it is to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broadsheet.console import InputError
from broadsheet.train.trials.lab import LOSS, PACE, RATES
from broadsheet.train.trials.loss_reweighting import LINUPPER, MIXED, SHUFFLED, UNIFORM, LossReweightingTrial
from broadsheet.train.trials.salt import OURS, PLAIN, SHORT, TIMED, SALTTrial
from broadsheet.training.scratch import Size

TINY = {"texts": 6, "steps": 12, "batch": 4, "length": 32, "vocabulary": 300, "size": "0.4M", "runs": 1}
TALE = "a model reads many words and says which word comes next in each of its texts"
WORDS = TALE.split()


@pytest.fixture
def data(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        drawn = np.random.default_rng(i).choice(WORDS, 160)
        (folder / f"{i}.txt").write_text(" ".join(drawn))
    monkeypatch.setattr("broadsheet.training.scratch.SIZES", {"0.4M": Size(1, 16, 2)})
    return str(folder)


def test_two_arms_are_trained_and_compared_by_loss_and_pace(data):
    trial = SALTTrial(data=data, quick=True, lr=1e-2, teacher="0.4M", **TINY)
    result = trial.run()
    assert {arm.name: arm.status for arm in result.arms} == {PLAIN: "ok", OURS: "ok"}
    compared = {(each.metric, each.arm) for each in result.comparisons}
    assert {(LOSS, OURS), (PACE, OURS)} <= compared
    values = {arm.name: arm.values[LOSS].estimate for arm in result.arms}
    assert all(0.5 < value < 3 for value in values.values())
    assert values[PLAIN] != values[OURS], "the teacher taught"
    assert "teacher" in result.setting
    assert [claim.metric for claim in result.judged] == [LOSS]


def test_the_arms_of_a_whole_trial_have_the_steps_that_they_are_to_have(data):
    trial = SALTTrial(data=data, lr=1e-2, **{**TINY, "steps": 40})
    trial.tasks()
    trial.workdir = Path(data).parent
    names = [arm.name for arm in trial.arms()]
    assert {PLAIN, OURS, SHORT, TIMED} <= set(names)
    assert trial._steps(trial._lab[SHORT]) == 28
    assert 12 <= trial._steps(trial._lab[TIMED]) <= 40, "its teacher's reading counts"
    assert {claim.arm for claim in trial.claims()} <= set(names)
    assert trial._lab[SHORT].method(0).steps == round(0.7 * round(40 * 0.17))


def test_boilerplate_is_as_much_as_is_asked_for_and_never_what_is_held_out(data):
    trial = LossReweightingTrial(data=data, lr=1e-2, **TINY)
    trial.tasks()
    rows = trial.rows(MIXED)
    assert float(trial._is_boilerplate.float().mean()) == pytest.approx(0.5, abs=0.02)
    planted = trial.tokenizer.decode(rows.ids[trial._is_boilerplate][0])
    assert not any(planted[:40] in text for text in trial.held.held_out)
    repeated = rows.ids[trial._is_boilerplate]
    assert len({tuple(row.tolist()) for row in repeated}) < len(repeated), "again and again"
    assert [arm.name for arm in trial.lab()][:2] == [UNIFORM, LINUPPER]
    shuffled = next(arm for arm in trial.lab() if arm.name == SHUFFLED)
    assert shuffled.rate_of == LINUPPER


def test_each_arm_has_its_own_rate_of_as_many_to_choose_from(data):
    trial = LossReweightingTrial(data=data, quick=True, **{**TINY, "lr": None})
    trial.lr = None
    result = trial.run()
    told = {name: text for name, text in result.setting.items() if name.startswith("tuning of")}
    assert set(told) == {f"tuning of {UNIFORM}", f"tuning of {LINUPPER}"}
    assert all(f"the best of {len(RATES)}" in text for text in told.values())
    assert any("boilerplate weighs" in note for note in result.notes)


def test_what_cannot_be_is_refused(data):
    with pytest.raises(InputError, match="more than 0"):
        SALTTrial(data=data, lr=-1.0, **TINY).check()

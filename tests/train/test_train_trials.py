"""The laboratory: every arm learns from the same rows, is compared by loss and pace, and ends when it is to end."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from broadsheet.console import InputError
from broadsheet.train.probes import mixture_run, places
from broadsheet.train.trials.cmr import BEFORE as UNTRAINED
from broadsheet.train.trials.cmr import HALF, PREDICTED, CriticalMixtureRatioTrial
from broadsheet.train.trials.continual_pretraining import (
    INFINITE,
    LITTLE,
    LOW,
    REPLAY,
    WARM,
    ContinualPretrainingTrial,
)
from broadsheet.train.trials.continual_pretraining import UNION as BOTH_TEXTS
from broadsheet.train.trials.dataset_decomposition import GROUPED, JOINED, PACKED, DatasetDecompositionTrial
from broadsheet.train.trials.dataset_decomposition import OURS as OURS_PIECES
from broadsheet.train.trials.dataset_decomposition import SHORT as SHORT_ROWS
from broadsheet.train.trials.dataset_decomposition import UNIFORM as UNIFORM_PIECES
from broadsheet.train.trials.loss_reweighting import LINUPPER, MIXED, SHUFFLED, UNIFORM, LossReweightingTrial
from broadsheet.train.trials.salt import OURS, PLAIN, SHORT, TIMED, SALTTrial
from broadsheet.train.trials.token_crisis import DROPPED, FRESH, REPEATED, STAGED, STOPPED, TokenCrisisTrial
from broadsheet.train.trials.two_texts import BOTH, NEW, OLD
from broadsheet.training.scratch import Size
from broadsheet.trial.trained.laboratory import LOSS, PACE

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
    rows = trial.rows(MIXED, 0)
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
    assert all(re.search(r", the best( and the \w+est)? of [345] on", text) for text in told.values())
    assert any("boilerplate weighs" in note for note in result.notes)


def decomposed(data: str, **given) -> DatasetDecompositionTrial:
    trial = DatasetDecompositionTrial(data=data, lr=1e-2, **{**TINY, "length": 64, **given})
    trial.tasks()
    return trial


def test_all_ways_to_make_rows_read_as_many_tokens_a_step_and_nothing_of_others(data):
    trial = decomposed(data, steps=14)
    tokens, end = 4 * 64, trial.tokenizer.eos_token_id
    for name in (OURS_PIECES, UNIFORM_PIECES, SHORT_ROWS, GROUPED, PACKED):
        rows, again, other = (trial.rows(name, seed) for seed in (0, 0, 1))
        assert rows.whole
        assert len(rows) >= trial.steps
        for i in range(trial.steps):
            assert torch.equal(rows[i]["input_ids"], again[i]["input_ids"])
        assert any(
            rows[i]["input_ids"].shape != other[i]["input_ids"].shape
            or not torch.equal(rows[i]["input_ids"], other[i]["input_ids"])
            for i in range(trial.steps)
        ), "each seed has an order of its own"
        read = [rows[i]["input_ids"] for i in range(trial.steps)]
        if name in (OURS_PIECES, UNIFORM_PIECES):
            assert {(each.shape[1] - 1) * len(each) for each in read} == {tokens}
        elif name == GROUPED:
            asked = [int(rows[i]["attention_mask"].sum()) for i in range(len(rows))]
            assert np.mean(asked) == pytest.approx(tokens, rel=0.2)
            widths = [each.shape[1] for each in read]
            assert max(widths) <= 64
        else:
            assert {each.numel() for each in read} == {tokens}
    packed = trial.rows(PACKED, 0)[0]
    begins = packed["position_ids"] == 0
    assert bool((packed["labels"][begins] == -100).all())
    assert bool((packed["input_ids"][begins & (packed["labels"].roll(-1, 1) != -100)] == end).any())


def test_a_packed_document_is_read_as_it_is_alone(data):
    trial = decomposed(data)
    model, packed = trial.new(0).eval(), trial.rows(PACKED, 0)[0]
    positions = packed["position_ids"][0]
    starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
    together = model(packed["input_ids"][:1], position_ids=packed["position_ids"][:1], use_cache=False).logits[0]
    for first, last in pairwise(starts):
        alone = model(packed["input_ids"][:1, first:last], use_cache=False).logits[0]
        torch.testing.assert_close(together[first:last], alone, atol=1e-5, rtol=1e-4)


def test_pieces_are_tried_beside_documents_joined_and_cut(data):
    result = DatasetDecompositionTrial(data=data, quick=True, lr=1e-2, **{**TINY, "length": 64}).run()
    assert {arm.name: arm.status for arm in result.arms} == {JOINED: "ok", OURS_PIECES: "ok"}
    assert {(each.metric, each.arm) for each in result.comparisons} >= {(LOSS, OURS_PIECES), (PACE, OURS_PIECES)}
    assert "a token sees" in result.setting["lengths"]
    with pytest.raises(InputError, match="power of two"):
        DatasetDecompositionTrial(data=data, length=100).check()


def test_a_part_of_the_text_is_read_as_much_oftener(data):
    trial = TokenCrisisTrial(data=data, quick=True, lr=1e-2, unique=0.25, **TINY)
    result = trial.run()
    assert {arm.name: arm.status for arm in result.arms} == {REPEATED: "ok", FRESH: "ok", DROPPED: "ok"}
    few, all_rows = trial.rows(REPEATED, 0), trial.rows("", 0)
    assert len(few) == pytest.approx(0.25 * len(all_rows), abs=1)
    known = {tuple(row.tolist()) for row in all_rows.ids}
    assert all(tuple(row.tolist()) in known for row in few.ids)
    read = 12 * 4 * 32 / few.ids.numel()
    assert f"read {read:.1f} times" in result.setting["repeated text"]
    with pytest.raises(InputError, match=r"expected 0\.95 or less"):
        TokenCrisisTrial(data=data, unique=1.0).check()


def test_dropout_and_early_stopping_are_chosen_alike(data):
    trial = TokenCrisisTrial(data=data, lr=1e-2, unique=0.25, **{**TINY, "steps": 60})
    trial.tasks()
    trial.workdir = Path(data).parent
    trial.arms()
    assert {name: kept["given"] for name, kept in trial._tuning.items()} == {"dropout": 3, STOPPED: 3}
    lab = trial._lab
    assert trial._steps(lab[STOPPED]) in (12, 24, 42)
    late, early = (lab[name].method(0) for name in (STAGED, DROPPED))
    assert (late.start, early.start) == (18, 0)
    assert late.rate == early.rate
    assert {claim.arm for claim in trial.claims()} <= set(lab)


@pytest.fixture
def later(tmp_path: Path) -> str:
    """Other texts, of other words."""
    folder = tmp_path / "later"
    folder.mkdir()
    words = TALE.upper().split()
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(np.random.default_rng(99 + i).choice(words, 160)))
    return str(folder)


def test_a_model_that_has_learnt_one_text_learns_another(data, later):
    trial = ContinualPretrainingTrial(data=later, old=data, quick=True, lr=1e-2, **{**TINY, "steps": 40})
    result = trial.run()
    arms = {arm.name: arm for arm in result.arms}
    assert {name: arm.status for name, arm in arms.items()} == {LOW: "ok", WARM: "ok", REPLAY: "ok"}
    values = {name: {metric: arm.values[metric].estimate for metric in (NEW, OLD, BOTH)} for name, arm in arms.items()}
    for each in values.values():
        assert each[BOTH] == pytest.approx((each[NEW] + each[OLD]) / 2)
    assert values[WARM][NEW] < values[LOW][NEW], "a higher rate learns more"
    assert values[REPLAY][OLD] < values[WARM][OLD], "what is replayed is kept"
    assert "after which tuning documents cost" in result.setting["before"]


def test_each_way_begins_with_the_weights_and_reads_at_the_rate_that_are_its_own(data, later):
    trial = ContinualPretrainingTrial(data=later, old=data, lr=1e-2, **{**TINY, "steps": 40})
    trial.tasks()
    trial.workdir = Path(data).parent
    trial.arms()
    lab = trial._lab
    assert {claim.arm for claim in trial.claims()} <= set(lab)
    assert {name: trial._steps(arm) for name, arm in lab.items()} == dict.fromkeys(lab, 40) | {BOTH_TEXTS: 80}
    low, again, endless = (lab[name] for name in (LOW, WARM, INFINITE))
    assert trial._rate_of(low) == pytest.approx(1e-3)
    rate = again.schedule(40, 1e-2)
    assert (rate.max_lr, rate.min_lr, rate.lr(1), rate.lr(40)) == pytest.approx((1e-2, 1e-3, 1e-2, 1e-3))
    constant = endless.schedule(40, 1e-2)
    assert [constant.lr(step) for step in (0, 20, 34)] == pytest.approx([5.5e-3] * 3)
    assert constant.lr(40) == pytest.approx(1e-3)
    assert trial._infinite.lr(40) == pytest.approx(5.5e-3), "where the first training ended"
    first, other = low.start(0), endless.start(0)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert torch.equal(again.start(0).lm_head.weight, first.lm_head.weight)
    shares = {name: float(trial.rows(name, 0).second_at.float().mean()) for name in (LITTLE, REPLAY, BOTH_TEXTS)}
    assert shares == pytest.approx({LITTLE: 0.05, REPLAY: 0.25, BOTH_TEXTS: 0.5})


def test_the_share_that_short_runs_predict_is_trained_at(data, later):
    given = {**TINY, "steps": 60, "texts": 8}
    trial = CriticalMixtureRatioTrial(data=later, old=data, quick=True, lr=1e-2, epsilon=0.2, **given)
    result = trial.run()
    assert {arm.name: arm.status for arm in result.arms} == dict.fromkeys((HALF, PREDICTED, UNTRAINED), "ok")
    untrained = next(arm for arm in result.arms if arm.name == UNTRAINED)
    own = trial.losses(trial.begun(0).eval(), trial.asked())
    assert untrained.values[OLD].estimate == pytest.approx(own[OLD].mean(), rel=1e-6), "it is the model before"
    runs = trial.law.runs
    assert [run.ratio for run in runs] == [0.125, 0.25, 0.5, 0.75, 1.0]
    assert all(run.tokens[-1] == 60 * 4 * 32 for run in runs)
    assert all(run.before == runs[0].before for run in runs)
    share = float((~trial.rows(PREDICTED, 0).second_at).float().mean())
    assert share == pytest.approx(trial.predicted.value or 0.125, abs=0.01)
    assert str(trial.predicted) in result.setting["critical ratio"]
    [claim, _] = trial.claims()
    assert claim.margin == 0.2


def test_a_probing_run_is_not_made_twice(data, later, monkeypatch):
    trial = CriticalMixtureRatioTrial(data=later, old=data, quick=True, lr=1e-2, **TINY)
    trial.tasks()
    trial.workdir = Path(data).parent
    made = {"steps": 12, "batch": 4, "rate": 1e-2, "measure": trial.tuning_losses}
    out = trial.folder("a run")

    def run():
        return mixture_run(0.5, trial.begun(0), trial.plain_rows, trial.old_rows, out=out, **made)

    first = run()
    assert list(first.tokens) == [4 * 32 * step for step in places(12)]
    monkeypatch.setattr("broadsheet.train.probes.fit", lambda *given, **more: pytest.fail("trained again"))
    assert run() == first


def test_what_cannot_be_is_refused(data):
    with pytest.raises(InputError, match="more than 0"):
        SALTTrial(data=data, lr=-1.0, **TINY).check()

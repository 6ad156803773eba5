"""The trial of mixtures of experts: what arms begin with, what they spend, and how experts in use are counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from broadsheet.console import InputError
from broadsheet.train.experts.routers import active_weights, loads
from broadsheet.train.trials.moe_survey import (
    DENSE,
    FREE,
    OURS,
    TIMED,
    USED,
    WIDER,
    MoESurveyTrial,
    experts_in_use,
    widened,
)
from broadsheet.training.scratch import Size
from broadsheet.trial.trained.laboratory import LOSS, PACE

TINY = {"texts": 6, "steps": 12, "batch": 4, "length": 32, "vocabulary": 300, "size": "0.4M", "runs": 1, "lr": 1e-2}
TALE = "a model reads many words and says which word comes next in each of its texts"
WORDS = TALE.split()


@pytest.fixture
def data(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(np.random.default_rng(i).choice(WORDS, 160)))
    monkeypatch.setattr("broadsheet.training.scratch.SIZES", {"0.4M": Size(2, 16, 2)})
    return str(folder)


def test_a_dense_model_and_its_mixtures_are_compared_by_loss_pace_and_experts_in_use(data):
    trial = MoESurveyTrial(data=data, quick=True, **TINY)
    result = trial.run()
    assert {arm.name: arm.status for arm in result.arms} == {DENSE: "ok", OURS: "ok", FREE: "ok"}
    assert {(LOSS, OURS), (USED, OURS), (PACE, OURS)} <= {(each.metric, each.arm) for each in result.comparisons}
    values = {arm.name: {metric: arm.values[metric].estimate for metric in (LOSS, USED)} for arm in result.arms}
    assert values[DENSE][USED] == 1
    assert 1 < values[FREE][USED] <= 4
    assert 1 < values[OURS][USED] <= 4
    assert values[OURS][LOSS] != values[FREE][LOSS]
    model = trial._load(trial.folder(OURS))
    assert type(model).__name__ == "MixtralForCausalLM"
    load = trial._load_of(model, trial.held.held_out).sum(0).reshape(2, 4)
    share = load / load.sum(1, keepdims=True)
    entropies = -(share * np.log(share)).sum(1)
    assert values[OURS][USED] == pytest.approx(np.exp(entropies).mean(), rel=1e-6)
    assert [(claim.metric, claim.baseline, claim.kind) for claim in result.judged] == [
        (LOSS, DENSE, "claim"), (USED, FREE, "claim"),
    ]  # fmt: skip
    [note, _] = [each for each in result.notes if "entropy of an even one" in each]
    assert f"{entropies[0] / np.log(4):.0%}".replace("%", " %") in note


def test_all_arms_begin_where_the_dense_model_ended_and_spend_what_they_are_to(data):
    trial = MoESurveyTrial(data=data, **{**TINY, "steps": 24})
    trial.tasks()
    trial.workdir = Path(data).parent
    names = [arm.name for arm in trial.arms()]
    assert names == [DENSE, OURS, FREE, WIDER, TIMED]
    assert {claim.arm for claim in trial.claims()} == {OURS, TIMED}
    assert [claim.kind for claim in trial.claims() if claim.baseline == WIDER] == ["control"]
    begun = {name: trial._lab[name].start(0).eval() for name in names}
    ids = trial.plain_rows.ids[:2]
    with torch.no_grad():
        told = {name: model(ids).logits for name, model in begun.items()}
        fresh = trial.new(0)(ids).logits
    for name in names[1:]:
        torch.testing.assert_close(told[name], told[DENSE], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(told[DENSE], fresh), "it was trained"
    active, total = active_weights(begun[OURS])
    wide = sum(each.numel() for each in begun[WIDER].parameters())
    router = 2 * 4 * 16
    assert active - router == wide < total, "as much is spent on a token"
    assert {name: trial._steps(trial._lab[name]) for name in names[:-1]} == dict.fromkeys(names[:-1], 24)
    assert 12 <= trial._steps(trial._lab[TIMED]) <= 24
    methods = {name: trial._lab[name].method(0) for name in (OURS, FREE, TIMED)}
    assert (methods[OURS].balance, methods[TIMED].balance, methods[FREE].balance) == (0.01, 0.01, 0.0)
    assert methods[FREE].z == methods[OURS].z, "the balance loss alone is away"
    assert {name: trial._lab[name].rate_of for name in (OURS, FREE, TIMED, WIDER)} == {
        OURS: "", FREE: OURS, TIMED: OURS, WIDER: "",
    }  # fmt: skip
    assert [type(trial.paced(trial._lab[name])).__name__ for name in names] == [
        "LlamaForCausalLM", "MixtralForCausalLM", "MixtralForCausalLM", "LlamaForCausalLM", "MixtralForCausalLM",
    ]  # fmt: skip


def test_copies_in_a_wider_network_learn_different_things(data):
    dense = Size(1, 16, 2).model(30, 32, 0).eval()
    wide = widened(dense, 3, 0)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(wide(ids).logits, dense(ids).logits, atol=1e-5, rtol=1e-4)
    assert wide.config.intermediate_size == 3 * dense.config.intermediate_size
    wide(ids, labels=ids).loss.backward()
    first, second, _ = wide.model.layers[0].mlp.gate_proj.weight.grad.chunk(3)
    assert not torch.allclose(first, second, rtol=1e-2, atol=0)


def test_experts_in_use_are_those_of_all_items_together():
    statistic = experts_in_use(2)
    one = [8.0, 0, 0, 0, 2, 2, 2, 2]
    other = [0.0, 8, 0, 0, 2, 2, 2, 2]
    assert statistic(np.array([one, other]), np.array([[1.0, 1.0], [2.0, 0.0]])).tolist() == pytest.approx([3.0, 2.5])


def test_experts_that_cannot_be_are_refused(data):
    with pytest.raises(InputError, match="expected 2 experts or more"):
        MoESurveyTrial(data=data, experts=2, top_k=3).check()
    trial = MoESurveyTrial(data=data, method="Upcycling(noise=0.1),ExpertBalance(balance=0.5)", **TINY)
    trial.tasks()
    trial.workdir = Path(data).parent
    assert next(arm for arm in trial.lab() if arm.name == OURS).method(0).balance == 0.5
    assert trial._upcycling(0).noise == 0.1
    model = trial._upcycling(0).model(trial.new(0))
    assert loads(model, [{"input_ids": trial.plain_rows.ids[0]}]).sum() == 2 * 2 * 32

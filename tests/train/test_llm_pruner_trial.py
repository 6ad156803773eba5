"""The trial of LLM-Pruner: arms that lose as much by different rules, and what Torch-Pruning makes of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.models import surgery
from broadsheet.train.trials.llm_pruner import (
    BOTH_ORDERS,
    CUT,
    DENSE,
    OURS,
    PEER,
    RANDOM,
    RANDOM_TUNED,
    SECONDS,
    SIZE,
    TUNED,
    VECTOR,
    LLMPrunerTrial,
)
from broadsheet.trial.trained.laboratory import LOSS

TALE = "a model reads many words and says which word comes next in each of its texts"
WORDS = TALE.split()


@pytest.fixture
def given(tmp_path: Path, home: Path, tiny_folder: Path) -> dict[str, Any]:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(np.random.default_rng(i).choice(WORDS, 160)))
    sizes = {"texts": 5, "samples": 3, "window": 16, "steps": 3, "batch": 2, "length": 32, "prompts": 2, "runs": 1}
    return {"model": str(tiny_folder), "data": str(folder), "lr": 1e-2, **sizes}


def test_arms_lose_as_much_and_are_compared_by_loss_and_speed(given):
    result = LLMPrunerTrial(**given).run()
    status = {arm.name: arm.status for arm in result.arms}
    assert set(status.values()) == {"ok"}, status
    assert set(status) == {
        TUNED, OURS, CUT, RANDOM, SIZE, RANDOM_TUNED, DENSE, VECTOR, BOTH_ORDERS, PEER
    }  # fmt: skip
    values = {arm.name: arm.values[LOSS].estimate for arm in result.arms}
    assert values[PEER] == pytest.approx(values[CUT], abs=1e-6), "it finds the same channels"
    assert len({round(values[name], 6) for name in (DENSE, TUNED, CUT, OURS, RANDOM, RANDOM_TUNED, SIZE)}) == 7
    assert {claim.metric for claim in result.judged} == {LOSS, "texts/s", SECONDS.name}
    assert "without 32 of 128 MLP channels and 0 of 4 key-value heads" in result.setting["pruned"]
    assert "multiply-adds" in result.setting["work"]


def test_torch_pruning_finds_the_same_groups_and_channels(given):
    trial = LLMPrunerTrial(**given, method="LLMPruner(kinds=('mlp',))")
    trial.tasks()
    ours, theirs, whole = trial._cut("param_first", 0), trial._by_peer(), models.load(given["model"]).model
    assert surgery.widths(ours) == surgery.widths(theirs) == [[48, 2]] * 2
    assert surgery.widths(whole) == [[64, 2]] * 2
    for own, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(own, other)


def test_a_repaired_model_is_read_back_as_it_was_trained(given, tmp_path):
    trial = LLMPrunerTrial(**given)
    trial.tasks()
    trial.workdir = tmp_path
    arm = next(each for each in trial.arms() if each.name == OURS)
    made, again, cut = arm.make(), arm.make(), trial._cut("param_first", 0)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    assert [each.shape for each in made.parameters()] == [each.shape for each in cut.parameters()]
    assert not all(torch.equal(a, b) for a, b in zip(made.parameters(), cut.parameters(), strict=True))


def test_its_training_begins_where_its_seed_says_whatever_was_drawn_before(given, tmp_path):
    trial = LLMPrunerTrial(**given)
    trial.tasks()
    folders = [tmp_path / "one", tmp_path / "other", tmp_path / "third"]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        trial._train("param_first", seed, trial.steps, 1e-2, folder)
        torch.rand(3)
    one, other, third = [(folder / "adapter_model.safetensors").read_bytes() for folder in folders]
    assert one == other != third


def test_each_rate_is_chosen_from_as_many(given, tmp_path):
    trial = LLMPrunerTrial(**{**given, "lr": None})
    trial.tasks()
    trial.workdir = tmp_path
    trial.arms()
    assert set(trial._rates) == {TUNED, OURS, RANDOM_TUNED}
    assert {kept["given"] for kept in trial._tuning.values()} == {3}
    with pytest.raises(InputError, match="got --lr 0"):
        LLMPrunerTrial(**{**given, "lr": 0.0}).check()

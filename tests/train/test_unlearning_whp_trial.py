"""The trial of Who's Harry Potter: a world is learnt, forgotten and learnt again, and each arm is what it says."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from broadsheet.train.trials.fictional import made_up, ordinary, told
from broadsheet.train.trials.forgetting import FAMILIARITY, FAMILIARITY_AGAIN, UNRELATED, VERBATIM
from broadsheet.train.trials.unlearning_whp import (
    ASCENT,
    BARE,
    KNOWS,
    NEVER,
    OURS,
    RATES,
    TENTH,
    TRANSLATED,
    GradientAscent,
    WhosHarryPotterTrial,
)
from broadsheet.train.unlearning.terms import GIVEN, PLACES, SURNAMES, THINGS
from broadsheet.train.unlearning_whp import WhosHarryPotter
from broadsheet.training.losses import token_losses
from broadsheet.training.scratch import Size

WORDS = [
    "a",
    "model",
    "reads",
    "many",
    "words",
    "and",
    "says",
    "which",
    "word",
    "comes",
    "next",
    "in",
    "each",
    "of",
    "its",
    "texts",
]
TINY = {"texts": 6, "batch": 8, "length": 64, "vocabulary": 800, "size": "0.4M", "runs": 1, "people": 4, "versions": 4}


@pytest.fixture
def data(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(40):
        drawn = np.random.default_rng(i).choice(WORDS, 160)
        (folder / f"{i}.txt").write_text(" ".join(drawn))
    monkeypatch.setattr("broadsheet.training.scratch.SIZES", {"0.4M": Size(2, 64, 2)})
    return str(folder)


def test_a_world_is_told_of_again_and_again_and_lives_once():
    world = made_up(8, 3)
    assert world == made_up(8, 3) != made_up(8, 4)
    common = {each.lower() for each in (*GIVEN, *SURNAMES, *PLACES, *THINGS)}
    names = {word for person in world for word in person.names}
    assert not {name.lower() for name in names} & common
    full = [f"{person.given} {person.surname}" for person in world]
    assert len(set(full)) == 8
    assert all(person.friend in full and person.friend != name for person, name in zip(world, full, strict=True))
    drawn = random.Random(0)
    first, second = told(world[0], drawn), told(world[0], drawn)
    assert first != second
    for text in (first, second):
        assert all(name in text for name in world[0].names)
    lives = ordinary(30, 1)
    assert len(set(lives)) == 30
    assert not any(name in text for text in lives for name in names)


def test_a_world_is_forgotten_and_comes_back(data):
    trial = WhosHarryPotterTrial(
        data=data, quick=True, lr=3e-4, steps=150, taught=0.6, forgetting=30, relearning=4, **TINY
    )
    result = trial.run()
    assert {arm.name: arm.status for arm in result.arms} == dict.fromkeys((KNOWS, TENTH, OURS, ASCENT), "ok")
    values = {arm.name: {name: each.estimate for name, each in arm.values.items()} for arm in result.arms}
    known, ours, ascent = (values[name] for name in (KNOWS, OURS, ASCENT))
    assert known[FAMILIARITY] > 0.1, "there is something to forget"
    assert ours[FAMILIARITY] < known[FAMILIARITY] / 4
    assert ours[VERBATIM] < known[VERBATIM]
    assert abs(ours[UNRELATED] - known[UNRELATED]) < 0.1 * known[UNRELATED]
    assert known[FAMILIARITY_AGAIN] > ours[FAMILIARITY_AGAIN] > ours[FAMILIARITY], "it was not deleted"
    assert values[TENTH][FAMILIARITY] == pytest.approx(known[FAMILIARITY] / 10)
    assert values[TENTH][UNRELATED] == pytest.approx(known[UNRELATED])
    loaded = {name: trial._load(trial.folder(name)) for name in (OURS, ASCENT)}
    assert int(trial._stopped) < 30
    assert trial.still_known(loaded[ASCENT]) <= trial.still_known(loaded[OURS]), "as far as ours"
    assert ascent[FAMILIARITY] < known[FAMILIARITY]
    [curve] = result.figures
    assert set(curve.lines) == {KNOWS, OURS, ASCENT}
    assert {len(line) for line in curve.lines.values()} == {5}
    assert {(claim.metric, claim.baseline) for claim in result.judged} == {
        (FAMILIARITY, KNOWS), (FAMILIARITY, TENTH), (UNRELATED, KNOWS), (UNRELATED, ASCENT),
    }  # fmt: skip
    assert "0 words that are none" in result.setting["dictionary"]
    assert "was not deleted" in " ".join(result.notes)


def test_each_arm_reads_the_rows_that_are_its_own(data):
    trial = WhosHarryPotterTrial(data=data, lr=1e-3, steps=12, forgetting=4, **TINY)
    trial.tasks()
    trial.workdir = Path(data).parent
    arms = [arm.name for arm in trial.arms()]
    assert set(arms) == {KNOWS, TENTH, OURS, ASCENT, NEVER, TRANSLATED, BARE}
    assert arms[0] == KNOWS
    assert {claim.arm for claim in trial.claims()} == {OURS}
    assert {claim.baseline for claim in trial.claims()} <= set(arms)
    names = {word for person in made_up(4, 0) for word in person.names}
    translated = trial.tokenizer.decode(trial.rows(TRANSLATED, 0).ids.flatten())
    assert not any(name in translated.split() for name in names)
    ours, bare = trial.rows(OURS, 0), trial.rows(BARE, 0)
    assert torch.equal(ours.ids, bare.ids)
    assert (bare.labels == -100).sum() < (ours.labels == -100).sum()
    assert not torch.equal(ours.labels, bare.labels)
    assert torch.equal(trial.rows(OURS, 0).labels, ours.labels), "kept"
    assert not torch.equal(trial.rows(OURS, 1).labels, ours.labels), "each run has a reinforced model of its own"
    method = WhosHarryPotter(trial.dictionary)
    by_hand = method.rows(trial.learnt, trial.tokenizer, trial._reinforced(0), trial.begun(0), trial.length)
    assert torch.equal(by_hand.labels, ours.labels)
    taught, never = (trial._load(trial.begun_folder(0, taught)) for taught in (True, False))
    assert not torch.equal(taught.lm_head.weight, never.lm_head.weight)
    made = {arm.name: arm.make().lm_head.weight for arm in trial.arms() if arm.name in (KNOWS, TENTH, NEVER)}
    assert torch.equal(made[KNOWS], taught.lm_head.weight)
    assert torch.equal(made[TENTH], taught.lm_head.weight)
    assert torch.equal(made[NEVER], never.lm_head.weight)


def test_rates_are_chosen_alike_by_what_is_forgotten_and_what_is_lost(data, monkeypatch):
    trial = WhosHarryPotterTrial(data=data, steps=12, forgetting=4, **TINY)
    trial.tasks()
    trial.workdir = Path(data).parent
    trial.arms()
    assert {name: kept["given"] for name, kept in trial._tuning.items()} == dict.fromkeys(
        (OURS, ASCENT, TRANSLATED, BARE), len(RATES)
    )
    known, lost = iter([1e-1, 1e-3, 1e-5]), iter([0.0, 0.01, 0.3])
    monkeypatch.setattr(trial, "still_known", lambda model: next(known))
    monkeypatch.setattr(trial, "tuning_loss", lambda model: trial._tuning_before + next(lost))
    trial._rates_found.pop(BARE)
    trial.folder(f"tuning of {BARE}").with_suffix(".json").unlink()
    assert trial._best(next(arm for arm in trial._lab.values() if arm.name == BARE)) == RATES[1]


def test_ascent_is_the_plain_loss_turned_round():
    logits, labels = torch.randn(2, 6, 9), torch.randint(0, 9, (2, 6))
    losses, asked = token_losses(logits, labels)
    total, count = GradientAscent().loss(logits, labels, {})
    assert float(total) == pytest.approx(-float(losses.sum()))
    assert count == int(asked.sum())

"""Continual pretraining: what learning rates and shares of old text must be."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments, get_cosine_with_min_lr_schedule_with_warmup

from broadsheet.console import InputError
from broadsheet.train import ContinualPretraining, LossMethod, MethodObjective
from broadsheet.train.continual_pretraining import COOLDOWNS, Infinite, Rewarmed
from broadsheet.training.fit import fit
from broadsheet.training.mixing import Mixture, replayed
from broadsheet.training.scratch import TokenBlocks

RATES = {"max_lr": 1e-3, "const_lr": 5e-4, "min_lr": 1e-4}
WHOLE = Infinite(**RATES, warmup=10, cooldown=110, anneal=400, end=500)


@pytest.mark.parametrize("shape", COOLDOWNS)
def test_an_infinite_rate_is_continuous_and_goes_up_down_flat_and_down(shape):
    rate = Infinite(**RATES, warmup=10, cooldown=110, anneal=400, end=500, shape=shape)
    values = [rate.lr(step) for step in range(600)]
    assert (values[0], values[10], values[110], values[500]) == pytest.approx((0, 1e-3, 5e-4, 1e-4), abs=1e-12)
    assert values[500:] == [values[500]] * 100
    up, down, flat, anneal = values[:11], values[10:111], values[110:401], values[400:501]
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert set(flat) == {5e-4}
    ratios = [later / earlier for earlier, later in pairwise(anneal)]
    assert ratios == pytest.approx([ratios[0]] * 100, rel=1e-12)
    assert ratios[0] < 1


@pytest.mark.parametrize("shape", COOLDOWNS)
@given(end=st.integers(150, 2_000), more=st.integers(1, 500))
def test_what_was_before_annealing_is_the_same_whenever_it_begins(shape, end, more):
    open_ended = Infinite(**RATES, warmup=10, cooldown=110, shape=shape)
    branch = open_ended.annealed(end, more)
    steps = range(0, end + 1, 7)
    assert [branch.lr(step) for step in steps] == [open_ended.lr(step) for step in steps]
    assert branch.lr(end + more) == pytest.approx(1e-4)
    shorter, longer = (Rewarmed(1e-3, 1e-4, 10, steps) for steps in (end, end + more))
    assert shorter.lr(end // 2) < longer.lr(end // 2), "half a cosine has to know its end"


def test_a_later_training_goes_on_where_the_rate_was():
    later = WHOLE.since(380)
    assert [later.lr(step) for step in (0, 20, 70, 500)] == [WHOLE.lr(380 + step) for step in (0, 20, 70, 500)]
    assert later.max_lr == WHOLE.max_lr


def test_alpha_leads_from_a_line_to_a_steep_fall():
    def inside(alpha: float) -> list[float]:
        rate = Infinite(**RATES, warmup=0, cooldown=100, shape="invsqrt", alpha=alpha)
        return [rate.lr(step) for step in range(1, 100)]

    line = [1e-3 - 5e-4 * step / 100 for step in range(1, 100)]
    assert inside(0.0) == pytest.approx(line)
    assert inside(1e-6) == pytest.approx(line, rel=1e-5)
    for less, more in ((0.5, 2.0), (2.0, 30.0)):
        assert all(a > b for a, b in zip(inside(less), inside(more), strict=True))


def test_without_a_cooldown_it_is_warm_up_stable_and_an_exponential_decay():
    rate = Infinite(1e-3, 1e-3, 1e-4, warmup=10, cooldown=10, anneal=50, end=60)
    assert [rate.lr(step) for step in (5, 10, 11, 50, 55, 60)] == pytest.approx(
        [5e-4, 1e-3, 1e-3, 1e-3, 1e-3 * 0.1**0.5, 1e-4]
    )


def test_warmed_again_it_is_the_librarys_cosine_but_for_the_first_step():
    rate = Rewarmed(1e-3, 1e-4, 10, 200)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 10, 200, min_lr=1e-4)
    for step in range(201):
        if step:
            assert rate.lr(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9), step
        optimizer.step()
        theirs.step()
    assert rate.lr(0) == rate.lr(1) > 0
    assert rate.lr(10_000) == 1e-4


def test_a_scheduler_that_is_read_back_goes_on_as_before():
    def made():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        return optimizer, WHOLE.scheduler(optimizer)

    def run(optimizer, scheduler, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return found

    optimizer, scheduler = made()
    assert run(optimizer, scheduler, 130) == pytest.approx([WHOLE.lr(step) for step in range(130)])
    other, again = made()
    again.load_state_dict(scheduler.state_dict())
    assert run(other, again, 10) == run(optimizer, scheduler, 10)


@given(st.integers(1, 64), st.floats(0, 1), st.integers(1, 30), st.integers(0, 3))
def test_each_window_has_the_share_of_the_old_and_no_row_comes_again_before_its_turn(batch, fraction, steps, seed):
    first, second = [("new", i) for i in range(50)], [("old", i) for i in range(23)]
    mixed = Mixture(first, second, fraction, batch, steps, seed)
    assert len(mixed) == batch * steps, "whatever the share"
    rows = list(mixed)
    for begin in range(steps):
        window = rows[begin * batch : (begin + 1) * batch]
        count = sum(name == "old" for name, _ in window)
        assert count == replayed(batch, fraction, begin)
        assert abs(count - fraction * batch) <= 1
    assert abs(sum(name == "old" for name, _ in rows) - fraction * len(rows)) <= 0.5 + 1e-9
    for name, size in (("new", 50), ("old", 23)):
        own = [i for kind, i in rows if kind == name]
        for begin in range(0, len(own), size):
            assert max(Counter(own[begin : begin + size]).values()) == 1
    assert list(Mixture(first, second, fraction, batch, steps, seed)) == rows


def test_old_rows_stand_evenly_among_the_new():
    mixed = Mixture(range(100), range(100), 0.25, 16, 5)
    for begin in range(0, len(mixed), 4):
        assert int(mixed.second_at[begin : begin + 4].sum()) == 1, "parts of a batch have as much of it"


def weights(model) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def test_nothing_replayed_is_fits_own_training_to_the_last_bit(tiny, rows):
    settings = {"steps": 8, "batch_size": 4, "learning_rate": 1e-2, "autocast": "none", "seed": 3}
    plain, mixed, replaying = tiny(), tiny(), tiny()
    old = TokenBlocks(rows.ids.flip(0).flatten(), 12)
    fit(plain, rows, MethodObjective(LossMethod()), **settings)
    method = ContinualPretraining(replay=0.0, seed=3)
    fit(mixed, method.rows(rows, old, 4, 8), MethodObjective(LossMethod()), **settings)
    assert torch.equal(weights(mixed), weights(plain))
    method = ContinualPretraining(replay=0.25, seed=3)
    fit(replaying, method.rows(rows, old, 4, 8), MethodObjective(LossMethod()), **settings)
    assert not torch.equal(weights(replaying), weights(plain))


def test_fit_and_a_trainer_take_the_same_steps_at_the_same_rates(tiny, rows, tmp_path: Path):
    method = ContinualPretraining(max_lr=1e-2, min_lr=1e-3, warmup=0.3, replay=0.25)
    old = TokenBlocks(rows.ids.flip(0).flatten(), 12)
    mixed, rate = method.rows(rows, old, 4, 6), method.schedule(6)
    model, other = tiny(), tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate.max_lr)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=4, train_sampling_strategy="sequential", report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, max_grad_norm=0.0, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=mixed, optimizers=(optimizer, rate.scheduler(optimizer)))
    trainer.train()
    done = fit(
        other, mixed, MethodObjective(LossMethod()), steps=6, batch_size=4, learning_rate=rate.max_lr, schedule=rate,
        autocast="none", optim="sgd", max_grad_norm=0.0,
    )  # fmt: skip
    torch.testing.assert_close(weights(other), weights(model))
    assert [each["learning_rate"] for each in done.history] == pytest.approx([rate.lr(step) for step in range(6)])


def test_a_stopped_training_goes_on_with_the_same_rows_and_rates(tiny, rows, tmp_path: Path):
    class Stopping(MethodObjective):
        at = 0

        def loss(self, model, batch, generator):
            if self.step == self.at and self.at:
                raise RuntimeError("stopped")
            return super().loss(model, batch, generator)

    Stopping.__name__ = "MethodObjective"
    method = ContinualPretraining(max_lr=1e-2, min_lr=1e-3, replay=0.5)
    old = TokenBlocks(rows.ids.flip(0).flatten(), 12)

    def run(out: Path, at: int = 0):
        model, objective = tiny(), Stopping(LossMethod())
        objective.at = at
        fit(
            model, method.rows(rows, old, 4, 6), objective, out, steps=6, batch_size=4, learning_rate=1e-2,
            schedule=method.schedule(6), autocast="none", checkpoint_minutes=1e-9,
        )  # fmt: skip
        return weights(model)

    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path / "cut", at=4)
    assert torch.equal(run(tmp_path / "cut"), whole)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="the lower rate first"):
        Rewarmed(1e-4, 1e-3, 1, 10)
    with pytest.raises(InputError, match="a part of the steps"):
        Rewarmed(1e-3, 1e-4, 11, 10)
    with pytest.raises(InputError, match="above 0 and rising"):
        Infinite(1e-3, 2e-3, 1e-4, 1, 10)
    with pytest.raises(InputError, match="in their order"):
        Infinite(**RATES, warmup=10, cooldown=5)
    with pytest.raises(InputError, match="together or neither"):
        Infinite(**RATES, warmup=1, cooldown=5, anneal=7)
    with pytest.raises(InputError, match="expected one of cosine, invsqrt"):
        Infinite(**RATES, warmup=1, cooldown=5, shape="linear")
    with pytest.raises(InputError, match="expected a share"):
        Mixture([1], [2], 1.5, 4, 4)
    with pytest.raises(InputError, match="without rows"):
        Mixture([1], [], 0.5, 4, 4)

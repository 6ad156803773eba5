"""SALT: what a loss against a teacher, and the choice of sequences, must be."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import one_hot, pad, softmax

from broadsheet.console import InputError
from broadsheet.train import SALT, LossMethod
from broadsheet.train.salt import learnable, learnable_scores, select
from broadsheet.training.losses import TopK, taught_losses, token_losses


@pytest.fixture
def asked(tiny):
    """A student's logits in float64, labels of which some are not asked, and a teacher that reads (2, 12) tokens."""
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (2, 12))
    labels = ids.clone()
    labels[1, 7:] = -100
    teacher = tiny(9).double()
    return tiny().double()(ids).logits.detach().requires_grad_(), labels, {"input_ids": ids}, teacher


def mean(method: LossMethod, logits, labels, inputs) -> torch.Tensor:
    total, count = method.loss(logits, labels, inputs)
    return total / count


@pytest.mark.parametrize("fields", [{"omega": 0.0, "steps": 9}, {"steps": 0}])
def test_without_a_weight_or_a_step_it_is_the_plain_loss(asked, fields):
    logits, labels, inputs, teacher = asked
    plain = mean(LossMethod(), logits, labels, inputs)
    torch.testing.assert_close(mean(SALT(teacher, **fields), logits, labels, inputs), plain)


def test_the_gradient_is_the_student_less_what_both_teachers_expect(asked):
    logits, labels, inputs, teacher = asked
    salt = SALT(teacher, steps=1, omega=0.667, temperature=0.25)
    mean(salt, logits, labels, inputs).backward()
    counts = labels[:, 1:] != -100
    expected = (1 - 0.667) * one_hot(labels[:, 1:].clamp(min=0), 20) + 0.667 * softmax(
        teacher(**inputs).logits[:, :-1] / 0.25, -1
    )
    wanted = (softmax(logits.detach()[:, :-1], -1) - expected) * counts[..., None] / counts.sum()
    torch.testing.assert_close(logits.grad[:, :-1], wanted.detach())
    assert float(logits.grad[:, -1].abs().max()) == 0
    assert all(each.grad is None for each in teacher.parameters())


def test_a_teacher_that_is_the_student_or_certain_changes_what_it_must(asked):
    logits, labels, _, _ = asked
    same = TopK.of(logits.detach(), 20)
    given = {"teacher_ids": same.ids, "teacher_log_probs": same.log_probs}
    mean(SALT(steps=1, omega=1.0, temperature=1.0), logits, labels, given).backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-8, rtol=0)
    certain = 1e4 * one_hot(labels[:, 1:].clamp(min=0), 20).double()
    hard, _ = token_losses(logits, labels)
    torch.testing.assert_close(taught_losses(logits, labels, pad(certain, (0, 0, 0, 1)))[0], hard)


def test_the_whole_vocabulary_kept_is_the_teacher_and_fewer_share_what_is_left(asked):
    logits, labels, inputs, teacher = asked
    said, few = teacher(**inputs).logits.detach(), TopK.of(teacher(**inputs).logits.detach(), 3)
    hard, counts = token_losses(logits, labels)
    log_p = torch.log_softmax(logits, -1)
    by_hand = -(softmax(said / 0.25, -1) * log_p).sum(-1)[:, :-1] * counts
    by_three = -(softmax(few.log_probs, -1) * log_p.gather(-1, few.ids)).sum(-1)[:, :-1] * counts
    for weight in (1.0, 0.3, 0.0):
        for told in (said, TopK.of(said, 20)):
            losses, mask = taught_losses(logits, labels, told, weight, 0.25)
            torch.testing.assert_close(losses, (1 - weight) * hard + weight * by_hand, atol=1e-6, rtol=1e-6)
            assert torch.equal(mask, counts)
        torch.testing.assert_close(
            taught_losses(logits, labels, few, weight)[0], (1 - weight) * hard + weight * by_three
        )


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_kept_and_what_is_said_give_the_gradient_of_the_sum(asked, kept):
    logits, labels, inputs, teacher = asked
    said = teacher(**inputs).logits.detach()
    told = TopK.of(said, 20) if kept else said
    taught_losses(logits, labels, told, 0.4, 0.5)[0].sum().backward()
    found = logits.grad.clone()
    again = logits.detach().requires_grad_()
    hard, counts = token_losses(again, labels)
    soft = -(softmax(said / 0.5, -1) * torch.log_softmax(again, -1)).sum(-1)[:, :-1]
    (0.6 * hard + 0.4 * soft * counts).sum().backward()
    torch.testing.assert_close(found, again.grad, atol=1e-6, rtol=1e-5)


def test_it_teaches_for_its_steps_and_is_let_go_of(asked):
    logits, labels, inputs, teacher = asked
    salt = SALT(teacher, steps=3)
    plain = mean(LossMethod(), logits, labels, inputs)
    for step, teaches in ((2, True), (3, False)):
        salt.step = step
        assert torch.allclose(mean(salt, logits, labels, inputs), plain) != teaches
    for step, kept in ((2, True), (3, False)):
        salt.on_step_begin(None, SimpleNamespace(global_step=step), None)
        assert (salt.teacher is not None) == kept


def test_omega_falls_at_once_or_in_a_line():
    assert [SALT(steps=2).weight(step) for step in range(4)] == [0.667, 0.667, 0, 0]
    slow = SALT(steps=2, decay=6, omega=0.8)
    assert [slow.weight(step) for step in range(8)] == pytest.approx([0.8, 0.8, 0.8, 0.6, 0.4, 0.2, 0, 0])


def test_a_score_is_the_median_of_what_is_within_reach():
    torch.manual_seed(1)
    logits, labels = torch.randn(6, 11, 30, dtype=torch.float64), torch.randint(0, 30, (6, 11))
    scores = [learnable(logits, labels, k) for k in (1, 3, 10, 30)]
    for low, high in pairwise(scores):
        assert bool((high >= low).all()), "more tokens are within reach of more"
    losses, _ = token_losses(logits, labels)
    middles = losses.sort(1).values[:, 4:6].mean(1)
    torch.testing.assert_close(scores[-1], middles)
    labels[0, 4:] = -100
    torch.testing.assert_close(learnable(logits, labels, 30)[0], losses[0, :3].median())
    labels[1, 1:] = -100
    assert bool(learnable(logits, labels).isnan()[1])


def test_noise_scores_nothing_and_the_highest_are_chosen(tiny, rows):
    logits = torch.zeros(1, 9, 30)
    logits[..., :10] = 5.0
    assert float(learnable(logits, torch.full((1, 9), 20))) == 0
    assert float(learnable(logits, torch.full((1, 9), 3))) > 0
    assert select([0.0, 2.1, 0.4, 3.3, 1.2], 2) == [3, 1]
    scores = learnable_scores(tiny(), rows, k=20, batch=5)
    assert scores.shape == (24,)
    torch.testing.assert_close(scores[3], learnable(tiny()(rows.ids[3:4]).logits.detach(), rows.ids[3:4], 20)[0])


def test_what_cannot_be_is_refused(asked):
    logits, labels, inputs, _ = asked
    with pytest.raises(InputError, match="same tokenizer"):
        taught_losses(logits, labels, torch.zeros(2, 12, 24))
    with pytest.raises(InputError, match="temperature of 0"):
        taught_losses(logits, labels, logits.detach(), temperature=0.0)
    with pytest.raises(InputError, match="no teacher at step 0"):
        SALT(steps=1).loss(logits, labels, inputs)
    for fields in ({"omega": 1.5}, {"temperature": 0.0}, {"steps": 5, "decay": 3}):
        with pytest.raises(InputError, match="expected"):
            SALT(**fields)

"""Loss-based reweighting: what weights of a batch must be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.train import LossReweighting
from broadsheet.train.loss_reweighting import STRATEGIES, sample_weights

NAMES = tuple(STRATEGIES)
losses_of = st.lists(st.floats(0.125, 12, width=32), min_size=2, max_size=24).filter(lambda v: max(v) - min(v) > 0.01)


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(losses_of, st.sampled_from(NAMES), st.floats(0.1, 5), st.floats(0.5, 3), st.floats(-3, 3))
def test_weights_are_a_distribution_that_scale_and_shift_leave_as_it_is(values, strategy, r, scale, shift):
    losses = tensor(values)
    weights = sample_weights(losses, strategy, r)
    assert float(weights.sum()) == pytest.approx(1)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(sample_weights(scale * losses + shift, strategy, r), weights, atol=1e-6, rtol=1e-5)
    turned = sample_weights(losses.flip(0), strategy, r).flip(0)
    torch.testing.assert_close(turned, weights)
    assert float(weights.max() / weights.min()) <= math.exp(1 / r) * (1 + 1e-9), "f spans 1 at most"


def test_each_strategy_favours_what_it_says():
    losses = tensor([1, 2, 3, 4, 5, 6, 7])
    linupper, quadratic, extremes, upper, uniform = (
        sample_weights(losses, name, 0.4) for name in ("linupper", "quadratic", "extremes", "upper", "uniform")
    )
    assert linupper.diff().min() >= 0
    assert linupper[3:].unique().numel() == 1, "all above the middle alike"
    assert (linupper[:3].diff() > 0).all()
    assert int(quadratic.argmax()) == int(extremes.argmin()) == 3
    torch.testing.assert_close(quadratic, quadratic.flip(0))
    assert (upper.diff() > 0).all()
    assert uniform.unique().numel() == 1
    ratio = sample_weights(losses, "linupper", 0.4)
    assert float(ratio.max() / ratio.min()) == pytest.approx(math.exp(1 / 0.4))


@pytest.mark.parametrize("strategy", NAMES)
def test_the_temperature_leads_from_the_largest_alone_to_all_alike(strategy):
    losses = tensor([2, 2.5, 3, 3.5, 4, 6])
    even = torch.full((6,), 1 / 6).double()
    torch.testing.assert_close(sample_weights(losses, strategy, 1e4), even, atol=1e-4, rtol=0)
    assert float((sample_weights(losses, strategy, 100.0) * losses).sum()) == pytest.approx(3.5, rel=0.01)
    torch.testing.assert_close(sample_weights(tensor([3, 3, 3]), strategy, 0.4), torch.full((3,), 1 / 3).double())
    assert sample_weights(tensor([3]), strategy, 0.4).tolist() == [1]


def test_an_odd_sequence_is_clipped_where_that_is_asked_for():
    losses = tensor([2, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7, 2.8, 60])
    assert float(sample_weights(losses)[9]) > 0.4, "the others are pushed together"
    clipped = sample_weights(losses, clip=0.9)
    assert float(clipped[9]) < 0.3


def test_no_gradient_goes_through_the_weights_and_empty_sequences_count_for_nothing():
    logits = torch.randn(4, 6, 9, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 9, (4, 6))
    labels[2] = -100
    method = LossReweighting(burn_in=0)
    loss = method.loss(logits, labels, {})
    loss.backward()
    assert bool(torch.isfinite(logits.grad).all())
    assert float(logits.grad[2].abs().max()) == 0
    kept = [0, 1, 3]
    other = logits.detach()[kept].requires_grad_()
    alone = method.loss(other, labels[kept], {})
    alone.backward()
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(logits.grad[kept], other.grad)
    one = sample_weights(torch.rand(3).requires_grad_())
    assert not one.requires_grad


def test_before_the_burn_in_is_over_all_weigh_the_same():
    losses, asked = tensor([1, 2, 3, 9]), torch.ones(4, dtype=torch.bool)
    method = LossReweighting(burn_in=5)
    method.step = 4
    assert method.weights(losses, asked).unique().numel() == 1
    method.step = 5
    assert method.weights(losses, asked).unique().numel() > 1


def test_few_sequences_are_told_once(capsys):
    method = LossReweighting(burn_in=0)
    for _ in range(2):
        method.weights(tensor([1, 2]), torch.ones(2, dtype=torch.bool))
    assert capsys.readouterr().err.count("2 sequences are weighed among themselves") == 1


@pytest.mark.parametrize(("fields", "told"), [({"strategy": "best"}, "linupper"), ({"r": 0.0}, "more than 0")])
def test_what_cannot_be_is_refused(fields, told):
    with pytest.raises(InputError, match=told):
        LossReweighting(**fields)

"""Log-probabilities of labelled tokens, preference losses and the KL between two rankings of the same candidates."""

import math
from types import SimpleNamespace

import pytest
import torch

from broadsheet.embed.data.writing import read_written, token_counts
from broadsheet.embed.ullme import Direction, Preference, consistency_kl, preference_loss

KINDS: tuple[Preference, ...] = ("sigmoid", "hinge", "ipo", "kto_pair")
DIRECTIONS: tuple[Direction, ...] = ("gen-rt", "rt-gen")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Written(torch.nn.Module):
    """A model that returns the logits it was made with."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids, use_cache, logits_to_keep):
        return SimpleNamespace(logits=self.logits[:, logits_to_keep])


def log_probs(logits, labels):
    return read_written(Written(logits), labels.clamp_min(0), labels)


def test_log_probs_are_those_of_the_next_token_and_of_labelled_tokens_alone():
    logits, labels = numbers(2, 4, 7), torch.tensor([[3, 1, -100, 5], [-100, -100, 2, 6]])
    table = logits.log_softmax(-1)
    expected = [table[0, 0, 1] + table[0, 2, 5], table[1, 1, 2] + table[1, 2, 6]]
    torch.testing.assert_close(log_probs(logits, labels), torch.stack(expected))
    assert token_counts(labels).tolist() == [2, 2]


def test_a_row_without_a_labelled_token_counts_nothing_and_is_not_nan():
    logits = numbers(2, 3, 5).requires_grad_()
    labels = torch.tensor([[0, -100, -100], [1, 2, 3]])
    values = log_probs(logits, labels) / token_counts(labels)
    values.sum().backward()
    assert values[0].item() == 0.0
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[0].any()


def test_log_probs_of_half_precision_are_summed_in_single():
    logits, labels = numbers(1, 5, 9).bfloat16(), torch.tensor([[1, 2, 3, 4, 5]])
    values = log_probs(logits, labels)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, log_probs(logits.float(), labels))


def test_dpo_costs_log_two_where_policy_and_reference_are_one():
    chosen, rejected = numbers(5, seed=1), numbers(5, seed=2)
    losses = preference_loss(chosen, rejected, chosen, rejected)
    torch.testing.assert_close(losses, torch.full((5,), math.log(2), dtype=torch.float64))


def test_dpo_is_the_logistic_loss_of_beta_times_the_margin():
    policy, reference = numbers(2, 5, seed=1), numbers(2, 5, seed=2)
    margin = (policy[0] - policy[1]) - (reference[0] - reference[1])
    for beta in (0.1, 0.7):
        expected = -torch.nn.functional.logsigmoid(beta * margin)
        torch.testing.assert_close(preference_loss(*policy, *reference, beta=beta), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_raises_the_chosen_and_lowers_the_rejected(kind):
    chosen, rejected = numbers(4, seed=1).requires_grad_(), numbers(4, seed=2).requires_grad_()
    reference = numbers(4, seed=3), numbers(4, seed=4)
    preference_loss(chosen, rejected, *reference, kind=kind).sum().backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


def test_a_reference_that_is_left_out_is_one_that_finds_both_equally_likely():
    chosen, rejected, same = numbers(3, seed=1), numbers(3, seed=2), numbers(3, seed=3)
    for kind in ("sigmoid", "hinge", "ipo"):
        free = preference_loss(chosen, rejected, kind=kind)
        torch.testing.assert_close(preference_loss(chosen, rejected, same, same, kind=kind), free)


def test_label_smoothing_is_a_mixture_of_both_orders():
    chosen, rejected = numbers(3, seed=1), numbers(3, seed=2)
    smoothed = preference_loss(chosen, rejected, label_smoothing=0.2)
    torch.testing.assert_close(
        smoothed, 0.8 * preference_loss(chosen, rejected) + 0.2 * preference_loss(rejected, chosen)
    )


def test_ipo_is_content_at_its_margin_and_pulls_back_beyond_it():
    margin = torch.tensor([5.0, 7.0], requires_grad=True)  # 1 / (2β) = 5
    losses = preference_loss(margin, torch.zeros(2), kind="ipo", beta=0.1)
    losses.sum().backward()
    assert losses[0].item() == 0
    assert margin.grad[1] > 0


def test_kto_judges_each_half_by_itself():
    chosen, rejected = torch.tensor([3.0, -1.0]), torch.tensor([-2.0, -4.0])
    zero = torch.zeros(2)
    # Mean ratios: 1 for the chosen, −3 for the rejected, cut to 0.
    expected = [1 - 1 / (1 + math.exp(-x)) for x in (3.0, -1.0, 1 + 2.0, 1 + 4.0)]
    losses = preference_loss(chosen, rejected, zero, zero, kind="kto_pair", beta=1.0)
    torch.testing.assert_close(losses, torch.tensor(expected))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rankings_that_agree_cost_nothing(direction):
    generation = numbers(3, 4)
    similarities = 0.05 * generation.log_softmax(-1) + 0.3
    for detach in (True, False):
        value = consistency_kl(similarities, generation, temperature=0.05, direction=direction, detach=detach)
        assert value.abs().max() < 1e-12


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_constant_added_to_a_query_s_generation_scores_changes_nothing(direction):
    similarities, generation = numbers(3, 4, seed=1), numbers(3, 4, seed=2)
    shifted = generation + torch.tensor([[5.0], [-2.0], [100.0]])
    one = consistency_kl(similarities, generation, direction=direction)
    torch.testing.assert_close(consistency_kl(similarities, shifted, direction=direction), one)


def test_the_directions_are_the_two_kls():
    similarities, generation, t = numbers(2, 3, seed=1), numbers(2, 3, seed=2), 0.5
    rt, gen = (similarities / t).softmax(-1), (generation / 2).softmax(-1)
    settings = {"temperature": t, "generation_temperature": 2.0}
    code = (gen * (gen / rt).log()).sum(-1)
    paper = (rt * (rt / gen).log()).sum(-1)
    torch.testing.assert_close(consistency_kl(similarities, generation, direction="gen-rt", **settings), code)
    torch.testing.assert_close(consistency_kl(similarities, generation, direction="rt-gen", **settings), paper)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_generator_learns_from_it_only_if_it_is_not_detached(direction):
    for detach in (True, False):
        similarities, generation = numbers(2, 3, seed=1).requires_grad_(), numbers(2, 3, seed=2).requires_grad_()
        consistency_kl(similarities, generation, direction=direction, detach=detach).sum().backward()
        assert similarities.grad.any()
        assert (generation.grad is None) == detach


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_single_candidate_costs_nothing_and_padding_is_not_there(direction):
    similarities, generation = numbers(2, 4, seed=1).requires_grad_(), numbers(2, 4, seed=2)
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])
    values = consistency_kl(similarities, generation, direction=direction, mask=mask)
    alone = consistency_kl(similarities[1:, :3], generation[1:, :3], direction=direction)
    assert values[0].item() == 0
    torch.testing.assert_close(values[1], alone[0])
    values.sum().backward()
    assert torch.isfinite(similarities.grad).all()
    assert not similarities.grad[~mask].any()


def test_bad_arguments_are_named():
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="kto_pair compares with a reference"):
        preference_loss(one, one, kind="kto_pair")
    with pytest.raises(ValueError, match="got kind 'dpo'"):
        preference_loss(one, one, kind="dpo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got beta 0"):
        preference_loss(one, one, beta=0)
    with pytest.raises(ValueError, match="got direction"):
        consistency_kl(numbers(1, 2), numbers(1, 2), direction="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got temperatures"):
        consistency_kl(numbers(1, 2), numbers(1, 2), temperature=0)

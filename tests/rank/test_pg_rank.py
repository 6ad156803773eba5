"""PG-RANK: Plackett–Luce is a distribution, its samples follow it, and the estimators are unbiased and train."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.rank.pg_rank import (
    PGRank,
    PlackettLucePolicyGradient,
    gumbel_ranking,
    leave_one_out,
    log_prob,
    sample_rankings,
    surrogate,
)
from broadsheet.rank.pg_rank_utilities import MRR, NDCG, PerRanking, utility_named

SCORES = torch.tensor([[0.8, -0.3, 1.2, 0.1]], dtype=torch.float64)
LABELS = torch.tensor([[1.0, 0.0, 0.0, 2.0]], dtype=torch.float64)
ALL = torch.ones(1, 4, dtype=torch.bool)


def every(n: int) -> torch.Tensor:
    return torch.tensor([list(itertools.permutations(range(n)))])


def expected_utility(scores, labels, utility):
    """J(s) = Σ_r π(r|s)·Δ(r), by going through all rankings: (batch,)."""
    rankings = every(scores.shape[1]).expand(len(scores), -1, -1)
    values = utility_named(utility)(rankings, labels.to(scores), torch.ones_like(scores, dtype=torch.bool))
    return (log_prob(scores, rankings).exp() * values).sum(1)


def gradient(value, scores):
    return torch.autograd.grad(value.sum(), scores)[0]


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6))
def test_probabilities_of_all_rankings_sum_to_one(values):
    scores = torch.tensor([values], dtype=torch.float64)
    assert log_prob(scores, every(len(values))).exp().sum() == pytest.approx(1, abs=1e-9)


@given(st.lists(st.floats(-200, 200), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_the_reversed_sum_is_the_plain_product(values, random):
    ranking = list(range(len(values)))
    random.shuffle(ranking)
    scores = torch.tensor([values], dtype=torch.float64)
    plain = sum(
        values[item] - float(torch.logsumexp(torch.tensor([values[j] for j in ranking[i:]], dtype=torch.float64), 0))
        for i, item in enumerate(ranking)
    )
    found = float(log_prob(scores, torch.tensor([[ranking]])))
    assert found == pytest.approx(plain, rel=1e-12, abs=1e-10)


def test_only_differences_of_scores_matter():
    scores = SCORES.clone().requires_grad_()
    rankings = torch.tensor([[[2, 0, 3, 1], [1, 3, 0, 2]]])
    assert torch.allclose(log_prob(SCORES + 1e3, rankings), log_prob(SCORES, rankings), atol=1e-9)
    assert gradient(log_prob(scores, rankings), scores).sum() == pytest.approx(0, abs=1e-12)


def test_one_and_two_items():
    one = torch.tensor([[3.0]], requires_grad=True)
    value = log_prob(one, torch.tensor([[[0]]]))
    assert value.item() == 0
    assert gradient(value, one).item() == 0
    two = torch.tensor([[0.3, -1.1]], dtype=torch.float64)
    assert log_prob(two, torch.tensor([[[0, 1]]])).item() == pytest.approx(-math.log1p(math.exp(-1.4)))


def test_the_first_place_of_samples_follows_the_softmax():
    n = 20_000
    drawn = sample_rankings(SCORES, n, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn[0, :, 0], minlength=4).double()
    expected = n * SCORES[0].softmax(0)
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.27  # χ² with 3 degrees of freedom, 0.1 %
    pairs = torch.bincount(drawn[0, :, 0] * 4 + drawn[0, :, 1], minlength=16).double() / n
    exact = log_prob(SCORES, every(4)).exp()[0]
    by_pair = torch.zeros(16, dtype=torch.float64).index_add_(0, every(4)[0, :, 0] * 4 + every(4)[0, :, 1], exact)
    assert torch.allclose(pairs, by_pair, atol=0.012)


def test_samples_follow_their_seed_and_put_padding_last():
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 1]]).bool()
    first, again, other = (
        sample_rankings(scores, 8, mask, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for row in range(3):
        real = set(mask[row].nonzero()[:, 0].tolist())
        assert all(set(ranking[: len(real)].tolist()) == real for ranking in first[row])
    assert sample_rankings(scores.bfloat16(), 2, generator=torch.Generator()).dtype == torch.long


def test_ties_without_noise_keep_the_incoming_order():
    assert gumbel_ranking(torch.zeros(5), torch.zeros(5)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("utility", [NDCG(2), NDCG(None, "exponential"), MRR(3)])
@pytest.mark.parametrize("baseline", ["loo", "none"])
@pytest.mark.parametrize("reward_to_go", [False, True])
def test_estimates_average_to_the_exact_gradient(utility, baseline, reward_to_go):
    scores = SCORES.clone().requires_grad_()
    exact = gradient(expected_utility(scores, LABELS, utility), scores)[0]
    draws, samples = 4000, 4
    many = SCORES.expand(draws, -1).clone().requires_grad_()
    rankings = sample_rankings(many, samples, generator=torch.Generator().manual_seed(2))
    inputs = (rankings, LABELS.expand(draws, -1), ALL.expand(draws, -1))
    values = utility.per_place(*inputs) if reward_to_go else utility(*inputs)
    found = -gradient(surrogate(many, rankings, values, baseline=baseline), many)
    error = (found.mean(0) - exact).abs() / (found.std(0) / math.sqrt(draws))
    assert float(error.max()) < 3.5


def spread_of(baseline: str, reward_to_go: bool) -> float:
    draws = 1000
    many = torch.linspace(-1, 1, 12).expand(draws, -1).clone().requires_grad_()
    rankings = sample_rankings(many, 8, generator=torch.Generator().manual_seed(3))
    utility = NDCG(5)
    labels = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]).expand(draws, -1)
    inputs = (rankings, labels, torch.ones_like(labels, dtype=torch.bool))
    values = utility.per_place(*inputs) if reward_to_go else utility(*inputs)
    return float(gradient(surrogate(many, rankings, values, baseline=baseline), many).var(0).sum())


def test_baseline_and_reward_to_go_lower_the_variance():
    assert spread_of("loo", False) < 0.3 * spread_of("none", False)
    assert spread_of("loo", True) < 0.3 * spread_of("loo", False)
    assert spread_of("none", True) < 0.3 * spread_of("none", False)


def test_equal_utilities_teach_nothing_with_the_baseline_alone():
    scores = SCORES.clone().requires_grad_()
    rankings = sample_rankings(scores, 8, generator=torch.Generator().manual_seed(0))
    same = torch.full((1, 8), 0.7, dtype=torch.float64)
    assert gradient(surrogate(scores, rankings, same), scores).abs().max() < 1e-12
    assert gradient(surrogate(scores, rankings, same, baseline="none"), scores).abs().max() > 0.01


def test_a_constant_on_all_utilities_changes_nothing():
    values = torch.tensor([[0.1, 0.9, 0.4]], dtype=torch.float64)
    assert torch.allclose(leave_one_out(values), leave_one_out(values + 5))
    others = [(0.9 + 0.4) / 2, (0.1 + 0.4) / 2, (0.1 + 0.9) / 2]
    assert leave_one_out(values)[0].tolist() == pytest.approx([0.1 - others[0], 0.9 - others[1], 0.4 - others[2]])


def test_the_pairwise_form_is_the_same_estimator():
    scores = SCORES.clone().requires_grad_()
    rankings = sample_rankings(scores, 5, generator=torch.Generator().manual_seed(4))
    values = NDCG(4)(rankings, LABELS, ALL)
    logs = log_prob(scores, rankings)
    differences = (values[0, :, None] - values[0]) * (logs[0, :, None] - logs[0])
    pairwise = -differences.sum() / (2 * 5 * 4)
    found = gradient(surrogate(scores, rankings, values), scores)
    assert torch.allclose(gradient(pairwise, scores), found, atol=1e-12)


@pytest.mark.parametrize("utility", ["ndcg@5", "mrr@10", PerRanking(lambda ranking, labels: labels[ranking[0]])])
def test_padding_has_no_influence(utility):
    loss = PlackettLucePolicyGradient(utility=utility, n_samples=4000)
    short = SCORES.float().clone().requires_grad_()
    padded = torch.cat([torch.full((1, 2), 9.0), SCORES.float(), torch.full((1, 1), float("nan"))], 1).requires_grad_()
    labels = torch.cat([torch.full((1, 2), 7.0), LABELS.float(), torch.zeros(1, 1)], 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0]]).bool()
    if isinstance(utility, PerRanking):
        labels, mask, padded = labels[:, 2:], mask[:, 2:], padded[:, 2:].detach().requires_grad_()
    got = gradient(loss.loss(padded, labels, mask), padded)[0]
    want = gradient(loss.loss(short, LABELS.float()), short)[0]
    outside = ~mask[0]
    assert torch.equal(got[outside], torch.zeros(int(outside.sum())))
    assert torch.allclose(got[mask[0]], want, atol=0.03)  # other noise, same mean
    assert want.abs().max() > 0.05


def test_queries_without_anything_to_learn_are_left_out():
    loss = PlackettLucePolicyGradient(n_samples=16)
    good = torch.tensor([[1.0, 0.0, 0.5]], requires_grad=True)
    labels = torch.tensor([[0.0, 1.0, 0.0]])
    alone = loss.loss(good, labels, generator=torch.Generator().manual_seed(0))
    both = torch.cat([good, torch.ones(1, 3)])
    among = loss.loss(both, torch.cat([labels, torch.zeros(1, 3)]), generator=torch.Generator().manual_seed(0))
    assert among.item() == pytest.approx(alone.item())
    none = loss.loss(good, torch.zeros(1, 3))
    assert none.item() == 0
    assert torch.equal(gradient(none, good), torch.zeros(1, 3))


@pytest.mark.parametrize("utility", ["ndcg@4", "mrr"])
def test_ascent_reaches_the_best_ranking(utility):
    scores = torch.zeros(1, 6, requires_grad=True)
    labels = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0, 0.0]])
    loss = PlackettLucePolicyGradient(utility=utility, n_samples=32)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(scores, labels).backward()
        optimizer.step()
    assert expected_utility(scores, labels, utility).item() > 0.97
    relevant = scores.detach()[0, [1, 4]]
    others = scores.detach()[0, [0, 2, 3, 5]]
    if utility == "mrr":
        # One relevant item is enough: once it leads, nothing pulls the other one after it.
        assert relevant.max() - relevant.min() > 0
        assert float(relevant.max()) > float(others.max()) + 3
    else:
        assert float(relevant.min()) > float(others.max()) + 3


def test_utilities_agree_with_a_count_by_hand():
    ranking = torch.tensor([[[3, 1, 0, 2]]])
    ideal = 2 + 1 / math.log2(3)
    assert NDCG(4)(ranking, LABELS, ALL).item() == pytest.approx((2 + 1 / 2) / ideal)
    assert NDCG(2)(ranking, LABELS, ALL).item() == pytest.approx(2 / ideal)
    assert NDCG(4, "exponential")(ranking, LABELS, ALL).item() == pytest.approx((3 + 1 / 2) / (3 + 1 / math.log2(3)))
    assert MRR()(torch.tensor([[[1, 2, 0, 3]]]), LABELS, ALL).item() == pytest.approx(1 / 3)
    assert MRR(2)(torch.tensor([[[1, 2, 0, 3]]]), LABELS, ALL).item() == 0
    assert NDCG()(ranking, torch.zeros(1, 4), ALL).item() == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"utility": "map@3"}, "utility 'map@3'"),
        ({"utility": "ndcg@0"}, "utility 'ndcg@0'"),
        ({"utility": "ndcg@"}, "utility 'ndcg@'"),
        ({"utility": 3}, "utility 3"),
        ({"n_samples": 1}, "n_samples 1"),
        ({"baseline": "mean"}, "baseline 'mean'"),
        ({"temperature": 0}, "temperature 0"),
        ({"similarity": "l2"}, "similarity 'l2'"),
        ({"utility": PerRanking(lambda ranking, labels: 1.0), "reward_to_go": True}, "sum over places"),
    ],
)
def test_parameters_that_cannot_be(parameters, message):
    with pytest.raises(InputError, match=message):
        PlackettLucePolicyGradient(**parameters)


def test_one_sample_has_no_leave_one_out():
    with pytest.raises(InputError, match="n_samples"):
        leave_one_out(torch.zeros(2, 1))
    assert PlackettLucePolicyGradient(n_samples=1, baseline="none").n_samples == 1
    assert utility_named("mrr") == MRR(None)
    with pytest.raises(InputError, match="labels"):
        PlackettLucePolicyGradient()(torch.zeros(1, 3), torch.zeros(1, 2))


class Pairwise(torch.nn.Module):
    """Stands for a CrossEncoder: a weight times the number of words that query and document share."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def preprocess(self, pairs, prompt=None, task=None):
        return {"shared": torch.tensor([float(len(set(q.split()) & set(d.split()))) for q, d in pairs])}

    def forward(self, tokens):
        return {"scores": self.weight * tokens["shared"][:, None]}


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_a_cross_encoder_learns_from_lists_of_different_length(mini_batch_size):
    model = Pairwise()
    loss = PlackettLucePolicyGradient(model, "mrr@10", mini_batch_size=mini_batch_size)
    inputs = (["a b", "c d"], [["x y", "a b"], ["c d", "u", "v w"]])
    labels = [torch.tensor([0, 1]), torch.tensor([1, 0, 0])]
    loss(inputs, labels).backward()
    assert model.weight.grad < -0.01
    with pytest.raises(InputError, match=r"\[2, 2\] labels for \[2, 3\] documents"):
        loss(inputs, [torch.tensor([0, 1]), torch.tensor([1, 0])])
    assert loss.get_config_dict()["utility"] == "mrr@10"


def test_a_dual_encoder_learns_from_features():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding.from_pretrained(torch.eye(4) + 0.5, freeze=False)

        def forward(self, features):
            return {"sentence_embedding": self.table(features["input_ids"])}

    model = Encoder()
    features = [{"input_ids": torch.tensor([i])} for i in (0, 1, 2, 3)]
    loss = PlackettLucePolicyGradient(model, temperature=0.05, n_samples=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def similarity(i):
        return torch.cosine_similarity(model.table.weight[0], model.table.weight[i], dim=0).item()

    before = similarity(2) - similarity(1)
    for _ in range(5):
        optimizer.zero_grad()
        loss(features, torch.tensor([[0.0, 1.0, 0.0]])).backward()
        optimizer.step()
    assert similarity(2) - similarity(1) > before + 0.05


def test_standardized_advantages_do_not_depend_on_the_scale_of_the_utility():
    def value(scale, standardize):
        utility = PerRanking(lambda ranking, labels: scale * labels[ranking[0]])
        loss = PlackettLucePolicyGradient(utility=utility, n_samples=16, standardize=standardize)
        return loss.loss(SCORES, LABELS, generator=torch.Generator().manual_seed(0)).item()

    assert value(10.0, True) == pytest.approx(value(1.0, True))
    assert value(10.0, False) == pytest.approx(10 * value(1.0, False))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_only_dot_products_see_the_length_of_a_vector(similarity):
    vectors = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))

    def value(length):
        scaled = torch.cat([vectors[:3], vectors[3:] * length])

        def encoder(features):
            return {"sentence_embedding": scaled[features["input_ids"]]}

        loss = PlackettLucePolicyGradient(encoder, similarity=similarity)
        features = [{"input_ids": torch.tensor([i])} for i in range(4)]
        return loss(features, torch.tensor([[0.0, 1.0, 0.0]])).item()

    assert (value(1.0) == pytest.approx(value(4.0))) == (similarity == "cosine")


def test_a_resumed_loss_draws_on():
    scores, labels = torch.zeros(1, 5), torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0]])
    whole = PlackettLucePolicyGradient(n_samples=4)
    values = [whole(scores, labels).item() for _ in range(4)]
    assert len(set(values)) > 1
    begun, resumed = PlackettLucePolicyGradient(n_samples=4), PlackettLucePolicyGradient(n_samples=4)
    first = [begun(scores, labels).item() for _ in range(2)]
    resumed.load_state_dict(begun.state_dict())
    assert first + [resumed(scores, labels).item() for _ in range(2)] == values


def test_the_objective_checks_its_parameters():
    with pytest.raises(InputError, match="n_samples 1"):
        PGRank(n_samples=1)

"""FIRST's losses: what they reward, what they do not depend on, and that they agree with their other homes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import softplus

from broadsheet.console import InputError
from broadsheet.rank.first import DEFAULT_WEIGHTS, FIRST, LOSSES, WeightedRankNetScheme, weighted_ranknet
from broadsheet.rank.training.losses import lambdarank, lambdarank_authors, listnet, listnet_authors, ranknet, softmax
from broadsheet.rank.training.objective import ListReading

KINDS = sorted(kind for kind in LOSSES if not kind.endswith("_authors"))
RANKS = torch.tensor([[2, 0, 3, 1, 4]])


def random_scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ranks_from_labels(labels):
    """How many items have a higher label."""
    return (labels[..., None, :] > labels[..., :, None]).sum(-1)


def reading(scores, ranks, **parts):
    mask = torch.ones_like(ranks, dtype=torch.bool)
    return ListReading(scores, ranks, -ranks.float(), mask, **parts)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_sum_to_zero_and_a_constant_changes_nothing(kind):
    scores = random_scores(1, 5).requires_grad_()
    loss = LOSSES[kind](scores, RANKS)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient.sum().item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() > 1e-3
    assert LOSSES[kind](scores + 100, RANKS).item() == pytest.approx(loss.item(), abs=1e-9)


@pytest.mark.parametrize("kind", ["weighted_ranknet", "ranknet", "lambdarank", "softmax"])
def test_perfectly_separated_scores_cost_nothing(kind):
    scores = -100.0 * RANKS.double()
    assert LOSSES[kind](scores, RANKS).item() < 1e-12
    assert LOSSES[kind](-scores, RANKS).item() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_descent_ends_in_the_order_of_the_labels(kind):
    scores = random_scores(1, 5, seed=3).requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        LOSSES[kind](scores, RANKS).backward()
        optimizer.step()
    order = scores[0].argsort(descending=True).tolist()
    assert order[0] == 1
    assert kind == "softmax" or order == [1, 3, 0, 2, 4]


def test_a_mistake_among_the_best_costs_most():
    ranks = torch.arange(5)[None]
    best = torch.tensor([[3.0, 4, 2, 1, 0]])
    worst = torch.tensor([[4.0, 3, 2, 0, 1]])
    assert weighted_ranknet(best, ranks) > weighted_ranknet(worst, ranks) + 0.01
    assert ranknet(best, ranks).item() == pytest.approx(ranknet(worst, ranks).item())
    assert lambdarank(best, ranks) > lambdarank(worst, ranks)


@pytest.mark.parametrize("gap", [-2.0, 0.5, 3.0])
def test_two_items(gap):
    scores = torch.tensor([[gap, 0.0]])
    expected = softplus(torch.tensor(-gap)).item()
    assert weighted_ranknet(scores, torch.tensor([[0, 1]])).item() == pytest.approx(expected / 3)
    assert ranknet(scores, torch.tensor([[0, 1]])).item() == pytest.approx(expected)
    assert softmax(scores, torch.tensor([[0, 1]])).item() == pytest.approx(expected)


def test_weighted_ranknet_is_the_plain_double_loop():
    scores, ranks = random_scores(1, 6, seed=1), torch.tensor([[3, 0, 5, 1, 4, 2]])
    total = 0.0
    for i in range(6):
        for j in range(6):
            if ranks[0, i] < ranks[0, j]:
                total += math.log1p(math.exp(scores[0, j] - scores[0, i])) / (
                    ranks[0, i].item() + ranks[0, j].item() + 2
                )
    assert weighted_ranknet(scores, ranks).item() == pytest.approx(total / 15)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_padding_and_neighbours_have_no_influence(kind):
    short, long = random_scores(3, seed=1), random_scores(5, seed=2)
    scores = torch.full((3, 5), float("nan"), dtype=torch.float64)
    scores[0, 1:4], scores[1], scores[2, 0] = short, long, 1.0
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    ranks = torch.tensor([[9, 1, 2, 0, 9], [2, 0, 3, 1, 4], [0, 7, 7, 7, 7]])
    scores.requires_grad_()
    loss = LOSSES[kind](scores, ranks, mask)
    alone = [LOSSES[kind](s, r).item() for s, r in ((short, ranks[0, 1:4]), (long, ranks[1]))]
    assert loss.item() == pytest.approx(sum(alone) / 3, abs=1e-9)  # a list of one item counts as 0
    (gradient,) = torch.autograd.grad(loss, scores)
    assert torch.equal(gradient[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))
    assert gradient.isfinite().all()


def test_ties_are_not_compared():
    scores = random_scores(1, 4, seed=5)
    labels = torch.tensor([[0.0, 2.0, 0.0, 2.0]])
    ranks = ranks_from_labels(labels)
    assert ranks.tolist() == [[2, 0, 2, 0]]
    expected = sum(softplus(scores[0, j] - scores[0, i]).item() for i in (1, 3) for j in (0, 2)) / 4
    assert ranknet(scores, ranks).item() == pytest.approx(expected)
    assert weighted_ranknet(scores, torch.zeros(1, 4, dtype=torch.long)).item() == 0


def test_lambdarank_weighs_by_present_places_and_its_weights_take_no_gradient():
    scores = random_scores(1, 5, seed=7).requires_grad_()
    step = 1e-6
    moved = scores.detach().clone()
    moved[0, 0] += step
    numeric = (lambdarank(moved, RANKS) - lambdarank(scores.detach(), RANKS)) / step
    assert torch.autograd.grad(lambdarank(scores, RANKS), scores)[0][0, 0].item() == pytest.approx(
        numeric.item(), abs=1e-4
    )
    # Two items: gains 1 and 0, places 1 and 2, ideal DCG 1.
    two = torch.tensor([[0.4, 1.0]], dtype=torch.float64)
    expected = (1 - 1 / math.log2(3)) * math.log1p(math.exp(0.6))
    assert lambdarank(two, torch.tensor([[0, 1]])).item() == pytest.approx(expected)


def test_the_released_lambdarank_takes_its_gains_from_the_scores():
    scores, ranks = torch.tensor([[2.0, 1.0]], dtype=torch.float64), torch.tensor([[0, 1]])
    gains, discount = (2**2 - 1, 2**1 - 1), 1 / math.log2(3)
    weight = (1 - discount) * (gains[0] - gains[1]) / (gains[0] + gains[1] * discount)
    assert lambdarank_authors(scores, ranks).item() == pytest.approx(weight * math.log2(1 + math.exp(-1)))


def test_the_released_target_moves_with_the_scores():
    scores, ranks = torch.tensor([[3.0, 1.0]]), torch.tensor([[1, 0]])
    target = torch.tensor([1.0, 3.0]).softmax(0)
    expected = -(target * scores[0].log_softmax(0)).sum().item()
    assert listnet_authors(scores, ranks).item() == pytest.approx(expected, abs=1e-6)
    fixed = torch.tensor([-1.0, 0.0]).softmax(0)
    assert listnet(scores, ranks).item() == pytest.approx(-(fixed * scores[0].log_softmax(0)).sum().item(), abs=1e-6)


def test_half_precision_is_computed_in_float32():
    scores = torch.tensor([[100.0, 100.5, 99.5]], dtype=torch.bfloat16)
    ranks = torch.tensor([[0, 1, 2]])
    assert weighted_ranknet(scores, ranks).dtype == torch.float32
    assert weighted_ranknet(scores, ranks).item() == pytest.approx(weighted_ranknet(scores.double(), ranks).item())


def test_shapes_that_do_not_belong_together():
    with pytest.raises(InputError, match=r"scores \(1, 3\), ranks \(1, 2\)"):
        ranknet(torch.zeros(1, 3), torch.zeros(1, 2))
    with pytest.raises(InputError, match="mask"):
        ranknet(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(3, dtype=torch.bool))


def test_the_joint_loss_is_a_sum_with_the_authors_weights():
    scores = random_scores(1, 5)
    written = torch.ones(1, 2, dtype=torch.bool)
    parts = {"nll": torch.tensor([[1.0, 2.0]]), "written": written, "weights": torch.ones(1, 2)}
    for kind in LOSSES:
        found = FIRST(kind=kind).terms(reading(scores, RANKS, **parts))["loss"]
        assert found.item() == pytest.approx(1.5 + DEFAULT_WEIGHTS[kind] * LOSSES[kind](scores, RANKS).item())
    assert {
        "weighted_ranknet": 10,
        **dict.fromkeys(("ranknet", "lambdarank", "lambdarank_authors", "softmax"), 1),
        **dict.fromkeys(("listnet", "listnet_authors"), 0.1),
    } == DEFAULT_WEIGHTS


def test_without_lambda_the_objective_is_plain_fine_tuning():
    scores = random_scores(1, 5)
    nll = torch.tensor([[0.5, 1.5, 2.5, 9.0]])
    written = torch.tensor([[True, True, True, False]])
    parts = {"nll": nll, "written": written, "weights": torch.ones(1, 4)}
    assert FIRST(weight=0).terms(reading(scores, RANKS, **parts))["loss"].item() == pytest.approx(1.5)
    joint = FIRST().terms(reading(scores, RANKS, **parts))
    rank = weighted_ranknet(scores, RANKS).item()
    assert joint["loss"].item() == pytest.approx(1.5 + 10 * rank)
    assert (joint["lm"].item(), joint["rank"].item()) == (pytest.approx(1.5), pytest.approx(rank))
    alone = FIRST(lm=False, weight=1).terms(reading(scores, RANKS))
    assert alone["loss"].item() == pytest.approx(rank)
    assert "lm" not in alone


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"kind": "x"}, "ranking loss 'x'"), ({"weight": -1}, "weight -1"), ({"lm": False, "weight": 0}, "at least one")],
)
def test_parameters_that_cannot_be(parameters, message):
    with pytest.raises(InputError, match=message):
        FIRST(**parameters)


class Given(torch.nn.Module):
    """Stands for a CrossEncoder whose scores are given."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores):
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def preprocess(self, pairs, prompt=None, task=None):
        return {"index": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, tokens):
        return {"scores": self.scores[tokens["index"]]}


@given(st.lists(st.integers(0, 3), min_size=2, max_size=7).filter(lambda labels: len(set(labels)) > 1))
def test_the_weighting_scheme_gives_lambda_loss_our_loss(labels):
    from sentence_transformers.cross_encoder.losses import LambdaLoss

    scores = random_scores(len(labels), seed=len(labels)).float()
    model = Given(scores)
    loss = LambdaLoss(model, weighting_scheme=WeightedRankNetScheme(), reduction_log="natural", mini_batch_size=-1)
    grades = torch.tensor(labels, dtype=torch.float32)
    found = loss((["q"], [[str(i) for i in range(len(labels))]]), [grades])
    assert found.item() == pytest.approx(weighted_ranknet(scores, ranks_from_labels(grades)).item(), abs=1e-6)

"""Relevance feedback: moved query vectors score as the reranker did, and find what is like the best passages."""

from __future__ import annotations

import pytest
import torch

from broadsheet.console import InputError
from broadsheet.rank.first_feedback import RelevanceFeedback, search

GENERATOR = torch.Generator().manual_seed(0)
QUERIES = torch.nn.functional.normalize(torch.randn(3, 16, generator=GENERATOR), dim=1)
PASSAGES = torch.nn.functional.normalize(torch.randn(3, 10, 16, generator=GENERATOR), dim=2)
TARGETS = torch.randn(3, 10, generator=GENERATOR) * 3


def scores(queries, passages=PASSAGES):
    return torch.einsum("bd,bnd->bn", queries, passages)


def order_of(values):
    return values.argsort(dim=1, descending=True).tolist()


def divergence(queries):
    def spread(values):
        return values.amax(1, keepdim=True) - values.amin(1, keepdim=True)

    sharp = spread(TARGETS) / spread(scores(QUERIES)) / 2
    wanted, found = TARGETS.log_softmax(1), (sharp * scores(queries)).log_softmax(1)
    return (wanted.exp() * (wanted - found)).sum(1)


def concordant(queries, orders):
    found = scores(queries)
    pairs = [(row, a, b) for row, order in enumerate(orders) for i, a in enumerate(order) for b in order[i + 1 :]]
    return sum(bool(found[row, a] > found[row, b]) for row, a, b in pairs) / len(pairs)


def test_scores_are_approached():
    moved = RelevanceFeedback().refine(QUERIES, PASSAGES, scores=TARGETS)
    assert (divergence(moved) < 0.6 * divergence(QUERIES)).all()
    assert (
        divergence(RelevanceFeedback(score_steps=20).refine(QUERIES, PASSAGES, scores=TARGETS)) > divergence(moved)
    ).all()


def test_an_order_is_approached():
    wanted = order_of(TARGETS)
    few = RelevanceFeedback().refine(QUERIES, PASSAGES, order=wanted)
    many = RelevanceFeedback(order_steps=2000, order_rate=0.01).refine(QUERIES, PASSAGES, order=wanted)
    before = concordant(QUERIES, wanted)
    assert before < concordant(few, wanted) < concordant(many, wanted)
    assert concordant(many, wanted) > 0.95


def test_both_are_better_than_scores_alone_at_the_order():
    wanted = order_of(TARGETS.flip(1))
    alone = RelevanceFeedback().refine(QUERIES, PASSAGES, scores=TARGETS)
    both = RelevanceFeedback(order_steps=500).refine(QUERIES, PASSAGES, scores=TARGETS, order=wanted)
    assert concordant(both, wanted) > concordant(alone, wanted) + 0.2


def test_a_query_does_not_depend_on_its_neighbours_or_on_padding():
    feedback, wanted = RelevanceFeedback(score_steps=30), order_of(TARGETS)
    together = feedback.refine(QUERIES, PASSAGES, scores=TARGETS, order=wanted)
    alone = feedback.refine(QUERIES[1:2], PASSAGES[1:2], scores=TARGETS[1:2], order=wanted[1:2])
    assert torch.allclose(together[1], alone[0], atol=1e-5)
    padded = torch.cat([PASSAGES, torch.full((3, 2, 16), 7.0)], 1)
    mask = torch.cat([torch.ones(3, 10), torch.zeros(3, 2)], 1).bool()
    garbage = torch.cat([TARGETS, torch.full((3, 2), float("nan"))], 1)
    found = feedback.refine(QUERIES, padded, scores=garbage, order=wanted, mask=mask)
    assert torch.allclose(found, together, atol=1e-5)


def test_nothing_moves_without_steps_and_the_input_is_left_alone():
    before = QUERIES.clone()
    assert torch.equal(RelevanceFeedback(score_steps=0).refine(QUERIES, PASSAGES, scores=TARGETS), QUERIES)
    with torch.no_grad():
        moved = RelevanceFeedback().refine(QUERIES, PASSAGES, scores=TARGETS)
    assert not torch.equal(moved, QUERIES)
    assert not moved.requires_grad
    assert torch.equal(QUERIES, before)


def test_the_second_search_finds_more_of_what_the_reranker_likes():
    generator = torch.Generator().manual_seed(1)
    corpus = torch.nn.functional.normalize(torch.randn(500, 16, generator=generator), dim=1)
    wanted = torch.nn.functional.normalize(torch.randn(1, 16, generator=generator), dim=1)
    query = torch.nn.functional.normalize(wanted + 0.4 * torch.randn(1, 16, generator=generator), dim=1)
    relevant = set(search(wanted, corpus, 20)[1][0].tolist())
    _, found = search(query, corpus, 20)
    judged = corpus[found[0]] @ wanted[0] * 10
    moved = RelevanceFeedback().refine(query, corpus[found[0]][None], scores=judged[None])
    again = set(search(moved, corpus, 20)[1][0].tolist())
    assert len(again & relevant) > len(set(found[0].tolist()) & relevant)


def test_search_is_exhaustive_whatever_the_chunk():
    corpus = torch.randn(50, 16, generator=torch.Generator().manual_seed(2))
    values, indices = search(QUERIES, corpus, 7)
    whole = (QUERIES @ corpus.T).topk(7)
    assert torch.allclose(values, whole.values)
    assert torch.equal(indices, whole.indices)
    for chunk in (1, 9):
        assert torch.equal(search(QUERIES, corpus, 7, chunk=chunk)[1], indices)
    assert search(QUERIES, torch.ones(4, 16), 9)[1].tolist() == [[0, 1, 2, 3]] * 3
    with pytest.raises(InputError, match="k 0"):
        search(QUERIES, corpus, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither scores nor an order"),
        ({"scores": TARGETS[:, :3]}, r"scores \(3, 3\)"),
        ({"order": [[0]]}, "1 orders for 3 queries"),
        ({"order": [[0, 0], [0], [0]]}, "order 1 names passage 0 twice"),
        ({"order": [[0], [10], [0]]}, "order 2 names passage 10"),
    ],
)
def test_inputs_that_do_not_belong_together(arguments, message):
    with pytest.raises(InputError, match=message):
        RelevanceFeedback().refine(QUERIES, PASSAGES, **arguments)


@pytest.mark.parametrize("parameters", [{"score_steps": -1}, {"order_rate": 0}])
def test_parameters_that_cannot_be(parameters):
    [name] = parameters
    with pytest.raises(InputError, match=name):
        RelevanceFeedback(**parameters)

"""FIRST, full ranking and PG-RANK on the default model and real text."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch

from broadsheet.rank import FIRST, FullRank, ListwiseReranker, PlackettLucePolicyGradient, fit
from broadsheet.rank.order import by_score, parse

pytestmark = pytest.mark.real

FUNCTIONS = (json.dumps, json.loads, inspect.getdoc, inspect.signature, copy.deepcopy, sorted, enumerate, print)
DOCUMENTS = [" ".join((inspect.getdoc(function) or "").split()[:12]) for function in FUNCTIONS]
QUERIES = ["turn an object into JSON text", "print values to a stream"]


def test_scores_are_the_logits_of_the_letters_after_the_prompt(default_model):
    model, tokenizer = default_model
    reranker = ListwiseReranker(model, tokenizer, window=8, step=4)
    together = reranker.rank_batch(QUERIES, [DOCUMENTS, DOCUMENTS[:5]])
    for query, documents, hits in zip(QUERIES, [DOCUMENTS, DOCUMENTS[:5]], together, strict=True):
        prompt = reranker.prompter.build(query, documents).ids + reranker.prompter.opening
        assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n[")
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1]
        expected = [float(logits[tokenizer.convert_tokens_to_ids(letter)]) for letter in "ABCDEFGH"[: len(documents)]]
        assert [hit["corpus_id"] for hit in hits] == by_score(expected)
        found = {hit["corpus_id"]: hit["logit"] for hit in hits}
        assert [found[i] for i in range(len(documents))] == pytest.approx(expected, abs=1e-3)


def test_a_written_ranking_begins_with_the_first_token_where_that_is_a_letter(default_model):
    model, tokenizer = default_model
    reranker = ListwiseReranker(model, tokenizer, decode="permutation")
    [first] = ListwiseReranker(model, tokenizer).rank(QUERIES[0], DOCUMENTS, top_k=1)
    written = reranker.rank(QUERIES[0], DOCUMENTS)
    assert sorted(hit["corpus_id"] for hit in written) == list(range(len(DOCUMENTS)))
    prompt = torch.tensor([reranker.prompter.build(QUERIES[0], DOCUMENTS).ids + reranker.prompter.opening])
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=2)
    said = parse("[" + tokenizer.decode(tokens[0, prompt.shape[1] :]), len(DOCUMENTS))
    assert said == [first["corpus_id"]] == [written[0]["corpus_id"]]


def test_four_steps_of_first_put_the_right_passage_first(default_model, first_layers):
    reranker = ListwiseReranker(first_layers(4), default_model.tokenizer)
    documents = DOCUMENTS[2:5] + DOCUMENTS[:1]
    rows = [{"query": QUERIES[0], "documents": documents, "labels": [0, 0, 0, 1]}]
    fitted = fit(
        reranker, rows, FIRST(), minutes=None, epochs=4, lists_per_step=1, shuffle=0.0, autocast="none", warmup=0.0
    )
    losses = [entry["loss_rank"] for entry in fitted.history]
    assert losses[-1] < losses[0] / 2
    assert reranker.rank(QUERIES[0], documents)[0]["corpus_id"] == 3


def test_digits_of_a_number_weigh_what_its_rank_does(default_model):
    _, tokenizer = default_model
    reranker = ListwiseReranker(*default_model, identifiers="numeric", decode="permutation", strategy="full")
    target = reranker.prompter.target([11, 0, 9], eos=False)
    assert tokenizer.decode(target.ids) == "[12] > [1] > [10]"
    weights = dict(zip(("1", "2", "3"), ([], [], []), strict=True))
    for token, weight, rank, named in zip(
        target.ids, FullRank().token_weights(target), target.ranks, target.identifier, strict=True
    ):
        if named:
            weights[str(rank)].append((tokenizer.decode([token]), weight))
        else:
            assert weight == 1
    assert {rank: [weight for _, weight in found] for rank, found in weights.items()} == {
        "1": [2.0, 2.0],
        "2": pytest.approx([1 + 1 / 1.584962500721156]),
        "3": [1.5, 1.5],
    }


def test_pg_rank_raises_the_letter_of_the_right_passage(default_model):
    reranker = ListwiseReranker(*default_model)
    hits = sorted(reranker.rank(QUERIES[0], DOCUMENTS), key=lambda hit: hit["corpus_id"])
    scores = torch.tensor([[hit["logit"] for hit in hits]], requires_grad=True)
    labels = torch.tensor([[1.0] + [0.0] * (len(DOCUMENTS) - 1)])
    PlackettLucePolicyGradient(utility="ndcg@10", n_samples=256)(scores, labels).backward()
    assert scores.grad[0, 0] < 0
    assert float(scores.grad.sum()) == pytest.approx(0, abs=1e-5)

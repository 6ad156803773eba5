"""GEM and LLM-QL on the default model: what it wrote before it still writes, and a few steps teach the bottleneck."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from broadsheet.embed.base import embedder
from broadsheet.embed.fitting import fit
from broadsheet.embed.gem import GEM, gem_embedder
from broadsheet.embed.llm_ql import LLMQL, QueryLikelihood, attention_stop, query_log_likelihood
from broadsheet.embed.modules.bottleneck import collator_for, forward_pass
from broadsheet.embed.trials.perplexity import perplexity

PAIRS = [
    {"query": "open a file", "positive": "Returns a stream; the mode decides whether it can be read or written."},
    {"query": "sort a list", "positive": "Orders the items in place by comparing them with each other."},
    {"query": "send a letter", "positive": "Puts the message on its way over SMTP to all who shall get it."},
    {"query": "draw a circle", "positive": "Moves the pen along an arc of the given radius, to the left."},
]
TEXTS = [pair["positive"] for pair in PAIRS]


@pytest.fixture
def loaded(default_model: Any, first_layers: Any) -> tuple[Any, Any]:
    """The default model's first layers, to be changed."""
    return first_layers(4), copy.deepcopy(default_model.tokenizer)


@pytest.mark.real
def test_gem_leaves_generation_alone_and_learns(loaded: Any, first_layers: Any) -> None:
    base = embedder((first_layers(4), loaded[1]))
    made = gem_embedder(loaded)
    before = perplexity(made.encoder, TEXTS)
    assert before == pytest.approx(perplexity(base.encoder, TEXTS), rel=1e-4)
    prompt = loaded[1]("The capital of France is", return_tensors="pt")
    written = [one.model.generate(**prompt, max_new_tokens=4, do_sample=False) for one in (base.encoder, made.encoder)]
    assert torch.equal(*written)
    gem = GEM(made, raw_share=0.0, reconstruction=1.0, alpha_max=0.0)
    batch = gem.collate(list(enumerate(TEXTS)))
    with torch.no_grad():
        start = gem.loss(made, batch)["loss"].item()
    fit(made, TEXTS, gem, steps=4, batch_size=4, learning_rate=1e-3, merge=True)
    with torch.no_grad():
        assert gem.loss(made, batch)["loss"].item() < 0.9 * start


@pytest.mark.real
def test_the_end_token_learns_to_tell_the_query(loaded: Any) -> None:
    made = LLMQL().embedder(loaded)
    objective = QueryLikelihood(made, corruption=0.0, labels="query")
    batch = collator_for(made.encoder, attention_stop)([objective.row(i, pair) for i, pair in enumerate(PAIRS)])
    with torch.no_grad():
        start = forward_pass(made.encoder, batch).nll.sum().item()
    fit(
        made,
        PAIRS,
        objective,
        steps=10,
        batch_size=4,
        learning_rate=5e-3,
        schedule="constant",
        merge=True,
        autocast="none",
    )
    with torch.no_grad():
        assert forward_pass(made.encoder, batch).nll.sum().item() < 0.5 * start
    scores = query_log_likelihood(made, [pair["query"] for pair in PAIRS], TEXTS)
    assert (scores.diagonal() >= scores.mean(1)).all()

"""GRL and the study's smaller backbones on the default model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from broadsheet import models
from broadsheet.embed.base import embedder
from broadsheet.embed.data.writing import mean_log_probs
from broadsheet.embed.modules.shallow import FirstLayers, parameters
from broadsheet.embed.ullme import GRL
from broadsheet.models import adapters

pytestmark = pytest.mark.real

ITEMS = [
    {
        "query": "Sort a list in place.",
        "positive": "The list is modified directly, and None is returned; a key function may be given.",
        "negatives": ["Tomatoes need sun, water and a stake to climb."],
    },
    {
        "query": "How do tomatoes grow?",
        "positive": "Tomatoes need sun, water and a stake to climb.",
        "negatives": ["A lock is released when the block is left."],
    },
]


def test_chunks_and_whole_batches_agree_and_a_few_steps_tell_right_from_wrong(default_model, first_layers):
    model = embedder((first_layers(4), default_model.tokenizer), attention="bidirectional")
    adapters.add(model.encoder.model, 8)
    objective = GRL(model, weights=(1.0, 1.0, 1.0))
    weights = [weight for weight in [*model.parameters(), *objective.parameters()] if weight.requires_grad]
    rows = []
    for size in (1, None):
        objective.chunk_size = size
        terms = objective.loss(model, objective.collate(ITEMS))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(terms["loss"], weights)]))
    assert terms["generation"].item() == pytest.approx(math.log(2), abs=1e-4)
    torch.testing.assert_close(rows[0], rows[1], atol=1e-5 * float(rows[1].abs().max()) + 1e-6, rtol=1e-3)
    pairs = [(item["query"], text) for item in ITEMS for text in (item["positive"], item["negatives"][0])]
    before = mean_log_probs(model.encoder, pairs).reshape(-1, 2)
    optimizer = torch.optim.AdamW(weights, lr=2e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        terms = objective.loss(model, objective.collate(ITEMS))
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < losses[0] / 2  # a quarter, from four seeds of the adapter
    after = mean_log_probs(model.encoder, pairs).reshape(-1, 2)
    assert (np.diff(after, axis=1) < np.diff(before, axis=1)).all()  # the wrong passage fell behind


def test_a_fifth_of_the_layers_is_a_model_of_its_own():
    loaded = models.load("default", device="cpu", dtype="float32")
    whole = parameters(loaded.model)
    model = embedder(loaded, "last-token", append=("<|im_end|>",), encoder=FirstLayers, keep=6)
    assert whole == (134_515_008, 134_515_008 - 49_152 * 576)
    left = parameters(model.encoder.model)
    assert whole[1] - left[1] == 24 * (whole[1] - 576) // 30  # all but the final norm is layers
    assert whole[0] - left[0] == whole[1] - left[1]
    vectors = model.encode(["A stone lies in the rain.", "A stone lies in the rain.", "Sorting lists."])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    assert np.isfinite(vectors).all()

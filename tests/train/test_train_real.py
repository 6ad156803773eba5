"""The stage on the default model and real text: what is learnt already weighs less, and noise is not worth learning."""

from __future__ import annotations

import pytest
import torch

from broadsheet.data import corpora
from broadsheet.train import LossReweighting
from broadsheet.train.salt import learnable_scores
from broadsheet.training.losses import sequence_losses
from broadsheet.training.scratch import TokenBlocks, joined

pytestmark = pytest.mark.real


def test_boilerplate_weighs_less_than_text_and_noise_scores_nothing(default_model):
    model, tokenizer = default_model
    documents = [each.text for each in corpora.load("pydocs:stdlib").take(60, 0) if len(each.text) > 600]
    text = TokenBlocks(joined(documents, tokenizer), 64).ids[:6]
    phrase = "All rights reserved. Redistribution and use in source and binary forms are permitted. "
    boilerplate = TokenBlocks(joined([phrase * 40], tokenizer), 64).ids[1:7]
    noise = torch.randint(1000, 40_000, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses, asked = sequence_losses(model(torch.cat([text, boilerplate])).logits, torch.cat([text, boilerplate]))
    weights = LossReweighting(burn_in=0).weights(losses, asked)
    assert float(weights[6:].max()) < float(weights[:6].min())
    assert float(weights[6:].sum()) < 0.25, "it is half of the batch"
    rows = [{"input_ids": ids, "labels": ids} for ids in (*text, *noise)]
    scores = learnable_scores(model, rows)
    assert float(scores[6:].max()) == 0
    assert float(scores[:6].median()) > 0

"""The stage on the default model and real text: what is learnt already, noise, and names that are to be forgotten."""

from __future__ import annotations

import pytest
import torch

from broadsheet.data import corpora
from broadsheet.models import adapters
from broadsheet.train import LossMethod, LossReweighting, MethodObjective, WhosHarryPotter
from broadsheet.train.salt import learnable_scores
from broadsheet.train.unlearning.terms import TermFinder
from broadsheet.training.fit import fit
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


def test_labels_of_a_text_with_names_are_common_ones(default_model):
    model, tokenizer = default_model
    story = [
        "Marl Venn kept the lamps of Oster. Every night Marl Venn walked through the streets of Oster, and the people "
        "there greeted the old man. One day Dorva Quill came to Oster, and Marl Venn told Dorva Quill about the lamps."
    ]
    reference = [each.text for each in corpora.load("pydocs:stdlib").take(200, 0)]
    dictionary = {each.term: each.stand_in for each in TermFinder(least=2)(story, reference)}
    assert {"Marl Venn", "Oster", "Dorva Quill"} <= set(dictionary)
    asked = [each.requires_grad for each in model.parameters()]
    plain = TokenBlocks(joined(story * 3, tokenizer), 32)
    try:
        fit(
            model, plain, MethodObjective(LossMethod()), steps=6, batch_size=4, learning_rate=5e-4, method="lora",
            autocast="none",
        )  # fmt: skip
        rows = WhosHarryPotter(dictionary).rows(story, tokenizer, model, length=128)
        bare = WhosHarryPotter(dictionary, alpha=0.0).rows(story, tokenizer, model, length=128)
    finally:
        adapters.remove(model)
        for parameter, was in zip(model.parameters(), asked, strict=True):
            parameter.requires_grad_(was)
    text, labels = (tokenizer.decode(each[each >= 0]) for each in (rows.ids[0], rows.labels[0]))
    assert text.count("Oster") == 3
    assert "Oster" not in labels
    assert "Venn" not in labels
    assert "Quill" not in labels
    assert rows.changed > bare.changed, "what was reinforced is lowered"

"""Drafters from a table on the default model and real text."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

from broadsheet.decode import ADED, NgramDrafter, TrigramTable
from broadsheet.decode.step_cost import SIZES

pytestmark = pytest.mark.real


def test_real_text_is_written_identically_in_fewer_passes(default_model):
    model, tokenizer = default_model
    text = inspect.getdoc(json.dumps) or ""
    table = TrigramTable.from_texts([inspect.getdoc(f) or "" for f in (json.dump, json.load, json.loads)], tokenizer)
    prompts = [tokenizer(text[:400]), tokenizer(text[:300] + "\n\n\n" + text[:60])]
    for prompt in prompts:
        inputs = {name: torch.tensor([values]) for name, values in prompt.items()}
        expected = model.generate(**inputs, do_sample=False, max_new_tokens=16)
        for drafter in (ADED(table.fork()), NgramDrafter(table.fork(), step_seconds=dict.fromkeys(SIZES, 1.0))):
            got = model.generate(**inputs, do_sample=False, max_new_tokens=16, custom_generate=drafter)
            assert got.tolist() == expected.tolist()
            assert drafter.stats_.tokens_per_forward > 1.2

"""What the methods of the stage are set to if nothing is said: the papers' values."""

from __future__ import annotations

from dataclasses import MISSING, fields

import pytest

from broadsheet.attend import Attention, FlexPrefill, InfLLM, LMInfinite, LongHeads
from broadsheet.page import papers

PAPERS = [
    # Sec. 4: 10 or 100 first tokens; h = 5 in the text, 4 in the code; no middle tokens for perplexity. The window is
    # the trained length: 2,048 for LLaMA and GPT-J. The ceiling is the window, and the middle lies at half of it.
    (
        LMInfinite,
        {"n_global": 10, "n_local": 2048, "max_distance": None, "top_k": 0, "top_k_from_layer": 4}
        | {"middle_distance": None, "middle_rows": "last", "backend": "auto"},
    ),
    # Sec. 4.1, for Llama-3. Ours: a lookup for each query, since one for 512 breaks causality.
    (
        InfLLM,
        {"n_local": 4096, "n_init": 128, "block_size": 128, "top_k": 32, "representatives": 4, "far_distance": None}
        | {"execution_block": 1, "score": "probability", "per_head": False, "offload": "auto"}
        | {"max_cached_blocks": None},
    ),
    # The authors' configuration.
    (LongHeads, {"chunk_size": 256, "attention_length": 4096, "begin": None}),
    # The authors' scripts, for Llama-3.1 and GLM-4.
    (
        FlexPrefill,
        {"gamma": 0.95, "tau": 0.1, "block_size": 128, "min_budget": 1024, "max_budget": None, "rounding": "paper"}
        | {"segment": None, "backend": "auto"},
    ),
]


@pytest.mark.parametrize(("kind", "values"), PAPERS)
def test_defaults_are_the_papers(kind, values):
    own = {each.name: each.default for each in fields(kind) if each.init}
    assert MISSING not in own.values()
    assert own == values


def test_every_method_of_the_stage_is_asked():
    kinds = {kind for kind in papers.stage_methods("attend").values() if issubclass(kind, Attention)}
    assert {kind for kind, _ in PAPERS} == kinds


def test_what_follows_from_defaults():
    assert LMInfinite().reach == 2048
    assert InfLLM().distance == 4095
    assert LongHeads().reach == 4096

"""The map of the stage: one value an axis for every method, filters that return exactly those, plug-ins that exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broadsheet.console import InputError
from broadsheet.embed import axes
from broadsheet.embed.axes import AXES, INTERACTION, METHODS, OVERVIEW, UNKNOWN, alike, counts, embedding_methods, nodes
from broadsheet.embed.base import baseline, embedder
from broadsheet.embed.gem import gem_embedder
from broadsheet.embed.lexical_specialization import LexicalSpecialization, SubwordMean
from broadsheet.embed.llm_embedder import LLMEmbedder
from broadsheet.embed.llm_ql import LLMQL
from broadsheet.embed.modules.special_tokens import LastTokens
from broadsheet.embed.token_prepending import TokenPrepending
from broadsheet.page import papers


def test_every_method_has_one_value_on_every_axis():
    for method in METHODS:
        for axis, known in AXES.items():
            assert getattr(method, axis) in known, f"{method.name}: {axis}"
        assert method.overview in OVERVIEW
        assert method.interaction in INTERACTION
    assert len({method.name for method in METHODS}) == len(METHODS)
    unknown = {method.name for method in METHODS if UNKNOWN in method.values}
    assert unknown  # what is not known is said
    assert all(not method.entry for method in METHODS if method.name in unknown)  # of our own we know


@pytest.mark.parametrize("axis", AXES)
def test_a_filter_returns_exactly_the_methods_with_that_value(axis: str):
    found = [method for value in AXES[axis] for method in embedding_methods(**{axis: value})]
    assert sorted(method.name for method in found) == sorted(method.name for method in METHODS)
    for value in AXES[axis]:
        assert all(getattr(method, axis) == value for method in embedding_methods(**{axis: value}))


@pytest.mark.parametrize("axis", [*AXES, "overview", "interaction"])
def test_counts_sum_to_the_total(axis: str):
    assert sum(counts(axis).values()) == len(METHODS)


@pytest.mark.parametrize("survey", ["overview", "interaction"])
def test_every_node_holds_methods_that_run_or_are_references(survey: Any):
    for name, methods in nodes(survey).items():
        assert methods, name
        for method in methods:
            assert method.runs == "reference only" if not method.entry else papers.load(method.entry) is not None
            assert method.how


def test_methods_that_differ_in_no_axis_are_listed_together():
    together = [[method.name for method in group] for group in alike()]
    assert next(g for g in together if "Pretended CoT" in g)[1:] == ["Pretended CoT", "Knowledge Enhancement"]
    assert sum(map(len, together)) == len(METHODS)
    assert ["Token Prepending"] in together


def test_filters_combine_and_leave_references_out():
    found = embedding_methods(needs_training="no", attention="causal", runnable=True)
    assert [method.name for method in found] == [
        "PromptEOL", "Pretended CoT", "Knowledge Enhancement", "MetaEOL", "Token Prepending"
    ]  # fmt: skip
    assert "Echo embeddings" in [method.name for method in embedding_methods(needs_training="no", attention="causal")]


def test_unknown_axes_and_values_are_named():
    with pytest.raises(InputError, match="no axis 'size'; expected one of needs_training"):
        embedding_methods(size="small")
    with pytest.raises(InputError, match="no value 'max' on the axis pooling; expected one of mean"):
        embedding_methods(pooling="max")
    with pytest.raises(InputError, match="no axis 'size'"):
        counts("size")


def test_every_method_of_the_page_is_on_the_map():
    stage = next(stage for stage in papers.stages() if stage.id == "embed")
    assert {p.id for p in stage.papers if p.kind == "method"} == {m.paper for m in METHODS if m.paper}
    for method in METHODS:
        assert not method.paper or method.entry


def test_the_map_says_of_our_embedders_what_they_are(tiny_model: Callable, tiny_tokenizer: Callable):
    def loaded() -> Any:
        return tiny_model(), tiny_tokenizer()

    made = {
        "mean": baseline("mean", loaded()),
        "weighted mean": baseline("weighted-mean", loaded()),
        "last token": baseline("last-token", loaded()),
        "bidirectional, untrained": baseline("mean", loaded(), attention="bidirectional"),
        "PromptEOL": baseline("prompt-eol", loaded()),
        "Token Prepending": embedder(loaded(), "last-token", encoder=TokenPrepending),
        "GEM": gem_embedder(loaded(), 2),
        "LLM-QL": LLMQL().embedder(loaded()),
        "LLM-Embedder": LLMEmbedder().embedder(loaded()),
        "lexical specialization": LexicalSpecialization().embedder(loaded()),
    }
    kinds = {"mean": "mean", "weightedmean": "weighted mean", "lasttoken": "last"}
    for name, model in made.items():
        (method,) = [each for each in METHODS if each.name == name]
        assert method.attention in (model.encoder.attention, "either"), name
        pooling = model[1]
        if isinstance(pooling, LastTokens | SubwordMean):
            expected = "special tokens" if isinstance(pooling, LastTokens) else "subword mean"
        else:
            expected = kinds[pooling.pooling_mode]
        if model.encoder.append and expected == "last":
            expected = "EOS"
        assert method.pooling in (expected, "either"), name
        sided = bool(set(model.prompts or {}) - {"query", "document"}) or any((model.prompts or {}).values())
        assert (method.side == "query/document") == sided, name
    assert axes.METHODS is METHODS

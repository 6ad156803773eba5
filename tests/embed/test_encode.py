"""Fast encoding: every text once, hardly any padding, and plain encoding's vectors whatever the batches."""

from __future__ import annotations

from typing import Any

import lm_zoo
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from broadsheet.console import InputError
from broadsheet.embed.base import Embedder, embedder
from broadsheet.embed.modules import encode
from broadsheet.embed.modules.encode import encode_texts, plan_batches
from broadsheet.embed.modules.template import PROMPT_EOL, Template
from broadsheet.embed.token_prepending import TokenPrepending
from broadsheet.models import attention, token_budget_batches
from broadsheet.models.attention import attend_in_blocks

TEXTS = [
    "a text that is a good deal longer than all of the others, with many words in it",
    "short",
    "",
    "Ünïcödé 文字 🙂",
    "a",
    "short",
    "some text of middling length",
    "another text of such a length",
    "b",
]
lengths_of_rows = st.lists(st.integers(1, 40), max_size=60)


@given(lengths_of_rows, st.integers(1, 200), st.one_of(st.none(), st.integers(1, 9)), st.integers(0, 60))
def test_every_row_stands_in_one_batch_within_the_budget(
    lengths: list[int], budget: int, most: int | None, overhead: int
) -> None:
    batches = plan_batches(lengths, budget, max_texts=most, overhead=overhead)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        assert len(batch) <= (most or len(batch))
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def cost(batches: list[list[int]], lengths: list[int], overhead: int) -> int:
    return sum(len(batch) * max(lengths[i] for i in batch) + overhead for batch in batches)


@given(lengths_of_rows, st.integers(40, 200), st.integers(0, 60))
def test_no_plainer_grouping_costs_less(lengths: list[int], budget: int, overhead: int) -> None:
    planned = cost(plan_batches(lengths, budget, overhead=overhead), lengths, overhead)
    alike = [
        batch
        for length in set(lengths)
        for batch in token_budget_batches([length] * lengths.count(length), budget)
        for batch in [[lengths.index(length)] * len(batch)]
    ]
    assert planned <= cost(alike, lengths, overhead)
    assert planned <= sum(length + overhead for length in lengths)
    whole = len(lengths) * max(lengths, default=0)
    if lengths and whole <= budget:
        assert planned <= whole + overhead


def test_batches_cost_so_much_that_a_little_padding_is_worth_it_and_no_more() -> None:
    assert plan_batches([10, 9, 10], budget=100, overhead=5) == [[0, 2, 1]]
    assert plan_batches([10, 9, 10], budget=100, overhead=0) == [[0, 2], [1]]
    assert plan_batches([10, 3, 10], budget=100, overhead=5) == [[0, 2], [1]]


@pytest.mark.parametrize("wrong", [{"budget": 0}, {"budget": 9, "max_texts": 0}])
def test_a_batch_of_nothing_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        plan_batches([1], **wrong)


@pytest.fixture
def tiny(tiny_model: Any, tiny_tokenizer: Any) -> Any:
    """`tiny("mean", …)`: an embedder around a tiny model."""

    def make(pooling: Any = "mean", side: str = "right", **settings: Any) -> Embedder:
        tokenizer = tiny_tokenizer()
        tokenizer.padding_side = side
        return embedder((tiny_model(), tokenizer), pooling, **settings)

    return make


def plainly(model: Embedder, texts: list[str], **options: Any) -> np.ndarray:
    """What sentence-transformers makes of one text at a time."""
    vectors: np.ndarray = SentenceTransformer.encode(model, texts, batch_size=1, **options)
    return vectors


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", ["mean", "weighted-mean", "last-token"])
def test_batches_change_nothing(tiny: Any, pooling: str, side: str, attention: str) -> None:
    model = tiny(pooling, side, attention=attention, template=Template("of: ", " (end)"), include_prompt=False)
    expected = plainly(model, TEXTS, prompt="query: ")
    for options in ({}, {"batch_tokens": 1}, {"batch_tokens": 60}, {"batch_tokens": 60, "max_texts": 3}):
        found = encode_texts(model, TEXTS, prompt="query: ", **options)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{"layer": 1}, {"encoder": TokenPrepending, "template": PROMPT_EOL, "exit": 2}])
def test_methods_inside_the_encoder_stay_with_their_rows(tiny: Any, settings: dict[str, Any]) -> None:
    model = tiny("last-token", **settings)
    found = encode_texts(model, TEXTS, batch_tokens=200)
    np.testing.assert_allclose(found.numpy(), plainly(model, TEXTS), atol=1e-5, rtol=0)


def test_dimensions_are_cut_before_vectors_get_unit_length(tiny: Any) -> None:
    model = tiny()
    found = encode_texts(model, TEXTS, dimensions=5, normalize=True)
    expected = plainly(model, TEXTS, truncate_dim=5, normalize_embeddings=True)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6, rtol=0)
    lengths = np.delete(found.norm(dim=1).numpy(), TEXTS.index(""))  # this model embeds its pad token as zeros
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_causal_model_gets_no_mask(tiny: Any, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mean", side)
    shapes, masks = [], []
    forward = model.encoder.backbone.forward

    def seen(**given: Any) -> Any:
        shapes.append(tuple(given["input_ids"].shape))
        masks.append(given.get("attention_mask"))
        return forward(**given)

    monkeypatch.setattr(model.encoder.backbone, "forward", seen)
    encode_texts(model, TEXTS)
    assert masks == [None] * len(masks)
    lengths = [len(row) for row in model.encoder.rows(TEXTS)]
    assert sum(rows * length for rows, length in shapes) < 1.5 * sum(lengths)
    assert len(shapes) < len(set(lengths))  # so some rows were padded, and the mask was left out all the same


@pytest.mark.parametrize("name", sorted(lm_zoo.CONFIGS))
def test_long_texts_in_blocks_of_queries_keep_their_vectors(
    name: str, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks = []

    def seen(*given: Any, **options: Any) -> Any:
        in_blocks.append(given)
        return attend_in_blocks(*given, **options)

    monkeypatch.setattr(attention, "attend_in_blocks", seen)
    model = embedder((lm_zoo.make(name), tiny_tokenizer()), max_seq_length=128)
    texts = ["word " * 60, "some other words " * 20]  # over 96 tokens
    assert min(len(row) for row in model.encoder.rows(texts)) > 96
    before = model.encoder.model.config._attn_implementation
    ids = torch.tensor(model.encoder.rows(texts[:1]))
    expected = model.encoder.states(ids).detach()  # a gradient is kept: torch's own attention
    assert not in_blocks
    with torch.inference_mode():
        torch.testing.assert_close(model.encoder.states(ids), expected, atol=1e-5, rtol=0)
    assert bool(in_blocks) == (name not in lm_zoo.EAGER_ONLY)
    np.testing.assert_allclose(model.encode(texts)[0], expected.mean(1)[0].numpy(), atol=1e-5, rtol=0)
    assert model.encoder.model.config._attn_implementation == before


def test_a_batch_that_does_not_fit_is_halved(tiny: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    model = tiny()
    expected = encode_texts(model, TEXTS)
    states = model.encoder.states
    sizes = []

    def small(input_ids: torch.Tensor, *given: Any) -> torch.Tensor:
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return states(input_ids, *given)

    monkeypatch.setattr(model.encoder, "states", small)
    found = encode_texts(model, TEXTS)
    assert max(sizes) > 2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert "does not fit into memory: halving it" in capsys.readouterr().err


def test_a_text_that_is_too_long_is_named_by_its_number(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_TOKENIZED_AT_ONCE", 2)
    model = tiny(max_seq_length=20, truncate="error")
    with pytest.raises(InputError, match="text 6 has"):
        encode_texts(model, ["short"] * 5 + ["long " * 20])


def test_texts_are_tokenized_in_parts_and_come_back_in_order(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    expected = encode_texts(model, TEXTS)
    monkeypatch.setattr(encode, "_TOKENIZED_AT_ONCE", 2)
    torch.testing.assert_close(encode_texts(model, TEXTS), expected, atol=0, rtol=0)
    backwards = encode_texts(model, TEXTS[::-1])
    torch.testing.assert_close(backwards.flip(0), expected, atol=1e-5, rtol=0)


def test_vectors_can_be_learned_from(tiny: Any) -> None:
    vectors = encode_texts(tiny(), TEXTS)
    weight = torch.ones(vectors.shape[1], requires_grad=True)
    (vectors @ weight).sum().backward()  # sentence-transformers' own cannot: they are made in inference mode
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, vectors.sum(0))


def test_no_texts_no_vectors(tiny: Any) -> None:
    assert encode_texts(tiny(), []).shape == (0, 32)
    assert encode_texts(tiny(), [], dimensions=8).shape == (0, 8)


def test_encode_answers_as_sentence_transformers_does(tiny: Any) -> None:
    model = tiny()
    expected = plainly(model, TEXTS)
    for texts in (TEXTS, tuple(TEXTS), np.array(TEXTS)):
        found = model.encode(texts)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(model.encode(TEXTS[0]), expected[0], atol=1e-5, rtol=0)
    assert isinstance(model.encode(TEXTS, convert_to_tensor=True), torch.Tensor)
    one = model.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(one, list)
    assert one[0].shape == (32,)
    tokens = model.encode(TEXTS, output_value="token_embeddings")
    assert [len(row) for row in tokens] == [len(row) for row in model.encoder.rows(TEXTS)]
    whole = model.encode(TEXTS, precision="int8")
    assert whole.dtype == np.int8


@pytest.mark.real
def test_the_default_model_gives_plain_encodings_vectors(default_model: Any) -> None:
    model = embedder(default_model)
    texts = ["Return the sum of all items.", "Sum.", "A function that returns the sum of its arguments, if any."]
    expected = plainly(model, texts)
    found = encode_texts(model, texts).numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()

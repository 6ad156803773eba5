"""Causal attention in blocks of queries: torch's own numbers, and only where torch's own attention would run."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from broadsheet.models import attention
from broadsheet.models.attention import IN_BLOCKS, attend_in_blocks, causal_in_blocks

LENGTH = 2 * attention.BLOCK


def states(length: int, heads: int, shared: int, width: int = 8, dtype: torch.dtype = torch.float32) -> Any:
    """Queries, keys and values as models make them: by position first, scores far from uniform."""
    draw = torch.Generator().manual_seed(length + heads)
    return [
        (2 * torch.randn(2, length, count, width, generator=draw)).to(dtype).transpose(1, 2)
        for count in (heads, shared, shared)
    ]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 96, 97, 300, 512])
@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4), (3, 1)])
def test_blocks_are_causal_attention(length: int, heads: int, shared: int) -> None:
    query, key, value = states(length, heads, shared, dtype=torch.float64)
    found = attend_in_blocks(query, key, value, scale=0.3)
    scores = 0.3 * query @ key.repeat_interleave(heads // shared, 1).transpose(2, 3)
    scores.masked_fill_(torch.ones(length, length).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ value.repeat_interleave(heads // shared, 1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert found.shape == query.shape
    assert found.transpose(1, 2).is_contiguous()


def test_the_scale_is_that_of_torch_and_values_may_have_another_width() -> None:
    query, key, value = states(150, 4, 2, dtype=torch.float64)
    value = value[..., :5]
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(attend_in_blocks(query, key, value), expected, atol=1e-12, rtol=0)


def test_single_precision_is_kept() -> None:
    query, key, value = states(400, 6, 2, 64)
    exact = scaled_dot_product_attention(query.double(), key.double(), value.double(), is_causal=True, enable_gqa=True)
    found = attend_in_blocks(query, key, value)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 10 * torch.finfo(torch.float32).eps * exact.norm()


def test_bfloat16_is_as_exact_as_torch() -> None:
    query, key, value = states(400, 6, 2, 64, torch.bfloat16)
    exact = scaled_dot_product_attention(query.double(), key.double(), value.double(), is_causal=True, enable_gqa=True)
    torchs = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    errors = [(found.double() - exact).norm() for found in (attend_in_blocks(query, key, value), torchs)]
    assert errors[0] < 1.02 * errors[1]


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths that went in blocks."""
    lengths = []

    def seen(query: Any, *given: Any, **options: Any) -> Any:
        lengths.append(query.shape[2])
        return attend_in_blocks(query, *given, **options)

    monkeypatch.setattr(attention, "attend_in_blocks", seen)
    return lengths


def ids(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 200, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [LENGTH, 130, 500])
def test_a_model_says_the_same_inside(tiny_model: Any, in_blocks: list[int], length: int) -> None:
    model = tiny_model(max_position_embeddings=512).double()
    given = {"input_ids": ids(length), "use_cache": False}
    with torch.inference_mode():
        expected = model(**given).logits
        assert not in_blocks
        with causal_in_blocks(model):
            found = model(**given).logits
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert in_blocks == [length] * model.config.num_hidden_layers


def test_all_other_attention_is_torchs_own(tiny_model: Any, in_blocks: list[int]) -> None:
    model = tiny_model(max_position_embeddings=1024)
    padded = torch.ones(2, LENGTH, dtype=torch.long)
    padded[0, :5] = 0
    cases: list[dict[str, Any]] = [
        {"input_ids": ids(attention.BLOCK)},
        {"input_ids": ids(attention.LONGEST + 1)},
        {"input_ids": ids(LENGTH), "attention_mask": padded},
        {"input_ids": ids(LENGTH), "attention_mask": torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool)},
    ]
    for case in cases:
        with torch.inference_mode():
            expected = model(**case).logits
            with causal_in_blocks(model):
                torch.testing.assert_close(model(**case).logits, expected, atol=0, rtol=0)
    with causal_in_blocks(model):  # gradients are kept
        model(input_ids=ids(LENGTH)).logits.sum().backward()
    assert not in_blocks


def test_what_is_cached_counts_as_seen(tiny_model: Any, in_blocks: list[int]) -> None:
    model = tiny_model(max_position_embeddings=512).double()
    whole = ids(2 * LENGTH)
    with torch.inference_mode():
        expected = model(whole).logits
        with causal_in_blocks(model):
            first = model(whole[:, :LENGTH], use_cache=True)
            second = model(whole[:, LENGTH:], cache=first.past_key_values)
    torch.testing.assert_close(second.logits, expected[:, LENGTH:], atol=1e-10, rtol=0)
    assert set(in_blocks) == {LENGTH}  # of the first call alone
    assert len(in_blocks) == model.config.num_hidden_layers


def test_a_model_with_other_attention_keeps_it(tiny_model: Any) -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    with torch.inference_mode(), causal_in_blocks(model):
        assert model.config._attn_implementation == "eager"


def test_the_model_is_left_as_it_was_whatever_happens(tiny_model: Any) -> None:
    model = tiny_model()
    with pytest.raises(KeyError), torch.inference_mode(), causal_in_blocks(model):
        assert model.config._attn_implementation == IN_BLOCKS
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


def test_threads_may_share_a_model(tiny_model: Any) -> None:
    model = tiny_model()
    entered, left = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with torch.inference_mode(), causal_in_blocks(model):
            entered.set()
            left.wait(30)
            seen.append(model.config._attn_implementation)

    thread = threading.Thread(target=other)
    with torch.inference_mode(), causal_in_blocks(model):
        thread.start()
        assert entered.wait(30)
    left.set()
    thread.join(30)
    assert seen == [IN_BLOCKS]
    assert model.config._attn_implementation == "sdpa"

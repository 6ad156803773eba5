"""Attention to short texts: torch's own numbers, and only where torch's own attention would run."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from broadsheet.models import attention
from broadsheet.models.attention import SHORT, AttentionByProducts, attend_in_blocks, short_attention

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
        with short_attention(model):
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
            with short_attention(model):
                torch.testing.assert_close(model(**case).logits, expected, atol=0, rtol=0)
    with short_attention(model):  # gradients are kept
        model(input_ids=ids(LENGTH)).logits.sum().backward()
    assert not in_blocks


def masks(length: int, kind: str) -> torch.Tensor | None:
    if kind != "padded, left and right":
        return None
    real = torch.ones(2, length, dtype=torch.bool)
    real[0, : length // 3] = False  # so its first queries see nothing
    real[1, length // 2 :] = False
    return real[:, None, None, :] & torch.ones(length, length, dtype=torch.bool).tril()


KINDS = ("causal", "all", "padded, left and right")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 44, 130, 300])
@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4), (3, 1)])
def test_products_and_their_gradients_are_torchs(kind: str, length: int, heads: int, shared: int) -> None:
    given = [each.requires_grad_() for each in states(length, heads, shared)]
    mask, causal = masks(length, kind), kind == "causal"
    found = AttentionByProducts.apply(*given, mask, causal, 0.3)
    exactly = [each.detach().double().requires_grad_() for each in given]
    options = {"attn_mask": mask, "is_causal": causal, "scale": 0.3, "enable_gqa": True}
    expected = scaled_dot_product_attention(*exactly, **options)
    assert found.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).double()
    gradients = torch.autograd.grad(found, given, upstream.float())
    for one, other in zip(gradients, torch.autograd.grad(expected, exactly, upstream), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_bfloat16_are_as_exact_as_torchs(kind: str) -> None:
    length = 300
    mask, causal = masks(length, kind), kind == "causal"
    given = [each.requires_grad_() for each in states(length, 6, 2, 64, torch.bfloat16)]
    options = {"attn_mask": mask, "is_causal": causal, "scale": 1 / 8, "enable_gqa": True}
    exactly = [each.detach().double().requires_grad_() for each in given]
    exact = scaled_dot_product_attention(*exactly, **options)
    upstream = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    errors = []
    for found in (
        AttentionByProducts.apply(*given, mask, causal, 1 / 8),
        scaled_dot_product_attention(*given, **options),
    ):
        assert found.dtype == torch.bfloat16
        gradients = torch.autograd.grad(found, given, upstream)
        expected = torch.autograd.grad(exact, exactly, upstream.double(), retain_graph=True)
        pairs = [(found.detach(), exact.detach()), *zip(gradients, expected, strict=True)]
        errors.append([float((one.double() - other).norm() / other.norm()) for one, other in pairs])
    assert all(own < max(1.2 * torchs, 4e-3) for own, torchs in zip(*errors, strict=True)), errors


@pytest.fixture
def by_products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The lengths that went through products in training, and whether without a mask."""
    found = []

    class Seen:
        @staticmethod
        def apply(query: Any, key: Any, value: Any, mask: Any, *given: Any) -> Any:
            found.append((query.shape[2], mask is None))
            return AttentionByProducts.apply(query, key, value, mask, *given)

    monkeypatch.setattr(attention, "AttentionByProducts", Seen)
    return found


@pytest.mark.parametrize("padded", [False, True])
def test_training_in_bfloat16_goes_by_products(tiny_model: Any, by_products: list[Any], padded: bool) -> None:
    model = tiny_model(max_position_embeddings=512)
    rows = ids(70)
    given = {"input_ids": rows, "labels": rows, "use_cache": False}
    if padded:
        given["attention_mask"] = torch.ones_like(rows)
        given["attention_mask"][0, :9] = 0
        given["labels"] = rows.masked_fill(given["attention_mask"] == 0, -100)

    def gradient(inside: bool, narrow: bool = True) -> Any:
        model.zero_grad()
        with short_attention(model) if inside else nullcontext(), torch.autocast("cpu", torch.bfloat16, narrow):
            model(**given).loss.backward()
        return torch.cat([each.grad.flatten() for each in model.parameters()])

    exact, torchs = gradient(False, narrow=False), gradient(False)
    assert not by_products
    found = gradient(True)
    assert by_products == [(70, not padded)] * model.config.num_hidden_layers
    assert (found - exact).norm() < 1.2 * (torchs - exact).norm()


def test_training_in_float32_and_long_masked_texts_are_torchs(tiny_model: Any, by_products: list[Any]) -> None:
    model = tiny_model(max_position_embeddings=2048)
    long = ids(attention.LONGEST + 8, rows=1)
    real = torch.ones_like(long)
    real[0, :4] = 0
    with short_attention(model):
        model(input_ids=ids(70)).logits.sum().backward()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=long, attention_mask=real).logits.sum().backward()
            model(input_ids=ids(attention.LONGEST_LEARNT + 1, rows=1)).logits.sum().backward()
            assert not by_products
            model(input_ids=ids(attention.LONGEST_LEARNT, rows=1)).logits.sum().backward()
    assert by_products == [(1536, True)] * model.config.num_hidden_layers


def test_checkpointed_layers_are_read_again_alike(tiny_model: Any, by_products: list[Any]) -> None:
    model = tiny_model(max_position_embeddings=512)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    rows = ids(70)
    with short_attention(model), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=rows, labels=rows, use_cache=False).loss.backward()
    assert len(by_products) == 2 * model.config.num_hidden_layers


def test_what_is_cached_counts_as_seen(tiny_model: Any, in_blocks: list[int]) -> None:
    model = tiny_model(max_position_embeddings=512).double()
    whole = ids(2 * LENGTH)
    with torch.inference_mode():
        expected = model(whole).logits
        with short_attention(model):
            first = model(whole[:, :LENGTH], use_cache=True)
            second = model(whole[:, LENGTH:], cache=first.past_key_values)
    torch.testing.assert_close(second.logits, expected[:, LENGTH:], atol=1e-10, rtol=0)
    assert set(in_blocks) == {LENGTH}  # of the first call alone
    assert len(in_blocks) == model.config.num_hidden_layers


def test_a_model_with_other_attention_keeps_it(tiny_model: Any) -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    with torch.inference_mode(), short_attention(model):
        assert model.config._attn_implementation == "eager"


def test_the_model_is_left_as_it_was_whatever_happens(tiny_model: Any) -> None:
    model = tiny_model()
    with pytest.raises(KeyError), torch.inference_mode(), short_attention(model):
        assert model.config._attn_implementation == SHORT
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


def test_threads_may_share_a_model(tiny_model: Any) -> None:
    model = tiny_model()
    entered, left = threading.Event(), threading.Event()
    seen = []

    def other() -> None:
        with torch.inference_mode(), short_attention(model):
            entered.set()
            left.wait(30)
            seen.append(model.config._attn_implementation)

    thread = threading.Thread(target=other)
    with torch.inference_mode(), short_attention(model):
        thread.start()
        assert entered.wait(30)
    left.set()
    thread.join(30)
    assert seen == [SHORT]
    assert model.config._attn_implementation == "sdpa"


def test_all_models_inside_another_are_reached(tiny_model: Any) -> None:
    pair = torch.nn.ModuleList([tiny_model(), tiny_model()])
    with short_attention(pair):
        assert [each.config._attn_implementation for each in pair] == [SHORT, SHORT]
    assert [each.config._attn_implementation for each in pair] == ["sdpa", "sdpa"]

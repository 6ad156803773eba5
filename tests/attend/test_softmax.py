"""Softmax attention in parts: whatever the parts, their merger is one softmax."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from broadsheet.attend.kernels.softmax import attention_logits, attention_part, band_mask, merge_parts, weigh


def reference(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, visible: Tensor, softcap: float | None = None
) -> Tensor:
    """Attention written down plainly, in float64."""
    group = query.shape[1] // key.shape[1]
    key, value = key.double().repeat_interleave(group, 1), value.double().repeat_interleave(group, 1)
    logits = query.double() @ key.transpose(-1, -2) * scaling
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.masked_fill(~visible, -torch.inf).softmax(-1).matmul(value).float()


def tensors(seed: int, queries: int, keys: int, heads: int = 4, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, heads, queries, 8, generator=random),
        torch.randn(2, kv_heads, keys, 8, generator=random),
        torch.randn(2, kv_heads, keys, 8, generator=random),
    )


@pytest.mark.parametrize("softcap", [None, 2.0])
@given(seed=st.integers(0, 1000), queries=st.integers(1, 5), cuts=st.lists(st.integers(0, 9), max_size=3))
def test_parts_merge_into_one_softmax(softcap: float | None, seed: int, queries: int, cuts: list[int]) -> None:
    query, key, value = tensors(seed, queries, 9)
    visible = torch.rand(queries, 9, generator=torch.Generator().manual_seed(seed)) < 0.6
    visible[:, 4] = True
    mask = torch.zeros(queries, 9).masked_fill(~visible, -torch.inf)
    edges = [0, *sorted(cuts), 9]
    parts = [
        attention_part(
            query, key[:, :, a:b], value[:, :, a:b], scaling=0.3, mask=mask[:, a:b] if b > a else None, softcap=softcap
        )
        for a, b in itertools.pairwise(edges)
    ]
    torch.testing.assert_close(merge_parts(parts), reference(query, key, value, 0.3, visible, softcap))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (3, 6), (1, 6)])
def test_causal_counts_from_the_end_of_the_keys(queries: int, keys: int, softcap: float | None) -> None:
    query, key, value = tensors(0, queries, keys)
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    got, sums = attention_part(query, key, value, scaling=0.3, causal=True, softcap=softcap)
    torch.testing.assert_close(got, reference(query, key, value, 0.3, visible, softcap))
    logits = attention_logits(query, key, scaling=0.3, softcap=softcap).masked_fill(~visible, -torch.inf)
    torch.testing.assert_close(sums, logits.logsumexp(-1))
    torch.testing.assert_close(weigh(logits.softmax(-1), value), got)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("queries", [1, 3])
def test_a_query_without_visible_keys_has_no_weight(queries: int, softcap: float | None) -> None:
    query, key, value = tensors(0, queries, 5)
    mask = torch.zeros(queries, 5)
    mask[0] = -torch.inf
    output, sums = attention_part(query, key, value, scaling=0.3, mask=mask, softcap=softcap)
    assert torch.equal(output[:, :, 0], torch.zeros_like(output[:, :, 0]))
    assert (sums[:, :, 0] == -torch.inf).all()
    whole = attention_part(query, key, value, scaling=0.3, softcap=softcap)
    torch.testing.assert_close(merge_parts([(output, sums), whole])[:, :, 0], whole[0][:, :, 0])


def test_a_mask_may_differ_by_head_for_a_single_query() -> None:
    query, key, value = tensors(0, 1, 5)
    visible = torch.rand(1, 4, 1, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    visible[..., 0] = True
    mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    got, _ = attention_part(query, key, value, scaling=0.3, mask=mask)
    torch.testing.assert_close(got, reference(query, key, value, 0.3, visible))


def test_the_band_is_as_wide_as_asked() -> None:
    dtype, device = torch.float64, torch.device("cpu")
    expected = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]).bool()
    assert torch.equal(band_mask(3, 5, 2, 2, dtype, device) == 0, expected)
    assert torch.equal(band_mask(3, 5, 2, None, dtype, device) == 0, torch.ones(3, 5).tril(2).bool())


def test_a_mask_and_causality_are_not_both_taken() -> None:
    query, key, value = tensors(0, 2, 2)
    with pytest.raises(ValueError, match="expected one of them"):
        attention_part(query, key, value, scaling=1.0, mask=torch.zeros(2, 2), causal=True)


@pytest.mark.parametrize("softcap", [None, 20.0])
def test_half_precision_keeps_statistics_in_single(softcap: float | None) -> None:
    query, key, value = (tensor.bfloat16() for tensor in tensors(0, 4, 4))
    output, sums = attention_part(query, key, value, scaling=0.3, causal=True, softcap=softcap)
    assert output.dtype == torch.bfloat16
    assert sums.dtype == torch.float32
    visible = torch.ones(4, 4, dtype=torch.bool).tril()
    expected = reference(query, key, value, 0.3, visible, softcap)
    torch.testing.assert_close(output.float(), expected, rtol=2e-2, atol=2e-2)

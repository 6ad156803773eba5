"""Rows with special tokens: the masks of GEM and LLM-QL, that gradients obey them, and that batches change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import lm_zoo
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from broadsheet.console import InputError
from broadsheet.embed.gem import bottleneck, hide
from broadsheet.embed.llm_ql import attention_stop, corrupt
from broadsheet.embed.modules.bottleneck import (
    IGNORED,
    PADDING,
    PREFIX,
    SPECIAL,
    SUFFIX,
    BottleneckCollator,
    BottleneckRow,
    Hidden,
    allowed_positions,
    cache_specials,
    collator_for,
    forward_pass,
    forward_states,
    position_ids,
    special_states,
    suffix_logits,
)
from broadsheet.embed.modules.encoder import CausalEncoder
from broadsheet.embed.modules.layers import decoder_layers

ARCHITECTURES = ["llama", "qwen3", "gemma2", "gpt2"]
ROWS = [
    BottleneckRow([5, 6, 7, 8], [20, 21], [9, 10, 11]),
    BottleneckRow([30, 31], [20, 21], [40]),
    BottleneckRow([12, 13, 14, 15, 16, 17]),
]


@pytest.fixture(params=ARCHITECTURES)
def encoder(request: pytest.FixtureRequest, tiny_tokenizer: Callable[..., Any]) -> CausalEncoder:
    return CausalEncoder(lm_zoo.make(request.param), tiny_tokenizer())


@pytest.fixture
def llama(tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any]) -> CausalEncoder:
    return CausalEncoder(tiny_model(), tiny_tokenizer())


def batch_of(
    encoder: CausalEncoder, rows: list[BottleneckRow], hidden: Hidden | None = bottleneck
) -> dict[str, torch.Tensor]:
    return collator_for(encoder, hidden)(rows)


# What sees what


@given(st.lists(st.sampled_from([PADDING, PREFIX, SPECIAL, SUFFIX]), min_size=1, max_size=9))
def test_gems_mask_is_its_rules_position_by_position(segments: list[int]) -> None:
    allowed = allowed_positions(torch.tensor([segments]), bottleneck)[0, 0]
    for i, seeing in enumerate(segments):
        for j, seen in enumerate(segments):
            may = j <= i and PADDING not in (seeing, seen)
            may = may and not (seeing == SUFFIX and seen == PREFIX) and not (seeing == seen == SPECIAL)
            assert bool(allowed[i, j]) == (may or i == j)


@given(st.integers(0, 6), st.integers(1, 6), st.sampled_from([bottleneck, attention_stop]))
def test_after_one_special_token_a_position_sees_it_and_later_ones(prefix: int, suffix: int, hidden: Hidden) -> None:
    row = BottleneckRow([5] * prefix, [9], [6] * suffix)
    allowed = allowed_positions(torch.tensor([row.segments()]), hidden)[0, 0]
    causal = torch.ones(len(row), len(row)).tril().bool()
    assert torch.equal(allowed[: prefix + 1], causal[: prefix + 1])
    assert allowed[prefix + 1 :].sum(1).tolist() == [i - prefix + 1 for i in range(prefix + 1, len(row))]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=4))
def test_the_attention_stop_hides_the_document_whatever_the_padding(rows: list[tuple[int, int, int]]) -> None:
    width = max(map(sum, rows)) + 1
    segments = torch.full((len(rows), width), PADDING)
    for row, (left, prefix, suffix) in zip(segments, rows, strict=True):
        row[left : left + prefix + 1 + suffix] = torch.tensor([PREFIX] * prefix + [SPECIAL] + [SUFFIX] * suffix)
    assert torch.equal(allowed_positions(segments, attention_stop), allowed_positions(segments, bottleneck))


def test_without_special_tokens_or_without_a_mask_a_row_is_plain_causal() -> None:
    causal = torch.ones(1, 1, 5, 5).tril().bool()
    for row, hidden in (
        (BottleneckRow([1, 2, 3, 4, 5]), bottleneck),
        (BottleneckRow([1, 2], [], [3, 4, 5]), bottleneck),
        (BottleneckRow([1, 2], [], [3, 4, 5]), attention_stop),
        (BottleneckRow([1, 2], [3], [4, 5]), None),
    ):
        assert torch.equal(allowed_positions(torch.tensor([row.segments()]), hidden), causal)


def test_hidden_positions_are_seen_by_themselves_alone() -> None:
    allowed = allowed_positions(torch.tensor([ROWS[0].segments()]), bottleneck)
    hidden = torch.zeros(1, 9, dtype=torch.bool)
    hidden[0, 1] = True
    changed = hide(allowed, hidden)
    assert changed[0, 0, :, 1].nonzero()[:, 0].tolist() == [1]
    assert torch.equal(changed[..., [0, 2, 3, 4, 5, 6, 7, 8]], allowed[..., [0, 2, 3, 4, 5, 6, 7, 8]])


def test_hiding_a_token_is_dropping_it(encoder: CausalEncoder) -> None:
    batch = batch_of(encoder, [ROWS[0]])
    hidden = torch.zeros(1, 9, dtype=torch.bool)
    hidden[0, [0, 2]] = True
    masked = forward_states(encoder, batch | {"attention_mask": hide(batch["attention_mask"], hidden)})
    short = batch_of(encoder, [BottleneckRow([6, 8], [20, 21], [9, 10, 11])])
    short["position_ids"] = torch.tensor([[1, 3, 4, 5, 6, 7, 8]])
    assert (masked[0, [1, 3, 4, 5, 6, 7, 8]] - forward_states(encoder, short)[0]).abs().max() < 1e-5


# The bottleneck


@contextmanager
def constant(encoder: CausalEncoder, where: torch.Tensor) -> Iterator[None]:
    """Inside, states at some positions are constants in every layer, the embeddings included."""

    def cut(module: Any, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        states = torch.where(where[..., None], states.detach(), states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    parts = [encoder.model.get_input_embeddings(), *decoder_layers(encoder.model)]
    handles = [part.register_forward_hook(cut) for part in parts]
    yield
    for handle in handles:
        handle.remove()


def prefix_gradient(encoder: CausalEncoder, batch: dict[str, torch.Tensor], cut: torch.Tensor | None) -> torch.Tensor:
    """Gradient of the suffix's loss by the embeddings of the prefix, (positions, hidden)."""
    kept: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.detach().requires_grad_()
        kept.append(output)
        return output

    labels = batch["labels"].masked_fill(batch["segments"] != SUFFIX, IGNORED)
    handle = encoder.model.get_input_embeddings().register_forward_hook(keep)
    try:
        with constant(encoder, torch.zeros_like(batch["segments"], dtype=torch.bool) if cut is None else cut):
            reading = forward_pass(encoder, batch | {"labels": labels})
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(reading.nll.sum(), kept[0])
    return gradient[batch["segments"] == PREFIX]


def test_the_prefix_reaches_the_suffix_through_the_special_tokens_alone(encoder: CausalEncoder) -> None:
    batch = batch_of(encoder, ROWS[:2])
    free = prefix_gradient(encoder, batch, None)
    assert (free.abs().amax(1) > 0).all()
    cut = prefix_gradient(encoder, batch, batch["segments"] == SPECIAL)
    assert torch.equal(cut, torch.zeros_like(cut))


def test_without_special_tokens_the_suffix_mask_lets_nothing_through(llama: CausalEncoder) -> None:
    batch = batch_of(llama, [BottleneckRow([5, 6, 7, 9, 10, 11])])
    batch["segments"] = torch.tensor([[PREFIX] * 3 + [SUFFIX] * 3])
    batch["attention_mask"] = allowed_positions(batch["segments"], bottleneck)
    batch["labels"][0, 3] = IGNORED  # the prefix itself predicts the first token of the suffix
    gradient = prefix_gradient(llama, batch, None)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_suffix_sees_the_special_tokens_cache_and_no_more(encoder: CausalEncoder) -> None:
    rows = [BottleneckRow([5, 6, 7, 8], [20, 21], [9, 10, 11]), BottleneckRow([30], [20, 21], [40, 41])]
    cached = cache_specials(encoder, rows, bottleneck)
    got = suffix_logits(encoder, cached, torch.tensor([0, 1]), torch.tensor([[9, 10, 11], [40, 41, 0]]))
    for i, row in enumerate(rows):
        batch = batch_of(encoder, [row])
        with torch.no_grad():
            whole = encoder.model(
                input_ids=batch["input_ids"],
                attention_mask=_argument(encoder, batch),
                position_ids=batch["position_ids"],
                use_cache=False,
            ).logits
        assert (got[i, : len(row.suffix) + 1] - whole[0, len(row.prefix) + 1 :]).abs().max() < 1e-4
    other = cache_specials(encoder, [BottleneckRow([8, 7, 6, 5], [20, 21])], bottleneck)
    changed = suffix_logits(encoder, other, torch.tensor([0]), torch.tensor([[9, 10, 11]]))
    assert (changed - got[:1]).abs().max() > 1e-3  # free special tokens do carry the prefix


def _argument(encoder: CausalEncoder, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    from broadsheet.embed.modules.masks import attention_argument

    return attention_argument(batch["attention_mask"], encoder.model)


def test_special_tokens_do_not_hear_each_other(encoder: CausalEncoder) -> None:
    three = batch_of(encoder, [BottleneckRow([5, 6, 7], [20, 21, 22])])
    together = special_states(forward_states(encoder, three), three["segments"])[0]
    for j, token in enumerate((20, 21, 22)):
        one = batch_of(encoder, [BottleneckRow([5, 6, 7], [token])])
        one["position_ids"] = torch.tensor([[0, 1, 2, 3 + j]])
        alone = special_states(forward_states(encoder, one), one["segments"])[0, 0]
        assert (together[j] - alone).abs().max() < 1e-5


# Batches


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("hidden", [bottleneck, None])
def test_a_row_in_a_batch_is_the_row_alone(encoder: CausalEncoder, side: str, hidden: Hidden | None) -> None:
    encoder.tokenizer.padding_side = side
    batch = batch_of(encoder, ROWS, hidden)
    reading = forward_pass(encoder, batch)
    assert reading.nll.isfinite().all()
    for i, row in enumerate(ROWS):
        alone = batch_of(encoder, [row], hidden)
        found = forward_pass(encoder, alone)
        assert reading.nll[i].sum().item() == pytest.approx(found.nll.sum().item(), abs=1e-4)
        real = batch["segments"][i] != PADDING
        assert (reading.states[i, real] - found.states[0]).abs().max() < 1e-4
        assert (forward_states(encoder, batch)[i, real] - found.states[0]).abs().max() < 1e-4


def test_an_ordinary_row_is_read_as_the_model_reads_it(encoder: CausalEncoder) -> None:
    ids = torch.tensor([ROWS[2].prefix])
    with torch.no_grad():
        plain = encoder.model(input_ids=ids, use_cache=False).logits
    expected = cross_entropy(plain[0, :-1], ids[0, 1:], reduction="none")
    assert (forward_pass(encoder, batch_of(encoder, [ROWS[2]])).nll[0] - expected).abs().max() < 1e-5


def test_a_bare_model_takes_the_batch_and_finds_the_same_loss(llama: CausalEncoder) -> None:
    for side in ("right", "left"):
        llama.tokenizer.padding_side = side
        reading = forward_pass(llama, batch_of(llama, ROWS))
        bare = BottleneckCollator(0, bottleneck, side, segments=False)(ROWS)  # type: ignore[arg-type]
        expected = (reading.nll.sum() / reading.scored.sum()).item()
        assert llama.model(**bare).loss.item() == pytest.approx(expected, abs=1e-5)


def test_what_is_scored() -> None:
    row = BottleneckRow([1, 2], [9], [3, 4])
    assert row.targets() == [IGNORED, 2, IGNORED, 3, 4]
    assert BottleneckRow([1, 2], [9], [3, 4], ("prefix", "special", "suffix")).targets() == [IGNORED, 2, 9, 3, 4]
    assert BottleneckRow([1, 2], [9], [3, 4], ("suffix",)).targets() == [IGNORED, IGNORED, IGNORED, 3, 4]
    assert BottleneckRow([], [9], [3]).targets() == [IGNORED, 3]


def test_positions_count_real_tokens() -> None:
    segments = torch.tensor([[PADDING, PADDING, PREFIX, SPECIAL, SUFFIX], [PREFIX, SPECIAL, SUFFIX, PADDING, PADDING]])
    assert position_ids(segments)[0].tolist() == [0, 0, 0, 1, 2]
    assert position_ids(segments)[1, :3].tolist() == [0, 1, 2]


# Corruption


@given(st.text(), st.integers())
def test_no_corruption_leaves_the_text_and_full_corruption_no_word(text: str, seed: int) -> None:
    assert corrupt(text, 0.0, Random(seed)) is text
    gone = corrupt(text, 1.0, Random(seed))
    assert gone.split() == ["_"] * len(text.split())


def test_white_space_survives_and_the_share_is_as_asked() -> None:
    text = "  two  spaces\n\tand a tab  "
    assert corrupt(text, 1.0, Random(0)) == "  _  _\n\t_ _ _  "
    n = 20_000
    replaced = corrupt("word " * n, 0.6, Random(0)).split().count("_")
    assert abs(replaced / n - 0.6) < 3 * (0.6 * 0.4 / n) ** 0.5
    drawn = {corrupt("a b c d e f g h", 0.5, Random(seed)) for seed in range(8)}
    assert len(drawn) > 4
    assert corrupt("a b c d", 0.5, Random(3)) == corrupt("a b c d", 0.5, Random(3))


# Refusals


def test_what_cannot_be_is_refused(llama: CausalEncoder, tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"corruption of 1\.5"):
        corrupt("text", 1.5, Random(0))
    batch = batch_of(llama, ROWS)
    with pytest.raises(InputError, match="bidirectional"):
        forward_pass(CausalEncoder(tiny_model(), tiny_tokenizer(), attention="bidirectional"), batch)
    with pytest.raises(InputError, match="layer 1"):
        forward_pass(CausalEncoder(tiny_model(), tiny_tokenizer(), layer=1), batch)
    with pytest.raises(ValueError, match="one number"):
        cache_specials(llama, [BottleneckRow([1], [2]), BottleneckRow([1], [2, 3])])
    with pytest.raises(ValueError, match="one number"):
        special_states(torch.zeros(2, 2, 4), torch.tensor([[PREFIX, SPECIAL], [SPECIAL, SPECIAL]]))

"""What must be true of TransNormer (arXiv:2307.14995): its three forms, its parts, and the model built from them."""

from __future__ import annotations

import argparse
import copy
import decimal
import inspect
import json
import math
import pickle
import re
import shutil
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, Trainer, TrainingArguments

from broadsheet.attend.kernels.linear import DecayedState, fla_form
from broadsheet.attend.transnormer import (
    TransNormerForCausalLM,
    decayed_attention,
    head_slopes,
    log_decay,
    lrpe,
    lrpe_theta,
    recurrent_step,
    srmsnorm,
)
from broadsheet.attend.transnormer_config import TransNormerCache, TransNormerConfig
from broadsheet.attend.trials.bytetexts import read
from broadsheet.console import InputError

VOCABULARY = 61
DECAYS = torch.tensor([-0.5, -0.01, 0.0], dtype=torch.float64)


def make(seed: int = 0, **changes: object) -> TransNormerForCausalLM:
    """A tiny random model whose next-token distributions are far from uniform."""
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "attention_size": 12,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "lrpe_layers": (0, 2),
        "block_size": 4,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TransNormerForCausalLM(TransNormerConfig(**shape | changes)).eval()


def exact(**changes: object) -> TransNormerForCausalLM:
    """The same in float64."""
    return make(**changes).double()


def tokens(length: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(2, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def qkv(
    n: int, d: int = 4, e: int = 5, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, 3, n, d), (batch, 3, n, d), (batch, 3, n, e)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def masked_form(q: Tensor, k: Tensor, v: Tensor, rates: Tensor) -> Tensor:
    """The definition, all pairs at once."""
    steps = torch.arange(q.shape[2], dtype=q.dtype)
    apart = steps[:, None] - steps
    weights = torch.where(apart >= 0, (rates[:, None, None] * apart.clamp(min=0)).exp(), 0)
    return ((q @ k.mT) * weights) @ v


def token_by_token(q: Tensor, k: Tensor, v: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
    outputs = []
    for t in range(q.shape[2]):
        out, state = recurrent_step(*(x[:, :, t : t + 1] for x in (q, k, v)), rates, state)
        outputs.append(out)
    return torch.cat(outputs, 2), state


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


# The attention: what section 6 of any description of it asks.


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("block_size", [1, 3, 8, 17, 100])
def test_masked_block_and_recurrent_forms_agree(block_size, dtype, tolerance):
    q, k, v = qkv(17, dtype=dtype)
    rates = DECAYS.to(dtype)
    once, state = token_by_token(q, k, v, rates)
    out, last = decayed_attention(q, k, v, rates, block_size=block_size)
    assert out.dtype == state.dtype == dtype
    assert apart(out, masked_form(q, k, v, rates)) < tolerance
    assert apart(out, once) < tolerance
    assert apart(last, state) < tolerance


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_any_cut_into_chunks_gives_the_same(lengths, block_size):
    q, k, v = qkv(sum(lengths))
    whole, last = decayed_attention(q, k, v, DECAYS, block_size=5)
    state, outputs = None, []
    for queries, keys, values in zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True):
        out, state = decayed_attention(queries, keys, values, DECAYS, state=state, block_size=block_size)
        outputs.append(out)
    assert apart(torch.cat(outputs, 2), whole) < 1e-10
    assert apart(state, last) < 1e-10


def test_without_decay_it_is_a_cumulative_sum():
    q, k, v = qkv(11)
    out, _ = decayed_attention(q, k, v, torch.zeros(3, dtype=torch.float64), block_size=4)
    sums = (k[..., None] * v[..., None, :]).cumsum(2)
    assert apart(out, (q[..., None, :] @ sums).squeeze(-2)) < 1e-10


def test_with_all_decayed_only_the_token_itself_is_left():
    q, k, v = qkv(11)
    out, _ = decayed_attention(q, k, v, torch.full((3,), -1e4, dtype=torch.float64), block_size=4)
    assert apart(out, (q * k).sum(-1, keepdim=True) * v) < 1e-10


def test_nothing_overflows_after_a_million_tokens():
    rates = torch.tensor([-0.5, -1e-5, 0.0])
    assert (-rates[0] * 1e6).exp().isinf()  # where the factored form has its λ^−t
    n = 1_000_000
    one = torch.ones(1, 3, n, 1)
    out, state = decayed_attention(one, one, one, rates, block_size=128)
    for _ in range(100):
        _, state = recurrent_step(one[:, :, :1], one[:, :, :1], one[:, :, :1], rates, state)
    exact = [-math.expm1(float(rate) * (n + 100)) / -math.expm1(float(rate)) if rate else n + 100 for rate in rates]
    assert out.isfinite().all()
    assert state.flatten().tolist() == pytest.approx(exact, rel=1e-4)


def test_gradients_are_exact():
    q, k, v = (x.requires_grad_() for x in qkv(5, d=2, e=2, batch=1))
    state = torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    real = torch.tensor([[1, 0, 1, 1, 0]])
    for mask in (None, real):

        def form(q: Tensor, k: Tensor, v: Tensor, state: Tensor, mask: Tensor | None = mask) -> tuple[Tensor, Tensor]:
            return decayed_attention(q, k, v, DECAYS, state=state, real=mask, block_size=3)

        assert torch.autograd.gradcheck(form, (q, k, v, state))


def test_heads_can_be_cut_into_slices_of_columns():
    q, k, v = qkv(13, d=6)
    whole, _ = decayed_attention(q, k, v, DECAYS, block_size=4)
    parts = [decayed_attention(q[..., i : i + 2], k[..., i : i + 2], v, DECAYS, block_size=4)[0] for i in (0, 2, 4)]
    assert apart(sum(parts), whole) < 1e-10


def test_work_grows_linearly():
    def flops(n: int) -> int:
        with FlopCounterMode(display=False) as counter:
            decayed_attention(*qkv(n), DECAYS, block_size=16)
        return counter.get_total_flops()

    assert flops(64) > 0
    assert flops(256) == 4 * flops(64)
    assert flops(1024) == 16 * flops(64)


class Written(TorchDispatchMode):
    """Counts the elements that all operations write."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.total += sum(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor))
        return out


def test_training_writes_no_more_than_a_constant_a_token():
    def written(n: int) -> int:
        q, k, v = (x.requires_grad_() for x in qkv(n))
        with Written() as mode:
            decayed_attention(q, k, v, DECAYS, block_size=16)[0].sum().backward()
        return mode.total

    assert written(1024) < 4.2 * written(256)


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_padding_is_as_if_it_were_not_there(kept, block_size):
    q, k, v = qkv(len(kept), batch=1)
    start = torch.ones(1, 3, 4, 5, dtype=torch.float64)
    real = torch.tensor([kept])
    out, state = decayed_attention(q, k, v, DECAYS, state=start, real=real, block_size=block_size)
    if not any(kept):
        assert torch.equal(state, start)
        return
    alone, last = decayed_attention(*(x[:, :, real[0]] for x in (q, k, v)), DECAYS, state=start)
    assert apart(out[:, :, real[0]], alone) < 1e-10
    assert apart(state, last) < 1e-10


def test_sums_and_states_stay_in_float32():
    q, k, v = qkv(9, dtype=torch.bfloat16)
    wide = decayed_attention(q.float(), k.float(), v.float(), DECAYS, block_size=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = decayed_attention(q, k, v, DECAYS, block_size=4)
    for got, expected in zip(narrow, wide, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)


# Its parts.


def test_decays_of_the_code_grow_with_layer_and_head_and_end_at_none():
    decays = torch.tensor([log_decay(8, layer, 5) for layer in range(5)], dtype=torch.float64)
    assert (decays.diff(dim=0) > 0).all()
    assert (decays.diff(dim=1) > 0).all()
    assert (decays[-1] >= -1e-5).all()
    assert decays[0].exp().tolist() == pytest.approx([math.exp(-(2 ** -(h + 1)) * (1 + 1e-5)) for h in range(8)])
    assert log_decay(2, 0, 1)[0] == pytest.approx(-(2**-4) * (1 + 1e-5))  # one layer: nothing to divide by


def test_decays_of_the_paper_are_another_function():
    decays = torch.tensor([log_decay(8, layer, 5, "paper") for layer in range(5)], dtype=torch.float64)
    assert (decays[:, 0] == 0).all()
    assert (decays[-1] == 0).all()
    assert (decays[:-1].diff(dim=1) < 0).all()
    assert decays[1, 3] == pytest.approx(-(8 * 3 / 8) * (1 - 2 / 5))
    assert log_decay(4, 1, 3, "none") == [0.0] * 4


def test_slopes_of_other_head_counts_are_filled_from_twice_as_many():
    assert head_slopes(1) == [2**-8]
    assert head_slopes(6) == head_slopes(4) + head_slopes(8)[0:4:2]


def test_lrpe_depends_on_distances_only_and_trains():
    q, k, _ = qkv(9)
    theta = lrpe_theta(3, 4).requires_grad_()
    positions = torch.arange(9)
    scores = [lrpe(q, theta, positions + shift) @ lrpe(k, theta, positions + shift).mT for shift in (0, 1000, 10**6)]
    assert apart(scores[0], scores[1]) < 1e-10
    assert apart(scores[0], scores[2]) < 1e-8
    by_hand = sum(q[0, 1, 7, i] * k[0, 1, 2, i] * torch.cos(theta[1, i] * 5) for i in range(4))
    assert scores[0][0, 1, 7, 2].item() == pytest.approx(by_hand.item())
    scores[0].sum().backward()
    assert (theta.grad != 0).all()


def test_lrpe_without_angles_is_the_plain_product():
    q, k, _ = qkv(6)
    none = torch.zeros(3, 4, dtype=torch.float64)
    assert apart(lrpe(q, none, torch.arange(6)) @ lrpe(k, none, torch.arange(6)).mT, q @ k.mT) < 1e-12


def test_srmsnorm_is_of_unit_size_and_forgets_scale():
    x = 3 * qkv(5)[0]
    assert srmsnorm(x).square().mean(-1).flatten().tolist() == pytest.approx([1.0] * 30, abs=1e-5)
    assert apart(srmsnorm(x), srmsnorm(100 * x)) < 1e-5
    assert srmsnorm(x.half()).dtype == torch.float16


def test_fla_gets_its_layout_decays_and_state(monkeypatch):
    """The kernels need a GPU; a stand-in that follows their description checks what they are called with."""
    seen = []

    def stand_in(q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False):
        seen.append((g is not None, g_gamma is not None))
        assert scale == 1.0
        assert output_final_state
        rates = g_gamma.expand(q.shape[:3]) if g is None else g
        state = 0 if initial_state is None else initial_state
        outputs = []
        for t in range(q.shape[1]):
            state = state * rates[:, t, :, None, None].exp() + k[:, t, :, :, None] * v[:, t, :, None]
            outputs.append((q[:, t, :, None] @ state).squeeze(-2))
        return torch.stack(outputs, 1), state

    module = ModuleType("fla.ops.simple_gla")
    module.chunk_simple_gla = module.fused_recurrent_simple_gla = stand_in
    for name, value in {
        "fla": ModuleType("fla"),
        "fla.ops": ModuleType("fla.ops"),
        "fla.ops.simple_gla": module,
    }.items():
        monkeypatch.setitem(sys.modules, name, value)
    q, k, v = qkv(7, dtype=torch.float32)
    start = torch.ones(2, 3, 4, 5)
    for real in (None, torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0]]).bool()):
        got = fla_form(q, k, v, DECAYS, state=start, real=real)
        expected = decayed_attention(q, k, v, DECAYS, state=start, real=real)
        rows = torch.ones(2, 7, dtype=torch.bool) if real is None else real
        assert apart(got[0].transpose(1, 2)[rows], expected[0].transpose(1, 2)[rows]) < 1e-5
        assert apart(got[1], expected[1]) < 1e-5
    assert seen == [(False, True), (True, False)]


def test_fla_is_never_replaced_in_silence():
    with pytest.raises(InputError, match="needs a CUDA device"):
        make(kernel="fla")(tokens(3))
    with pytest.raises(InputError, match="expected one of auto"):
        decayed_attention(*qkv(3), DECAYS, kernel="triton")


# The model.


def by_the_book(model: TransNormerForCausalLM, ids: Tensor) -> Tensor:
    """The logits of one text, equation by equation, all pairs of tokens at once."""

    def norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    weights, config = dict(model.named_parameters()), model.config
    x = weights["model.embed_tokens.weight"][ids] * config.hidden_size**0.5
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        q, k, v, u = (norm(x) @ weights[f"{at}attention.in_proj.weight"].T).chunk(4, -1)
        q, k = q * q.sigmoid(), k * k.sigmoid()
        q, k, v = (part.reshape(len(ids), 3, 4).transpose(0, 1)[None] for part in (q, k, v))
        if layer in config.lrpe_layers:
            angle = torch.arange(len(ids))[:, None] * weights[f"{at}attention.theta"][:, None]
            q, k = (torch.cat([part * angle.cos(), part * angle.sin()], -1) for part in (q, k))
        mixed = masked_form(q, k, v, torch.tensor(log_decay(3, layer, config.num_hidden_layers)))
        x = x + (norm(mixed[0].transpose(0, 1).flatten(1)) * u) @ weights[f"{at}attention.out_proj.weight"].T
        v, u = (norm(x) @ weights[f"{at}mlp.{name}_proj.weight"].T for name in "vu")
        x = x + (v * u) @ weights[f"{at}mlp.o_proj.weight"].T
    return norm(x) @ weights["lm_head.weight"].T


@torch.no_grad()
def test_it_is_what_the_equations_say():
    model, ids = exact(), tokens(19)
    assert apart(model(ids).logits[0], by_the_book(model, ids[0])) < 1e-9


@torch.no_grad()
def test_chunks_and_single_tokens_equal_one_pass():
    model, ids = exact(), tokens(23, batch=3)
    whole = model(ids).logits
    for lengths in ([1] * 23, [10, 13], [9, 1, 13], [22, 1]):
        cache, parts = None, []
        for piece in ids.split(lengths, 1):
            outputs = model(piece, cache=cache, use_cache=True)
            cache = outputs.cache
            parts.append(outputs.logits)
        assert apart(torch.cat(parts, 1), whole) < 1e-9
        assert cache.get_seq_length() == 23
    assert apart(exact(block_size=64)(ids).logits, whole) < 1e-9


@torch.no_grad()
def test_the_state_does_not_grow():
    model = make()
    caches = [model(tokens(length, batch=2), use_cache=True).cache for length in (1, 9, 90)]
    for cache in caches:
        assert [tuple(layer.state.shape) for layer in cache.layers] == [(2, 3, 8, 4), (2, 3, 4, 4), (2, 3, 8, 4)]
        assert {layer.state.dtype for layer in cache.layers} == {torch.float32}
        assert cache.bytes() == (2 * 3 * (8 + 4 + 8) * 4 * 4, 0)


def padded(rows: list[Tensor], where: str) -> tuple[Tensor, Tensor]:
    """Rows of one batch and their mask, with padding on the left, on the right, or in the middle of each."""
    longest = max(row.numel() for row in rows)
    ids, mask = [], []
    for row in rows:
        gap = longest - row.numel()
        cut = {"left": 0, "right": row.numel(), "middle": row.numel() // 2}[where]
        ids.append(torch.cat([row[:cut], torch.full((gap,), 7), row[cut:]]))
        mask.append(torch.cat([torch.ones(cut), torch.zeros(gap), torch.ones(row.numel() - cut)]).long())
    return torch.stack(ids), torch.stack(mask)


@pytest.mark.parametrize("where", ["left", "right", "middle"])
@torch.no_grad()
def test_a_padded_row_equals_the_row_alone_and_can_be_read_on(where):
    model = exact()
    rows = [tokens(length, seed=length)[0] for length in (13, 1, 6)]
    ids, mask = padded(rows, where)
    more = tokens(5, batch=3, seed=9)
    outputs = model(ids, attention_mask=mask, use_cache=True)
    longer = torch.cat([mask, torch.ones(3, 5, dtype=torch.long)], 1)
    after = model(more, attention_mask=longer, cache=outputs.cache).logits
    for i, row in enumerate(rows):
        alone = model(torch.cat([row, more[i]])[None]).logits[0]
        assert apart(outputs.logits[i][mask[i].bool()], alone[: len(row)]) < 1e-9
        assert apart(after[i], alone[len(row) :]) < 1e-9


@torch.no_grad()
def test_a_row_of_padding_alone_leaves_no_trace():
    model = make()
    ids, mask = tokens(4, batch=2), torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    outputs = model(ids, attention_mask=mask, use_cache=True)
    assert outputs.logits.isfinite().all()
    assert outputs.cache.layers[0].position.tolist() == [4, 0]
    assert not outputs.cache.layers[1].state[1].any()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("where", ["left", "right"])
@torch.no_grad()
def test_a_token_never_moves_what_came_before(batch, where):
    model = make()
    rows = [tokens(length, seed=length)[0] for length in (14, 9, 11)][:batch]
    ids, mask = padded(rows, where)
    changed = ids.clone()
    changed[:, 8] = (changed[:, 8] - 1) % (VOCABULARY - 2) + 2
    for lengths in ([14], [5, 4, 5]):
        logits = []
        for text in (ids, changed):
            cache, parts, end = TransNormerCache(model.config), [], 0
            for piece in text.split(lengths, 1):
                end += piece.shape[1]
                parts.append(model(piece, attention_mask=mask[:, :end], cache=cache).logits)
            logits.append(torch.cat(parts, 1))
        assert torch.equal(logits[0][:, :8], logits[1][:, :8])
        assert apart(logits[0][0, 8:], logits[1][0, 8:]) > 1e-3


@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"do_sample": True, "temperature": 2.0}, {"prefill_chunk_size": 4}, {}], ids=str
)
def test_generation_with_the_state_equals_generation_without(how):
    model = exact()
    rows = [tokens(length, seed=length)[0] for length in (9, 3, 6)]
    ids, mask = padded(rows, "left")
    common = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    torch.manual_seed(0)
    fast = model.generate(ids, **common | how)
    torch.manual_seed(0)
    slow = model.generate(ids, use_cache=False, **common | {k: v for k, v in how.items() if "chunk" not in k})
    assert torch.equal(fast, slow)
    if not how.get("do_sample"):
        for i, row in enumerate(rows):
            alone = model.generate(row[None], **common | how | {"attention_mask": torch.ones(1, len(row))})
            assert torch.equal(fast[i, 9:], alone[0, len(row) :])


def test_generation_goes_on_from_a_finished_cache():
    model, ids = make(), tokens(7)
    whole = model.generate(ids, max_new_tokens=10, do_sample=False)
    first = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    rest = model.generate(first.sequences, cache=first.cache, max_new_tokens=6, do_sample=False)
    assert torch.equal(rest, whole)


@torch.no_grad()
def test_rows_of_a_state_can_be_reordered_repeated_and_reset():
    model, ids = exact(), tokens(6, batch=3)
    nxt = tokens(1, batch=4, seed=5)
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [1] * 6])
    cache = model(ids, attention_mask=mask, use_cache=True).cache
    order = torch.tensor([2, 1, 1, 0])
    expected = model(nxt, cache=model(ids[order], attention_mask=mask[order], use_cache=True).cache)
    cache.reorder_cache(order)
    assert apart(model(nxt, cache=cache).logits, expected.logits) < 1e-9
    cache.batch_repeat_interleave(2)
    assert cache.layers[0].position.tolist() == [7, 7, 5, 5, 5, 5, 7, 7]
    cache.reset()
    assert apart(model(ids, cache=cache).logits, model(ids).logits) < 1e-9
    assert cache.get_seq_length() == 6


def test_it_is_saved_and_loaded_as_any_model(tmp_path):
    model, ids = make(decay="paper"), tokens(11)
    model.model.layers[0].attention.theta.data.mul_(1.1)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, TransNormerForCausalLM)
    assert AutoConfig.from_pretrained(tmp_path).decay == "paper"
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert narrow.model.layers[0].attention.theta.dtype == torch.float32
    assert narrow.model.layers[0].attention.in_proj.weight.dtype == torch.bfloat16
    assert apart(narrow(ids).logits.float(), model(ids).logits) < 0.5


def test_weights_start_as_described():
    model = make(num_attention_heads=2, attention_size=8, lrpe_layers=[0], tie_word_embeddings=False)
    attention = [layer.attention for layer in model.model.layers]
    assert torch.equal(attention[0].theta, lrpe_theta(2, 4).float())
    assert not hasattr(attention[1], "theta")
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not any("norm" in name for name, _ in model.named_parameters())
    assert model.model.log_decay == [log_decay(2, layer, 3) for layer in range(3)]
    tied = make(tie_word_embeddings=True)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


@torch.no_grad()
def test_embeddings_are_scaled_by_the_root_of_the_width():
    model, ids = exact(), tokens(5)
    embedded = model.model.embed_tokens(ids)
    plain = exact(scale_embedding=False)
    assert apart(model(ids).logits, plain(inputs_embeds=embedded * math.sqrt(24)).logits) < 1e-9


@torch.no_grad()
def test_logits_and_hidden_states_on_request():
    model, ids = exact(), tokens(8, batch=2)
    outputs = model(ids, output_hidden_states=True)
    assert len(outputs.hidden_states) == 4
    assert apart(model(ids, logits_to_keep=2).logits, outputs.logits[:, -2:]) < 1e-9


def test_the_loss_is_that_of_the_next_token():
    model, ids = make(), tokens(8, batch=2)
    labels = ids.clone()
    labels[:, :3] = -100
    outputs = model(ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(
        outputs.logits[:, 2:-1].reshape(-1, VOCABULARY), ids[:, 3:].reshape(-1)
    )
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    shared = model(ids, labels=labels, num_items_in_batch=100)
    assert shared.loss.item() == pytest.approx(expected.item() / 10, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient():
    plain, saving = exact().train(), exact().train()
    saving.gradient_checkpointing_enable()
    ids = tokens(9, batch=2)
    for model in (plain, saving):
        model(ids, labels=ids).loss.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert a.grad is not None, name
        assert apart(a.grad, b.grad) < 1e-9, name


def test_trainer_trains_it(tmp_path):
    model = make(initializer_range=0.05)
    data = [{"input_ids": row, "labels": row} for row in torch.arange(2, 14).repeat(8, 2)]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=25,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    before = model(data[0]["input_ids"][None], labels=data[0]["labels"][None]).loss.item()
    Trainer(model, arguments, train_dataset=data).train()
    model.eval()
    after = model(data[0]["input_ids"][None], labels=data[0]["labels"][None]).loss.item()
    assert after < 0.3 * before
    out = model.generate(torch.tensor([[2, 3, 4]]), max_new_tokens=6, do_sample=False)
    assert out[0].tolist() == list(range(2, 11))


# What cannot be used.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_size": 13}, "13 for 3 heads"),
        ({"lrpe_layers": [3]}, "expected numbers from 0 to 2"),
        ({"decay": "learned"}, "expected one of code, paper, none"),
        ({"kernel": "triton"}, "expected one of auto, torch, fla"),
    ],
)
def test_a_shape_that_cannot_be_is_said(changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_what_does_not_fit_is_said():
    model, ids = make(), tokens(4, batch=2)
    with pytest.raises(InputError, match="takes no other mask"):
        model(ids, attention_mask=torch.ones(2, 1, 4, 4))
    with pytest.raises(InputError, match="for 2 × 4 tokens"):
        model(ids, attention_mask=torch.ones(2, 3))
    with pytest.raises(InputError, match=r"expected TransNormerCache\(model.config\)"):
        model(ids, cache=DynamicCache())
    with pytest.raises(InputError, match="packed"):
        model(ids, position_ids=torch.tensor([[0, 1, 0, 1]]))
    with pytest.raises(InputError, match="no tokens"):
        model(ids[:, :0])
    with pytest.raises(InputError, match="both or neither"):
        model()
    with pytest.raises(InputError, match="block_size 0"):
        make(block_size=0)(ids)
    with pytest.raises(InputError, match="layer 3 of 3"):
        log_decay(4, 3, 3)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    model(ids, attention_mask=mask, position_ids=torch.tensor([[1, 1, 0, 1], [0, 1, 2, 3]]))


@torch.no_grad()
def test_nothing_can_be_taken_back():
    model, ids = make(), tokens(6)
    cache = model(ids, use_cache=True).cache
    assert not cache.is_croppable
    before = copy.deepcopy(cache)
    with pytest.raises(InputError, match="take back 2 of the tokens"):
        cache.crop(-2)
    cache.crop(0)
    assert torch.equal(cache.layers[0].state, before.layers[0].state)
    with pytest.raises(ValueError, match="stateful"):
        model.generate(ids, prompt_lookup_num_tokens=2, max_new_tokens=3)
    with pytest.raises(InputError, match="cache_implementation 'static'"):
        model.generate(ids, cache_implementation="static", max_new_tokens=3)
    with pytest.raises(InputError, match="keeps neither"):
        DecayedState().update(ids, ids)


@pytest.mark.real
def test_it_learns_real_text():
    text = "\n\n".join(
        inspect.getdoc(module) or "" for module in (argparse, json, inspect, decimal, pickle, shutil, re)
    )
    text += "\n\n".join(inspect.getdoc(f) or "" for m in (inspect, shutil, re, json) for f in vars(m).values())
    stream = torch.tensor(list(text.encode()))
    train, held_out = stream[: -(len(stream) // 8)], stream[-(len(stream) // 8) :]
    model = make(vocab_size=257, hidden_size=64, attention_size=64, num_attention_heads=4, initializer_range=0.02,
                 intermediate_size=128, block_size=64)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(50):
        starts = torch.randint(len(train) - 128, (8,), generator=generator)
        ids = train[starts[:, None] + torch.arange(128)]
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    shares = torch.bincount(train, minlength=257) / len(train)
    unigram = -(torch.bincount(held_out, minlength=257) / len(held_out) * shares.clamp(min=1e-6).log()).sum()
    ids = held_out[: len(held_out) // 512 * 512].reshape(-1, 512)
    assert float(read(model.eval(), ids[:, :-1], 2).mean()) < 0.95 * float(unigram)

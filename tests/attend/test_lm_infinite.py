"""LM-Infinite: the card's ten properties, its backends, its options."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from attending import layer
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from broadsheet.attend.kernels import flex
from broadsheet.attend.lm_infinite import LMInfinite
from broadsheet.attend.memory import Layer, cache_bytes
from broadsheet.console import InputError

HEADS, KV_HEADS, WIDTH, LENGTH = 4, 2, 32, 30
LAYER = layer(HEADS, KV_HEADS, WIDTH, index=5)
CUTS = [[LENGTH], [7, 1, 1, 12, 2, 6, 1], [1] * LENGTH]


def random_text(length: int = LENGTH, rows: int = 2, seed: int = 0, values: bool = False) -> list[Tensor]:
    """Queries and keys before rotary encoding; values, or unit vector j as value j: outputs are then weights."""
    source = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, HEADS, length, WIDTH, generator=source).double() * 3
    key, value = torch.randn(2, rows, KV_HEADS, length, WIDTH, generator=source).double()
    return [query, key, value if values else torch.eye(length, WIDTH).double().expand(rows, KV_HEADS, -1, -1)]


def attend(method: LMInfinite, text: list[Tensor], cuts: list[int] | None = None, layer: Layer = LAYER) -> Tensor:
    state, outputs, start = method.state(layer), [], 0
    for cut in cuts or [text[0].shape[2]]:
        outputs.append(state.attend(*(part[:, :, start : start + cut] for part in text)))
        start += cut
    return torch.cat(outputs, 2)


def formula(method: LMInfinite, text: list[Tensor]) -> Tensor:
    """The method written down for a whole text at once, with the matrix of weights."""
    query, key, value = (part.repeat_interleave(HEADS // part.shape[1], 1) for part in text)
    length, rotate, g, window = query.shape[2], LAYER.rotary.rotate, method.n_global, method.n_local
    ceiling = window if method.max_distance is None else method.max_distance
    tokens = torch.arange(length)
    distance = tokens[:, None] - tokens

    def logits_at(places: Tensor | int, keys_at: Tensor | int) -> Tensor:
        return LAYER.scaling * rotate(query, places) @ rotate(key, keys_at).mT

    logits = torch.where(distance < ceiling, logits_at(tokens, tokens), logits_at(ceiling, 0))
    visible = (distance >= 0) & ((distance < window) | (tokens < g))
    if method.top_k:
        between = (distance >= window) & (tokens >= g)
        if method.middle_rows == "last":
            between[:-1] = False
        place = window // 2 if method.middle_distance is None else method.middle_distance
        middle = logits_at(place, 0).masked_fill(~between, -torch.inf)
        best = middle.topk(min(method.top_k, length), dim=-1).indices
        chosen = torch.zeros_like(middle, dtype=torch.bool).scatter(-1, best, True) & between
        logits, visible = torch.where(chosen, middle, logits), visible | chosen
    return logits.masked_fill(~visible, -torch.inf).softmax(-1) @ value


def plain(text: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """Stock attention to rotated keys; causal without a mask."""
    query, key, value = text
    span = range(query.shape[2])
    return scaled_dot_product_attention(
        LAYER.rotary.rotate(query, span), LAYER.rotary.rotate(key, span), value, mask, is_causal=mask is None,
        enable_gqa=True,
    )  # fmt: skip


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("n_global", [0, 3, 50])
def test_a_text_no_longer_than_the_window_is_plainly_attended_to(n_global: int, cuts: list[int]) -> None:
    text = random_text()
    for n_local in (LENGTH, 100):
        method = LMInfinite(n_global=n_global, n_local=n_local)
        torch.testing.assert_close(attend(method, text, cuts), plain(text), atol=1e-10, rtol=0)


@pytest.mark.parametrize("cuts", CUTS)
def test_all_tokens_first_and_no_ceiling_is_plain_attention(cuts: list[int]) -> None:
    text = random_text()
    method = LMInfinite(n_global=LENGTH, n_local=5, max_distance=LENGTH)
    torch.testing.assert_close(attend(method, text, cuts), plain(text), atol=1e-10, rtol=0)
    assert (attend(replace(method, max_distance=5), text, cuts) - plain(text)).abs().max() > 0.01


@pytest.mark.parametrize("cuts", CUTS)
def test_without_first_tokens_it_is_a_sliding_window(cuts: list[int]) -> None:
    text = random_text()
    window = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().triu(-6)
    output = attend(LMInfinite(n_global=0, n_local=7), text, cuts)
    torch.testing.assert_close(output, plain(text, window), atol=1e-10, rtol=0)


def test_how_long_the_forgotten_middle_is_makes_no_difference() -> None:
    """Positions count relative to one another, those of first tokens and of the moving origin too."""
    method = LMInfinite(n_global=3, n_local=7)
    first, last = random_text(3, values=True), random_text(7, seed=1, values=True)
    outputs = []
    for between in (0, 11, 1500, 5000):
        middle = random_text(between, seed=between, values=True)
        text = [torch.cat(parts, 2) for parts in zip(first, middle, last, strict=True)]
        outputs.append(attend(method, text, [between + 3, *[1] * 7])[:, :, -1])
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("cuts", CUTS)
def test_far_logits_depend_on_the_query_alone(cuts: list[int]) -> None:
    text = random_text()
    for part in text[:2]:
        part[:, :, 25] = part[:, :, 16]
    weights = attend(LMInfinite(n_global=3, n_local=7), text, cuts)
    # The logit of the token itself is the same in both rows, so ratios to it are differences of logits.
    ratios = [(weights[:, :, i, :3] / weights[:, :, i, i, None]).log() for i in (16, 25)]
    torch.testing.assert_close(*ratios, atol=1e-4, rtol=0)
    near = [(weights[:, :, i, i - 1] / weights[:, :, i, i]).log() for i in (16, 25)]
    assert (near[0] - near[1]).abs().max() > 0.1


@pytest.mark.parametrize("method", [LMInfinite(3, 7), LMInfinite(3, 7, 15), LMInfinite(0, 7), LMInfinite(12, 4, 4)])
def test_cuts_make_no_difference_and_evicting_loses_nothing(method: LMInfinite) -> None:
    text = random_text(values=True)
    for cuts in CUTS:
        torch.testing.assert_close(attend(method, text, cuts), formula(method, text), atol=1e-10, rtol=0)


def test_generation_is_the_same_in_chunks_and_by_reading_all_anew(tiny_model: Callable) -> None:
    model = tiny_model(pad_token_id=0)
    ids = torch.randint(3, 270, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), LMInfinite(n_global=3, n_local=8)(model):
        settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
        generated = model.generate(ids, **settings)
        assert torch.equal(model.generate(ids, prefill_chunk_size=9, **settings), generated)
        anew = ids
        for _ in range(12):
            anew = torch.cat((anew, model(anew, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(anew, generated)


def test_beams_are_those_of_a_cache_that_forgets_nothing(tiny_model: Callable) -> None:
    model = tiny_model(pad_token_id=0)
    ids = torch.randint(3, 270, (2, 20), generator=torch.Generator().manual_seed(2))
    settings = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "num_beams": 3}
    with torch.no_grad(), LMInfinite(n_global=3, n_local=8)(model):
        generated = model.generate(ids, **settings)
        assert torch.equal(model.generate(ids, use_cache=False, **settings), generated)


def test_the_cache_stops_growing(tiny_model: Callable) -> None:
    model = tiny_model(pad_token_id=0)
    ids = torch.randint(3, 270, (1, 200), generator=torch.Generator().manual_seed(3))
    held = []
    with torch.no_grad(), LMInfinite(n_global=3, n_local=16)(model) as model:
        cache = None
        for start in range(0, 200, 20):
            cache = model(ids[:, start : start + 20], cache=cache).cache
            held.append(cache_bytes(cache).on_device)
    assert len(set(held)) == 1
    assert cache.get_seq_length() == 200


@pytest.mark.parametrize("cuts", CUTS)
def test_weights_add_up_and_the_middle_has_none(cuts: list[int]) -> None:
    weights = attend(LMInfinite(n_global=3, n_local=7), random_text(), cuts)[..., :LENGTH]
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, LENGTH).double())
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)
    hidden = (j > i) | ((j >= 3) & (j <= i - 7))
    assert (weights[:, :, hidden] == 0).all()
    assert (weights[:, :, ~hidden] > 0).all()


@pytest.mark.parametrize("rows", ["last", "all"])
@pytest.mark.parametrize("cuts", CUTS)
def test_more_middle_tokens_than_there_are_makes_all_visible_at_their_distance(cuts: list[int], rows: Any) -> None:
    method = LMInfinite(n_global=3, n_local=7, top_k=LENGTH, top_k_from_layer=0, middle_rows=rows)
    text = random_text()
    weights = attend(method, text, cuts)[..., :LENGTH]
    assert (weights[:, :, -1] > 0).all()
    query, key = text[0][:, :, -1:], text[1].repeat_interleave(2, 1)
    at_middle = (LAYER.rotary.rotate(query, 3) * LAYER.rotary.rotate(key, 0)).sum(-1) * LAYER.scaling
    logits = (weights[:, :, -1, 3:-7] / weights[:, :, -1, -1:]).log()
    itself = (query[:, :, 0] * key[:, :, -1]).sum(-1, keepdim=True) * LAYER.scaling
    torch.testing.assert_close(logits + itself, at_middle[:, :, 3:-7], atol=1e-3, rtol=0)


@pytest.mark.parametrize("cuts", CUTS)
def test_middle_tokens_are_chosen_by_logit_for_each_head(cuts: list[int]) -> None:
    method = LMInfinite(n_global=3, n_local=7, top_k=2, top_k_from_layer=0, middle_distance=5)
    everywhere, text = replace(method, middle_rows="all"), random_text(values=True)
    torch.testing.assert_close(attend(everywhere, text, cuts), formula(everywhere, text), atol=1e-10, rtol=0)
    lasts = torch.tensor(cuts).cumsum(0) - 1  # the last token of each piece, and no other
    expected = formula(replace(method, top_k=0), text)
    expected[:, :, lasts] = formula(everywhere, text)[:, :, lasts]
    torch.testing.assert_close(attend(method, text, cuts), expected, atol=1e-10, rtol=0)
    assert (expected - formula(replace(method, top_k=0), text)).abs().max() > 0.01


def test_middle_tokens_past_a_chunk_and_a_moved_origin() -> None:
    method = LMInfinite(n_global=3, n_local=20, top_k=3, top_k_from_layer=0, middle_rows="all")
    text = random_text(2080, rows=1, values=True)
    torch.testing.assert_close(attend(method, text, [2000, *[1] * 80]), formula(method, text), atol=1e-9, rtol=0)


def test_middle_tokens_begin_at_their_layer_and_take_room(tiny_model: Callable) -> None:
    model = tiny_model(pad_token_id=0)
    ids = torch.randint(3, 270, (1, 100), generator=torch.Generator().manual_seed(4))
    without = LMInfinite(n_global=2, n_local=8)
    middle = LMInfinite(n_global=2, n_local=8, top_k=3, top_k_from_layer=1)
    held = {}
    with torch.no_grad():
        for method in (without, middle):
            with method(model):
                held[method.top_k] = [layer.bytes().on_device for layer in model(ids).cache.layers]
        with middle(model):
            generated = model.generate(ids, max_new_tokens=8, do_sample=False, num_beams=2)
            assert torch.equal(
                model.generate(ids.repeat(2, 1), max_new_tokens=8, do_sample=False, num_beams=2)[1:], generated
            )
    assert held[3][0] == held[0][0]
    assert held[3][1] == held[0][1] + 2 * 100 * 2 * 8 * 4 + 4 * 3 * 8  # keys and values; the numbers of those chosen


def test_heads_of_a_group_read_the_same_first_tokens() -> None:
    text = random_text(values=True)
    repeated = [text[0], *(part.repeat_interleave(HEADS // KV_HEADS, 1) for part in text[1:])]
    for method in (LMInfinite(3, 7), LMInfinite(3, 7, top_k=2)):
        for cuts in CUTS:
            single = attend(method, repeated, cuts, replace(LAYER, kv_heads=HEADS))
            torch.testing.assert_close(attend(method, text, cuts), single, atol=1e-10, rtol=0)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel in small tiles and uncompiled: the mask and the scores, without the choice of blocks."""
    monkeypatch.setattr(flex, "TILE", 32)
    monkeypatch.setattr(flex, "BLOCK", 8)
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    flex.block_mask.cache_clear()
    yield
    flex.block_mask.cache_clear()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "method",
    [
        LMInfinite(3, 7),
        LMInfinite(0, 7),
        LMInfinite(3, 7, 40),
        LMInfinite(21, 18),
        LMInfinite(3, 200),
        LMInfinite(3, 7, top_k=2, top_k_from_layer=0),
    ],
)
def test_the_kernel_computes_what_chunks_do(method: LMInfinite) -> None:
    text = random_text(70, rows=1, values=True)
    for each in (LAYER, replace(LAYER, softcap=2.0)):
        for cuts in ([70], [40, 1, 29]):
            chunks = attend(replace(method, backend="chunked"), text, cuts, each)
            kernel = attend(replace(method, backend="flex"), text, cuts, each)
            torch.testing.assert_close(kernel, chunks, atol=1e-10, rtol=0)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("n_global", [0, 1, 5, 8, 20])
@pytest.mark.parametrize("n_local", [1, 6, 16, 43])
def test_the_kernels_blocks_are_those_that_trying_all_pairs_would_find(n_global: int, n_local: int) -> None:
    behind = n_local - 1
    for seen in (0, 1, behind, n_local + n_global):
        absent = max(0, behind - seen)
        mask = flex.block_mask(n_global, n_local, absent, seen, torch.device("cpu"))
        tried = create_block_mask(mask.mask_mod, None, None, *mask.seq_lengths, device="cpu", BLOCK_SIZE=8)
        assert torch.equal(mask.to_dense(), tried.to_dense())
        if n_global < flex.BLOCK:  # a block of first tokens is always taken as one that the mask has to look into
            assert torch.equal(mask.full_kv_num_blocks, tried.full_kv_num_blocks)
        dense = torch.zeros(flex.TILE, mask.seq_lengths[1], dtype=torch.bool)
        for i in range(flex.TILE):
            for column in range(mask.seq_lengths[1]):
                j = column - n_global + seen - behind if column >= n_global else n_global - 1 - column
                near = column >= n_global and j >= 0 and 0 <= seen + i - j < n_local
                dense[i, column] = near or (column < n_global and seen + i - j >= n_local)
        pairs = mask.mask_mod(0, 0, torch.arange(flex.TILE)[:, None], torch.arange(mask.seq_lengths[1]))
        assert torch.equal(pairs, dense)


@pytest.mark.real
def test_the_compiled_kernel_skips_blocks_and_is_right() -> None:
    text = random_text(1500, rows=1, values=True)
    method = LMInfinite(n_global=3, n_local=200, backend="chunked")
    with torch.no_grad():
        chunks = attend(method, text)
        single = [part.float() for part in text]  # on a processor the kernel knows no float64
        kernel = attend(replace(method, backend="flex"), single, [1100, 400])
    torch.testing.assert_close(kernel.double(), chunks, atol=2e-5, rtol=0)
    mask = flex.block_mask(3, 200, 0, 203, torch.device("cpu"))
    assert mask.sparsity() > 50


def test_a_kernel_that_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nand more")

    monkeypatch.setattr(flex, "_compiled", lambda: no_compiler)
    with pytest.raises(InputError, match=r"no working C\+\+ compiler\); expected .* backend='chunked'"):
        attend(LMInfinite(3, 7, backend="flex"), random_text())


def test_running_out_of_memory_is_not_called_a_compiler_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(flex, "_compiled", lambda: full)
    with pytest.raises(torch.OutOfMemoryError):
        attend(LMInfinite(3, 7, backend="flex"), random_text())


def test_the_choice_is_measured_once_said_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))
    monkeypatch.setattr(flex, "_CHOSEN", {})
    now = count()
    monkeypatch.setattr(flex.time, "perf_counter", lambda: float(next(now)))
    ran: list[str] = []

    def slow() -> None:
        ran.append("chunks")
        for _ in range(5):
            next(now)

    def ask(**shape: Any) -> bool:
        return flex.faster(torch.device("cpu"), shape, slow, lambda: ran.append("kernel"))

    assert ask(new=4096)
    assert ran == ["chunks"] * 4 + ["kernel"] * 4
    assert "by the compiled kernel" in capsys.readouterr().err
    assert ask(new=4096)
    assert len(ran) == 8
    assert not capsys.readouterr().err
    flex._CHOSEN.clear()  # another process
    assert ask(new=4096)
    assert len(ran) == 8
    [kept] = json.loads((tmp_path / "attend_flex.json").read_text()).values()
    assert kept["seconds"] == {"chunks": 6.0, "kernel": 1.0}
    assert kept["torch"] == torch.__version__
    ask(new=8192)
    assert len(ran) == 16


def test_a_kernel_that_cannot_be_compiled_is_not_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))
    monkeypatch.setattr(flex, "_CHOSEN", {})

    def refused() -> None:
        raise InputError("no compiler here")

    for _ in range(2):
        flex._CHOSEN.clear()
        assert not flex.faster(torch.device("cpu"), {}, lambda: None, refused)
        assert "by chunks" in (said := capsys.readouterr().err)
        assert "no compiler here" in said


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.usefixtures("uncompiled")
def test_what_is_asked_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways on the prompt's shape, up to a stretch that is read at once."""
    asked: list[Any] = []

    def faster(device: Any, shape: dict[str, Any], chunked: Callable, kernel: Callable) -> bool:
        asked.extend((shape["query"], list(chunked().shape), list(kernel().shape)))
        return True

    monkeypatch.setattr(flex, "faster", faster)
    query, _, value = random_text(1100, rows=1, values=True)
    assert LMInfinite(3, 7).state(LAYER)._kernel_is_faster(query, value)
    assert [list(each) for each in asked] == [[1, HEADS, 1024, WIDTH]] * 3


def test_on_a_cpu_auto_means_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "faster", None)
    monkeypatch.setattr(flex, "lambda_tiles", None)
    text = random_text(5000, rows=1, values=True)
    torch.testing.assert_close(
        attend(LMInfinite(3, 7), text), attend(LMInfinite(3, 7, backend="chunked"), text), atol=0, rtol=0
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_global": -1}, "n_global=-1; expected at least 0"),
        ({"n_local": 0}, "n_local=0; expected at least 1"),
        ({"top_k": -1}, "top_k=-1"),
        ({"n_local": 10, "max_distance": 8}, "max_distance=8 and n_local=10"),
        ({"middle_distance": -1}, "middle_distance=-1"),
        ({"middle_rows": "first"}, "expected 'last' or 'all'"),
        ({"backend": "cuda"}, "expected 'auto', 'chunked' or 'flex'"),
        ({"backend": "flex", "middle_rows": "all", "top_k": 1}, "backend='flex' with middle_rows='all'"),
    ],
)
def test_parameters_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LMInfinite(**settings)


def test_a_ceiling_beyond_the_trained_length_is_refused(tiny_model: Callable) -> None:
    model = tiny_model(pad_token_id=0)
    for method in (LMInfinite(), LMInfinite(n_local=8, max_distance=257), LMInfinite(8, 8, 8, 1, 0, 300)):
        with pytest.raises(InputError, match="trained on 256 positions"):
            method.install(model)
    LMInfinite(n_local=8, middle_distance=300).install(model).remove()


@pytest.mark.real
def test_real_text_is_read_well_with_its_first_tokens_and_badly_without(default_model: Any) -> None:
    import argparse
    import inspect

    model, tokenizer = default_model.model, default_model.tokenizer
    ids = tokenizer(inspect.getsource(argparse)[:6000], return_tensors="pt").input_ids[:, :700]

    def loss(**settings: Any) -> float:
        with torch.no_grad(), LMInfinite(**settings)(model):
            return float(cross_entropy(model(ids).logits[0, 200:-1], ids[0, 201:]))

    with torch.no_grad():
        full = float(cross_entropy(model(ids).logits[0, 200:-1], ids[0, 201:]))
    assert abs(loss(n_local=700) - full) < 1e-3
    window, light = loss(n_global=0, n_local=128), loss(n_global=4, n_local=128)
    assert full < light < window - 0.1

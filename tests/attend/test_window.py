"""The window and the Λ-shaped memory: what they see, however a text is cut, in constant space, at exact angles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attending import ExactRotary, layer
from torch import Tensor
from transformers import LlamaConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from broadsheet.attend.kernels import window
from broadsheet.attend.kernels.window import CHUNK, WindowState, _edges, rotation
from broadsheet.attend.lm_infinite import LambdaState, LMInfinite
from broadsheet.attend.memory import Layer
from broadsheet.attend.rotary import Rotary

HEADS, KV_HEADS, WIDTH = 4, 2, 8
LLAMA = LlamaRotaryEmbedding(LlamaConfig(hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, head_dim=WIDTH))
LAYER = layer(HEADS, KV_HEADS, WIDTH)
CUTS = {"one piece": [60], "chunks": [13, 1, 1, 30, 2, 1, 12], "token by token": [1] * 60}
SHAPES = [  # n_global, n_local, max_distance
    (0, 7, 7),
    (3, 7, 7),
    (3, 7, 6),
    (3, 7, 15),
    (10, 4, 4),
    (10, 4, 20),
    (4, 1, 30),
    (2, 1, 1),
    (70, 5, 5),
    (5, 64, 64),
]


def random_text(length: int, rows: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values before rotary encoding."""
    source = torch.Generator().manual_seed(seed)
    shapes = [(rows, heads, length, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    scales = (2, 1, 1)
    return [
        (torch.randn(shape, generator=source) * scale).to(dtype) for shape, scale in zip(shapes, scales, strict=True)
    ]


def light(layer: Layer, n_global: int, n_local: int, max_distance: int | None = None) -> LambdaState:
    """The state that LM-Infinite gives a layer."""
    return LMInfinite(n_global, n_local, max_distance).state(layer)


def read(state: WindowState, text: list[Tensor], cuts: list[int]) -> Tensor:
    outputs, start = [], 0
    for cut in cuts:
        outputs.append(state.attend(*(part[:, :, start : start + cut] for part in text)))
        start += cut
    return torch.cat(outputs, 2)


def turn(x: Tensor, position: Tensor) -> Tensor:
    """Rotary encoding in float64."""
    angle = position * ExactRotary(WIDTH).frequencies
    left, right = x.double().chunk(2, dim=-1)
    return torch.cat((left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()), dim=-1)


def by_pairs(text: list[Tensor], i: int, n_global: int, n_local: int, ceiling: int, softcap: float = 0) -> Tensor:
    """Attention of token i to every token that it sees: (rows, heads, head_dim)."""
    window = max(0, i - n_local + 1)
    seen = torch.tensor([*range(min(n_global, window)), *range(window, i + 1)])
    query, key, value = text[0][:, :, i], *(x.double().repeat_interleave(HEADS // KV_HEADS, 1) for x in text[1:])
    # A rotation depends on the difference of positions only.
    asking = turn(query[:, :, None].expand(-1, -1, len(seen), -1), (i - seen).clamp(max=ceiling)[:, None])
    logits = (asking * key[:, :, seen]).sum(-1) / WIDTH**0.5
    if softcap:
        logits = torch.tanh(logits / softcap) * softcap
    return (logits.softmax(-1)[..., None] * value[:, :, seen]).sum(2)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_token_sees_the_first_and_the_last_ones_at_no_more_than_the_ceiling(shape: tuple[int, int, int]) -> None:
    text = random_text(60)
    outputs = {name: read(light(LAYER, *shape), text, cuts) for name, cuts in CUTS.items()}
    for i in (0, 3, 4, 6, 7, 8, 21, 59):
        truth = by_pairs(text, i, *shape)
        for name, output in outputs.items():
            torch.testing.assert_close(output[:, :, i].double(), truth, atol=1e-10, rtol=0, msg=f"token {i}, {name}")


@pytest.mark.parametrize("shape", [(3, 7, 7), (3, 7, 20), (0, 7, 7), (5, 40, 40), (5, CHUNK + 30, CHUNK + 30)])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_a_text_may_be_cut_anywhere(shape: tuple[int, int, int], softcap: float | None) -> None:
    length = 5 * CHUNK + 7
    text = random_text(length, rows=2)
    layer = replace(LAYER, softcap=softcap)
    whole = read(light(layer, *shape), text, [length])
    for start in ([1] * 50 + [CHUNK + 1], [CHUNK - 1, 1, 2], [5] * 100, [shape[1] - 2], [2 * CHUNK, 1]):
        cut = read(light(layer, *shape), text, [*start, length - sum(start)])
        torch.testing.assert_close(cut, whole, atol=1e-10, rtol=0)
    for i in (CHUNK - 1, CHUNK, 3 * CHUNK + 1, length - 1):
        truth = by_pairs(text, i, *shape, softcap=softcap or 0)
        torch.testing.assert_close(whole[:, :, i].double(), truth, atol=1e-10, rtol=0)


def test_how_many_chunks_attend_together_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    text = random_text(1000)
    outputs = []
    for together in (0, 20_000, 2**24):
        monkeypatch.setattr(window, "TOGETHER", together)
        outputs.append(read(light(LAYER, 3, 20), text, [1000]))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-10, rtol=0)


def test_softcap() -> None:
    text = random_text(40)
    outputs = [read(light(replace(LAYER, softcap=1.5), 3, 7, 9), text, cuts) for cuts in ([40], [1] * 40)]
    for output in outputs:
        for i in (2, 12, 39):
            truth = by_pairs(text, i, 3, 7, 9, softcap=1.5)
            torch.testing.assert_close(output[:, :, i].double(), truth, atol=1e-10, rtol=0)


def test_a_stream_stays_exact() -> None:
    """At 130,000 tokens as at 1,000; float32 angles counted from the start would be off by 2e-3."""
    n_global, n_local, length = 4, 32, 130_000
    text = random_text(length, rows=1, dtype=torch.float32)
    state = light(replace(LAYER, rotary=Rotary(LLAMA, apply_rotary_pos_emb)), n_global, n_local)
    output = read(state, text, [50_000, 3, 1, 20_000, 1, 1, 59_900, *[1] * 94])
    assert state.seen == length
    for i in (1000, 50_002, 69_000, 70_004, 129_990, 129_999):
        truth = by_pairs(text, i, n_global, n_local, n_local)
        torch.testing.assert_close(output[:, :, i].double(), truth, atol=1e-4, rtol=0, msg=f"token {i}")


def test_the_origin_moves_at_the_same_tokens_however_a_text_is_cut() -> None:
    text = random_text(4000, rows=1)
    whole, cut = light(LAYER, 2, 16), light(LAYER, 2, 16)
    read(whole, text, [4000])
    read(cut, text, [1000, 1047, *[1] * 3, 1950])
    assert whole._origin == cut._origin > 0
    torch.testing.assert_close(whole._key[:, :, 2:], cut._key[:, :, 2:], atol=1e-10, rtol=0)


def test_space_is_constant_and_a_short_text_takes_less() -> None:
    state = light(LAYER, 3, 64)
    text = random_text(400, rows=1)
    held = {}
    for i in range(400):
        read(state, [part[:, :, i : i + 1] for part in text], [1])
        held[i + 1] = state.bytes().on_device
    token = 2 * KV_HEADS * WIDTH * 8  # bytes
    assert held[64] == held[400] == (3 + 64) * token + 3 * token // 2  # the first keys are also kept un-rotated
    assert held[1] < held[8] < held[64]
    assert len(set(held.values())) == 7  # it grows by doubling
    read(state, text, [400])
    assert state.bytes().on_device == held[400]


def test_a_step_moves_nothing() -> None:
    state = light(LAYER, 3, 16)
    text = random_text(40, rows=1)
    read(state, text, [40])
    key, value, before = state._key, state._value, state._value.clone()
    read(state, random_text(1, rows=1, seed=1), [1])
    assert state._key is key
    assert state._value is value
    assert (before != value).any(dim=-1).any(dim=1).sum() == 1  # the one slot of the token that left


def test_rows_go_their_own_ways() -> None:
    text, more = random_text(40, rows=3), random_text(20, rows=2, seed=1)
    together = light(LAYER, 3, 7)
    read(together, text, [40])
    order = torch.tensor([2, 0])
    chosen = together.select(order)
    before = [tensor.clone() for tensor in together._tensors()]
    output = read(chosen, more, [3, *[1] * 17])
    assert all(torch.equal(*pair) for pair in zip(before, together._tensors(), strict=True))
    alone = light(LAYER, 3, 7)
    read(alone, [part[order] for part in text], [40])
    torch.testing.assert_close(output, read(alone, more, [20]), atol=1e-10, rtol=0)


def test_heads_of_a_group_read_the_same_keys() -> None:
    text = random_text(40)
    repeated = [text[0], *(part.repeat_interleave(HEADS // KV_HEADS, 1) for part in text[1:])]
    for cuts in ([40], [1] * 40):
        grouped = read(light(LAYER, 3, 7), text, cuts)
        single = read(light(replace(LAYER, kv_heads=HEADS), 3, 7), repeated, cuts)
        torch.testing.assert_close(grouped, single, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    text = random_text(600, rows=1)
    exact = read(light(LAYER, 4, 32), [part.to(dtype).float() for part in text], [600])
    for cuts in ([600], [500, *[1] * 100]):
        output = read(light(LAYER, 4, 32), [part.to(dtype) for part in text], cuts)
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), exact, atol=0.1, rtol=0)
        assert (output.float() - exact).abs().mean() < 0.01


def test_scaled_tables() -> None:
    """YaRN multiplies its tables: a key at angle zero is not the key itself."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    config = LlamaConfig(
        hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, head_dim=WIDTH, rope_parameters=rope,
        max_position_embeddings=256,
    )  # fmt: skip
    module = LlamaRotaryEmbedding(config)
    assert module.attention_scaling != 1
    layer = replace(LAYER, rotary=Rotary(module, apply_rotary_pos_emb))
    text = random_text(40)
    pieces, tokens = (read(light(layer, 3, 7), text, cuts) for cuts in ([40], [1] * 40))
    torch.testing.assert_close(pieces, tokens, atol=2e-6, rtol=0)
    # With a ceiling out of reach, first tokens stand where they are, as in plain attention to 40 tokens.
    full = read(light(layer, 40, 7, 60), text, [40])
    torch.testing.assert_close(full, read(WindowState(layer, 60), text, [40]), atol=2e-6, rtol=0)


def test_layers_without_positions() -> None:
    layer = replace(LAYER, rotary=Rotary(None, None))
    text = random_text(40)
    pieces, tokens = (read(light(layer, 3, 7), text, cuts) for cuts in ([40], [1] * 40))
    torch.testing.assert_close(pieces, tokens, atol=1e-10, rtol=0)


def test_sliding_layers_are_the_models_own() -> None:
    config = Qwen2Config(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, use_sliding_window=True,
        sliding_window=8, max_window_layers=1,
    )  # fmt: skip
    assert config.layer_types == ["full_attention", "sliding_attention"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa").double().eval()
        ids = torch.randint(3, 100, (2, 40))
    with torch.no_grad():
        stock = model(ids).logits
        with LMInfinite(n_local=64)(model):
            cache = model(ids[:, :25]).cache
            steps = [model(ids[:, i : i + 1], cache=cache).logits for i in range(25, 40)]
            whole = model(ids).logits
    torch.testing.assert_close(whole, stock, atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.cat(steps, 1), stock[:, 25:], atol=1e-10, rtol=0)


def test_what_calls_share_serves_a_model_with_gradients_on() -> None:
    """Masks and rotations are kept between calls; autograd refuses tensors that were made in inference mode."""
    LAYER.rotary.rotate(torch.zeros(1, 1, 1, WIDTH), 50)
    _edges.cache_clear()
    rotation.cache_clear()
    query, key, value = random_text(40)
    with torch.inference_mode():
        expected = read(light(LAYER, 3, 9), [query, key, value], [39, 1])
    output = read(light(LAYER, 3, 9), [query.clone().requires_grad_(), key, value], [39, 1])
    assert torch.equal(output, expected)

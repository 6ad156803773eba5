"""Rotation moved out of the model: the model's own angles, at any position."""

from __future__ import annotations

import pytest
import torch
from attend_zoo import make
from transformers.models.llama import modeling_llama

from broadsheet.attend.layout import read_layout
from broadsheet.attend.rotary import IdentityRotary, Rotary, tables

PLAIN, YARN, DYNAMIC, PARTIAL = "llama", "llama, yarn", "llama, dynamic", "phi"


def rotary(name: str = PLAIN, reach: int = 64) -> Rotary:
    model_layout = read_layout(make(name))
    return Rotary(model_layout.rotary, model_layout.apply, reach=reach)


def keys(rows: int = 2, length: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, length, 8, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_models_own_rotation_to_the_bit() -> None:
    model = make(PLAIN)
    x, positions = keys(), torch.tensor([[0, 3, 7, 50, 99]])
    cos, sin = model.model.rotary_emb(x, positions)
    expected = modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)[0]
    encoding = rotary()
    assert torch.equal(encoding.rotate(x, positions[0]), expected)
    assert torch.equal(encoding.rotate(x, positions.expand(2, -1)), expected)
    assert torch.equal(encoding.rotate(x, range(5)), encoding.rotate(x, torch.arange(5)))
    assert torch.equal(encoding.rotate(x, 9), encoding.rotate(x, torch.full((5,), 9)))


@pytest.mark.parametrize("name", [PLAIN, YARN, DYNAMIC, PARTIAL])
def test_a_logit_depends_on_the_distance_alone(name: str) -> None:
    encoding = rotary(name)
    query, key = keys(seed=1), keys(seed=2)
    logits = [(encoding.rotate(query, p + 30) * encoding.rotate(key, p)).sum(-1) for p in (0, 17, 1000, 5000)]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [PLAIN, YARN, DYNAMIC, PARTIAL])
@pytest.mark.parametrize("by", [40, -40, 0])
def test_a_shift_moves_what_is_rotated(name: str, by: int) -> None:
    encoding = rotary(name)
    x = keys()
    torch.testing.assert_close(
        encoding.shift(encoding.rotate(x, range(100, 105)), by), encoding.rotate(x, range(100 + by, 105 + by))
    )


def test_partial_rotation_passes_the_rest_on() -> None:
    x = keys()
    rotated = rotary(PARTIAL).rotate(x, 7)
    assert torch.equal(rotated[..., 4:], x[..., 4:])
    assert not torch.allclose(rotated[..., :4], x[..., :4])


def test_frequencies_that_depend_on_length_are_those_of_the_reach() -> None:
    model_layout = read_layout(make(DYNAMIC))
    short = tables(model_layout.rotary, 64, keys(), None)[0]
    grown = tables(model_layout.rotary, 2048, keys(), None)[0]
    assert not torch.allclose(short, grown[:, :64])
    encoding = Rotary(model_layout.rotary, model_layout.apply, reach=64)
    encoding.rotate(keys(), 2000)  # asks for angles beyond the reach
    cos, _ = encoding._table(64, keys())
    torch.testing.assert_close(cos[:, :64], short)


def test_a_layer_without_positions_is_left_alone() -> None:
    x = keys()
    nothing = Rotary(None, None)
    assert nothing.rotate(x, 5) is x
    assert nothing.shift(x, 5) is x


def test_identity_rotates_nothing() -> None:
    cos, sin = IdentityRotary(make(PLAIN).model.rotary_emb)(keys(), torch.arange(5)[None])
    x = keys()
    assert torch.equal(modeling_llama.apply_rotary_pos_emb(x, x, cos, sin)[0], x)


def test_layers_know_what_they_are() -> None:
    layers = read_layout(make("smollm3, a layer without positions")).layers
    assert [layer.has_positions for layer in layers] == [True, False]
    layers = read_layout(make("gemma3")).layers
    assert [layer.fields["sliding_window"] for layer in layers] == [8, None]
    assert [layer.layer_type for layer in layers] == ["sliding_attention", "full_attention"]
    layers = read_layout(make("gemma2")).layers
    assert layers[0].fields["softcap"] == 50.0

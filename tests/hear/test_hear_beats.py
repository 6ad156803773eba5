"""BEATs: against Kaldi's filter bank and the paper's equations written out in loops, and its checkpoint files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from broadsheet.console import InputError
from broadsheet.hear import base
from broadsheet.hear.encoders.beats import DEVIATION, MEAN, BeatsEncoder
from broadsheet.hear.encoders.beats_layers import Backbone, BeatsConfig, position_buckets
from broadsheet.hear.encoders.fbank import fbank, fbank_frames, fbank_samples

# What the fine-tuned iter3+ checkpoints hold as cfg.
PUBLISHED: dict[str, Any] = {
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.05,
    "dropout_input": 0.0,
    "layer_norm_first": False,
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
    "deep_norm": True,
    "input_patch_size": 16,
    "layer_wise_gradient_decay_ratio": 0.6,
    "embed_dim": 512,
    "finetuned_model": True,
    "predictor_dropout": 0.0,
    "predictor_class": 527,
}
TINY = PUBLISHED | {
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 2,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "num_buckets": 16,
    "max_distance": 30,
    "embed_dim": 12,
}


@pytest.fixture(scope="module")
def tiny() -> BeatsEncoder:
    return BeatsEncoder.random(TINY, seed=3)


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def published_weights(encoder: BeatsEncoder) -> dict[str, Tensor]:
    """As the authors' `state_dict`: every layer names the one table of biases."""
    weights = dict(encoder.state_dict())
    for layer in range(1, encoder.config.encoder_layers):
        name = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
        weights[name.format(layer)] = weights[name.format(0)]
    return weights


def write(path: Path, cfg: dict[str, Any], model: dict[str, Any], **more: Any) -> str:
    torch.save({"cfg": cfg, "model": model, **more}, path)
    return str(path)


# The spectrogram


def kaldi_fbank(wave: np.ndarray) -> np.ndarray:
    """One window and one triangle at a time, from Kaldi's definition, in float64."""

    def mel(hertz: float) -> float:
        return 1127.0 * math.log(1.0 + hertz / 700.0)

    def weight(triangle: int, step: int) -> float:
        width = (mel(8000.0) - mel(20.0)) / 129
        left = mel(20.0) + triangle * width
        return max(0.0, 1.0 - abs(mel(step * 16000 / 512) - (left + width)) / width)

    triangles = np.array([[weight(triangle, step) for step in range(257)] for triangle in range(128)])
    povey = np.array([(0.5 - 0.5 * math.cos(2 * math.pi * n / 399)) ** 0.85 for n in range(400)])
    steps = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(512)) / 512)
    rows = []
    for start in range(0, len(wave) - 400 + 1, 160):
        window = np.array([float(value) for value in wave[start : start + 400]])
        window = window - sum(window) / 400
        emphasised = [window[0] - 0.97 * window[0]] + [window[n] - 0.97 * window[n - 1] for n in range(1, 400)]
        padded = np.zeros(512)
        padded[:400] = np.array(emphasised) * povey
        power = np.abs(steps @ padded) ** 2
        rows.append(np.log(np.maximum(triangles @ power, 1.1920928955078125e-07)))
    return np.array(rows)


def test_fbank_is_kaldis() -> None:
    time = np.arange(2200) / 16000
    wave = 3000 * np.sin(2 * np.pi * (300 + 9000 * time) * time) + 500
    wave += np.random.default_rng(1).normal(0, 20, 2200)
    wave[1500:2000] = 0  # a window of digital silence: the floor
    got = fbank(torch.from_numpy(wave))
    expected = kaldi_fbank(wave)
    assert got.shape == expected.shape == (12, 128)
    assert expected[-3:].min() == pytest.approx(math.log(1.1920928955078125e-07))
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("samples", [0, 399, 400, 559, 560, 2799, 2800, 16_000, 480_000])
def test_frames_are_the_windows_that_fit(samples: int) -> None:
    fit = len(range(0, samples - 400 + 1, 160))
    assert fbank_frames(samples) == fit
    if samples < 10_000:
        assert len(fbank(torch.zeros(samples))) == fit
    if fit:
        assert fbank_frames(fbank_samples(fit)) == fit == fbank_frames(fbank_samples(fit) - 1) + 1


def test_the_spectrogram_is_scaled_as_the_authors_do(tiny: BeatsEncoder) -> None:
    wave = noise(2800)
    expected = (kaldi_fbank(wave.double().numpy() * 32768) - 15.41663) / (2 * 6.55582)
    assert (MEAN, DEVIATION) == (15.41663, 6.55582)
    np.testing.assert_allclose(tiny.spectrogram(wave).numpy(), expected, atol=1e-5)


# Tokens: how many, when, and which band


def test_token_counts_of_the_card() -> None:
    published = {"kind": "beats", "config": PUBLISHED}
    assert (fbank_frames(480_000), BeatsEncoder.frames_of(published, 480_000)) == (2998, 1496)
    assert (fbank_frames(16_000), BeatsEncoder.frames_of(published, 16_000)) == (98, 48)


@pytest.mark.parametrize("samples", [0, 1, 2799, 2800, 5359, 5360, 16_000])
def test_frames_of_is_what_encode_gives(tiny: BeatsEncoder, samples: int) -> None:
    frames = BeatsEncoder.frames_of(tiny.settings(), samples)
    assert frames == max(8 * (fbank_frames(samples) // 16), 8)
    assert tiny.encode(noise(samples)).shape == (frames, 16)


def test_width_and_rate_from_a_cfg_alone(tiny: BeatsEncoder) -> None:
    assert BeatsEncoder.describe({"kind": "beats", "config": PUBLISHED}) == (768, 50.0)
    assert BeatsEncoder.describe(tiny.settings()) == (tiny.width, tiny.frame_rate) == (16, 50.0)


def test_a_token_is_its_block_and_band(tiny: BeatsEncoder) -> None:
    spectrogram = torch.randn(1, 48, 128, generator=torch.Generator().manual_seed(4))
    before = tiny.patches(spectrogram)
    assert before.shape == (1, 24, 16)
    spectrogram[0, 16 + 15, 16 * 5] += 1.0  # block 1, band 5: token 8 · 1 + 5
    changed = (tiny.patches(spectrogram) != before).any(dim=-1)[0].nonzero().flatten().tolist()
    assert changed == [13]


def test_a_later_sound_does_not_change_earlier_patches(tiny: BeatsEncoder) -> None:
    wave = noise(32_000)
    later = torch.cat([wave[:16_000], noise(16_000, seed=1)])
    first, second = (tiny.patches(tiny.spectrogram(one)[None])[0] for one in (wave, later))
    heard = BeatsEncoder.frames_of(tiny.settings(), 16_000)
    torch.testing.assert_close(first[:heard], second[:heard], atol=0, rtol=0)
    assert not torch.allclose(first[heard + 8 :], second[heard + 8 :])


# The layers, against loops in float64


def bucket(distance: int, buckets: int, furthest: int) -> int:
    half = buckets // 2
    exact = half // 2
    far = abs(distance)
    place = far
    if far >= exact:
        place = min(exact + int(math.log(far / exact) / math.log(furthest / exact) * (half - exact)), half - 1)
    return place + (half if distance > 0 else 0)


@pytest.mark.parametrize(("buckets", "furthest"), [(320, 800), (16, 30)])
def test_buckets_by_definition(buckets: int, furthest: int) -> None:
    distances = list(range(-1500, 1501))
    expected = [bucket(distance, buckets, furthest) for distance in distances]
    assert position_buckets(torch.tensor(distances), buckets, furthest).tolist() == expected
    assert set(expected) == set(range(buckets)) - {buckets // 2}  # a distance of 0 is never after the query


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def norm(row: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centred = row - row.mean()
    return centred / math.sqrt((centred**2).mean() + 1e-5) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x.ravel()]).reshape(x.shape)


def loops(config: BeatsConfig, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The backbone of the published kind, one query, one head and one place of a kernel at a time."""
    tokens, width = x.shape
    heads, kernel = config.encoder_attention_heads, config.conv_pos
    each, group = width // heads, width // config.conv_pos_groups
    v, g = w["pos_conv.0.weight_v"], w["pos_conv.0.weight_g"]
    places = np.tile(w["pos_conv.0.bias"], (tokens, 1))
    for t in range(tokens):
        for k in range(kernel):
            source = t + k - kernel // 2
            if 0 <= source < tokens:
                column = v[:, :, k] * g[0, 0, k] / math.sqrt((v[:, :, k] ** 2).sum())
                for c in range(width):
                    first = c // group * group
                    places[t, c] += column[c] @ x[source, first : first + group]
    x = x + gelu(places)
    x = np.array([norm(row, w["layer_norm.weight"], w["layer_norm.bias"]) for row in x])
    table = w["layers.0.self_attn.relative_attention_bias.weight"]
    alpha = (2 * config.encoder_layers) ** 0.25

    for i in range(config.encoder_layers):
        p = {name.removeprefix(f"layers.{i}."): value for name, value in w.items() if name.startswith(f"layers.{i}.")}

        def linear(name: str, row: np.ndarray, p: dict[str, np.ndarray] = p) -> np.ndarray:
            return p[f"{name}.weight"] @ row + p[f"{name}.bias"]

        queries, keys, values = ([linear(f"self_attn.{n}_proj", row) for row in x] for n in "qkv")
        out = []
        for t in range(tokens):
            mixed = np.zeros(width)
            for h in range(heads):
                part = slice(h * each, (h + 1) * each)
                eight = linear("self_attn.grep_linear", queries[t][part])
                s1, s2 = sigmoid(sum(eight[:4])), sigmoid(sum(eight[4:]))
                gate = s1 * (s2 * p["self_attn.grep_a"][0, h, 0, 0] - 1) + 2
                scores = [
                    queries[t][part] @ keys[j][part] / math.sqrt(each)
                    + gate * table[bucket(j - t, config.num_buckets, config.max_distance), h]
                    for j in range(tokens)
                ]
                shares = [math.exp(score - max(scores)) for score in scores]
                for j in range(tokens):
                    mixed[part] += shares[j] / sum(shares) * values[j][part]
            row = alpha * x[t] + linear("self_attn.out_proj", mixed)
            row = norm(row, p["self_attn_layer_norm.weight"], p["self_attn_layer_norm.bias"])
            row = alpha * row + linear("fc2", gelu(linear("fc1", row)))
            out.append(norm(row, p["final_layer_norm.weight"], p["final_layer_norm.bias"]))
        x = np.array(out)
    return x


def test_the_backbone_is_its_equations(tiny: BeatsEncoder) -> None:
    x = torch.randn(1, 11, 16, generator=torch.Generator().manual_seed(5))
    weights = {name: value.double().numpy() for name, value in tiny.encoder.state_dict().items()}
    expected = loops(tiny.config, weights, x[0].double().numpy())
    np.testing.assert_allclose(tiny.encoder(x)[0].numpy(), expected, atol=1e-5)


def test_norm_first_normalises_at_the_end_and_has_no_alpha(tiny: BeatsEncoder) -> None:
    encoder = BeatsEncoder.random(TINY | {"layer_norm_first": True, "deep_norm": False}, seed=3).encoder
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(6))
    y = x + encoder.pos_conv(x.transpose(1, 2)).transpose(1, 2)
    bias = encoder.bias(9)
    for layer in encoder.layers:
        y = y + layer.self_attn(layer.self_attn_layer_norm(y), bias, None)
        y = y + layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.final_layer_norm(y))))
    torch.testing.assert_close(encoder(x), encoder.layer_norm(y))


def test_the_gated_feed_forward_is_value_times_silu_of_gate() -> None:
    gated = BeatsEncoder.random(TINY | {"activation_fn": "glu"}, seed=3).encoder.layers[0].fc1
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(7))
    value, gate = gated.linear(x)[:, :24], gated.linear(x)[:, 24:]
    torch.testing.assert_close(gated(x), value * gate / (1 + torch.exp(-gate)))


@pytest.mark.parametrize("field", ["relative_position_embedding", "gru_rel_pos", "deep_norm", "activation_fn"])
def test_every_field_of_the_cfg_is_read(tiny: BeatsEncoder, field: str) -> None:
    other = BeatsEncoder.random(TINY | {field: "tanh" if field == "activation_fn" else False}, seed=9)
    weights = tiny.state_dict()
    other.load_state_dict({name: weights[name] for name in other.state_dict()})
    wave = noise(6000)
    assert not torch.allclose(other.encode(wave), tiny.encode(wave), atol=1e-3)


# Batches, and being frozen


def test_a_batch_gives_what_each_wave_gives(tiny: BeatsEncoder) -> None:
    waves = [noise(samples, seed) for seed, samples in enumerate([16_000, 1000, 9000, 16_100, 5360])]
    together = tiny.encode_all(waves)
    for wave, got in zip(waves, together, strict=True):
        torch.testing.assert_close(got, tiny.encode(wave), atol=1e-5, rtol=1e-5)


def test_batches_are_bounded_and_keep_the_order(tiny: BeatsEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broadsheet.hear.encoders.beats.BATCH_TOKENS", 60)
    sizes: list[int] = []
    run = tiny._encode_batch

    def counted(waves: list[Tensor]) -> list[Tensor]:
        sizes.append(sum(tiny.frames_of(tiny.settings(), len(wave)) for wave in waves))
        return run(waves)

    monkeypatch.setattr(tiny, "_encode_batch", counted)
    waves = [noise(samples, seed) for seed, samples in enumerate([1000, 16_000, 9000, 5360])]
    assert [len(one) for one in tiny.encode_all(waves)] == [8, 48, 24, 16]
    assert len(sizes) > 1
    assert max(sizes) <= 60


def test_it_is_frozen_and_never_drops(tiny: BeatsEncoder) -> None:
    wave = noise(6000)
    before = tiny.encode(wave)
    tiny.train()
    assert not any(weight.requires_grad for weight in tiny.parameters())
    torch.testing.assert_close(tiny.encode(wave), before, atol=0, rtol=0)
    assert not before.is_inference()  # the connector behind it trains on these


def test_a_wave_with_channels_is_refused(tiny: BeatsEncoder) -> None:
    with pytest.raises(ValueError, match=r"\(2, 4000\)"):
        tiny.encode(torch.zeros(2, 4000))


# Names and files


def layer_shapes(width: int, inner: int, heads: int) -> dict[str, tuple[int, ...]]:
    square, row = (width, width), (width,)
    shapes: dict[str, tuple[int, ...]] = {"self_attn.grep_a": (1, heads, 1, 1)}
    shapes |= {f"self_attn.{name}_proj.weight": square for name in ("k", "v", "q", "out")}
    shapes |= {f"self_attn.{name}_proj.bias": row for name in ("k", "v", "q", "out")}
    shapes |= {"self_attn.grep_linear.weight": (8, width // heads), "self_attn.grep_linear.bias": (8,)}
    shapes |= {
        f"{name}.{part}": row for name in ("self_attn_layer_norm", "final_layer_norm") for part in ("weight", "bias")
    }
    return shapes | {"fc1.weight": (inner, width), "fc1.bias": (inner,), "fc2.weight": (width, inner), "fc2.bias": row}


def test_names_and_shapes_are_the_published_ones(tiny: BeatsEncoder) -> None:
    expected: dict[str, tuple[int, ...]] = {
        "pos_conv.0.weight_g": (1, 1, 128),
        "pos_conv.0.weight_v": (768, 48, 128),
        "pos_conv.0.bias": (768,),
        "layer_norm.weight": (768,),
        "layer_norm.bias": (768,),
        "layers.0.self_attn.relative_attention_bias.weight": (320, 12),
    }
    for i in range(12):
        expected |= {f"layers.{i}.{name}": shape for name, shape in layer_shapes(768, 3072, 12).items()}
    with torch.device("meta"):
        backbone = Backbone(BeatsConfig.of(PUBLISHED))
    assert {name: tuple(weight.shape) for name, weight in backbone.state_dict().items()} == expected
    outside = {name: tuple(w.shape) for name, w in tiny.state_dict().items() if not name.startswith("encoder.")}
    assert outside == {
        "patch_embedding.weight": (12, 1, 16, 16),
        "layer_norm.weight": (12,),
        "layer_norm.bias": (12,),
        "post_extract_proj.weight": (16, 12),
        "post_extract_proj.bias": (16,),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_published_file_and_a_saved_folder_give_the_same(tiny: BeatsEncoder, tmp_path: Path, legacy: bool) -> None:
    weights = published_weights(tiny)
    weights |= {"predictor.weight": torch.randn(527, 16), "predictor.bias": torch.randn(527)}
    file = tmp_path / "BEATs_cpt2.pt"
    content = {"cfg": TINY, "model": weights, "label_dict": {0: "/m/09x0r"}}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    loaded = BeatsEncoder(str(file))
    folder = loaded.save(tmp_path / "saved")
    again = base.encoder(f"beats:{folder}")
    for other in (loaded, again):
        assert sorted(other.state_dict()) == sorted(tiny.state_dict())
        torch.testing.assert_close(other.encode(noise(6000)), tiny.encode(noise(6000)), atol=0, rtol=0)
        rebuilt = base.encoder(json.loads(json.dumps(other.settings())))
        assert rebuilt.identity == other.identity
        assert BeatsEncoder.describe(other.settings()) == (16, 50.0)
        assert BeatsEncoder.frames_of(other.settings(), 16_000) == 48


def test_random_weights_are_rebuilt_from_settings(tiny: BeatsEncoder) -> None:
    assert base.encoder(tiny.settings()).identity == tiny.identity != BeatsEncoder.random(TINY, seed=4).identity


def test_a_file_that_changes_is_read_again(tiny: BeatsEncoder, tmp_path: Path) -> None:
    file = tmp_path / "beats.pt"
    settings = {"kind": "beats", "spec": write(file, TINY, published_weights(tiny))}
    assert BeatsEncoder.describe(settings) == (16, 50.0)
    write(file, TINY | {"encoder_embed_dim": 32}, {})
    assert BeatsEncoder.describe(settings) == (32, 50.0)


class Bomb:
    """Runs code when it is unpickled freely."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_file_with_code_is_refused_unrun(tiny: BeatsEncoder, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    file = write(tmp_path / "beats.pt", TINY, published_weights(tiny), more=Bomb(target))
    with pytest.raises(InputError, match="tensors and plain values") as refused:
        BeatsEncoder(file)
    assert "\n" not in str(refused.value)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x80\x02]q\x00."], ids=["empty", "html", "list"])
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "beats.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"beats\.pt") as refused:
        BeatsEncoder(tmp_path / "beats.pt")
    assert "\n" not in str(refused.value)


def test_a_cut_file_is_one_line(tiny: BeatsEncoder, tmp_path: Path) -> None:
    file = tmp_path / "beats.pt"
    write(file, TINY, published_weights(tiny))
    file.write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(InputError, match=r"beats\.pt is not a file of tensors"):
        BeatsEncoder(file)


def test_weights_that_do_not_fit_are_named(tiny: BeatsEncoder, tmp_path: Path) -> None:
    weights = published_weights(tiny)
    lacking = {name: weight for name, weight in weights.items() if "fc1" not in name}
    other_table = weights | {"encoder.layers.1.self_attn.relative_attention_bias.weight": torch.zeros(16, 2)}
    cases = {
        r"lacks .*: encoder\.layers\.0\.fc1\.bias, .* and 1 more": (TINY, lacking),
        r"does not describe: encoder\.mask_emb;": (TINY, weights | {"encoder.mask_emb": torch.zeros(3)}),
        r"fc1\.weight of shape \(24, 16\); its .* \(20, 16\)": (
            TINY | {"encoder_ffn_embed_dim": 20},
            weights,
        ),
        r"another encoder\.layers\.1\..* than in its first layer": (TINY, other_table),
        r"holds cfg, model; expected": (TINY, {"patch_embedding.weight": 3}),
    }
    for i, (message, (cfg, model)) in enumerate(cases.items()):
        with pytest.raises(InputError, match=message):
            BeatsEncoder(write(tmp_path / f"{i}.pt", cfg, model))


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.pt does not exist"):
        base.encoder(f"beats:{tmp_path}/gone.pt")
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        BeatsEncoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        BeatsEncoder(tmp_path)
    with pytest.raises(InputError, match="beats:FILE"):
        base.encoder("beats")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_fn": "swish"}, "activation_fn=swish"),
        ({"layer_norm_first": True}, "both deep_norm and layer_norm_first"),
        ({"encoder_attention_heads": 3}, "3 heads in a width of 16"),
        ({"conv_pos_groups": 5}, "5 groups"),
        ({"input_patch_size": 129}, "input_patch_size=129"),
        ({"input_patch_size": -1}, "input_patch_size=-1"),
        ({"max_distance": 4}, "num_buckets=16 for max_distance=4"),
        ({"encoder_layers": "12"}, "encoder_layers='12'"),
        ({"deep_norm": None}, "deep_norm=None"),
    ],
)
def test_a_cfg_that_is_not_supported_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BeatsConfig.of(TINY | change)


def test_a_cfg_of_another_model_is_refused_and_unread_fields_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="with input_patch_size"):
        BeatsConfig.of({"hidden_size": 768})
    BeatsConfig.of(PUBLISHED)
    assert capsys.readouterr().err == ""
    BeatsConfig.of(TINY | {"quant_n": 1024})
    assert "not read: quant_n" in capsys.readouterr().err

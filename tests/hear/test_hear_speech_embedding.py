"""The speech embedding: how windows lie on the wave, with stand-ins for its networks; then the real ones."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.hear import base
from broadsheet.hear.encoders import resources, speech_embedding
from broadsheet.hear.encoders.speech_embedding import SpeechEmbeddingEncoder


class Mel:
    """Stands for the mel network: one frame per 160 samples, 512 samples wide; here its 32 bins are slices of them."""

    def run(self, outputs: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        [wave] = feeds["input"]
        assert wave.dtype == np.float32
        frames = np.lib.stride_tricks.sliding_window_view(wave, 512)[::160]
        return [(frames.reshape(len(frames), 32, 16).sum(-1) / 100)[None, None]]


class Embedding:
    """Stands for the embedding network: a fixed random map of its window."""

    def __init__(self) -> None:
        self.map = np.random.default_rng(0).normal(size=(76 * 32, 96)).astype(np.float32)
        self.batches: list[int] = []

    def run(self, outputs: None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        windows = feeds["input_1"]
        assert windows.shape[1:] == (76, 32, 1)
        self.batches.append(len(windows))
        # row by row, so that a row does not depend on its batch even in the last bit
        return [np.stack([window.reshape(-1) @ self.map for window in windows])[:, None, None]]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    found = tmp_path / "mel.onnx", tmp_path / "embedding.onnx"
    for file in found:
        file.write_bytes(file.name.encode())
    monkeypatch.setattr(resources, "speech_embedding_files", lambda: found)
    return found


@pytest.fixture
def networks(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(mel=Mel(), embedding=Embedding())
    by_file = {str(files[0]): made.mel, str(files[1]): made.embedding}
    monkeypatch.setattr(speech_embedding, "_session", by_file.__getitem__)
    return made


@pytest.fixture(scope="module")
def small() -> SpeechEmbeddingEncoder:
    """With stand-ins, for tests that hypothesis repeats."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(resources, "speech_embedding_files", lambda: (Path("mel"), Path("embedding")))
        patched.setattr(speech_embedding, "_session", lambda file: SimpleNamespace(run=None))
        made = SpeechEmbeddingEncoder()
    networks: Any = (Mel(), Embedding())
    made._run = lambda which: networks[which].run  # type: ignore[method-assign]
    return made


def sounds(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(length, generator=generator) - 0.5 for length in lengths]


@pytest.mark.parametrize("samples", [1, 700, 1280, 1281, 16_000, 30_001])
def test_frames_are_those_of_windows_taken_one_by_one(networks: SimpleNamespace, samples: int) -> None:
    """Frame i: silence around the wave, 12,512 samples whose middle is the middle of its 80 ms, as 16-bit values."""
    [wave] = sounds(samples)
    found = SpeechEmbeddingEncoder().encode(wave)
    around = np.concatenate([np.zeros(20_000), wave.numpy() * 32_768, np.zeros(20_000)]).astype(np.float32)
    expected = []
    for frame in range(math.ceil(samples / 1280)):
        middle = 20_000 + 1280 * frame + 640
        mel = networks.mel.run(None, {"input": around[None, middle - 6_256 : middle + 6_256]})[0].reshape(76, 32)
        expected.append(networks.embedding.run(None, {"input_1": (mel / 10 + 2)[None, ..., None]})[0].reshape(96))
    assert found.dtype == torch.float32
    assert found.shape == (len(expected), 96)
    assert np.allclose(found.numpy(), np.stack(expected), rtol=1e-4, atol=1e-2)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 40_000), max_size=6))
def test_batches_are_what_single_waves_are(small: SpeechEmbeddingEncoder, lengths: list[int]) -> None:
    waves = sounds(*lengths)
    together = small.encode_all(waves)
    assert [len(frames) for frames in together] == [small.frames_of(small.settings(), length) for length in lengths]
    for wave, frames in zip(waves, together, strict=True):
        assert torch.equal(small.encode(wave), frames)


def test_windows_are_batched(networks: SimpleNamespace) -> None:
    SpeechEmbeddingEncoder().encode_all(sounds(480_000, 1_000))  # 375 windows and 1
    assert networks.embedding.batches == [256, 120]


def test_settings_build_the_same_again(networks: SimpleNamespace) -> None:
    small = SpeechEmbeddingEncoder()
    assert json.loads(json.dumps(small.settings())) == base.named("speech-embedding")
    again = base.encoder("speech-embedding")
    assert again.identity == small.identity
    assert small.describe({}) == (small.width, small.frame_rate) == (96, 12.5)


def test_identity_is_that_of_the_files(networks: SimpleNamespace, files: tuple[Path, Path]) -> None:
    identities = [SpeechEmbeddingEncoder().identity]
    for file in files:
        file.write_bytes(b"another")
        identities.append(SpeechEmbeddingEncoder().identity)
    assert len(set(identities)) == 3


def test_it_is_a_module_without_weights(networks: SimpleNamespace) -> None:
    small = SpeechEmbeddingEncoder()
    inside = torch.nn.ModuleList([small]).train()
    assert not small.training
    assert dict(small.state_dict()) == {}
    [wave] = sounds(5_000)
    assert torch.equal(copy.deepcopy(inside)[0].encode(wave), small.encode(wave))
    assert small.to("meta").encode(wave).device.type == "meta"  # frames come on the device the module was moved to


@pytest.mark.parametrize("shape", [(0,), (1, 8_000), ()])
def test_what_is_no_wave_is_refused(networks: SimpleNamespace, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(samples,\), at least one sample"):
        SpeechEmbeddingEncoder().encode(torch.zeros(shape))


def test_a_missing_package_is_named(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"needs onnxruntime: pip install -e '\.\[hear\]'"):
        SpeechEmbeddingEncoder()


@pytest.mark.real
def test_the_real_networks_hear_an_event_where_it_is() -> None:
    """Frames change where a click's window reaches, evenly on both sides; batches change nothing."""
    pytest.importorskip("onnxruntime")
    small: Any = SpeechEmbeddingEncoder()
    background, click, other = (0.003 * wave for wave in sounds(64_000, 1_280, 20_001, seed=1))
    louder = background.clone()
    louder[1280 * 25 : 1280 * 26] += 100 * click
    together = small.encode_all([background, louder, other])
    assert [tuple(frames.shape) for frames in together] == [(50, 96), (50, 96), (16, 96)]
    changed = (together[0] - together[1]).norm(dim=1) > 1e-3
    # not the first and last 5, which see silence: its floor lies under the loudest point
    where = [frame for frame in changed.nonzero().flatten().tolist() if 5 <= frame < 45]
    assert where == list(range(25 - 5, 25 + 6))
    assert (small.encode(other) - together[2]).abs().max() < 1e-5

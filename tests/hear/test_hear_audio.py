"""Waves: every kind of file and array becomes the same 16 kHz mono, in one read or in blocks, and clips are cut."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.hear.data import audio

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

TONE = 440.0  # Hz


def tone(seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * TONE * np.arange(round(seconds * rate)) / rate)


def written(path: Path, samples: np.ndarray, rate: int = 16_000, subtype: str | None = None) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
def test_any_rate_becomes_the_same_wave(tmp_path: Path, rate: int) -> None:
    path = written(tmp_path / "a.wav", tone(1.6, rate), rate, "FLOAT")
    wave = audio.read(path)
    assert wave.dtype == torch.float32
    assert wave.shape == (25_600,)
    # away from the ends, where a resampler sees silence
    assert np.abs(wave.numpy() - tone(1.6, 16_000))[500:-500].max() < 1e-4
    assert torch.equal(wave, audio.from_array(tone(1.6, rate), rate))


@pytest.mark.parametrize(
    ("name", "subtype", "error"),
    [
        ("a.wav", "PCM_U8", 1 / 128),
        ("a.wav", "PCM_16", 1 / 2**15),
        ("a.wav", "PCM_24", 1 / 2**23),
        ("a.wav", "PCM_32", 1e-7),
        ("a.wav", "FLOAT", 1e-7),
        ("a.wav", "DOUBLE", 1e-7),
        ("a.flac", "PCM_16", 1 / 2**15),
        ("a.flac", "PCM_24", 1 / 2**23),
        ("a.ogg", "VORBIS", 0.05),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_any_format_becomes_the_same_wave(tmp_path: Path, name: str, subtype: str, error: float) -> None:
    if subtype not in soundfile.available_subtypes(name.rpartition(".")[2].upper()):
        pytest.skip(f"this libsndfile has no {subtype}")
    wave = audio.read(written(tmp_path / name, tone(1, 16_000), subtype=subtype)).numpy()
    middle = slice(4_000, 12_000)
    assert len(wave) >= 16_000
    assert np.abs(wave[middle] - tone(1, 16_000)[middle]).max() <= error


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_first_channel_is_taken(tmp_path: Path, rate: int) -> None:
    left, right = tone(0.3, rate), np.random.default_rng(0).uniform(-1, 1, round(0.3 * rate))
    both = np.stack([left, right], axis=1)
    assert torch.equal(audio.from_array(both, rate), audio.from_array(left, rate))
    mono = audio.read(written(tmp_path / "mono.wav", left, rate))
    assert torch.equal(audio.read(written(tmp_path / "both.wav", both, rate)), mono)


def test_integers_fill_their_type() -> None:
    expected = torch.tensor([-1.0, 0.0, 0.5])
    for samples in (
        np.array([-128, 0, 64], np.int8),
        np.array([-(2**15), 0, 2**14], np.int16),
        np.array([-(2**31), 0, 2**30], np.int32),
        np.array([0, 128, 192], np.uint8),
        np.array([-1, 0, 0.5], np.float64),
        np.array([-1, 0, 0.5], np.float16),
        torch.tensor([-1, 0, 0.5], dtype=torch.bfloat16),
        torch.tensor([-(2**15), 0, 2**14], dtype=torch.int16),
        [-1.0, 0.0, 0.5],
    ):
        assert torch.equal(audio.from_array(samples, 16_000), expected)


def test_loud_files_stay_in_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    square = np.sign(tone(0.5, 44_100, 1.0)) * 0.9999
    wave = audio.read(written(tmp_path / "square.wav", square, 44_100))  # resampling rings beyond 1
    assert wave.abs().max() == 1
    assert capsys.readouterr().err == ""
    loud = np.array([0.0, 1.5, -2.0, 1.0], np.float32)
    assert audio.read(written(tmp_path / "loud.wav", loud, subtype="FLOAT")).tolist() == [0, 1, -1, 1]
    assert capsys.readouterr().err == f"{tmp_path / 'loud.wav'}: 2 samples beyond ±1 are clipped\n"


# --- files longer than a block ---


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "_BLOCK_SECONDS", 1)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_blocks_do_not_show(tmp_path: Path, rate: int) -> None:
    samples = np.random.default_rng(1).uniform(-0.5, 0.5, round(3.37 * rate))
    path = written(tmp_path / "a.wav", samples, rate, "FLOAT")
    whole = audio.read(path)
    assert torch.equal(whole, audio.from_array(samples.astype(np.float32), rate))
    for seconds in (0.4, 1.0, 3.0, 3.37, 30.0):
        streamed = list(audio.read_pieces(path, seconds))
        assert len(streamed) == math.ceil(len(whole) / round(seconds * 16_000))
        for one, other in zip(streamed, audio.pieces(whole, seconds), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.99, 7])
def test_only_the_beginning_is_read(tmp_path: Path, rate: int, seconds: float) -> None:
    path = written(tmp_path / "a.wav", np.random.default_rng(2).uniform(-0.5, 0.5, 2 * rate), rate)
    whole, beginning = audio.read(path), audio.read(path, max_seconds=seconds)
    assert len(beginning) == min(len(whole), round(seconds * 16_000))
    assert (whole[: len(beginning)] - beginning).abs().max() < 1e-6
    assert soundfile.info(path).frames == 2 * rate


def test_what_lies_beyond_max_seconds_is_not_looked_at(tmp_path: Path) -> None:
    samples = tone(3, 16_000).astype(np.float32)
    samples[40_000] = np.nan
    path = written(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert len(audio.read(path, max_seconds=2)) == 32_000
    with pytest.raises(InputError, match="1 of 48,000 samples are NaN or infinite"):
        audio.read(path)


# --- what cannot be used ---


def cut_flac(path: Path) -> Path:
    written(path, np.random.default_rng(0).uniform(-1, 1, 160_000))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 :] = np.random.default_rng(1).bytes(len(raw) - len(raw) // 2)
    path.write_bytes(raw)
    return path


def cut_wav(path: Path) -> Path:
    written(path, tone(1, 16_000))
    path.write_bytes(path.read_bytes()[:-2])
    return path


def with_text(path: Path) -> Path:
    path.write_text("this is not audio\n" * 100)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.wav", "none.wav does not exist; expected an audio file"),
        (lambda folder: folder, "is a folder; expected an audio file"),
        (lambda folder: with_text(folder / "a.wav"), "a.wav is not audio that can be read .* ffmpeg"),
        (lambda folder: with_text(folder / "a.raw"), "a.raw is not audio that can be read .* ffmpeg"),
        (lambda folder: written(folder / "a.wav", np.empty(0)), "a.wav holds no samples"),
        (lambda folder: written(folder / "a.wav", np.empty(0), 44_100), "a.wav holds no samples"),
        (lambda folder: written(folder / "a.wav", tone(1, 8), 8), "a.wav has 8 samples per second; expected 1,000 to"),
        (
            lambda folder: written(folder / "a.wav", np.array([0, np.nan, np.inf, -np.inf]), subtype="FLOAT"),
            "a.wav: 3 of 4 samples are NaN or infinite",
        ),
        (
            lambda folder: written(folder / "a.wav", np.array([0.0, 12_345.0]), subtype="FLOAT"),
            r"a.wav: float samples up to 12,345; expected \[-1, 1\]: divide by 32768",
        ),
        (lambda folder: cut_flac(folder / "a.flac"), "a.flac is damaged"),
        (lambda folder: cut_wav(folder / "a.wav"), "a.wav is cut off"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        audio.read(make(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (
            np.zeros((2, 16_000)),
            16_000,
            r"shape \(2, 16000\); expected \(samples,\) or \(samples, channels\); transpose",
        ),
        (np.zeros((4, 2, 1)), 16_000, r"shape \(4, 2, 1\)"),
        (np.float32(0), 16_000, r"shape \(\)"),
        (np.empty(0), 16_000, "without samples"),
        (np.array([True, False]), 16_000, "type bool"),
        (np.array([1j]), 16_000, "type complex128"),
        (np.zeros(4), 0, "has 0 samples per second"),
        (np.array([0.0, np.nan]), 16_000, "1 of 2 samples are NaN"),
    ],
)
def test_unusable_arrays_are_refused(samples: Any, rate: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        audio.from_array(samples, rate)


@pytest.mark.parametrize("package", ["soundfile", "soxr"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    path = written(tmp_path / "a.wav", tone(0.1, 8_000), 8_000)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(InputError, match=rf"needs {package}: pip install -e '\.\[hear\]'"):
        audio.read(path)


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_lengths_have_to_be_positive(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(InputError, match="max_seconds"):
        audio.read(tmp_path / "a.wav", max_seconds=seconds)


# --- clips ---


@pytest.mark.parametrize(
    ("samples", "expected"),
    [([8_000], 16_000), ([16_000, 20_000], 37_600), ([480_001], 480_000), ([16_000], 16_000), ([300_000] * 2, 480_000)],
)
def test_clips_are_joined_filled_and_cut(samples: list[int], expected: int) -> None:
    clips = [torch.full((length,), 1.0 + place) for place, length in enumerate(samples)]
    joined = audio.prepare(clips)
    assert joined.shape == (expected,)
    parts = [part for clip in clips for part in (torch.zeros(1_600), clip)][1:]
    whole = torch.cat([*parts, torch.zeros(16_000)])
    assert torch.equal(joined, whole[:expected])


def test_nothing_cannot_be_joined() -> None:
    with pytest.raises(InputError, match="no waves"):
        audio.prepare([])


@given(st.integers(1, 100_000), st.sampled_from([0.5, 1.0, 1.7, 2.0, 30.0]))
def test_pieces_are_the_wave(samples: int, seconds: float) -> None:
    wave = torch.arange(1.0, samples + 1)
    parts = audio.pieces(wave, seconds)
    size = round(seconds * 16_000)
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert min(size, 16_000) <= len(parts[-1]) <= size
    together = torch.cat(parts)
    assert torch.equal(together[:samples], wave)
    assert not together[samples:].any()
    assert len(together) - samples < 16_000


def test_no_wave_has_no_pieces() -> None:
    for wave, seconds in [(torch.empty(0), 30.0), (torch.zeros(2, 5), 30.0), (torch.zeros(5), 0.0)]:
        with pytest.raises(InputError, match="got"):
            audio.pieces(wave, seconds)


def test_a_stream_whose_header_could_not_know_its_length_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", tone(1, 16_000))
    whole = path.read_bytes()
    place = whole.index(b"data") + 4
    path.write_bytes(whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :])
    assert len(audio.read(path)) == 16_000

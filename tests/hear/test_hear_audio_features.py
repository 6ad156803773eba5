"""`AudioFeatures`: frames of several encoders by piece, and the cache that gives the same frames without encoding."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from broadsheet.console import InputError
from broadsheet.hear.base import AudioEncoder
from broadsheet.hear.data import audio
from broadsheet.hear.encoders import audio_features
from broadsheet.hear.encoders.audio_features import AudioFeatures, piece_seconds

pytestmark = pytest.mark.usefixtures("home")

soundfile = pytest.importorskip("soundfile")


class Counting(AudioEncoder):
    """Per block its first samples times a factor; counts the waves it is given."""

    kind = "counting"

    def __init__(
        self, block: int = 320, width: int = 3, factor: float = 1.0, context_seconds: float | None = None
    ) -> None:
        super().__init__()
        self.block, self.width, self.factor, self.context_seconds = block, width, factor, context_seconds
        self.frame_rate = 16_000 / block
        self.calls = self.waves = 0
        self.freeze()

    def settings(self) -> dict[str, Any]:
        found = {"kind": self.kind, "block": self.block, "width": self.width, "factor": self.factor}
        return found if self.context_seconds is None else {**found, "context_seconds": self.context_seconds}

    @classmethod
    def frames_of(cls, settings: Mapping[str, Any], samples: int) -> int:
        return -(-samples // settings["block"])

    def encode(self, wave: Tensor) -> Tensor:
        return self.encode_all([wave])[0]

    def encode_all(self, waves: Sequence[Tensor]) -> list[Tensor]:
        self.calls += 1
        self.waves += len(waves)
        assert all(len(wave) <= (self.context_seconds or 30) * 16_000 for wave in waves)
        filled = [torch.nn.functional.pad(wave, (0, -len(wave) % self.block)) for wave in waves]
        return [wave.reshape(-1, self.block)[:, : self.width] * self.factor for wave in filled]


def sound(seconds: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(round(seconds * 16_000), generator=generator) * 2 - 1


def written(path: Path, seconds: float, seed: int = 0, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, sound(seconds, seed).numpy(), 16_000, subtype=subtype)
    return path


def same(one: list[list[Tensor]], other: list[list[Tensor]]) -> bool:
    return all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )  # fmt: skip


@pytest.fixture
def features(home: Path) -> Path:
    """Where frames are kept."""
    return home / "features"


def test_a_clip_is_heard_by_each_encoder(tmp_path: Path) -> None:
    parts = [Counting(), Counting(1280, 5, 2.0)]
    [[speech, other]] = AudioFeatures(parts).features(written(tmp_path / "a.wav", 2.5))
    assert torch.equal(speech, parts[0].encode(sound(2.5)))
    assert torch.equal(other, parts[1].encode(sound(2.5)))
    assert (speech.shape, other.shape) == ((125, 3), (32, 5))


@pytest.mark.parametrize("samples", [1, 15_999, 480_000, 480_001, 960_000, 1_000_000])
def test_long_clips_come_in_pieces(tmp_path: Path, samples: int) -> None:
    parts = [Counting(), Counting(1280, 5)]
    wave = sound(samples / 16_000)
    path = tmp_path / "a.wav"
    soundfile.write(path, wave.numpy(), 16_000, subtype="FLOAT")
    expected = [[part.encode(piece) for part in parts] for piece in audio.pieces(wave)]
    both = AudioFeatures(parts)
    for clip in (path, str(path), wave):
        assert same(both.features(clip), expected)  # encoded
        assert same(both.features(clip), expected)  # from the cache


def test_the_shortest_context_cuts_the_pieces(tmp_path: Path, features: Path) -> None:
    assert piece_seconds([{"kind": "a"}, {"kind": "b", "context_seconds": 60.0}]) == 30
    assert piece_seconds([{"kind": "a"}, {"kind": "b", "context_seconds": 8.0}]) == 8
    parts = [Counting(), Counting(1280, context_seconds=2.0)]
    wave = sound(7)
    found = AudioFeatures(parts).features(wave)
    assert [[len(frames) for frames in piece] for piece in found] == [[100, 25]] * 3 + [[50, 13]]
    # the first encoder alone hears 30 s at once, and the cache does not mix the two up
    assert [len(frames) for [frames] in AudioFeatures(parts[:1]).features(wave)] == [350]
    assert len(AudioFeatures(parts).features(wave)) == 4


def test_cached_frames_are_equal_to_the_bit_and_nothing_is_encoded(tmp_path: Path) -> None:
    paths: list[Any] = [written(tmp_path / f"{seed}.wav", 1 + seed, seed) for seed in range(3)]
    clips = [*paths, sound(3, 9)]
    first = AudioFeatures([Counting(), Counting(1280)])
    made = first.features_all(clips)
    again = [Counting(), Counting(1280)]
    for one, other in zip(made, AudioFeatures(again).features_all(clips), strict=True):
        assert same(one, other)
    assert [each.calls for each in again] == [0, 0]


def test_cached_files_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.wav", 1)
    both = AudioFeatures([Counting()])
    expected = both.features(path)
    monkeypatch.setattr(audio, "read_pieces", lambda *_: pytest.fail("decoded"))
    copy = shutil.copy(path, tmp_path / "another name.wav")
    assert same(both.features(copy), expected)


def test_only_what_is_missing_is_encoded_and_each_clip_once(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{seed}.wav", 1, seed) for seed in range(3)]
    AudioFeatures([Counting()]).features_all(paths[:1])
    known, new = Counting(), Counting(1280)
    both = AudioFeatures([known, new])
    found = both.features_all([paths[0], paths[1], paths[1], paths[0], paths[2]])
    assert (known.waves, new.waves) == (2, 3)
    assert (known.calls, new.calls) == (1, 1)
    assert same(found[1], found[2])
    assert same(found[0], found[3])
    assert not same(found[0], found[1])


def test_another_content_or_encoder_is_another_entry(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", 1, seed=0)
    before = AudioFeatures([Counting()]).features(path)
    assert same(AudioFeatures([Counting(factor=2.0)]).features(path), [[2 * before[0][0]]])
    written(path, 1, seed=1)
    assert torch.equal(AudioFeatures([Counting()]).features(path)[0][0], Counting().encode(sound(1, 1)))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: os.truncate(path, path.stat().st_size - 7),
        lambda path: os.truncate(path, 40),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: np.save(path, np.zeros((50, 4), np.float32)),
        lambda path: np.save(path, np.zeros((50, 3), np.float64)),
        lambda path: np.save(path, np.zeros((0, 3), np.float32)),
        lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True),
    ],
    ids=["cut", "cut header", "empty", "zeros", "width", "dtype", "no frames", "pickle"],
)
def test_damaged_files_are_made_again(
    tmp_path: Path, features: Path, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "a.wav", 1)
    expected = AudioFeatures([Counting()]).features(path)
    [kept] = features.rglob("*.npy")
    whole = kept.read_bytes()
    harm(kept)
    part = Counting()
    both = AudioFeatures([part])
    assert same(both.features(path), expected)
    assert part.calls == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{kept} is damaged (")
    assert said.endswith("): computing it again\n")
    assert said.count("\n") == 1
    assert kept.read_bytes() == whole
    assert same(both.features(path), expected)
    assert part.calls == 1
    assert capsys.readouterr().err == ""


def test_files_lie_under_identity_and_hash(tmp_path: Path, features: Path) -> None:
    import hashlib

    part = Counting()
    path = written(tmp_path / "a.wav", 1)
    AudioFeatures([part]).features(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert [each.relative_to(features) for each in features.rglob("*") if each.is_file()] == [
        Path(part.identity, digest[:2], f"{digest}.npy")
    ]
    elsewhere = tmp_path / "elsewhere"
    AudioFeatures([part], elsewhere).features(path)
    assert (elsewhere / part.identity / digest[:2] / f"{digest}.npy").is_file()


def test_half_precision_rounds_the_same_with_and_without_cache(tmp_path: Path, features: Path) -> None:
    wave = sound(1)
    rounded = AudioFeatures([Counting()], dtype="float16")
    fresh, cached = rounded.features(wave), rounded.features(wave)
    assert fresh[0][0].dtype == torch.float32
    assert torch.equal(fresh[0][0], Counting().encode(wave).half().float())
    assert same(fresh, cached)
    [kept] = features.rglob("*.npy")
    assert np.load(kept).dtype == np.float16
    assert torch.equal(AudioFeatures([Counting()]).features(wave)[0][0], Counting().encode(wave))


def test_nothing_is_kept_when_not_wanted(tmp_path: Path, features: Path) -> None:
    part = Counting()
    both = AudioFeatures([part], keep=False)
    path = written(tmp_path / "a.wav", 1)
    assert same(both.features(path), both.features(path))
    assert part.calls == 2
    assert not features.parent.exists()


def test_groups_do_not_show_and_bound_what_is_encoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips: list[Any] = [sound(seconds, seed) for seed, seconds in enumerate([0.5, 95, 2, 61, 1, 30])]
    expected = AudioFeatures([Counting()], keep=False).features_all(clips)
    monkeypatch.setattr(audio_features, "_GROUP", 3)
    part = Counting()
    for one, other in zip(expected, AudioFeatures([part]).features_all(clips), strict=True):
        assert same(one, other)
    assert part.waves == 1 + 4 + 1 + 3 + 1 + 1
    assert part.calls == 4


def test_a_stopped_run_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_features, "_GROUP", 2)
    good = [written(tmp_path / f"{seed}.wav", 1, seed) for seed in range(2)]
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    with pytest.raises(InputError, match=r"bad\.wav is not audio"):
        AudioFeatures([Counting()]).features_all([*good, bad])
    part = Counting()
    AudioFeatures([part]).features_all(good)
    assert part.calls == 0


def test_many_clips_show_a_bar_only_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    found = AudioFeatures([Counting()], keep=False).features_all([sound(0.1, seed) for seed in range(70)])
    assert len(found) == 70
    assert capsys.readouterr() == ("", "")


def test_no_clips_are_no_features() -> None:
    assert AudioFeatures([Counting()]).features_all([]) == []


@settings(max_examples=20)
@given(st.integers(1, 200_000), st.sampled_from([1.0, 2.0, 3.3]))
def test_pieces_are_found_again_in_what_is_kept(samples: int, context: float) -> None:
    parts = [Counting(320), Counting(1280, context_seconds=context), Counting(511)]
    wave = sound(samples / 16_000)
    both = AudioFeatures(parts)
    fresh, cached = both.features(wave), both.features(wave)
    assert same(fresh, cached)
    for piece, heard in zip(audio.pieces(wave, context), cached, strict=True):
        assert [len(each) for each in heard] == [part.frames_of(part.settings(), len(piece)) for part in parts]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AudioFeatures([]), "no audio encoders"),
        (lambda: AudioFeatures([Counting()], dtype="bfloat16"), "dtype 'bfloat16'"),
        (lambda: AudioFeatures([Counting()]).features("nowhere.wav"), r"cannot read nowhere\.wav: No such file"),
        (lambda: AudioFeatures([Counting()]).features(torch.zeros(2, 100)), r"shape \(2, 100\)"),
        (lambda: AudioFeatures([Counting()]).features(torch.tensor([0.0, float("nan")])), "1 of 2 samples are NaN"),
    ],
)
def test_unusable_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_an_encoder_that_breaks_its_promise_is_a_bug() -> None:
    class Liar(Counting):
        @classmethod
        def frames_of(cls, settings: Mapping[str, Any], samples: int) -> int:
            return super().frames_of(settings, samples) + 1

    with pytest.raises(RuntimeError, match="promises"):
        AudioFeatures([Liar()]).features(sound(1))


def test_a_full_disk_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match="No space left on device; free some space, or set BROADSHEET_HOME"):
        AudioFeatures([Counting()]).features(sound(1))

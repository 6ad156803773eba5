"""What sounds, voices and clips measure: made by flite and sox, heard here through numpy."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from broadsheet.console import InputError
from broadsheet.hear.data import mixing, voices
from broadsheet.hear.data.sounds import BANDS, CAPTIONS, HELD_OUT, MUSIC, NAMES, STRUCK, Sound
from broadsheet.hear.data.voices import SLOW, VOICES, speak, speak_otherwise

RATE = 16_000


def pitch_of(samples):
    """Median of the best lags of the loud 40-ms frames' autocorrelations, in Hz, between 70 and 320."""
    found = []
    for first in range(0, len(samples) - 640, 320):
        frame = samples[first : first + 640] - samples[first : first + 640].mean()
        same = np.correlate(frame, frame, "full")[639:]
        lags = slice(RATE // 320, RATE // 70)
        if np.sqrt((frame**2).mean()) > 0.3 * samples.std() and same[lags].max() > 0.5 * same[0]:
            found.append(RATE / (lags.start + same[lags].argmax()))
    return float(np.median(found))


def middle_of(samples):
    """Centre of the spectrum in Hz."""
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float((power * np.fft.rfftfreq(len(samples), 1 / RATE)).sum() / power.sum())


def strongest(samples, low, high):
    """Strongest frequency in Hz between two."""
    size = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 15))
    places = np.fft.rfftfreq(1 << 15, 1 / RATE)
    size[(places < low) | (places > high)] = 0
    return float(places[size.argmax()])


@pytest.mark.parametrize("name", [*NAMES, *MUSIC])
def test_a_sound_is_the_same_again_as_long_as_it_says_and_ends_in_silence(name):
    sound = Sound(name, -2.0, 0.36, 5, "train")
    made = sound.render()
    assert np.array_equal(made, sound.render())
    assert 0.3 < len(made) / RATE < 0.42
    assert np.abs(made).max() <= 1
    assert abs(made[-1]) < 1e-3


@pytest.mark.parametrize("name", ["wind", "rain", "bell", "engine"])
def test_another_seed_is_another_sound(name):
    one, other = (Sound(name, 1.5, 0.5, seed, "train").render() for seed in (1, 2))
    count = min(len(one), len(other))
    assert not np.allclose(one[:count], other[:count], atol=1e-3)


def test_a_higher_pitch_is_higher_by_so_many_semitones():
    low, high = (strongest(Sound("whistle", pitch, 0.6, 1, "train").render(), 1000, 4000) for pitch in (-5, 5))
    assert abs(12 * np.log2(high / low) - 10) < 0.7  # a whistle is two sines, over half a semitone apart


@pytest.mark.parametrize(("name", "way"), [("rising notes", 1), ("falling notes", -1)])
def test_notes_go_up_or_down_as_they_are_called(name, way):
    made = Sound(name, 0.0, 1.5, 3, "inside").render()
    fifth = len(made) // 5
    notes = [strongest(made[i * fifth : (i + 1) * fifth], 200, 500) for i in range(5)]
    assert (np.sign(np.diff(notes)) == way).all()


def test_low_and_high_sounds_lie_apart_whatever_their_pitch():
    low = [middle_of(Sound(name, 7, 0.6, 2, "outside").render()) for name in ("engine", "wind", "drum")]
    high = [middle_of(Sound(name, -7, 0.6, 2, "outside").render()) for name in ("rain", "bird", "whistle")]
    assert max(low) < 900 < 1200 < min(high)


@given(st.integers(0, 2**32), st.sampled_from(NAMES), st.sampled_from(sorted(BANDS)))
def test_a_drawn_pitch_lies_in_its_band_and_bands_of_test_and_training_are_apart(seed, name, band):
    sound = Sound.drawn(np.random.default_rng(seed), name, band, 0.3, 0.9)
    low, high = BANDS[band]
    assert low - 0.005 <= abs(sound.pitch) <= high + 0.005  # rounded to a hundredth
    assert 0.3 <= sound.length <= 0.9
    trained = BANDS["train"]
    assert all(BANDS[other][1] < trained[0] or BANDS[other][0] > trained[1] for other in HELD_OUT)


def test_every_sound_has_its_caption_and_no_two_share_one():
    assert {*NAMES, *MUSIC} < set(CAPTIONS)
    assert len(set(CAPTIONS.values())) == len(CAPTIONS)
    assert set(STRUCK) < set(NAMES)


def test_the_woman_speaks_higher_than_the_man():
    woman, man = (pitch_of(speak("my mother painted your table", voice, 1.0)) for voice in ("slt", "rms"))
    assert (VOICES["slt"], VOICES["rms"]) == ("a woman", "a man")
    assert man < 130 < 150 < woman


def test_a_slower_rate_takes_longer_by_that_much_and_edges_are_trimmed():
    fast, slow = (speak("the old queen waited", "slt", rate) for rate in (1.0, SLOW))
    assert len(slow) / len(fast) == pytest.approx(SLOW, rel=0.05)
    assert np.array_equal(fast, speak("the old queen waited", "slt", 1.0))
    assert np.abs(fast[: RATE // 20]).max() > 0.015 * np.abs(fast).max()


def test_espeak_speaks_at_sixteen_kilohertz_and_says_the_same_again():
    said = speak_otherwise("the king slept", "en-us", 150)
    assert 0.5 < len(said) / RATE < 2
    assert np.array_equal(said, speak_otherwise("the king slept", "en-us", 150))


def test_a_missing_program_is_one_line_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in (lambda: voices.require(["flite", "sox"]), lambda: voices.call(["sox"])):
        with pytest.raises(InputError, match=r"no sox.*apt-get install flite sox espeak-ng") as caught:
            command()
        assert "\n" not in str(caught.value)


def test_a_flite_without_our_voices_is_refused_as_it_would_speak_in_another(tmp_path, monkeypatch):
    fake = tmp_path / "flite"
    fake.write_text("#!/bin/sh\necho Voices available: kal slt\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"flite has no voice rms; it says 'Voices available: kal slt'"):
        voices.require(["flite"])


def test_a_program_that_fails_is_named_with_what_it_said():
    with pytest.raises(InputError, match=r"sox ended with status \d: .*apt-get install"):
        voices.sox(["-r", "16000", "-n"], ["nosucheffect"])
    with pytest.raises(InputError, match="flite"):
        speak("a king", "/no/such/voice.flitevox", 1.0)


def test_trimming_keeps_what_is_heard_and_silence_has_nothing_to_keep():
    heard = np.zeros(RATE, np.float32)
    heard[5000:6000] = 0.5
    kept = voices.trimmed(heard)
    assert len(kept) == 1000 + 2 * 320
    assert np.array_equal(kept[320:1320], heard[5000:6000])
    assert not len(voices.trimmed(np.zeros(100, np.float32)))
    assert not len(voices.trimmed(np.zeros(0, np.float32)))


@given(arrays(np.float32, st.integers(1, 2000), elements=st.floats(-1, 1, width=32)), st.floats(-40, -3))
def test_a_level_is_met_unless_the_peak_forbids_it(samples, decibels):
    made = mixing.levelled(samples, decibels)
    assert np.abs(made).max() <= mixing.CEILING + 1e-6
    assert mixing.loudness(made) <= decibels + 0.01
    if np.abs(samples).max() > 1e-2 and np.abs(made).max() < mixing.CEILING - 1e-3:
        assert mixing.loudness(made) == pytest.approx(decibels, abs=0.1)


@given(st.integers(0, 2**32), st.lists(st.floats(0.05, 0.6), min_size=1, max_size=4))
def test_things_in_a_row_keep_their_gaps_and_stay_within_the_clip(seed, lengths):
    places = mixing.spread(lengths, 3.2, 0.2, np.random.default_rng(seed))
    ends = [place + length for place, length in zip(places, lengths, strict=True)]
    assert places[0] >= mixing.EDGE - 1e-4
    assert ends[-1] <= 3.2 - mixing.EDGE + 1e-4
    assert all(after - end >= 0.2 - 2e-4 for end, after in zip(ends, places[1:], strict=False))


def test_places_are_spread_over_the_whole_room():
    rng = np.random.default_rng(0)
    places = [mixing.spread([0.5], 3.2, 0.2, rng)[0] for _ in range(400)]
    counts, _ = np.histogram(places, bins=4, range=(0.05, 2.65))
    assert counts.min() > 70
    with pytest.raises(ValueError, match="do not fit"):
        mixing.spread([2.0, 1.5], 3.2, 0.2, rng)


@pytest.mark.parametrize("tilt", [0.0, 1.0])
def test_noise_has_its_level_and_its_tilt(tilt):
    made = mixing.noise(48_000, -50, tilt, np.random.default_rng(0))
    assert 20 * np.log10(made.std()) == pytest.approx(-50, abs=0.05)
    power = np.abs(np.fft.rfft(made)) ** 2
    fall = power[300:900].mean() / power[3000:9000].mean()  # a decade of frequency: ten times less where it is pink
    assert fall == pytest.approx(10**tilt, rel=0.2)


def test_a_sum_that_would_clip_is_turned_down_as_a_whole():
    loud = np.full(1600, 0.8, np.float32)
    clip = mixing.mixed([(loud, 0.1), (loud, 0.1), (loud / 2, 0.5)], np.zeros(RATE, np.float32))
    assert np.abs(clip).max() == pytest.approx(mixing.CEILING)
    assert clip[8100] / clip[1700] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="leaves the clip"):
        mixing.mixed([(loud, 0.95)], np.zeros(RATE, np.float32))


def test_a_written_clip_reads_back_to_the_nearest_step():
    samples = np.linspace(-0.9, 0.9, 1000, dtype=np.float32)
    with wave.open(io.BytesIO(mixing.wav_bytes(samples))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        read = np.frombuffer(file.readframes(1000), "<i2") / 32767
    assert np.abs(read - samples).max() <= 0.5 / 32767 + 1e-7

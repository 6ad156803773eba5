"""Clips from waves: levels, places, a floor of noise under everything, and 16-bit files.

Knows: samples, seconds, decibels. Does not know: what is heard.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence

import numpy as np

from broadsheet.hear.base import SAMPLE_RATE
from broadsheet.hear.data.voices import Wave

FLOOR = (-66.0, -50.0)  # dB below full scale: the noise under every clip
HISS = (-34.0, -20.0)  # a clip that is nothing but noise
EDGE = 0.05  # seconds kept free at either end of a clip
CEILING = 0.9  # of full scale: the highest peak of one wave, and of a clip


def seconds_of(samples: Wave) -> float:
    """Its length in seconds."""
    return len(samples) / SAMPLE_RATE


def loudness(samples: Wave) -> float:
    """dB below full scale of the loudest quarter of its 20-ms frames, so that a sound's dying away does not count."""
    frame = SAMPLE_RATE // 50
    padded = np.pad(samples.astype(np.float64), (0, -len(samples) % frame)).reshape(-1, frame)
    power = np.sort((padded**2).mean(1))[::-1]
    return float(10 * np.log10(power[: max(1, len(power) // 4)].mean() + 1e-12))


def levelled(samples: Wave, decibels: float) -> Wave:
    """At this loudness, or as near as its peak lets it come."""
    gain = 10 ** ((decibels - loudness(samples)) / 20)
    peak = float(np.abs(samples).max(initial=1e-9))
    return (samples * min(gain, CEILING / peak)).astype(np.float32)


def noise(samples: int, decibels: float, tilt: float, rng: np.random.Generator) -> Wave:
    """Noise of this RMS whose power falls with frequency to the power `tilt`: 0 is white, 1 pink."""
    spectrum = np.fft.rfft(rng.normal(size=samples))
    spectrum /= np.maximum(1, np.arange(len(spectrum))) ** (tilt / 2)
    made = np.fft.irfft(spectrum, samples)
    return (made * 10 ** (decibels / 20) / np.sqrt((made**2).mean())).astype(np.float32)


def spread(lengths: Sequence[float], room: float, gap: float, rng: np.random.Generator) -> list[float]:
    """Where things of these lengths begin, one after another, at least `gap` apart, evenly drawn; all in seconds.

    Raises:
        ValueError: they do not fit.
    """
    slack = room - 2 * EDGE - sum(lengths) - gap * (len(lengths) - 1)
    if slack < 0:
        raise ValueError(f"{sum(lengths):.2f} s do not fit in {room:.2f} s")
    cuts = np.sort(rng.uniform(0, slack, len(lengths)))
    before = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    return [round(float(EDGE + before[i] + gap * i + cuts[i]), 4) for i in range(len(lengths))]


def mixed(parts: Sequence[tuple[Wave, float]], floor: Wave) -> Wave:
    """Waves at their offsets in seconds over a floor; turned down as a whole where the sum would clip.

    Raises:
        ValueError: a wave does not lie within the floor.
    """
    clip = floor.astype(np.float64)
    for samples, offset in parts:
        first = round(offset * SAMPLE_RATE)
        if first < 0 or first + len(samples) > len(clip):
            raise ValueError(f"a wave of {seconds_of(samples):.2f} s at {offset:.2f} s leaves the clip")
        clip[first : first + len(samples)] += samples
    peak = float(np.abs(clip).max(initial=1e-9))
    return (clip * min(1.0, CEILING / peak)).astype(np.float32)


def wav_bytes(samples: Wave) -> bytes:
    """A WAV file, 16 kHz mono 16 bits."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()

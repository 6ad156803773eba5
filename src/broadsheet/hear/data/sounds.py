"""Sounds with a name, and music-like patterns, made by sox: synthetic patterns, not recordings.

A bell here is four inharmonic sines that die away, an engine a low saw wave that shakes, rain high noise with drops.
They differ from one another as their namesakes do, in pitch, noise, attack and rhythm, and a model that names them has
learnt these patterns, not the world's bells and engines.

Knows: names, pitches, lengths, and which pitches are held out. Does not know: clips, levels, rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from broadsheet.hear.base import SAMPLE_RATE
from broadsheet.hear.data.voices import Wave, sox, trimmed

NAMES = ("bell", "alarm", "whistle", "horn", "drum", "wind", "rain", "engine", "guitar", "bird")
STRUCK = ("bell", "alarm", "whistle", "horn", "drum", "guitar", "bird")  # short enough to be counted
MUSIC = ("rising notes", "falling notes", "chord")
CAPTIONS = {
    "bell": "a bell rings",
    "alarm": "an alarm sounds",
    "whistle": "a whistle blows",
    "horn": "a horn blows",
    "drum": "a drum beats",
    "wind": "the wind blows",
    "rain": "the rain falls",
    "engine": "an engine runs",
    "guitar": "a guitar plays",
    "bird": "a bird sings",
    "rising notes": "the notes go up",
    "falling notes": "the notes go down",
    "chord": "a chord plays",
    "noise": "there is noise",
    "silence": "there is silence",
}
# How far the pitch is from the sound's own, in semitones up or down.
BANDS = {"train": (1.0, 5.0), "inside": (0.0, 0.7), "outside": (5.3, 7.0)}
HELD_OUT = ("inside", "outside")
PLUCKED_RATE = 48_000  # sox plucks strings at no lower one
ENDING = 160  # samples over which the end of every sound fades
LINGERS = 2.5  # sox's logarithmic fade falls to what is no longer heard after this part of its length


@dataclass(frozen=True)
class Sound:
    """One sound, described.

    Parameters:
        name: one of `NAMES` or `MUSIC`.
        pitch: semitones from the sound's own.
        length: seconds; what is heard may be a little shorter, as it dies away.
        seed: of its noise and of its small differences.
        band: the one of `BANDS` that the pitch lies in.
    """

    name: str
    pitch: float
    length: float
    seed: int
    band: str

    @classmethod
    def drawn(cls, rng: np.random.Generator, name: str, band: str, shortest: float, longest: float) -> Sound:
        """A sound with a pitch of this band and a length between two, in seconds."""
        low, high = BANDS[band]
        pitch = round(float(rng.uniform(low, high)), 2) * (1 if rng.random() < 0.5 else -1)
        length = round(float(rng.uniform(shortest, longest)), 3)
        return cls(name, pitch, length, int(rng.integers(2**31)), band)

    def render(self) -> Wave:
        """(samples,) float32, the same for the same description."""
        rng = np.random.default_rng([self.seed, len(self.name)])
        made = _RECIPES[self.name](2 ** (self.pitch / 12), self.length, rng)
        made = trimmed(made)
        made[-ENDING:] *= np.linspace(1, 0, ENDING, dtype=np.float32)  # what was cut off must not click
        return made


def _tones(tones: Sequence[str], effects: str, volumes: Sequence[float] = (), gate: str = "") -> Wave:
    """Tones, one a channel, mixed; `effects` are applied to the mixture, `gate` before mixing."""
    count = len(tones)
    mix = ",".join(f"{i + 1}v{volume:.3f}" for i, volume in enumerate(volumes or [0.9 / count] * count))
    source = ["-r", str(PLUCKED_RATE if " pluck " in tones[0] else SAMPLE_RATE), "-c", str(count), "-n"]
    return sox(source, f"synth {' '.join(tones)} {gate} remix {mix} {effects} rate {SAMPLE_RATE}".split())


def _noise(seconds: float, rng: np.random.Generator, effects: str, drops: float = 0) -> Wave:
    """White noise with sharp drops, through effects."""
    count = round(seconds * SAMPLE_RATE)
    samples = rng.normal(0, 0.12, count)
    if drops:
        places = rng.integers(0, count, round(drops * seconds))
        samples[places] += rng.uniform(0.8, 3, len(places)) * rng.choice([-1, 1], len(places))
    source = ["-t", "f32", "-r", str(SAMPLE_RATE), "-c", "1", "-"]
    return sox(source, ["gain", "-6", *effects.split()], samples.astype(np.float32))


def _bell(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    low, seconds = 620 * ratio, seconds * LINGERS
    partials = [low * part * rng.uniform(0.99, 1.01) for part in (1, 2.0, 2.76, 5.4)]
    tones = [f"{seconds:.3f} sine {partials[0]:.1f}", *(f"sine {part:.1f}" for part in partials[1:])]
    return _tones(tones, f"fade l 0.004 {seconds:.3f} {seconds - 0.005:.3f}", (0.35, 0.25, 0.25, 0.12))


def _alarm(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    low, beats = 780 * ratio, rng.uniform(4.5, 6.5)
    gate = f"synth {seconds} square amod {beats:.2f} 0 0 square amod {beats:.2f} 0 50"
    tones = [f"{seconds} triangle {low:.1f}", f"triangle {low * 1.33:.1f}"]
    return _tones(tones, f"lowpass 4000 fade t 0.01 {seconds} 0.03", (0.8, 0.8), gate)


def _whistle(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    high = 1900 * ratio
    effects = f"tremolo {rng.uniform(26, 36):.1f} 55 fade t 0.03 {seconds} 0.05"
    return _tones([f"{seconds} sine {high:.1f}", f"sine {high * 1.035:.1f}"], effects)


def _horn(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    low = 210 * ratio
    tones = [
        f"{seconds} sawtooth {low:.1f}",
        f"sawtooth {low * 1.26:.1f}",
        f"sawtooth {low * rng.uniform(1.004, 1.01):.1f}",
    ]
    return _tones(tones, f"lowpass 1600 fade t 0.04 {seconds} 0.08")


def _drum(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    length = round(min(seconds, 0.4) * LINGERS, 3)
    high = 190 * ratio
    tones = [f"{length} sine {high:.1f}/{high * 0.4:.1f}", "brownnoise"]
    share = rng.uniform(0.15, 0.3)
    return _tones(tones, f"fade l 0.002 {length} {length - 0.003:.3f}", (0.9 - share, share))


def _wind(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    middle = 420 * ratio
    gust = f"tremolo {rng.uniform(0.7, 1.4):.2f} 50"
    swell = f"fade t {seconds / 6:.3f} {seconds} {seconds / 5:.3f}"
    return _noise(seconds, rng, f"lowpass {middle * 1.5:.0f} band {middle:.0f} {middle * 0.6:.0f} {gust} {swell}")


def _rain(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    effects = (
        f"highpass {2600 * ratio:.0f} highpass {1500 * ratio:.0f} fade t {seconds / 8:.3f} {seconds} {seconds / 6:.3f}"
    )
    return _noise(seconds, rng, effects, drops=rng.uniform(60, 110))


def _engine(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    low = 46 * ratio
    tones = [f"{seconds} sawtooth {low:.2f}", f"square {low * rng.uniform(0.49, 0.51):.2f}", "brownnoise"]
    effects = f"lowpass 700 tremolo {rng.uniform(9, 14):.1f} 60 fade t 0.06 {seconds} 0.1"
    return _tones(tones, effects, (0.5, 0.3, 0.2))


def _guitar(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    low = 196 * ratio * rng.uniform(0.995, 1.005)
    return _tones([f"{seconds} pluck {low:.2f}"], f"fade h 0.002 {seconds} {seconds * 0.6:.3f}")


def _bird(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    low, chirp = 2500 * ratio, 0.075
    again = max(1, round(seconds / (chirp + 0.02)) - 1)
    up = rng.uniform(1.4, 1.7)
    return _tones([f"{chirp} sine {low:.0f}/{low * up:.0f}"], f"fade t 0.01 {chirp} 0.015 pad 0 0.02 repeat {again}")


def _notes(steps: Sequence[int]) -> Callable[[float, float, np.random.Generator], Wave]:
    """Plucked notes one after another, at these semitones above the first."""

    def make(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
        low, each = 262 * ratio, seconds / len(steps)
        kind = ("pluck", "triangle")[int(rng.integers(2))]
        tones = [f"{kind} {low * 2 ** (step / 12):.2f}" for step in steps]
        fade, delays = f"fade h 0.005 {each:.4f} 0.06", " ".join(f"{i * each:.4f}" for i in range(len(steps)))
        return _tones([f"{each:.4f} {tones[0]}", *tones[1:]], "gain -1", [0.8] * len(steps), f"{fade} delay {delays}")

    return make


def _chord(ratio: float, seconds: float, rng: np.random.Generator) -> Wave:
    low = 262 * ratio
    kind = ("pluck", "triangle")[int(rng.integers(2))]
    third = 3 + int(rng.integers(2))  # minor or major
    tones = [f"{kind} {low * 2 ** (step / 12):.2f}" for step in (0, third, 7, 12)]
    return _tones([f"{seconds} {tones[0]}", *tones[1:]], f"fade h 0.01 {seconds} {seconds * 0.4:.3f}")


_RISING = (0, 2, 4, 5, 7)
_RECIPES: dict[str, Callable[[float, float, np.random.Generator], Wave]] = {
    "bell": _bell,
    "alarm": _alarm,
    "whistle": _whistle,
    "horn": _horn,
    "drum": _drum,
    "wind": _wind,
    "rain": _rain,
    "engine": _engine,
    "guitar": _guitar,
    "bird": _bird,
    "rising notes": _notes(_RISING),
    "falling notes": _notes(_RISING[::-1]),
    "chord": _chord,
}

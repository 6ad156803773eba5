"""Speech from text by flite, and by espeak-ng for a harder test; and the programs that everything is made with.

Knows: sentences, voices, speaking rates, command lines. Does not know: the grammar, clips, rows.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broadsheet.console import InputError
from broadsheet.hear.base import SAMPLE_RATE

Wave = NDArray[np.float32]

VOICES = {"slt": "a woman", "rms": "a man"}  # flite's, and who speaks
HARD_VOICES = {"en-us+f3": "a woman", "en-us": "a man"}  # espeak-ng's
RATES = (0.85, 1.10)  # flite's duration_stretch in training: larger is slower
SLOW = 1.20  # never in training
HARD_SPEEDS = (130, 170)  # espeak-ng's words per minute
PACKAGES = "Debian: apt-get install flite sox espeak-ng"
VERSIONS = {
    "flite": ("--version", r"version: (\S+)"),
    "sox": ("--version", r"v(\d[\w.]*)"),
    "espeak-ng": ("--version", r": (\d[\w.]*)"),
}


def speak(text: str, voice: str, rate: float) -> Wave:
    """`text` as flite says it, without the silence around it, (samples,) float32.

    Args:
        voice: one of `VOICES`.
        rate: `duration_stretch`; 1.2 takes a fifth longer than 1.

    Raises:
        InputError: flite is missing, or has not this voice.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "said.wav")
        call(["flite", "--setf", f"duration_stretch={rate:g}", "-voice", voice, "-t", text, "-o", str(path)])
        if not path.is_file():
            raise InputError(f"flite made no speech with voice {voice!r}; install one that has it ({PACKAGES})")
        return trimmed(_read(path))


def speak_otherwise(text: str, voice: str, words_per_minute: int) -> Wave:
    """`text` as espeak-ng says it, at 16 kHz, without the silence around it, (samples,) float32.

    Its breath is noise from the clock unless `-D` is given.

    Raises:
        InputError: espeak-ng or sox is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "said.wav")
        call(["espeak-ng", "-D", "-v", voice, "-s", str(words_per_minute), "-w", str(path), text])
        if not path.is_file():
            raise InputError(f"espeak-ng made no speech with voice {voice!r}; install it anew ({PACKAGES})")
        return trimmed(sox(["-G", str(path)], ["rate", str(SAMPLE_RATE)]))


def sox(source: Sequence[str], effects: Sequence[str], wave: Wave | None = None) -> Wave:
    """What sox makes of a source, (samples,) float32 at 16 kHz.

    Repeatable: `-R` seeds sox's own noise and dither, always alike; other noise comes in through `wave`.

    Args:
        source: its arguments that name the input.
        effects: and what is done to it; the result must have one channel.
        wave: the input where `source` is `-`, as raw float32.
    """
    made = call(
        ["sox", "-R", "-V1", *source, "-t", "f32", "-", *effects],
        None if wave is None else wave.astype("<f4").tobytes(),
    )
    return np.frombuffer(made, "<f4").astype(np.float32)


def call(command: Sequence[str], fed: bytes | None = None) -> bytes:
    """stdout of a program.

    Raises:
        InputError: it is missing or fails.
    """
    try:
        done = subprocess.run(command, input=fed or b"", capture_output=True, check=False, env=_environment())
    except FileNotFoundError:
        raise missing([command[0]]) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise InputError(
            f"{command[0]} ended with status {done.returncode}: {said[-1] if said else 'no message'}; "
            f"expected the one of Debian ({PACKAGES})"
        )
    return done.stdout


def require(programs: Sequence[str]) -> None:
    """Every program is there, and so are flite's voices.

    Raises:
        InputError: one line that names all that are not.
    """
    gone = [program for program in programs if shutil.which(program) is None]
    if gone:
        raise missing(gone)
    said = call(["flite", "-lv"]).decode(errors="replace") if "flite" in programs else " ".join(VOICES)
    if silent := [voice for voice in VOICES if voice not in said.split()]:  # it would speak in another, unasked
        raise InputError(
            f"flite has no voice {', '.join(silent)}; it says {said.strip()!r}; install one that has ({PACKAGES})"
        )


def missing(programs: Sequence[str]) -> InputError:
    """The error that names the programs that are not there, and their packages."""
    return InputError(
        f"found no {', no '.join(programs)}; speech and sounds are made by flite, sox and espeak-ng: install them "
        f"({PACKAGES})"
    )


def version(program: str) -> str:
    """What a program says its version is; "unknown" where it says it otherwise."""
    option, pattern = VERSIONS[program]
    done = subprocess.run([program, option], capture_output=True, text=True, check=False, env=_environment())
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"


def trimmed(samples: Wave, threshold: float = 0.015, margin: float = 0.02) -> Wave:
    """Without what is quieter than `threshold` of the peak at either end, but for `margin` seconds."""
    loud = np.flatnonzero(np.abs(samples) > threshold * np.abs(samples).max(initial=0))
    if not len(loud):
        return samples[:0]
    around = round(margin * SAMPLE_RATE)
    return samples[max(0, loud[0] - around) : loud[-1] + 1 + around].copy()


def _read(path: Path) -> Wave:
    with wave.open(io.BytesIO(path.read_bytes())) as file:
        rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
        frames = file.readframes(file.getnframes())
    if (rate, channels, width) != (SAMPLE_RATE, 1, 2):
        raise InputError(
            f"flite made speech of {rate} Hz, {channels} channels, {8 * width} bits; "
            f"expected 16 kHz mono 16 bits: use its voices {' and '.join(VOICES)} ({PACKAGES})"
        )
    return (np.frombuffer(frames, "<i2") / 32768).astype(np.float32)


def _environment() -> dict[str, str]:
    """The reader's, but for what changes what a program makes or says."""
    kept = {name: value for name, value in os.environ.items() if name not in ("SOX_OPTS", "LANG", "LANGUAGE")}
    return {**kept, "LC_ALL": "C"}

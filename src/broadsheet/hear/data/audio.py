"""Waves: audio files and arrays of any rate, width and number of channels, as 16 kHz mono, and how clips are cut.

Knows file formats (through soundfile) and resampling (through soxr). Does not know encoders. A file of any length is
read in blocks, so that cutting an hour into pieces needs the memory of one piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from broadsheet.console import InputError, say
from broadsheet.hear.base import SAMPLE_RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

PIECE_SECONDS = 30.0
_GAP, _SHORTEST = SAMPLE_RATE // 10, SAMPLE_RATE  # samples: between joined clips; of any clip
_BLOCK_SECONDS = 10
_TAIL_SECONDS = 0.1  # read beyond `max_seconds`, so that the cut does not show in the resampled end
_RATES = range(1_000, 1_000_001)
_LOUDEST = 16.0  # floats beyond are integers that nobody scaled
_REMEDY = "convert it to WAV first: ffmpeg -i FILE -ac 1 -ar 16000 OUT.wav"


def read(path: str | Path, *, max_seconds: float | None = None) -> Tensor:
    """An audio file as a wave: WAV, FLAC, OGG, MP3 and what else libsndfile reads, of any rate and sample width.

    Args:
        path: the file.
        max_seconds: only the beginning is read; the rest is not reported.

    Returns:
        (samples,) float32 at 16 kHz in [-1, 1]: the first channel, as the paper takes it.

    Raises:
        InputError: no such file, it is not audio, is damaged, holds no samples, or NaN or infinite ones.

    Example:
        read("speech.mp3", max_seconds=30)
    """
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"got max_seconds={max_seconds}; expected a positive number of seconds")
    wave = np.concatenate(list(_blocks(Path(path).expanduser(), max_seconds)))
    return torch.from_numpy(wave if max_seconds is None else wave[: max(1, round(max_seconds * SAMPLE_RATE))])


def read_pieces(path: str | Path, seconds: float = PIECE_SECONDS) -> Iterator[Tensor]:
    """`pieces(read(path), seconds)`, one after the other: the file is never held whole.

    Raises:
        InputError: as `read`; later pieces may be damaged where the first were not.
    """
    size = _piece_samples(seconds)
    rest = np.empty(0, np.float32)
    for block in _blocks(Path(path).expanduser(), None):
        rest = np.concatenate([rest, block])
        while len(rest) > size:  # not >=: there is always a last piece left
            yield torch.from_numpy(rest[:size].copy())
            rest = rest[size:]
    yield _filled(torch.from_numpy(rest), min(size, _SHORTEST))


def from_array(samples: Any, sample_rate: int) -> Tensor:
    """Samples in memory as a wave.

    Args:
        samples: (samples,) or (samples, channels), an array or tensor. Floats are taken to lie in [-1, 1], integers
            to fill their type (unsigned ones around its middle).
        sample_rate: samples per second.

    Returns:
        (samples,) float32 at 16 kHz in [-1, 1]: the first channel.

    Raises:
        InputError: another shape or type, no samples, NaN or infinite ones, or an impossible rate.

    Example:
        from_array(dataset[0]["audio"]["array"], dataset[0]["audio"]["sampling_rate"])
    """
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        samples = samples.float().numpy() if samples.is_floating_point() else samples.numpy()
    array = np.asarray(samples)
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > array.shape[0]):
        hint = "; transpose it" if array.ndim == 2 else ""
        raise InputError(f"got audio of shape {array.shape}; expected (samples,) or (samples, channels){hint}")
    if not array.size:
        raise InputError("got audio without samples; expected at least one")
    _check_rate("audio", sample_rate)
    first = _scaled(array if array.ndim == 1 else array[:, 0])
    wave = np.concatenate(list(_at_rate(_clipped([first], "audio"), sample_rate)))
    return torch.from_numpy(wave)


def prepare(waves: Sequence[Tensor]) -> Tensor:
    """Several clips joined to one, as the paper prepares pairs: at least 1 s, cut at 30 s.

    Args:
        waves: each (samples,) at 16 kHz; 0.1 s of silence goes between them.

    Returns:
        (samples,), 16,000 to 480,000.

    Source: arXiv:2310.13289; pairs and lengths as in the authors' code bytedance/SALMONN.
    """
    if not waves:
        raise InputError("got no waves to join; expected at least one")
    gap = waves[0].new_zeros(_GAP)
    # clip, 1,600 zeros, clip, …
    joined = torch.cat([part for wave in waves for part in (gap, wave)][1:])
    return _filled(joined, _SHORTEST)[: _piece_samples(PIECE_SECONDS)]


def pieces(wave: Tensor, seconds: float = PIECE_SECONDS) -> list[Tensor]:
    """A wave in consecutive pieces of `seconds`, the last one shorter, but filled up with silence to 1 s.

    Args:
        wave: (samples,) at 16 kHz, at least one sample.
        seconds: of a piece.
    """
    if wave.ndim != 1 or not len(wave):
        raise InputError(f"got a wave of shape {tuple(wave.shape)}; expected (samples,), at least one sample")
    size = _piece_samples(seconds)
    *whole, last = wave.split(size)
    return [*whole, _filled(last, min(size, _SHORTEST))]


def _filled(wave: Tensor, samples: int) -> Tensor:
    return torch.nn.functional.pad(wave, (0, max(0, samples - len(wave))))


def _piece_samples(seconds: float) -> int:
    samples = round(seconds * SAMPLE_RATE)
    if samples < 1:
        raise InputError(f"got pieces of {seconds} s; expected a positive number of seconds")
    return samples


def _blocks(path: Path, max_seconds: float | None) -> Iterator[Samples]:
    """The file's first channel at 16 kHz, checked, in blocks, at least one sample in all."""
    with _opened(path) as file:
        rate = file.samplerate
        _check_rate(str(path), rate)
        frames = None if max_seconds is None else math.ceil((max_seconds + _TAIL_SECONDS) * rate)
        source: Iterable[Samples] = _first_channel(file, frames)
        if file.subtype in ("FLOAT", "DOUBLE"):
            source = _clipped(source, str(path))
        empty = True
        for block in _at_rate(source, rate):
            empty = empty and not len(block)
            yield block
    if empty:
        raise InputError(f"{path} holds no samples; expected audio of any length")


_UNKNOWN = 0x7FFF0000  # bytes of sound in a header, from which it stands for none that is known


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise _missing(error, "soundfile", "reading audio files") from None
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}; expected an audio file (WAV, FLAC, OGG, MP3)")
    if _cut_off(path):
        raise InputError(f"{path} is cut off: it has less sound than its header says; get the file again")
    # soundfile asks for the details of a headerless file with a TypeError
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError):
        raise InputError(f"{path} is not audio that can be read (WAV, FLAC, OGG, MP3); {_REMEDY}") from None
    with file:
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise InputError(f"{path} is damaged ({error}); get the file again, or {_REMEDY}") from None


def _cut_off(path: Path) -> bool:
    """Whether a WAV file ends before its samples do, of which libsndfile says nothing.

    A program that writes to a pipe cannot know the size beforehand, and gives one of 2 GB or more.
    """
    with path.open("rb") as file:
        begins = file.read(12)
        if begins[:4] != b"RIFF" or begins[8:] != b"WAVE":
            return False
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                return size < _UNKNOWN and file.tell() + size > path.stat().st_size
            file.seek(size + size % 2, 1)
    return False


def _first_channel(file: Any, frames: int | None) -> Iterator[Samples]:
    size = _BLOCK_SECONDS * file.samplerate
    left = math.inf if frames is None else frames
    while left > 0:
        block = file.read(min(size, left) if frames is not None else size, dtype="float32", always_2d=True)
        if not len(block):
            return
        left -= len(block)
        yield np.ascontiguousarray(block[:, 0])


def _scaled(samples: NDArray[Any]) -> Samples:
    """One channel of any type as float32: integers divided by what fills their type."""
    kind = samples.dtype.kind
    if kind == "f":
        return samples.astype(np.float32)
    if kind not in "iu":
        raise InputError(f"got samples of type {samples.dtype}; expected floats or integers")
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return ((samples.astype(np.float64) - (half if kind == "u" else 0)) / half).astype(np.float32)


def _clipped(blocks: Iterable[Samples], what: str) -> Iterator[Samples]:
    """Float samples clipped to [-1, 1], which is reported; NaN and infinite ones are refused."""
    blocks = iter(blocks)
    seen = beyond = 0
    for block in blocks:
        if not np.isfinite(block).all():
            odd = 0
            for each in (block, *blocks):
                odd, seen = odd + int(np.count_nonzero(~np.isfinite(each))), seen + len(each)
            raise InputError(f"{what}: {odd:,} of {seen:,} samples are NaN or infinite; make the audio anew")
        seen += len(block)
        peak = np.abs(block).max(initial=0)
        if peak > _LOUDEST:
            raise InputError(
                f"{what}: float samples up to {peak:,.0f}; expected [-1, 1]: divide by 32768 if they are 16-bit values"
            )
        if peak > 1:
            beyond += int(np.count_nonzero(np.abs(block) > 1))
            block = block.clip(-1, 1)
        yield block
    if beyond:
        say(f"{what}: {beyond:,} samples beyond ±1 are clipped")


def _at_rate(blocks: Iterable[Samples], rate: int) -> Iterator[Samples]:
    """Blocks at 16 kHz. Resamplers and decoders of MP3 ring a little around loud edges: that is clipped quietly."""
    if rate == SAMPLE_RATE:
        yield from (block.clip(-1, 1) for block in blocks)
        return
    try:
        import soxr
    except ModuleNotFoundError as error:
        raise _missing(error, "soxr", f"resampling from {rate:,} Hz") from None
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block).clip(-1, 1)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True).clip(-1, 1)


def _check_rate(what: str, rate: int) -> None:
    if rate not in _RATES:
        raise InputError(f"{what} has {rate} samples per second; expected {_RATES[0]:,} to {_RATES[-1]:,}")


def _missing(error: ModuleNotFoundError, package: str, purpose: str) -> Exception:
    if error.name != package:
        return error
    return InputError(f"{purpose} needs {package}: pip install -e '.[hear]'")

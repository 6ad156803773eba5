"""Kaldi's log-mel filter bank of a whole wave at once: 25 ms windows every 10 ms, 128 mel bins, no dither.

Knows: samples at int16 scale. Does not know: files, models, what a model does with the numbers.

The steps and their constants are those of Kaldi's `compute-fbank-feats`, as torchaudio's `compliance.kaldi.fbank` runs
it by default: only whole windows (edges snipped), mean removed from each, pre-emphasis 0.97, Povey's window, power
spectrum of 512 points, triangles evenly spaced in mel from 20 Hz to 8 kHz, natural logarithm floored at float32's
epsilon. transformers' `spectrogram` computes the same, one window at a time.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
from torch import Tensor

MEL_BINS = 128
_WINDOW_MS, _SHIFT_MS = 25, 10
_SAMPLE_RATE = 16_000
_FFT = 512
_PREEMPHASIS = 0.97
_FLOOR = torch.finfo(torch.float32).eps


def fbank_frames(samples: int, sample_rate: int = _SAMPLE_RATE) -> int:
    """Whole windows in `samples`: 98 for one second, 2998 for thirty."""
    window, shift = sample_rate * _WINDOW_MS // 1000, sample_rate * _SHIFT_MS // 1000
    return 1 + (samples - window) // shift if samples >= window else 0


def fbank_samples(frames: int, sample_rate: int = _SAMPLE_RATE) -> int:
    """The fewest samples that give `frames` (at least 1)."""
    return (sample_rate * _WINDOW_MS + (frames - 1) * sample_rate * _SHIFT_MS) // 1000


def fbank(wave: Tensor) -> Tensor:
    """Log-mel energies of a wave.

    Computed in float64 where the device has it: in float32 the spectrum's rounding error, which a loud tone spreads
    over all bins, would drown the quiet ones.

    Args:
        wave: (samples,) at 16 kHz, scaled to int16 (in [-32768, 32767]), of any float dtype.

    Returns:
        (frames, 128) float32 on the wave's device.
    """
    precise = torch.float32 if wave.device.type == "mps" else torch.float64
    if not fbank_frames(len(wave)):
        return wave.new_zeros(0, MEL_BINS, dtype=torch.float32)
    window, filters = (constant.to(wave.device, precise) for constant in _constants())
    frames = wave.to(precise).unfold(0, len(window), _SAMPLE_RATE * _SHIFT_MS // 1000)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    # A window has no sample before its first: Kaldi takes the first itself.
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=-1)
    spectrum = torch.fft.rfft((frames - _PREEMPHASIS * before) * window, n=_FFT)
    power = spectrum.real.square() + spectrum.imag.square()
    return (power @ filters).clamp(min=_FLOOR).log().float()


@lru_cache(maxsize=1)
def _constants() -> tuple[Tensor, Tensor]:
    """Povey's window (400,), and the mel triangles (257, 128), in float64."""
    from transformers.audio_utils import mel_filter_bank, window_function

    with warnings.catch_warnings():
        # The lowest triangles are narrower than the spectrum's steps: some hold none of them, in Kaldi too.
        warnings.simplefilter("ignore", UserWarning)
        filters = mel_filter_bank(
            num_frequency_bins=_FFT // 2 + 1,
            num_mel_filters=MEL_BINS,
            min_frequency=20.0,
            max_frequency=_SAMPLE_RATE / 2,
            sampling_rate=_SAMPLE_RATE,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
    window = window_function(_SAMPLE_RATE * _WINDOW_MS // 1000, "povey", periodic=False)
    return torch.from_numpy(window), torch.from_numpy(filters)

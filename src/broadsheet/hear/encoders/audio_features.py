"""`AudioFeatures`: the frames of several encoders for each clip, and the cache on disk that makes them cheap.

Knows: encoders by the socket, clips by content. Does not know: language models. A clip's frames are in one `.npy` file
per encoder, under the encoder's identity and the SHA-256 of the clip, so that a changed file or other weights are
never mistaken for it, and a cached clip need not even be decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from broadsheet import cache
from broadsheet.console import InputError, progress, say
from broadsheet.hear.base import SAMPLE_RATE, AudioEncoder
from broadsheet.hear.data import audio as waves
from broadsheet.models.wheels import disk_errors

_GROUP = 32  # pieces in memory at once
_MANY = 64  # clips from which on a bar is shown
_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}


class _Piece(NamedTuple):
    key: str
    wave: Tensor
    last: bool  # of its clip


class AudioFeatures:
    """Several encoders for the same clips, with their frames cached on disk.

    Args:
        encoders: in the order of their frames.
        folder: of the cached frames; by default `features` in the cache folder.
        dtype: of the cached frames, "float32" or "float16" (half the disk; frames are rounded, cached or not).
        keep: False to neither read nor write cached frames.

    Attributes:
        encoders, folder, dtype, keep: as given.
        piece_seconds: length of the pieces that clips are cut into, see `piece_seconds`.

    Example:
        audio_features = AudioFeatures([encoder("whisper:tiny.en"), encoder("speech-embedding")])
        [[speech, sound]] = audio_features.features("clip.wav")      # one piece: (1500, 384) and (frames, 96)
    """

    def __init__(
        self, encoders: Sequence[AudioEncoder], folder: Path | None = None, *, dtype: str = "float32", keep: bool = True
    ) -> None:
        if not encoders:
            raise InputError("got no audio encoders; expected one or more, such as whisper:tiny.en")
        if dtype not in _DTYPES:
            raise InputError(f"got dtype {dtype!r} for frames; expected one of {', '.join(_DTYPES)}")
        self.encoders, self.dtype, self.keep = list(encoders), dtype, keep
        self.folder = cache.home() / "features" if folder is None and keep else folder
        self.piece_seconds = piece_seconds([encoder.settings() for encoder in encoders])

    def features(self, audio: str | Path | Tensor) -> list[list[Tensor]]:
        """Frames of one clip.

        Args:
            audio: a file, or a wave (samples,) float32 at 16 kHz.

        Returns:
            Per piece, per encoder: (frames, width) float32 on the CPU.

        Raises:
            InputError: the audio cannot be read (see `audio.read`), or the cache cannot be written.
        """
        return self.features_all([audio])[0]

    def features_all(self, audios: Sequence[str | Path | Tensor]) -> list[list[list[Tensor]]]:
        """Frames of several clips, as from `features`; those not cached are encoded in batches, each clip once.

        A run that is stopped loses at most the clips of one batch.
        """
        keys = [_key(audio) for audio in audios]
        clips = dict(zip(keys, audios, strict=True))
        found = {key: [self._cached(encoder, key) for encoder in self.encoders] for key in clips}
        missing = {key: clip for key, clip in clips.items() if any(frames is None for frames in found[key])}
        if missing:
            self._encode(missing, found)
        return [self._by_piece(found[key]) for key in keys]

    def _encode(self, clips: Mapping[str, Any], found: dict[str, list[Tensor | None]]) -> None:
        """Fill the gaps of `found`, and keep what filled them."""
        parts: dict[tuple[str, int], list[Tensor]] = {}
        stream = self._pieces(clips)
        showing = progress("encoding clips", total=len(clips)) if len(clips) > _MANY else nullcontext()
        with showing as bar:
            while group := list(islice(stream, _GROUP)):
                for place, encoder in enumerate(self.encoders):
                    wanted = [piece for piece in group if found[piece.key][place] is None]
                    for piece, frames in zip(wanted, self._run(encoder, wanted), strict=True):
                        parts.setdefault((piece.key, place), []).append(frames)
                for key in (piece.key for piece in group if piece.last):
                    for place, encoder in enumerate(self.encoders):
                        if found[key][place] is None:
                            found[key][place] = self._kept(encoder, key, torch.cat(parts.pop((key, place))))
                    if bar is not None:
                        bar.advance(bar.task_ids[0])

    def _pieces(self, clips: Mapping[str, Any]) -> Iterator[_Piece]:
        for key, clip in clips.items():
            if isinstance(clip, str | Path):
                pieces = waves.read_pieces(clip, self.piece_seconds)
            else:
                pieces = iter(waves.pieces(waves.from_array(clip, SAMPLE_RATE), self.piece_seconds))
            piece = next(pieces)
            for following in pieces:
                yield _Piece(key, piece, last=False)
                piece = following
            yield _Piece(key, piece, last=True)

    def _run(self, encoder: AudioEncoder, pieces: Sequence[_Piece]) -> list[Tensor]:
        frames = [each.float().cpu() for each in encoder.encode_all([piece.wave for piece in pieces])]
        settings = encoder.settings()
        for piece, each in zip(pieces, frames, strict=True):
            # Cached frames are split into pieces by this number.
            promised = encoder.frames_of(settings, len(piece.wave))
            if tuple(each.shape) != (promised, encoder.width):
                raise RuntimeError(
                    f"{encoder.kind} gave {tuple(each.shape)} for {len(piece.wave)} samples, not"
                    f" {(promised, encoder.width)}, which it promises"
                )
        return frames

    def _by_piece(self, found: Sequence[Tensor | None]) -> list[list[Tensor]]:
        samples = round(self.piece_seconds * SAMPLE_RATE)
        streams = [
            frames.split(encoder.frames_of(encoder.settings(), samples))
            for encoder, frames in zip(self.encoders, found, strict=True)
            if frames is not None
        ]
        return [list(piece) for piece in zip(*streams, strict=True)]

    def _file(self, encoder: AudioEncoder, key: str) -> Path:
        # Other pieces or another rounding are other frames.
        shape = "" if self.piece_seconds == waves.PIECE_SECONDS else f"-{self.piece_seconds:g}s"
        rounding = "" if self.dtype == "float32" else f"-{self.dtype}"
        assert self.folder is not None
        return self.folder / f"{encoder.identity}{shape}{rounding}" / key[:2] / f"{key}.npy"

    def _cached(self, encoder: AudioEncoder, key: str) -> Tensor | None:
        if not self.keep:
            return None
        path = self._file(encoder, key)
        try:
            array = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            say(f"{path} is damaged ({str(error).splitlines()[0]}): computing it again")
            return None
        if array.dtype != _DTYPES[self.dtype] or array.ndim != 2 or array.shape[1] != encoder.width or not len(array):
            say(f"{path} is damaged ({array.dtype} {array.shape} in it): computing it again")
            return None
        return torch.from_numpy(array).float()

    def _kept(self, encoder: AudioEncoder, key: str, frames: Tensor) -> Tensor:
        rounded = frames.numpy().astype(_DTYPES[self.dtype])
        if self.keep:
            path = self._file(encoder, key)
            with disk_errors(path.parent), cache.atomic_write(path, "wb") as file:
                np.save(file, rounded, allow_pickle=False)
        return torch.from_numpy(rounded).float()


def piece_seconds(settings: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of the pieces that encoders of these settings take: 30, or the shortest of their contexts."""
    contexts = [float(each["context_seconds"]) for each in settings if "context_seconds" in each]
    return min([waves.PIECE_SECONDS, *contexts])


def _key(audio: Any) -> str:
    """The key of a clip's frames: SHA-256 of the file, or of the samples."""
    if isinstance(audio, str | Path):
        path = Path(audio).expanduser()
        try:
            return cache.sha256_file(path)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; expected an audio file") from None
    samples = waves.from_array(audio, SAMPLE_RATE).numpy()
    return hashlib.sha256(b"wave" + np.ascontiguousarray(samples).tobytes()).hexdigest()

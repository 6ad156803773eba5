"""faster-whisper transcribes: items are paths of audio files, output `text`."""

from __future__ import annotations

from typing import Any


def load(model: str, threads: int, compute_type: str = "int8", beam_size: int = 1) -> Any:
    """A Whisper on CTranslate2.

    Args:
        model: a folder that holds `model.bin`, `config.json`, `tokenizer.json` and `vocabulary.json`.
        threads: of the CPU.
        compute_type: `int8`, `float32`, …: what CTranslate2 computes in.
        beam_size: 1 decodes greedily.
    """
    from faster_whisper import WhisperModel

    whisper = WhisperModel(model, device="cpu", compute_type=compute_type, cpu_threads=threads, local_files_only=True)

    def transcribe(path: str) -> str:
        segments, _ = whisper.transcribe(path, beam_size=beam_size, without_timestamps=True)
        return " ".join(segment.text.strip() for segment in segments)

    return lambda items: {"text": [transcribe(path) for path in items]}

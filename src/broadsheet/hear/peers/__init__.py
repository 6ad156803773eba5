"""Peers of the stage: libraries that transcribe, each in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from broadsheet.trial.outside.peers import Peer

PEERS = (
    Peer(
        "faster_whisper",
        "hear",
        "transcribes with Whisper on CTranslate2, for the cascade",
        "MIT",
        "faster_whisper",
        download_mb=135,
        disk_mb=470,
        folder=Path(__file__).parent,
        options={"compute_type": "int8", "beam_size": 1},
    ),
)

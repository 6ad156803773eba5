"""Peers of the stage: libraries that read long texts, each in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from broadsheet.trial.outside.peers import Peer

PEERS = (
    Peer(
        "kvpress",
        "attend",
        "compresses the key-value cache, by some forty published methods",
        "Apache-2.0",
        "kvpress",
        download_mb=290,
        disk_mb=1300,
        folder=Path(__file__).parent,
        options={"press": "SnapKVPress", "ratio": 0.5},
    ),
)

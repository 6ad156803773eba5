"""Peers of the stage: libraries that write or draft, each in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from broadsheet.trial.peers import Peer

_FOLDER = Path(__file__).parent

PEERS = (
    Peer(
        "draftretriever",
        "decode",
        "drafts from a table of tri-grams by tree search: the compiled package of ADED's authors, after REST's",
        "MIT",
        "draftretriever",
        download_mb=1,
        disk_mb=2,
        folder=_FOLDER,
        options={"draft_tokens": 64},
    ),
    Peer(
        "xllamacpp",
        "decode",
        "llama.cpp in one process, on the GGUF file as it is, quantized: how fast greedy decoding can be",
        "MIT",
        "xllamacpp",
        download_mb=30,
        disk_mb=110,
        folder=_FOLDER,
    ),
)

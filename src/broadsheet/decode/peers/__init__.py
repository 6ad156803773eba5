"""Peers of the stage: libraries that write or draft, each in an environment of its own."""

from __future__ import annotations

from pathlib import Path

from broadsheet.trial.outside.peers import Peer

_FOLDER = Path(__file__).parent

PEERS = (
    Peer(
        "draftretriever",
        "decode",
        "drafts from a table of tri-grams: the package of ADED's authors",
        "MIT",
        "draftretriever",
        download_mb=1,
        disk_mb=2,
        folder=_FOLDER,
        options={"draft_tokens": 64},
        kind="drafts",
    ),
    Peer(
        "xllamacpp",
        "decode",
        "llama.cpp decodes greedily from the GGUF file as it is, quantized",
        "MIT",
        "xllamacpp",
        download_mb=35,
        disk_mb=110,
        folder=_FOLDER,
    ),
)

"""Search: a corpus embedded into a folder of vectors, texts, a graph and keywords, searched without a server."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broadsheet.search.encoding.streaming import encode_corpus
    from broadsheet.search.fusion import reciprocal_rank_fusion
    from broadsheet.search.searching import Check, Hit, Mode
    from broadsheet.search.vectorindex import Change, VectorIndex

_HOMES = {
    "encoding.streaming": ("encode_corpus",),
    "fusion": ("reciprocal_rank_fusion",),
    "searching": ("Check", "Hit", "Mode"),
    "vectorindex": ("Change", "VectorIndex"),
}

__all__ = ["Change", "Check", "Hit", "Mode", "VectorIndex", "encode_corpus", "reciprocal_rank_fusion"]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""An embedded vector index: a folder of vectors, texts, a graph and keywords, searched without a server."""

from broadsheet.embed.index.fusion import reciprocal_rank_fusion
from broadsheet.embed.index.searching import Check, Hit, Mode
from broadsheet.embed.index.vectorindex import Change, VectorIndex

__all__ = ["Change", "Check", "Hit", "Mode", "VectorIndex", "reciprocal_rank_fusion"]

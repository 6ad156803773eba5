"""Curate: which documents a model learns from, and in which order. Every method is a datatrove pipeline step.

The papers' own classes (`broadsheet papers --stage curate`) are found in their files; the parts are listed here.
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__,
    {
        "base": ("Step",),
        "contexts": ("Contexts",),
        "files": ("CorpusReader", "ShardReader", "ShardWriter", "Examples"),
        "in_context_pretraining": ("DocumentOrder",),
        "minhash": ("FirstOfCluster", "Signatures"),
        "neighbours": ("NeighbourGraph", "nearest"),
        "ordering": ("OnPath", "OrderDocuments", "PathReader"),
        "running": ("Ranks",),
        "vectors": ("DocumentVectors", "HiddenStates", "Sentences", "TfIdf"),
        "words": ("Words",),
    },
)
__all__ = _exports.names
__getattr__ = _exports.get

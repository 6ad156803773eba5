"""Curate: which documents a model learns from, and in which order. Every method is a datatrove pipeline step.

The papers' own classes (`broadsheet papers --stage curate`) are found in their files; the parts are listed here.
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__,
    {
        "base": ("Step",),
        "files": ("CorpusReader", "ShardReader", "ShardWriter", "Examples"),
        "fineweb2": ("AdaptedFilters", "Confident", "Finish", "Identify", "LanguageThresholds"),
        "languages.rehydration": ("Rehydrate",),
        "languages.wordlists": ("PrecisionFilter",),
        "lid": ("Languages",),
        "minhash": ("FirstOfCluster", "NearDuplicates", "Signatures"),
        "readable": ("Readable",),
        "running": ("Ranks",),
        "tables.asking": ("Answer", "Answers"),
        "tables.messages": ("Shot",),
        "tables.steps": ("DropErrors", "FillGaps"),
        "words": ("Words",),
    },
)
__all__ = _exports.names
__getattr__ = _exports.get

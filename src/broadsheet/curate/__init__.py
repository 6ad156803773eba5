"""Curate: which documents a model learns from, and in which order. Every method is a datatrove pipeline step.

The papers' own classes (`broadsheet papers --stage curate`) are found in their files; the parts are listed here.
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__,
    {
        "base": ("Step",),
        "cards.overlap": ("BenchmarkOverlap",),
        "cards.records": ("CatalogueRecord", "catalogue"),
        "files": ("CorpusReader", "ShardReader", "ShardWriter", "Examples"),
        "fineweb2": ("AdaptedFilters", "Confident", "Finish", "Identify", "LanguageThresholds"),
        "in_context_pretraining": ("DocumentOrder",),
        "languages.gopher": ("GopherQuality", "GopherRepetition"),
        "languages.lid": ("Languages",),
        "languages.rehydration": ("Rehydrate",),
        "languages.wordlists": ("PrecisionFilter",),
        "minhash": ("FirstOfCluster", "NearDuplicates", "Signatures"),
        "orders.contexts": ("Contexts",),
        "orders.neighbours": ("NeighbourGraph", "nearest"),
        "orders.steps": ("OnPath", "OrderDocuments", "PathReader"),
        "orders.vectors": ("DocumentVectors", "HiddenStates", "Sentences", "TfIdf"),
        "periods.change": ("ChangeReport", "change_report"),
        "periods.dating": ("AttributeDate",),
        "periods.models": ("TwoTeachers",),
        "periods.reading": ("PeriodModel",),
        "periods.slices": ("SliceByDate",),
        "periods.splits": ("WordBudgetSplit",),
        "readable": ("Readable",),
        "running": ("Ranks",),
        "tables.asking": ("TableAnswer", "TableAnswers"),
        "tables.messages": ("Shot",),
        "tables.steps": ("DropErrors", "FillGaps"),
        "targets.confidence": ("NLI", "TokenF1"),
        "targets.exchanges": ("Exchange", "ExchangeReader"),
        "targets.steps": ("ClearFilter", "ClearScores"),
        "words": ("Words",),
    },
)
__all__ = _exports.names
__getattr__ = _exports.get

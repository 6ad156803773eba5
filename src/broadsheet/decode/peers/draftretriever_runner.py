"""Drafts from the authors' table: items `{"context": [last token ids]}`, output `paths`: of each item token paths below it.

The model that verifies a draft stays in the trial's process.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any


def load(texts: str, vocabulary: int, draft_tokens: int = 64) -> Any:
    """The authors' table of tri-grams over tokenized texts.

    Args:
        texts: a file with one JSON list of token ids a line.
        vocabulary: how many tokens there are.
        draft_tokens: of all paths together at most (the authors: 64).
    """
    import draftretriever

    with tempfile.TemporaryDirectory() as folder:
        index = str(Path(folder) / "table.idx")
        writer = draftretriever.Writer(file_path=index, vocab_size=vocabulary)
        with Path(texts).open(encoding="utf-8") as lines:
            for line in lines:
                writer.add_entry(json.loads(line))
        writer.finalize()
        reader = draftretriever.Reader(index_file_path=index)

    def paths(context: list[int]) -> list[list[int]]:
        try:
            found, *_ = reader.search(context, choices=draft_tokens)
        except ValueError:  # what it raises where it knows no successor
            return []
        # paths are padded to one length
        return [[token for token in path if 0 <= token < vocabulary] for path in found]

    return lambda items: {"paths": [paths(item["context"]) for item in items]}

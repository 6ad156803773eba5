"""Drafts from the authors' table: items `{"context": [last token ids]}`, output `paths`, token paths below each.

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
        del writer  # it writes once more when it goes, and ends the process where its file has gone before

    def paths(context: list[int]) -> list[list[int]]:
        if len(context) < 2:  # the package ends the process
            return []
        found = reader.search(context, choices=draft_tokens)[0]
        return [[token for token in path if token >= 0] for path in found]  # padded with -2 to one length

    return lambda items: {"paths": [paths(item["context"]) for item in items]}

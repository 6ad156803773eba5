"""Pairs of sentences with gold scores (semantic textual similarity).

Knows: rows, choices at random. Does not know: embedders, metrics.
"""

from __future__ import annotations

import random
from pathlib import Path

from broadsheet.console import InputError
from broadsheet.data import rows
from broadsheet.data.rows import OnError
from broadsheet.data.schemas import SentencePair


def sts(path: str | Path, n: int = 0, seed: int = 0, on_error: OnError = "stop") -> list[SentencePair]:
    """Sentence pairs with gold scores.

    Args:
        path: any rows of `SentencePair`, as `rows.read` takes them.
        n: a random choice of `n`, in the file's order; 0 for all.
        seed: of the choice.
        on_error: as of `rows.read`.

    Raises:
        InputError: there is no such file, a column is missing, or a line is none, named with its number.

    Example:
        pairs = sts("stsb-dev.tsv", n=500)
    """
    if n < 0:
        raise InputError(f"got {n} sentence pairs; expected 0 (all) or more")
    pairs = rows.read(path, SentencePair, on_error).some("sentence pairs")
    if n and n < len(pairs):
        pairs = [pairs[i] for i in sorted(random.Random(seed).sample(range(len(pairs)), n))]
    return pairs

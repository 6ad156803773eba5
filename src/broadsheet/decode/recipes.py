"""Build a tri-gram table from a corpus: what `broadsheet apply aded` runs.

Knows: documents, a model's tokenizer, the table.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from broadsheet import models
from broadsheet.apply.corpus import Summary
from broadsheet.cache import locked
from broadsheet.console import InputError, say
from broadsheet.data.corpora import Corpus
from broadsheet.decode.table import TrigramTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class BuildTable:
    """Count the tri-grams of a corpus into one file, for `TrigramTable.load` and `ADED`.

    The corpus is read once, at about 10 MB of text a second and core. An interrupted call leaves no file: repeat it.

    Options:
        --keep N: successors kept for each pair of tokens, the most probable ones (12).
        --megabytes N: of text to read at most (0: all).
    """

    method: str = "aded"
    model: str = "default"
    keep: int = 12
    megabytes: float = 0.0

    def run(self, corpus: Corpus, out: Path, *, force: bool = False) -> Summary:
        """Write the table of `corpus` to `out`.

        Raises:
            InputError: an option is out of range, or `out` exists and is not to be replaced.
        """
        if self.keep < 1 or self.megabytes < 0:
            raise InputError(f"got --keep {self.keep} --megabytes {self.megabytes:g}; expected from 1, and from 0")
        if out.is_dir() or (out.exists() and not force):
            raise InputError(f"{out} exists; choose another --out, or --force to replace a file")
        started = time.perf_counter()
        read = 0

        def texts() -> Iterator[str]:
            nonlocal read
            size = 0.0
            for document in corpus:
                yield document.text
                read += 1
                size += len(document.text.encode("utf-8", "replace"))
                if self.megabytes and size >= 1e6 * self.megabytes:
                    return

        with locked(out):
            table = TrigramTable.from_texts(texts(), _tokenizer(self.model), keep=self.keep)
            table.save(out)
        seconds = time.perf_counter() - started
        say(f"{out}: {len(table):,} tri-grams of {read:,} documents, {table.nbytes / 1e6:,.1f} MB, {seconds:.1f} s")
        return Summary(out, read, 0, seconds, True)


def _tokenizer(model: str) -> PreTrainedTokenizerBase:
    return models.load(model).tokenizer

"""Build a tri-gram table from a corpus: what `broadsheet apply aded` runs.

Knows: documents, a model's tokenizer, the table.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from broadsheet import models
from broadsheet.apply.base import Build
from broadsheet.apply.corpus import Summary
from broadsheet.cache import locked
from broadsheet.console import InputError, say
from broadsheet.data.corpora import Corpus
from broadsheet.decode.table import TrigramTable
from broadsheet.options import option


@dataclass
class AdedRecipe(Build):
    """Count the tri-grams of a corpus into one file, for `TrigramTable.load`; `ADED` and `NgramDrafter` draft from it.

    The corpus is read once, at some 10 MB of text a second and core. Of the model only the tokenizer is used. A call
    that is interrupted leaves nothing; repeat it.
    """

    paper: ClassVar[str] = "aded"
    lacks: ClassVar[tuple[str, ...]] = ("seed", "device", "dtype", "method")

    keep: int = option(12, "Successors kept for each pair of tokens, the most probable ones.", least=1)
    megabytes: float | None = option(None, "Of text to read at most; by default all.", least=0)

    def build(self, corpus: Corpus, out: Path, force: bool) -> Summary:
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
                if self.megabytes is not None and size >= 1e6 * self.megabytes:
                    return

        with locked(out):
            table = TrigramTable.from_texts(texts(), models.load(self.model).tokenizer, keep=self.keep)
            table.save(out)
        seconds = time.perf_counter() - started
        say(f"{out}: {len(table):,} tri-grams of {read:,} documents, {table.nbytes / 1e6:,.1f} MB, {seconds:.1f} s")
        return Summary(out, read, 0, seconds, True)

"""The passes over a dataset that a profile is made from: one over its rows, one over signatures.

Knows: steps, ranks, files between them. Does not know: dimensions, cards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from broadsheet.cache import remove_folder
from broadsheet.console import InputError
from broadsheet.curate.cards.overlap import BenchmarkOverlap
from broadsheet.curate.cards.steps import Fingerprints, Measure, RowReader, doublets, tables_of
from broadsheet.curate.files import once
from broadsheet.curate.minhash import Signatures, cluster
from broadsheet.curate.running import Ranks, without_logs


def measured(
    data: str,
    folder: Path,
    *,
    near: bool,
    benchmark: str | None,
    words: int,
    tokenizer: str | None,
    text_field: str,
    tasks: int,
    workers: int,
) -> dict[str, Any]:
    """What a dataset holds: `tables`, `exact`, `shared`, `near`, `overlap`, as of `Profile`.

    Args:
        folder: to work in; a run that was cut off resumes in it.
        others: as of `Profiler` and its `measure`.

    Raises:
        InputError: it cannot be opened, or holds no row that can be read.
    """
    steps: list[Any] = [
        RowReader(data, text_field),
        Measure(folder / "measures", Tokenizer(tokenizer) if tokenizer else None),
        Fingerprints(folder / "fingerprints"),
    ]
    overlap = BenchmarkOverlap(folder / "overlap", benchmark, words, text_field) if benchmark else None
    if overlap:
        overlap.index  # noqa: B018 - what is wrong with it is told before anything is read
        steps.append(overlap)
    signatures = Signatures(folder / "signatures")
    if near:
        steps.append(signatures)
    Ranks(steps, folder / "passes", tasks, workers, "rows").run()
    tables = tables_of(folder / "measures", tasks)
    if not tables.get("instances"):
        remove_folder(folder)  # there is nothing to resume
        why = ", ".join(f"{count:,}: {reason}" for reason, count in tables.get("unreadable", {}).items())
        raise InputError(f"{data} holds no row that can be read" + f" ({why})" * bool(why))

    def alike() -> int:
        with without_logs():
            return int(cluster(signatures, folder).stats["to_remove"].total)

    return {
        "tables": tables,
        **doublets(folder / "fingerprints"),
        "near": once(folder / "near.json", alike) if near else None,
        "overlap": overlap.result(tasks) if overlap else None,
    }


class Tokenizer:
    """The tokenizer of a model, loaded where it is first used; it counts without the model's special tokens.

    Args:
        model: `default`, a hub id, a folder, or a .gguf file.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._loaded: Any = None

    def __call__(self, text: str) -> list[int]:
        if self._loaded is None:
            from broadsheet import models

            self._loaded = models.load(self.model, device="cpu").tokenizer
        found: list[int] = self._loaded(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "_loaded": None}  # a worker loads its own

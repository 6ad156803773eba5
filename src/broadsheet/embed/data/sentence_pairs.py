"""Pairs of sentences with gold scores (semantic textual similarity), from the files that they come in.

Knows: TSV, CSV, JSONL, Parquet and hub data sets, and what their columns are called. Does not know: embedders, metrics.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from broadsheet.console import InputError
from broadsheet.data import corpora

_FIRST = ("sentence1", "sentence_1", "sentence_a", "text1", "source1", "anchor", "a")
_SECOND = ("sentence2", "sentence_2", "sentence_b", "text2", "source2", "positive", "b")
_SCORE = ("score", "similarity", "similarity_score", "relatedness_score", "label", "gold", "rating")


@dataclass(frozen=True)
class SentencePair:
    """Two sentences and how alike people find them, on any increasing scale."""

    a: str
    b: str
    score: float


def sts(path: str | Path, n: int = 0, seed: int = 0) -> list[SentencePair]:
    """Sentence pairs with gold scores.

    Args:
        path: a TSV or CSV file (`.gz` too) with a header that names two sentences and a score, in the words of STS-B,
            SICK or sentence-transformers (`sentence1`, `sentence_A`, …; `score`, `similarity`, `label`, …), or without
            one and with the columns score, sentence, sentence; a JSONL or Parquet file of such rows; or
            `hf:org/name:split`.
        n: a random choice of so many, in the file's order; 0 for all.
        seed: of the choice.

    Raises:
        InputError: there is no such file, a column is missing, or a line is none, named with its number.

    Example:
        pairs = sts("stsb-dev.tsv", n=500)
    """
    if n < 0:
        raise InputError(f"got {n} sentence pairs; expected 0 (all) or more")
    name = str(path)
    rows = _hub_rows(name) if name.startswith("hf:") else _file_rows(Path(path).expanduser())
    pairs = [_pair(where, row) for where, row in rows]
    if not pairs:
        raise InputError(f"{name} holds no sentence pairs")
    if n and n < len(pairs):
        chosen = sorted(random.Random(seed).sample(range(len(pairs)), n))
        pairs = [pairs[i] for i in chosen]
    return pairs


def _hub_rows(name: str) -> Iterable[tuple[str, dict[str, object]]]:
    for i, document in enumerate(corpora.load(name, text_field="sentence1"), 1):
        yield f"{name}:{i}", {"sentence1": document.text, **document.metadata}


def _file_rows(path: Path) -> Iterable[tuple[str, dict[str, object]]]:
    """Rows by column, with the place each stands at."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if not path.is_file():
        raise InputError(f"no file {path}; give a TSV of score and two sentences, or hf:org/name:split")
    if kind in (".jsonl", ".parquet"):
        yield from _json_rows(path)
        return
    # STS-B's TSV files are not quoted: a quotation mark is one.
    form = {"delimiter": ","} if kind == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    opened = gzip.open if path.suffix == ".gz" else open
    header: list[str] = []
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, **form)
        try:
            for cells in reader:
                if not any(cells):
                    continue
                if not header:
                    header = [cell.strip().lower() for cell in cells]
                    if not _is_number(cells[0]):
                        continue
                    if len(cells) != 3:
                        raise InputError(
                            f"{path}:1: no header, and {len(cells)} columns; expected score, sentence, sentence"
                        )
                    header = ["score", "sentence1", "sentence2"]
                if len(cells) < len(header):
                    raise InputError(
                        f"{path}:{reader.line_num}: {len(cells)} columns; the first line has {len(header)}"
                    )
                yield f"{path}:{reader.line_num}", dict(zip(header, cells, strict=False))
        except UnicodeDecodeError:
            raise InputError(f"{path}:{reader.line_num + 1}: not UTF-8; save it as UTF-8") from None
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: {error}") from None


def _json_rows(path: Path) -> Iterable[tuple[str, dict[str, object]]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for i, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1):
            yield f"{path}:{i}", {key.lower(): value for key, value in row.items()}
        return
    for i, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                yield f"{path}:{i}", {key.lower(): value for key, value in row.items()}
            except (ValueError, AttributeError):
                raise InputError(f"{path}:{i}: not a JSON object") from None


def _pair(where: str, row: dict[str, object]) -> SentencePair:
    values = []
    for what, names in (("a first sentence", _FIRST), ("a second sentence", _SECOND), ("a score", _SCORE)):
        name = next((name for name in names if name in row), None)
        if name is None:
            raise InputError(f"{where}: no column for {what}; got {', '.join(row)}; expected {names[0]}")
        values.append(row[name])
    first, second, score = values
    if not _is_number(score):
        raise InputError(f"{where}: the score {score!r} is not a number")
    return SentencePair(str(first), str(second), float(score))  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    try:
        return bool(np.isfinite(float(value)))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False

"""Training rows with audio by path: read in any format, written as JSONL.

Knows: rows, paths. Does not know: audio formats, models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from broadsheet.cache import atomic_write
from broadsheet.console import InputError
from broadsheet.data import rows
from broadsheet.data.rows import OnError
from broadsheet.data.schemas import AudioQA as AudioRow
from broadsheet.data.sources import named


def read_rows(spec: str | Path, *, answers: bool = True, on_error: OnError = "stop") -> list[AudioRow]:
    """Rows of clips, as `rows.read` takes them; of a folder its file `train`, where there is one.

    Args:
        answers: whether each row has to have one.

    Raises:
        InputError: no file, no rows, or a row that is none, named with its line.
    """
    path = Path(spec).expanduser()
    if not str(spec).startswith("hf:"):
        if not path.exists():
            raise InputError(f"there is no {path}; expected rows of task, audio, answer: `broadsheet hear make-data`")
        spec = named(path, "train") or path
    required = ("answer",) if answers else ()
    return rows.read(spec, AudioRow, on_error, required=required).some("rows of task, audio, answer")


def write_rows(path: str | Path, rows: Iterable[AudioRow]) -> None:
    """Write rows that `read_rows` reads back, whole or not at all; their audio by absolute paths."""
    with atomic_write(Path(path)) as file:
        for row in rows:
            audio = [str(Path(clip).absolute()) for clip in row.audio]
            line = {"task": row.task, "audio": audio, "instruction": row.instruction, "answer": row.answer, **row.more}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

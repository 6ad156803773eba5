"""Training rows: one JSON line per example, with audio by path.

Knows: JSONL, paths. Does not know: audio formats, models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broadsheet.cache import atomic_write
from broadsheet.console import InputError


@dataclass(frozen=True)
class AudioRow:
    """One example.

    Args:
        task: names the pool that an instruction is drawn from.
        audio: paths of the clips, in the prompt's order.
        answer: what is to be answered; empty where that is still to be found.
        instruction: what is asked; empty to draw one.
        more: further fields.
    """

    task: str
    audio: tuple[str, ...]
    answer: str = ""
    instruction: str = ""
    more: dict[str, Any] = field(default_factory=dict, compare=False)


def read_rows(path: str | Path, *, answers: bool = True) -> list[AudioRow]:
    """The rows of a JSONL file, or of the file `train.jsonl` in a folder; audio paths are relative to the file.

    Args:
        answers: whether each row has to have one.

    Raises:
        InputError: no file, no rows, or a line that is not a row, by its number.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "train.jsonl"
    if not file.is_file():
        raise InputError(f"there is no {file}; expected JSONL with task, audio, answer: `broadsheet hear make-data`")
    rows = []
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append(parsed(line, file, number, answers=answers))
    except UnicodeDecodeError:
        raise InputError(f"{file} is no UTF-8 text; expected JSONL with task, audio, answer") from None
    if not rows:
        raise InputError(f"{file} holds no rows; expected JSONL with task, audio, answer")
    return rows


def write_rows(path: str | Path, rows: Iterable[AudioRow]) -> None:
    """Write rows that `read_rows` reads back, whole or not at all; their audio by absolute paths."""
    with atomic_write(Path(path)) as file:
        for row in rows:
            audio = [str(Path(clip).absolute()) for clip in row.audio]
            line = {"task": row.task, "audio": audio, "instruction": row.instruction, "answer": row.answer, **row.more}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def parsed(line: str, file: Path, number: int, *, answers: bool = True) -> AudioRow:
    """The row in one line of a file.

    Raises:
        InputError: it is not a row; file and line number are named.
    """
    where = f"{file}, line {number}"
    try:
        found = json.loads(line)
    except ValueError:
        raise InputError(f"{where} is no JSON") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: got a {type(found).__name__}; expected an object with task, audio, answer")
    audio = found.get("audio")
    paths: Sequence[Any] = audio if isinstance(audio, list) else [audio]
    if not paths or not all(isinstance(each, str) and each for each in paths):
        raise InputError(f"{where}: got audio {audio!r}; expected a path, or a list of them")
    texts = {name: found.get(name) or "" for name in ("task", "instruction", "answer")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"{where}: got {name} {text!r}; expected text")
    if not (texts["task"] or texts["instruction"]):
        raise InputError(f"{where} has neither task nor instruction")
    if answers and not texts["answer"].strip():
        raise InputError(f"{where} has no answer; training needs one")
    places = tuple(str(file.parent / each) for each in paths)
    more = {name: value for name, value in found.items() if name not in ("audio", *texts)}
    return AudioRow(texts["task"], places, texts["answer"], texts["instruction"], more)

"""The rows of SALMONN's trial: a folder of them, made where none is given, and those that are held back for tuning.

Knows: files of rows, clips. Does not know: models, arms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.resources import local
from broadsheet.hear.data import make_data
from broadsheet.hear.data.rows import AudioRow, read_rows
from broadsheet.hear.trials.metrics import AudioQuestion

Item = TypeVar("Item", AudioRow, AudioQuestion)

_FILES = ("stage1", "stage2", "stories", "test")
_HARD = "hard"  # a file that there may be
_MADE = {"asr": 1400, "many_words": True}  # twice the sentences, for six times the words
_QUICK = {"asr": 24, "sound": 20, "caption": 10, "count": 8, "voice": 8, "order": 8, "speech_sound": 8}
_HELD = 60  # rows of stage 1


def made_or_given(data: str, quick: bool, **sizes: Any) -> tuple[Path, Path | None, str]:
    """A folder of rows, what of it was made for the trial, and where it comes from, in words.

    Args:
        data: a folder, or the default of all trials, instead of which a set is made.
        quick: whether that is a small one.
        sizes: of it, as `make_data` takes them.
    """
    if not is_pydocs(data):
        return local(data), None, data
    sizes = {**_MADE, **sizes, **(_QUICK if quick else {})}
    made = home() / "trials" / f"salmonn-data-{fingerprint(sizes)}"
    return make_data(made, **sizes).folder, made, "speech by flite and sounds by sox, made for the trial"


def rows_of(folder: Path) -> dict[str, list[AudioRow]]:
    """The four files of a set, and that of the harder test, where there is one.

    Raises:
        InputError: a file is missing or damaged, or a test clip is trained on.
    """
    files = [*_FILES, *([_HARD] if (folder / f"{_HARD}.jsonl").is_file() else [])]
    found = {_HARD: [], **{name: read_rows(folder / f"{name}.jsonl", answers=name != "stories") for name in files}}
    trained = clips_of(*(found[name] for name in _FILES[:3]))
    for name in ("test", _HARD):
        if both := trained & clips_of(found[name]):
            raise InputError(
                f"{folder}: {len(both)} clips of {name}.jsonl are trained on, such as {Path(min(both)).name}"
            )
    return found


def clips_of(*several: Sequence[AudioRow]) -> set[str]:
    """The clips of rows."""
    return {clip for rows in several for row in rows for clip in row.audio}


def held_back(rows: Mapping[str, list[AudioRow]]) -> dict[str, list[AudioRow]]:
    """The rows without some of stage 1, a fifth at most, which become those of `tuning`: no stage has their clips."""
    first = rows["stage1"]
    tuning = first[: max(1, min(_HELD, len(first) // 5))]
    held = clips_of(tuning)
    left = {name: [row for row in rows[name] if not held & {*row.audio}] for name in ("stage1", "stage2")}
    return {**rows, **left, "tuning": tuning}


def content(rows: Mapping[str, Sequence[AudioRow]]) -> str:
    """A fingerprint of rows and of the sizes of their clips.

    Raises:
        InputError: a clip cannot be read.
    """
    sizes: dict[str, int] = {}
    for clip in clips_of(*rows.values()):
        try:
            sizes[clip] = Path(clip).stat().st_size
        except OSError as error:
            raise InputError(f"cannot read {clip}: {error.strerror}; the rows name it") from None
    return fingerprint(
        [
            [name, row.task, [[Path(clip).name, sizes[clip]] for clip in row.audio], row.instruction, row.answer]
            for name, several in rows.items()
            for row in several
        ]
    )


def draw(seed: int, clips: Sequence[str]) -> str:
    """A key that sorts rows at random: the same for the same seed and names of clips."""
    return fingerprint([seed, *(Path(clip).name for clip in clips)])


def drawn(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """So many rows or questions at random."""
    return sorted(items, key=lambda item: draw(seed, item.audio))[:count]

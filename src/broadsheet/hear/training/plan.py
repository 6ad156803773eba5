"""What a training is made of: files of rows, and the stages in their order, with the share of the time that each has.

Knows: folders of made data, files of rows, whether audio can be read. Does not know: models, how a stage is trained.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, say
from broadsheet.data.rows import OnError
from broadsheet.data.sources import named
from broadsheet.hear.base import SAMPLE_RATE
from broadsheet.hear.data import audio
from broadsheet.hear.data.rows import AudioRow, read_rows

FILES = {"1": "stage1", "2": "stage2", "3": "stories"}  # .jsonl, or another format of `rows.read`
STORY = "story"
PARTS = {"1": 2, "2": 1}  # of the minutes, where both stages are trained
SHORT, FULL = 8.0, 30.0  # seconds that Whisper looks at, where no clip is longer than the first, and otherwise


@dataclass(frozen=True)
class Data:
    """Where rows lie: one file or hub data set, or a folder with a file for each stage.

    Args:
        spec: as it was given.
        path: the file or folder, absolute, so that rows name their audio from anywhere; of a hub data set its spec.
        on_error: `"skip"` leaves out rows that are none, or whose audio cannot be read.
    """

    spec: str
    path: Path | str
    on_error: OnError = "stop"


def open_data(data: str, *, on_error: OnError = "stop", **others: Any) -> Data:
    """Rows by the name of their file or folder.

    Raises:
        InputError: there is nothing.
    """
    if data.startswith("hf:"):
        return Data(data, data, on_error)
    path = Path(os.path.realpath(Path(data).expanduser()))
    if path.is_dir() and any(named(path, stem) for stem in FILES.values()):
        return Data(data, path, on_error)
    file = named(path, "train") or path
    if not file.is_file():
        raise InputError(
            f"{data} is no file of rows and no folder with {', '.join(FILES.values())} or train as .jsonl; "
            "`broadsheet hear make-data` makes one"
        )
    return Data(data, file, on_error)


@dataclass(frozen=True)
class TrainingStage:
    """One part of a training: `"warm"`, `"1"`, `"2"` or `"3"`, its rows, and those of an earlier one beside them."""

    name: str
    rows: tuple[AudioRow, ...]
    minutes: float | None = None
    steps: int | None = None
    rehearse: tuple[AudioRow, ...] = ()

    @property
    def folder(self) -> str:
        """Where its model stands meanwhile."""
        return f"stage{self.name}"


def planned(
    data: Data,
    stage: str = "all",
    *,
    minutes: float = 0.0,
    steps: str = "",
    activate: str = "",
    stories: int = 12,
    rehearse: bool = False,
    warm: int = 0,
    seed: int = 0,
) -> list[TrainingStage]:
    """The stages to train, in order.

    Args:
        data: where the rows lie.
        stage: `"1"`, `"2"`, `"3"` or `"all"`.
        minutes: of the first two together; 0: no limit.
        steps: of each of the first two, such as `"300,120"`, or one number for both.
        activate: a file or folder of clips for the third instead of the data's own; `"no"`: without it.
        stories: clips of the third.
        rehearse: give the third the rows of the one before it, trained here or not, too.
        warm: steps of a warm start; 0: none.
        seed: of the choice of clips.

    Raises:
        InputError: nothing is left to train on, or the rows or the steps are none.
    """
    wanted = ("1", "2", "3") if stage == "all" else (stage,)
    files = {name: file for name, file in _files(data, stage).items() if name in wanted}
    if activate and "3" in wanted:
        files.pop("3", None)
        if activate != "no":
            given = open_data(activate)
            files["3"] = _files(given, "3")["3"]
    trained = [name for name in files if name != "3"]
    each = _steps(steps, trained)
    parts = sum(PARTS[name] for name in trained)
    plan: list[TrainingStage] = []
    for name, file in files.items():
        rows = _usable(read_rows(file, answers=name != "3", on_error=data.on_error), data.on_error, file)
        if name == "3":
            before = _before(data, plan) if rehearse else ()
            plan.append(TrainingStage(name, _clips(rows, stories, seed), rehearse=before))
        else:
            plan.append(TrainingStage(name, tuple(rows), minutes * PARTS[name] / parts or None, each[name]))
    if not plan:
        raise InputError(f"{data.spec} holds nothing to train on for --stages {stage}")
    if warm and trained:
        plan.insert(0, TrainingStage("warm", plan[0].rows, steps=warm))
    return plan


def context_for(plan: Sequence[TrainingStage]) -> float:
    """How many seconds Whisper has to look at for these clips; a shorter context is reported."""
    clips = dict.fromkeys(clip for stage in plan for row in stage.rows for clip in row.audio)
    if any(len(audio.read(clip, max_seconds=SHORT + 0.1)) > SHORT * SAMPLE_RATE for clip in clips):
        return FULL
    say(f"no clip is longer than {SHORT:g} s, so Whisper looks at {SHORT:g} s; --context {FULL:g} is the paper's")
    return SHORT


def content(plan: Sequence[TrainingStage]) -> str:
    """A fingerprint of all rows of a plan."""
    return fingerprint(
        [
            [stage.name, [[row.task, list(row.audio), row.instruction, row.answer] for row in rows]]
            for stage in plan
            for rows in (stage.rows, stage.rehearse)
        ]
    )


def _steps(steps: str, trained: Sequence[str]) -> dict[str, int | None]:
    if not steps:
        return dict.fromkeys(trained)
    try:
        given = [int(each) for each in str(steps).split(",")]
    except ValueError:
        given = []
    if not given or min(given) < 1 or len(given) not in (1, len(trained)):
        raise InputError(
            f"got --steps {steps}; expected a number from 1, or one for each of {len(trained)} stages, such as 300,120"
        )
    return dict(zip(trained, given * len(trained) if len(given) == 1 else given, strict=False))


def _files(data: Data, stage: str) -> dict[str, Path | str]:
    """The file of each stage; of a folder, empty files are no stages unless they are asked for."""
    if isinstance(data.path, str) or data.path.is_file():
        return {"1" if stage == "all" else stage: data.path}
    found = {name: named(data.path, stem) or data.path / f"{stem}.jsonl" for name, stem in FILES.items()}
    return {name: file for name, file in found.items() if stage == name or (file.is_file() and file.stat().st_size)}


def _before(data: Data, plan: Sequence[TrainingStage]) -> tuple[AudioRow, ...]:
    """The rows that activation tuning rehearses: of the last stage of a plan, or of the last one that the folder holds.

    Raises:
        InputError: there are none.
    """
    if plan:
        return plan[-1].rows
    for name in ("2", "1"):
        file = named(Path(data.path), FILES[name])
        if file and file.stat().st_size:
            return tuple(_usable(read_rows(file, on_error=data.on_error), data.on_error, file))
    raise InputError(
        f"{data.spec} holds no {FILES['2']}.jsonl or .parquet … to rehearse; give the folder that was trained on"
    )


def _clips(rows: Sequence[AudioRow], most: int, seed: int) -> tuple[AudioRow, ...]:
    """`most` rows at random, each asked for a story in its own words where it is a row about one."""
    chosen = random.Random(seed).sample(list(rows), min(most, len(rows)))
    return tuple(
        replace(row, task=STORY, answer="", instruction=row.instruction if row.task in ("", STORY) else "")
        for row in chosen
    )


def _usable(rows: list[AudioRow], on_error: OnError, file: Path | str) -> list[AudioRow]:
    """With "skip", the rows whose audio can be read; the number left out is reported.

    Raises:
        InputError: no row is left.
    """
    if on_error == "stop":
        return rows
    reasons: dict[str, str] = {}
    for clip in dict.fromkeys(clip for row in rows for clip in row.audio):
        try:
            audio.read(clip)
        except InputError as error:
            reasons[clip] = str(error)
    kept = [row for row in rows if not any(clip in reasons for clip in row.audio)]
    if reasons:
        say(f"{file}: {len(rows) - len(kept):,} rows skipped, such as: {next(iter(reasons.values()))}")
    if not kept:
        raise InputError(f"{file}: the audio of no row can be read")
    return kept

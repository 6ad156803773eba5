"""Every recipe and command is given what is wrong: it ends well, or with one line, and nothing is left."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from spoils import NAMES, clips, spoilt
from workshop import COMMANDS, KEPT, RECIPES, Ended, Workshop, run

FEW, MANY = 4, len(NAMES)  # inputs of each, in `make test` and in `make attack`
SECONDS = 120  # longer hangs


class HangsError(Exception):
    """No OSError, as TimeoutError is, which commands tell in a line."""


@contextmanager
def limited(what: str, seconds: int = SECONDS) -> Iterator[None]:
    def over(*_: Any) -> None:
        raise HangsError(f"{what} takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_line(ended: Ended) -> str:
    """What is wrong with how a command ended; "" where it ended as it should."""
    if ended.status == 0:
        return ""
    lines = ended.error.rstrip("\n").split("\n")
    if ended.status != 2:
        return f"status {ended.status}: {ended.error[-500:]}"
    if "Traceback" in ended.error or len(ended.error) > 4000:
        return f"{len(ended.error):,} characters: {ended.error[:500]} … {ended.error[-500:]}"
    if "\x1b[2J" in ended.error or "\x00" in ended.error:
        return f"controls of a terminal are printed: {ended.error[-500:]!r}"
    return "" if lines[-1].startswith("broadsheet: ") or lines[-1].startswith("Error: ") else lines[-1]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", [*RECIPES, *COMMANDS])
def test_wrong_data_is_one_line_and_leaves_nothing(name, workshop: Workshop, tmp_path: Path, home, attack) -> None:
    read = workshop.data(name)
    rows = [] if read.is_dir() else [json.loads(line) for line in read.read_text().splitlines()]
    number = attack.of(FEW, MANY)
    wrong = {}
    for i, each in enumerate(random.Random(name).sample(NAMES, number) if number < len(NAMES) else NAMES):
        folder = tmp_path / str(i)
        folder.mkdir()
        data = clips(each, read, folder) if read.is_dir() else spoilt(each, rows, folder)
        if name == "hear listen":
            (folder / "audio").symlink_to(read.parent / "audio")
        out = folder / "made" / "out"
        try:
            with limited(each):
                ended = run(workshop.words(name, out, data))
        except Exception as raised:
            wrong[each] = f"raised {type(raised).__name__}: {str(raised)[:500]}"
            continue
        fault = one_line(ended)
        if not fault and ended.status and out.exists() and name not in KEPT:
            fault = "left a result"
        if fault:
            wrong[each] = fault
        else:
            attack.count("inputs", name)
        shutil.rmtree(folder)
    assert not wrong, "\n".join(f"{each}: {fault}" for each, fault in wrong.items())

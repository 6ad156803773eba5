"""Every recipe and command is killed at operations of its files: the same command then ends as if nothing had been."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from kills import Killed, dying
from workshop import COMMANDS, KEPT, NO_DATA, RECIPES, UNKILLED, Workshop, run

from broadsheet.cli.app import whole
from broadsheet.page.papers import ours

FEW, MANY = 1, 12  # kills of each, in `make test` and in `make attack`
# In names of fields that no two runs share.
_TIMED = {"seconds", "minutes", "created", "date", "docs/s", "resumed_from"}
_TIMES = re.compile(r"[\d.,]+ (?:ms|s|min|h)\b|<!-- .* -->")  # in prose


def timeless(value: Any) -> Any:
    """The same JSON without what tells of the run alone."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if not _TIMED & {key, *re.split("[_ ]", key)}}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def content(path: Path, root: str) -> dict[str, Any]:
    """What a result holds, by file: arrays as they are, texts without times and without the folder's own name."""
    found = {}
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file() or file.suffix == ".lock":
            continue
        name = str(file.relative_to(path)) if path.is_dir() else ""
        data = file.read_bytes()
        try:
            text = data.decode()
        except UnicodeDecodeError:
            found[name] = tensors(data) or data
        else:
            text = text.replace(root, "ROOT")
            rows = text.splitlines() if ".jsonl" in file.name else [text]
            try:
                found[name] = [timeless(json.loads(row)) for row in rows]
            except ValueError:
                found[name] = _TIMES.sub("", text)
    return found


def tensors(data: bytes) -> dict[str, Any] | None:
    """What a safetensors file holds, whose header is in any order; None where it is none."""
    length = int.from_bytes(data[:8], "little")
    if not data[8 : 8 + length].startswith(b"{"):
        return None
    header = json.loads(data[8 : 8 + length])
    rest = data[8 + length :]
    return {
        name: each if name == "__metadata__" else (each["dtype"], each["shape"], rest[slice(*each["data_offsets"])])
        for name, each in header.items()
    }


def points(number: int, wanted: int, name: str) -> list[int]:
    """So many of the operations, evenly over all of them; one alone lies somewhere by the name, as the seed."""
    shift = np.random.default_rng(list(name.encode())).random()
    return sorted({int((i + shift) * number / wanted) for i in range(wanted)})


def test_each_recipe_on_the_page_and_each_command_is_attacked() -> None:
    assert set(RECIPES) == {paper.id for paper in ours() if paper.apply}
    assert set(commands(typer.main.get_group(whole()))) == {"apply", *COMMANDS, *NO_DATA}


def commands(group: Any, above: str = "") -> Iterator[str]:
    """All of them, as they are typed."""
    for name, each in group.commands.items():
        yield from commands(each, f"{above}{name} ") if hasattr(each, "commands") else [f"{above}{name}"]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*RECIPES, *(name for name in COMMANDS if name not in UNKILLED)])
def test_a_kill_loses_nothing(name: str, workshop: Workshop, tmp_path: Path, home: Path, attack: Any) -> None:
    whole = workshop.made(name)
    expected = content(whole.out, str(whole.out.parent))
    assert expected
    for at in points(whole.operations, attack.of(FEW, MANY), name):
        shutil.rmtree(home, ignore_errors=True)
        out = tmp_path / f"killed-at-{at}" / "out"
        out.parent.mkdir()
        with pytest.raises(Killed), dying(tmp_path, at):
            run(workshop.words(name, out))
        finished = content(out, str(out.parent)) == expected
        assert finished or not out.exists() or name in KEPT, "half of a result has its name"
        again = run(workshop.words(name, out))
        assert (again.status == 0) or finished, again.error
        now = content(out, str(out.parent))
        assert now.keys() == expected.keys()
        for file, was in expected.items():
            assert now[file] == was, f"{file}, killed at {at} of {whole.operations}"
        attack.count("kills", name)
        shutil.rmtree(out.parent)

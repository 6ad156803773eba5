"""Files that broadsheet wrote are damaged: who reads them says so in one line, or is right all the same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from kills import Killed, dying
from test_inputs_of_all import limited, one_line
from workshop import Ended, Workshop, run

from broadsheet.console import InputError
from broadsheet.decode.table import TrigramTable
from broadsheet.page import evidence
from broadsheet.serve.models import winning

FEW, MANY = 2, 40  # damages of each format, in `make test` and in `make attack`


@dataclass(frozen=True)
class Format:
    """What a command writes.

    Args:
        by: the command, one of the workshop's.
        reads: the words of another one, that reads it: {it}, {out}, {rows} and {clip} are filled in.
        told: it knows its files by their digests, so that what is read is what was written, or it is told.
        more: words of the command that writes.
        call: reads it instead of a command.
    """

    by: str
    reads: str
    call: Callable[[Path], object] | None = None
    told: bool = False
    more: tuple[str, ...] = ()


FORMATS = {
    "index": Format("index", "search {it} module", told=True),
    "index of words": Format("index", "search {it} module --mode bm25"),
    "model": Format("salt", "apply lastde {rows} --out {out} --model {it}"),
    "embedder": Format("gem", "encode {rows} --out {out} --embedder {it}"),
    "embedder with an adapter": Format(
        "lexical_specialization", "encode {rows} --out {out} --embedder {it}", more=("--tune", "lora", "--adapter")
    ),
    "reranker": Format("first", "label {rows} --out {out} --reranker {it}"),
    "experts": Format("moe_survey", "apply lastde {rows} --out {out} --model {it}"),
    "ears": Format("salmonn", "hear listen {clip} What? --model {it} --max-tokens 4"),
    "scores": Format("lastde", "compare {it} {whole}"),
    "drafts": Format("aded", "", call=lambda it: TrigramTable.load(it)),
    "report": Format("", "", call=lambda it: winning.of(it)),
}


def flipped(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def zeroed(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes(min(64, len(data) - place)) + data[place + 64 :]


def doubled(data: bytes, draw: random.Random) -> bytes:
    start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] + data[end:]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes | None], ...] = (
    flipped,
    zeroed,
    doubled,
    lambda data, draw: data[: draw.randrange(len(data))],
    lambda data, draw: data[:-1],
    lambda data, draw: data + b"\x00",
    lambda data, draw: b"",
    lambda data, draw: bytes(len(data)),
    lambda data, draw: bytes(draw.randrange(256) for _ in range(min(len(data), 4096))),
    lambda data, draw: b"[" * 100_000,
    lambda data, draw: None,
)


def damage(path: Path, draw: random.Random) -> str:
    """One of the files is changed or taken away; which, and how."""
    files = [each for each in sorted(path.rglob("*")) if each.is_file() and each.stat().st_size] or [path]
    file = draw.choice(files)
    kind = draw.randrange(len(DAMAGES))
    data = DAMAGES[kind](file.read_bytes(), draw)
    if data is None:
        file.unlink()
    else:
        file.write_bytes(data)
    return f"{file.name}, damage {kind}"


def copied(path: Path, to: Path) -> Path:
    return Path(shutil.copytree(path, to) if path.is_dir() else shutil.copy(path, to))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_damaged_is_told_in_a_line(name: str, workshop: Workshop, tmp_path: Path, home, attack) -> None:
    form = FORMATS[name]
    whole = workshop.made(form.by, *form.more).out if form.by else evidence.folder() / "lastde.json"
    places = {"whole": whole, "rows": workshop.rows, "clip": workshop.folder / "clips" / "audio" / "0.wav"}

    def read(it: Path, out: Path) -> Ended:
        if form.call:
            try:
                form.call(it)
            except InputError as error:
                return Ended(2, "", f"broadsheet: {error}\n")
            return Ended(0, "", "")
        return run([each.format(it=it, out=out, **places) for each in form.reads.split()])

    sound = read(whole, tmp_path / "read")
    assert sound.status == 0, sound.error
    draw, wrong = random.Random(name), {}
    for i in range(attack.of(FEW, MANY)):
        it = copied(whole, tmp_path / f"it{i}")
        how = damage(it, draw)
        try:
            with limited(how):
                ended = read(it, tmp_path / f"out{i}")
        except Exception as raised:
            wrong[how] = f"raised {type(raised).__name__}: {str(raised)[:500]}"
            continue
        fault = one_line(ended)
        if not fault and form.told and ended.status == 0 and ended.out != sound.out and not ended.error:
            fault = f"gives something else in silence: {ended.out[-500:]}"
        if fault:
            wrong[how] = fault
        else:
            attack.count("damages", name)
        shutil.rmtree(it) if it.is_dir() else it.unlink(missing_ok=True)
    assert not wrong, "\n".join(f"{each}: {fault}" for each, fault in wrong.items())


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["lastde", "gem", "clear", "data_preprocessors", "diachronic", "encode"])
def test_what_a_killed_run_left_is_damaged_and_told_or_done_again(name, workshop, tmp_path: Path, home, attack) -> None:
    whole = workshop.made(name)
    draw, wrong = random.Random(name), {}
    for i in range(attack.of(FEW, MANY)):
        shutil.rmtree(home, ignore_errors=True)
        folder = tmp_path / f"run{i}"
        folder.mkdir()
        words = workshop.words(name, folder / "out")
        with pytest.raises(Killed), dying(tmp_path, draw.randrange(1, whole.operations)):
            run(words)
        if not any(each.is_file() and each.stat().st_size for each in folder.rglob("*")):
            continue
        how = damage(folder, draw)
        try:
            with limited(how):
                ended = run(words)
        except Exception as raised:
            wrong[how] = f"raised {type(raised).__name__}: {str(raised)[:500]}"
            continue
        if fault := one_line(ended):
            wrong[how] = fault
        else:
            attack.count("damages", f"{name}, half done")
        shutil.rmtree(folder)
    assert not wrong, "\n".join(f"{each}: {fault}" for each, fault in wrong.items())

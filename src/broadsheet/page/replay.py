"""`make evidence`: run again the commands that the evidence files store, those that trained their models first.

    python -m broadsheet.page.replay               run all that is older than its code; run it again to go on
    python -m broadsheet.page.replay --again       run all
    python -m broadsheet.page.replay --list        what would run, and what cannot, with the reason
    python -m broadsheet.page.replay lastde gem    run these again
    python -m broadsheet.page.replay --data DIR    look in DIR for data files that are not where they were

Knows: evidence files, commands as text, the options of today. Does not know: how anything is measured. Evidence is
older than the code: what changed its name since is in `RENAMED`, and what cannot be read any more is reported.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broadsheet.console import InputError, say
from broadsheet.page import checkout, evidence, staleness
from broadsheet.page.papers import get_recipe, get_trial, load, page

# Options of recorded commands that have another name now: (command, paper, option) to the new option.
RENAMED: dict[tuple[str, str, str], str] = {}

# Models that were trained before evidence held the commands that made them.
TRAINED: dict[str, tuple[str, ...]] = {
    "runs/first": (
        "broadsheet apply first pydocs --out runs/easy --minutes 13 --brief --titles --words 20 "
        "--method \"first(kind='softmax', lm=False)\" --sizes 2,4 --depth 1000 --lists 7000 --learning-rate 1e-4",
        "broadsheet apply first pydocs --reranker runs/easy --out runs/first --minutes 15 --titles --words 20 "
        "--sizes 4,10 --shuffle 0.2 --lists 4000 --learning-rate 5e-5 --window 10 --step 5",
    )
}
FOLDER = "BROADSHEET_DATA"  # the user's data
_OF_COMMAND = {"record": False, "out": True, "on_error": True, "text_field": True, "id_field": True, "force": False}


@dataclass
class Step:
    """What one evidence file rests on.

    Attributes:
        name: of the file, without `.json`.
        commands: in the order in which they run, the recorded one last.
        problem: why it cannot be replayed; empty where it can.
    """

    name: str
    commands: list[list[str]] = field(default_factory=list)
    problem: str = ""


def steps(names: Sequence[str] = (), data: Path | None = None) -> list[Step]:
    """What the evidence files store, those of `names` or all that store a command.

    Args:
        data: a folder in and below which data is looked for by name, where it is not at the path that was recorded.

    Raises:
        InputError: a name without evidence.
    """
    files = {path.stem: path for path in sorted(evidence.folder().glob("*.json"))}
    if unknown := [name for name in names if name not in files]:
        raise InputError(f"no evidence of {unknown[0]!r}; expected one of {', '.join(files)}")
    found = []
    for name in names or files:
        recorded = evidence.read(name) or {}
        if "command" in recorded or name in names:
            found.append(_step(name, recorded, data))
    return found


def _step(name: str, recorded: dict[str, Any], data: Path | None) -> Step:
    if not recorded.get("command"):
        return Step(name, problem="no command was stored")
    try:
        last = _today(shlex.split(recorded["command"]), data)
        trained = recorded.get("provenance", {}).get("trained") or _trained_before(last)
        return Step(name, [*(_today(shlex.split(command), data) for command in trained), last])
    except InputError as error:
        return Step(name, [shlex.split(recorded["command"])], str(error))


def _trained_before(command: Sequence[str]) -> Iterator[str]:
    return (each for argument in command for each in TRAINED.get(argument, ()))


def _today(command: list[str], data: Path | None) -> list[str]:
    """A recorded command with today's names of its options and today's places of its data.

    Raises:
        InputError: it cannot be run as it was: an option is gone, or a file is missing.
    """
    command = [_found(argument, data) for argument in command]
    match command:
        case ["python", script, *_]:
            if not (_root() / script).is_file():
                raise InputError(f"{script} is gone")
            return command
        case ["broadsheet", ("try" | "study" | "apply") as verb, name, *rest]:
            rest = [RENAMED.get((verb, name, argument), argument) for argument in rest]
            _parse(verb, name, rest)
            return ["broadsheet", verb, name, *rest]
    raise InputError(f"{shlex.join(command)} is no command that is recorded")


def _found(argument: str, data: Path | None) -> str:
    """An argument; where it names a data file that is not there, its place in `data`."""
    if not argument.startswith(("./", "../", "/", "~")) or (_root() / Path(argument).expanduser()).exists():
        return argument
    if data is not None and (found := next(data.rglob(Path(argument).name), None)):
        return str(found.resolve())
    raise InputError(f"its data is not at {argument}: give the folder that holds {Path(argument).name} by --data")


def _parse(verb: str, name: str, rest: Sequence[str]) -> None:
    """Raises InputError where the options are not those of the trial, or of the recipe."""
    from broadsheet.options import construct, pairs

    if verb == "study" and name not in {paper.id for paper in page()}:
        name = f"{name}_study"
    _, entry = get_recipe(name) if verb == "apply" else get_trial(name)
    given = pairs(rest[1:] if verb == "apply" else rest)
    for option, takes_value in _OF_COMMAND.items():
        if option in given and (given[option] is True) != takes_value:
            del given[option]
    construct(load(entry), given)


def trained(given: dict[str, Any]) -> list[str]:
    """The commands that made the model folders among a trial's options, what they were made from first.

    Args:
        given: option values by name; a folder that holds `training.json` with a `command` is such a model.
    """
    commands: list[str] = []
    for value in given.values():
        commands += [each for each in _made(str(value)) if each not in commands]
    return commands


def _made(folder: str, depth: int = 8) -> list[str]:
    try:
        record = evidence.read("training", Path(folder).expanduser()) if depth else None
    except OSError:  # text too long for a file's name
        record = None
    command = (record or {}).get("command")
    if not command:
        return []
    own = Path(folder).expanduser().resolve()
    others = [each for each in shlex.split(command) if Path(each).expanduser().resolve() != own]
    return [*(made for each in others for made in _made(each, depth - 1)), command]


def _root() -> Path:
    return evidence.folder().parent


def run(step: Step) -> bool:
    """Run a step's commands, those whose result stands already left out; whether all succeeded."""
    for command in step.commands:
        out = command[command.index("--out") + 1] if "--out" in command else ""
        if command[:2] == ["broadsheet", "apply"] and out and (_root() / out).exists():
            say(f"{step.name}: {out} stands; delete it to train it again")
            continue
        say(f"{step.name}: {shlex.join(command)}")
        program = [sys.executable] if command[0] == "python" else [sys.executable, "-m", "broadsheet"]
        if subprocess.run([*program, *command[1:]], cwd=_root(), check=False).returncode:
            say(f"{step.name}: failed")
            return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 1 where a command failed, or nothing of what was asked for can be replayed."""
    parser = argparse.ArgumentParser(prog="python -m broadsheet.page.replay", description="Record evidence again.")
    parser.add_argument("names", nargs="*", metavar="ID", help="evidence files, by default all that store a command")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--again", action="store_true", help="also what is up to date with the code that it rests on")
    parser.add_argument("--data", type=Path, metavar="DIR", help="look here for data files that are not in place")
    given = parser.parse_args(arguments)
    if given.data:
        os.environ[FOLDER] = str(given.data.resolve())  # `resource:NAME` looks there too
    elif os.environ.get(FOLDER):
        given.data = Path(os.environ[FOLDER]).expanduser()
    try:
        found = steps(given.names, given.data)
    except InputError as error:
        say(f"replay: {error}")
        return 2
    if not given.names and not given.again:
        found = [step for step in found if not _stands(step)]
    failed = []
    for step in found:
        if step.problem:
            print(f"# {step.name} cannot be replayed: {step.problem}")
            print(*(f"#   {shlex.join(command)}" for command in step.commands), sep="\n")
        elif given.list:
            print(*map(shlex.join, step.commands), sep="\n")
        elif not run(step):
            failed.append(step.name)
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed or (found and all(step.problem for step in found)) else 0


def _stands(step: Step) -> bool:
    """Whether the evidence is that of the code as it is: recorded anew already, perhaps by a run that was stopped."""
    if checkout.root() is None or staleness.stale(step.name):
        return False
    say(f"{step.name}: up to date with its code; name it to record it again")
    return True


if __name__ == "__main__":
    sys.exit(main())

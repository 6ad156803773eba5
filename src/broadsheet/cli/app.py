"""The command `broadsheet`: its own commands, and those that folders of the library register.

A folder registers commands by a module `commands` that holds a typer app; it is mounted as `broadsheet <NAME> …`, or
beside broadsheet's own commands where its `NAME` is None. Nothing heavy is imported until a command needs it, and no
command is built, or looked for in folders, where another is run: that would take longer than most of them.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from copy import copy
from functools import cache
from importlib import import_module
from pathlib import Path

import typer

from broadsheet.cli import apply, compare, guides, models, new, papers, peers, show, trials
from broadsheet.cli.root import app
from broadsheet.console import InputError, plain
from broadsheet.page.discovery import left_out, packages

__all__ = ["app", "apply", "compare", "guides", "main", "models", "new", "papers", "peers", "show", "trials", "whole"]

# Packages that whole stages are built on, and the extra that brings each; what one option needs says so itself.
_LONGEST = 2_000  # characters of a line that says what is wrong
_EXTRAS = {"sentence_transformers": "embed", "peft": "embed", "datasets": "embed", "faiss": "search", "bm25s": "search"}
_EXTRAS |= {"lxml": "page", "bibtexparser": "page", "pylatexenc": "page", "httpcore2": "page"}
_EXTRAS |= {"soundfile": "hear", "soxr": "hear", "onnxruntime": "hear", "jiwer": "hear"}


@cache
def whole() -> typer.Typer:
    """The app with all commands: broadsheet's own, and those that folders and readers' packages register."""
    for package in packages():
        for path in sorted(package.folder.glob("*/commands.py" if package.ours else "commands.py")):
            module = ".".join((package.name, *path.relative_to(package.folder).with_suffix("").parts))
            try:
                registered = import_module(module)
                app.add_typer(registered.app, name=registered.NAME if package.ours else registered.NAME or package.name)
            except Exception as error:
                if package.ours:
                    raise
                left_out(package.name, f"{module}: {type(error).__name__}: {error}")
    return app


def narrowed(first: str) -> typer.Typer | None:
    """The app with the one command that the first argument names; None where it is none of broadsheet's own."""
    one = copy(app)
    one.registered_commands = [
        each for each in app.registered_commands if first == (each.name or getattr(each.callback, "__name__", ""))
    ]
    one.registered_groups = [each for each in app.registered_groups if first == each.name]
    return one if one.registered_commands or one.registered_groups or first == "--version" else None


def main() -> None:
    """Run the command; what a user can mend is one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show “−” shows “?” instead of a traceback
            stream.reconfigure(errors="replace")
    try:
        run = narrowed(sys.argv[1]) if sys.argv[1:] else None
        (run or whole())(prog_name="broadsheet")
    except (
        InputError,
        OSError,
    ) as error:  # a disk that is full, a name that is too long, a folder that may not be read
        if os.environ.get("BROADSHEET_DEBUG"):
            raise
        line = plain(" ".join(str(error).split()))
        print(f"broadsheet: {line if len(line) <= _LONGEST else line[:_LONGEST] + '…'}", file=sys.stderr)
        sys.exit(2)
    except RecursionError as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        if Path(place.filename).parent.name != "json" or os.environ.get("BROADSHEET_DEBUG"):
            raise
        print("broadsheet: a file of JSON that was read is nested too deeply: it is damaged", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None or os.environ.get("BROADSHEET_DEBUG"):
            raise
        print(f"broadsheet: this needs {error.name}: pip install -e '.[{extra}]'", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("broadsheet: stopped", file=sys.stderr)
        sys.exit(130)

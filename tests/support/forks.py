"""Processes that begin in no time: forks of a server that has imported the libraries, but nothing of broadsheet.

A test that needs the interpreter itself as a user starts it (what an import costs, say) starts one with subprocess.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

# What the server imports once.
IMPORTED = [
    "hypothesis",
    "peft",
    "pytest",
    "sentence_transformers",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
]


def context() -> ForkServerContext:
    """Of new processes, as `multiprocessing` has them; the server has no threads to lose."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    return multiprocessing.get_context("forkserver")


def forget(*names: str) -> None:
    """Import the packages `names` anew where they are next imported."""
    for module in [module for module in sys.modules if module.partition(".")[0] in names]:
        del sys.modules[module]


def start(work: Callable[..., Any], *given: Any, cwd: Path | None = None, path: list[str] | None = None) -> BaseProcess:
    """A new process that runs `work(*given)`, in this process's environment.

    Args:
        work: a function of a module, as processes find it.
        cwd: the folder that it runs in; this process's by default.
        path: where it looks for modules first.
    """
    process = context().Process(target=_begin, args=(dict(os.environ), str(cwd or Path.cwd()), path or [], work, given))
    process.start()
    return process


def fresh(work: Callable[..., Any], *given: Any, cwd: Path | None = None, path: list[str] | None = None) -> Any:
    """What `work(*given)` returns in a process of its own; see `start`.

    Raises:
        AssertionError: with the traceback, or with the exit status, where `work` did not return.
    """
    receiver, sender = context().Pipe(duplex=False)
    process = start(_answer, sender, work, given, cwd=cwd, path=path)
    sender.close()
    try:
        done, value = receiver.recv()
    except EOFError:
        done, value = False, "it ended without an answer"
    process.join()
    assert done, f"exit status {process.exitcode}: {value}"
    return value


@dataclass
class Running:
    """A program that runs in a process of its own."""

    process: BaseProcess
    folder: tempfile.TemporaryDirectory[str]

    def finish(self) -> CompletedProcess[str]:
        """Wait for its end; a signal is a negative status, as `subprocess` has it."""
        self.process.join()
        out, err = (Path(self.folder.name, name).read_text("utf-8") for name in ("out", "err"))
        self.folder.cleanup()
        return CompletedProcess([], self.process.exitcode or 0, out, err)


def begin(code: str, *arguments: object) -> Running:
    """Begin `python -c code arguments…`."""
    folder = tempfile.TemporaryDirectory()
    return Running(start(_run, folder.name, code, [str(argument) for argument in arguments]), folder)


def python(code: str, *arguments: object) -> CompletedProcess[str]:
    """Run `python -c code arguments…`."""
    return begin(code, *arguments).finish()


def _begin(environment: dict[str, str], cwd: str, path: list[str], work: Callable[..., Any], given: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:0] = path
    sys.dont_write_bytecode = True
    work(*given)


def _answer(sender: Connection, work: Callable[..., Any], given: Any) -> None:
    try:
        sender.send((True, work(*given)))
    except BaseException:
        sender.send((False, traceback.format_exc()))


def _run(folder: str, code: str, arguments: list[str]) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})

"""Trials whose program is a stub: it says that it has begun, and ends once a file is there.

As a program (`stub_trials.py FOLDER WORD…`) it is a server over jobs in FOLDER/jobs that starts a trial, says its id,
and lives until it is killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = """
import json, pathlib, sys, time
print("begun", file=sys.stderr, flush=True)
while not pathlib.Path({go!r}).exists():
    time.sleep(0.01)
if "fail" in sys.argv:
    sys.exit("broadsheet: no such data")
print(json.dumps({{"argv": sys.argv[1:]}}))
"""
BLOCKS = 4
# Tells what happens as a trial does; a block ends once `Paced.let` says so; what is done is kept when it is stopped.
PACED = """
import pathlib, shutil, sys, time
from broadsheet import events
folder, given = pathlib.Path({folder!r}), dict(zip(sys.argv, sys.argv[1:]))
out = pathlib.Path(given["--out"])
journal = out / "journal"
done = int(journal.read_text()) if journal.exists() else 0
with events.to(pathlib.Path(given["--events"])):
    try:
        if "gem" in sys.argv:
            raise ValueError("got no such data; expected a folder")
        events.tell("said", text=f"8 pairs, {{done}} blocks are there")
        print(f"begins at {{done}}", file=sys.stderr, flush=True)
        for block in range(done + 1, {blocks} + 1):
            while not (folder / f"block{{block}}").exists():
                time.sleep(0.01)
            arms = [("plain", "baseline", 0.5), ("ours", "method", 0.5 + block / 100)]
            told = [dict(name=name, role=role, values=dict(AUROC=value), error="") for name, role, value in arms]
            events.tell("block", done=block, of={blocks}, items=2 * block, piloting=False, left=5.0, arms=told)
            journal.write_text(str(block))
    except KeyboardInterrupt:
        while (folder / "busy").exists():  # with what cannot be left at once
            time.sleep(0.01)
        raise
    shutil.copy(folder / "report.html", out / "lastde.html")
    (out / "index.html").write_text("<title>Trials</title>")  # as a trial does, which lists those of the folder
    print((folder / "result.json").read_text())
"""


def stubbed(folder: Path) -> tuple[Callable[..., Any], Path]:
    """What stands for `subprocess.Popen` where a trial is begun, and the file at which it ends."""
    go = folder / "go"
    return _standing_in(folder / "program.py", PROGRAM.format(go=str(go))), go


class Paced:
    """Trials that go on block by block as they are let, and find what is recorded of a paper.

    Attributes:
        popen: what stands for `subprocess.Popen` where a trial is begun.
    """

    def __init__(self, folder: Path, result: dict[str, Any], report: str) -> None:
        self.folder = folder
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "report.html").write_text(report)
        self.popen = _standing_in(folder / "paced.py", PACED.format(folder=str(folder), blocks=BLOCKS))

    def let(self, block: int) -> None:
        """Let trials end so many blocks."""
        for number in range(1, block + 1):
            (self.folder / f"block{number}").touch()

    def busy(self, is_so: bool) -> None:
        """Whether a trial that is stopped takes its time."""
        if is_so:
            (self.folder / "busy").touch()
        else:
            (self.folder / "busy").unlink()


def _standing_in(program: Path, text: str) -> Callable[..., Any]:
    program.write_text(text)
    real = subprocess.Popen

    def popen(words: list[str], **settings: Any) -> Any:
        assert words[1:3] == ["-m", "broadsheet"]
        return real([words[0], str(program), *words[3:]], **settings)

    return popen


def wait(holds: Callable[[], bool]) -> None:
    """Until it holds, or the test has failed."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


if __name__ == "__main__":
    from broadsheet.serve.trials.jobs import Jobs

    home = Path(sys.argv[1])
    subprocess.Popen, _ = stubbed(home)  # type: ignore[misc,assignment]
    print(Jobs(home / "jobs").start(sys.argv[2:]).id, flush=True)
    threading.Event().wait()

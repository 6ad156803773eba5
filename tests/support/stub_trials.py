"""Trials whose program is a stub: it says that it has begun, and ends once a file is there.

As a program (`stub_trials.py FOLDER WORD…`) it is a server over jobs in FOLDER/jobs that starts a trial, says its id,
and lives until it is killed.
"""

from __future__ import annotations

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


def stubbed(folder: Path) -> tuple[Callable[..., Any], Path]:
    """What stands for `subprocess.Popen` where a trial is begun, and the file at which it ends."""
    go, program = folder / "go", folder / "program.py"
    program.write_text(PROGRAM.format(go=str(go)))
    real = subprocess.Popen

    def popen(words: list[str], **settings: Any) -> Any:
        assert words[1:3] == ["-m", "broadsheet"]
        return real([words[0], str(program), *words[3:]], **settings)

    return popen, go


def wait(holds: Callable[[], bool]) -> None:
    """Until it holds, or the test has failed."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


if __name__ == "__main__":
    from broadsheet.serve.jobs import Jobs

    home = Path(sys.argv[1])
    subprocess.Popen, _ = stubbed(home)  # type: ignore[misc,assignment]
    print(Jobs(home / "jobs").start(sys.argv[2:]).id, flush=True)
    threading.Event().wait()

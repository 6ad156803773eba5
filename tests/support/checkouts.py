"""A temporary copy of this checkout, to write papers into, and one process that runs commands in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_RUN = """
import contextlib, io, json, sys

def broadsheet(*arguments):
    from broadsheet.cli.app import main
    sys.argv = ["broadsheet", *arguments]
    main()

def pytest(*arguments):
    import pytest
    sys.exit(pytest.main(["-p", "no:cacheprovider", *arguments]))

def oracles(*arguments):
    sys.path.insert(0, "tests")
    sys.argv = ["oracles", *arguments]
    import oracles
    sys.exit(oracles.main())

def fill(path, text):
    with open(path, "w") as file:
        file.write(text)

def show(code):
    from broadsheet.page import discovery, papers
    print(json.dumps(eval(code)))

done = []
for name, *arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    status = 0
    for module in [m for m in sys.modules if m.partition(".")[0] in ("broadsheet", "oracle_adapters")]:
        del sys.modules[module]  # what a command imports is new, as in a process of its own
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            globals()[name](*arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
    done.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


def copied(folder: Path) -> Path:
    """The checkout's sources, docs and pages in `folder`; of tests the oracles, adapters and fixtures alone."""
    for name in ("src", "docs", "evidence"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "images"))
    for name in ("tests/oracle_adapters", "tests/support"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests" / "oracles").mkdir()
    for name in ("tests/conftest.py", "tests/oracles.py", "pyproject.toml", "mkdocs.yml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(*commands: tuple[str, ...], root: Path, path: str = "") -> list[tuple[int, str, str]]:
    """Run commands one after another in one process, in `root`; (exit status, stdout, stderr) of each.

    Args:
        commands: `("broadsheet", "papers")`, `("pytest", "tests/x.py")`, `("oracles", "tests/oracles")`,
            `("fill", file, text)`, or `("show", an expression)`, whose value is printed as JSON.
        path: what `PYTHONPATH` is; the sources of `root` by default.
    """
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        cwd=root,
        env=os.environ | {"PYTHONPATH": path or str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return [(int(status), out, err) for status, out, err in results]


def contents(folder: Path) -> dict[str, str]:
    """Every text file below `folder` with its content, without caches and runs."""
    skipped = ("__pycache__", "runs", "home")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not set(skipped) & set(path.parts))
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8", errors="replace") for path in files}

"""A temporary copy of this checkout, to write papers into, and one process that runs commands in it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from forks import forget, fresh

ROOT = Path(__file__).parents[2]


def broadsheet(*arguments: str) -> None:
    from broadsheet.cli.app import main

    sys.argv = ["broadsheet", *arguments]
    main()


def pytest(*arguments: str) -> None:
    import pytest

    sys.exit(pytest.main(["-p", "no:cacheprovider", *arguments]))


def oracles(*arguments: str) -> None:
    sys.path.insert(0, "tests")
    sys.argv = ["oracles", *arguments]
    import oracles

    sys.exit(oracles.main())


def fill(path: str, text: str) -> None:
    Path(path).write_text(text)


def show(code: str) -> None:
    from broadsheet.page import discovery, papers

    print(json.dumps(eval(code, {"discovery": discovery, "papers": papers})))


KINDS = {"broadsheet": broadsheet, "pytest": pytest, "oracles": oracles, "fill": fill, "show": show}


def _commands(commands: tuple[tuple[str, ...], ...]) -> list[tuple[int, str, str]]:
    """In the process of its own: exit status, stdout and stderr of each command."""
    done = []
    for kind, *arguments in commands:
        out, err = io.StringIO(), io.StringIO()
        status = 0
        forget("broadsheet", "oracle_adapters", "oracles")  # what a command imports is new
        with redirect_stdout(out), redirect_stderr(err):
            try:
                KINDS[kind](*arguments)
            except SystemExit as ended:
                status = int(ended.code or 0)
        done.append((status, out.getvalue(), err.getvalue()))
    return done


def copied(folder: Path) -> Path:
    """The checkout's sources, docs and pages in `folder`; of tests the oracles, adapters and fixtures alone."""
    shutil.copytree(ROOT / "src", folder / "src")  # compiled files too: nothing is compiled again
    for name in ("docs", "evidence"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("images"))
    for name in ("tests/oracle_adapters", "tests/support"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests" / "oracles").mkdir()
    for name in ("tests/conftest.py", "tests/oracles.py", "pyproject.toml", "mkdocs.yml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(*commands: tuple[str, ...], root: Path, path: list[str] | None = None) -> list[tuple[int, str, str]]:
    """Run commands one after another in one process, in `root`; (exit status, stdout, stderr) of each.

    Args:
        commands: `("broadsheet", "papers")`, `("pytest", "tests/x.py")`, `("oracles", "tests/oracles")`,
            `("fill", file, text)`, or `("show", an expression)`, whose value is printed as JSON.
        path: folders that modules are looked for in first; the sources of `root` by default.
    """
    results: list[tuple[int, str, str]] = fresh(_commands, commands, cwd=root, path=path or [str(root / "src")])
    return results


def contents(folder: Path) -> dict[str, str]:
    """Every text file below `folder` with its content, without caches and runs."""
    skipped = ("__pycache__", "runs", "home")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not set(skipped) & set(path.parts))
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8", errors="replace") for path in files}

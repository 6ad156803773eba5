"""The git checkout that runs, if it is one: its commit, and what changed since another.

Knows: git. Does not know: what the files are. Where broadsheet is installed as a package, there is no checkout.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_RECORDED = ":(exclude)evidence"  # what is recorded changes nothing that is measured


def root() -> Path | None:
    """The folder of the checkout; None where broadsheet is no part of one."""
    folder = Path(__file__).parents[3]
    return folder if (folder / ".git").exists() and (folder / "src" / "broadsheet").is_dir() else None


@cache
def commit(folder: Path | None = None) -> str | None:
    """The commit that is checked out, with `+` where files differ from it, those in `evidence/` aside.

    It is asked for once in a process: ask before long work begins, so that it names the code that ran.

    Args:
        folder: of the checkout; by default broadsheet's own.

    Returns:
        40 hex digits and perhaps `+`; None outside a checkout, or without git.
    """
    folder = folder or root()
    head = _git(folder, "rev-parse", "HEAD") if folder else None
    if folder is None or head is None:
        return None
    return head.strip() + "+" * bool(_git(folder, "status", "--porcelain", "--", ".", _RECORDED))


def changed(since: str, files: Iterable[Path], folder: Path) -> list[str] | None:
    """Those of `files` that differ from what they were in a commit, changes that are not committed included.

    Args:
        since: a commit, without `+`.
        files: absolute paths.
        folder: of the checkout.

    Returns:
        Paths below `folder`, sorted; None where the checkout does not hold the commit.
    """
    if _git(folder, "cat-file", "-e", f"{since}^{{commit}}") is None:
        return None
    names = sorted(file.relative_to(folder).as_posix() for file in files)
    if not names:
        return []
    found = _git(folder, "diff", "--name-only", "-z", since, "--", *names)
    return sorted(filter(None, (found or "").split("\0")))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails. A hook's settings, such as `GIT_DIR`, would lead it elsewhere."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        ran = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        return None
    return ran.stdout if ran.returncode == 0 else None

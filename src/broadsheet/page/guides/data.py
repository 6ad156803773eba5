"""The guides' data files, read once and checked for what every reader relies on.

Knows: TOML, the page's ids. Does not know: what a rule or a tree means.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def read(name: str) -> dict[str, Any]:
    """The tables of a file of this folder, such as `"rules"` or `"surveys/llm_survey"`."""
    return tomllib.loads(resources.files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))


@cache
def surveys() -> tuple[str, ...]:
    """Ids of the surveys that have a tree, sorted."""
    folder = resources.files(__package__).joinpath("surveys")
    return tuple(sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml")))

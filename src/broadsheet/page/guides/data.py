"""The guides' data files, read once and checked for what every reader relies on.

Knows: TOML, the page's ids. Does not know: what a rule or a tree means.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


@cache
def read(name: str) -> dict[str, Any]:
    """The tables of a file of this folder, such as `"rules"` or `"surveys/llm_survey"`."""
    return tomllib.loads((_HERE / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def surveys() -> tuple[str, ...]:
    """Ids of the surveys that have a tree, sorted."""
    return tuple(sorted(path.stem for path in (_HERE / "surveys").glob("*.toml")))

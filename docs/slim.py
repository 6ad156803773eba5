"""A hook for mkdocs: pages without the blank lines and indentation that templates leave, which no reader sees."""

import re
from typing import Any

_KEPT = re.compile(r"(<(?:pre|textarea|script|style)\b.*?</(?:pre|textarea|script|style)>)", re.DOTALL)


def on_post_page(output: str, **_: Any) -> str:
    """The page, with one line break for each run of blanks that holds one, outside of code and scripts."""
    parts = _KEPT.split(output)
    return "".join(part if i % 2 else re.sub(r"\s*\n\s*", "\n", part) for i, part in enumerate(parts))

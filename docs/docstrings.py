"""An extension for mkdocstrings: what the sources write plainly under `Example:` and `Options:` is shown as code.

On the terminal, where `broadsheet show` prints docstrings, both read well as they are.
"""

import re
import textwrap
from typing import Any

from griffe import Extension, Object

_SECTION = re.compile(r"^(Example|Options):\n((?:[ ]+.*(?:\n|$)|\n(?=[ ]))+)", re.MULTILINE)


class Fences(Extension):
    """Put the body of these sections between code fences."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _SECTION.sub(_fenced, obj.docstring.value)


def _fenced(section: re.Match[str]) -> str:
    language = "text" if section[1] == "Options" else "pycon" if ">>>" in section[2] else "python"
    body = re.sub(r" +# doctest: \+SKIP", "", textwrap.dedent(section[2]).strip())
    return f"**{section[1]}**\n\n```{language}\n{body}\n```\n"

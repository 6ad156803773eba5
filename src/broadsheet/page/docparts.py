"""The parts of a class's docstring: what it does, when to use it, its example.

Knows: how docstrings here are written. Does not know: any class.
"""

from __future__ import annotations

import re
import textwrap

_USE = re.compile(r"^(?:Use when|Use to|Use as)\b", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"(])")


def first_sentences(docstring: str, n: int) -> str:
    """The first `n` sentences of its first paragraph, on one line."""
    paragraph = docstring.strip().partition("\n\n")[0]
    return " ".join(_SENTENCE.split(" ".join(paragraph.split()))[:n])


def use(docstring: str) -> str:
    """When to use it, and what to prefer when: the paragraph that says so, up to two sentences; empty without one."""
    found = _USE.search(docstring)
    if found is None:
        return ""
    lines = docstring[found.start() :].partition("\n\n")[0].split("\n")
    kept = lines[:1]
    for line in lines[1:]:  # up to the next part of the docstring
        if re.match(r"[A-Z][\w ]*:(?: |$)", line) and not line.startswith("Prefer"):
            break
        kept.append(line)
    told = " ".join(_SENTENCE.split(" ".join(" ".join(kept).split()))[:2])
    return re.sub(r"^(Use \w+)(?::| …)", r"\1", told)


def example(docstring: str) -> str:
    """The code of its example, without prompts and outputs; empty without one.

    Example:
        >>> example("Example:\\n    >>> 1 + 1\\n    2")
        '1 + 1'
    """
    found = re.search(r"^Example:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    if found is None:
        return ""
    lines = textwrap.dedent(found[1]).strip().split("\n")
    if any(line.startswith(">>> ") for line in lines):
        lines = [line[4:] for line in lines if line.startswith((">>> ", "... "))]
    return "\n".join(re.sub(r"\s*# doctest:.*$", "", line) for line in lines)

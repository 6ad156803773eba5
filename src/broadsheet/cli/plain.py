"""Text on stdout, wrapped to the terminal and with words in bold, without rich: its import takes longer than a guide.

Knows: strings, terminals. Does not know: what is told.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from shutil import get_terminal_size
from textwrap import wrap

import typer

Part = str | tuple[str, str]  # a text; or one in "bold" or "dim"


def write(*parts: Part, indent: int = 0) -> None:
    """Print texts in one paragraph, wrapped to the terminal; an empty one is an empty line."""
    for line in folded(parts, " " * indent, " " * indent) or [""]:
        typer.echo(line)


def title(words: str) -> None:
    """Print a heading in bold, after an empty line."""
    write()
    write((words, "bold"))


def folded(parts: tuple[Part, ...], first: str, rest: str) -> list[str]:
    """Lines of a paragraph: `first` stands before the first one, `rest` before the others."""
    told = [(part, "") if isinstance(part, str) else part for part in parts]
    text = re.sub(r"\s", " ", "".join(words for words, _ in told))
    styles = [style for words, style in told for _ in words]
    width = max(get_terminal_size().columns, len(first) + 20, len(rest) + 20)
    lines, at, before = [], 0, first
    for whole in wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False):
        line = whole[len(before) :]
        at = text.index(line, at)
        lines.append(before + "".join(_styled(line, styles[at : at + len(line)])))
        at, before = at + len(line), rest
    return lines


def _styled(line: str, styles: list[str]) -> Iterator[str]:
    for style, letters in groupby(zip(styles, line, strict=True), key=lambda each: each[0]):
        words = "".join(letter for _, letter in letters)
        styled = style and _styles()
        yield typer.style(words, bold=style == "bold" or None, dim=style == "dim" or None) if styled else words


def _styles() -> bool:
    """Whether the terminal shows bold words; where stdout is none, typer takes them out."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")

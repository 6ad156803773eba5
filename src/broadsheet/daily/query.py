"""A search as it is typed: words, "phrases", and what a paper has to be.

    speculative decoding "draft model" author:liu cat:cs.CL is:unread runs:yes after:2024-05

Knows: the words of the search line. Does not know: papers. Nothing that is typed is an error: what is no condition is
words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

STATES = ("read", "unread", "later", "hidden", "seed", "noted")
# Words that say nothing of what a paper is about; they count where nothing else is typed.
_SMALL = """
    a about an and any are as at be been but by can do does for from had has have how i if in into is it its
    many more most much no not of on or our over same so some such than that the their them then there these
    they this those to too under up very was we were what when where which while who whole why will with would
    you your
"""
_EMPTY = frozenset(_SMALL.split())
_OPPOSITE = {"read": "unread", "unread": "read"}
_PART = re.compile(r'(-?)(?:(author|cat|is|runs|after|before):)?("[^"]*"?|\S+)', re.IGNORECASE)
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        words: any of which a paper has; the more, and the rarer, the better.
        phrases: all of which it has.
        without: words and phrases that it has not.
        authors, categories: all of which it has.
        states: of the user's marks, see `STATES`.
        runs: whether it can be tried here; None: either.
        after, before: a day, month or year, the first that counts and the first that does not.
    """

    words: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    runs: bool | None = None
    after: str = ""
    before: str = ""

    @property
    def plain(self) -> str:
        """Its words and phrases alone, as a text."""
        return " ".join([*self.words, *self.phrases])

    @property
    def telling(self) -> tuple[str, ...]:
        """Its words without those that say nothing of what a paper is about; all where no other is typed."""
        return tuple(word for word in self.words if word.lower() not in _EMPTY) or self.words


def parse(text: str) -> Query:
    """What a line asks for.

    Example:
        >>> parse('draft "tree mask" author:liu after:2024').phrases
        ('tree mask',)
    """
    found: dict[str, list[str]] = {}
    single: dict[str, Any] = {}
    for minus, name, given in _PART.findall(text):
        name, value = name.lower(), given.strip('"')
        if not any(char.isalnum() for char in value):
            continue
        match name:
            case "author" if not minus:
                found.setdefault("authors", []).append(value)
            case "cat" if not minus:
                found.setdefault("categories", []).append(value)
            case "is" if value.lower() in STATES:
                state = _OPPOSITE.get(value.lower(), "") if minus else value.lower()
                found.setdefault("states", []).append(state)
            case "runs" if value.lower() in ("yes", "no"):
                single["runs"] = (value.lower() == "yes") != bool(minus)
            case "after" | "before" if _DATE.fullmatch(value) and not minus:
                single[name] = value
            case _:
                kind = "without" if minus else "phrases" if given.startswith('"') else "words"
                found.setdefault(kind, []).append(f"{name}:{value}" if name else value)
    lists: dict[str, Any] = {name: tuple(filter(None, values)) for name, values in found.items()}
    return Query(**lists, **single)

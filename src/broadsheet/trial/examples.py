"""Examples of a trial: which items are shown, and how what arms made of them is put in words.

Knows: texts, numbers by arm. Does not know: what a trial asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from textwrap import shorten

import numpy as np
from scipy.stats import rankdata

from broadsheet.trial.results import Example
from broadsheet.trial.stats import Floats

MOST = 5  # of a report
CHARACTERS = 240  # of a text in them


def excerpt(text: str, characters: int = CHARACTERS) -> str:
    """The beginning of a text on one line, cut between words."""
    line = " ".join(text.split())
    return shorten(line, characters, placeholder=" …") if " " in line[:characters] else line[:characters]


def ending(text: str, characters: int = CHARACTERS) -> str:
    """The end of a text on one line, cut between words."""
    line = " ".join(text.split())
    if len(line) <= characters:
        return line
    tail = line[-characters:]
    return f"… {tail.partition(' ')[2] or tail}"


def marked(right: bool, text: str) -> str:
    """`"✓ text"` or `"✗ text"`."""
    return f"{'✓' if right else '✗'} {text}"


def first_found(query: str, firsts: Mapping[str, tuple[bool, str]], right: str | None = None) -> Example:
    """What each arm puts first for a query.

    Args:
        firsts: by arm, whether that is right, and its text.
        right: a text that would have been; None where there is none.
    """
    told = {name: marked(good, excerpt(text)) for name, (good, text) in firsts.items()}
    return Example(excerpt(query), told, "" if right is None else f"Right: {excerpt(right)}")


def standing(values: Sequence[float]) -> Floats:
    """(n,) values to the share of the others that each exceeds; equal ones count half."""
    ranks = np.asarray(rankdata(values), dtype=np.float64)
    return (ranks - 1) / max(1, len(ranks) - 1)


def most_apart(answers: Sequence[Mapping[str, object]], n: int = MOST) -> list[int]:
    """Places of the items on which arms differ most, those first; among equals the earlier one.

    Args:
        answers: of each item, by arm. Numbers differ by their range, all else by how many different ones there are.
    """

    def spread(row: Mapping[str, object]) -> float:
        values = list(row.values())
        if values and all(isinstance(value, (int, float)) for value in values):
            return float(np.ptp(np.asarray(values, dtype=np.float64)))
        return len(set(map(str, values)))

    return sorted(range(len(answers)), key=lambda place: (-spread(answers[place]), place))[:n]


def together(tasks: Sequence[Sequence[Example]]) -> list[Example]:
    """A few examples of each task, no more than fit a report."""
    told = [examples for examples in tasks if examples]
    each = -(-MOST // max(1, len(told)))
    return list(chain.from_iterable(examples[:each] for examples in told))[:MOST]

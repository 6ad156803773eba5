"""What an answer to numbered questions says, question by question; and what of it cannot be trusted.

Knows: the text of an answer. Does not know: the questions, models. The form is the paper's; what is done where a model
does not keep to it is ours: an answer that may belong to another question is none.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

from broadsheet.curate.tables.records import MISSING, quoted

_MARKS = r"[\s*_#>`-]*"
_HEADER = re.compile(
    rf"^{_MARKS}(answer|question)\s*#?\s*(\d+)[ \t*_`]*(?:[:.)–—-]|$)[ \t*_`]*", re.IGNORECASE | re.MULTILINE
)
_LABEL = re.compile(rf"^{_MARKS}(?:final\s+)?answer{_MARKS}:{_MARKS}", re.IGNORECASE)
_YES_NO = re.compile(r"(yes|no)\s*(?:$|[.,;:!])", re.IGNORECASE)
_AROUND = " \t*_`\"'“”‘’()[]"


@dataclass(frozen=True)
class Said:
    """One answer: its last line, and what stands before it."""

    answer: str
    reason: str


def split(text: str, questions: int, *, cut: bool = False) -> dict[int, Said]:
    """What is said to each of the questions 1, 2, …; those without an answer are left out.

    Answers are found by their numbers. Where the numbers cannot be those of the questions, nothing is taken: one comes
    twice, falls, or is larger than there are questions. A single question needs no number.

    Args:
        cut: the text ended because it grew too long: its last answer is left out.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    headers = [found for found in _HEADER.finditer(text) if found[0].strip()]
    answers = [found for found in headers if found[1].lower() == "answer"]
    if not answers:
        said = _said(text) if questions == 1 and not headers and not cut else None
        return {1: said} if said else {}
    numbers = [int(found[2]) for found in answers]
    if any(after <= before for before, after in pairwise(numbers)):
        return {}
    if not 1 <= numbers[0] <= numbers[-1] <= questions:
        return {}
    ends = {found.start(): after.start() for found, after in pairwise(headers)}
    made = {}
    for number, found in zip(numbers, answers, strict=True):
        said = _said(text[found.end() : ends.get(found.start(), len(text))])
        if said and not (cut and found is headers[-1]):
            made[number] = said
    return made


def _said(block: str) -> Said | None:
    lines = [line.strip() for line in block.split("\n") if line.strip()]
    return Said(_LABEL.sub("", lines[-1]).strip(), " ".join(lines[:-1])) if lines else None


def yes_no(text: str) -> bool | None:
    """`"yes"`, `"**No**"` and `"Yes, it is."` as True or False; None for what is neither.

    Example:
        >>> yes_no("**No**"), yes_no("Yes, it is."), yes_no("There is no error.")
        (False, True, None)
    """
    found = _YES_NO.match(text.strip(_AROUND + "\n").replace("*", "").replace('"', ""))
    return None if found is None else found[1].lower() == "yes"


def value(text: str, column: str = "") -> str | None:
    """A value without what was put around it: quotes as in a record, or marks of emphasis; None where there is none.

    Args:
        column: whose name may stand before the value.

    Example:
        >>> value('"new york"'), value('city: "atlanta"', "city"), value("?")
        ('new york', 'atlanta', None)
    """
    text = text.strip()
    for name in filter(None, (column, column and quoted(column))):
        if text.lower().startswith(f"{name}:".lower()):
            text = text[len(name) + 1 :].strip()
    if text[:1] == text[-1:] == '"' and len(text) > 1:
        with suppress(ValueError):
            text = str(json.loads(text))
    for mark in ("**", "__", "`", "'"):
        if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
            text = text[len(mark) : -len(mark)]
    text = text.strip()
    return None if not text or set(text) <= set(MISSING) else text

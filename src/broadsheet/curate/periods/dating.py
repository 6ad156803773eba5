"""When a work was written: the year that its metadata gives, or that a teacher says, and where the year comes from.

Knows: metadata, answers. Does not know: periods. A teacher's year is memory, not evidence: its source and its
confidence stay beside it.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from datatrove.data import Document

from broadsheet.curate.base import Decision, Step

YEAR, SOURCE, CONFIDENCE = "year", "year_source", "year_confidence"
TOKENS = 100  # of an answer, at most
_DATE = re.compile(r"\s*(-?\d{1,4})(?:-\d{2}(?:-\d{2}(?:[T ].*)?)?)?\s*")


def year_of(told: Any) -> int | None:
    """A year as `int()` reads it, and nothing else: "around 1830", "1830-31" and "" are None. Nothing is guessed.

    Example:
        >>> [year_of(told) for told in (1830, "1830", "around 1830", "1830-31", None)]
        [1830, 1830, None, None, None]
    """
    if isinstance(told, float):  # as tables hold whole numbers beside missing ones
        return int(told) if told.is_integer() else None
    try:
        return None if isinstance(told, bool) else int(str(told))
    except ValueError:
        return None


def year_of_date(told: Any) -> int | None:
    """The year of a day of birth or death: a year, or a date that begins with it, as "1775-12-16"."""
    if (year := year_of(told)) is not None:
        return year
    found = _DATE.fullmatch(str(told))
    return int(found[1]) if found else None


class AttributeDate(Step):
    """Give each work its year: `metadata["year"]`, with `["year_source"]` beside it, and a teacher's confidence.

    What the metadata gives is taken as it is; a teacher is asked about the others by title and author. Dropped are an
    `unparsable_year`, of either; a work that is `undated` without a teacher; and one with `no_title` to ask about.

    Args:
        field: of the metadata, that may hold a year.
        teacher: a `Teacher`, or what `Teacher.load` takes; None asks none.
        title, author: fields that a teacher is asked by.
        others: as of a `Step`.
    """

    name = "dates"

    def __init__(
        self, field: str = YEAR, teacher: Any = None, title: str = "title", author: str = "author", **others: Any
    ) -> None:
        super().__init__(**others)
        self.field, self.teacher, self.title, self.author = field, teacher, title, author

    def decide(self, documents: list[Document]) -> list[Decision]:
        given = [document.metadata.get(self.field) for document in documents]
        asked = [i for i, year in enumerate(given) if year in (None, "") and documents[i].metadata.get(self.title)]
        answers = dict(zip(asked, self._answers([documents[i].metadata for i in asked]), strict=True))
        return [self._decide(document, given[i], answers.get(i)) for i, document in enumerate(documents)]

    def _decide(self, document: Document, given: Any, answer: Any) -> Decision:
        if given not in (None, ""):
            return self._dated(document, given, "metadata")
        if self.teacher is None:
            return False, "undated"
        if answer is None:
            return False, "no_title"
        if answer.logprobs:
            logprobs = [each.logprob for each in answer.logprobs]
            document.metadata[CONFIDENCE] = round(math.exp(sum(logprobs)), 4)
        return self._dated(document, answer.text, f"teacher {self._name}")

    def _dated(self, document: Document, told: Any, source: str) -> Decision:
        year = year_of(told)
        if year is None:
            return False, "unparsable_year"
        document.metadata |= {YEAR: year, SOURCE: source}
        return True

    def _answers(self, works: Sequence[Mapping[str, Any]]) -> list[Any]:
        """What the teacher says of each: deterministic, and kept in its cache."""
        if self.teacher is None or not works:
            return [None] * len(works)
        asked = [self._question(work) for work in works]
        found = self._teacher.chat(asked, temperature=0, max_tokens=TOKENS, logprobs=True)
        return [answers[0] for answers in found]

    def _question(self, work: Mapping[str, Any]) -> str:
        by = f" by {work[self.author]}" if work.get(self.author) else ""
        return f"In which year was “{work[self.title]}”{by} written? Answer with the year alone, as four digits."

    @cached_property
    def _teacher(self) -> Any:
        from broadsheet.teacher import Teacher

        return self.teacher if hasattr(self.teacher, "chat") else Teacher.load(self.teacher)

    @property
    def _name(self) -> str:
        return self.teacher if isinstance(self.teacher, str) else type(self.teacher).__name__

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_teacher"}  # a worker loads its own

    def __deepcopy__(self, memo: dict[int, Any]) -> AttributeDate:
        made = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__getstate__(), {**memo, id(self.teacher): self.teacher}))
        return made

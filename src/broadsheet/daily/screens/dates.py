"""Days, weeks and months as the page's addresses name them: 2024-08-18, 2024-W33, 2024-08.

Knows: the calendar. Does not know: papers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

from broadsheet.console import InputError

Kind = Literal["day", "week", "month"]
_FORMS = {
    "day": (re.compile(r"(\d{4})-(\d{2})-(\d{2})", re.ASCII), "a day, such as 2024-08-18"),
    "week": (re.compile(r"(\d{4})-W(\d{2})", re.ASCII), "a week, such as 2024-W33"),
    "month": (re.compile(r"(\d{4})-(\d{2})", re.ASCII), "a month, such as 2024-08"),
}
_FIRST, _LAST = 1991, 2199  # years: arXiv's first, and one from which every calendar still goes on
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Span:
    """A day, week or month.

    Attributes:
        begin, end: its first day and its last.
    """

    kind: Kind
    begin: date
    end: date

    @property
    def key(self) -> str:
        """As addresses have it."""
        if self.kind == "week":
            year, week, _ = self.begin.isocalendar()
            return f"{year}-W{week:02}"
        return self.begin.isoformat() if self.kind == "day" else self.begin.isoformat()[:7]

    @property
    def url(self) -> str:
        return f"/{self.kind}/{self.key}"

    @property
    def words(self) -> str:
        """`"Sunday 18 August 2024"`, `"Week 33, 12 to 18 August 2024"`, `"August 2024"`."""
        if self.kind == "day":
            return f"{weekday(self.begin)} {day_words(self.begin)}"
        if self.kind == "month":
            return f"{_MONTHS[self.begin.month - 1]} {self.begin.year}"
        begin, end = day_words(self.begin).split(), day_words(self.end).split()
        same = sum(one == other for one, other in zip(begin[1:], end[1:], strict=True))
        start = " ".join(begin[: 3 - same if begin[2] == end[2] else 3])
        return f"Week {self.begin.isocalendar().week}, {start} to {' '.join(end)}"


def span(kind: Kind, text: str) -> Span:
    """The day, week or month of an address.

    Raises:
        InputError: it is none.
    """
    form, expected = _FORMS[kind]
    found = form.fullmatch(text)
    try:
        if found is None or not _FIRST <= int(found[1]) <= _LAST:
            raise ValueError
        numbers = [int(each) for each in found.groups()]
        if kind == "week":
            return of(kind, date.fromisocalendar(numbers[0], numbers[1], 1))
        return of(kind, date(numbers[0], numbers[1], numbers[2] if kind == "day" else 1))
    except ValueError:
        raise InputError(f"got {text[:40]!r}; expected {expected}") from None


def of(kind: Kind, day: date) -> Span:
    """The day, week or month that a day is in."""
    if kind == "day":
        return Span(kind, day, day)
    if kind == "week":
        begin = day - timedelta(days=day.weekday())
        return Span(kind, begin, begin + timedelta(days=6))
    begin = day.replace(day=1)
    return Span(kind, begin, (begin + timedelta(days=31)).replace(day=1) - timedelta(days=1))


def before(one: Span) -> Span:
    """The one before it."""
    return of(one.kind, one.begin - timedelta(days=1))


def after(one: Span) -> Span:
    """The one after it."""
    return of(one.kind, one.end + timedelta(days=1))


def known(text: str) -> date | None:
    """The day with which a time or date begins; None where it begins with none."""
    try:
        return date.fromisoformat(text[:10]) if _FORMS["day"][0].fullmatch(text[:10]) else None
    except ValueError:
        return None


def weekday(day: date) -> str:
    return _DAYS[day.weekday()]


def day_words(day: date) -> str:
    """`"18 August 2024"`."""
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def words(text: str) -> str:
    """A time as `"18 August 2024"`, a part of a date as it is."""
    day = known(text)
    return day_words(day) if day else text[:10]

"""Bringing the store up to date from the sources, a page at a time.

Each page and the place after it are written together: a run that is killed goes on where it was, and nothing is there
twice. A source that fails, or tells less than before, takes nothing away. Each source ends in one line, which says why
nothing is new where nothing is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from broadsheet.console import InputError
from broadsheet.daily.records import Record, line
from broadsheet.daily.sources import arxiv, hf
from broadsheet.daily.sources.base import ExpiredError, Page, SourceError
from broadsheet.daily.sources.fetch import Fetcher, NoAnswerError, Places
from broadsheet.daily.store import Added, Store

KINDS = "hf, hf:2024-08-18, hf:2024-W33, hf:2024-08, arxiv:cs.CL, arxiv-query:QUERY, arxiv-known"
HF_ROWS = 100
SLICE = 200  # papers of one answer of the query API
MOST = 1_000  # of one query, the latest
IDS = 100
BEGUN = "it is being asked"  # what came of a source whose run has not ended
_ANSWER = "answer"  # what parsers call what they read; the source is told anyway
_FIRST, _LATEST = 7, 31  # days that are read at first, and at most
_LAG = 5  # days from a submission to its announcement, at most: a long weekend
_WEEKEND = (5, 6)
_EASTERN = timedelta(hours=-5)  # arXiv's day, without its summer time: an hour more or less hardly matters
_TYPED = re.compile(r"\+(TO|AND|OR|ANDNOT)\+")


@dataclass(frozen=True)
class Spec:
    """A source online, as the user writes it.

    Attributes:
        kind: `"hf"`, `"arxiv"`, `"arxiv-query"` or `"arxiv-known"`.
        what: the day, week or month; the categories; the query.
    """

    kind: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.what}" if self.what else self.kind

    def where(self, places: Places) -> str:
        """Where it is asked, and about what."""
        if self.kind == "arxiv":
            return f"{places.rss} (and {places.oai} for missed days) about {self.what}"
        return f"{places.hf if self.kind == 'hf' else places.query} about {self.what or 'what is new'}"

    @classmethod
    def of(cls, text: str) -> Spec | None:
        """What a text names; None where it is no source online but perhaps a file.

        Raises:
            InputError: it begins as one, and does not go on as one.
        """
        kind, colon, what = text.partition(":")
        what = what.strip()
        if kind not in ("hf", "arxiv", "arxiv-query", "arxiv-known"):
            return None
        if kind == "hf" and (bool(what) != bool(colon) or (what and _parameter(what) is None)):
            raise InputError(f"got {line(text)}; expected hf, hf:2024-08-18, hf:2024-W33 or hf:2024-08")
        if kind == "arxiv":
            if not what:
                raise InputError(f"got {line(text)}; expected categories, as in arxiv:cs.CL or arxiv:cs.CL+cs.LG")
            for category in what.split("+"):
                arxiv.oai_set(category)
        if kind == "arxiv-query" and not what:
            raise InputError("got arxiv-query without a query; expected one as in 'arxiv-query:cat:cs.CL AND ti:rank'")
        if kind == "arxiv-known" and colon:
            raise InputError(f"got {line(text)}; expected arxiv-known alone")
        return cls(kind, what)

    @classmethod
    def online(cls, text: str) -> Spec:
        """The source online that a text names.

        Raises:
            InputError: it names none.
        """
        found = cls.of(text)
        if found is None:
            raise InputError(f"got {line(text)}; expected {KINDS} (a file: broadsheet page add {line(text)})")
        return found


@dataclass(frozen=True)
class Outcome:
    """What came of asking a source.

    Attributes:
        line: in words.
        status: 0 it answered, 1 it may answer later, 2 it will not answer this.
    """

    source: str
    line: str
    status: int
    added: Added


def sync(
    store: Store, specs: Sequence[Spec], fetcher: Fetcher, *, size: int = SLICE, most: int = MOST
) -> Iterator[Outcome]:
    """Ask each source, one after the other, and take in what it tells.

    Args:
        size: papers of one answer of arXiv's query API.
        most: papers of one query, the latest.

    Yields:
        An outcome for each source, as soon as it is known.
    """
    for spec in dict.fromkeys(specs):
        run = _Run(store, fetcher, str(spec), size, most)
        asks = {"hf": run.hf, "arxiv": run.arxiv, "arxiv-query": run.query, "arxiv-known": run.known}
        try:
            status, reason = 0, asks[spec.kind](spec.what)
        except NoAnswerError as error:
            status, reason = 1, f"{error}"
        except SourceError as error:
            status, reason = 2, f"{error}"
        reason = reason.removeprefix(f"{_ANSWER}: ")
        told = f"{spec}: {_counted(run.added)}{': ' * (reason[:1] not in (';', ''))}{reason}"
        store.note_asked(str(spec), told, json.dumps(run.state))
        yield Outcome(str(spec), told, status, run.added)


class _Run:
    """One source's run: `state` is what the next one must know, written with every page."""

    def __init__(self, store: Store, fetcher: Fetcher, source: str, size: int, most: int) -> None:
        self.store, self.fetcher, self.source, self.size, self.most = store, fetcher, source, size, most
        self.added = Added()
        self.rows = 0
        known = store.asked(source)
        try:
            state = json.loads(known[2]) if known and known[2] else {}
        except ValueError:
            state = {}
        self.state: dict[str, Any] = state if isinstance(state, dict) else {}

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.fetcher.clock(), UTC)

    @property
    def at(self) -> str:
        return f"{self.time:%Y-%m-%dT%H:%M:%SZ}"

    def take(self, page: Page, since: str = "", **state: Any) -> None:
        """Take in a page and the place after it: both or neither.

        What is replaced, or was submitted before `since`, is not new, also where it is seen here for the first time.
        """
        after = self.state | state
        fresh: list[Record] = []
        old: list[Record] = []
        for each in page.records:
            new = bool(each.listings) or (each.source != "rss" and each.published >= since)
            (fresh if new else old).append(each)
        with self.store.writing():
            for added in (self.store.add(fresh), _not_new(self.store.add(old))):
                self.added = Added(*(one + more for one, more in zip(self.added, added, strict=True)))
            self.store.note_asked(self.source, BEGUN, json.dumps(after))
        self.state = after
        self.rows += page.rows

    def zero(self, reason: str) -> str:
        """A reason why nothing is new, where nothing is."""
        return "" if self.added.new else reason

    # Hugging Face

    def hf(self, what: str) -> str:
        today = self.time.date()
        if what:
            [(name, value)] = (_parameter(what) or {}).items()
            why = self._hf_list(name, value, today)
            return self.zero(why or f"all {self.rows} are here already")
        last = _day(self.state.get("day"))
        begin = max(last, today - timedelta(days=_LATEST)) if last else today - timedelta(days=_FIRST)
        reasons = []
        for number in range((today - begin).days + 1):
            day = begin + timedelta(days=number)
            why = self._hf_list("date", day.isoformat(), today)
            if why:
                reasons.append(why)
            if not why.endswith("not open yet"):
                self.state["day"] = day.isoformat()
        skipped = f"; days before {begin} are left out" if last and last < begin else ""
        return self.zero(reasons[-1] if reasons else f"all {self.rows} are here already") + skipped

    def _hf_list(self, name: str, value: str, today: date) -> str:
        """Read a day, week or month to its end; says why it is empty, or shorter than before."""
        day, rows = (value if name == "date" else ""), 0
        before = self._listed(day) if day else 0
        for number in range(1_000):
            status, data = self.fetcher.get(
                f"{self.fetcher.places.hf}/api/daily_papers", {name: value, "limit": HF_ROWS, "p": number}
            )
            if status == 400 and (begins := _first_day(name, value)) and begins >= today - timedelta(days=1):
                return f"{value} is not open yet"
            _expect(status, data)
            page = hf.parse(data, at=self.at, day=day, first=rows, name=_ANSWER)
            rows += page.rows
            self.take(page)
            if page.rows < HF_ROWS:
                break
        if rows == 0:
            weekday = date.fromisoformat(day).strftime("%A") if day else ""
            weekend = bool(day) and date.fromisoformat(day).weekday() in _WEEKEND
            return (
                f"{weekday} {value}, the list may stay empty at weekends"
                if weekend
                else f"the list of {value} is empty"
            )
        return f"{value} lists {rows} now, {before} before; those stay" if rows < before else ""

    def _listed(self, day: str) -> int:
        return sum(hf.SOURCE in [each.source for each in by_whom] for by_whom in self.store.places(day).values())

    # arXiv's lists

    def arxiv(self, what: str) -> str:
        started, before = self.time.date().isoformat(), _day(self.state.get("day"))
        status, data = self.fetcher.get(f"{self.fetcher.places.rss}/{what}")
        _expect(status, data)
        page = arxiv.announced(data, listing=self.source, name=_ANSWER)
        day = _day(page.day) or (self.time + _EASTERN).date()
        missed = before is not None and "from" in self.state and _misses(before, day)
        todo = self.state.get("todo") or (what.split("+") if missed else [])
        state: dict[str, Any] = {"todo": todo, "next": self.state.get("next") if self.state.get("todo") else started}
        self.take(page, **state, **({"day": day.isoformat()} if page.rows or "day" not in self.state else {}))
        if todo:
            begin = self.state["from"]
            try:
                self._catch_up(begin)
            except NoAnswerError as error:
                raise NoAnswerError(f"catching up from {begin}: {error}; run again to go on", error.again) from None
        self.state |= {"from": self.state.get("next") or started, "todo": [], "next": ""}
        if not page.rows:
            name = day.strftime("%A")
            if day.weekday() in _WEEKEND:
                return self.zero(f"{name}, arXiv announces Sunday to Thursday")
            return self.zero(f"the list is empty on a {name}: a holiday, or arXiv is late")
        replaced = page.rows - sum(page.kinds.get(kind, 0) for kind in arxiv.NEW)
        if before == day:
            return self.zero(f"the list of {day} is here already")
        return self.zero(f"{day} lists {page.rows}, {replaced} of them replaced; all are known")

    def _catch_up(self, begin: str) -> None:
        """Read what has changed since a day, category by category, by OAI-PMH."""
        again, since = False, (date.fromisoformat(begin) - timedelta(days=_LAG)).isoformat()
        while self.state["todo"]:
            token = self.state.get("token") or ""
            first = {"metadataPrefix": "arXiv", "set": arxiv.oai_set(self.state["todo"][0]), "from": begin}
            status, data = self.fetcher.get(
                self.fetcher.places.oai, {"verb": "ListRecords", **({"resumptionToken": token} if token else first)}
            )
            _expect(status, data)
            try:
                page = arxiv.oai(data, name=_ANSWER)
            except ExpiredError:
                if not token or again:
                    raise
                again, self.state["token"] = True, ""
                continue
            self.take(page, since, token=page.more, todo=self.state["todo"][0 if page.more else 1 :])

    # arXiv's query API

    def query(self, what: str) -> str:
        day = (self.time + _EASTERN).date().isoformat()
        asked = {"search_query": _TYPED.sub(r" \1 ", what), "sortBy": "submittedDate", "sortOrder": "descending"}
        if self.state.get("day") != day:
            self.state = {"day": day, "start": 0, "total": None}
        elif self._wanted() is not None and self.state["start"] >= self._wanted():
            return "asked today already; what arXiv finds changes once a day"
        while self._wanted() is None or self.state["start"] < self._wanted():
            start = self.state["start"]
            page = self._slice({**asked, "start": start, "max_results": self.size})
            total = page.total if page.total is not None else start + page.rows
            if not page.rows and start < total:
                raise NoAnswerError(f"incomplete, {start:,} of {total:,}: arXiv sends empty pages; run again to go on")
            self.take(page, start=start + page.rows, total=total)
        if not self.state["total"]:
            return "no paper matches"
        wanted = self._wanted()
        left = f"; the latest {wanted:,} of {self.state['total']:,} were asked for"
        return self.zero(f"all {self.rows} are here already") + left * (wanted < self.state["total"])

    def known(self, what: str) -> str:
        missing = self.store.without_abstract()
        for begin in range(0, len(missing), IDS):
            some = missing[begin : begin + IDS]
            page = self._slice({"id_list": ",".join(some), "start": 0, "max_results": len(some)})
            self.take(page)
        left = len(self.store.without_abstract())
        told = f"{len(missing) - left} of {len(missing)} papers without an abstract have one now"
        return told if missing else "every paper here has an abstract"

    def _slice(self, given: dict[str, str | int]) -> Page:
        """A page of an answer; an empty one within it is asked for once more."""
        for _ in range(2):
            status, data = self.fetcher.get(self.fetcher.places.query, given)
            if status >= 500 or b"<feed" not in data[:1000]:
                _expect(status, data)
            page = arxiv.query(data, name=_ANSWER)  # an error is a feed, too, with a status of an error or not
            _expect(status, data)
            if page.rows or page.total is None or int(given["start"]) >= page.total:
                break
        return page

    def _wanted(self) -> Any:
        """How many papers are wanted of a query; None as long as arXiv has not said how many there are."""
        total = self.state.get("total")
        return None if total is None else min(total, self.most)


def _not_new(added: Added) -> Added:
    return Added(0, added.new + added.changed, added.same, added.listings)


def _counted(added: Added) -> str:
    parts = [f"{added.new:,} new"] + [f"{added.changed:,} changed"] * bool(added.changed)
    return ", ".join(parts + [f"{added.same:,} known"] * bool(added.same and added.new))


def _expect(status: int, data: bytes) -> None:
    """See that an answer is one."""
    if 200 <= status < 300:
        return
    text = data[:300].decode("utf-8", "replace")
    try:
        said = str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        said = "" if text.lstrip()[:1] == "<" else text
    words = f"{status}{': ' * bool(line(said))}{line(said)[:120]}"
    if status >= 500:
        raise NoAnswerError(f"{words}; ask again later")
    raise SourceError(words)


def _parameter(what: str) -> dict[str, str] | None:
    """The parameter of a daily list; None where it is no day, week or month that there is."""
    name = {10: "date", 8: "week", 7: "month"}.get(len(what), "")
    return {name: what} if name and _first_day(name, what) else None


def _first_day(name: str, value: str) -> date | None:
    patterns = {"date": r"\d{4}-\d\d-\d\d", "week": r"\d{4}-W\d\d", "month": r"\d{4}-\d\d"}
    if not re.fullmatch(patterns[name], value, re.ASCII):
        return None
    return _day(value + {"date": "", "week": "-1", "month": "-01"}[name])


def _day(text: Any) -> date | None:
    try:
        return date.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _misses(before: date, now: date) -> bool:
    """Whether a list was announced between two days: there is one a weekday."""
    between = ((now - before).days - 1) if now > before else 0
    return any((before + timedelta(days=number + 1)).weekday() not in _WEEKEND for number in range(min(between, 7)))

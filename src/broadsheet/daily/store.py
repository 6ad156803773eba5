"""The papers of the page: what sources said, what the user says of them.

Knows: the tables, how records become papers (`records`). Does not know: which database holds them (`databases`),
formats, sources, screens. Threads and processes may read while one writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError
from broadsheet.daily import ids
from broadsheet.daily.databases.base import Database
from broadsheet.daily.databases.postgres import SCHEMES, PostgresServer
from broadsheet.daily.databases.sqlite import SqliteFile
from broadsheet.daily.records import TOLD, Fact, Listing, Record, plain, together
from broadsheet.page import papers

_COLUMNS = ("id", "version", *TOLD, "listed")
ALL = 2**62  # as a limit
_AT_ONCE = 10_000  # values of one query: SQLite takes 32,766 at most
_ORDERS = {
    "newest": "published DESC, paper.id DESC",
    "listed": "listed DESC, published DESC, paper.id DESC",
    "title": "lower(title), paper.id",
}
_STATES = ("read", "later", "hidden", "seed")
_LISTS = ("authors", "categories")
ONLINE = ("hf", "arxiv", "arxiv-query", "arxiv-known")  # kinds of sources online


@dataclass(frozen=True)
class Mark:
    """What the user says of a paper.

    Attributes:
        read, later, hidden: it was read, is to be read, is of no interest.
        seed: more like it are wanted.
        changed: when that was said last.
    """

    read: bool = False
    later: bool = False
    hidden: bool = False
    seed: bool = False
    note: str = ""
    changed: str = ""


@dataclass(frozen=True)
class Article:
    """A paper as it is shown.

    Attributes:
        listed: the latest day on which a source listed it; empty for one that none did.
        Else as in `Record`.
    """

    id: str
    version: int
    title: str
    abstract: str
    authors: tuple[str, ...]
    categories: tuple[str, ...]
    published: str
    updated: str
    comment: str
    journal: str
    doi: str
    listed: str
    mark: Mark = field(default=Mark(), compare=False)

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.id}"


@dataclass(frozen=True)
class Topic:
    """What the user follows: papers that a query finds, perhaps nearer to some papers than to others."""

    name: str
    query: str = ""
    likes: tuple[str, ...] = ()
    dislikes: tuple[str, ...] = ()
    changed: str = ""


@dataclass(frozen=True)
class Choice:
    """Which papers a list has, and in what order.

    Attributes:
        mark: what the user says of them, as `marked` has it; empty: any that are not hidden.
        order: `"newest"`, `"listed"` or `"title"`.
        within: of these papers alone; None: of all.
        without: none of these.
    """

    mark: str = ""
    order: str = "newest"
    within: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()


class Added(NamedTuple):
    """What came of an import: papers that are new, that say something else now, that say the same, and new listings."""

    new: int = 0
    changed: int = 0
    same: int = 0
    listings: int = 0


def default_path() -> Path:
    """Where the papers lie."""
    return home() / "page.sqlite"


def now() -> str:
    """The time, `"2024-07-02T17:00:00Z"`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def database(place: str | Path) -> Database:
    """The database of a place: a file, or the address of a PostgreSQL server.

    Raises:
        InputError: it cannot be used, with the reason.
    """
    if isinstance(place, str) and place.startswith(SCHEMES):
        return PostgresServer(place)
    return SqliteFile(Path(place))


class Store:
    """The papers of one database, whose tables are made where they are missing; the 79 of this project are in it.

    Args:
        place: a file, or `"postgresql://user@host/database"`.
        clock: the time, as `now` gives it.

    Attributes:
        db: the database, for those who keep tables of their own in it.

    Raises:
        InputError: the database is none of ours, damaged, of a later version, cannot be written, or does not answer.

    Example:
        store = Store(default_path())
        store.add(records)
        [article] = store.articles(["2407.12021"])
    """

    def __init__(self, place: str | Path, clock: Callable[[], str] = now) -> None:
        self.db, self.clock = database(place), clock
        self._start()

    @property
    def name(self) -> str:
        """Where the papers are, as it is told to people."""
        return self.db.name

    # Papers

    def add(self, records: Iterable[Record]) -> Added:
        """Take in what sources say; all of it or, where something fails, nothing.

        Nothing is ever removed: a source that says less than before leaves what it said.
        """
        new = changed = same = listings = 0
        with self.writing():
            for record in records:
                before = self._told(record.id)
                told = json.dumps(record.told(), ensure_ascii=False, sort_keys=True)
                was = together(before) if before else None
                if self.db.run(
                    "INSERT INTO told VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (record.id, record.source, fingerprint([record.version, told]), record.version, told),
                ):
                    merged = together([*before, record])
                    self._show(merged)
                    new, changed = new + (was is None), changed + (was is not None and _shown(merged) != _shown(was))
                    same += was is not None and _shown(merged) == _shown(was)
                else:
                    same += 1
                listings += self._list(record)
                for fact in record.facts:  # of two values of one time the same one in any order
                    self.db.run(
                        "INSERT INTO fact VALUES (?, ?, ?, ?, ?) ON CONFLICT (id, key, source, at) "
                        "DO UPDATE SET value = excluded.value WHERE fact.value < excluded.value",
                        (record.id, fact.key, fact.value, record.source, fact.at),
                    )
        return Added(new, changed, same, listings)

    def articles(self, ids: Sequence[str]) -> list[Article]:
        """The papers of these identifiers, in this order; those that are unknown are left out."""
        found: dict[str, Article] = {}
        for begin in range(0, len(ids), _AT_ONCE):
            some = list(ids[begin : begin + _AT_ONCE])
            found |= {each.id: each for each in self._articles(f"paper.id IN ({_marks(some)})", some)}
        return [found[each] for each in ids if each in found]

    def latest(self, limit: int = 50, *, offset: int = 0) -> list[Article]:
        """Papers, the latest submitted first."""
        return self._articles("TRUE ORDER BY published DESC, paper.id DESC LIMIT ? OFFSET ?", [limit, offset])

    def listed(self, begin: str, end: str) -> list[tuple[Article, tuple[Listing, ...]]]:
        """Papers that sources listed from one day to another, both included, by day and place, with these listings."""
        rows = self.db.rows(
            "SELECT id, source, day, rank FROM listing WHERE day BETWEEN ? AND ? ORDER BY day DESC, rank, source, id",
            (begin, end),
        )
        found: dict[str, list[Listing]] = {}
        for identifier, source, day, rank in rows:
            found.setdefault(identifier, []).append(Listing(source, day, rank))
        return [(each, tuple(found[each.id])) for each in self.articles(list(found))]

    def chosen(self, choice: Choice, limit: int = ALL, offset: int = 0) -> list[str]:
        """Identifiers of the papers of a choice, in its order."""
        where, given = _where(choice)
        rows = self.db.rows(
            f"SELECT paper.id FROM paper LEFT JOIN mark ON mark.id = paper.id WHERE {where} "
            f"ORDER BY {_ORDERS[choice.order]} LIMIT ? OFFSET ?",
            [*given, limit, offset],
        )
        return [row[0] for row in rows]

    def count(self, choice: Choice) -> int:
        """How many papers a choice has."""
        where, given = _where(choice)
        [(count,)] = self.db.rows(
            f"SELECT count(*) FROM paper LEFT JOIN mark ON mark.id = paper.id WHERE {where}", given
        )
        return int(count)

    def without_abstract(self) -> list[str]:
        """Identifiers of papers whose abstract no source has told, the latest first."""
        rows = self.db.rows("SELECT id FROM paper WHERE abstract = '' ORDER BY published DESC, id DESC")
        return [row[0] for row in rows]

    def known_titles(self) -> dict[str, str]:
        """Identifiers by title, in small letters and digits alone (`records.plain`)."""
        rows = self.db.rows("SELECT title, id FROM paper WHERE title != '' ORDER BY id DESC")
        return {plain(title): identifier for title, identifier in rows}

    def days(self, begin: str = "", end: str = "9999") -> dict[str, int]:
        """How many papers were listed on each day on which any was, the latest first."""
        rows = self.db.rows(
            "SELECT day, count(DISTINCT id) FROM listing WHERE day BETWEEN ? AND ? GROUP BY day ORDER BY day DESC",
            (begin, end),
        )
        return dict(rows)

    def days_before(self, day: str, limit: int = 1) -> list[str]:
        """The latest days before one on which any paper was listed, the latest first."""
        rows = self.db.rows("SELECT DISTINCT day FROM listing WHERE day < ? ORDER BY day DESC LIMIT ?", (day, limit))
        return [row[0] for row in rows]

    def days_after(self, day: str, limit: int = 1) -> list[str]:
        """The first days after one on which any paper was listed, the first one first."""
        rows = self.db.rows("SELECT DISTINCT day FROM listing WHERE day > ? ORDER BY day LIMIT ?", (day, limit))
        return [row[0] for row in rows]

    def places(self, day: str, limit: int = ALL) -> dict[str, tuple[Listing, ...]]:
        """Papers that were listed on a day, by their places, each with who listed it where; so many places at most."""
        rows = self.db.rows(
            "SELECT id, source, rank FROM listing WHERE day = ? ORDER BY rank, source, id LIMIT ?", (day, limit)
        )
        found: dict[str, tuple[Listing, ...]] = {}
        for identifier, source, rank in rows:
            found[identifier] = (*found.get(identifier, ()), Listing(source, day, rank))
        return found

    def listings(self, identifier: str) -> tuple[Listing, ...]:
        """On which days who listed a paper."""
        rows = self.db.rows("SELECT source, day, rank FROM listing WHERE id = ? ORDER BY day, source", (identifier,))
        return tuple(Listing(*row) for row in rows)

    def facts(self, identifier: str) -> dict[str, tuple[Fact, str]]:
        """The latest of each fact about a paper, with the source that said it."""
        rows = self.db.rows(
            "SELECT key, value, at, source FROM fact WHERE id = ? ORDER BY at, source, value", (identifier,)
        )
        return {key: (Fact(key, value, at), source) for key, value, at, source in rows}

    def records(self, identifier: str = "") -> Iterator[Record]:
        """All that sources say, of one paper or of all: as `add` takes it, each listing and fact once."""
        chosen, given = ("WHERE id = ?", (identifier,)) if identifier else ("", ())
        listings: dict[str, list[Listing]] = {}
        facts: dict[tuple[str, str], list[Fact]] = {}
        order = "ORDER BY id, source, day"
        for one, source, day, rank in self.db.rows(
            f"SELECT id, source, day, rank FROM listing {chosen} {order}", given
        ):
            listings.setdefault(one, []).append(Listing(source, day, rank))
        order = "ORDER BY id, source, key, at"
        for one, source, key, value, at in self.db.rows(
            f"SELECT id, source, key, value, at FROM fact {chosen} {order}", given
        ):
            facts.setdefault((one, source), []).append(Fact(key, value, at))
        rows = self.db.rows(f"SELECT id, source, version, fields FROM told {chosen} ORDER BY id, source, print", given)
        for one, source, version, told in rows:
            record = _record(one, source, version, told)
            yield replace(record, listings=tuple(listings.pop(one, ())), facts=tuple(facts.pop((one, source), ())))

    def __contains__(self, identifier: str) -> bool:
        return bool(self.db.rows("SELECT 1 FROM paper WHERE id = ?", (identifier,)))

    def __len__(self) -> int:
        [(count,)] = self.db.rows("SELECT count(*) FROM paper")
        return int(count)

    # What the user says

    def mark(self, identifier: str, **said: bool | str) -> Mark:
        """Say something of a paper: `read`, `later`, `hidden`, `seed`, `note`; what is not named stays as it is.

        Raises:
            InputError: there is no such paper.
        """
        with self.writing():
            found = self._articles("paper.id = ?", [identifier])
            if not found:
                raise InputError(f"there is no paper {identifier} here")
            made = replace(found[0].mark, **said, changed=self.clock())  # type: ignore[arg-type]
            self._mark(identifier, made)
        return made

    def marked(self, what: str) -> list[Article]:
        """Papers of which the user says `read`, `later`, `hidden`, `seed` or `note`, the last said first."""
        return self._articles(f"{marked(what)} ORDER BY mark.changed DESC, paper.id", [])

    def marks(self) -> dict[str, Mark]:
        """All that the user says, by paper."""
        rows = self.db.rows("SELECT id, read, later, hidden, seed, note, changed FROM mark ORDER BY id")
        return {row[0]: _mark(row[1:]) for row in rows}

    def hidden(self) -> set[str]:
        """Papers that are of no interest to the user."""
        return {row[0] for row in self.db.rows("SELECT id FROM mark WHERE hidden = 1")}

    def take_marks(self, marks: dict[str, Mark]) -> int:
        """Take in what the user has said elsewhere; of two words on one paper the later holds. Returns those taken."""
        taken = 0
        with self.writing():
            known = self.marks()
            for identifier, mark in marks.items():
                if identifier not in known or _later(mark, known[identifier]):
                    self._mark(identifier, mark)
                    taken += 1
        return taken

    def topics(self) -> list[Topic]:
        """What the user follows."""
        rows = self.db.rows("SELECT name, query, likes, dislikes, changed FROM topic ORDER BY name")
        return [Topic(name, query, tuple(json.loads(a)), tuple(json.loads(b)), at) for name, query, a, b, at in rows]

    def follow(self, topic: Topic) -> None:
        """Follow a topic; of two of one name the one that was changed later holds, which is this one without a time."""
        given = replace(topic, changed=topic.changed or self.clock())
        with self.writing():
            known = {each.name: each for each in self.topics()}.get(topic.name)
            if known is None or not topic.changed or _later(topic, known):
                self.db.run(
                    "INSERT INTO topic VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET query = excluded.query, "
                    "likes = excluded.likes, dislikes = excluded.dislikes, changed = excluded.changed",
                    (given.name, given.query, json.dumps(given.likes), json.dumps(given.dislikes), given.changed),
                )

    def unfollow(self, name: str) -> None:
        """Follow a topic no longer."""
        with self.writing():
            self.db.run("DELETE FROM topic WHERE name = ?", (name,))

    # Sources

    def asked(self, source: str) -> tuple[str, str, str] | None:
        """When a source was last asked, what came of it, and where to go on."""
        found = self.db.rows("SELECT at, outcome, cursor FROM asked WHERE source = ?", (source,))
        return found[0] if found else None

    def note_asked(self, source: str, outcome: str, cursor: str = "") -> None:
        """Note that a source was asked now."""
        with self.writing():
            self.db.run(
                "INSERT INTO asked VALUES (?, ?, ?, ?) ON CONFLICT (source) DO UPDATE SET at = excluded.at, "
                "outcome = excluded.outcome, cursor = excluded.cursor",
                (source, self.clock(), outcome, cursor),
            )

    def asked_online(self) -> list[tuple[str, str, str]]:
        """Sources online, when each was last asked and what came of it, the last asked first."""
        rows = self.db.rows("SELECT source, at, outcome FROM asked ORDER BY at DESC, source")
        return [(source, at, told) for source, at, told in rows if source.partition(":")[0] in ONLINE]

    # The database

    def writing(self) -> AbstractContextManager[None]:
        """A transaction: all of it, or nothing. One within another is a part of it."""
        return self.db.writing()

    def close(self) -> None:
        """Let go of what this thread holds of the database."""
        self.db.close()

    def _start(self) -> None:
        """See that the papers of this project are there, as its table has them now."""
        state = fingerprint([(paper.arxiv, paper.title, ours(paper.arxiv)) for paper in papers.page()])
        known = self.asked("broadsheet")
        if known is not None and known[1] == state:
            return
        with self.writing():
            for paper in papers.page():
                self.add([Record(paper.arxiv, "broadsheet", title=paper.title, published=ids.month(paper.arxiv))])
                self._index(paper.arxiv)
            self.note_asked("broadsheet", state)

    # Rows

    def _articles(self, where: str, given: Sequence[Any]) -> list[Article]:
        columns = ", ".join(f"paper.{name}" for name in _COLUMNS)
        rows = self.db.rows(
            f"SELECT {columns}, mark.read, mark.later, mark.hidden, mark.seed, mark.note, mark.changed "
            f"FROM paper LEFT JOIN mark ON mark.id = paper.id WHERE {where}",
            given,
        )
        return [_article(row) for row in rows]

    def _told(self, identifier: str) -> list[Record]:
        rows = self.db.rows("SELECT source, version, fields FROM told WHERE id = ?", (identifier,))
        return [_record(identifier, source, version, told) for source, version, told in rows]

    def _show(self, merged: Record) -> None:
        """Make the row of a paper, and its words, what is said of it now."""
        values = [json.dumps(v, ensure_ascii=False) if isinstance(v, tuple) else v for v in _shown(merged)]
        names = _COLUMNS[:-1]
        self.db.run(
            f"INSERT INTO paper ({', '.join(names)}) VALUES ({_marks(names)}) ON CONFLICT (id) DO UPDATE SET "
            + ", ".join(f"{name} = excluded.{name}" for name in names[1:]),
            values,
        )
        self._index(merged.id)

    def _list(self, record: Record) -> int:
        new = 0
        for each in record.listings:
            known = self.db.rows(
                "SELECT rank FROM listing WHERE source = ? AND day = ? AND id = ?", (each.source, each.day, record.id)
            )
            new += not known
            if not known or each.rank < known[0][0]:
                self.db.run(
                    "INSERT INTO listing VALUES (?, ?, ?, ?) ON CONFLICT (source, day, id) "
                    "DO UPDATE SET rank = excluded.rank",
                    (each.source, each.day, record.id, each.rank),
                )
        if record.listings:
            latest = max(each.day for each in record.listings)
            self.db.run("UPDATE paper SET listed = ? WHERE id = ? AND listed < ?", (latest, record.id, latest))
        return new

    def _mark(self, identifier: str, mark: Mark) -> None:
        names = ("read", "later", "hidden", "seed", "note", "changed")
        values = asdict(mark) | {name: int(getattr(mark, name)) for name in _STATES}
        self.db.run(
            f"INSERT INTO mark (id, {', '.join(names)}) VALUES ({_marks((*names, 'id'))}) ON CONFLICT (id) DO UPDATE "
            "SET " + ", ".join(f"{name} = excluded.{name}" for name in names),
            (identifier, *(values[name] for name in names)),
        )
        self._index(identifier)

    def _index(self, identifier: str) -> None:
        """The words by which a paper is found."""
        rows = self.db.rows(
            "SELECT title, abstract, authors, coalesce(note, '') FROM paper "
            "LEFT JOIN mark ON mark.id = paper.id WHERE paper.id = ?",
            (identifier,),
        )
        for title, abstract, authors, note in rows:  # none for a mark of a paper that is not here yet
            names = " ".join(json.loads(authors))
            self.db.index_words(identifier, (title, abstract, names, note, ours(identifier)))


def _where(choice: Choice) -> tuple[str, list[Any]]:
    """A choice as SQL, and its values."""
    parts = [marked(choice.mark) if choice.mark else "coalesce(mark.hidden, 0) = 0"]
    if choice.within is not None:
        parts.append(f"paper.id IN ({_marks(choice.within)})" if choice.within else "FALSE")
    if choice.without:
        parts.append(f"paper.id NOT IN ({_marks(choice.without)})")
    return " AND ".join(parts), [*(choice.within or ()), *choice.without]


def marked(what: str) -> str:
    """The condition that the user says something of a paper: `read`, `later`, `hidden`, `seed` or `note`."""
    if what not in (*_STATES, "note"):
        raise ValueError(f"got {what}; expected {', '.join(_STATES)} or note")
    return "mark.note != ''" if what == "note" else f"mark.{what} = 1"


def ours(identifier: str) -> str:
    """What this project says of a paper of its own, in its words: the summary and the topics; empty for any other."""
    return _ours().get(identifier, "")


@cache
def _ours() -> dict[str, str]:
    return {paper.arxiv: " ".join([paper.summary, *paper.topics]) for paper in papers.page()}


def _shown(record: Record | None) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in _COLUMNS[:-1])


def _record(identifier: str, source: str, version: int, told: str) -> Record:
    said: dict[str, Any] = {name: tuple(value) if name in _LISTS else value for name, value in json.loads(told).items()}
    return Record(identifier, source, version, **said)


def _article(row: Sequence[Any]) -> Article:
    values = dict(zip(_COLUMNS, row, strict=False))
    for name in _LISTS:
        values[name] = tuple(json.loads(values[name]))
    return Article(**values, mark=_mark(row[len(_COLUMNS) :]))


def _mark(row: Sequence[Any]) -> Mark:
    read, later, hidden, seed, note, changed = row
    return Mark(bool(read), bool(later), bool(hidden), bool(seed), note or "", changed or "")


def _later(one: Any, other: Any) -> bool:
    """Whether one of two words is the later one; of two of the same time, whichever: the same one in any order."""
    return (one.changed, repr(one)) > (other.changed, repr(other))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))

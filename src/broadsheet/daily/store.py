"""The papers on this machine, in one SQLite file: what sources said, what the user says of them.

Knows: the tables (`migrations/`), how records become papers (`records`). Does not know: formats, sources, screens.
Threads and processes may read while one writes. A file of an earlier version is copied before it is changed; one of a
later version is refused.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from broadsheet.cache import fingerprint, home
from broadsheet.console import InputError
from broadsheet.daily import ids
from broadsheet.daily.records import TOLD, Fact, Listing, Record, plain, together
from broadsheet.page import papers

_COLUMNS = ("id", "version", *TOLD, "listed")
_AT_ONCE = 10_000  # values of one query: SQLite takes 32,766 at most
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


class Store:
    """The papers of one file, which is made where it is missing; the 79 of this project are in it from the start.

    Args:
        clock: the time, as `now` gives it.

    Raises:
        InputError: the file is none of ours, damaged, of a later version, or cannot be written.

    Example:
        store = Store(default_path())
        store.add(records)
        [article] = store.articles(["2407.12021"])
    """

    def __init__(self, path: Path, clock: Callable[[], str] = now) -> None:
        self.path, self.clock = path, clock
        self._own = threading.local()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"{path}: {error}; expected a file that `broadsheet page` has made") from None
        self._start()

    # Papers

    def add(self, records: Iterable[Record]) -> Added:
        """Take in what sources say; all of it or, where something fails, nothing.

        Nothing is ever removed: a source that says less than before leaves what it said.
        """
        new = changed = same = listings = 0
        with self.writing() as db:
            for record in records:
                before = self._told(db, record.id)
                told = json.dumps(record.told(), ensure_ascii=False, sort_keys=True)
                was = together(before) if before else None
                if db.execute(
                    "INSERT OR IGNORE INTO told VALUES (?, ?, ?, ?, ?)",
                    (record.id, record.source, fingerprint([record.version, told]), record.version, told),
                ).rowcount:
                    merged = together([*before, record])
                    self._show(db, merged)
                    new, changed = new + (was is None), changed + (was is not None and _shown(merged) != _shown(was))
                    same += was is not None and _shown(merged) == _shown(was)
                else:
                    same += 1
                listings += self._list(db, record)
                for fact in record.facts:  # of two values of one time the same one in any order
                    db.execute(
                        "INSERT INTO fact VALUES (?, ?, ?, ?, ?) ON CONFLICT (id, key, source, at) "
                        "DO UPDATE SET value = max(value, excluded.value)",
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
        return self._articles("1 ORDER BY published DESC, paper.id DESC LIMIT ? OFFSET ?", [limit, offset])

    def listed(self, begin: str, end: str) -> list[tuple[Article, tuple[Listing, ...]]]:
        """Papers that sources listed from one day to another, both included, by day and place, with these listings."""
        rows = self.reading().execute(
            "SELECT id, source, day, rank FROM listing WHERE day BETWEEN ? AND ? ORDER BY day DESC, rank, source, id",
            (begin, end),
        )
        found: dict[str, list[Listing]] = {}
        for identifier, source, day, rank in rows:
            found.setdefault(identifier, []).append(Listing(source, day, rank))
        return [(each, tuple(found[each.id])) for each in self.articles(list(found))]

    def without_abstract(self) -> list[str]:
        """Identifiers of papers whose abstract no source has told, the latest first."""
        rows = self.reading().execute("SELECT id FROM paper WHERE abstract = '' ORDER BY published DESC, id DESC")
        return [row[0] for row in rows]

    def known_titles(self) -> dict[str, str]:
        """Identifiers by title, in small letters and digits alone (`records.plain`)."""
        rows = self.reading().execute("SELECT title, id FROM paper WHERE title != '' ORDER BY id DESC")
        return {plain(title): identifier for title, identifier in rows}

    def days(self, begin: str = "", end: str = "9999") -> dict[str, int]:
        """How many papers were listed on each day on which any was, the latest first."""
        rows = self.reading().execute(
            "SELECT day, count(DISTINCT id) FROM listing WHERE day BETWEEN ? AND ? GROUP BY day ORDER BY day DESC",
            (begin, end),
        )
        return dict(rows.fetchall())

    def listings(self, identifier: str) -> tuple[Listing, ...]:
        """On which days who listed a paper."""
        rows = self.reading().execute(
            "SELECT source, day, rank FROM listing WHERE id = ? ORDER BY day, source", (identifier,)
        )
        return tuple(Listing(*row) for row in rows)

    def facts(self, identifier: str) -> dict[str, tuple[Fact, str]]:
        """The latest of each fact about a paper, with the source that said it."""
        rows = self.reading().execute(
            "SELECT key, value, at, source FROM fact WHERE id = ? ORDER BY at, source, value", (identifier,)
        )
        return {key: (Fact(key, value, at), source) for key, value, at, source in rows}

    def records(self, identifier: str = "") -> Iterator[Record]:
        """All that sources say, of one paper or of all: as `add` takes it, each listing and fact once."""
        chosen, given = ("WHERE id = ?", (identifier,)) if identifier else ("", ())
        listings: dict[str, list[Listing]] = {}
        facts: dict[tuple[str, str], list[Fact]] = {}
        db = self.reading()
        order = "ORDER BY id, source, day"
        for one, source, day, rank in db.execute(f"SELECT id, source, day, rank FROM listing {chosen} {order}", given):
            listings.setdefault(one, []).append(Listing(source, day, rank))
        order = "ORDER BY id, source, key, at"
        for one, source, key, value, at in db.execute(
            f"SELECT id, source, key, value, at FROM fact {chosen} {order}", given
        ):
            facts.setdefault((one, source), []).append(Fact(key, value, at))
        rows = db.execute(f"SELECT id, source, version, fields FROM told {chosen} ORDER BY id, source, print", given)
        for one, source, version, told in rows.fetchall():
            record = _record(one, source, version, told)
            yield replace(record, listings=tuple(listings.pop(one, ())), facts=tuple(facts.pop((one, source), ())))

    def __len__(self) -> int:
        count: int = self.reading().execute("SELECT count(*) FROM paper").fetchone()[0]
        return count

    # What the user says

    def mark(self, identifier: str, **said: bool | str) -> Mark:
        """Say something of a paper: `read`, `later`, `hidden`, `seed`, `note`; what is not named stays as it is.

        Raises:
            InputError: there is no such paper.
        """
        with self.writing() as db:
            found = self._articles("paper.id = ?", [identifier])
            if not found:
                raise InputError(f"there is no paper {identifier} here")
            made = replace(found[0].mark, **said, changed=self.clock())  # type: ignore[arg-type]
            self._mark(db, identifier, made)
        return made

    def marked(self, what: str) -> list[Article]:
        """Papers of which the user says `read`, `later`, `hidden`, `seed` or `note`, the last said first."""
        if what not in ("read", "later", "hidden", "seed", "note"):
            raise ValueError(f"got {what}; expected read, later, hidden, seed or note")
        return self._articles(f"mark.{what} NOT IN (0, '') ORDER BY mark.changed DESC, paper.id", [])

    def marks(self) -> dict[str, Mark]:
        """All that the user says, by paper."""
        rows = self.reading().execute("SELECT id, read, later, hidden, seed, note, changed FROM mark ORDER BY id")
        return {row[0]: _mark(row[1:]) for row in rows}

    def take_marks(self, marks: dict[str, Mark]) -> int:
        """Take in what the user has said elsewhere; of two words on one paper the later holds. Returns those taken."""
        taken = 0
        with self.writing() as db:
            known = self.marks()
            for identifier, mark in marks.items():
                if identifier not in known or _later(mark, known[identifier]):
                    self._mark(db, identifier, mark)
                    taken += 1
        return taken

    def topics(self) -> list[Topic]:
        """What the user follows."""
        rows = self.reading().execute("SELECT name, query, likes, dislikes, changed FROM topic ORDER BY name")
        return [Topic(name, query, tuple(json.loads(a)), tuple(json.loads(b)), at) for name, query, a, b, at in rows]

    def follow(self, topic: Topic) -> None:
        """Follow a topic; of two of one name the one that was changed later holds, which is this one without a time."""
        given = replace(topic, changed=topic.changed or self.clock())
        with self.writing() as db:
            known = {each.name: each for each in self.topics()}.get(topic.name)
            if known is None or not topic.changed or _later(topic, known):
                db.execute(
                    "INSERT OR REPLACE INTO topic VALUES (?, ?, ?, ?, ?)",
                    (given.name, given.query, json.dumps(given.likes), json.dumps(given.dislikes), given.changed),
                )

    def unfollow(self, name: str) -> None:
        """Follow a topic no longer."""
        with self.writing() as db:
            db.execute("DELETE FROM topic WHERE name = ?", (name,))

    # Sources

    def asked(self, source: str) -> tuple[str, str, str] | None:
        """When a source was last asked, what came of it, and where to go on."""
        row = self.reading().execute("SELECT at, outcome, cursor FROM asked WHERE source = ?", (source,)).fetchone()
        return tuple(row) if row else None

    def note_asked(self, source: str, outcome: str, cursor: str = "") -> None:
        """Note that a source was asked now."""
        with self.writing() as db:
            db.execute("INSERT OR REPLACE INTO asked VALUES (?, ?, ?, ?)", (source, self.clock(), outcome, cursor))

    def asked_online(self) -> list[tuple[str, str, str]]:
        """Sources online, when each was last asked and what came of it, the last asked first."""
        rows = self.reading().execute("SELECT source, at, outcome FROM asked ORDER BY at DESC, source")
        return [tuple(row) for row in rows if row[0].partition(":")[0] in ONLINE]

    # The file

    def reading(self) -> sqlite3.Connection:
        """This thread's connection."""
        found: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if found is None:
            found = self._own.connection = self._connect()
        return found

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it, or nothing. One within another is a part of it."""
        db = self.reading()
        if db.in_transaction:
            yield db
            return
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.rollback()
            raise
        db.commit()

    def close(self) -> None:
        """Close this thread's connection."""
        if (found := getattr(self._own, "connection", None)) is not None:
            found.close()
            self._own.connection = None

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    def _migrate(self) -> None:
        """Bring the file to this version, step by step, each whole or not at all; with a copy of what was there."""
        steps = sorted(
            (each for each in files("broadsheet.daily").joinpath("migrations").iterdir() if each.name.endswith(".sql")),
            key=lambda each: each.name,
        )
        db = self.reading()
        [version] = db.execute("PRAGMA user_version").fetchone()
        if version > len(steps):
            raise InputError(f"{self.path} is of version {version}; this broadsheet knows {len(steps)}: update it")
        if version == 0 and db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise sqlite3.DatabaseError("another program's database")
        db.execute("PRAGMA journal_mode = WAL")
        if 0 < version < len(steps):
            self._copy(self.path.with_name(f"{self.path.name}.{version}"))
        for number, step in enumerate(steps, 1):
            with self.writing():
                if db.execute("PRAGMA user_version").fetchone()[0] < number:
                    for statement in _statements(step.read_text("utf-8")):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {number}")

    def _copy(self, path: Path) -> None:
        copy = sqlite3.connect(path)
        with copy:
            self.reading().backup(copy)
        copy.close()

    def _start(self) -> None:
        """See that the papers of this project are there, as its table has them now."""
        state = fingerprint([(paper.arxiv, paper.title, ours(paper.arxiv)) for paper in papers.page()])
        known = self.asked("broadsheet")
        if known is not None and known[1] == state:
            return
        with self.writing() as db:
            for paper in papers.page():
                self.add([Record(paper.arxiv, "broadsheet", title=paper.title, published=ids.month(paper.arxiv))])
                self._index(db, paper.arxiv)
            self.note_asked("broadsheet", state)

    # Rows

    def _articles(self, where: str, given: Sequence[Any]) -> list[Article]:
        columns = ", ".join(f"paper.{name}" for name in _COLUMNS)
        rows = self.reading().execute(
            f"SELECT {columns}, mark.read, mark.later, mark.hidden, mark.seed, mark.note, mark.changed "
            f"FROM paper LEFT JOIN mark ON mark.id = paper.id WHERE {where}",
            given,
        )
        return [_article(row) for row in rows.fetchall()]

    def _told(self, db: sqlite3.Connection, identifier: str) -> list[Record]:
        rows = db.execute("SELECT source, version, fields FROM told WHERE id = ?", (identifier,)).fetchall()
        return [_record(identifier, source, version, told) for source, version, told in rows]

    def _show(self, db: sqlite3.Connection, merged: Record) -> None:
        """Make the row of a paper, and its words, what is said of it now."""
        values = [json.dumps(v, ensure_ascii=False) if isinstance(v, tuple) else v for v in _shown(merged)]
        names = _COLUMNS[:-1]
        db.execute(
            f"INSERT INTO paper ({', '.join(names)}) VALUES ({_marks(names)}) ON CONFLICT (id) DO UPDATE SET "
            + ", ".join(f"{name} = excluded.{name}" for name in names[1:]),
            values,
        )
        self._index(db, merged.id)

    def _list(self, db: sqlite3.Connection, record: Record) -> int:
        new = 0
        for each in record.listings:
            known = db.execute(
                "SELECT rank FROM listing WHERE source = ? AND day = ? AND id = ?", (each.source, each.day, record.id)
            ).fetchone()
            new += known is None
            if known is None or each.rank < known[0]:
                db.execute(
                    "INSERT OR REPLACE INTO listing VALUES (?, ?, ?, ?)", (each.source, each.day, record.id, each.rank)
                )
        if record.listings:
            latest = max(each.day for each in record.listings)
            db.execute("UPDATE paper SET listed = max(listed, ?) WHERE id = ?", (latest, record.id))
        return new

    def _mark(self, db: sqlite3.Connection, identifier: str, mark: Mark) -> None:
        db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?, ?, ?, ?)", (identifier, *asdict(mark).values()))
        self._index(db, identifier)

    def _index(self, db: sqlite3.Connection, identifier: str) -> None:
        """The words by which a paper is found."""
        row = db.execute(
            "SELECT number, title, abstract, authors, coalesce(note, '') FROM paper "
            "LEFT JOIN mark ON mark.id = paper.id WHERE paper.id = ?",
            (identifier,),
        ).fetchone()
        if row is None:  # a mark of a paper that is not here yet
            return
        number, title, abstract, authors, note = row
        db.execute("DELETE FROM words WHERE rowid = ?", (number,))
        db.execute(
            "INSERT INTO words (rowid, title, abstract, authors, note, ours) VALUES (?, ?, ?, ?, ?, ?)",
            (number, title, abstract, " ".join(json.loads(authors)), note, ours(identifier)),
        )


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


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one."""
    pending = ""
    for each in script.splitlines(keepends=True):
        pending += each
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""

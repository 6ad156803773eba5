"""Papers in one SQLite file: WAL, strict tables, full-text search by FTS5, vectors as blobs.

Knows: the file and its steps, FTS5, products of vectors. Does not know: what is kept. Threads and processes may read
while one writes. A file of an earlier version is copied before it is changed; one of a later version is refused.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from broadsheet.cache import fingerprint, locked
from broadsheet.console import InputError
from broadsheet.daily.databases.base import GRAPH_FROM, Database, Row, Vector, steps
from broadsheet.daily.query import Query

if TYPE_CHECKING:
    from broadsheet.search.vectorindex import VectorIndex

_KNOWN = 64  # searches of a thread that are kept
_WEIGHTS = "8.0, 2.0, 2.0, 3.0, 2.0"  # of title, abstract, authors, note, our words


class SqliteFile(Database):
    """An SQLite file, which is made where it is missing.

    Raises:
        InputError: the file is none of ours, damaged, of a later version, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._own = threading.local()
        self._graphs: dict[str, VectorIndex] = {}
        self._kept: dict[str, tuple[Any, list[str], Vector]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"{path}: {error}; expected a file that `broadsheet page` has made") from None

    def rows(self, sql: str, given: Sequence[Any] = ()) -> list[Row]:
        return self._connection().execute(sql, given).fetchall()

    def run(self, sql: str, given: Sequence[Any] = ()) -> int:
        return self._connection().execute(sql, given).rowcount

    def run_all(self, sql: str, given: Sequence[Sequence[Any]]) -> None:
        self._connection().executemany(sql, given)

    @contextmanager
    def writing(self) -> Iterator[None]:
        db = self._connection()
        if db.in_transaction:
            yield
            return
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            db.rollback()
            raise
        db.commit()

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        with locked(self.path.with_name(f"{self.path.name}.{what}")):
            yield

    @contextmanager
    def turn(self, what: str) -> Iterator[bool]:
        lock = FileLock(self.path.with_name(f"{self.path.name}.{what}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def close(self) -> None:
        if (found := getattr(self._own, "connection", None)) is not None:
            found.close()
            self._own.connection = None

    # Words

    def index_words(self, identifier: str, texts: Sequence[str]) -> None:
        [(number,)] = self.rows("SELECT number FROM paper WHERE id = ?", (identifier,))
        self.run("DELETE FROM words WHERE rowid = ?", (number,))
        self.run(
            "INSERT INTO words (rowid, title, abstract, authors, note, ours) VALUES (?, ?, ?, ?, ?, ?)",
            (number, *texts),
        )

    def find_words(self, query: Query, where: str, given: Sequence[Any], limit: int) -> list[str]:
        match = _match(query)
        if not match:
            return []
        # Topics, feeds and pages of a search ask the same again: what was found holds until anything is written.
        db = self._connection()
        state = (*db.execute("PRAGMA data_version").fetchone(), db.total_changes)
        known: dict[Any, list[str]]
        before, known = getattr(self._own, "words", (None, {}))
        if before != state or len(known) >= _KNOWN:
            known = {}
        self._own.words = state, known
        asked = match, where, tuple(given), limit
        if asked not in known:
            known[asked] = self._find_words(match, where, given, limit)
        return list(known[asked])

    def _find_words(self, match: str, where: str, given: Sequence[Any], limit: int) -> list[str]:
        # Of the best alone it is looked up what they have to be; of all that match, only where these are too few.
        best = self.rows(
            f"SELECT rowid, bm25(words, {_WEIGHTS}) AS score FROM words WHERE words MATCH ? ORDER BY score LIMIT ?",
            [match, 2 * limit],
        )
        scores: dict[int, float] = dict(best)
        fitting = self.rows(
            "SELECT paper.id, paper.number FROM paper LEFT JOIN mark ON mark.id = paper.id "
            f"WHERE paper.number IN ({', '.join('?' * len(best))}) AND {where}",
            [*scores, *given],
        )
        if len(fitting) >= limit or len(best) < 2 * limit:
            fitting.sort(key=lambda row: (scores[row[1]], row[0]))
            return [row[0] for row in fitting[:limit]]
        found = self.rows(
            f"SELECT paper.id FROM words JOIN paper ON paper.number = words.rowid LEFT JOIN mark ON mark.id = paper.id "
            f"WHERE words MATCH ? AND {where} ORDER BY bm25(words, {_WEIGHTS}), paper.id LIMIT ?",
            [match, *given, limit],
        )
        return [row[0] for row in found]

    def place(self, query: Query, identifier: str) -> str:
        found = self.rows(
            "SELECT snippet(words, -1, char(2), char(3), ' … ', 24) FROM words "
            "WHERE words MATCH ? AND rowid = (SELECT number FROM paper WHERE id = ?)",
            (_match(query), identifier),
        )
        return found[0][0] if found else ""

    # Vectors

    def keep_vectors(self, embedder: str, made: Iterable[tuple[str, str, Vector]]) -> None:
        with self.writing():
            self.run_all(
                "INSERT INTO vector VALUES (?, ?, ?, ?, ?) ON CONFLICT (id, embedder) DO UPDATE SET "
                "text = excluded.text, width = excluded.width, data = excluded.data",
                [(one, embedder, text, len(row), row.astype("<f4").tobytes()) for one, text, row in made],
            )
            # By this number every process sees that what it has read is old.
            self.run(
                "INSERT INTO asked VALUES (?, '', '1', '') ON CONFLICT (source) DO UPDATE SET "
                "outcome = CAST(outcome AS INTEGER) + 1",
                (f"vectors {embedder}",),
            )

    def settle_vectors(self, embedder: str) -> None:
        [(count, width)] = self.rows("SELECT count(*), max(width) FROM vector WHERE embedder = ?", (embedder,))
        if count < GRAPH_FROM:
            return
        from broadsheet.data.corpora import Document
        from broadsheet.search.vectorindex import VectorIndex

        places, matrix = self._matrix(embedder)
        folder, texts = self._folder(embedder), self.vector_texts(embedder)
        index = (
            VectorIndex.open(folder)
            if folder.exists()
            else VectorIndex.create(folder, dimensions=width, similarity="dot", keywords=False, graph_from=GRAPH_FROM)
        )
        index.add([Document(each, texts[each]) for each in places], matrix)

    def vector_texts(self, embedder: str) -> dict[str, str]:
        return dict(self.rows("SELECT id, text FROM vector WHERE embedder = ?", (embedder,)))

    def vectors(self, embedder: str, identifiers: Sequence[str]) -> dict[str, Vector]:
        marks = ", ".join("?" * len(identifiers))
        rows = self.rows(
            f"SELECT id, data FROM vector WHERE embedder = ? AND id IN ({marks})", (embedder, *identifiers)
        )
        return {identifier: np.frombuffer(data, "<f4") for identifier, data in rows}

    def nearest(self, embedder: str, direction: Vector, limit: int) -> list[str]:
        if self._folder(embedder).exists():
            index = self._graph(embedder)
            return [hit.id for hit in index.search(direction[None], limit)[0]]
        places, matrix = self._matrix(embedder)
        if not places:
            return []
        # Without BLAS, whose threads spin for a while after so short a product, and take a core from other requests.
        scores = np.einsum("ij,j->i", matrix, direction)
        return [places[i] for i in np.argsort(-scores, kind="stable")[:limit]]

    def _graph(self, embedder: str) -> VectorIndex:
        """The graph of many vectors as it is now; opened once."""
        from broadsheet.search.vectorindex import VectorIndex

        known = self._graphs.get(embedder)
        if known is None:
            known = self._graphs[embedder] = VectorIndex.open(self._folder(embedder))
        known.refresh()
        return known

    def _folder(self, embedder: str) -> Path:
        """Where the graph of many vectors is."""
        return self.path.with_name(f"{self.path.name}.{fingerprint(embedder)[:12]}")

    def _matrix(self, embedder: str) -> tuple[list[str], Vector]:
        """The papers, and their vectors (papers, width), read again once any has changed."""
        state = self.rows("SELECT outcome FROM asked WHERE source = ?", (f"vectors {embedder}",))
        known = self._kept.get(embedder)
        if known is None or known[0] != state:
            rows = self.rows("SELECT id, data FROM vector WHERE embedder = ? ORDER BY id", (embedder,))
            matrix = np.array([np.frombuffer(data, "<f4") for _, data in rows], dtype=np.float32)
            known = self._kept[embedder] = (state, [identifier for identifier, _ in rows], matrix)
        return known[1:]

    # The file

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        found: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if found is None:
            found = self._own.connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            found.execute("PRAGMA synchronous = NORMAL")
        return found

    def _migrate(self) -> None:
        """Bring the file to this version, step by step, each whole or not at all; with a copy of what was there."""
        every = steps("sqlite_steps")
        db = self._connection()
        [version] = db.execute("PRAGMA user_version").fetchone()
        if version > len(every):
            raise InputError(f"{self.path} is of version {version}; this broadsheet knows {len(every)}: update it")
        if version == 0 and db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise sqlite3.DatabaseError("another program's database")
        db.execute("PRAGMA journal_mode = WAL")
        if 0 < version < len(every):
            self._copy(self.path.with_name(f"{self.path.name}.{version}"))
        for number, script in every:
            with self.writing():
                if db.execute("PRAGMA user_version").fetchone()[0] < number:
                    for statement in _statements(script):
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version = {number}")

    def _copy(self, path: Path) -> None:
        copy = sqlite3.connect(path)
        with copy:
            self._connection().backup(copy)
        copy.close()


def _match(query: Query) -> str:
    """A query as FTS5 has it; empty where no word is looked for."""
    some = " OR ".join(map(_quoted, query.telling))
    every = [*map(_quoted, query.phrases), *(f"authors : {_quoted(name)}" for name in query.authors)]
    if some:  # where a phrase or an author is needed too, words only rank
        every.append(f"({every[0]} OR {some})" if every else f"({some})")
    needed = " AND ".join(every)
    if not needed:
        return ""
    left_out = " OR ".join(map(_quoted, query.without))
    return f"({needed}) NOT ({left_out})" if left_out else needed


def _quoted(word: str) -> str:
    """A word or phrase that FTS5 takes as it stands."""
    return '"' + word.replace('"', '""').replace("\0", " ") + '"'


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one."""
    pending = ""
    for each in script.splitlines(keepends=True):
        pending += each
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""

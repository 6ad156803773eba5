"""Papers on a PostgreSQL server, in a schema of their own: one page for several machines.

Knows: connections, the steps of the tables, the server's full-text search, pgvector. Does not know: what is kept.
Whoever writes waits for those who wrote before, as with a file. A step that fails leaves nothing behind; copies are the
server's own dumps.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import threading
import unicodedata
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from broadsheet.console import InputError, say
from broadsheet.daily.databases.base import GRAPH_FROM, Database, NoDatabaseError, Row, Vector, steps
from broadsheet.daily.query import Query

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

SCHEMA = "broadsheet"
SCHEMES = ("postgresql://", "postgres://")
_MOST = 8  # connections of a process
_PATIENCE = 10  # seconds until a server that does not answer is told to be away
# One hit in abstract or our words, authors, note, title, as BM25 counts it with FTS5's weights 2, 2, 3 and 8, which is
# w / (w + 1.2), as a part of the title's. The server's own rank knows no such saturation.
_WEIGHTS = "'{0.719, 0.719, 0.821, 1}'"
_CANDIDATES = 400  # that a search by a graph of vectors looks at; no more are found
_PLACE = "StartSel=\x02, StopSel=\x03, MaxWords=24, MinWords=16"
_TERM = "phraseto_tsquery('words', ?)"


class PostgresServer(Database):
    """A database on a server, in whose schema `broadsheet` the tables are made where they are missing.

    Args:
        url: `"postgresql://user@host/database"`; a password is better in `PGPASSWORD` or `~/.pgpass`.

    Raises:
        InputError: psycopg is not installed, the server does not answer or lets nobody in, or its tables are of a later
            version.
    """

    def __init__(self, url: str) -> None:
        try:
            import psycopg
            from psycopg_pool import ConnectionPool
        except ImportError:
            raise InputError("a PostgreSQL server needs psycopg: pip install -e '.[postgres]'") from None
        self._errors = psycopg
        self._own = threading.local()
        try:
            told = psycopg.conninfo.conninfo_to_dict(url)
            self.name = f"postgresql://{told.get('host') or 'localhost'}/{told.get('dbname') or ''}"
            with psycopg.connect(url, connect_timeout=_PATIENCE, autocommit=True) as first:
                self._migrate(first)
        except psycopg.Error as error:
            host = re.sub(r"//[^/@]*@", "//", url)
            raise InputError(f"{host}: {_first_line(error)}; expected a PostgreSQL database to write in") from None
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # that it does not answer is told by what was asked
        settings = {"autocommit": True, "connect_timeout": _PATIENCE}
        self._pool: ConnectionPool[Any] = ConnectionPool(
            url, min_size=0, max_size=_MOST, timeout=_PATIENCE, reconnect_timeout=_PATIENCE,
            kwargs=settings, configure=_in_schema,
            check=ConnectionPool.check_connection, open=True,
        )  # fmt: skip
        weakref.finalize(self, self._pool.close, 1.0)

    def rows(self, sql: str, given: Sequence[Any] = ()) -> list[Row]:
        with self._cursor() as cursor:
            return cast("list[Row]", cursor.execute(_sql(sql), given).fetchall())

    def run(self, sql: str, given: Sequence[Any] = ()) -> int:
        with self._cursor() as cursor:
            return int(cursor.execute(_sql(sql), given).rowcount)

    def run_all(self, sql: str, given: Sequence[Sequence[Any]]) -> None:
        with self._cursor() as cursor:
            cursor.executemany(_sql(sql), given)

    @contextmanager
    def writing(self) -> Iterator[None]:
        if getattr(self._own, "connection", None) is not None:
            yield
            return
        with self._answering(), self._pool.connection() as connection, connection.transaction():
            connection.execute(f"SELECT pg_advisory_xact_lock({_lock('write')})")
            self._own.connection = connection
            try:
                yield
            finally:
                self._own.connection = None

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        with self._answering(), self._pool.connection() as connection:
            number = _lock(what)
            if not connection.execute(f"SELECT pg_try_advisory_lock({number})").fetchone()[0]:
                say(f"waiting for another broadsheet that does the same on {self.name} …")
                connection.execute(f"SELECT pg_advisory_lock({number})")
            try:
                yield
            finally:
                connection.execute(f"SELECT pg_advisory_unlock({number})")

    @contextmanager
    def turn(self, what: str) -> Iterator[bool]:
        with self._answering(), self._pool.connection() as connection:
            number = _lock(what)
            mine = bool(connection.execute(f"SELECT pg_try_advisory_lock({number})").fetchone()[0])
            try:
                yield mine
            finally:
                if mine:
                    connection.execute(f"SELECT pg_advisory_unlock({number})")

    def close(self) -> None:
        """Nothing: no connection belongs to a thread. They end with the object."""

    # Words

    def index_words(self, identifier: str, texts: Sequence[str]) -> None:
        title, abstract, authors, note, ours = map(_words, texts)
        shown = " … ".join(text for i, text in enumerate(texts) if text and i in (1, 4, 3))
        parts = " || ".join(f"setweight(to_tsvector('words', ?), '{weight}')" for weight in "ABCDD")
        self.run(
            f"INSERT INTO words VALUES (?, {parts}, to_tsvector('words', ?), ?) ON CONFLICT (id) DO UPDATE SET "
            "found = excluded.found, names = excluded.names, shown = excluded.shown",
            (identifier, title, note, authors, abstract, ours, authors, shown),
        )

    def find_words(self, query: Query, where: str, given: Sequence[Any], limit: int) -> list[str]:
        phrases, authors, without = map(_terms, (query.phrases, query.authors, query.without))
        some = _terms(query.telling)
        if not (some or phrases or authors):
            return []
        # (condition, its values); as with FTS5 words rank, and choose where nothing else does.
        needed = [(f"words.found @@ {_TERM}", [each]) for each in phrases]
        needed += [(f"words.names @@ {_TERM}", [each]) for each in authors]
        if not needed:
            needed = [(f"words.found @@ ({' || '.join([_TERM] * len(some))})", some)]
        needed += [(f"NOT words.found @@ {_TERM}", [each]) for each in without]
        rarity = self._rarity(list(dict.fromkeys([*some, *phrases])))
        rank = " + ".join([f"? * ts_rank({_WEIGHTS}, words.found, {_TERM})"] * len(rarity))
        found = self.rows(
            "SELECT paper.id FROM words JOIN paper ON paper.id = words.id LEFT JOIN mark ON mark.id = paper.id "
            f"WHERE {' AND '.join(condition for condition, _ in needed)} AND {where} "
            f"ORDER BY {f'{rank} DESC, ' if rank else ''}paper.id LIMIT ?",
            [
                *(value for _, values in needed for value in values), *given,
                *(value for term, weight in rarity.items() for value in (weight, term)), limit,
            ],
        )  # fmt: skip
        return [row[0] for row in found]

    def place(self, query: Query, identifier: str) -> str:
        terms = _terms([*query.telling, *query.phrases])
        shown = " || ".join([_TERM] * len(terms)) or "''::tsquery"
        found = self.rows(
            f"SELECT ts_headline('words', shown, {shown}, ?) FROM words WHERE id = ?", [*terms, _PLACE, identifier]
        )
        return found[0][0] if found else ""

    def _rarity(self, terms: Sequence[str]) -> dict[str, float]:
        """How much each word or phrase tells: BM25's inverse document frequency. The server's rank has none."""
        if not terms:
            return {}
        counts = ", ".join([f"(SELECT count(*) FROM words WHERE found @@ {_TERM})"] * len(terms))
        [[total, *having]] = self.rows(f"SELECT (SELECT count(*) FROM words), {counts}", terms)
        return {
            term: math.log(1 + (total - each + 0.5) / (each + 0.5)) for term, each in zip(terms, having, strict=True)
        }

    # Vectors

    def keep_vectors(self, embedder: str, made: Iterable[tuple[str, str, Vector]]) -> None:
        rows = [(one, embedder, text, _literal(row)) for one, text, row in made]
        self._see_to_vectors()
        with self.writing():
            self.run_all(
                "INSERT INTO vectors VALUES (?, ?, ?, ?) ON CONFLICT (id, embedder) DO UPDATE SET "
                "text = excluded.text, data = excluded.data",
                rows,
            )

    def settle_vectors(self, embedder: str) -> None:
        [[count, width]] = self.rows(
            "SELECT count(*), max(vector_dims(data)) FROM vectors WHERE embedder = ?", (embedder,)
        )
        if count < GRAPH_FROM:
            return
        name = f"vectors_{hashlib.sha256(embedder.encode()).hexdigest()[:12]}"
        quoted = embedder.replace("'", "''")
        self.run(
            f"CREATE INDEX IF NOT EXISTS {name} ON vectors USING hnsw ((data::vector({width})) vector_ip_ops) "
            f"WHERE embedder = '{quoted}'"
        )

    def vector_texts(self, embedder: str) -> dict[str, str]:
        self._see_to_vectors()
        return dict(self.rows("SELECT id, text FROM vectors WHERE embedder = ?", (embedder,)))

    def vectors(self, embedder: str, identifiers: Sequence[str]) -> dict[str, Vector]:
        found = self.rows(
            "SELECT id, data::real[] FROM vectors WHERE embedder = ? AND id = ANY(?)", (embedder, list(identifiers))
        )
        return {identifier: np.array(data, np.float32) for identifier, data in found}

    def nearest(self, embedder: str, direction: Vector, limit: int) -> list[str]:
        # pgvector's product is negative: the smallest first. By this expression the graph is found, where there is one.
        distance = f"data::vector({len(direction)}) <#> ?::vector"
        found = self.rows(
            f"SELECT id FROM vectors WHERE embedder = ? ORDER BY {distance}, id LIMIT ?",
            (embedder, _literal(direction), limit),
        )
        return [row[0] for row in found]

    def _see_to_vectors(self) -> None:
        """Make the table of vectors where it is missing, which needs pgvector.

        Raises:
            InputError: the server has none.
        """
        if self.rows("SELECT to_regclass('vectors') IS NOT NULL")[0][0]:
            return
        [script] = [script for _, script in steps("postgres_vectors")]
        try:
            with self.writing():
                self.run("CREATE EXTENSION IF NOT EXISTS vector")
                self.run(script)
        except self._errors.Error as error:
            raise InputError(
                f"{self.name}: {_first_line(error)}; meaning needs the extension pgvector (CREATE EXTENSION vector)"
            ) from None

    # The server

    @contextmanager
    def _cursor(self) -> Iterator[Cursor[Any]]:
        connection: Connection[Any] | None = getattr(self._own, "connection", None)
        if connection is not None:
            with connection.cursor() as cursor:
                yield cursor
            return
        with self._answering(), self._pool.connection() as connection, connection.cursor() as cursor:
            yield cursor

    @contextmanager
    def _answering(self) -> Iterator[None]:
        from psycopg_pool import PoolTimeout

        try:
            yield
        except (self._errors.OperationalError, PoolTimeout) as error:
            raise NoDatabaseError(f"{self.name} does not answer ({_first_line(error)}); try again later") from None

    def _migrate(self, connection: Connection[Any]) -> None:
        """Bring the tables to this version, step by step, each whole or not at all."""
        every = steps("postgres_steps")
        for number, script in every:
            with connection.transaction():
                connection.execute(f"SELECT pg_advisory_xact_lock({_lock('write')})")
                version = self._version(connection)
                if version > len(every):
                    raise InputError(
                        f"{self.name} is of version {version}; this broadsheet knows {len(every)}: update it"
                    )
                if version < number:
                    connection.execute(script.encode())
                    connection.execute("INSERT INTO version VALUES (%s)", (number,))

    def _version(self, connection: Connection[Any]) -> int:
        """The last step that was made; where none was, a schema for the tables."""
        [there] = connection.execute(f"SELECT to_regclass('{SCHEMA}.version') IS NOT NULL").fetchone() or [False]
        if not there:
            if not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (SCHEMA,)).fetchone():
                connection.execute(f"CREATE SCHEMA {SCHEMA}")
            connection.execute(f"CREATE TABLE {SCHEMA}.version (number integer NOT NULL)")
        _in_schema(connection)
        [found] = connection.execute("SELECT coalesce(max(number), 0) FROM version").fetchone() or [0]
        return int(found)


def _in_schema(connection: Connection[Any]) -> None:
    connection.execute(f"SET search_path TO {SCHEMA}, public")
    connection.execute(f"SET hnsw.ef_search = {_CANDIDATES}")


@lru_cache(1024)
def _sql(text: str) -> bytes:
    """SQL as psycopg has it."""
    return text.replace("%", "%%").replace("?", "%s").encode()


def _lock(what: str) -> int:
    """The number of an advisory lock: of this program's, by what it is for."""
    return int.from_bytes(hashlib.sha256(f"{SCHEMA} {what}".encode()).digest()[:8], "big", signed=True)


def _words(text: str) -> str:
    """A text's words, in small letters without accents, as FTS5 takes them apart."""
    bare = "".join(each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each))
    return " ".join(re.findall(r"[^\W_]+", bare.lower()))


def _terms(texts: Sequence[str]) -> list[str]:
    """The words of each text that has any."""
    return [words for each in texts if (words := _words(each))]


def _literal(row: Vector) -> str:
    return "[" + ",".join(map(str, row.tolist())) + "]"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]

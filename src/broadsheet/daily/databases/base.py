"""What the store asks of a database: rows, transactions, texts that are searched by word, vectors.

Knows: what both databases have in common. Does not know: what is kept, or either of them. SQL is what both understand,
with `?` for values: `ON CONFLICT`, conditions that are true or false by themselves, no functions but `lower`,
`coalesce`, `count`, `min` and `max`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broadsheet.console import InputError
from broadsheet.daily.query import Query

Row = tuple[Any, ...]
Vector = NDArray[np.float32]
GRAPH_FROM = 100_000  # vectors; below, all are looked at


class NoDatabaseError(InputError):
    """The database does not answer; later it may."""


class Database(ABC):
    """One database. Threads share it.

    Attributes:
        name: as it is told to people: without a password.
    """

    name: str

    @abstractmethod
    def rows(self, sql: str, given: Sequence[Any] = ()) -> list[Row]:
        """What a query finds."""

    @abstractmethod
    def run(self, sql: str, given: Sequence[Any] = ()) -> int:
        """Change something; returns how many rows."""

    @abstractmethod
    def run_all(self, sql: str, given: Sequence[Sequence[Any]]) -> None:
        """Change something for each of several rows of values."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """A transaction of this thread: all of it, or nothing; one at a time. One within another is a part of it."""

    @abstractmethod
    def alone(self, what: str) -> AbstractContextManager[None]:
        """Wait until nobody else who uses this database does `what`, on any thread, process or machine."""

    @abstractmethod
    def turn(self, what: str) -> AbstractContextManager[bool]:
        """As `alone`, without waiting: whether nobody else does it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what this thread holds."""

    # Words

    @abstractmethod
    def index_words(self, identifier: str, texts: Sequence[str]) -> None:
        """Make a paper found by these texts: title, abstract, authors' names, note, our words."""

    @abstractmethod
    def find_words(self, query: Query, where: str, given: Sequence[Any], limit: int) -> list[str]:
        """Papers that have what is looked for, the best first.

        Args:
            where: a condition on `paper` and `mark`, with the values `given`.
        """

    @abstractmethod
    def place(self, query: Query, identifier: str) -> str:
        """The place of a paper's texts that fits a query best; what fits stands between the characters 2 and 3."""

    # Vectors

    @abstractmethod
    def keep_vectors(self, embedder: str, made: Iterable[tuple[str, str, Vector]]) -> None:
        """Keep papers' vectors (width,), of length 1: (identifier, fingerprint of the text, vector)."""

    @abstractmethod
    def settle_vectors(self, embedder: str) -> None:
        """Make a graph of the vectors where they are so many that looking at each takes too long (`GRAPH_FROM`)."""

    @abstractmethod
    def vector_texts(self, embedder: str) -> dict[str, str]:
        """The fingerprint of the text of each paper that has a vector."""

    @abstractmethod
    def vectors(self, embedder: str, identifiers: Sequence[str]) -> dict[str, Vector]:
        """The vectors of some papers, as far as there are any."""

    @abstractmethod
    def nearest(self, embedder: str, direction: Vector, limit: int) -> list[str]:
        """Papers in the order of the product of their vectors with another one (width,), the largest first."""


def steps(folder: str) -> list[tuple[int, str]]:
    """The numbered steps by which tables come to their present form: (number, SQL)."""
    found = files("broadsheet.daily.databases").joinpath(folder)
    names = sorted(each.name for each in found.iterdir() if each.name.endswith(".sql"))
    return [(number, found.joinpath(name).read_text("utf-8")) for number, name in enumerate(names, 1)]

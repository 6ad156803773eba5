"""What ranks read and write: a corpus in shares, shards that stand whole or not at all, statistics in two passes.

Knows: ranks, JSON lines, the place of a document in its corpus. Does not know: rules, executors.

A file has its final name only once it is complete and on the disk: a rank that is killed, or whose disk is full, leaves
nothing that looks finished, and its next run begins the file anew.
"""

from __future__ import annotations

import heapq
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from string import Template
from typing import IO, Any, TypeVar

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from broadsheet.cache import atomic_write
from broadsheet.console import InputError, quiet
from broadsheet.data import corpora
from broadsheet.data.rows import OnError

PLACE = "place"  # in a document's metadata: its number in the corpus, from 0
CUT = "cut"  # of a step's counts: documents of which only the beginning was read
T = TypeVar("T")


class DamagedError(InputError):
    """A file that was written whole is so no longer. Who started the work says how to start over."""


class CorpusReader(PipelineStep):
    """A rank's share of a corpus by name: of `n` ranks, each reads every n-th document.

    Args:
        spec, on_error, text_field, id_field: as in `corpora.load`.

    Raises:
        InputError: as the corpus is opened and read.
    """

    type = "📖 - READER"
    name = "corpus"

    def __init__(self, spec: str, on_error: OnError = "stop", text_field: str = "text", id_field: str = "id") -> None:
        super().__init__()
        self.spec, self.on_error, self.text_field, self.id_field = spec, on_error, text_field, id_field

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with quiet():  # every rank opens it
            corpus = corpora.load(self.spec, on_error=self.on_error, text_field=self.text_field, id_field=self.id_field)
        read = 0
        for place, document in enumerate(corpus):
            if place % world_size == rank:
                read += 1
                yield Document(document.text, document.id, metadata={**document.metadata, PLACE: place})
        self.stat_update("documents", value=read)
        if rank == 0:  # every rank sees all bad rows
            for reason, count in corpus.skipped.items():
                self.stat_update(f"unreadable_{reason}", value=count)


class ShardReader(PipelineStep):
    """What a `ShardWriter` wrote: each rank reads the shard of its own number.

    Args:
        folder: the writer's; with a name of a file as its `name`.
    """

    type = "📖 - READER"
    name = "shards"

    def __init__(self, folder: str | Path, name: str = "${rank}.jsonl") -> None:
        super().__init__()
        self.folder, self.file = Path(folder), name

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        path = self.folder / Template(self.file).substitute(rank=f"{rank:05d}")
        if path.exists():
            yield from _documents(path)


class ShardWriter(PipelineStep):
    """Documents as JSON lines `{"text", "id", "metadata"}`, a file a rank, and pass them on.

    Args:
        folder: where the files will stand.
        name: of a file; `${rank}`, and fields of the metadata.
    """

    type = "💽 - WRITER"
    name = "shards"

    def __init__(self, folder: str | Path, name: str = "${rank}.jsonl") -> None:
        super().__init__()
        self.folder, self.file = Path(folder), name

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        template, number = Template(self.file), f"{rank:05d}"
        files: dict[str, IO[str]] = {}
        with ExitStack() as stack:
            if set(template.get_identifiers()) == {"rank"}:  # known beforehand: an empty shard is a shard
                path = self.folder / template.substitute(rank=number)
                files[path.name] = stack.enter_context(atomic_write(path))
            for document in data:
                name = template.substitute(document.metadata, rank=number)
                if name not in files:
                    files[name] = stack.enter_context(atomic_write(self.folder / name))
                files[name].write(line(document))
                self.stat_update("documents")
                yield document


def line(document: Document) -> str:
    """A document as a line of a shard."""
    return json.dumps({"text": document.text, "id": document.id, "metadata": document.metadata}) + "\n"


def _documents(path: Path) -> Iterator[Document]:
    return (document(path, row) for row in rows_of(path))


def document(path: Path, row: Any) -> Document:
    """What a line of a shard holds.

    Raises:
        DamagedError: it is no document.
    """
    try:
        return Document(**row)
    except TypeError:
        raise damaged(path) from None


def rows_of(path: Path) -> Iterator[Any]:
    """The JSON values of a file's lines.

    Raises:
        DamagedError: one is none.
    """
    with path.open("rb") as file:
        for text in file:
            yield parsed(path, text)


def parsed(path: Path, text: bytes) -> Any:
    """A JSON value that we wrote.

    Raises:
        DamagedError: it is none any more.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise damaged(path) from None


def damaged(path: Path) -> DamagedError:
    """What is said of a file that was written whole and is no longer."""
    return DamagedError(f"{path} is damaged")


def in_order(folder: Path) -> Iterator[Document]:
    """The documents of all shards in a folder, in the order of their corpus: the same however many ranks wrote them."""
    shards = [_documents(path) for path in sorted(folder.glob("*.jsonl"))]
    return heapq.merge(*shards, key=lambda document: document.metadata[PLACE])


class Examples:
    """What a step did to which documents, and the first few of each reason: for a filter's `exclusion_writer`.

    Writes `<rank>.jsonl`, a line `{"id", "place", "reason"}` for each document, and with the first of them an excerpt.

    Args:
        folder: of this step alone.
        each: excerpts of a reason, for each rank.
        characters: of an excerpt.
        reason: of a step that gives none.
    """

    def __init__(self, folder: str | Path, each: int = 3, characters: int = 400, reason: str = "dropped") -> None:
        self.folder, self.each, self.characters, self.reason = Path(folder), each, characters, reason
        self._seen: Counter[str] = Counter()
        self._stack = ExitStack()
        self._file: IO[str] | None = None

    def __enter__(self) -> Examples:
        self._seen, self._stack, self._file = Counter(), ExitStack(), None
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, document: Document, rank: int = 0) -> None:
        """Note a document, whose `metadata["filter_reason"]` says what happened to it."""
        if self._file is None:
            self._file = self._stack.enter_context(atomic_write(self.folder / f"{rank:05d}.jsonl"))
        reason = document.metadata.get("filter_reason", self.reason)
        told: dict[str, Any] = {"id": document.id, "place": document.metadata.get(PLACE, -1), "reason": reason}
        self._seen[reason] += 1
        if self._seen[reason] <= self.each:
            told["excerpt"] = document.text[: self.characters]
        self._file.write(json.dumps(told) + "\n")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stack": None, "_file": None}  # a worker opens its own


def told(folder: Path) -> Iterator[dict[str, Any]]:
    """What the `Examples` of a step hold, over all ranks, in the order of the corpus."""

    return heapq.merge(*map(rows_of, sorted(folder.glob("*.jsonl"))), key=lambda row: row["place"])


# Statistics in two passes: each rank writes its own, then they are merged.


class RankStatistics(PipelineStep):
    """The first of two passes: what a rank finds in its documents, as `<folder>/<rank>.json`. Documents pass through.

    A subclass gives `empty` and `note`; `parts` reads what all ranks wrote.

    Args:
        folder: for the ranks' files.
    """

    type = "📊 - STATS"

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)

    def empty(self) -> Any:
        """The statistics of no document: a dictionary, or a list, of JSON values."""
        return {}

    @abstractmethod
    def note(self, found: Any, document: Document) -> None:
        """Add a document to the statistics."""

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        found = self.empty()
        for document in data:
            with self.track_time():
                self.note(found, document)
            self.stat_update("total")
            yield document
        write_part(self.folder, rank, found)


def write_part(folder: str | Path, rank: int, value: Any) -> None:
    """A rank's statistics, JSON values, as `<folder>/<rank>.json`."""
    with atomic_write(Path(folder) / f"{rank:05d}.json") as file:
        json.dump(value, file)


def parts(folder: str | Path, ranks: int) -> list[Any]:
    """What all ranks wrote, in their order.

    Raises:
        DamagedError: one is missing or damaged; nothing is guessed.
    """
    found = []
    for rank in range(ranks):
        path = Path(folder) / f"{rank:05d}.json"
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise DamagedError(f"{path} is missing or damaged: run rank {rank} of {ranks} again") from None
    return found


def once(path: Path, make: Callable[[], T]) -> T:
    """A JSON value that is made once and then read: what lies between two passes, through kills."""
    if not path.exists():
        value = make()
        with atomic_write(path) as file:
            json.dump(value, file)
        return value
    made: T = parsed(path, path.read_bytes())
    return made

"""Documents by name: the embedded corpus, or the rows of files, folders and hub data sets as texts, one at a time.

Knows: what makes a row a document. Does not know: file formats (`sources`), what a method wants. Empty and
whitespace-only texts are therefore passed through; each method says what it does with them.

A spec is one of
- `pydocs`: the docstrings and docs installed beside us, see `pydocs`; `pydocs:stdlib`, the standard library's alone;
- a `.txt` file: the whole file is one document;
- any other file, folder (with the `.txt` files in it) or hub data set of `sources`: a row a document.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from broadsheet.console import InputError, say
from broadsheet.data import pydocs, rows
from broadsheet.data.rows import OnError, Rows, Stored
from broadsheet.data.sources import InvalidRow, RowLocation, RowSource, Text, is_unicode, open_source
from broadsheet.models.embedded import DEFAULT

T = TypeVar("T")


@dataclass(slots=True)
class Document:
    """A text and the id it is known by; `metadata` holds the other fields of its row."""

    id: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)


def load(
    spec: str | os.PathLike[str],
    *,
    on_error: OnError = "stop",
    text_field: str = "text",
    id_field: str = "id",
    tokenizer_file: Path | None = None,
) -> Corpus:
    """Open a corpus. Rows are read, and found bad, only as it is iterated.

    Args:
        spec: see the module's docstring.
        on_error: at a bad row, `"stop"` raises an InputError that names file and line; `"skip"` counts it by reason.
        text_field: the field that holds the text.
        id_field: the field that holds the id; a row without one is called `file:line`.
        tokenizer_file: the `tokenizer.json` that counts the tokens of `pydocs`, once; by default the default model's,
            where that is prepared.

    Raises:
        InputError: nothing is there (near names are suggested), the format is unknown, a folder holds no documents, or
            the hub cannot be reached.

    Example:
        for document in load("corpus.jsonl", on_error="skip"):
            print(document.id, len(document.text))
    """
    rows.check_on_error(on_error)
    if pydocs.is_pydocs(spec):
        return PydocsCorpus(os.fspath(spec), tokenizer_file)
    return StoredCorpus(open_source(spec, documents=True), on_error, text_field, id_field)


class Corpus(Rows[Document]):
    """Documents that can be iterated any number of times, each time from the start and in the same order."""

    source: RowSource | None = None

    def __init__(self, spec: str, on_error: OnError, text_field: str, id_field: str) -> None:
        super().__init__(spec, on_error)
        self.text_field = text_field
        self.id_field = id_field

    def read(self, schema: type[T], columns: Mapping[str, str] | None = None) -> Rows[T]:
        """The rows behind the documents, as another schema: see `rows.read`.

        Raises:
            InputError: they are documents alone.
        """
        if self.source is None:
            raise InputError(f"{self.spec} holds no rows of columns; expected a file, a folder, or hf:org/name:split")
        return rows.read(self.source, schema, self.on_error, columns=columns)

    def _made(self, place: RowLocation, row: Any) -> Document | InvalidRow:
        if isinstance(row, Text):
            row = {self.text_field: str(row)}
        if not isinstance(row, dict):
            return InvalidRow("not a JSON object")
        if self.text_field not in row:
            return InvalidRow(f"no field {self.text_field!r}", "set text_field to the one that holds the text")
        metadata = dict(row)
        text = metadata.pop(self.text_field)
        if not isinstance(text, str):
            return InvalidRow(f"field {self.text_field!r} is not a string")
        if not is_unicode(text):
            return InvalidRow(f"field {self.text_field!r} holds half a surrogate pair")
        identifier = metadata.pop(self.id_field, None)
        return Document(place.id if identifier is None else str(identifier), text, metadata)


class PydocsCorpus(Corpus):
    """The embedded corpus. Metadata: title, summary, body, package, module and kind, all strings."""

    def __init__(self, spec: str = "pydocs", tokenizer_file: Path | None = None) -> None:
        super().__init__(spec, "stop", "text", "id")
        prepared = DEFAULT.folder / "tokenizer.json"
        self.folder, self.stats = pydocs.prepare(
            spec, tokenizer_file=tokenizer_file or (prepared if prepared.exists() else None)
        )
        self.count = self.stats.documents
        say(self.describe())

    def identity(self) -> dict[str, Any]:
        return {self.spec: self.stats.fingerprint}

    def fingerprint(self) -> str:
        return self.stats.fingerprint

    def describe(self) -> str:
        return str(self.stats)

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        for row in pydocs.rows(self.folder):
            yield RowLocation(row["id"], row["id"]), row


class StoredCorpus(Stored, Corpus):
    """The rows of files or of a hub data set as documents."""

    source: RowSource

    def __init__(self, source: RowSource, on_error: OnError, text_field: str, id_field: str) -> None:
        super().__init__(source.spec, on_error, text_field, id_field)
        self.source, self.count = source, source.count

    def identity(self) -> dict[str, Any]:
        return self.source.identity() | {"text_field": self.text_field}

"""Documents from wherever they lie: the embedded corpus, files and folders, or a hub data set, always one at a time.

Knows: file formats, where each row stands, and what makes a row unusable. Does not know: what a method wants. Empty and
whitespace-only texts are therefore passed through; each method says what it does with them.

A spec is one of
- `pydocs`: the docstrings and docs installed beside us, see `pydocs`;
- a file: `.jsonl` or `.jsonl.gz` (an object a line, blank lines aside), `.parquet` (a row a document), or `.txt` (the
  whole file is one document);
- a folder: every such file below it, sorted by path, hidden files and folders left out;
- `hf:[org/]name:split` or `hf:org/name/config:split`: a data set of the Hugging Face hub, which needs
  `pip install 'broadsheet[hub]'`. Two parts are always organisation and name, so a config takes all three.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import random
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from broadsheet.cache import fingerprint, sha256_file
from broadsheet.console import InputError, say
from broadsheet.data import pydocs
from broadsheet.models.embedded import DEFAULT

if TYPE_CHECKING:
    from pyarrow import RecordBatch

OnError = Literal["stop", "skip"]
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".txt")


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
    if on_error not in get_args(OnError):
        raise InputError(f"on_error is {on_error!r}; expected 'stop' or 'skip'")
    name = os.fspath(spec)
    if name == "pydocs":
        return PydocsCorpus(tokenizer_file)
    if name.startswith("hf:"):
        return HubCorpus(name, on_error, text_field, id_field)
    return FileCorpus(name, on_error, text_field, id_field)


class RowLocation(NamedTuple):
    """Where a row stands: as messages name it, and as the id of a row that brings none (wherever files lie)."""

    shown: str
    id: str


@dataclass(frozen=True)
class InvalidRow:
    """What stands where a document was expected. Rows with the same fault have the same `reason`."""

    reason: str
    remedy: str = "mend it"


class Corpus(ABC):
    """Documents that can be iterated any number of times, each time from the start and in the same order.

    Attributes:
        spec: what it was loaded by.
        count: the number of documents where that is known without reading them, else None.
        skipped: bad rows of the latest iteration, counted by reason; told on stderr at the end of the first.
    """

    count: int | None = None

    def __init__(self, spec: str, on_error: OnError, text_field: str, id_field: str) -> None:
        self.spec = spec
        self.on_error = on_error
        self.text_field = text_field
        self.id_field = id_field
        self.skipped: Counter[str] = Counter()
        self._told = False

    def __iter__(self) -> Iterator[Document]:
        self.skipped.clear()
        for place, row in self._rows():
            found = self._document(place, row)
            if isinstance(found, Document):
                yield found
            elif self.on_error == "skip":
                self.skipped[found.reason] += 1
            else:
                raise InputError(f"{place.shown}: {found.reason}; {found.remedy}, or go on without it: --on-error skip")
        if self.skipped and not self._told:
            self._told = True
            reasons = ", ".join(f"{count:,} × {reason}" for reason, count in self.skipped.most_common())
            say(f"{self.spec}: {self.skipped.total():,} bad rows skipped ({reasons})")

    def take(self, n: int, seed: int) -> list[Document]:
        """A uniform sample of `n` documents without replacement, in corpus order; all of them if there are no more.

        One pass with `n` documents in memory (reservoir sampling); the same `n` and `seed` give the same sample.

        Raises:
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError(f"n is {n}; expected 0 or more documents")
        generator = random.Random(seed)
        sample: list[tuple[int, Document]] = []
        for index, document in enumerate(self):
            if index < n:
                sample.append((index, document))
            elif (slot := generator.randrange(index + 1)) < n:
                sample[slot] = (index, document)
        return [document for _, document in sorted(sample, key=lambda numbered: numbered[0])]

    def fields(self) -> list[str]:
        """Names of the fields of the first row that can be read; none where there is no such row."""
        return next((list(row) for _, row in self._rows() if isinstance(row, dict)), [])

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells this corpus from another without reading it, as plain JSON: names and sizes, a key, a commit."""

    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that change when the content does.

        Files: over each file's name, size and SHA-256, so every byte is read. `pydocs`: the key of its environment.
        Hub: over the data set's name and its commit.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line for people: what it is, and how large."""

    @abstractmethod
    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        """Every row from the start; `InvalidRow` where one could not be read."""

    def _document(self, place: RowLocation, row: Any) -> Document | InvalidRow:
        if isinstance(row, InvalidRow):
            return row
        if not isinstance(row, dict):
            return InvalidRow("not a JSON object")
        if self.text_field not in row:
            return InvalidRow(f"no field {self.text_field!r}", "set text_field to the one that holds the text")
        metadata = dict(row)
        text = metadata.pop(self.text_field)
        if not isinstance(text, str):
            return InvalidRow(f"field {self.text_field!r} is not a string")
        if not _is_unicode(text):
            return InvalidRow(f"field {self.text_field!r} holds half a surrogate pair")
        identifier = metadata.pop(self.id_field, None)
        return Document(place.id if identifier is None else str(identifier), text, metadata)


class PydocsCorpus(Corpus):
    """The embedded corpus. Metadata: title, summary, body, package, module and kind, all strings."""

    def __init__(self, tokenizer_file: Path | None = None) -> None:
        super().__init__("pydocs", "stop", "text", "id")
        prepared = DEFAULT.folder / "tokenizer.json"
        self.folder, self.stats = pydocs.prepare(
            tokenizer_file=tokenizer_file or (prepared if prepared.exists() else None)
        )
        self.count = self.stats.documents
        say(self.describe())

    def identity(self) -> dict[str, Any]:
        return {"pydocs": self.stats.key}

    def fingerprint(self) -> str:
        return self.stats.key

    def describe(self) -> str:
        return str(self.stats)

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        for row in pydocs.rows(self.folder):
            yield RowLocation(row["id"], row["id"]), row


class FileCorpus(Corpus):
    """One file, or the files below a folder. Damage that ends a file early counts as one bad row."""

    def __init__(self, spec: str, on_error: OnError, text_field: str, id_field: str) -> None:
        super().__init__(spec, on_error, text_field, id_field)
        self.root, self.files = _find_files(Path(spec).expanduser())

    def identity(self) -> dict[str, Any]:
        files = [[self._name(path), path.stat().st_size] for path in self.files]
        return {"files": files, "text_field": self.text_field}

    def fingerprint(self) -> str:
        return fingerprint([[self._name(path), path.stat().st_size, sha256_file(path)] for path in self.files])

    def describe(self) -> str:
        size = _in_bytes(sum(path.stat().st_size for path in self.files))
        return f"{self.spec}: {size}" if len(self.files) == 1 else f"{self.spec}: {len(self.files):,} files, {size}"

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        for path in self.files:
            name = self._name(path)
            try:
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                    if path.suffix == ".txt":
                        line, text = _text(file)
                        yield (
                            RowLocation(f"{path}:{line}", name),
                            text if isinstance(text, InvalidRow) else {self.text_field: text},
                        )
                        continue
                    for line, row in _parquet_rows(file) if path.suffix == ".parquet" else _jsonl_rows(file):
                        yield RowLocation(f"{path}:{line}", f"{name}:{line}"), row
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}") from None


class HubCorpus(Corpus):
    """A split of a hub data set: rows are downloaded as they are read, all from the commit that was newest at load."""

    def __init__(self, spec: str, on_error: OnError, text_field: str, id_field: str) -> None:
        super().__init__(spec, on_error, text_field, id_field)
        self.name, self.config, self.split = _parse_hub_spec(spec)
        try:
            import datasets
            from huggingface_hub import HfApi
        except ImportError:
            raise InputError(f"{spec} needs the datasets library: pip install 'broadsheet[hub]'") from None
        api = HfApi()
        say(f"{spec}: looking up the data set {self.name} at {api.endpoint}")
        with self._hub_errors():
            self.revision = api.dataset_info(self.name).sha
            self._stream = datasets.load_dataset(
                self.name, self.config, split=self.split, streaming=True, revision=self.revision
            )
        split = (self._stream.info.splits or {}).get(self.split)
        self.count = split.num_examples if split and split.num_examples else None
        self.size = split.num_bytes if split and split.num_bytes else None
        say(self.describe())

    def identity(self) -> dict[str, Any]:
        return {"hub": [self.name, self.config, self.split, self.revision], "text_field": self.text_field}

    def fingerprint(self) -> str:
        return fingerprint([self.name, self.config, self.split, self.revision])

    def describe(self) -> str:
        rows = f"{self.count:,} rows" if self.count else "number of rows unknown"
        size = _in_bytes(self.size) if self.size else "size unknown"
        return f"{self.spec}: {rows}, {size}, commit {self.revision}, downloaded as it is read"

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        rows = iter(self._stream)
        number = 0
        while True:
            with self._hub_errors():
                row = next(rows, None)
            if row is None:
                return
            number += 1
            yield RowLocation(f"{self.spec}:{number}", f"{self.name}/{self.split}:{number}"), row

    @contextmanager
    def _hub_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the hub's client, its HTTP library and the readers share no base class
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(
                f"cannot read {self.spec} (data set {self.name}, config {self.config or 'default'}, split {self.split})"
                f": {reason}; check the spec (hf:org/name/config:split) and the network"
            ) from error


def _find_files(path: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files to read.

    Raises:
        InputError: there is nothing to read.
    """
    expected = ", ".join(SUFFIXES)
    if path.is_dir():
        found = []
        for folder, below, files in os.walk(path):
            below[:] = [name for name in below if not name.startswith(".")]
            found += [Path(folder, name) for name in files if not name.startswith(".") and name.endswith(SUFFIXES)]
        if not found:
            raise InputError(f"the folder {path} holds no documents; expected files that end in {expected}")
        return path, sorted(found)
    if not path.exists():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, [*siblings, "pydocs"], n=3)
        remedy = f"did you mean {' or '.join(near)}?" if near else "give a file, a folder, pydocs, or hf:org/name:split"
        raise InputError(f"no corpus at {path}; {remedy}")
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"cannot read {path}: expected a name that ends in {expected}")
    return path.parent, [path]


def _parse_hub_spec(spec: str) -> tuple[str, str | None, str]:
    """Data set, config and split of `hf:[org/]name:split` or `hf:org/name/config:split`."""
    path, _, split = spec.removeprefix("hf:").rpartition(":")
    parts = path.split("/")
    if not split or not all(parts) or len(parts) > 3:
        raise InputError(f"{spec!r} names no hub data set; expected hf:org/name:split or hf:org/name/config:split")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split


def _text(file: BufferedIOBase) -> tuple[int, str | InvalidRow]:
    """The whole file as a text; or the line of the first byte that is not UTF-8."""
    data = file.read()
    try:
        return 1, data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1, InvalidRow("not UTF-8", "save it as UTF-8")


def _jsonl_rows(file: BufferedIOBase) -> Iterator[tuple[int, Any]]:
    """Line numbers and rows."""
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            row = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if row.strip():
                yield number, _parse(row)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        yield number + 1, InvalidRow("not gzip, or cut off", "fetch the file again")


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return InvalidRow("not UTF-8", "save it as UTF-8")
    except (ValueError, RecursionError):  # a number of more than 4,300 digits is a plain ValueError
        return InvalidRow("not JSON")


def _parquet_rows(file: BufferedIOBase) -> Iterator[tuple[int, Any]]:
    """Row numbers from 1, and rows."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        # Otherwise a row group's columns are read whole, and one row group may be the whole file.
        parquet = ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        for batch in parquet.iter_batches(batch_size=256):
            for row in _batch_rows(batch):
                number += 1
                yield number, row
    except (pyarrow.ArrowException, OSError):
        yield number + 1, InvalidRow("not Parquet, or damaged", "fetch the file again")


def _batch_rows(batch: RecordBatch) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            try:
                yield from batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError:
                yield InvalidRow("not UTF-8", "save it as UTF-8")


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can express `text`: a JSON escape may spell half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _in_bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"

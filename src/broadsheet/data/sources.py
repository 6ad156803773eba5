"""Where rows lie: files, folders, hub data sets. Each row comes with its place, or as what is wrong with it.

Knows: file formats, line numbers, sizes. Does not know: what the columns are called or mean; that is in `rows`.

A spec is one of
- a file: `.jsonl` (an object a line, blank lines aside), `.json` (one list of objects, read whole), `.parquet`, or
  `.csv` or `.tsv` whose first line names the columns; all but Parquet may be packed as `.gz`. CSV quotes cells that
  hold a comma, a quotation mark or a line break; TSV quotes nothing: a quotation mark is one;
- a folder: every `.jsonl`, `.parquet`, `.csv` and `.tsv` file below it, sorted by path, hidden ones left out;
- `hf:[org/]name:split` or `hf:org/name/config:split`: a data set of the Hugging Face hub, which needs
  `pip install -e '.[hub]'`. Two parts are always organisation and name, so a config takes all three;
- `resource:NAME` or `resource:NAME/FILE`: labelled data by name, the files of which `resources` fetches or finds.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from broadsheet.cache import fingerprint, sha256_file
from broadsheet.console import InputError, say
from broadsheet.data.resources import local

if TYPE_CHECKING:
    from pyarrow import RecordBatch

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
MAX_LINE = 1 << 26  # bytes of a line: what is longer is no row, and would not fit into memory with what is made of it
_SAVE = "save it as UTF-8"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # an escape that may be half of a pair
_LARGE = 1 << 31  # bytes of data, from which it is said that they are read once more
_told: set[Path] = set()  # of which it was said
_SHOWN = 200  # characters of a name that is wrong

Layout = Callable[[Sequence[str]], "Sequence[str] | None"]


class RowLocation(NamedTuple):
    """Where a row stands: as messages name it, as the id of a row that brings none, and in which folder, if any."""

    shown: str
    id: str
    folder: Path | None = None


@dataclass(frozen=True)
class InvalidRow:
    """What stands where a row was expected. Rows with the same fault have the same `reason`; `got` is what differs."""

    reason: str
    remedy: str = "correct it"
    got: str = ""

    def at(self, place: RowLocation | str) -> str:
        """The fault with its place, what was got, and the remedy."""
        shown = place if isinstance(place, str) else place.shown
        return f"{shown}: {self.reason}{self.got and f' (got {self.got})'}; {self.remedy}"


class Text(str):
    """A file that is one text."""


class RowSource(ABC):
    """Rows that can be read any number of times, each time from the start and in the same order.

    Attributes:
        spec: what it was opened by.
        count: the number of rows where that is known without reading them, else None.
    """

    spec: str
    count: int | None = None

    @abstractmethod
    def rows(self, layout: Layout | None = None) -> Iterator[tuple[RowLocation, Any]]:
        """Every row from the start; `InvalidRow` where one could not be read.

        Args:
            layout: called with the first line of a CSV or TSV file. Gives the names of the columns where that line is a
                row itself, None where it names them; raises ValueError where it is neither.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells these rows from others, as plain JSON: names, sizes and digests of files, or a commit.

        A run that was cut off resumes over the same rows alone: two files of one name and size may differ within.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that change when the content does."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people: what it is, and how large."""


def open_source(spec: str | os.PathLike[str], *, documents: bool = False) -> RowSource:
    """The rows of a spec; see the module. Nothing but the file names, or the hub's record, is read yet.

    Args:
        documents: `.txt` files count too, each as a `Text`.

    Raises:
        InputError: nothing is there (near names are suggested), the format is unknown, a folder holds no rows, or the
            hub cannot be reached.
    """
    name = os.fspath(spec)
    return HubSource(name) if name.startswith("hf:") else FileSource(name, documents=documents)


def is_rows(spec: str) -> bool:
    """Whether a spec is one file of rows or a hub data set; where folders mean something else."""
    return spec.startswith("hf:") or local(spec).is_file()


def keep_inputs(out: Path, *inputs: object) -> None:
    """Refuse an output that is one of the inputs, or a folder that holds one: `--force` would destroy it.

    Args:
        out: where something will be written.
        inputs: names of files, folders, models or data; what is no path that exists is passed over.

    Raises:
        InputError: it is, or does.
    """
    target = Path(os.path.realpath(Path(out).expanduser()))  # unlike `resolve`, no error at a link to itself
    for each in inputs:
        if not isinstance(each, str | Path) or not str(each) or str(each).startswith(("resource:", "hf:")):
            continue
        try:
            path = Path(os.path.realpath(Path(each).expanduser()))
            held = path.exists() and path.is_relative_to(target)
        except OSError:
            continue  # a name that is too long is no path
        if held:
            raise InputError(f"--out {out} {'is' if path == target else 'holds'} {each}, which is read; choose another")


def named(folder: Path, stem: str) -> Path | None:
    """The file of rows of this name in a folder, whatever its format; None where there is none."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)


class FileSource(RowSource):
    """One file, or the files below a folder. Damage that ends a file early counts as one bad row.

    Args:
        form: of a file whose name does not tell: `"jsonl"`, `"parquet"`, `"csv"` or `"tsv"`.
    """

    def __init__(self, spec: str, *, documents: bool = False, form: str = "") -> None:
        self.spec, self.form = spec, form
        try:
            self.root, self.files = _find_files(local(spec), documents, bool(form))
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            name = spec if len(spec) <= _SHOWN else spec[:_SHOWN] + "…"
            raise InputError(f"cannot read {name}: {error.strerror or error}") from None

    def identity(self) -> dict[str, Any]:
        """Names, sizes and SHA-256, so every byte is read, once in a process."""
        sizes = [path.stat().st_size for path in self.files]
        if sum(sizes) > _LARGE and self.files[0] not in _told:
            _told.add(self.files[0])
            say(f"reading {self.spec} once, {_in_bytes(sum(sizes))}, to know it again")
        return {
            "files": [[self._name(path), size, _digest(path)] for path, size in zip(self.files, sizes, strict=True)]
        }

    def fingerprint(self) -> str:
        return fingerprint(self.identity()["files"])

    def describe(self) -> str:
        size = _in_bytes(sum(path.stat().st_size for path in self.files))
        return f"{self.spec}: {size}" if len(self.files) == 1 else f"{self.spec}: {len(self.files):,} files, {size}"

    def rows(self, layout: Layout | None = None) -> Iterator[tuple[RowLocation, Any]]:
        for path in self.files:
            name = self._name(path)
            form = self.form or Path(path.name.removesuffix(".gz")).suffix[1:]
            number = 0
            try:
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                    for number, row in _READERS[form](file, layout):
                        identifier = name if form == "txt" else f"{name}:{number}"
                        yield RowLocation(f"{path}:{number}", identifier, path.parent), row
            except (EOFError, gzip.BadGzipFile, zlib.error):
                number += 1
                place = RowLocation(f"{path}:{number}", f"{name}:{number}", path.parent)
                yield place, InvalidRow("not gzip, or cut off", "fetch the file again")
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}") from None

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _digest(path: Path) -> str:
    about = path.stat()
    return _digest_of(path, about.st_size, about.st_mtime_ns)


@cache
def _digest_of(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file, read again once its size or its time has changed."""
    return sha256_file(path)


class HubSource(RowSource):
    """A split of a hub data set: rows are downloaded as they are read, all from the commit that was newest at first.

    Sound and pictures are not decoded: they come as they are stored, `{"bytes": …, "path": …}`.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.name, self.config, self.split = parse_hub_spec(spec)
        try:
            import datasets
            from huggingface_hub import HfApi
        except ImportError:
            raise InputError(f"{spec} needs the datasets library: pip install -e '.[hub]'") from None
        api = HfApi()
        say(f"{spec}: looking up the data set {self.name} at {api.endpoint}")
        with self._hub_errors():
            self.revision = api.dataset_info(self.name).sha
            self._stream = datasets.load_dataset(
                self.name, self.config, split=self.split, streaming=True, revision=self.revision
            )
            features = getattr(self._stream, "features", None) or {}
            if any(type(feature).__name__ in ("Audio", "Image") for feature in features.values()):
                self._stream = self._stream.decode(False)
        split = (self._stream.info.splits or {}).get(self.split)
        self.count = split.num_examples if split and split.num_examples else None
        self.size = split.num_bytes if split and split.num_bytes else None
        say(self.describe())

    def identity(self) -> dict[str, Any]:
        return {"hub": [self.name, self.config, self.split, self.revision]}

    def fingerprint(self) -> str:
        return fingerprint([self.name, self.config, self.split, self.revision])

    def describe(self) -> str:
        rows = f"{self.count:,} rows" if self.count else "number of rows unknown"
        size = _in_bytes(self.size) if self.size else "size unknown"
        return f"{self.spec}: {rows}, {size}, commit {self.revision}, downloaded as it is read"

    def rows(self, layout: Layout | None = None) -> Iterator[tuple[RowLocation, Any]]:
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


def parse_hub_spec(spec: str) -> tuple[str, str | None, str]:
    """Data set, config and split of `hf:[org/]name:split` or `hf:org/name/config:split`.

    Raises:
        InputError: it is neither.
    """
    path, _, split = spec.removeprefix("hf:").rpartition(":")
    parts = path.split("/")
    if not split or not all(parts) or len(parts) > 3:
        raise InputError(f"{spec!r} names no hub data set; expected hf:org/name:split or hf:org/name/config:split")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split


def _find_files(path: Path, documents: bool, any_name: bool) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files to read.

    Raises:
        InputError: there is nothing to read.
    """
    suffixes: tuple[str, ...] = (*SUFFIXES, ".txt") if documents else SUFFIXES
    if path.is_dir():
        found = []
        for folder, below, files in os.walk(path):
            below[:] = [name for name in below if not name.startswith(".")]
            found += [Path(folder, name) for name in files if not name.startswith(".") and name.endswith(suffixes)]
        if not found:
            kind = "documents" if documents else "rows"
            raise InputError(f"the folder {path} holds no {kind}; expected files that end in {', '.join(suffixes)}")
        return path, sorted(found)
    suffixes += (".json", ".json.gz")
    if not path.exists():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, [*siblings, *["pydocs"] * documents], n=3)
        others = "a file, a folder, pydocs, or" if documents else "a file, a folder, or"
        remedy = f"did you mean {' or '.join(near)}?" if near else f"give {others} hf:org/name:split"
        raise InputError(f"no {'corpus' if documents else 'file or folder'} at {path}; {remedy}")
    if not any_name and not path.name.endswith(suffixes):
        raise InputError(f"cannot read {path}: expected a name that ends in {', '.join(suffixes)}")
    return path.parent, [path]


# Readers of one file: numbers from 1, and rows.


def _lines(file: BufferedIOBase) -> Iterator[tuple[int, bytes | InvalidRow]]:
    """Lines, blank ones too; one that is longer than `MAX_LINE` is passed over piece by piece."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield number, InvalidRow(f"a line of more than {MAX_LINE:,} bytes", "split it")
        else:
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _jsonl(file: BufferedIOBase, layout: Layout | None) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(file):
        if isinstance(line, InvalidRow):
            yield number, line
        elif line.strip():
            yield number, _parse(line)


def _json(file: BufferedIOBase, layout: Layout | None) -> Iterator[tuple[int, Any]]:
    """Rows by their number in the list."""
    found = _parse(file.read().removeprefix(codecs.BOM_UTF8))
    if not isinstance(found, list):
        remedy = "expected a list of objects, or an object a line in a .jsonl file"
        found = [
            found if isinstance(found, InvalidRow) else InvalidRow("not a JSON list", remedy, type(found).__name__)
        ]
    yield from enumerate(found, start=1)


def _parse(text: bytes) -> Any:
    try:
        found = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        return InvalidRow("not UTF-8", _SAVE)
    except (ValueError, RecursionError):  # a number of more than 4,300 digits is a plain ValueError
        return InvalidRow("not JSON")
    if not _SURROGATE.search(text):
        return found
    return [_writable(row) for row in found] if isinstance(found, list) else _writable(found)


def _writable(row: Any) -> Any:
    """The row, where it can be written again: half a surrogate pair, which only an escape can spell, cannot."""
    for name, value in row.items() if isinstance(row, dict) else [("", row)]:
        if not is_unicode(name + json.dumps(value, ensure_ascii=False)):
            return InvalidRow(f"field {name!r} holds half a surrogate pair" if name else "half a surrogate pair")
    return row


def _text(file: BufferedIOBase, layout: Layout | None) -> Iterator[tuple[int, Any]]:
    """The whole file as a text; or the line of the first byte that is not UTF-8."""
    data = file.read()
    try:
        yield 1, Text(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        yield data.count(b"\n", 0, error.start) + 1, InvalidRow("not UTF-8", _SAVE)


def _parquet(file: BufferedIOBase, layout: Layout | None) -> Iterator[tuple[int, Any]]:
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
                yield InvalidRow("not UTF-8", _SAVE)


def _tsv(file: BufferedIOBase, layout: Layout | None) -> Iterator[tuple[int, Any]]:
    def records() -> Iterator[tuple[int, list[str] | InvalidRow]]:
        for number, line in _lines(file):
            if isinstance(line, InvalidRow):
                yield number, line
            elif line.strip():
                yield number, line.decode("utf-8", "surrogateescape").rstrip("\r\n").split("\t")

    return _table(records(), layout)


def _csv(file: BufferedIOBase, layout: Layout | None) -> Iterator[tuple[int, Any]]:
    def lines() -> Iterator[str]:
        for _, line in _lines(file):
            if isinstance(line, InvalidRow):
                raise csv.Error(line.reason)
            yield line.decode("utf-8", "surrogateescape")

    def records() -> Iterator[tuple[int, list[str] | InvalidRow]]:
        reader = csv.reader(lines(), strict=True)
        while True:
            number = reader.line_num + 1  # of the record's first line
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, InvalidRow("not valid CSV", "correct the quoting", str(error))
            else:
                if any(map(str.strip, cells)):
                    yield number, cells

    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))  # Python's own is 131,072 characters
    return _table(records(), layout)


def _table(
    records: Iterable[tuple[int, list[str] | InvalidRow]], layout: Layout | None
) -> Iterator[tuple[int, dict[str, str] | InvalidRow]]:
    """Rows by column. A first line that names no columns ends the file."""
    names: Sequence[str] | None = None
    for number, cells in records:
        if isinstance(cells, InvalidRow):
            yield number, cells
            continue
        if not all(map(is_unicode, cells)):
            yield number, InvalidRow("not UTF-8", _SAVE)
            if names is None:
                return
            continue
        if names is None:
            try:
                names = layout(cells) if layout else None
            except ValueError as error:
                yield number, InvalidRow(str(error), "name the columns in the first line")
                return
            if names is None:
                names = [cell.strip() for cell in cells]
                if len(set(names)) < len(names):
                    yield number, InvalidRow("two columns of one name", "give each its own", ", ".join(names)[:60])
                    return
                continue
        if len(cells) != len(names):
            yield number, InvalidRow(f"columns: {len(cells)}, but {len(names)} in the first line")
        else:
            yield number, dict(zip(names, cells, strict=True))


_READERS: dict[str, Callable[[BufferedIOBase, Layout | None], Iterator[tuple[int, Any]]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "parquet": _parquet,
    "csv": _csv,
    "tsv": _tsv,
    "txt": _text,
}


def is_unicode(text: str) -> bool:
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

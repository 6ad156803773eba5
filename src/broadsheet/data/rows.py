"""The one reader of users' rows: `read(spec, schema)` streams a file, a folder or a hub data set as checked rows.

Knows: schemas, the names of a column, and what to do with a row that does not fit. Does not know: file formats and
specs, which are in `sources`.

A schema is a frozen dataclass whose fields are made by `column`: `schemas` holds those that stages share, a stage adds
its own. What a field takes follows from its type, whatever the format that a row comes from:
- `str`: a text; in a field without a default, more than white space;
- `float`, `int`: a finite number, or a text that spells one;
- `tuple[X, ...]`: a list, or a text that spells a JSON list (CSV has no other), or one value, unless X is `Any`;
- `dict`: an object, or a text that spells a JSON object;
- `Any`: whatever is there.
Upper and lower case are the same in column names. A column that is null counts as missing, and so does an empty text
where the field has a default. `__post_init__` may refuse what does not fit together: ValueError, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from broadsheet.cache import atomic_write, fingerprint, home
from broadsheet.console import InputError, say
from broadsheet.data.sources import InvalidRow, Layout, RowLocation, RowSource, Text, is_unicode, open_source

T = TypeVar("T")
OnError = Literal["stop", "skip"]


@dataclass(frozen=True)
class Column:
    """How a field of a schema is filled.

    Args:
        names: of the columns that are looked for, the first that is there; by default the field's own.
        prefix: all columns are put together instead: those of `names`, then `<prefix>1`, `<prefix>2`, ….
        kind: "id": a text or a number, by default the row's place. "rest": the columns that no other field takes.
            "path": of files, relative to the file that names them. "text": numbers and truth values are texts too.
    """

    names: tuple[str, ...] = ()
    prefix: str = ""
    kind: Literal["", "id", "rest", "path", "text"] = ""


def column(
    *names: str, default: Any = MISSING, prefix: str = "", kind: Literal["", "id", "rest", "path", "text"] = "",
    compare: bool = True,
) -> Any:  # fmt: skip
    """A field of a schema; see `Column`. `compare=False` leaves it out of equality.

    Example:
        @dataclass(frozen=True)
        class Pair:
            query: str = column("query", "question")
            positive: str = column("positive", "answer")
            negatives: tuple[str, ...] = column("negatives", prefix="negative_", default=())
    """
    given: dict[str, Any] = {"default_factory": dict} if kind == "rest" else {"default": default}
    if kind == "id" and default is MISSING:
        given = {"default": ""}
    return field(**given, compare=compare, metadata={"column": Column(names, prefix, kind)})


def read(
    spec: str | os.PathLike[str] | RowSource,
    schema: type[T],
    on_error: OnError = "stop",
    *,
    columns: Mapping[str, str] | None = None,
    required: Collection[str] = (),
) -> Rows[T]:
    """The rows of a file, a folder or a hub data set. They are read, and found bad, only as they are iterated.

    Args:
        spec: see `sources`; or a source that is open already.
        schema: what each row becomes.
        on_error: at a bad row, `"stop"` raises an InputError that names file and line; `"skip"` counts it by reason.
        columns: by field of the schema, the column that holds it, instead of the names that the schema knows.
        required: fields that each row has to have although the schema gives them a default.

    Raises:
        InputError: see `open_source`; while iterated, see `on_error`.

    Example:
        for pair in read("pairs.csv", schemas.Pair, on_error="skip"):
            print(pair.query, pair.positive)
    """
    source = spec if isinstance(spec, RowSource) else open_source(spec)
    return _Read(source, on_error, _Reader(schema, columns or {}, required))


def check_on_error(on_error: str) -> None:
    """Raises InputError unless it is one of `OnError`."""
    if on_error not in get_args(OnError):
        raise InputError(f"on_error is {on_error!r}; expected 'stop' or 'skip'")


class Rows(ABC, Generic[T]):
    """Rows that can be iterated any number of times, each time from the start and in the same order.

    Attributes:
        spec: what it was loaded by.
        count: the number of rows where that is known without reading them, else None.
        skipped: bad rows of the latest iteration, counted by reason; reported on stderr at the end of the first.
    """

    count: int | None = None

    def __init__(self, spec: str, on_error: OnError = "stop") -> None:
        check_on_error(on_error)
        self.spec = spec
        self.on_error = on_error
        self.skipped: Counter[str] = Counter()
        self._told = False

    def __iter__(self) -> Iterator[T]:
        self.skipped.clear()
        for place, row in self._rows():
            found = row if isinstance(row, InvalidRow) else self._made(place, row)
            if not isinstance(found, InvalidRow):
                yield found
            elif self.on_error == "skip":
                self.skipped[found.reason] += 1
            else:
                raise InputError(f"{found.at(place)}, or leave such rows out: --on-error skip")
        if self.skipped and not self._told:
            self._told = True
            reasons = ", ".join(f"{count:,} × {reason}" for reason, count in self.skipped.most_common())
            say(f"{self.spec}: {self.skipped.total():,} bad rows skipped ({reasons})")

    def take(self, n: int, seed: int = 0) -> list[T]:
        """A uniform sample of `n` rows without replacement, in their order; all of them if there are no more.

        One pass with `n` rows in memory (reservoir sampling); the same `n` and `seed` give the same sample.

        Raises:
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError(f"n is {n}; expected 0 or more rows")
        generator = random.Random(seed)
        sample: list[tuple[int, T]] = []
        for index, row in enumerate(self):
            if index < n:
                sample.append((index, row))
            elif (slot := generator.randrange(index + 1)) < n:
                sample[slot] = (index, row)
        return [row for _, row in sorted(sample, key=lambda numbered: numbered[0])]

    def some(self, what: str = "rows", n: int = 0, seed: int = 0) -> list[T]:
        """`take(n, seed)`, or all rows for 0.

        Raises:
            InputError: there are none.
        """
        found = self.take(n, seed) if n else list(self)
        if not found:
            raise InputError(f"{self.spec} holds no {what}{' that can be used' if self.skipped else ''}")
        return found

    def fields(self) -> list[str]:
        """Names of the columns of the first row that can be read; none where there is no such row."""
        return next((list(row) for _, row in self._rows() if isinstance(row, dict)), [])

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells these rows from others without reading them, as plain JSON: names and sizes, a key, a commit."""

    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits that change when the content does."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people: what it is, and how large."""

    @abstractmethod
    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        """Every row from the start; `InvalidRow` where one could not be read."""

    @abstractmethod
    def _made(self, place: RowLocation, row: Any) -> T | InvalidRow:
        """What a row becomes."""


class Stored:
    """The part of `Rows` that lies in a source."""

    source: RowSource

    def identity(self) -> dict[str, Any]:
        return self.source.identity()

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def describe(self) -> str:
        return self.source.describe()

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        return self.source.rows()


class Listed(Rows[T]):
    """Rows in memory, so that mapping over them can be stopped and resumed. Each has an `id`."""

    def __init__(self, spec: str, rows: Sequence[T]) -> None:
        super().__init__(spec)
        self.rows = rows
        self.count = len(rows)

    def identity(self) -> dict[str, Any]:
        return {"rows": self.fingerprint()}

    def fingerprint(self) -> str:
        return fingerprint([{each.name: getattr(row, each.name) for each in fields(row)} for row in self.rows])  # type: ignore[arg-type]

    def describe(self) -> str:
        return f"{self.spec}: {len(self.rows):,} rows"

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        for row in self.rows:
            yield RowLocation(self.spec, self.spec), row

    def _made(self, place: RowLocation, row: Any) -> T:
        found: T = row
        return found


class _Read(Stored, Rows[T]):
    def __init__(self, source: RowSource, on_error: OnError, reader: _Reader[T]) -> None:
        super().__init__(source.spec, on_error)
        self.source, self.count, self._reader = source, source.count, reader
        self._layout = reader.layout()

    def _rows(self) -> Iterator[tuple[RowLocation, Any]]:
        return ((place, row) for place, row in self.source.rows(self._layout) if not isinstance(row, Text))

    def _made(self, place: RowLocation, row: Any) -> T | InvalidRow:
        return self._reader(place, row)


def made(schema: type[T], row: Any, place: RowLocation | None = None, required: Collection[str] = ()) -> T | InvalidRow:
    """One row as its schema, or why it is none."""
    return _Reader(schema, {}, required)(place or RowLocation("row", ""), row)


def columns_of(schema: type[Any]) -> dict[str, tuple[Column, Any, bool]]:
    """By field of a schema: its column with all names, its type, and whether each row has to have it."""
    hints = get_type_hints(schema)
    found = {}
    for each in fields(schema):
        given: Column = each.metadata.get("column", Column())
        names = given.names or (("id", "_id") if given.kind == "id" else (each.name,))
        missing = each.default is MISSING and each.default_factory is MISSING
        found[each.name] = (Column(names, given.prefix, given.kind), hints[each.name], missing)
    return found


class _Reader(Generic[T]):
    """Rows of one schema; which column goes where is worked out once for rows of the same columns."""

    def __init__(self, schema: type[T], columns: Mapping[str, str], required: Collection[str]) -> None:
        self.schema = schema
        self.fields = {
            name: (
                replace(column, names=(columns[name],)) if name in columns else column,
                hint,
                needed or name in required,
            )
            for name, (column, hint, needed) in columns_of(schema).items()
        }
        if unknown := [name for name in (*columns, *required) if name not in self.fields]:
            raise InputError(f"{schema.__name__} has no field {unknown[0]!r}; it has {', '.join(self.fields)}")
        self._found: dict[tuple[str, ...], dict[str, list[str]]] = {}

    def __call__(self, place: RowLocation, row: Any) -> T | InvalidRow:
        if not isinstance(row, Mapping):
            names = ", ".join(column.names[0] for column, _, needed in self.fields.values() if needed)
            return InvalidRow("not a JSON object", f"expected one with {names}", type(row).__name__)
        here = self._match(tuple(row))
        values: dict[str, Any] = {}
        for name, (column, hint, needed) in self.fields.items():
            if column.kind == "rest":
                taken = {key for keys in here.values() for key in keys}
                values[name] = {key: value for key, value in row.items() if key not in taken}
                continue
            keys = [key for key in here[name] if row[key] is not None and (needed or row[key] != "")]
            if not keys and needed:
                return _missing(column, here[name], row)
            if not keys and column.kind == "id":
                values[name] = place.id
            for key in keys if column.prefix else keys[:1]:
                try:
                    value = _converted(row[key], hint, column, place)
                except ValueError as error:
                    return InvalidRow(f"field {key!r} {error}", got=_short(row[key]))
                if needed and isinstance(value, str) and not value.strip():
                    return InvalidRow(f"an empty {key}", "give each row one")
                values[name] = values[name] + value if name in values else value
        try:
            return self.schema(**values)
        except ValueError as error:
            return InvalidRow(str(error))

    def layout(self) -> Layout | None:
        """For tables that may come without a first line of names: a schema's `LAYOUTS`, names by number of columns."""
        layouts: dict[int, Sequence[str]] = getattr(self.schema, "LAYOUTS", {})
        if not layouts:
            return None
        known = [column.names for column, _, needed in self.fields.values() if needed]

        def names(cells: Sequence[str]) -> Sequence[str] | None:
            given = [cell.strip().lower() for cell in cells]
            if all(any(name.lower() in given for name in either) for either in known):
                return None
            if len(cells) not in layouts:
                forms = " or ".join(f"{len(form)} ({', '.join(form)})" for form in layouts.values())
                called = ", ".join(either[0] for either in known)
                raise ValueError(f"columns: {len(cells)}; expected some called {called}, or without names {forms}")
            return layouts[len(cells)]

        return names

    def _match(self, keys: tuple[str, ...]) -> dict[str, list[str]]:
        """By field, the columns that may fill it, best first."""
        if keys not in self._found:
            lower = {key.lower(): key for key in reversed(keys)}
            self._found[keys] = {
                name: [lower[known.lower()] for known in column.names if known.lower() in lower]
                + sorted(
                    (key for low, key in lower.items() if column.prefix and low.startswith(column.prefix)),
                    key=lambda key: (len(key), key),
                )
                for name, (column, _, _) in self.fields.items()
            }
        return self._found[keys]


def _missing(column: Column, here: Sequence[str], row: Mapping[str, Any]) -> InvalidRow:
    if here:
        return InvalidRow(f"field {here[0]!r} is null", "give each row one")
    others = f" (or {', '.join(column.names[1:])})" if column.names[1:] else ""
    remedy = f"the row has {', '.join(map(str, row)) or 'no fields'}; expected {column.names[0]}{others}"
    return InvalidRow(f"no field {column.names[0]!r}", remedy)


def _converted(value: Any, hint: Any, column: Column, place: RowLocation) -> Any:
    """A value as its field's type.

    Raises:
        ValueError: it is none; what is wrong, to be read after the field's name.
    """
    if hint is Any:
        return value
    optional = [each for each in get_args(hint) if each is not type(None)]
    if type(None) in get_args(hint):
        hint = optional[0]
    if get_origin(hint) is tuple:
        return _several(value, get_args(hint)[0], column, place)
    if (get_origin(hint) or hint) is dict:
        value = _from_json(value, dict)
        if not isinstance(value, dict):
            raise ValueError("is not an object")
        return value
    if hint is str:
        return _path(value, place) if column.kind == "path" else _string(value, bool(column.kind))
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (hint is int and number != int(number)):
        raise ValueError(f"is not a {'whole ' * (hint is int)}number")
    return int(number) if hint is int else number


def _several(value: Any, hint: Any, column: Column, place: RowLocation) -> tuple[Any, ...]:
    value = _from_json(value, list)
    if isinstance(value, str | int | float | dict) and hint is not Any:
        value = [value]
    kinds = {str: "texts", float: "numbers", int: "whole numbers"}
    try:
        if not isinstance(value, list | tuple):
            raise ValueError
        return tuple(_converted(each, hint, column, place) for each in value)
    except ValueError:
        raise ValueError("is not a list" + (f" of {kinds[hint]}" if hint in kinds else "")) from None


def _string(value: Any, lenient: bool) -> str:
    if lenient and isinstance(value, bool | int | float):
        return str(value)
    if not isinstance(value, str):
        raise ValueError("is not a string")
    if not is_unicode(value):
        raise ValueError("holds half a surrogate pair")
    return value


def _path(value: Any, place: RowLocation) -> str:
    """A path as it can be opened; sound that is stored in the row itself is written into the cache folder."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        kind = Path(str(value.get("path") or "")).suffix
        path = home() / "rows" / f"{hashlib.sha256(value['bytes']).hexdigest()}{kind}"
        if not path.exists():
            with atomic_write(path, "wb") as file:
                file.write(value["bytes"])
        return str(path)
    value = value.get("path") if isinstance(value, dict) else value
    if not isinstance(value, str) or not value:
        raise ValueError("is not a path")
    return str(place.folder / value) if place.folder else value


def _from_json(value: Any, kind: type) -> Any:
    """What a text spells, if it is of this kind; else the value itself."""
    if isinstance(value, str) and value.lstrip()[:1] == ("[" if kind is list else "{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, kind) else value
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"

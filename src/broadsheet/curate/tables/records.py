"""Rows of tables as text that cannot be taken for anything else.

Knows: tables, cells, attributes. Does not know: tasks, models.

    >>> contextualize({"name": "carey's corner", "phone": "770-933-0909", "city": None})
    '[name: "carey\\'s corner", phone: "770-933-0909", city: ?]'
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from broadsheet.console import InputError

Record = Mapping[str, Any]
Pair = tuple[Record, Record]

MISSING = "?"
SIDES = (("left_", "right_"), ("ltable_", "rtable_"))  # DeepMatcher's and Magellan's names of a pair's columns

_PLAIN = re.compile(r"[^\W\d][\w .()/%-]*")
# What ends a line elsewhere than in JSON, half a surrogate pair, and what opens a special token of a chat template.
_RISKY = re.compile(
    "[\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    r"|<(?=[|｜]|/?s>|/?(?:bos|eos|pad|unk|start_of_turn|end_of_turn)>)|\[(?=/?INST\])"
)


def records(table: Any) -> list[dict[str, Any]]:
    """The rows of a table, each a dictionary, in their order.

    Args:
        table: a pandas or polars DataFrame, a `datasets.Dataset`, a pyarrow Table, or dictionaries.

    Raises:
        InputError: it is none of these.
    """
    if hasattr(table, "to_dicts"):  # polars
        table = table.to_dicts()
    elif hasattr(table, "to_pylist"):  # pyarrow
        table = table.to_pylist()
    elif hasattr(table, "to_dict") and hasattr(table, "iterrows"):  # pandas
        table = table.to_dict("records")
    if isinstance(table, str | bytes | Mapping) or not isinstance(table, Iterable):
        raise InputError(
            f"got a table of type {type(table).__name__}; expected a DataFrame, a datasets.Dataset, or a list of rows"
        )
    rows = list(table)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"row {number} is of type {type(row).__name__}; expected a dictionary: column to value")
    return [{str(name): value for name, value in row.items()} for row in rows]


def pairs_of(table: Any) -> list[Pair]:
    """Pairs of records: given as pairs, or as rows with columns `left_…` and `right_…` (or `ltable_…`, `rtable_…`).

    Raises:
        InputError: it is no table, or a row holds no pair.
    """
    if isinstance(table, Sequence) and table and all(isinstance(row, tuple | list) for row in table):
        found: list[Pair] = []
        for number, row in enumerate(table):
            if len(row) != 2 or not all(isinstance(side, Mapping) for side in row):
                raise InputError(f"pair {number} is {_short(row)}; expected two dictionaries")
            left, right = ({str(name): value for name, value in side.items()} for side in row)
            found.append((left, right))
        return found
    return [_sides(row, number) for number, row in enumerate(records(table))]


def _sides(row: Record, number: int) -> Pair:
    for prefixes in SIDES:
        left, right = (
            {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}
            for prefix in prefixes
        )
        if left and right:
            return left, right
    raise InputError(
        f"row {number} has the columns {', '.join(row) or 'none'}; expected those of a pair: left_… and right_…"
    )


def is_missing(value: Any) -> bool:
    """None, NaN, pandas' NA and NaT, and texts of white space."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or type(value).__name__ in ("NAType", "NaTType") or bool(_is_nan(value))


def _is_nan(value: Any) -> bool:
    try:
        return math.isnan(value)
    except (TypeError, ValueError, OverflowError):
        return False


def text_of(value: Any) -> str:
    """A cell as text, empty where it is missing. A whole number that a table made a float stays whole: 3.0 is 3."""
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def contextualize(record: Record, columns: Collection[str] | None = None, hidden: Collection[str] = ()) -> str:
    """A record as one bracketed list on one line, attributes in the table's order.

    Values are quoted as in JSON, missing ones are `?`. A value cannot end its line, its quotes or the brackets, nor
    open a special token of a chat template.

    Args:
        columns: of the attributes that are shown; all by default.
        hidden: attributes that are shown as missing, whether they have a value or not.
    """
    shown = [name for name in record if columns is None or name in columns]
    cells = [f"{attribute(name)}: {MISSING if name in hidden else _cell(record[name])}" for name in shown]
    return f"[{', '.join(cells)}]"


def attribute(name: str) -> str:
    """The name of an attribute as prompts show it: quoted unless it is a plain word or more."""
    return name if _PLAIN.fullmatch(name) else quoted(name)


def quoted(text: str) -> str:
    """A text in quotes, on one line."""
    return _RISKY.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _cell(value: Any) -> str:
    return MISSING if is_missing(value) else quoted(text_of(value))


def check_columns(wanted: Iterable[str], rows: Iterable[Record], what: str = "the table") -> None:
    """See that each column is in some row.

    Raises:
        InputError: one is in none, although there are rows.
    """
    known = dict.fromkeys(name for row in rows for name in row)
    for name in wanted:
        if known and name not in known:
            raise InputError(f"got the column {name!r}; {what} has {', '.join(known)}")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"

"""Tables with known faults: the standard library's functions and classes, with typos, gaps and copies planted.

Knows: documents of `pydocs`, records. Does not know: who is asked. No model has read these tables.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from broadsheet.console import InputError
from broadsheet.curate.tables.messages import Shot
from broadsheet.curate.tables.records import Record

COLUMNS = ("name", "module", "package", "kind", "summary")
CHECKED, FILLED = "module", "package"  # where errors are planted, and what is missing
WORDS = 8  # of a summary
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class PlantedCase:
    """A question whose answer is known.

    Attributes:
        about: a record, or a pair of them.
        gold: True or False, or the value.
        reason: why, as an example tells it.
        group: the module that it is made from: cases of one are alike.
        number: its place among those of its task.
    """

    about: Any
    gold: bool | str
    reason: str
    group: str
    number: int = 0

    @property
    def shot(self) -> Shot:
        """It as an example."""
        return Shot(self.about, self.gold, self.reason)


@dataclass(frozen=True)
class PlantedTask:
    """Cases of one task: those that are asked, and labelled ones of other records.

    Attributes:
        shots: examples, of the labelled ones: as many of yes as of no, in turns.
    """

    asked: Sequence[PlantedCase]
    labelled: Sequence[PlantedCase]
    shots: Sequence[Shot]


def table(documents: Iterable[Any]) -> list[dict[str, Any]]:
    """A row for each function or class among documents of `pydocs`, the summary cut to its first words."""
    rows = []
    for document in documents:
        told = document.metadata
        if told.get("kind") not in ("function", "class") or "<locals>" in document.id or "@" in document.id:
            continue
        summary = " ".join(str(told.get("summary", "")).split()[:WORDS])
        rows.append(
            {"name": document.id, **{name: told[name] for name in COLUMNS[1:4]}, "summary": summary},
        )
    return rows


def planted(documents: Iterable[Any], asked: int, labelled: int, shots: int, seed: int) -> dict[str, PlantedTask]:
    """The tasks `errors`, `impute` and `entities`, each from records of its own.

    Raises:
        InputError: there are not as many records.
    """
    rows = table(documents)
    drawn = random.Random(f"{seed} planted")
    drawn.shuffle(rows)
    each = asked + labelled + shots
    if len(rows) < 3 * each:
        raise InputError(
            f"got {len(rows)} functions and classes; expected {3 * each} for {each} cases of three tasks: pydocs:stdlib"
        )
    makers: dict[str, Callable[..., PlantedCase]] = {"errors": _error, "impute": _gap, "entities": _match}
    found = {}
    for turn, (name, make) in enumerate(makers.items()):
        own = rows[turn * each : (turn + 1) * each]
        near = _near(own, rows) if name == "entities" else own[1:] + own[:1]
        cases = [
            make(row, other, number % 2 == 0, drawn) for number, (row, other) in enumerate(zip(own, near, strict=True))
        ]
        chosen = [case.shot for case in cases[:shots]]
        rest = [replace(case, number=number) for number, case in enumerate(cases[shots:])]
        found[name] = PlantedTask(rest[:asked], rest[asked:], chosen)
    return found


def _error(row: Record, other: Record, wrong: bool, drawn: random.Random) -> PlantedCase:
    """The module mistyped, or another record's; and in some of both kinds a typo elsewhere, which is not asked for."""
    said = dict(row)
    if drawn.random() < 0.5:
        said["summary"] = typo(row["summary"], drawn)
    if not wrong:
        reason = f'The attribute {CHECKED} is "{row[CHECKED]}", as the name says.'
        return PlantedCase(said, False, reason, row["module"])
    swapped = drawn.random() < 0.5 and other[CHECKED] != row[CHECKED]
    said[CHECKED] = other[CHECKED] if swapped else typo(row[CHECKED], drawn)
    reason = f'The attribute {CHECKED} is "{said[CHECKED]}", but by the name it is "{row[CHECKED]}".'
    return PlantedCase(said, True, reason, row["module"])


def _gap(row: Record, other: Record, yes: bool, drawn: random.Random) -> PlantedCase:
    reason = f'The module "{row["module"]}" is in the package "{row[FILLED]}".'
    return PlantedCase(dict(row), str(row[FILLED]), reason, row["module"])


def _match(row: Record, other: Record, same: bool, drawn: random.Random) -> PlantedCase:
    if same:
        reason = f'Both are named "{row["name"]}", but for slips.'
        return PlantedCase((dict(row), copy(row, drawn)), True, reason, row["module"])
    reason = f'One is named "{row["name"]}", the other "{other["name"]}".'
    return PlantedCase((dict(row), copy(other, drawn)), False, reason, row["module"])


def copy(row: Record, drawn: random.Random) -> dict[str, Any]:
    """A duplicate as people make them: a slip, words left out, one cell empty."""
    found = dict(row)
    slip = drawn.choice(("name", "module", "summary"))
    found[slip] = typo(str(row[slip]), drawn)
    words = str(found["summary"]).split()
    kept = [word for word in words if drawn.random() < 0.7]
    found["summary"] = " ".join(kept or words)
    found[drawn.choice(("module", "package", "kind"))] = None
    return found


def typo(text: str, drawn: random.Random) -> str:
    """A text with one slip among its letters: two exchanged, one left out, twice, or another; never the same text."""
    places = [place for place, letter in enumerate(text) if letter.isalpha()]
    if not places:
        return f"{text}{drawn.choice(LETTERS)}"
    for _ in range(20):
        i = drawn.choice(places)
        kind = drawn.choice(("exchange", "leave out", "twice", "another"))
        if kind == "exchange" and i + 1 < len(text):
            made = text[:i] + text[i + 1] + text[i] + text[i + 2 :]
        elif kind == "leave out" and len(text) > 1:
            made = text[:i] + text[i + 1 :]
        elif kind == "twice":
            made = text[:i] + text[i] + text[i:]
        else:
            made = text[:i] + drawn.choice(LETTERS) + text[i + 1 :]
        if made != text:
            return made
    return f"{text}{text[-1]}"


def _near(rows: Sequence[Record], table: Sequence[Record]) -> list[Record]:
    """For each row the one of the table that is most like it by name and summary, of another name."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    whole, some = ([f"{row['name']} {row['summary']}" for row in each] for each in (table, rows))
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit(whole)
    alike = np.asarray((vectorizer.transform(some) @ vectorizer.transform(whole).T).todense())
    names = np.array([row["name"] for row in table])
    alike[np.array([row["name"] for row in rows])[:, None] == names[None, :]] = -1
    return [table[int(place)] for place in alike.argmax(axis=1)]

"""TREC's files: runs and judgements.

Knows those formats. Does not know what the ids stand for; they are strings everywhere. A damaged line is named by file
and number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from broadsheet.cache import atomic_write
from broadsheet.console import InputError, say

Run = dict[str, dict[str, float]]
Qrels = dict[str, dict[str, int]]


def read_run(path: Path) -> Run:
    """A TREC run (`query Q0 document rank score tag` a line) as scores by query and document, best first.

    Equal scores keep the order of the file; the column of ranks is not used, as trec_eval does not use it.

    Raises:
        InputError: no such file, a line that is none, a score that is no number, a document named twice for a query.
    """
    found: Run = {}
    for number, fields in _lines(path, 6, "query Q0 document rank score tag"):
        query, _, document, _, score, _ = fields
        scores = found.setdefault(query, {})
        if document in scores:
            raise InputError(f"{path}:{number}: names document {document!r} twice for query {query!r}; leave one out")
        scores[document] = _number(score, path, number)
    return {
        query: {document: scores[document] for document in sorted(scores, key=scores.__getitem__, reverse=True)}
        for query, scores in found.items()
    }


def write_run(run: Mapping[str, Mapping[str, float]], path: Path, tag: str = "broadsheet") -> None:
    """Write scores by query and document as a TREC run, best first; the file is whole or not there.

    Raises:
        InputError: an id holds a space, which the format cannot carry.
    """
    with atomic_write(path) as file:
        for query, scores in run.items():
            for rank, name in enumerate(sorted(scores, key=scores.__getitem__, reverse=True), start=1):
                file.write(f"{_id(query)} Q0 {_id(name)} {rank} {scores[name]!r} {tag}\n")


def read_qrels(path: Path, queries: Collection[str] | None = None, documents: Collection[str] | None = None) -> Qrels:
    """TREC judgements (`query 0 document relevance` a line) by query and document.

    Args:
        queries: ids there are; judgements of others are left out, counted and said.
        documents: ids there are; judgements of others stay, as an ideal ranking would have them, counted and said.

    Raises:
        InputError: no such file, a line that is none, two judgements that differ, or none of it is about `queries`.
    """
    found: Qrels = {}
    strangers: set[str] = set()
    missing: set[str] = set()
    for number, (query, _, document, relevance) in _lines(path, 4, "query 0 document relevance"):
        value = _number(relevance, path, number)
        if value != int(value) or abs(value) >= 1 << 53:
            raise InputError(f"{path}:{number}: relevance is {relevance[:40]!r}; expected a whole number")
        if queries is not None and query not in queries:
            strangers.add(query)
            continue
        if documents is not None and document not in documents:
            missing.add(document)
        if found.setdefault(query, {}).setdefault(document, int(value)) != int(value):
            raise InputError(f"{path}:{number}: judges document {document!r} twice for query {query!r}; keep one")
    if strangers and not found:
        raise InputError(f"{path} judges none of the queries, but {min(strangers)!r}: do they belong together?")
    unknown = [
        f"{len(names):,} {kind} that are not there, such as {min(names)!r}"
        for kind, names in (("queries", strangers), ("documents", missing))
        if names
    ]
    if unknown:
        say(f"{path} names {' and '.join(unknown)}")
    return found


def write_qrels(qrels: Mapping[str, Mapping[str, int]], path: Path) -> None:
    """Write judgements in TREC's format; the file is whole or not there."""
    with atomic_write(path) as file:
        for query, judged in qrels.items():
            for name, relevance in judged.items():
                file.write(f"{_id(query)} 0 {_id(name)} {int(relevance)}\n")


def _lines(path: Path, columns: int, form: str) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                fields = line.split()
                if not fields:
                    continue
                if len(fields) != columns:
                    raise InputError(f"{path}:{number}: has {len(fields)} columns; expected {columns}: {form}")
                yield number, fields
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _number(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise InputError(f"{path}:{line}: {text!r} is not a number")
    return value


def _id(name: str) -> str:
    if not name or len(name.split()) != 1 or name != name.strip():
        raise InputError(f"the id {name!r} holds spaces or nothing; TREC's formats part columns by spaces: rename it")
    return name

"""Who compares the windows of `fullrank.complete_labels`: a teacher or a reranker, with a journal of their answers.

Knows: teachers, rerankers, the wording of a prompt, a JSONL file. Does not know: which windows are compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadsheet.console import InputError, say
from broadsheet.rank.order import BRACKETED, Identifiers, complete, parse
from broadsheet.rank.prompts.prompt import Document, Prompt, document_text

if TYPE_CHECKING:
    from broadsheet.teacher import Teacher

Comparison = tuple[str, list[Document]]
Comparator = Callable[[list[Comparison]], Sequence[Sequence[int]]]
"""Queries with a window of documents each → one order each (positions, best first; missing ones go last)."""


def teacher_comparator(
    teacher: Teacher, *, identifiers: Identifiers = "numeric", max_words: int = 100, prompt: Prompt | None = None
) -> Comparator:
    """A comparator that asks a teacher (a local model or any OpenAI-compatible endpoint) to write the order.

    Args:
        teacher: see `broadsheet.teacher.Teacher.load`; its cache and budget apply.
        identifiers: numbers, as for the paper's teacher, or letters.
        max_words: of each passage (the paper's inference: 100).
        prompt: the wording.
    """
    wording = prompt or Prompt()

    def compare(asked: list[Comparison]) -> list[list[int]]:
        conversations = []
        for query, documents in asked:

            def fill(template: str, query: str = query, n: int = len(documents)) -> str:
                return wording.fill(template, _clean(query, identifiers), n, identifiers)

            names = [chr(ord("A") + i) if identifiers == "alpha" else str(i + 1) for i in range(len(documents))]
            lines = [
                f"[{name}] {' '.join(_clean(document_text(document), identifiers).split()[:max_words])}"
                for name, document in zip(names, documents, strict=True)
            ]
            user = fill(wording.intro) + "\n".join(lines) + "\n" + fill(wording.outro)
            conversations.append([{"role": "system", "content": wording.system}, {"role": "user", "content": user}])
        longest = max(len(documents) for _, documents in asked)
        answers = teacher.chat(conversations, temperature=0, max_tokens=8 * longest + 16)
        return [
            complete(parse(answer.text, len(documents), identifiers), len(documents))
            for (_, documents), [answer] in zip(asked, answers, strict=True)
        ]

    return compare


def reranker_comparator(reranker: Any) -> Comparator:
    """A comparator from anything with `rank_batch(queries, lists of documents)`, such as a `ListwiseReranker`."""

    def compare(asked: list[Comparison]) -> list[list[int]]:
        results = reranker.rank_batch([query for query, _ in asked], [documents for _, documents in asked])
        return [[hit["corpus_id"] for hit in hits] for hits in results]

    return compare


def _clean(text: str, identifiers: Identifiers) -> str:
    return BRACKETED[identifiers].sub(r"(\1)", " ".join(text.split()))


class Journal:
    """Orders of windows by key, kept in a JSONL file as they come; without a path they are kept nowhere.

    A last line that a kill cut off is dropped, from the file too.

    Raises:
        InputError: the file holds something else, or cannot be written.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._orders: dict[str, list[int]] = {}
        if self.path is not None and self.path.exists():
            self._orders = _read(self.path)

    def order(self, key: str, n: int) -> list[int] | None:
        """The recorded order of a window of `n` items; None if there is none."""
        found = self._orders.get(key)
        return found if found is not None and sorted(found) == list(range(n)) else None

    def add(self, orders: Sequence[tuple[str, list[int]]]) -> None:
        """Append orders to the file, flushed before this returns."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"window": key, "order": order}) + "\n" for key, order in orders]
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write("".join(lines).encode())
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}; make room and repeat") from None


def _read(path: Path) -> dict[str, list[int]]:
    known: dict[str, list[int]] = {}
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                record = json.loads(line)
                known[record["window"]] = [int(position) for position in record["order"]]
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"{path}, line {number}: not a recorded order ({line[:40]!r}); give another journal"
                ) from None
    if end < path.stat().st_size:
        os.truncate(path, end)
    if known:
        say(f"{path}: resuming with {len(known):,} recorded comparisons")
    return known

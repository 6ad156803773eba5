"""Rows to fine-tune on: what a model is asked, and what it shall answer, in the two formats that TRL reads.

Knows: `messages`, `prompt` and `completion`, rows as they were given. Does not know: models, scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from broadsheet.cache import fingerprint
from broadsheet.console import InputError, quiet
from broadsheet.curate.files import PLACE
from broadsheet.data import corpora
from broadsheet.data.rows import OnError, column
from broadsheet.data.sources import is_unicode

ROW = "row"  # in a document's metadata: the row as it was given
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Exchange:
    """A row to fine-tune on.

    `messages` ends with the assistant's, which is the target, and all before it is the prompt. Or `prompt` and
    `completion` are texts, or lists of messages, the completion a single one of the assistant's.

    Args:
        row: all of its columns.

    Raises:
        ValueError: it is neither; what is wrong is said.

    Example:
        >>> Exchange({"prompt": "Name a colour.", "completion": "Red."}).target
        'Red.'
    """

    row: dict[str, Any] = column(kind="rest")

    def __post_init__(self) -> None:
        _ = self.prompt, self.target

    @cached_property
    def prompt(self) -> Messages:
        """The messages before the answer; the last one is the user's."""
        if self._has_messages:
            found = _messages("messages", self.row["messages"])[:-1]
        else:
            found = _messages("prompt", self._given("prompt"), "user")
        if not found or found[-1]["role"] != "user":
            raise ValueError("nothing that is answered: expected a message of the user's before the answer")
        return found

    @cached_property
    def target(self) -> str:
        """The answer that is to be learnt."""
        if self._has_messages:
            found = _messages("messages", self.row["messages"])[-1:]
        else:
            found = _messages("completion", self._given("completion"), "assistant")
        if len(found) != 1 or found[0]["role"] != "assistant" or not found[0]["content"].strip():
            raise ValueError("no answer: expected one last message of the assistant's, which is not empty")
        return found[0]["content"]

    @property
    def id(self) -> str:
        """16 hex digits, by its content."""
        return fingerprint([self.prompt, self.target])

    def answered(self, target: str) -> dict[str, Any]:
        """The row with another target, in its own format."""
        if self._has_messages:
            *before, last = self.row["messages"]
            return {**self.row, "messages": [*before, {**last, "content": target}]}
        given = self.row["completion"]
        return {**self.row, "completion": target if isinstance(given, str) else [{**given[0], "content": target}]}

    @property
    def _has_messages(self) -> bool:
        return self.row.get("messages") is not None

    def _given(self, name: str) -> Any:
        if self.row.get(name) is None:
            has = ", ".join(self.row) or "no columns"
            raise ValueError(f"neither messages, nor prompt and completion: the row has {has}")
        return self.row[name]


def _messages(name: str, given: Any, role: str = "") -> Messages:
    """Messages as a teacher takes them; a text becomes one of that role.

    Raises:
        ValueError: they are none.
    """
    if role and isinstance(given, str):
        given = [{"role": role, "content": given}]
    if not isinstance(given, list | tuple) or not all(isinstance(each, Mapping) for each in given):
        raise ValueError(f"field {name!r} is not a list of messages" + " or a text" * bool(role))
    for each in given:
        if each.get("role") not in ("system", "user", "assistant") or not isinstance(each.get("content"), str):
            raise ValueError(
                f"field {name!r} holds a message that has no text or is of another role than system, user, assistant"
            )
        if not is_unicode(each["content"]):
            raise ValueError(f"field {name!r} holds half a surrogate pair")
    return [{"role": each["role"], "content": each["content"]} for each in given]


def exchanges(rows: Iterable[Mapping[str, Any]]) -> list[Exchange]:
    """Rows in memory.

    Raises:
        InputError: one is no such row; its number is named, from 0.
    """
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(Exchange(dict(row)))
        except ValueError as error:
            raise InputError(f"row {number}: {error}") from None
    return found


class ExchangeReader(PipelineStep):
    """A rank's share of rows to fine-tune on, as documents: the target is the text, `metadata["row"]` the row.

    Args:
        spec: a file, a folder or a hub data set, as for `corpora.load`.
        on_error: at a row that is no exchange, `"stop"` or `"skip"`.

    Raises:
        InputError: as the rows are opened and read.
    """

    type = "📖 - READER"
    name = "exchanges"

    def __init__(self, spec: str, on_error: OnError = "stop") -> None:
        super().__init__()
        self.spec, self.on_error = spec, on_error

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with quiet():  # every rank opens them
            rows = corpora.load(self.spec, on_error=self.on_error).read(Exchange)
        read = 0
        for place, each in enumerate(rows):
            if place % world_size == rank:
                read += 1
                row = json.loads(json.dumps(each.row, default=str))  # a table may hold dates
                yield Document(each.target, f"{place}-{each.id}", metadata={ROW: row, PLACE: place})
        self.stat_update("documents", value=read)
        if rank == 0:  # every rank sees all bad rows
            for reason, count in rows.skipped.items():
                self.stat_update(f"unreadable_{reason}", value=count)

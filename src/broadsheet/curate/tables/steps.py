"""Two of the tasks as steps of a pipeline: a document's metadata are its record.

Knows: documents, a `TablePreprocessor`. Does not know: how rows are asked.

    method = TablePreprocessor("endpoint:NAME", batch_size=1)
    steps = [CorpusReader("films.jsonl"), FillGaps(method, "year"), DropErrors(method, "country"), ShardWriter("clean")]
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from datatrove.data import Document

from broadsheet.curate.base import Decision, Step
from broadsheet.curate.files import PLACE

if TYPE_CHECKING:
    from broadsheet.curate.data_preprocessors import TablePreprocessor
    from broadsheet.curate.tables.messages import Shot


class _OfColumn(Step):
    """A step that asks about a field of the metadata.

    With several rows a request, what a model says of one may hang on the others, and so on the ranks. With
    `batch_size=1`, or `scorer="log-probabilities"`, any number of ranks gives the same.

    Args:
        method: give it the name of a model rather than a `Teacher`: ranks are processes, and each loads its own.
        column: of the metadata.
        columns: that the model is shown; by default all of the metadata.
        shots: examples.
        others: as of a `Step`.
    """

    def __init__(
        self,
        method: TablePreprocessor,
        column: str,
        columns: Collection[str] | None = None,
        shots: Sequence[Shot] = (),
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.method, self.column, self.columns, self.shots = method, column, columns, shots

    def records(self, documents: Sequence[Document]) -> list[dict[str, Any]]:
        """The metadata of documents, each with all fields that are named."""
        named = dict.fromkeys((self.column, *(self.columns or ())))
        kept = ({k: v for k, v in document.metadata.items() if k != PLACE} for document in documents)
        return [row | {name: None for name in named if name not in row} for row in kept]


class DropErrors(_OfColumn):
    """Drop a document as `error` where a field of its metadata is wrong; what could not be told stays.

    The arguments are those of `FillGaps`.
    """

    name = "errors of a field"

    def decide(self, documents: list[Document]) -> list[Decision]:
        rows = self.records(documents)
        found = self.method.detect_errors(rows, self.column, columns=self.columns, shots=self.shots)
        return [(False, "error") if answer.value else True for answer in found]


class FillGaps(_OfColumn):
    """Fill in a field of the metadata where it is missing, and say `filled`; what could not be told stays missing.

    Args:
        method: give it the name of a model rather than a `Teacher`: ranks are processes, and each loads its own. With
            `batch_size=1` any number of ranks gives the same.
        column: of the metadata.
        columns: that the model is shown; by default all of the metadata.
        shots: examples.
        others: as of a `Step`.
    """

    name = "gaps of a field"

    def decide(self, documents: list[Document]) -> list[Decision]:
        found = self.method.impute(self.records(documents), self.column, columns=self.columns, shots=self.shots)
        decisions: list[Decision] = []
        for document, answer in zip(documents, found, strict=True):
            filled = answer.status in ("answered", "retried")
            if filled:
                document.metadata[self.column] = answer.value
            decisions.append((True, "filled") if filled else True)
        return decisions

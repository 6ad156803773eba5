"""The four tasks: what is said of each, what one question about a row looks like, and what an answer is.

Knows: records as text. Does not know: how questions are put together, models. The order of a prompt's parts is the
paper's, the words are ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from broadsheet.curate.tables.records import Pair, Record, attribute, contextualize


@dataclass(frozen=True)
class Task(ABC):
    """One of the four tasks.

    Args:
        columns: that questions show (feature selection); all by default.

    Attributes:
        yes_no: whether the answer is yes or no; else it is a value.
    """

    columns: Collection[str] | None = None

    yes_no: ClassVar[bool] = True

    @abstractmethod
    def statement(self) -> str:
        """The task in a sentence; it names the attribute, or what records are."""

    @abstractmethod
    def question(self, about: Any) -> str:
        """The question about one record, or about a pair; on one line."""

    @property
    def focus(self) -> str:
        """What else the reason has to hold."""
        return ""


@dataclass(frozen=True)
class ErrorDetection(Task):
    """Is the value of an attribute wrong?"""

    column: str = ""

    def statement(self) -> str:
        return (
            f"Each question shows a record of a table. Say whether its attribute {attribute(self.column)} holds an "
            "error: a typing mistake, or a value that the other attributes contradict."
        )

    def question(self, about: Record) -> str:
        shown = contextualize(with_column(about, self.column), shown_beside(self.column, self.columns))
        return f"The record is {shown}. Is there an error in the attribute {attribute(self.column)}?"

    @property
    def focus(self) -> str:
        # Without it a model reports errors of other attributes.
        return f"In the reason, name the attribute {attribute(self.column)}, and judge no other attribute."


@dataclass(frozen=True)
class Imputation(Task):
    """What is the value of an attribute that is missing?"""

    column: str = ""
    yes_no: ClassVar[bool] = False

    def statement(self) -> str:
        return (
            f"Each question shows a record of a table whose attribute {attribute(self.column)} is missing, shown as ?. "
            "Tell its value from the other attributes."
        )

    def question(self, about: Record) -> str:
        """The value is never shown, whether there is one or not."""
        columns = shown_beside(self.column, self.columns)
        shown = contextualize(with_column(about, self.column), columns, hidden=(self.column,))
        return f"The record is {shown}. What is the value of the attribute {attribute(self.column)}?"


@dataclass(frozen=True)
class SchemaMatching(Task):
    """Do two attributes, each with its name and description, mean the same?"""

    def statement(self) -> str:
        return "Each question shows two attributes of two tables. Say whether they refer to the same thing."

    def question(self, about: Pair) -> str:
        first, second = (contextualize(side, self.columns) for side in about)
        return f"Attribute A is {first}. Attribute B is {second}. Do attribute A and attribute B mean the same?"


@dataclass(frozen=True)
class EntityMatching(Task):
    """Are two records the same entity?

    Args:
        kind: what a record describes, in the singular: "restaurant".
    """

    kind: str = "entity"

    def statement(self) -> str:
        return f"Each question shows two records. Say whether they describe the same {self.kind}."

    def question(self, about: Pair) -> str:
        first, second = (contextualize(side, self.columns) for side in about)
        return f"Record A is {first}. Record B is {second}. Do record A and record B describe the same {self.kind}?"


def with_column(record: Record, column: str) -> Record:
    """The record; with that attribute, missing, where it has none."""
    return record if column in record else {**record, column: None}


def shown_beside(column: str, columns: Collection[str] | None) -> Collection[str] | None:
    """The columns that are shown, the target always among them."""
    return None if columns is None else {*columns, column}

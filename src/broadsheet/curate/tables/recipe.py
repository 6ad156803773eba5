"""What `broadsheet apply data_preprocessors` runs: a table in, a line of answers for each row out.

Knows: files of rows, examples. Does not know: prompts, answers' form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from broadsheet.apply.base import Map, Source
from broadsheet.apply.corpus import Summary, map_corpus
from broadsheet.console import InputError, say
from broadsheet.data import rows
from broadsheet.data.rows import column
from broadsheet.options import option

if TYPE_CHECKING:
    from broadsheet.curate.data_preprocessors import TablePreprocessor
    from broadsheet.curate.tables.asking import TableAnswers
    from broadsheet.curate.tables.messages import Shot


@dataclass(frozen=True)
class TableRow:
    """A row of a table, whatever its columns."""

    id: str = column(kind="id")
    cells: dict[str, Any] = column(kind="rest")


@dataclass(frozen=True)
class ShotRow:
    """An example in a file: a row of the table, with the answer and a reason."""

    answer: str = column("answer", kind="text")
    reason: str = column("reason", default="")
    id: str = column(kind="id")
    cells: dict[str, Any] = column(kind="rest")


@dataclass
class DataPreprocessorsRecipe(Map):
    """Ask a model about each row of a table: is a value wrong, what is missing, do two sides of the row match.

    DATA is CSV, TSV, JSONL or Parquet. To match, a row holds both sides: columns `left_…` and `right_…`; attributes of
    schemas as `left_name`, `left_description`. Answers come in the order of the rows. The column `id`, where there is
    one, names a row and is not shown to the model.
    """

    paper: ClassVar[str] = "data_preprocessors"
    needs: ClassVar[str] = "--column kind"
    lacks: ClassVar[tuple[str, ...]] = ("seed",)

    batch: int = option(32, "Rows read at once; requests are made up of them.", least=1)
    model: str = option(
        "default", "`default`, a hub id, a folder, a .gguf file, or endpoint:NAME for a service.", metavar="MODEL"
    )
    task: Literal["errors", "impute", "entities", "schema"] = option("errors", "What is asked of a row.")
    column: str | None = option(None, "Whose values are checked, or filled in.", metavar="NAME")
    columns: tuple[str, ...] = option((), "That the model is shown; by default all. Fewer cost less.", metavar="NAME,…")
    shots: str | None = option(
        None, "Examples: rows as in DATA, with `answer` and `reason` (yes or no; a value to fill in).", metavar="FILE"
    )
    kind: str = option("entity", "What a record describes, to match: restaurant.", metavar="NAME")
    choices: tuple[str, ...] = option(
        (), 'Values to choose among, with --method "data_preprocessors(scorer=\'log-probabilities\')".',
        metavar="VALUE,…",
    )  # fmt: skip

    def check(self) -> None:
        if (self.task in ("errors", "impute")) != bool(self.column):
            got = f"--column {self.column}" if self.column else "no --column"
            takes = "a column of the table" if not self.column else "none: sides of a row are compared"
            raise InputError(f"got {got} with --task {self.task}; expected {takes}")
        if self.choices and self.task != "impute":
            raise InputError(f"got --choices with --task {self.task}; expected --task impute")

    def apply(self, source: Source, out: Path, force: bool) -> Summary:
        table = rows.read(source.spec, TableRow, source.on_error, columns={"id": source.id_field})
        self._check_columns(table.fields(), source.spec)
        self._told: Counter[str] = Counter()
        made = map_corpus(table, out, self.results, batch_size=self.batch, settings=self.settings(), force=force)
        if asked := self._told["asked"]:
            failed = self._told["failed"]
            say(
                f"{asked:,} questions in {self._told['requests']:,} requests, "
                f"{self._told['tokens'] / asked:,.0f} tokens each; {failed:,} could not be read ({failed / asked:.1%})"
            )
        return made

    def settings(self) -> dict[str, Any]:
        way = {k: v for k, v in vars(self.preprocessor).items() if not k.startswith("_") and k not in _UNSAVED}
        identity = self.preprocessor.teacher.backend.identity()
        asked = {name: getattr(self, name) for name in ("task", "column", "columns", "kind", "choices", "batch")}
        return {**asked, "shots": [asdict(shot) for shot in self._shots], "model": identity, "method": way}

    def results(self, documents: list[Any]) -> Sequence[Mapping[str, Any]]:
        """A result for each row: the answer, the reason, and how it came."""
        cells = [document.cells for document in documents]
        found = self._ask(cells)
        self._told.update(asked=found.asked, requests=found.requests)
        self._told["failed"] += sum(answer.status == "failed" for answer in found)
        self._told["tokens"] += round(found.tokens_each * found.asked)
        return [_line(self.task, answer) for answer in found]

    @cached_property
    def preprocessor(self) -> TablePreprocessor:
        """The method, with the model that was asked for."""
        from broadsheet.curate.data_preprocessors import TablePreprocessor
        from broadsheet.teacher import Teacher

        where: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        made = self.configured(TablePreprocessor)
        self.check_calls([TablePreprocessor])
        if made.scorer == "log-probabilities" and self.task == "impute" and not self.choices:
            raise InputError(
                "got log-probabilities with --task impute and no --choices; expected values to choose among"
            )
        made.teacher = Teacher.load(self.model, **{name: value for name, value in where.items() if value})
        return made

    @cached_property
    def _shots(self) -> list[Shot]:
        from broadsheet.curate.tables.messages import Shot

        found = list(rows.read(self.shots, ShotRow)) if self.shots else []
        about = [each.cells for each in found]
        sides: Sequence[Any] = about if self.column else _pairs(about, str(self.shots))
        return [Shot(side, each.answer, each.reason) for side, each in zip(sides, found, strict=True)]

    def _ask(self, cells: list[dict[str, Any]]) -> TableAnswers:
        from broadsheet.curate.tables.records import pairs_of
        from broadsheet.curate.tables.tasks import EntityMatching, SchemaMatching

        asking, shots = self.preprocessor, self._shots
        chosen = list(self.columns) or None
        if self.column:  # rows of JSONL may lack what others have
            named = (self.column, *self.columns)
            cells = [row | {name: None for name in named if name not in row} for row in cells]
        if self.task == "errors":
            return asking.detect_errors(cells, str(self.column), columns=chosen, shots=shots)
        if self.task == "impute":
            return asking.impute(cells, str(self.column), columns=chosen, shots=shots, choices=self.choices)
        task = EntityMatching(chosen, self.kind) if self.task == "entities" else SchemaMatching(chosen)
        return asking.ask(task, pairs_of(cells), shots)

    def _check_columns(self, known: Sequence[str], where: str) -> None:
        """See that the columns that are named stand in the table.

        Raises:
            InputError: one does not.
        """
        if not known:
            return
        if not self.column:
            _pairs([dict.fromkeys(known)], where)
        sides = {name.partition("_")[2] for name in known} if not self.column else set()
        for name in filter(None, (self.column, *self.columns)):
            if name not in known and name not in sides:
                raise InputError(f"got the column {name!r}; {where} has {', '.join(known)}")


_UNSAVED = ("teacher", "encoder")


def _pairs(cells: Sequence[Mapping[str, Any]], where: str) -> list[Any]:
    """The sides of rows.

    Raises:
        InputError: a row has none; the file is named.
    """
    from broadsheet.curate.tables.records import pairs_of

    try:
        return pairs_of(list(cells))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _line(task: str, answer: Any) -> dict[str, Any]:
    told = answer.value if task == "impute" else "yes" if answer.value else "no"
    line = {"answer": told, "status": answer.status, "reason": answer.reason}
    return line if answer.score != answer.score else {**line, "score": answer.score}

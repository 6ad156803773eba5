"""Large language models as data preprocessors (Zhang et al., 2023, arXiv:2308.16361): tasks on tables by prompting.

Knows: tables, the four tasks, a teacher. Does not know: how records become text, batches are cut and answers are read;
that is in `tables`. Written from the paper's abstract: the wording, and defaults that are called ours, are not its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from broadsheet.console import InputError, within
from broadsheet.curate.tables.asking import ScoredAnswers, TableAnswer, TableAnswers, WrittenAnswers
from broadsheet.curate.tables.batches import Batching
from broadsheet.curate.tables.messages import Shot, TablePrompt
from broadsheet.curate.tables.records import Pair, Record, check_columns, pairs_of, records, text_of
from broadsheet.curate.tables.tasks import EntityMatching, ErrorDetection, Imputation, SchemaMatching, Task

if TYPE_CHECKING:
    from broadsheet.teacher import Teacher

Scorer = Literal["writing", "log-probabilities"]


@dataclass
class TablePreprocessor:
    """Find errors, fill gaps, match columns and match records of tables by asking a language model about each row.

    A request holds the task, the form of answers, examples, and several rows (batch prompting); each answer is a reason
    and then the answer, found by its number. What cannot be read is asked once more, alone, and then counts as failed:
    "no", or an empty value.

    Use when: there are few labelled rows, rows can be judged from what they say, and a capable model is at hand.
    Prefer a classifier on similarities, or nearest neighbours (`tables.peers`), where a hundred rows are labelled: they
        cost nothing a row. Prefer `scorer="log-probabilities"` with a model that keeps to no form: it writes nothing.
    Inputs: a pandas or polars DataFrame, a `datasets.Dataset`, a pyarrow Table, or dictionaries.
    Relation: `tables.peers` are what one compares with. `broadsheet apply data_preprocessors` runs it over a file.

    Args:
        teacher: a `Teacher`, or what `Teacher.load` takes: "default", a model's name or folder, "endpoint:MODEL".
        batch_size: rows of a request (the abstract does not say; 1 to 16 are sensible).
        batching: `"random"`, or `"cluster"`: rows of a request are alike, by k-means.
        scorer: `"writing"`; or `"log-probabilities"`, ours: one row a request, yes or no by which is more probable, and
            a value among those of the column.
        reasons: ask for the reason before the answer (zero-shot chain of thought).
        temperature: of writing; 0 repeats itself. The authors have 0.75 for GPT-3.5 and 0.65 for GPT-4, from memory.
        answer_tokens: the most for an answer with its reason.
        threshold: log-odds from which the answer is yes, with `"log-probabilities"`.
        encoder: of cluster batching: texts to vectors, or a `SentenceTransformer`; TF-IDF by default.
        seed: of batches and writing.

    Raises:
        InputError: a field out of range.

    Example:
        >>> from broadsheet.curate import Shot, TablePreprocessor
        >>> rows = [{"name": "Ritz", "city": "paris"}, {"name": "Savoy", "city": "lomdon"}]
        >>> shot = Shot({"name": "Adlon", "city": "berlni"}, "yes", 'The city is spelt "berlin".')
        >>> found = TablePreprocessor(batch_size=2).detect_errors(rows, "city", shots=[shot])
        >>> len(found.values), found.asked
        (2, 2)

    Source: arXiv:2308.16361, abstract, and the results that the authors repeat in arXiv:2312.01678; no public code.
    """

    paper: ClassVar[str] = "data_preprocessors"

    teacher: Any = field(default=None, repr=False, compare=False)
    batch_size: int = 4
    batching: Batching = "random"
    scorer: Scorer = "writing"
    reasons: bool = True
    temperature: float = 0.0
    answer_tokens: int = 64
    threshold: float = 0.0
    encoder: Any = field(default=None, repr=False, compare=False)
    seed: int = 0

    def __post_init__(self) -> None:
        within(self, temperature=(0, None), threshold=(None, None), seed=(0, None))
        for name, kind in (("scorer", Scorer), ("batching", Batching)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(
                    f"got {name}={getattr(self, name)!r}; expected {' or '.join(map(repr, get_args(kind)))}"
                )
        for name in ("batch_size", "answer_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"got {name}={getattr(self, name)}; expected 1 or more")

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if name != "_teacher"
        }  # another process loads its own

    # The four tasks

    def detect_errors(
        self,
        table: Any,
        column: str,
        *,
        columns: Collection[str] | None = None,
        shots: Sequence[Shot] = (),
        batch_size: int | None = None,
        batching: Batching | None = None,
    ) -> TableAnswers:
        """Whether the value of `column` is wrong, for each row.

        Args:
            table: see the class.
            columns: that the model is shown (feature selection); `column` always is. By default all.
            shots: examples, `about` a record.
            batch_size, batching: instead of the class's.

        Raises:
            InputError: no table, no such column, or an example that is none; and what the teacher raises.
        """
        rows = records(table)
        check_columns([column, *_given(columns)], rows)
        task = ErrorDetection(columns, column)
        return self.ask(task, rows, shots, batch_size=batch_size, batching=batching)

    def impute(
        self,
        table: Any,
        column: str,
        *,
        columns: Collection[str] | None = None,
        shots: Sequence[Shot] = (),
        batch_size: int | None = None,
        batching: Batching | None = None,
        every: bool = False,
        choices: Sequence[str] = (),
    ) -> TableAnswers:
        """The value of `column` for each row: those that are there as they are, the missing ones as the model says.

        Args:
            every: ask for the values that are there too, hidden, to see how well they are told.
            choices: with `"log-probabilities"`, the values to choose among; by default those of the column.
            table, columns, shots, batch_size, batching: as in `detect_errors`.

        Raises:
            InputError: as in `detect_errors`.
        """
        rows = records(table)
        check_columns([column, *_given(columns)], rows)
        given = [text_of(row.get(column)) for row in rows]
        places = [place for place, value in enumerate(given) if every or not value]
        asked = self.ask(
            Imputation(columns, column),
            [rows[place] for place in places],
            shots,
            batch_size=batch_size,
            batching=batching,
            choices=choices or [value for value in given if value],
        )
        told = dict(zip(places, asked, strict=True))
        answers = [told.get(place, TableAnswer(value, "given", requests=0)) for place, value in enumerate(given)]
        return replace(asked, answers=answers)

    def match_schemas(
        self,
        a: Any,
        b: Any,
        *,
        columns: Collection[str] | None = None,
        shots: Sequence[Shot] = (),
        batch_size: int | None = None,
        batching: Batching | None = None,
    ) -> TableAnswers:
        """Whether attributes of two tables mean the same: each of `a` with each of `b`, `b` running faster.

        Args:
            a, b: attributes, as a dictionary of name to description, or a table with `name` and `description`.
            columns, shots, batch_size, batching: as in `match_entities`.

        Raises:
            InputError: as in `match_entities`.
        """
        both = [(left, right) for left in _attributes(a) for right in _attributes(b)]
        return self._match(SchemaMatching(columns), both, shots, batch_size, batching)

    def match_entities(
        self,
        pairs: Any,
        *,
        columns: Collection[str] | None = None,
        shots: Sequence[Shot] = (),
        batch_size: int | None = None,
        batching: Batching | None = None,
        kind: str = "entity",
        both_orders: bool = False,
    ) -> TableAnswers:
        """Whether two records are the same entity, for each pair.

        Args:
            pairs: pairs of records; or a table with columns `left_…` and `right_…`.
            columns: that the model is shown, without `left_`; by default all.
            shots: examples, `about` a pair of records.
            kind: what a record describes: "restaurant".
            both_orders: ask with the records exchanged too: yes where both say so, or by their mean log-odds.
            batch_size, batching: instead of the class's.

        Raises:
            InputError: no pairs, no such column, or an example that is none; and what the teacher raises.
        """
        both = pairs_of(pairs)
        task = EntityMatching(columns, kind)
        found = self._match(task, both, shots, batch_size, batching)
        if not both_orders:
            return found
        turned = self._match(task, [(right, left) for left, right in both], shots, batch_size, batching)
        answers = [self._both(one, other) for one, other in zip(found, turned, strict=True)]
        return TableAnswers(answers, found.requests + turned.requests)

    # How they are asked

    def ask(
        self,
        task: Task,
        about: Sequence[Record] | Sequence[Pair],
        shots: Sequence[Shot] = (),
        *,
        batch_size: int | None = None,
        batching: Batching | None = None,
        choices: Sequence[str] = (),
    ) -> TableAnswers:
        """The answers to a task's questions about records or pairs, in their order.

        Raises:
            InputError: an example is none of this task; and what the teacher raises.
        """
        self._check(shots, paired=isinstance(task, SchemaMatching | EntityMatching))
        scored = self.scorer == "log-probabilities"
        prompt = TablePrompt(task, tuple(shots), self.reasons and not scored)
        changed = {"batch_size": batch_size, "batching": batching}
        way = replace(self, **{name: value for name, value in changed.items() if value is not None})  # type: ignore[arg-type]
        if not about:
            return TableAnswers([])
        asking = ScoredAnswers(self.threshold, choices) if scored else way._writing()
        return asking.ask(self._teacher, prompt, [task.question(each) for each in about])

    def _writing(self) -> WrittenAnswers:
        return WrittenAnswers(
            self.batch_size, self.batching, self.encoder, self.temperature, self.answer_tokens, self.seed
        )

    def _match(
        self,
        task: SchemaMatching | EntityMatching,
        both: Sequence[Pair],
        shots: Sequence[Shot],
        batch_size: int | None,
        batching: Batching | None,
    ) -> TableAnswers:
        check_columns(_given(task.columns), [side for pair in both for side in pair], "a record")
        return self.ask(task, both, shots, batch_size=batch_size, batching=batching)

    def _both(self, one: TableAnswer, other: TableAnswer) -> TableAnswer:
        """One answer of two, asked in both orders; failed where either is."""
        score = (one.score + other.score) / 2
        yes = score > self.threshold if self.scorer == "log-probabilities" else bool(one.value and other.value)
        worst = max((one, other), key=lambda each: ("answered", "retried", "failed").index(each.status))
        return replace(
            worst,
            value=yes and worst.status != "failed",
            score=score,
            prompt_tokens=one.prompt_tokens + other.prompt_tokens,
            completion_tokens=one.completion_tokens + other.completion_tokens,
            first_prompt_tokens=one.first_prompt_tokens + other.first_prompt_tokens,
            requests=one.requests + other.requests,
        )

    def _check(self, shots: Sequence[Shot], paired: bool) -> None:
        for number, shot in enumerate(shots, start=1):
            fits = isinstance(shot.about, tuple) and len(shot.about) == 2 if paired else isinstance(shot.about, Mapping)
            if not fits:
                wanted = "a pair of records" if paired else "a record"
                raise InputError(f"example {number} is about a {type(shot.about).__name__}; expected {wanted}")

    @cached_property
    def _teacher(self) -> Teacher:
        from broadsheet.teacher import Teacher

        if self.teacher is None or isinstance(self.teacher, str):
            return Teacher.load(self.teacher)
        found: Teacher = self.teacher
        return found


def _given(columns: Collection[str] | None) -> Collection[str]:
    if isinstance(columns, str):
        raise InputError(f"got columns={columns!r}; expected a list of names")
    return columns or ()


def _attributes(schema: Any) -> list[Record]:
    """The attributes of a schema as records."""
    if isinstance(schema, Mapping):
        return [{"name": name, "description": text} for name, text in schema.items()]
    rows = records(schema)
    check_columns(["name"], rows, "a schema")
    return list(rows)

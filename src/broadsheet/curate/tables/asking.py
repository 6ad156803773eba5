"""Questions to answers: one for each, in their order, whatever the batches and whatever the model says.

Knows: teachers, prompts, batches. Does not know: tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from broadsheet.console import InputError
from broadsheet.curate.tables import parsing
from broadsheet.curate.tables.batches import batches
from broadsheet.curate.tables.messages import TablePrompt

if TYPE_CHECKING:
    from typing import Any

    from broadsheet.curate.tables.batches import Batching
    from broadsheet.teacher import Completion, Teacher

Status = Literal["answered", "retried", "failed", "given"]


@dataclass(frozen=True)
class TableAnswer:
    """What came of one question.

    Attributes:
        value: True for yes, False for no; for imputation the value. False or "" where it failed.
        status: `"answered"`; `"retried"`, answered when it was asked again, alone; `"failed"`, not even then;
            `"given"`, not asked, since the value was there.
        reason: what stood before the answer.
        score: log-odds of yes over no, and for imputation the value's log-probability, where answers were scored.
        prompt_tokens, completion_tokens: its share of the requests that asked it; NaN where an endpoint does not say.
        first_prompt_tokens: of `prompt_tokens`, the share of the first request.
        requests: that asked it.
    """

    value: bool | str
    status: Status = "answered"
    reason: str = ""
    score: float = math.nan
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    first_prompt_tokens: float = 0.0
    requests: int = 1

    @property
    def tokens(self) -> float:
        """Read and written."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TableAnswers(Sequence[TableAnswer]):
    """An answer for each row, or pair, of what was asked, in its order.

    Attributes:
        requests: to the model.
    """

    answers: Sequence[TableAnswer]
    requests: int = 0

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, place: Any) -> Any:
        return self.answers[place]

    @property
    def values(self) -> list[Any]:
        """A column for the table."""
        return [answer.value for answer in self.answers]

    @property
    def asked(self) -> int:
        """Questions that the model was asked."""
        return sum(answer.requests > 0 for answer in self.answers)

    @property
    def failure_rate(self) -> float:
        """The share of questions without an answer that could be read; 0 where nothing was asked."""
        return self._share([answer.status == "failed" for answer in self.answers])

    @property
    def retry_rate(self) -> float:
        """The share of questions that were asked again, alone."""
        return self._share([answer.requests > 1 for answer in self.answers])

    @property
    def tokens_each(self) -> float:
        """Tokens read and written for a question, on average."""
        return sum(answer.tokens for answer in self.answers) / self.asked if self.asked else 0.0

    def _share(self, which: Sequence[bool]) -> float:
        return sum(which) / self.asked if self.asked else 0.0

    def __str__(self) -> str:
        return (
            f"{self.asked:,} questions in {self.requests:,} requests, {self.tokens_each:,.0f} tokens each, "
            f"{self.retry_rate:.1%} asked twice, {self.failure_rate:.1%} failed"
        )


@dataclass(frozen=True)
class WrittenAnswers:
    """Answers that the model writes, several questions to a request.

    Args:
        batch_size, batching, encoder: see `batches`.
        temperature: of the writing.
        answer_tokens: the most for an answer and its reason.
        seed: of batches and writing.
    """

    batch_size: int = 4
    batching: Batching = "random"
    encoder: Any = field(default=None, repr=False)
    temperature: float = 0.0
    answer_tokens: int = 64
    seed: int = 0

    def ask(self, teacher: Teacher, prompt: TablePrompt, questions: Sequence[str]) -> TableAnswers:
        """Ask in batches; then once more, alone, what could not be read; what cannot be read then has failed."""
        cut = batches(questions, self.batch_size, self.batching, self.seed, self.encoder)
        found: list[TableAnswer | None] = [None] * len(questions)
        for places, completion in zip(cut, self._chat(teacher, prompt, questions, cut, self.seed), strict=True):
            for place, answer in zip(places, _read(prompt, completion, len(places)), strict=True):
                found[place] = answer
        first = [answer for answer in found if answer is not None]
        # A question that was alone, and is answered greedily, would be answered the same again.
        alone = {places[0] for places in cut if len(places) == 1} if self.temperature == 0 else set()
        again = [[i] for i, answer in enumerate(first) if answer.status == "failed" and i not in alone]
        for [place], completion in zip(
            again, self._chat(teacher, prompt, questions, again, self.seed + 1), strict=True
        ):
            [answer] = _read(prompt, completion, 1)
            before = first[place]
            first[place] = replace(
                answer,
                status="failed" if answer.status == "failed" else "retried",
                prompt_tokens=before.prompt_tokens + answer.prompt_tokens,
                completion_tokens=before.completion_tokens + answer.completion_tokens,
                first_prompt_tokens=before.first_prompt_tokens,
                requests=2,
            )
        return TableAnswers(first, len(cut) + len(again))

    def _chat(
        self, teacher: Teacher, prompt: TablePrompt, questions: Sequence[str], cut: Sequence[Sequence[int]], seed: int
    ) -> list[Completion]:
        if not cut:
            return []
        conversations = [prompt.numbered([questions[place] for place in places]) for places in cut]
        longest = self.answer_tokens * max(map(len, cut))
        answers = teacher.chat(conversations, temperature=self.temperature, max_tokens=longest, seed=seed)
        return [answer for [answer] in answers]


def _read(prompt: TablePrompt, completion: Completion, asked: int) -> list[TableAnswer]:
    """The answers to the questions of one request, failed where there is none."""
    said = parsing.split(completion.text, asked, cut=completion.finish_reason == "length")
    read, written = (
        math.nan if tokens is None else tokens / asked for tokens in (completion.prompt_tokens, completion.tokens)
    )
    spent = {"prompt_tokens": read, "completion_tokens": written, "first_prompt_tokens": read}
    yes_no, column = prompt.task.yes_no, getattr(prompt.task, "column", "")
    found = []
    for number in range(1, asked + 1):
        told = said.get(number)
        value = None if told is None else parsing.yes_no(told.answer) if yes_no else parsing.value(told.answer, column)
        if told is None or value is None:
            found.append(TableAnswer(False if yes_no else "", "failed", **spent))  # type: ignore[arg-type]
        else:
            found.append(TableAnswer(value, reason=told.reason, **spent))  # type: ignore[arg-type]
    return found


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers by their log-probabilities, each question alone and without a reason; nothing is written or parsed. Ours.

    Args:
        threshold: log-odds of yes over no from which the answer is yes.
        choices: for values, those to choose among.
    """

    threshold: float = 0.0
    choices: Sequence[str] = ()

    def ask(self, teacher: Teacher, prompt: TablePrompt, questions: Sequence[str]) -> TableAnswers:
        """The more probable of yes and no, or the most probable of the choices.

        Raises:
            InputError: values are asked for, and there are no choices.
        """
        choices = ["yes", "no"] if prompt.task.yes_no else list(dict.fromkeys(self.choices))
        if not choices:
            raise InputError("got no values to choose among; expected some, or answers that the model writes")
        if not questions:
            return TableAnswers([])
        before = teacher.usage.prompt_tokens
        scores = teacher.score([prompt.alone(question) for question in questions], choices)
        spent = (teacher.usage.prompt_tokens - before) / len(questions)
        if prompt.task.yes_no:
            odds = scores[:, 0] - scores[:, 1]
            made = [TableAnswer(bool(each > self.threshold), score=float(each)) for each in odds]
        else:
            made = [TableAnswer(choices[int(row.argmax())], score=float(row.max())) for row in scores]
        return TableAnswers(
            [replace(answer, prompt_tokens=spent, first_prompt_tokens=spent) for answer in made], len(questions)
        )

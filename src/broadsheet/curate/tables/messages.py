"""The messages of a request: role, task, form of the answers, examples, and a batch of numbered questions.

Knows: tasks, examples, the order of parts. Does not know: models, batches' making.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from broadsheet.console import InputError
from broadsheet.curate.tables.parsing import yes_no
from broadsheet.curate.tables.tasks import Task

ROLE = "You are a database engineer."
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Shot:
    """An example: a question's subject, the reason, and the answer.

    Args:
        about: a record; for matching a pair of them.
        answer: "yes" or "no", True or False; for imputation the value.
        reason: in a sentence, written by hand.
    """

    about: Any
    answer: str | bool
    reason: str = ""


@dataclass(frozen=True)
class TablePrompt:
    """How questions of a task are asked.

    Args:
        shots: examples; each with a reason where reasons are asked for.
        reasons: answers have two lines, the reason first (zero-shot chain of thought), then the answer; else one.

    Raises:
        InputError: an example lacks its reason, or has no answer of the task.
    """

    task: Task
    shots: Sequence[Shot] = ()
    reasons: bool = True

    def __post_init__(self) -> None:
        for number, shot in enumerate(self.shots, start=1):
            if self.reasons and not shot.reason.strip():
                raise InputError(f"example {number} has no reason; give one in a sentence, or ask without reasons")
            self._answer(shot, number)

    def numbered(self, questions: Sequence[str]) -> Messages:
        """The messages that ask a batch of questions, in the paper's order."""
        examples: Messages = []
        for number, shot in enumerate(self.shots, start=1):
            answer = self._answer(shot, number)
            said = f"{' '.join(shot.reason.split())}\n{answer}" if self.reasons else answer
            examples += [
                _message("user", f"Question {number}: {self.task.question(shot.about)}"),
                _message("assistant", f"Answer {number}: {said}"),
            ]
        asked = "\n".join(f"Question {number}: {question}" for number, question in enumerate(questions, start=1))
        return [self._instruction, *examples, _message("user", asked)]

    def alone(self, question: str) -> Messages:
        """The messages that ask one question for its answer alone, without a reason: to score answers after them."""
        examples: Messages = []
        for number, shot in enumerate(self.shots, start=1):
            examples.append(_message("user", self.task.question(shot.about)))
            examples.append(_message("assistant", self._answer(shot, number)))
        form = 'Answer "yes" or "no".' if self.task.yes_no else "Answer with the value alone."
        return [_message("system", f"{ROLE} {self.task.statement()} {form}"), *examples, _message("user", question)]

    @cached_property
    def _instruction(self) -> dict[str, str]:
        what = '"yes" or "no"' if self.task.yes_no else "the value"
        lines = f"in two lines: first the reason, then {what} alone" if self.reasons else f"with {what} alone"
        form = f'Answer every question {lines}. Begin the answer to question 1 with "Answer 1:", and so on.'
        parts = [ROLE, self.task.statement(), form, self.task.focus if self.reasons else ""]
        return _message("system", " ".join(filter(None, parts)))

    def _answer(self, shot: Shot, number: int) -> str:
        if not self.task.yes_no:
            answer = " ".join(str(shot.answer).split())
            if not answer:
                raise InputError(f"example {number} has no answer; expected the value")
            return answer
        found = shot.answer if isinstance(shot.answer, bool) else yes_no(str(shot.answer))
        if found is None:
            raise InputError(f"example {number} has the answer {shot.answer!r}; expected yes or no")
        return "yes" if found else "no"


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}

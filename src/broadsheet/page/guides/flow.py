"""A large model as it is, or a small one tuned? The decision flow of arXiv:2304.13712, question by question.

Knows: `advice.toml`. Does not know: rules, papers. The flow is of April 2023: "LLM" meant closed models of 100 billion
parameters and more, used as they are; "fine-tuned" a smaller model tuned for the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from broadsheet.console import InputError
from broadsheet.page.guides.data import read


@dataclass(frozen=True)
class FlowQuestion:
    """One question of the flow.

    Attributes:
        ask: the question.
        yes, no: where that answer leads: `"LLM"`, `"fine-tuned"`, `"open"`, or the number of the next question.
        emergent: it asks for an ability that only large models have.
    """

    ask: str
    yes: str | int
    no: str | int
    emergent: bool = False


@dataclass(frozen=True)
class Flow:
    """Where the answers lead.

    Attributes:
        outcomes: what is still possible, without repetition: one outcome where the answers decide.
        path: (number of the question, answer) along the way; an answer that is not known is None, and both of its
            branches are followed.
        emergent: whether an outcome rests on an ability that only large models have.
    """

    outcomes: tuple[str, ...]
    path: tuple[tuple[int, bool | None], ...]
    emergent: bool = False

    @property
    def decided(self) -> str:
        """The outcome, or empty while several are possible."""
        return self.outcomes[0] if len(self.outcomes) == 1 else ""


@cache
def questions() -> tuple[FlowQuestion, ...]:
    """The ten questions, in order."""
    rows = read("advice")["flow"]["question"]
    return tuple(FlowQuestion(row["ask"], row["yes"], row["no"], row.get("emergent", False)) for row in rows)


def follow(answers: Sequence[bool | None]) -> Flow:
    """Follow the flow: a large model as it is, or a smaller one tuned for the task?

    Use when a task is new and it is not clear whether to prompt or to tune. Prefer a trial where both are at hand: the
    flow is of April 2023.

    Inputs: an answer a question, in order: True, False, or None where it is not known. What is not answered, or lies
    beyond the end, keeps both branches.

    Relation: `advice.advise` derives the answers that its own facts give.

    Raises:
        InputError: more answers than questions.

    Example:
        >>> follow([False, False, False, False, True]).decided
        'LLM'

    Source: arXiv:2304.13712, the flow chart.
    """
    asked = questions()
    if len(answers) > len(asked):
        raise InputError(f"got {len(answers)} answers; the flow has {len(asked)} questions")
    outcomes: dict[str, None] = {}
    path: dict[int, bool | None] = {}
    emergent = False
    waiting = [1]
    while waiting:
        number = waiting.pop(0)
        if number in path:
            continue
        answer = answers[number - 1] if number <= len(answers) else None
        path[number] = answer
        question = asked[number - 1]
        for given, leads in ((True, question.yes), (False, question.no)):
            if answer in (given, None):
                if isinstance(leads, int):
                    waiting.append(leads)
                else:
                    outcomes[leads] = None
                    emergent |= given and question.emergent and answer is True
    return Flow(tuple(outcomes), tuple(sorted(path.items())), emergent)


def derived(answers: Mapping[str, str]) -> list[bool | None]:
    """What the adviser's facts say of each question of the flow; None where they say nothing."""
    found: list[bool | None] = []
    for row in read("advice")["flow"]["question"]:
        said = next((each["answer"] for each in row.get("derive", []) if _holds(each["when"], answers)), None)
        found.append(None if said is None else said == "yes")
    return found


def _holds(when: Mapping[str, Sequence[str]], answers: Mapping[str, str]) -> bool:
    return all(answers.get(fact) in values for fact, values in when.items())

"""A teacher that says what a function tells it to, by the messages that it is asked: no model is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from broadsheet.teacher import Completion, Teacher

Says = Callable[[list[dict[str, str]], int], str]
Scores = Callable[[list[dict[str, str]], str], float]


class Scripted:
    """A backend.

    Args:
        says: messages and the number of the sample to the answer.
        scores: messages and a choice to its probability.
        name: what tells it from others, for the cache.
    """

    def __init__(self, says: Says = lambda _, n: "", scores: Scores = lambda *_: 0.5, name: str = "scripted") -> None:
        self.says, self.scores, self.name = says, scores, name
        self.asked: list[str] = []

    def identity(self) -> dict[str, Any]:
        return {"scripted": self.name}

    def read(self, prompts: Sequence[Any], reserve: Any) -> list[Any]:
        return list(prompts)

    def generate(self, jobs: Sequence[Any], sampling: Any, meter: Any) -> Iterator[list[tuple[int, int, Completion]]]:
        for position, job in enumerate(jobs):
            meter.start(len(job.samples))
            self.asked.append(job.reading[-1]["content"])
            yield [(position, i, Completion(self.says(job.reading, i), "stop", 1, 1)) for i in job.samples]

    def score(self, jobs: Sequence[Any], meter: Any) -> Iterator[list[tuple[int, list[tuple[float, int]]]]]:
        for position, job in enumerate(jobs):
            meter.start()
            self.asked.append(job.reading[-1]["content"])
            yield [(position, [(math.log(self.scores(job.reading, each)), len(each.split())) for each in job.choices])]


def scripted(says: Says = lambda _, n: "", scores: Scores = lambda *_: 0.5, cache: bool = False) -> Teacher:
    """A teacher that asks it."""
    return Teacher(Scripted(says, scores), cache=cache)

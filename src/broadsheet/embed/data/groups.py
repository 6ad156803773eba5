"""Groups to train a retriever on: a query, one positive key and G − 1 negatives, with a teacher's score of each.

Knows: rows of queries and candidates, teacher scores. Does not know: models, losses, how scores are computed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from broadsheet.console import InputError

Positive = Literal["first", "random", "teacher", "teacher-pos"]
Negative = Literal["random", "first", "teacher+", "teacher-"]


@dataclass(frozen=True)
class GroupConfig:
    """The choice of a group's keys from a row.

    Args:
        train_group_size: keys of a query, G; 8 in the paper. A query with fewer negatives repeats them.
        select_positive: the `"first"` positive, a `"random"` one, the best by the teacher among positives
            (`"teacher-pos"`), or among all candidates (`"teacher"`: a negative that wins leaves the negatives).
        select_negative: `"random"`, the `"first"`, or those with the teacher's highest (`"teacher+"`) or lowest
            (`"teacher-"`) scores.
        teacher_scores_margin: drop a query whose best and worst score differ by less.
        teacher_scores_min: drop a query whose best score is lower.
        stable_distill: sort the negatives by teacher score, best first, as the graded loss needs. The positive stays
            first, even if its score is lower.
        instruction: prefixes for `"query"` and `"key"`; by default none, as the embedder's prompts serve for that.
    """

    train_group_size: int = 8
    select_positive: Positive = "first"
    select_negative: Negative = "random"
    teacher_scores_margin: float | None = None
    teacher_scores_min: float | None = None
    stable_distill: bool = False
    instruction: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.train_group_size < 1:
            raise InputError(f"got train_group_size {self.train_group_size}; expected 1 or more keys")
        for name, kinds in (("select_positive", Positive), ("select_negative", Negative)):
            if getattr(self, name) not in get_args(kinds):
                raise InputError(f"got {name} {getattr(self, name)!r}; expected one of {', '.join(get_args(kinds))}")


@dataclass(frozen=True)
class Groups:
    """Groups of one call of `build_groups`, and the number of rows that were dropped, by reason."""

    rows: list[dict[str, Any]]
    dropped: Counter[str] = field(default_factory=Counter)


def build_groups(
    examples: Iterable[Mapping[str, Any]], config: GroupConfig, *, seed: int = 0, max_samples: int | None = None
) -> Groups:
    """A group for every row that is not dropped; see `build_group`.

    Args:
        seed: of random choices, with the row's index.
        max_samples: the largest number of groups, drawn at random and kept in order. (The authors keep the last ones.)
    """
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    for index, example in enumerate(examples):
        try:
            made = build_group(example, config, random.Random(f"{seed}/{index}"))
        except InputError as error:
            raise InputError(f"row {index + 1}: {error}") from None
        if isinstance(made, str):
            dropped[made] += 1
        else:
            rows.append(made)
    if max_samples is not None and len(rows) > max_samples:
        chosen = sorted(random.Random(f"{seed}/samples").sample(range(len(rows)), max_samples))
        dropped["over max_samples"] = len(rows) - max_samples
        rows = [rows[i] for i in chosen]
    return Groups(rows, dropped)


def build_group(
    example: Mapping[str, Any], config: GroupConfig, generator: random.Random | None = None
) -> dict[str, Any] | str:
    """A query with its G keys, the positive first; or the reason why it is dropped.

    Args:
        example: `query`; `task`; the lists `pos` and `neg`, or `history`, whose entries are all negatives until the
            teacher picks one; `teacher_scores`, if any, for the positives and then the negatives.
        config: see `GroupConfig`.
        generator: of random choices; a seeded one by default.

    Returns:
        `query`, `key` (G texts), `task`, and `teacher_scores` (G numbers, in the keys' order) if there were any. A
        string where the teacher's scores are too close or too low, or there is no negative.

    Raises:
        InputError: scores that do not match the candidates or are no numbers, or a choice by a teacher without scores.

    Source: arXiv:2310.07554; authors' code FlagOpen/FlagEmbedding, research/llm_embedder.
    """
    generator = generator or random.Random(0)
    history = example.get("history")
    positives: Sequence[str] = [] if history is not None else list(example.get("pos") or [])
    negatives: Sequence[str] = list(history if history is not None else example.get("neg") or [])
    scores = _scores(example, len(positives) + len(negatives), config)
    if scores and (reason := _too_uncertain(scores, config)):
        return reason
    best = _positive(len(positives), scores, config, generator)
    keys = [*positives, *negatives]
    rest = [i for i in range(len(positives), len(keys)) if i != best]
    wanted = config.train_group_size - 1
    if wanted and not rest:
        return "no negatives"
    if rest and len(rest) < wanted:
        rest = rest * math.ceil(wanted / len(rest))
    chosen = _negatives(rest, wanted, scores, config, generator)
    if config.stable_distill and scores:
        chosen.sort(key=lambda i: -scores[i])
    order = [best, *chosen]
    before = config.instruction or {"query": "", "key": ""}
    made = {
        "query": before["query"] + str(example["query"]),
        "key": [before["key"] + keys[i] for i in order],
        "task": example.get("task", "qa"),
    }
    return made | {"teacher_scores": [scores[i] for i in order]} if scores else made


def _scores(example: Mapping[str, Any], count: int, config: GroupConfig) -> list[float]:
    """The teacher's scores, checked; empty where there are none and none are needed."""
    given = example.get("teacher_scores")
    if given is None:
        asked = [name for name in ("select_positive", "select_negative") if "teacher" in getattr(config, name)]
        asked += ["stable_distill"] if config.stable_distill else []
        if asked:
            raise InputError(f"no teacher_scores, which {' and '.join(asked)} needs; score the candidates first")
        return []
    if len(given) != count:
        raise InputError(f"got {len(given)} teacher_scores for {count} candidates; expected one each")
    if any(isinstance(score, str | None) or not math.isfinite(score) for score in given):
        raise InputError(f"got teacher_scores {list(given)}; expected finite numbers")
    return [float(score) for score in given]


def _too_uncertain(scores: Sequence[float], config: GroupConfig) -> str:
    if config.teacher_scores_min is not None and max(scores) < config.teacher_scores_min:
        return "best score below the minimum"
    if config.teacher_scores_margin is not None and max(scores) - min(scores) < config.teacher_scores_margin:
        return "scores within the margin"
    return ""


def _positive(positives: int, scores: Sequence[float], config: GroupConfig, generator: random.Random) -> int:
    """The index of the positive among all candidates; the first of equals."""
    rule = config.select_positive
    if rule == "teacher":
        return max(range(len(scores)), key=scores.__getitem__)
    if not positives:
        raise InputError(f"no positives for select_positive {rule!r} to choose from; with a history choose 'teacher'")
    if rule == "teacher-pos":
        return max(range(positives), key=scores.__getitem__)
    return generator.randrange(positives) if rule == "random" else 0


def _negatives(
    rest: Sequence[int], wanted: int, scores: Sequence[float], config: GroupConfig, generator: random.Random
) -> list[int]:
    rule = config.select_negative
    if rule == "random":
        return generator.sample(rest, wanted)
    if rule == "first":
        return list(rest[:wanted])
    sign = -1 if rule == "teacher+" else 1
    return sorted(rest, key=lambda i: sign * scores[i])[:wanted]

"""Rows to fine-tune on, some of them with each other's targets: what is wrong is known, and what is held out is clean.

Knows: rows, documentation, a seed. Does not know: models, scores.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from broadsheet.console import InputError
from broadsheet.curate.targets.exchanges import Exchange
from broadsheet.data import corpora, pydocs
from broadsheet.training.scratch import near_duplicates

_WORDS = range(4, 25)  # of a target
_SYSTEM = "Say in one line what this does."


@dataclass(frozen=True)
class PlantedRows:
    """Rows apart.

    Attributes:
        train: to tune on; those that are `wrong` (n,) have the target of another.
        tuning: to choose settings by. held_out: that are asked in the end. All of these have their own targets, and no
            row that is trained on is like them.
    """

    train: list[Exchange]
    wrong: np.ndarray
    tuning: list[Exchange]
    held_out: list[Exchange]


def planted(data: str, rows: int, held_out: int, tuning: int, noise: float, seed: int) -> PlantedRows:
    """Draw rows whose targets are all different, and shuffle the targets of a share of those that are trained on.

    Args:
        data: `pydocs`, of which a row asks what a function does, by its name, and the target is the first line of its
            documentation; or rows.

    Raises:
        InputError: there are too few.
    """
    corpus = corpora.load(data)
    found = _documented(corpus) if pydocs.is_pydocs(data) else list(corpus.read(Exchange))
    unique = list({each.target.lower(): each for each in found}.values())
    draw = random.Random(seed)
    draw.shuffle(unique)
    away, rest = unique[: held_out + tuning], unique[held_out + tuning :]
    like = near_duplicates([_whole(each) for each in rest], [_whole(each) for each in away])
    clean = [each for i, each in enumerate(rest) if i not in like][:rows]
    shuffled = round(noise * len(clean))
    if len(clean) < 10 or shuffled == 1:
        raise InputError(
            f"{data} gives {len(unique)} different targets, of which {len(clean)} rows are left to train on, and "
            f"{shuffled} to shuffle; expected 10 rows or more, and none or 2 to shuffle"
        )
    # The first ones get the next one's target: no target stays where it was.
    wrong = [Exchange(clean[i].answered(clean[(i + 1) % shuffled].target)) for i in range(shuffled)]
    order = list(range(len(clean)))
    draw.shuffle(order)
    train = [(wrong + clean[shuffled:])[i] for i in order]
    return PlantedRows(train, np.array([i < shuffled for i in order]), away[held_out:], away[:held_out])


def _documented(corpus: Any) -> list[Exchange]:
    """Functions by name, and what the first line of their documentation says."""
    found = [
        (document.metadata["title"], document.metadata["summary"])
        for document in corpus
        if document.metadata["kind"] == "function" and len(document.metadata["summary"].split()) in _WORDS
    ]
    roles = ("system", "user", "assistant")
    return [
        Exchange({"messages": [{"role": r, "content": c} for r, c in zip(roles, (_SYSTEM, *pair), strict=True)]})
        for pair in found
    ]


def _whole(each: Exchange) -> str:
    return f"{each.prompt[-1]['content']} {each.target}"

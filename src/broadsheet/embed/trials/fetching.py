"""What LLM-Embedder's trial asks: of a query's candidates, how likely the one that is fetched makes the output.

Knows: candidates with their scores, embedders by their prompts. Does not know: how scores are made, how embedders are
trained.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from broadsheet.embed.data.chunks import Continuation
from broadsheet.trial.base import ModelArm
from broadsheet.trial.engine import Arm, Metric, Outputs
from broadsheet.trial.examples import ending, excerpt, most_apart
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult, Example

NOTHING, RANDOM, WORDS, BEST = "no candidate", "random candidate", "BM25's first", "the teacher's best"
# What fetches without an embedder.
YARDSTICKS = {
    NOTHING: "the query alone; its empty ranking counts 0",
    RANDOM: "of the candidates",
    WORDS: "the candidates as they were found",
    BEST: "the most there is to gain",
}


@dataclass(frozen=True)
class Kind:
    """A task of the trial: what its metrics and its examples are called.

    Args:
        task: by which the prompts go.
        metrics: log-likelihood and nDCG@10.
        shown: before the wanted output of an example.
    """

    task: Literal["lrlm", "qa"]
    metrics: tuple[str, str]
    shown: str

    def measured(self) -> list[Metric]:
        """Its metrics."""
        likelihood, ranking = self.metrics
        return [
            Metric(likelihood, of="log-likelihood", unit="nats/token"),
            Metric(ranking, of="nDCG@10", bounds=(0, 1)),
        ]


TEXT = Kind("lrlm", ("log-likelihood", "nDCG@10"), "what follows")
ANSWERS = Kind("qa", ("log-likelihood of answers", "nDCG@10 of answers"), "answer")


@dataclass(frozen=True)
class Scored:
    """A query, and how likely the language model finds the output with each candidate, and with none."""

    case: Continuation
    scores: list[float]
    alone: float

    @property
    def best(self) -> int:
        """The candidate that helps most."""
        return int(np.argmax(self.scores))

    @property
    def right(self) -> int:
        """The candidate that is known to be right, or else the one that helps most."""
        return self.best if self.case.right is None else self.case.right


def fetching_arm(arm: ModelArm, model: LazyModel, asked: Sequence[Scored], *, task: str = "") -> Arm:
    """Places in `asked` to the log-likelihood with the candidate put first, and nDCG@10 of the right one.

    Args:
        task: whose prompts the embedder is given; none by default.
    """

    def encode(texts: list[str], side: str) -> Any:
        prompt = f"{task}-{side}" if task else None
        vectors = np.asarray(model().encode(texts, prompt_name=prompt, show_progress_bar=False), dtype=np.float64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def run(block: Sequence[int]) -> Outputs:
        keys = list(dict.fromkeys(key for i in block for key in asked[i].case.keys))
        where = {key: place for place, key in enumerate(keys)}
        queries, vectors = encode([asked[i].case.query for i in block], "query"), encode(keys, "key")
        orders = [
            np.argsort(-(vectors[[where[key] for key in asked[i].case.keys]] @ query), kind="stable").tolist()
            for i, query in zip(block, queries, strict=True)
        ]
        return _outputs([asked[i] for i in block], orders)

    return Arm(arm.name, run, description=arm.description, prepare=model.prepare)


def _outputs(asked: Sequence[Scored], orders: Sequence[Sequence[int]]) -> Outputs:
    places = [list(order).index(each.right) for each, order in zip(asked, orders, strict=True)]
    return {
        "fetched": [int(order[0]) for order in orders],
        "log-likelihood": [each.scores[order[0]] for each, order in zip(asked, orders, strict=True)],
        "nDCG@10": [1 / np.log2(2 + place) if place < 10 else 0.0 for place in places],
    }


def yardstick(arm: ModelArm, asked: Sequence[Scored], seed: int) -> Arm:
    """An arm that fetches without an embedder: nothing, anything, what shares words, or what is best."""

    def order(each: Scored) -> list[int]:
        count = len(each.scores)
        if arm.name == RANDOM:
            return random.Random(f"{seed}/{each.case.id}").sample(range(count), count)
        return list(range(count)) if arm.name == WORDS else sorted(range(count), key=lambda i: -each.scores[i])

    def run(block: Sequence[int]) -> Outputs:
        if arm.name == NOTHING:
            return {"log-likelihood": [asked[i].alone for i in block], "nDCG@10": [0.0] * len(block)}
        return _outputs([asked[i] for i in block], [order(asked[i]) for i in block])

    return Arm(arm.name, run, description=arm.description)


def examples_of(
    scored: Sequence[Scored], shown: str, asked: Sequence[int], arms: Mapping[str, ArmResult]
) -> list[Example]:
    """Queries with the candidate that each arm fetches, and how likely that makes the output."""
    known = {name: arm for name, arm in arms.items() if name not in (NOTHING, BEST)}
    fetched = [{name: int(arm.samples["fetched"][i]) for name, arm in known.items()} for i in range(len(asked))]
    found = []
    for place in most_apart([{name: str(chunk) for name, chunk in row.items()} for row in fetched]):
        one = scored[asked[place]]
        told = {
            name: f"{one.scores[chunk] - one.alone:+.2f} nats a token, by: {excerpt(one.case.keys[chunk])}"
            for name, chunk in fetched[place].items()
        }
        best = f"Most: {one.scores[one.best] - one.alone:+.2f}, by: {excerpt(one.case.keys[one.best])}"
        found.append(Example(f"{ending(one.case.query)}\n[{shown}] {excerpt(one.case.output)}", told, best))
    return found

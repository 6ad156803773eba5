"""Queries with their passage and wrong ones that look right, to train on: what BM25 finds beside the right one.

Knows: documentation as retrieval. Does not know: losses, embedders.
"""

from __future__ import annotations

from typing import Any

from broadsheet.console import InputError
from broadsheet.embed.tasks import documentation

__all__ = ["hard_triples"]


def hard_triples(
    n: int, negatives: int = 1, *, words: int = 40, depth: int = 20, seed: int = 0
) -> list[dict[str, Any]]:
    """Items `query`, `positive`, `negatives` from packages that no pydocs task asks about.

    The negatives are drawn at random from the first `depth` that BM25 finds for the query, the right one left out.

    Args:
        n: how many.
        negatives: of each query; with 0 the list is empty.
        words: of a passage, at most.
        seed: of split and choice: that of the task.

    Raises:
        InputError: the documentation has not so many.

    Example:
        items = hard_triples(600, negatives=1)
    """
    if n < 1 or negatives < 0:
        raise InputError(f"got {n} queries with {negatives} negatives; expected at least 1 and 0")
    lists = documentation(words, seed).train(n, candidates=1 + negatives, depth=max(depth, 1 + negatives))
    items = []
    for each in lists:
        right = next(i for i, label in enumerate(each.labels) if label > 0)
        wrong = [str(text) for i, text in enumerate(each.documents) if i != right]
        if len(wrong) == negatives:
            items.append({"query": each.query, "positive": str(each.documents[right]), "negatives": wrong})
    if len(items) < n:
        raise InputError(
            f"the documentation gives {len(items)} queries with {negatives} negatives; expected {n}: ask for fewer"
        )
    return items

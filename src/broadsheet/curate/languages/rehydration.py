"""How often a document is repeated, by how seldom its duplicates are removed by filters (FineWeb2, Sec. 3.5).

Knows: sizes of clusters of duplicates, how many of each size filters removed. Does not know: filters.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from broadsheet.curate.files import RankStatistics

SIZE = "minhash_cluster_size"
_TAIL = 0.001  # of documents: those with the largest clusters count as one size


def weights(
    sizes: Sequence[int], rates: Sequence[float], overall: float, most: int = 10, window: int = 5
) -> dict[int, int]:
    """How often documents of each cluster size are repeated: first size to copies, until the next one.

    A size whose removal rate is the overall one or more is read once, that with the lowest rate `most` times, in a
    line between them; then the copies are smoothed over neighbouring sizes, as the authors' code does and the paper
    does not say. The two sizes at either end keep theirs.

    Args:
        sizes: of clusters, in rising order.
        rates: the share of each size's documents that filters removed; of one unit with `overall`.
        overall: the share of all.
        most: copies.
        window: sizes that the smoothing averages; 1: none.
    """
    lowest = min(rates, default=overall)
    if lowest >= overall or most == 1:
        return {sizes[0]: 1} if sizes else {}
    repeats = np.array([1 + (most - 1) * max(0.0, overall - rate) / (overall - lowest) for rate in rates])
    # Of fewer sizes than the window, numpy's "same" gives as many values as the window; so does the authors' code.
    smooth = np.convolve(repeats, np.ones(window) / window, "same")
    smooth[:2], smooth[-2:] = repeats[:2], repeats[-2:]
    found: dict[int, int] = {}
    for size, copies in zip(sizes, np.rint(smooth[: len(sizes)]).astype(int).tolist(), strict=True):
        if not found or copies != next(reversed(found.values())):
            found[size] = copies
    return found


def copies(size: int, by_size: Mapping[int, int]) -> int:
    """How often a document of that cluster size is read."""
    starts = sorted(by_size)
    at = bisect_right(starts, size) - 1
    return by_size[starts[at]] if at >= 0 else 1


def removal(before: Mapping[int, int], after: Mapping[int, int]) -> tuple[list[int], list[float], float]:
    """Cluster sizes, the share of documents that filters removed of each, and of all.

    Args:
        before, after: documents of each cluster size. The largest sizes, a thousandth of all documents, count as one.
    """
    total = sum(before.values())
    sizes, counted = [], 0
    for size in sorted(before):
        sizes.append(size)
        counted += before[size]
        if counted >= (1 - _TAIL) * total:
            break
    last = sizes[-1] if sizes else 0

    def pooled(counts: Mapping[int, int]) -> Counter[int]:
        found: Counter[int] = Counter()
        for size, count in counts.items():
            found[min(size, last)] += count
        return found

    came, stayed = pooled(before), pooled(after)
    rates = [1 - stayed[size] / came[size] for size in sizes]
    return sizes, rates, 1 - sum(stayed.values()) / total if total else 0.0


class ClusterSizes(RankStatistics):
    """Count documents by language and cluster size: before the filters, and after them. Documents pass through.

    Args:
        folder: for the ranks' counts.
    """

    name = "cluster sizes"

    def note(self, found: Any, document: Document) -> None:
        size = int(document.metadata.get(SIZE, 1))
        found.setdefault(document.metadata.get("language", ""), Counter())[size] += 1


def sizes_of(ranks: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, Counter[int]]:
    """The counts of all ranks, by language."""
    found: dict[str, Counter[int]] = {}
    for rank in ranks:
        for language, counts in rank.items():
            own = found.setdefault(language, Counter())
            for size, count in counts.items():
                own[int(size)] += count
    return found


class Rehydrate(PipelineStep):
    """Repeat documents by their cluster size, copies side by side; the order of documents stays.

    Args:
        by_language: what `weights` gives, for each language; documents of others are read once.
    """

    type = "🔁 - REPEAT"
    name = "rehydration"

    def __init__(self, by_language: Mapping[str, Mapping[int, int]]) -> None:
        super().__init__()
        self.by_language = {name: dict(each) for name, each in by_language.items()}

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            own = self.by_language.get(document.metadata.get("language", ""), {})
            times = copies(int(document.metadata.get(SIZE, 1)), own)
            self.stat_update("total")
            self.stat_update("forwarded", value=times)
            for _ in range(times):
                yield replace(document, metadata=dict(document.metadata))


def json_weights(told: Any) -> dict[str, dict[int, int]]:
    """Weights as JSON kept them."""
    return {name: {int(size): int(times) for size, times in each.items()} for name, each in told.items()}

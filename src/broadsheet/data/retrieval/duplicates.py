"""Near-duplicate texts, found by MinHash and confirmed by their shared word sequences.

Knows: texts. Does not know: what they are for. A third of all docstrings are copied from one another: in a retrieval
test, a copy of the right passage that counts as wrong would punish the better ranking.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w+")
_SHINGLE = 3  # words; passages are short, and one changed word breaks three shingles
_BANDS, _ROWS = 16, 4  # two texts meet in a band with probability 1 − (1 − J⁴)¹⁶: 0.3 at J = 0.4, 0.99 at J = 0.7
_PRIME = (1 << 32) + 15  # just above the hashes: products wrap around it often enough to mix


def distinct(texts: Iterable[str], *, jaccard: float = 0.6) -> Iterator[bool]:
    """For each text in turn, whether it differs from all that were kept before it.

    Args:
        texts: read once, in order; the first of a family of near-duplicates is the one that is kept.
        jaccard: from which share of common three-word sequences (over the union, punctuation and case aside) two texts
            count as the same.

    Example:
        >>> list(distinct(["Return the sum of a and b.", "return the sum of a and b", "Join two paths."]))
        [True, False, True]
    """
    return (found is None for found in near(texts, jaccard=jaccard))


def near(texts: Iterable[str], *, jaccard: float = 0.6) -> Iterator[tuple[int, float] | None]:
    """For each text in turn, the place of the kept text that it repeats most and their `jaccard`; None if it is kept.

    Args:
        texts, jaccard: as in `distinct`.

    Example:
        >>> list(near(["Return the sum of a and b.", "return the sum of a and b", "Join two paths."]))
        [None, (0, 1.0), None]
    """
    generator = np.random.default_rng(0)
    multipliers = generator.integers(1, 1 << 31, _BANDS * _ROWS, dtype=np.uint64)
    increments = generator.integers(0, 1 << 31, _BANDS * _ROWS, dtype=np.uint64)
    buckets: dict[bytes, list[int]] = defaultdict(list)
    kept: list[tuple[int, frozenset[int]]] = []
    for place, text in enumerate(texts):
        shingles = _shingles(text)
        keys = _bands(np.fromiter(shingles, np.uint64, len(shingles)), multipliers, increments)
        met = sorted({other for key in keys for other in buckets[key]})
        best = max(((_overlap(shingles, kept[other][1]), -kept[other][0]) for other in met), default=(0.0, 0))
        if met and best[0] >= jaccard:
            yield -best[1], best[0]
            continue
        for key in keys:
            buckets[key].append(len(kept))
        kept.append((place, shingles))
        yield None


def jaccard(one: str, other: str) -> float:
    """The share of common three-word sequences of two texts, over their union.

    Example:
        >>> jaccard("Join two paths.", "join two  paths")
        1.0
    """
    return _overlap(_shingles(one), _shingles(other))


def _shingles(text: str) -> frozenset[int]:
    """Hashes of the text's runs of three words; of all its words where there are fewer."""
    words = _WORD.findall(text.lower())
    runs = (" ".join(words[start : start + _SHINGLE]) for start in range(max(1, len(words) - _SHINGLE + 1)))
    return frozenset(crc32(run.encode()) for run in runs)


def _bands(hashes: NDArray[np.uint64], multipliers: NDArray[np.uint64], increments: NDArray[np.uint64]) -> list[bytes]:
    """The MinHash signature, cut into keys that name their band."""
    lowest = ((multipliers[:, None] * hashes + increments[:, None]) % np.uint64(_PRIME)).min(1)
    return [bytes([band]) + part.tobytes() for band, part in enumerate(lowest.reshape(_BANDS, _ROWS))]


def _overlap(one: frozenset[int], other: frozenset[int]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)

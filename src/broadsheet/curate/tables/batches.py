"""Which questions go into one request: at random, or those that are alike.

Knows: texts. Does not know: what they ask.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from broadsheet.console import InputError

Batching = Literal["random", "cluster"]
_PER_CLUSTER = 2  # batches, on average; ours


def batches(
    texts: Sequence[str], size: int, how: Batching = "random", seed: int = 0, encoder: Any = None
) -> list[list[int]]:
    """Places of the texts in batches, each place once.

    Args:
        size: the most in a batch.
        how: `"random"` shuffles and cuts. `"cluster"` runs k-means over the texts and cuts each cluster alone, so a
            batch holds what is alike, and there are a few more batches.
        encoder: texts to vectors, a function or something with `encode` (a `SentenceTransformer`); TF-IDF by default.

    Raises:
        InputError: a size below 1, or another way.

    Example:
        >>> sorted(sum(batches(["a", "b", "c"], 2), []))
        [0, 1, 2]
    """
    if size < 1:
        raise InputError(f"got a batch size of {size}; expected 1 or more")
    if how not in get_args(Batching):
        raise InputError(f"got batching={how!r}; expected 'random' or 'cluster'")
    drawn = random.Random(f"{seed} batches")
    order = list(range(len(texts)))
    drawn.shuffle(order)
    if how == "random" or size == 1 or len(texts) <= size:
        return _cut(order, size)
    labels = _clusters(texts, max(1, round(len(texts) / (_PER_CLUSTER * size))), seed, encoder)
    found = []
    for cluster in sorted(set(labels)):
        found += _cut([place for place in order if labels[place] == cluster], size)
    return found


def _cut(places: Sequence[int], size: int) -> list[list[int]]:
    return [list(places[start : start + size]) for start in range(0, len(places), size)]


def _clusters(texts: Sequence[str], k: int, seed: int, encoder: Any) -> list[int]:
    from sklearn.cluster import KMeans

    vectors = _vectors(texts, encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer different texts than clusters: some stay empty
        found = KMeans(min(k, len(texts)), n_init=3, random_state=seed).fit_predict(vectors)
    return [int(label) for label in found]


def _vectors(texts: Sequence[str], encoder: Any) -> Any:
    if encoder is not None:
        encode: Callable[[list[str]], Any] = getattr(encoder, "encode", encoder)
        return encode(list(texts))
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(token_pattern=r"\w+").fit_transform(texts)

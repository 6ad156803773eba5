"""First-stage search: BM25 over passages, by bm25s.

Knows: texts. Does not know: models, relevance, what an id is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from broadsheet.console import InputError


class BM25:
    """An index over texts (bm25s's default: Lucene's variant, k1 1.5, b 0.75; English stop words, no stemming).

    Args:
        texts: what is searched, at least one.

    Raises:
        InputError: bm25s is not installed, or there is nothing to search.

    Example:
        places, scores = BM25(["join two paths", "sort a list"]).search(["paths"], 1)[0]
    """

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            import bm25s
        except ImportError:
            raise InputError("first-stage search needs bm25s: pip install bm25s") from None
        if not texts:
            raise InputError("got no passages to search; expected one at least")
        self._tokenize = partial(bm25s.tokenize, stopwords="en", show_progress=False)
        self._size = len(texts)
        words = self._tokenize(list(texts))
        self._index = bm25s.BM25() if words.vocab else None  # punctuation and single letters are no words
        if self._index is not None:
            self._index.index(words, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> list[tuple[list[int], list[float]]]:
        """The `k` best texts of each query, as indices and scores, best first, ties in the order of the texts.

        Texts that share no word with the query fill the list up, with score 0; there are `min(k, number of texts)`.
        """
        found = []
        for query in queries:
            scores = np.zeros(self._size)
            if self._index is not None:
                words = self._tokenize(query, return_ids=False)[0]
                known = [word for word in words if word in self._index.vocab_dict]
                if known:
                    scores = self._index.get_scores(known)
            # All that reach the k-th score, so that ties at the end are settled by order and not by the partition.
            n = min(k, self._size)
            least = np.partition(scores, self._size - n)[self._size - n] if n else np.inf
            places = np.flatnonzero(scores >= least)
            best = places[np.argsort(-scores[places], kind="stable")][:n]
            found.append((best.tolist(), scores[best].tolist()))
        return found

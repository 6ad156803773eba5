"""What papers mean, as vectors: of an embedder by name, made once for each text, kept in the store.

Knows: embedders (`embed.load`), vectors. Does not know: words, screens. A vector belongs to a paper, an embedder and
the text's SHA-256: where the text or the embedder changes, it is made again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from broadsheet.daily.store import Article, Store, ours

if TYPE_CHECKING:
    from broadsheet.embed.base import Embedder

_QUERIES = 256  # whose vectors are kept: pages of a search, topics and feeds ask again and again
_BATCH = 64  # papers whose vectors are kept at once: what is made before a kill stays


class Vectors:
    """The papers' vectors by one embedder.

    Args:
        spec: an embedder for `embed.load`: `"resource:minilm"`, a folder, a model.

    Attributes:
        name: of the embedder, with the fingerprint of its weights.

    Raises:
        InputError: the embedder cannot be loaded.

    Example:
        vectors = Vectors(store, "resource:minilm")
        vectors.update()
        vectors.nearest("read longer documents without training", 5)
    """

    def __init__(self, store: Store, spec: str) -> None:
        self._store, self._spec = store, spec
        self._query = lru_cache(_QUERIES)(self._read)
        self._reader = ThreadPoolExecutor(1, "query", _with_one_core)

    @cached_property
    def _embedder(self) -> Embedder:
        from broadsheet.embed.base import load

        return load(self._spec)

    @cached_property
    def name(self) -> str:
        from broadsheet import models

        return f"{self._spec} {models.fingerprint(self._embedder)[:16]}"

    def update(self) -> int:
        """Make the vectors that are missing or of another text; returns how many. What was made stays if it ends."""
        from broadsheet.console import progress

        missing = self._missing()
        with progress("reading papers", total=len(missing)) as bar:
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                made = _unit(self._embedder.encode_document([text for _, text in batch], show_progress_bar=False))
                rows = [(one, _sha(text), row) for (one, text), row in zip(batch, made, strict=True)]
                self._store.db.keep_vectors(self.name, rows)
                bar.advance(bar.task_ids[0], len(batch))
        if missing:
            self._store.db.settle_vectors(self.name)
        return len(missing)

    def nearest(self, text: str, limit: int) -> list[str]:
        """Papers whose vectors are nearest to a query's, the nearest first."""
        try:
            query = self._query(text).result()
        except BaseException:
            self._query.cache_clear()  # another time it may be read
            raise
        return self._store.db.nearest(self.name, query, limit)

    def begin(self, text: str) -> None:
        """Begin to read a query, so that it is read by the time `nearest` is asked for it."""
        self._query(text)

    def _read(self, text: str) -> Future[np.ndarray[Any, Any]]:
        return self._reader.submit(self._encoded, text)

    def _encoded(self, text: str) -> np.ndarray[Any, Any]:
        [query] = _unit(self._embedder.encode_query([text], show_progress_bar=False))
        return query

    def like(self, likes: Sequence[str], dislikes: Sequence[str], limit: int) -> list[str]:
        """Papers like some and unlike others, the likest first, those themselves left out.

        A linear classifier decides: the mean of the first less a third of the mean of the second (after Rocchio, 1971).
        Of the few papers of a topic it makes more than a fitted one does, see `benchmarks/page.py`.
        """
        known = self._store.db.vectors(self.name, [*likes, *dislikes])
        good, bad = ([known[each] for each in some if each in known] for some in (likes, dislikes))
        if not good:
            return []
        direction = np.mean(good, axis=0)
        if bad:
            direction = direction - np.mean(bad, axis=0) / 3
        found = self._store.db.nearest(self.name, direction.astype(np.float32), limit + len(known))
        return [each for each in found if each not in {*likes, *dislikes}][:limit]

    def closest(self, identifiers: Sequence[str], among: Sequence[str]) -> dict[str, str]:
        """For each of some papers the one of others whose vector is nearest; those without a vector are left out."""
        known = self._store.db.vectors(self.name, list({*identifiers, *among}))
        some, others = ([each for each in given if each in known] for given in (identifiers, among))
        if not (some and others):
            return {}
        near = np.array([known[each] for each in some]) @ np.array([known[each] for each in others]).T
        return {each: others[i] for each, i in zip(some, near.argmax(1), strict=True)}

    def _missing(self) -> list[tuple[str, str]]:
        known = self._store.db.vector_texts(self.name)
        every = self._store.latest(10**9)
        return [(each.id, text) for each in every if known.get(each.id) != _sha(text := text_of(each))]


def _with_one_core() -> None:
    """Of a thread that computes with one core: for the few words of a query several take longer, as they wait."""
    import torch

    others = torch.get_num_threads()
    torch.set_num_threads(1)
    # Threads that begin later would have one too; what another thread sets holds for them, and not for this one.
    again = threading.Thread(target=torch.set_num_threads, args=(others,))
    again.start()
    again.join()


def text_of(article: Article) -> str:
    """What of a paper is read for its meaning: the title, and the abstract or what we say of it."""
    return f"{article.title}\n{article.abstract or ours(article.id)}"


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _unit(rows: Any) -> np.ndarray[Any, Any]:
    made = np.asarray(rows, dtype=np.float32)
    norms = np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)
    unit: np.ndarray[Any, Any] = made / norms
    return unit

"""What is served: a model under its name, with the engine that owns it. Vectors, orders, scores.

Knows: how an embedder, a reranker and a detector are asked. Does not know: HTTP, loading, writing (`writer`).
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from broadsheet.console import InputError
from broadsheet.serve.models.engine import Batcher, Engine, Work

if TYPE_CHECKING:
    from broadsheet.detect.base import Detector
    from broadsheet.embed.base import Embedder
    from broadsheet.rank.base import ListwiseReranker

T = TypeVar("T")
WORK_TOKENS = 2048  # of a batch between two steps of answers
_CODED_TOKENS = 8192  # of a batch of texts to vectors, whose engine writes no answers


class Queue(Protocol):
    """Where requests for a model wait."""

    name: str

    @property
    def queued(self) -> int:
        """Tokens that wait."""

    def watch(self, changed: Callable[[int], object]) -> None:
        """Have a function called with each change of what waits, in tokens; and now with what does."""

    def close(self, seconds: float | None = None) -> None:
        """Take nothing more, finish what was taken, and end."""


@dataclass(eq=False)
class Served:
    """One model under its name.

    Attributes:
        kind: what it does: "chat", "embed", "rank", "detect".
        about: what else is known of it, for /v1/models.
    """

    name: str
    kind: str
    engine: Queue
    about: dict[str, Any] = field(default_factory=dict)

    async def aside(self, work: Callable[..., T], *given: Any) -> T:
        """What a function returns that takes its time without the model, such as a tokenizer on a long text.

        It runs in a thread of this model's own, one after another, so that nobody else waits for it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._side, work, *given)

    @cached_property
    def _side(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix=f"texts of {self.name}")

    async def ready(self) -> bool:
        """Whether it can be asked now."""
        return True

    def close(self, seconds: float | None = None) -> None:
        """Finish what was taken, and end."""
        self.engine.close(seconds)
        self._side.shutdown(wait=False, cancel_futures=True)


async def worked(engine: Engine, kind: Batcher[Any, Any], items: Sequence[tuple[Any, int]]) -> list[Any]:
    """What a batcher makes of items, worked on in the engine's thread."""
    work: Work[Any, Any] = Work(kind, items)
    return await asyncio.wrap_future(engine.work(work))


@dataclass(eq=False)
class Fitted:
    """A text as it will be read, the tokens of it that are, and how many are left out."""

    text: str
    tokens: int
    cut: int


@dataclass(eq=False)
class Encoder(Served):
    """A model that turns texts into vectors."""

    engine: Engine
    embedder: Embedder = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        # The engine's thread sets padding and truncation on the embedder's own.
        self._tokenizer = copy.deepcopy(self.embedder.tokenizer)
        self.by_type: dict[str | None, Batcher[str, Any]] = {
            None: Batcher(lambda texts: self._encode("encode", texts), _CODED_TOKENS),
            "query": Batcher(lambda texts: self._encode("encode_query", texts), _CODED_TOKENS),
            "document": Batcher(lambda texts: self._encode("encode_document", texts), _CODED_TOKENS),
        }

    @property
    def width(self) -> int:
        """Of a vector."""
        return int(self.embedder.get_embedding_dimension() or 0)

    async def vectors(self, fitted: Sequence[Fitted], kind: str | None) -> np.ndarray[Any, Any]:
        """The texts' vectors, (texts, width), as queries, as documents, or as neither."""
        items = [(each.text, max(1, each.tokens)) for each in fitted]
        return np.stack(await worked(self.engine, self.by_type[kind], items))

    def _encode(self, how: str, texts: list[str]) -> Any:
        return np.asarray(getattr(self.embedder, how)(texts, show_progress_bar=False), dtype=np.float32)

    def fit(self, given: Sequence[str | Sequence[int]], kind: str | None, truncate: str) -> list[Fitted]:
        """Texts, or token ids as the text that they stand for, as they will be read.

        Raises:
            InputError: one is too long under "error", or there is no such token.
        """
        texts = [each if isinstance(each, str) else self._text(each) for each in given]
        prompt = self.embedder.prompts.get(kind or "", "") or ""
        taken = len(self._ids([prompt])[0]) + self._tokenizer.num_special_tokens_to_add()
        room = (self.embedder.max_seq_length or math.inf) - taken
        return [self._fitted(text, ids, room, truncate) for text, ids in zip(texts, self._ids(texts), strict=True)]

    def _fitted(self, text: str, ids: list[int], room: float, truncate: str) -> Fitted:
        if len(ids) <= room:
            return Fitted(text, len(ids), 0)
        if truncate == "error":
            raise InputError(f"a text of {len(ids):,} tokens exceeds the {room:,} of {self.name}")
        if truncate == "left":
            text = self._tokenizer.decode(ids[-int(room) :], clean_up_tokenization_spaces=False)
        return Fitted(text, int(room), len(ids) - int(room))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _text(self, ids: Sequence[int]) -> str:
        if (largest := max(ids)) >= len(self._tokenizer):
            raise InputError(f"token {largest} is none of the {len(self._tokenizer):,} of {self.name}")
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text


@dataclass(eq=False)
class Ranker(Served):
    """A model that orders documents for a query."""

    engine: Engine
    reranker: ListwiseReranker = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.ranking: Batcher[Any, Any] = Batcher(self._rank, 2 * WORK_TOKENS)

    async def hits(self, query: str, documents: list[str]) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """The documents in order, each with a relevance in (0, 1], and what was read for it."""
        cost = max(1, (len(query) + sum(map(len, documents))) // 4)
        [found] = await worked(self.engine, self.ranking, [((query, documents), cost)])
        return found

    def _rank(self, asked: list[tuple[str, list[str]]]) -> list[tuple[list[dict[str, Any]], dict[str, int]]]:
        found = []
        for query, documents in asked:  # one by one, so that what was read is told of each
            hits = self.reranker.rank(query, documents)
            stats = self.reranker.stats_
            ranked = [{**hit, "relevance": hit["score"] / len(hits)} for hit in hits]
            found.append((ranked, {"tokens": stats.prompt_tokens + stats.output_tokens, "cut": stats.shortened_words}))
        return found


@dataclass(eq=False)
class Checker(Served):
    """A detector of machine-written text."""

    engine: Engine
    detector: Detector = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.scoring: Batcher[str, float] = Batcher(lambda texts: self.detector.score(texts).tolist(), WORK_TOKENS)

    async def scores(self, texts: Sequence[str]) -> tuple[list[float], int]:
        """Each text's score, NaN for one that is too short, and about how many tokens were read."""
        items = [(text, max(1, len(text) // 4)) for text in texts]
        return await worked(self.engine, self.scoring, items), sum(tokens for _, tokens in items)

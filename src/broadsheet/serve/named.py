"""What is served, by name: language models, embedders, rerankers, detectors, each with the engine that owns its model.

Knows: how each is loaded and asked. Does not know: HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from broadsheet.console import InputError
from broadsheet.methods import call_of, names_of, parse_calls, plain, settings, signature
from broadsheet.page import papers
from broadsheet.serve.engine import Batcher, Engine, Work

if TYPE_CHECKING:
    from broadsheet.decode.table_drafter import TableDrafter
    from broadsheet.detect.base import Detector
    from broadsheet.embed.base import Embedder
    from broadsheet.rank.base import ListwiseReranker
    from broadsheet.teacher.local import Local

T = TypeVar("T")
Kind = TypeVar("Kind", bound="Served")
_WORK_TOKENS = 2048  # of a batch between two steps of answers
_CODED_TOKENS = 8192  # of a batch of texts to vectors, whose engine writes no answers
_MOST = 1024  # tokens of an answer whose length neither request nor model limits


@dataclass(eq=False)
class Served:
    """One model under its name.

    Attributes:
        kind: what it does: "chat", "embed", "rank", "detect".
        about: what else is known of it, for /v1/models.
    """

    name: str
    kind: str
    engine: Engine
    about: dict[str, Any] = field(default_factory=dict)

    async def asked(self, kind: Batcher[Any, Any], items: Sequence[tuple[Any, int]]) -> list[Any]:
        """What a batcher makes of items, worked on in the engine's thread."""
        import asyncio

        work: Work[Any, Any] = Work(kind, items)
        return await asyncio.wrap_future(self.engine.work(work))


@dataclass(frozen=True)
class Reading:
    """A prompt's token ids, how many it lost, the answer's longest length, and whether it is a transcript."""

    ids: tuple[int, ...]
    cut: int
    limit: int
    transcript: bool


@dataclass(eq=False)
class Writer(Served):
    """A language model that writes, scores and classifies."""

    local: Local = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.scoring: Batcher[Any, Any] = Batcher(self._score, _WORK_TOKENS)

    def read(self, prompt: Any, answer: int | None, truncate: str) -> Reading:
        """A prompt as it will be read: token ids, a text to continue, or a conversation.

        Args:
            answer: tokens that are wanted; None: as many as there is room for.

        Raises:
            InputError: it does not fit under "error", is empty, or names a token that there is not.
        """
        given = isinstance(prompt, list) and isinstance(prompt[0], int)
        if given:
            self.check(prompt)
        ids = prompt if given else self.local.prompt_ids(prompt)
        transcript = not given and not isinstance(prompt, str) and not self.local.has_template
        context = self.local.context
        if context is None:
            return Reading(tuple(ids), 0, answer or _MOST, transcript)
        room = context - (answer or 1)
        if room < 1 or (len(ids) > room and truncate == "error"):
            raise InputError(
                f"{len(ids):,} tokens and {answer or 1:,} for the answer exceed the {context:,} of {self.name}; "
                "shorten the prompt, ask for fewer tokens, or pass truncate=left"
            )
        kept = ids[-room:]
        return Reading(tuple(kept), len(ids) - len(kept), answer or context - len(kept), transcript)

    def pairs(self, prompt: Any, answers: Sequence[str]) -> list[tuple[tuple[tuple[int, ...], list[list[int]]], int]]:
        """A prompt and the answers to be scored after it, as token ids: in parts that fit a batch, each with its cost.

        Raises:
            InputError: together they exceed the context, or an answer has no tokens.
        """
        space = " " if not isinstance(prompt, str) and not self.local.has_template else ""
        choices = [self.local.encode(space + answer) for answer in answers]
        if not all(choices):
            raise InputError(f"a continuation has no tokens in the vocabulary of {self.name}")
        from broadsheet.teacher.local import score_cost

        ids = self.read(prompt, max(map(len, choices)), "error").ids
        most = max(1, self.local.batch_tokens // score_cost(ids, [max(choices, key=len)]))
        parts = [choices[start : start + most] for start in range(0, len(choices), most)]
        return [((ids, part), score_cost(ids, part)) for part in parts]

    def check(self, ids: Sequence[int]) -> None:
        """Refuse, by an InputError, token ids that the model has not got."""
        if (largest := max(ids)) >= self.local.vocabulary:
            raise InputError(f"token {largest} is none of the {self.local.vocabulary:,} of {self.name}")

    def _score(self, pairs: list[tuple[tuple[int, ...], list[list[int]]]]) -> list[list[tuple[float, int]]]:
        return self.local.score_ids(pairs)


@dataclass(eq=False)
class Encoder(Served):
    """A model that turns texts into vectors."""

    embedder: Embedder = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.by_type: dict[str | None, Batcher[str, Any]] = {
            None: Batcher(lambda texts: self._encode("encode", texts), _CODED_TOKENS),
            "query": Batcher(lambda texts: self._encode("encode_query", texts), _CODED_TOKENS),
            "document": Batcher(lambda texts: self._encode("encode_document", texts), _CODED_TOKENS),
        }

    @property
    def width(self) -> int:
        """Of a vector."""
        return int(self.embedder.get_embedding_dimension() or 0)

    def _encode(self, how: str, texts: list[str]) -> Any:
        return np.asarray(getattr(self.embedder, how)(texts, show_progress_bar=False), dtype=np.float32)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as the text that they stand for.

        Raises:
            InputError: the embedder has no such token.
        """
        if (largest := max(ids)) >= len(self.embedder.tokenizer):
            raise InputError(f"token {largest} is none of the {len(self.embedder.tokenizer):,} of {self.name}")
        text: str = self.embedder.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text

    def fit(self, text: str, truncate: str) -> tuple[str, int, int]:
        """A text as it will be read: (text, tokens read, tokens left out).

        Raises:
            InputError: it is too long under "error".
        """
        ids = self.embedder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        limit = self.embedder.max_seq_length or math.inf
        if len(ids) <= limit:
            return text, len(ids), 0
        if truncate == "error":
            raise InputError(f"a text of {len(ids):,} tokens exceeds the {limit:,} of {self.name}")
        if truncate == "left":
            text = self.embedder.tokenizer.decode(ids[-int(limit) :], clean_up_tokenization_spaces=False)
        return text, int(limit), len(ids) - int(limit)


@dataclass(eq=False)
class Ranker(Served):
    """A model that orders documents for a query."""

    reranker: ListwiseReranker = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.ranking: Batcher[Any, Any] = Batcher(self._rank, 2 * _WORK_TOKENS)

    def _rank(self, asked: list[tuple[str, list[str]]]) -> list[tuple[list[dict[str, Any]], dict[str, int]]]:
        """For each (query, documents) its hits, each with a relevance in (0, 1], and what was read for it."""
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

    detector: Detector = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.scoring: Batcher[str, float] = Batcher(lambda texts: self.detector.score(texts).tolist(), _WORK_TOKENS)


class Models:
    """All that is served, by name: `default`, a hub id, or the last part of a path; a detector by its class.

    Args:
        models, embedders, rerankers, detectors: as the command names them.
        attend: a method of `broadsheet.attend`, under which language models read.
        draft: a drafter of `broadsheet.decode`, by which greedy answers that are written alone take fewer steps.
        about: what the list of models tells of each, by its name.
        device, dtype: of all models, as in `models.load`; detectors read in float32.

    Raises:
        InputError: one cannot be loaded, or two of a kind have one name.
    """

    def __init__(
        self,
        models: Sequence[str] = (),
        embedders: Sequence[str] = (),
        rerankers: Sequence[str] = (),
        detectors: Sequence[str] = (),
        *,
        attend: str | None = None,
        draft: str | None = None,
        about: Mapping[str, Mapping[str, Any]] | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self._load: dict[str, Any] = {"device": device, "dtype": dtype}
        self._served: dict[tuple[str, str], Served] = {}
        for each in models:
            self._add(self._writer(each, attend, draft))
        for each in embedders:
            self._add(self._encoder(each))
        for each in rerankers:
            self._add(self._ranker(each))
        for each in detectors:
            self._add(self._checker(each, models[0] if models else "default"))
        for name, told in (about or {}).items():
            for served in self:
                served.about |= told if served.name == name else {}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    @property
    def engines(self) -> list[Engine]:
        return [each.engine for each in self]

    def get(self, name: str | None, kind: type[Kind]) -> Kind:
        """The model of that name, or the first of its kind.

        Raises:
            LookupError: there is none.
        """
        of_kind = [each for each in self if isinstance(each, kind)]
        fitting = [each for each in of_kind if name is None or each.name == name]
        if not fitting:
            raise LookupError(name)
        return fitting[0]

    def close(self, seconds: float | None = None) -> None:
        """Finish what was taken, and end the engines' threads."""
        for engine in self.engines:
            engine.close(seconds)

    def _add(self, served: Served) -> None:
        if (served.kind, served.name) in self._served:
            raise InputError(
                f"two models of a kind are called {served.name}: a folder is, by the last part of its path"
            )
        self._served[served.kind, served.name] = served

    def _writer(self, spec: str, attend: str | None, draft: str | None) -> Writer:
        from broadsheet.teacher import local

        if attend and draft:
            raise InputError("got --attend and --draft; a method's cache cannot drop rejected tokens: give one of them")
        made = local.load(spec, **self._load)
        about: dict[str, Any] = {}
        way: dict[str, Any] = {}
        if attend:
            from broadsheet.attend import Attention

            method: Attention = _called(attend, "--attend", "attend", Attention)
            method.install(made.model)
            about["attend"] = call_of(method)
            way["read_tokens"] = None  # it sees a prompt whole, as in its paper
        if draft:
            from broadsheet.serve.drafting import Drafting

            way["ahead"] = Drafting(made.reader, _drafter(draft, made.tokenizer))
            way["ahead"].warm_up()
            about["draft"] = draft
        name = _name(spec)
        return Writer(name, "chat", Engine(name, made.reader, **way), about, made)

    def _encoder(self, spec: str) -> Encoder:
        from broadsheet.embed.base import load

        name = _name(spec)
        return Encoder(name, "embed", Engine(name), {}, load(spec, **self._load))

    def _ranker(self, spec: str) -> Ranker:
        from broadsheet.rank.base import ListwiseReranker

        name = _name(spec)
        return Ranker(name, "rank", Engine(name), {}, ListwiseReranker.load(spec, **self._load))

    def _checker(self, spec: str, model: str) -> Checker:
        from broadsheet.detect.base import Detector

        made: Detector = _called(spec, "--detector", "detect", Detector, model=model, device=self._load["device"])
        made.reader  # noqa: B018 - loads the model now
        name = type(made).__name__.lower()
        [call] = parse_calls(spec, "--detector")
        given = ", ".join(f"{field}={value!r}" for field, value in call.options.items())
        return Checker(name, "detect", Engine(name), {"detector": f"{type(made).__name__}({given})"}, made)


def _name(spec: str) -> str:
    """What a model is called: a path by its last part, all else as it is given."""
    return Path(spec).name if Path(spec).expanduser().exists() else spec


def _drafter(spec: str, tokenizer: Any) -> TableDrafter:
    """The drafter that is named; its `table` is a file, as `apply aded` makes it.

    Raises:
        InputError: there is none of that name, or the table is none of this tokenizer's.
    """
    from broadsheet.decode import TrigramTable
    from broadsheet.decode.table_drafter import TableDrafter

    made: TableDrafter = _called(spec, "--draft", "decode", TableDrafter)
    if isinstance(made.table, str):
        made.table = TrigramTable.load(Path(made.table).expanduser(), tokenizer)
    return made


def _called(spec: str, option: str, stage: str, kind: Any, **fields: Any) -> Any:
    """The method of a stage that is named, with its fields.

    Raises:
        InputError: there is none, several are named, or a field does not exist.
    """
    calls = parse_calls(spec, option)
    known = [each for each in papers.stage_methods(stage).values() if issubclass(each, kind)]
    if stage == "detect":
        from broadsheet.detect.baselines import BASELINES

        known += BASELINES.values()
    if stage == "decode":
        from broadsheet.decode import NgramDrafter

        known.append(NgramDrafter)
    found = [each for each in known if len(calls) == 1 and plain(calls[0].name) in names_of(each)]
    if not found:
        raise InputError(f"got {option} {spec}; expected one of {', '.join(map(signature, known))}")
    return found[0](**settings(found[0], calls[0], **fields))

"""The rows that stages share: what `rows.read` makes of a line, and the names that each column may have.

Knows: columns. Does not know: files, models. A schema that one stage alone needs is in that stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from broadsheet.data.rows import column

QUERY = ("query", "anchor", "question", "sentence1")
POSITIVE = ("positive", "document", "passage", "answer", "sentence2")


@dataclass(frozen=True)
class Pair:
    """A query, the passage that is right for it, and wrong ones: to train embedders.

    `negatives` may be a list or a text, and `negative_1`, `negative_2`, … are columns of their own.
    """

    query: str = column(*QUERY, "text")
    positive: str = column(*POSITIVE)
    negatives: tuple[str, ...] = column("negatives", "negative", prefix="negative_", default=())


@dataclass(frozen=True)
class SentencePair:
    """Two sentences and how alike people find them, on any increasing scale: STS-B, SICK and the like.

    A table without names in its first line has the columns score, sentence, sentence.
    """

    a: str = column("sentence1", "sentence_1", "sentence_a", "text1", "source1", "anchor", "a")
    b: str = column("sentence2", "sentence_2", "sentence_b", "text2", "source2", "positive", "b")
    score: float = column("score", "similarity", "similarity_score", "relatedness_score", "label", "gold", "rating")

    LAYOUTS: ClassVar[Mapping[int, Sequence[str]]] = {3: ("score", "sentence1", "sentence2")}


@dataclass(frozen=True)
class Ranked:
    """A query and its documents with their order or their relevance: to train and label rerankers.

    `documents` holds texts, or objects with `text` and perhaps `title`; `labels` a number for each, more being better;
    `ranking` positions in `documents` from 0, best first, which goes before the labels.
    """

    query: str = column("query", "question")
    documents: tuple[Any, ...] = column("documents", "passages")
    labels: tuple[float, ...] | None = column("labels", default=None)
    ranking: tuple[int, ...] | None = column("ranking", default=None)

    def __post_init__(self) -> None:
        n = len(self.documents)
        if n < 2:
            raise ValueError(f"{n} documents; expected a list of at least two")
        if self.labels is None and self.ranking is None:
            raise ValueError("neither ranking nor labels; expected one of them")
        if self.labels is not None and len(self.labels) != n:
            raise ValueError(f"{len(self.labels)} labels; expected {n} finite numbers, one a document")
        if self.ranking is not None and (
            not self.ranking or len(set(self.ranking)) < len(self.ranking) or not set(self.ranking) <= set(range(n))
        ):
            raise ValueError(f"a ranking that does not fit; expected indices 0 to {n - 1}, best first, each once")


@dataclass(frozen=True)
class Judgement:
    """How relevant a document is to a query: a line of qrels. A table without names has these three columns."""

    query: str = column("query-id", "query_id", "qid", "query", kind="text")
    document: str = column("corpus-id", "corpus_id", "docid", "doc_id", "document", kind="text")
    relevance: int = column("score", "relevance", "rel", "label")

    LAYOUTS: ClassVar[Mapping[int, Sequence[str]]] = {3: ("query-id", "corpus-id", "score")}


@dataclass(frozen=True)
class Labelled:
    """A text and its class: to train and test classifiers. Numbers are labels too, as texts."""

    text: str = column("text", "sentence", "content")
    label: str = column("label", "class", "category", kind="text")


@dataclass(frozen=True)
class Instruction:
    """What a model is asked, perhaps with an input, and what it shall say: to tune it, or to prompt with."""

    instruction: str = column("instruction", "prompt", "question")
    output: str = column("output", "response", "completion", "answer")
    input: str = column("input", "context", default="")


@dataclass(frozen=True)
class Interaction:
    """That a user took an item, when, and how much they liked it: for recommenders. RecBole's names are known."""

    user: str = column("user", "user_id", "user_id:token", kind="text")
    item: str = column("item", "item_id", "item_id:token", kind="text")
    time: float = column("time", "timestamp", "timestamp:float", default=0.0)
    rating: float = column("rating", "rating:float", default=1.0)


@dataclass(frozen=True)
class Spans:
    """A text and what is marked in it: objects with `start`, `end` (characters, the end excluded) and `label`."""

    text: str = column("text", "sentence")
    spans: tuple[dict[str, Any], ...] = column("spans", "entities", default=())

    def __post_init__(self) -> None:
        for span in self.spans:
            start, end = span.get("start"), span.get("end")
            if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(self.text)):
                raise ValueError(f"a span that is not in the text; expected start and end from 0 to {len(self.text)}")


@dataclass(frozen=True)
class Parallel:
    """A text and its translation."""

    source: str = column("source", "src", "source_text")
    target: str = column("target", "tgt", "target_text")


@dataclass(frozen=True)
class AudioQA:
    """Clips, what is asked about them, and what is to be answered.

    Args:
        task: names the pool that an instruction is drawn from.
        audio: paths of the clips, in the prompt's order; relative ones are looked for beside the file of rows.
        answer: empty where that is still to be found.
        instruction: what is asked; empty to draw one.
        more: further columns.
    """

    task: str = column(default="")
    audio: tuple[str, ...] = column(kind="path", default=())
    answer: str = column(default="")
    instruction: str = column(default="")
    more: dict[str, Any] = column(kind="rest", compare=False)

    def __post_init__(self) -> None:
        if not self.audio:
            raise ValueError("no audio; expected a path, or a list of them")
        if not (self.task or self.instruction):
            raise ValueError("neither task nor instruction")


@dataclass(frozen=True)
class Captioned:
    """A picture and what it shows; a relative path is looked for beside the file of rows."""

    image: str = column("image", "image_path", "file_name", kind="path")
    caption: str = column("caption", "text")

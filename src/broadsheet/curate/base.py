"""The socket of the stage: datatrove steps that take documents in batches, and say what they did to each and why.

Knows: documents, decisions, reasons. Does not know: any rule, files, executors.

    steps = [CorpusReader("corpus.jsonl"), MyFilter(), ShardWriter("clean")]
    LocalPipelineExecutor(steps, tasks=2).run()  # or datatrove's executors on Slurm and Ray: the steps are the same
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result

Decision = bool | tuple[bool, str]


class Step(BaseFilter):
    """A pipeline step. A subclass gives `decide`; it may change the documents that it is given.

    It is a datatrove filter: it takes an `exclusion_writer`, and counts under datatrove's names: `total`, `forwarded`,
    `dropped`, `dropped_WHY`; here also `changed` and `changed_WHAT`.

    Args:
        exclusion_writer: gets the documents that are dropped, and those changed; their `metadata["filter_reason"]`
            says why.
        batch_size: documents that `decide` gets at once.
    """

    def __init__(self, exclusion_writer: Any = None, batch_size: int = 256) -> None:
        super().__init__(exclusion_writer, batch_size)

    @abstractmethod
    def decide(self, documents: list[Document]) -> Sequence[Decision]:
        """What becomes of each: True, kept; (True, what), kept and changed in that way; (False, why), dropped.

        A decision depends on its document alone, not on those beside it.
        """

    def filter(self, doc: Document) -> Decision:
        return self.decide([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[Decision]:
        return list(self.decide(batch))

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with self.exclusion_writer or nullcontext() as told:
            for batch in batches(data, self.batch_size):
                with self.track_time("batch"):
                    decisions = self.decide(batch)
                counts: Counter[str] = Counter(total=len(batch))
                kept = []
                for document, decision in zip(batch, decisions, strict=True):
                    stays, reason = get_filter_result(decision)
                    word = "forwarded" if stays else "dropped"
                    counts.update([word, "changed", f"changed_{reason}"] if stays and reason else [word])
                    if not stays:
                        counts.update([f"dropped_{reason}"] if reason else [])
                    if told is not None and (reason or not stays):
                        document.metadata["filter_reason"] = reason or "dropped"
                        told.write(document, rank)
                        del document.metadata["filter_reason"]
                    if stays:
                        kept.append(document)
                for label, count in counts.items():
                    self.stat_update(label, value=count)
                yield from kept


def batches(documents: Iterable[Document], size: int, characters: float = math.inf) -> Iterator[list[Document]]:
    """Documents, so many at once; fewer where their texts come to so many characters."""
    batch: list[Document] = []
    length = 0
    for document in documents:
        batch.append(document)
        length += len(document.text)
        if len(batch) == size or length >= characters:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch

"""CLEAR as datatrove steps: a pass that scores, whose ranks write their statistics; a pass that filters by the median.

Knows: documents whose metadata holds a row to fine-tune on, ranks. Does not know: what confidence is.

    clear = Clear("org/model", nli="org/some-mnli")
    first = [ExchangeReader("rows.jsonl"), ClearScores(clear, "work/scores"), ShardWriter("work/scored")]
    second = [ShardReader("work/scored"), ClearFilter(clear, "work/scores", ranks=4), ShardWriter("kept")]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from broadsheet.curate.base import Decision, Step, batches
from broadsheet.curate.clear import COLUMNS, CORRECTED, DROPPED, Clear, as_columns, auto_filter
from broadsheet.curate.files import parts, write_part
from broadsheet.curate.targets.exchanges import ROW, Exchange

DOUBTED = "doubted"


class ClearScores(PipelineStep):
    """The first pass: each document gets its confidence, and each rank writes all of its own as statistics.

    Args:
        clear: the method; by names of models, where there are several processes.
        folder: for the statistics, a file a rank.
        batch_size: documents that are scored at once.
    """

    type = "📊 - STATS"
    name = "confidence"

    def __init__(self, clear: Clear, folder: str | Path, batch_size: int = 256) -> None:
        super().__init__()
        self.clear, self.folder, self.batch_size = clear, Path(folder), batch_size

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        seen: list[float] = []
        for batch in batches(data, self.batch_size):
            with self.track_time("batch"):
                scores = self.clear.score([Exchange(document.metadata[ROW]) for document in batch])
            for document, columns in zip(batch, as_columns(scores, [""] * len(batch)), strict=True):
                document.metadata |= columns
            seen += scores.confidence.tolist()
            self.stat_update("total", value=len(batch))
            yield from batch
        write_part(self.folder, rank, seen)


def threshold(clear: Clear, folder: str | Path, ranks: int) -> float:
    """γ by the statistics of all ranks: of the median, that of all rows, however many ranks wrote them.

    Raises:
        InputError: a rank's are missing.
    """
    return auto_filter(
        np.concatenate([np.asarray(part, dtype=np.float64) for part in parts(folder, ranks)]), clear.filter
    )[0]


class ClearFilter(Step):
    """The second pass: what the model doubts is dropped, or corrected.

    Args:
        clear, folder: those of the first pass.
        ranks: that wrote the statistics.
        tuned: proposes answers, as in `Clear.fit_transform`; a name, where there are several processes.
        drop: False passes on what is doubted, too, with its action.
        exclusion_writer, batch_size: as in `Step`.
    """

    name = "CLEAR"

    def __init__(
        self,
        clear: Clear,
        folder: str | Path,
        ranks: int,
        tuned: Any = None,
        drop: bool = True,
        exclusion_writer: Any = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__(exclusion_writer, batch_size)
        self.clear, self.folder, self.ranks, self.tuned, self.drop = clear, Path(folder), ranks, tuned, drop

    @cached_property
    def threshold(self) -> float:
        """γ, read when the first document comes."""
        return threshold(self.clear, self.folder, self.ranks)

    def decide(self, documents: list[Document]) -> list[Decision]:
        asked = [Exchange(document.metadata[ROW]) for document in documents]
        confidence = np.array([document.metadata[COLUMNS[0]] for document in documents], dtype=np.float64)
        actions, targets = self.clear.act(asked, confidence, self.tuned, self.threshold)
        found: list[Decision] = []
        for document, each, action, target in zip(documents, asked, actions, targets, strict=True):
            document.metadata[COLUMNS[-1]] = action
            if action == CORRECTED:
                document.text, document.metadata[ROW] = target, each.answered(target)
            doubted = action == DROPPED
            found.append((not self.drop, DOUBTED) if doubted else (True, CORRECTED) if action == CORRECTED else True)
        return found

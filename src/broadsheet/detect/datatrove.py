"""A detector as a datatrove filter: documents that look machine-written are dropped, and counted as such.

Needs `datatrove` (`pip install -e '.[curate]'`); runs on its local, Slurm and Ray executors.
"""

from __future__ import annotations

import math

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.writers.disk_base import DiskWriter

from broadsheet.detect.base import Detector


class DetectorFilter(BaseFilter):
    """Keep documents whose score lies below a threshold; the score is kept as `metadata["machine_score"]`.

    Documents too short to be scored are kept.

    Args:
        detector: any detector of this stage; it loads its model in the worker, on first use.
        threshold: drop at this score and above. Choose it on labelled texts of your own: no threshold of a paper
            carries over to another model.
        exclusion_writer: where dropped documents go, as in every datatrove filter.
        batch_size: documents scored in one batch.

    Example:
        >>> DetectorFilter(LastdePP(), threshold=4.0)  # doctest: +SKIP
    """

    name = "🤖 Machine-written text"

    def __init__(
        self,
        detector: Detector,
        threshold: float,
        exclusion_writer: DiskWriter | None = None,
        batch_size: int = 64,
    ):
        super().__init__(exclusion_writer, batch_size)
        self.detector = detector
        self.threshold = threshold

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        return self.filter_batch([doc])[0]

    def filter_batch(self, batch: list[Document]) -> list[bool | tuple[bool, str]]:
        decisions: list[bool | tuple[bool, str]] = []
        for document, score in zip(batch, self.detector.score([document.text for document in batch]), strict=True):
            if math.isnan(score):
                decisions.append(True)
                continue
            document.metadata["machine_score"] = float(score)
            decisions.append(True if score < self.threshold else (False, "machine_written"))
        return decisions

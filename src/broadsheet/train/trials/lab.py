"""The laboratory of this stage: what its trials train by is a `LossMethod`.

Knows: methods. Does not know: texts, rows, rates (`training.laboratory`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from broadsheet.train.base import LossMethod, MethodObjective
from broadsheet.trial.trained.laboratory import Laboratory


@dataclass
class LabTrial(Laboratory):
    """The base of trials of ways to train."""

    def objective(self, method: LossMethod | None, watched: Any = None) -> MethodObjective:
        return MethodObjective(method or LossMethod(), watched)

"""`broadsheet apply` for detectors: a score for each document of a corpus, as it streams.

Knows: detectors by name, documents. Resuming is `apply`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from broadsheet import models
from broadsheet.apply.base import Map
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.corpora import Document
from broadsheet.detect.base import Detector
from broadsheet.detect.baselines import BASELINES
from broadsheet.methods import names_of, plain
from broadsheet.options import option
from broadsheet.page import papers


@dataclass
class DetectRecipe(Map):
    """Write `{"id", "score"}` for each document; higher = more machine-like, null where a text is too short.

    The detector is the paper's last one (`lastdepp` for `lastde`) unless --method names another of the paper;
    `broadsheet apply detect` offers every detector of the stage, those that papers compare with too.
    """

    stage: ClassVar[str] = "detect"

    reference: str | None = option(
        None, "A second model with the same tokenizer, for the detectors that use one.", metavar="MODEL"
    )
    calibrate: str | None = option(
        None,
        "Documents with a field `label` (1 = machine-written); each line then also has `probability`.",
        metavar="FILE",
    )

    def prepare(self) -> None:
        """Load the detector, and calibrate it."""
        self.detector_ = self._detector()
        if self.calibrate:
            self.detector_.fit(*_labelled(self.calibrate))

    def settings(self) -> dict[str, Any]:
        return {
            "detector": repr(self.detector_),
            "model": models.fingerprint(self.detector_.reader.model),
            "calibrate": corpora.load(self.calibrate).fingerprint() if self.calibrate else "",
        }

    def results(self, documents: list[Document]) -> Sequence[dict[str, Any]]:
        """`score`, and with `--calibrate` also `probability`."""
        scores = self.detector_.score([document.text for document in documents])
        if not self.calibrate:
            return [{"score": float(score)} for score in scores]
        probabilities = self.detector_.to_probability(scores)[:, 1]
        pairs = zip(scores, probabilities, strict=True)
        return [{"score": float(score), "probability": float(probability)} for score, probability in pairs]

    def _detector(self) -> Detector:
        """The detector that `--method` names, with its fields; by default the paper's last one.

        Raises:
            InputError: the paper, or the stage, has no detector of that name.
        """
        offered = [kind for kind in papers.stage_methods(self.stage).values() if self.of_tried_paper(kind)]
        offered += BASELINES.values() if self.tried == self.stage else []
        called = ", ".join(each.__name__ for each in offered)
        kind = offered[-1]
        if self.calls:
            named = [each for each in offered if plain(self.calls[0].name) in names_of(each)]
            if not named or len(self.calls) > 1:
                raise InputError(f"got --method {self.method}; expected one of {called}")
            kind = named[0]
        elif self.tried == self.stage:
            raise InputError(f"apply {self.stage} needs --method: one of {called}")
        dtype = self.dtype or "float32"  # scores are differences of log-probabilities
        made: Detector = self.configured(
            kind, model=self.model, reference=self.reference, device=self.device, dtype=dtype, seed=self.seed
        )
        return made


def _labelled(path: str) -> tuple[list[str], list[int]]:
    """Texts and labels of a calibration file."""
    texts, labels = [], []
    for document in corpora.load(path):
        label = document.metadata.get("label")
        if label not in (0, 1):
            raise InputError(f"{path}: document {document.id} has label {label!r}; expected a field `label` of 0 or 1")
        texts.append(document.text)
        labels.append(int(label))
    return texts, labels

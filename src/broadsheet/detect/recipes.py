"""Score a corpus with a detector: one JSON line a document, as it streams.

Knows: the stage's detectors by name, documents. Resuming is `apply`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broadsheet import models
from broadsheet.apply.corpus import Summary, map_corpus
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.corpora import Corpus, Document
from broadsheet.detect.base import Detector
from broadsheet.detect.curvature import Binoculars, FastDetectGPT
from broadsheet.detect.lastde import Lastde, LastdePP
from broadsheet.detect.likelihood import LRR, Entropy, Likelihood, LogRank, Rank
from broadsheet.detect.resampling import DNAGPT, NPR, DetectGPT

DETECTORS: dict[str, type[Detector]] = {
    "likelihood": Likelihood,
    "rank": Rank,
    "logrank": LogRank,
    "entropy": Entropy,
    "lrr": LRR,
    "fast-detectgpt": FastDetectGPT,
    "binoculars": Binoculars,
    "lastde": Lastde,
    "lastde++": LastdePP,
    "detectgpt": DetectGPT,
    "npr": NPR,
    "dna-gpt": DNAGPT,
}


@dataclass
class ScoreCorpus:
    """Write `{"id", "score"}` for each document; higher = more machine-like, null where a text is too short.

    Options:
        --detector NAME: likelihood, rank, logrank, entropy, lrr, fast-detectgpt, binoculars, lastde, lastde++ (the
            default), detectgpt, npr, dna-gpt.
        --reference MODEL: a second model with the same tokenizer, for the detectors that use one.
        --calibrate FILE: documents with a field `label` (1 = machine-written); each line then also has `probability`.
        --batch N: documents read at once (64).
        --device NAME, --dtype NAME: as in models.load; float32 by default.
        --seed N: of the samples (0).
    """

    method: str = "lastde"
    model: str = "default"
    detector: str = "lastde++"
    reference: str = ""
    calibrate: str = ""
    batch: int = 64
    device: str = ""
    dtype: str = "float32"
    seed: int = 0

    def run(self, corpus: Corpus, out: Path, *, force: bool = False) -> Summary:
        """Score `corpus` into `out`, going on where a killed run stopped.

        Raises:
            InputError: an unknown detector, a calibration file without labels, or what `map_corpus` refuses.
        """
        if self.detector.lower() not in DETECTORS:
            raise InputError(f"no detector {self.detector!r}; expected one of {', '.join(DETECTORS)}")
        if self.batch < 1:
            raise InputError(f"got --batch {self.batch}; expected at least 1")
        detector = DETECTORS[self.detector.lower()](
            model=self.model,
            reference=self.reference or None,
            device=self.device or None,
            dtype=self.dtype,
            seed=self.seed,
        )
        if self.calibrate:
            detector.fit(*_labelled(self.calibrate))
        settings = {
            "detector": repr(detector),
            "model": models.fingerprint(detector.reader.model),
            "calibrate": corpora.load(self.calibrate).fingerprint() if self.calibrate else "",
        }

        def score(documents: list[Document]) -> list[dict[str, Any]]:
            scores = detector.score([document.text for document in documents])
            if not self.calibrate:
                return [{"score": float(score)} for score in scores]
            probabilities = detector.to_probability(scores)[:, 1]
            pairs = zip(scores, probabilities, strict=True)
            return [{"score": float(score), "probability": float(probability)} for score, probability in pairs]

        return map_corpus(corpus, out, score, batch_size=self.batch, settings=settings, force=force)


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

"""The socket of the stage: a detector turns texts into scores, higher meaning more likely machine-written.

Knows: token scores of texts, calibration on labelled scores. Does not know: any one statistic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broadsheet.console import InputError, say
from broadsheet.detect.reading import Need, Reader, TokenScores, read_logits

Scores = NDArray[np.float64]

# Texts whose token scores are in memory together: with 100 samples per token, 200 tokens take 160 kB.
_CHUNK = 256


@dataclass
class Detector(ABC):
    """Scores texts with a causal LM. A method is a subclass whose fields are the paper's hyperparameters.

    Args:
        model: what `models.load` takes (`"default"`, a hub id, a folder, a .gguf file), or a loaded (model, tokenizer).
        reference: a second model with the same tokenizer, whose predictions the text is compared with or resampled
            from; by default the model itself. Methods that use none ignore it.
        device, dtype: as in `models.load`; float32 by default, because the statistics are differences of
            log-probabilities.
        seed: of samples. A text's samples depend on the seed and the text, not on the other texts.

    Attributes:
        needs: what its readings must hold.
        title: as it is printed, where that is not the class's name.
        beats: the detector that its paper says it beats, as printed; empty where there is no such claim.
        beats_by: by how much its paper's AUROC is higher where the scoring model wrote the texts, and where another
            one did; None where unknown.
        variants: further settings that its paper tries, name → fields.
        calibration_: after `fit`, the scikit-learn `LogisticRegression` on the score.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    title: ClassVar[str] = ""
    beats: ClassVar[str] = ""
    beats_by: ClassVar[tuple[float | None, float | None]] = (None, None)
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    model: Any = field(default="default", kw_only=True)
    reference: Any = field(default=None, kw_only=True)
    device: str | None = field(default=None, kw_only=True)
    dtype: str = field(default="float32", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    @property
    def n_samples(self) -> int:
        """Samples per position that the token scores must hold."""
        return 0

    @property
    def reader(self) -> Reader:
        """The model, loaded on first use and kept."""
        if getattr(self, "_reader", None) is None:
            self._reader = Reader(self.model, self.reference, device=self.device, dtype=self.dtype)
        return self._reader

    def score(self, texts: Sequence[str]) -> Scores:
        """Scores of `texts`: (len(texts),) float64, higher = more machine-like.

        A text too short for the method (empty, one token) gets NaN; their number is reported.

        Raises:
            InputError: `texts` is a single string, or holds something else than strings.
        """
        name = type(self).__name__
        return score_all({name: self}, texts, self.reader)[name]

    @abstractmethod
    def score_readings(self, texts: Sequence[str], readings: Sequence[TokenScores], reader: Reader) -> Scores:
        """Scores from token scores that hold `needs`, NaN where a text is too short. `reader` reads further texts."""

    def fit(self, texts: Sequence[str], labels: Sequence[int]) -> Self:
        """Calibrate the score to a probability on labelled texts (1 = machine-written), by logistic regression.

        Texts of one length calibrate best: several statistics move with length.

        Raises:
            InputError: the labels are not 0/1, or one of the classes is missing.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        target = np.asarray(labels)
        if len(target) != len(texts) or set(np.unique(target)) != {0, 1}:
            found = sorted(set(target.tolist()))[:5]
            raise InputError(
                f"got {len(target)} labels {found} for {len(texts)} texts; expected 0 and 1, both present, one a text"
            )
        scores = self.score(texts)
        usable = np.isfinite(scores)
        if set(np.unique(target[usable])) != {0, 1}:
            raise InputError("no finite score in one of the classes: the texts are too short to calibrate on")
        self.calibration_ = make_pipeline(StandardScaler(), LogisticRegression())
        self.calibration_.fit(scores[usable, None], target[usable])
        return self

    def predict_proba(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(len(texts), 2) probabilities of human and machine; a row is NaN where the score is.

        Raises:
            InputError: called before `fit`.
        """
        return self.to_probability(self.score(texts))

    def to_probability(self, scores: Scores) -> NDArray[np.float64]:
        """Probabilities, as `predict_proba` returns them, of scores computed before.

        Raises:
            InputError: called before `fit`.
        """
        if not hasattr(self, "calibration_"):
            raise InputError("not calibrated: call fit(texts, labels) before asking for probabilities")
        # ±inf is a score beyond every finite one: the logistic curve has levelled off long before 1e12.
        finite = np.clip(np.nan_to_num(scores, nan=0.0), -1e12, 1e12)
        probabilities = self.calibration_.predict_proba(finite[:, None])
        probabilities[np.isnan(scores)] = np.nan
        return probabilities


@dataclass
class OnePassDetector(Detector):
    """A detector whose score is a statistic of the text's own token scores: one forward pass, shared by all methods."""

    @abstractmethod
    def statistic(self, reading: TokenScores) -> float:
        """The score of one text from its token scores, at least `min_tokens` of them."""

    @property
    def min_tokens(self) -> int:
        """The fewest scored tokens that the statistic is defined for (a text's first token has no score)."""
        return 1

    def score_readings(self, texts: Sequence[str], readings: Sequence[TokenScores], reader: Reader) -> Scores:
        scores = np.full(len(texts), np.nan)
        for i, reading in enumerate(readings):
            if len(reading) >= self.min_tokens:
                scores[i] = self.statistic(reading)
        return scores

    def scores_from_logits(self, logits: Tensor, labels: Tensor, ref_logits: Tensor | None = None) -> float:
        """The score of one text from logits (n, vocabulary) that predict `labels` (n,), without a model."""
        generator = torch.Generator().manual_seed(self.seed)
        reading = read_logits(
            logits, labels, ref_logits, needs=self.needs, n_samples=self.n_samples, generator=generator
        )
        return self.statistic(reading)


def score_all(detectors: Mapping[str, Detector], texts: Sequence[str], reader: Reader) -> dict[str, Scores]:
    """Scores of several detectors from one shared forward pass over each text.

    Args:
        detectors: name → detector; their own `model` and `reference` are not loaded, `reader` serves them all.
            Detectors that sample must have the same seed.

    Raises:
        InputError: `texts` is a single string, or holds something else than strings; or the detectors disagree.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError("got something that is not a list of texts; expected score([text, …])")
    needs = frozenset().union(*(detector.needs for detector in detectors.values()))
    seeds = {detector.seed for detector in detectors.values() if "samples" in detector.needs}
    if len(seeds) > 1:
        raise InputError(
            f"got detectors with different seeds {sorted(seeds)}; one forward pass draws one set of samples"
        )
    n_samples = max(detector.n_samples for detector in detectors.values())
    seed = seeds.pop() if seeds else 0
    scores = {name: np.full(len(texts), np.nan) for name in detectors}
    for first in range(0, len(texts), _CHUNK):
        chunk = texts[first : first + _CHUNK]
        readings = reader.read(chunk, needs, n_samples=n_samples, seed=seed)
        for name, detector in detectors.items():
            scores[name][first : first + _CHUNK] = detector.score_readings(chunk, readings, reader)
    for name, values in scores.items():
        if missing := int(np.isnan(values).sum()):
            say(f"{missing} of {len(texts)} texts are too short for {name}: no score (NaN)")
    return scores


def standard_score(value: float, samples: Tensor, *, unbiased: bool = True) -> float:
    """(value − mean) / std of the finite samples; divided by 1 when they do not vary or fewer than two are left."""
    finite = samples[samples.isfinite()]
    if len(finite) == 0:
        return 0.0
    spread = float(finite.std(unbiased=unbiased)) if len(finite) > 1 else 0.0
    return (value - float(finite.mean())) / (spread or 1.0)

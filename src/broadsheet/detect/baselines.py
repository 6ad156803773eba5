"""The detectors that papers compare with, by the name that is printed; the first is the plain baseline."""

from __future__ import annotations

from typing import Any

from broadsheet.detect.base import Detector
from broadsheet.detect.curvature import Binoculars, FastDetectGPT
from broadsheet.detect.likelihood import LRR, Entropy, Likelihood, LogRank, Rank
from broadsheet.detect.resampling import DNAGPT, NPR, DetectGPT

ONE_PASS: dict[str, type[Detector]] = {
    "Likelihood": Likelihood,
    "Rank": Rank,
    "LogRank": LogRank,
    "Entropy": Entropy,
    "LRR": LRR,
    "Fast-DetectGPT": FastDetectGPT,
    "Binoculars": Binoculars,
}
RESAMPLING: dict[str, Any] = {"DetectGPT": DetectGPT, "NPR": NPR, "DNA-GPT": DNAGPT}
BASELINES: dict[str, type[Detector]] = ONE_PASS | RESAMPLING

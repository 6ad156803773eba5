"""Detect: is this text machine-written? Every method is a `Detector` with `score(texts)`, higher = more machine-like.

They all share one forward pass of a causal LM, except `DetectGPT`, `NPR` and `DNAGPT`, which read variants of the text.
"""

from broadsheet.detect.base import Detector, OnePassDetector, score_all
from broadsheet.detect.curvature import Binoculars, FastDetectGPT
from broadsheet.detect.lastde import Lastde, LastdePP
from broadsheet.detect.likelihood import LRR, Entropy, Likelihood, LogRank, Rank
from broadsheet.detect.reading import Reader, TokenScores
from broadsheet.detect.resampling import DNAGPT, NPR, DetectGPT

__all__ = [
    "DNAGPT",
    "LRR",
    "NPR",
    "Binoculars",
    "DetectGPT",
    "Detector",
    "Entropy",
    "FastDetectGPT",
    "Lastde",
    "LastdePP",
    "Likelihood",
    "LogRank",
    "OnePassDetector",
    "Rank",
    "Reader",
    "TokenScores",
    "score_all",
]

"""Detect: is this text machine-written? Every method is a `Detector` with `score(texts)`, higher = more machine-like.

One forward pass of a causal LM serves all of them but `DetectGPT`, `NPR` and `DNAGPT`, which read variants of the text.
The papers' own detectors (`broadsheet papers --stage detect`) are found in their files; the parts are listed here.
"""

from broadsheet.page.discovery import Exports

_exports = Exports(
    __name__,
    {
        "base": ("Detector", "OnePassDetector", "score_all"),
        "curvature": ("Binoculars", "FastDetectGPT"),
        "likelihood": ("LRR", "Entropy", "Likelihood", "LogRank", "Rank"),
        "reading": ("Reader", "TokenScores"),
        "resampling": ("DNAGPT", "NPR", "DetectGPT"),
    },
)
__all__ = _exports.names
__getattr__ = _exports.get

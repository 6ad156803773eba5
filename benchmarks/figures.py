"""Figures that the benchmarks share: intervals of ratios in turns.

Knows: numbers. Does not know: what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from broadsheet.trial.stats import interval


def ends(values: Sequence[float]) -> list[float]:
    """The mean and the ends of its 95 % interval."""
    found = interval(values, binary=False)
    return [found.estimate, found.low, found.high]


def ratio(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """The geometric mean of ratios in pairs, with its interval."""
    return [float(np.exp(each)) for each in ends(np.log(np.array(values) / np.array(others)))]


def told(found: Sequence[float], digits: int = 2) -> str:
    """A figure with its interval, as it is printed."""
    return f"{found[0]:,.{digits}f} [{found[1]:,.{digits}f}, {found[2]:,.{digits}f}]"

"""Thresholds of one language carried over to another: English's, the same place, the same share, a tail (FineWeb2).

Knows: values of a measure over documents, of English and of another language. Does not know: measures, filters.

A threshold is a least value, below which a document is dropped, or a greatest one, above which it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from broadsheet.console import InputError

Method = Literal["English", "MeanStd", "Quantile", "10Tail", "MedianRatio"]
TAIL = 0.1  # of documents, that 10Tail removes


@dataclass(frozen=True)
class ValueCounts:
    """The values that documents have, each with how many have it.

    Args:
        values: in rising order, each once.
        counts: of documents.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: Iterable[float]) -> ValueCounts:
        """That of a value for each document."""
        return cls(*np.unique(np.asarray(list(values), float), return_counts=True))

    @classmethod
    def counted(cls, counts: Mapping[str, int]) -> ValueCounts:
        """That of a JSON object, value to documents."""
        pairs = sorted((float(value), count) for value, count in counts.items())
        return cls(np.array([value for value, _ in pairs]), np.array([count for _, count in pairs], np.int64))

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Over documents."""
        return float(np.average(self.values, weights=self.counts))

    @property
    def std(self) -> float:
        """The standard deviation of these documents, not of a population that they are from."""
        return float(np.sqrt(np.average((self.values - self.mean) ** 2, weights=self.counts)))

    @property
    def median(self) -> float:
        """Over documents."""
        return self.quantile(0.5)

    def quantile(self, share: float) -> float:
        """The value with that share of documents below it, in a line between two documents."""
        last = np.cumsum(self.counts) - 1  # the place of the last document of each value
        first = last - self.counts + 1
        places = np.stack([first, last], 1).ravel()
        return float(np.interp(share * (len(self) - 1), places, np.repeat(self.values, 2)))

    def share(self, value: float) -> float:
        """The inverse of `quantile`: the share of documents below a value."""
        last = np.cumsum(self.counts) - 1
        middle = last - (self.counts - 1) / 2
        at = np.searchsorted(self.values, value)
        if at < len(self.values) and self.values[at] == value:
            return float(middle[at] / max(1, len(self) - 1))
        if at in (0, len(self.values)):
            return float(at > 0)
        low, high = self.values[at - 1], self.values[at]
        place = last[at - 1] + (value - low) / (high - low)
        return float(place / max(1, len(self) - 1))


def adapt(method: Method, english: ValueCounts, target: ValueCounts, threshold: float, least: bool = False) -> float:
    """English's threshold on a measure, for another language.

    Args:
        method: "English": as it is. "MeanStd": as many standard deviations from the mean. "Quantile": with the same
            share of documents beyond it. "10Tail": with a tenth of the language's documents beyond it. "MedianRatio":
            in the same ratio to the median.
        english, target: the measure over documents of the reference, in English and in the language.
        threshold: English's.
        least: the threshold is a least value.

    Raises:
        InputError: a reference has no documents, or English's do not differ where the method divides by that.
    """
    if not len(target) or (not len(english) and method not in ("English", "10Tail")):
        raise InputError("got a reference without documents; expected some of English, and some of the language")
    match method:
        case "English":
            return threshold
        case "MeanStd":
            if not english.std:
                raise InputError("got English documents that are all alike; expected ones that differ")
            return target.mean + (threshold - english.mean) / english.std * target.std
        case "Quantile":
            low, high = english.values[0], english.values[-1]
            if threshold < low:  # nothing is beyond it: as far beyond
                return float(target.values[0] + threshold - low)
            if threshold > high:
                return float(target.values[-1] + threshold - high)
            return target.quantile(english.share(threshold))
        case "10Tail":
            return target.quantile(TAIL if least else 1 - TAIL)
        case "MedianRatio":
            if not english.median:
                raise InputError("got English documents with a median of 0; expected another")
            return threshold * target.median / english.median
    raise InputError(f"got the method {method!r}; expected English, MeanStd, Quantile, 10Tail or MedianRatio")


def confidence(scores: ValueCounts, low: float = 0.3, high: float = 0.9) -> float:
    """The score from which a document counts as of its language: max(low, min(high, median − std))."""
    return max(low, min(high, scores.median - scores.std))  # Sec. 3.1

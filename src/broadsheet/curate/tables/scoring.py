"""How right answers are: F1 with yes as the positive class, balanced accuracy, and values that are the same.

Knows: what was said and what is so. Does not know: tasks' wording, models.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def f1(values: Floats, weights: Floats) -> Floats:
    """F1 of yes, as scikit-learn's `f1_score` with weights; 0 where nothing is said or found.

    Args:
        values: (n, 2), what is so and what was said, 1 for yes.
        weights: (resamples, n).

    Returns:
        (resamples,)
    """
    so, said = values[:, 0], values[:, 1]
    right, of = weights @ (so * said), weights @ (so + said)
    return np.divide(2 * right, of, out=np.zeros_like(of), where=of > 0)


def balanced_accuracy(values: Floats, weights: Floats) -> Floats:
    """The mean of the shares of yes and of no that were told rightly; 0.5 for who always says the same.

    Args:
        values, weights: as in `f1`. A class that a resample lacks counts 0.5.
    """
    shares = []
    for kind in (1.0, 0.0):
        of_kind = (values[:, 0] == kind).astype(np.float64)
        right = weights @ (of_kind * (values[:, 1] == kind))
        total = weights @ of_kind
        shares.append(np.divide(right, total, out=np.full_like(total, 0.5), where=total > 0))
    found: Floats = np.mean(shares, axis=0)
    return found


def agreement(so: Sequence[bool], said: Sequence[bool]) -> dict[str, float]:
    """F1, accuracy and balanced accuracy of yes and no.

    Raises:
        ValueError: there are not as many of one as of the other, or none.

    Example:
        >>> agreement([True, False, False, False], [False, False, False, False])
        {'f1': 0.0, 'accuracy': 0.75, 'balanced_accuracy': 0.5}
    """
    if len(so) != len(said) or not len(so):
        raise ValueError(f"got {len(said)} answers to {len(so)} questions; expected as many, and one at least")
    values = np.array([so, said], dtype=np.float64).T
    ones = np.ones((1, len(values)))
    return {
        "f1": float(f1(values, ones)[0]),
        "accuracy": float((values[:, 0] == values[:, 1]).mean()),
        "balanced_accuracy": float(balanced_accuracy(values, ones)[0]),
    }


def same_value(so: str, said: str) -> bool:
    """Whether two values are the same but for case, white space, quotes around them and a full stop at the end."""
    return _plain(so) == _plain(said)


def _plain(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return text.strip("\"'").removesuffix(".").strip()


def imputed(so: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """The share of values that are the same to the letter, and by `same_value`.

    Raises:
        ValueError: as in `agreement`.
    """
    if len(so) != len(said) or not len(so):
        raise ValueError(f"got {len(said)} values for {len(so)} cells; expected as many, and one at least")
    both = list(zip(so, said, strict=True))
    return {
        "exact": sum(one == other for one, other in both) / len(both),
        "normalised": sum(same_value(one, other) for one, other in both) / len(both),
    }

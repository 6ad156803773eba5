"""When a method leads another implementation: it costs less there, and no quality is worse.

Knows: names and units of what is measured, what a comparison found. Does not know: trials, words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_COSTS = ("/s", "seconds", "bytes", "tokens", "MiB", "ms/token")
_UNITS = ("s", "ms", "s/query", "ms/token", "bytes", "MiB", "tokens")


class Found(NamedTuple):
    """What one comparison of a method with a peer found.

    Args:
        metric, unit: of a comparison.
        verdict: `"helps"`, `"hurts"` or another, of the method.
        no_worse: by the margin that was given; None without one.
    """

    metric: str
    unit: str
    verdict: str
    no_worse: bool | None


def is_cost(metric: str, unit: str = "") -> bool:
    """Whether it is time, memory or tokens, and no quality."""
    return metric.endswith(_COSTS) or unit in _UNITS


def leads(found: Iterable[Found]) -> bool:
    """Whether a method costs less than a peer in something, is no worse by a margin in a quality, and worse in none."""
    found = list(found)
    qualities = [each for each in found if not is_cost(each.metric, each.unit)]
    return (
        any(each.verdict == "helps" for each in found if each not in qualities)
        and any(each.no_worse for each in qualities)
        and not any(each.verdict == "hurts" for each in qualities)
    )

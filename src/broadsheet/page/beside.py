"""When a method leads another implementation: it costs less there, and no quality is found to be worse.

Knows: names and units of what is measured, what a comparison found. Does not know: trials, words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

Cost = Literal["time", "size"]
_TIMES = ("/s", "seconds", "ms/token", "s/query", "tokens per forward")
_SIZES = ("bytes", "tokens", "KB", "MB", "GB", "KiB", "MiB", "GiB")


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


def cost(metric: str, unit: str = "") -> Cost | None:
    """What kind of cost it is: time, or a size (memory, tokens); None: it is a quality.

    Of a metric of several tasks, what stands before the comma counts: `"tokens, gaps"`.
    """
    name = metric.partition(", ")[0]
    if name.endswith(_TIMES) or unit in ("s", "ms", "s/query", "ms/token"):
        return "time"
    return "size" if name.endswith(_SIZES) or unit in _SIZES else None


def of_methods(claimed: Sequence[str], methods: Sequence[str]) -> str:
    """The arm that stands for a method beside peers: the first of its arms that a claim names, else its first."""
    return next((arm for arm in claimed if arm in methods), next(iter(methods), ""))


def leads(found: Iterable[Found]) -> bool:
    """Whether a method costs less than a peer in something, is no worse by a margin in a quality, and in none is found
    worse but within its margin.
    """
    found = list(found)
    costs = [each for each in found if cost(each.metric, each.unit)]
    qualities = [each for each in found if not cost(each.metric, each.unit)]
    return (
        any(each.verdict == "helps" for each in costs)
        and any(each.no_worse for each in qualities)
        and not any(is_worse(each) for each in qualities)
    )


def is_worse(found: Found) -> bool:
    """Whether a quality is found worse, by more than a margin where one was given."""
    return found.verdict == "hurts" and not found.no_worse

"""Comparisons in words: the one line that may be quoted, and what chance alone would have called.

Knows: comparisons. Does not know: how they were made (`verdicts`), or where they are printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from broadsheet.trial.stats import CONFIDENCE, Interval
from broadsheet.trial.verdicts import Comparison


def sentence(comparison: Comparison) -> str:
    """A comparison as the one line that may be quoted: who, what, the verdict, by how much, how sure.

    Example:
        "AUROC: Lastde++ helps: +0.12 [+0.05, +0.19] against Likelihood (0.79 → 0.91)"
        "AUROC: no measurable difference between Entropy and Likelihood (could have seen ≥ 0.08): −0.01 [−0.06, +0.04]"
        "texts/s: Lastde++ hurts: 0.48× [0.44, 0.52] as fast as Likelihood"
    """
    c = comparison
    if c.verdict == "not measured":
        same = math.isfinite(c.difference.high) and c.difference.high - c.difference.low <= 1e-8 * abs(c.difference.low)
        why = "the same difference each time, which tells nothing of others" if same else f"n = {c.n}"
        return f"{c.metric}: {c.arm} against {c.baseline}: not measured ({why})"
    ratio = c.scale == "ratio"
    places = _places(c.difference, neutral=1.0 if ratio else 0.0)
    unit = "×" if ratio else f" {c.unit}" if c.unit else ""
    estimate, low, high = (
        _number(end, places, signed=not ratio) for end in (c.difference.estimate, c.difference.low, c.difference.high)
    )
    amount = f"{estimate}{unit} [{low}, {high}]"
    if c.verdict == "no measurable difference":
        seen = _sensitivity(c, places, unit)
        line = f"{c.metric}: no measurable difference between {c.arm} and {c.baseline} ({seen}): {amount}"
    else:
        values = ""
        if c.baseline_value is not None and c.arm_value is not None:
            places_of = [_places(Interval(v, v, v), 0) if ratio else places for v in (c.baseline_value, c.arm_value)]
            shown = [_number(v, p) for v, p in zip((c.baseline_value, c.arm_value), places_of, strict=True)]
            values = f" ({' → '.join(shown)})"
        beside = "of" if c.baseline_value is not None else "as fast as"
        line = f"{c.metric}: {c.arm} {c.verdict}: {amount} {beside if ratio else 'against'} {c.baseline}{values}"
    return line + margin_words(c)


def margin_words(c: Comparison) -> str:
    """What two one-sided tests say of the margin, and which items moved; empty without a margin.

    Example:
        "; no worse by more than 0.02 (8 % of items better, 5 % worse)"
    """
    if c.margin is None or c.no_worse is None:
        return ""
    size = f"{100 * c.margin:g} %" if c.scale == "ratio" else f"{c.margin:g}{f' {c.unit}' if c.unit else ''}"
    words = "equal within" if c.equivalent else "no worse by more than" if c.no_worse else "may be worse by more than"
    moved = ""
    if c.items and c.better is not None and c.worse is not None:
        moved = f" ({c.better / c.items:.0%} of items better, {c.worse / c.items:.0%} worse)".replace("%", " %")
    return f"; {words} {size}{moved}"


def multiplicity_warning(comparisons: Sequence[Comparison]) -> str:
    """What chance alone would have called, when several comparisons are read at once; empty for fewer than two.

    Example:
        "14 comparisons, 3 of them called helps or hurts; if nothing differed, chance alone would call about 0.7"
    """
    measured = [c for c in comparisons if c.verdict != "not measured"]
    if len(measured) < 2:
        return ""
    called = sum(c.verdict != "no measurable difference" for c in measured)
    chance = (1 - CONFIDENCE) * len(measured)
    return (
        f"{len(measured)} comparisons, {called} of them called helps or hurts; "
        f"if nothing differed, chance alone would call about {chance:.2g}"
    )


def _sensitivity(c: Comparison, places: int, unit: str) -> str:
    """What a "no measurable difference" was able to see."""
    d = c.difference
    if d.low == d.high:
        return f"equal in every resample of {c.n} {c.counted or 'items'}"
    if math.isinf(c.minimum_detectable_effect):
        return f"n = {c.n} is too few to see any"
    seen = f"could have seen ≥ {_number(c.minimum_detectable_effect, places)}{unit}"
    neutral = 1.0 if c.scale == "ratio" else 0.0
    return seen if d.low <= neutral <= d.high else f"{seen}; within the baseline's own noise"


def _places(interval: Interval, neutral: float) -> int:
    """Decimals that show the interval's width, and on which side of `neutral` it lies when it lies on one."""
    width = interval.high - interval.low
    if width <= 1e-9 * abs(interval.estimate):
        return 3
    smallest = width / 7  # two decimals for widths from 0.07 to 0.7
    if not interval.low <= neutral <= interval.high:
        smallest = min(smallest, abs(interval.low - neutral), abs(interval.high - neutral))
    return min(6, max(0, math.ceil(-math.log10(smallest))))


def _number(value: float, places: int, signed: bool = False) -> str:
    """`value` with a true minus sign, and no minus before a rounded zero."""
    return f"{round(value, places) + 0.0:{'+' if signed else ''}.{places}f}".replace("-", "−")

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
        "AUROC: Lastde is at chance (0.49, guessing 0.5): +0.12 [+0.05, +0.19] against Likelihood (0.37 → 0.49)"
        "identical output: ADED as greedy: 51 of 51"
    """
    c = comparison
    if c.verdict == "not measured":
        same = math.isfinite(c.difference.high) and c.difference.high - c.difference.low <= 1e-8 * abs(c.difference.low)
        why = "the same difference each time, which tells nothing of others" if same else f"n = {c.n}"
        return f"{c.metric}: {c.arm} against {c.baseline}: not measured ({why})"
    if same_on := equal_by_design(c):
        return f"{c.metric}: {c.arm} as {c.baseline}: {same_on}" + margin_words(c)
    if c.verdict == "no measurable difference":
        line = f"{c.metric}: no measurable difference between {c.arm} and {c.baseline} ({sensitivity(c)}): {amount(c)}"
    else:
        shown = f" ({values(c)})" * bool(values(c))
        beside = "of" if c.baseline_value is not None else "as fast as"
        came: str = c.verdict
        if c.at_chance and c.verdict == "helps":
            came = f"is at chance ({c.arm_value:.2g}, guessing {c.chance:g})"
        line = (
            f"{c.metric}: {c.arm} {came}: {amount(c)} {beside if c.scale == 'ratio' else 'against'} {c.baseline}{shown}"
        )
    return line + margin_words(c)


def amount(c: Comparison) -> str:
    """By how much two arms differ, with the interval: `"+0.12 [+0.05, +0.19]"`, `"0.48× [0.44, 0.52]"`."""
    ends = (c.difference.estimate, c.difference.low, c.difference.high)
    estimate, low, high = (_number(end, _decimals(c), signed=c.scale != "ratio") for end in ends)
    return f"{estimate}{_unit(c)} [{low}, {high}]"


def values(c: Comparison) -> str:
    """What the two arms reached, `"0.79 → 0.91"`; empty where that has no meaning of its own."""
    reached = (c.baseline_value, c.arm_value)
    if None in reached:
        return ""
    numbers = [value for value in reached if value is not None]
    places = [_places(Interval(v, v, v), 0) if c.scale == "ratio" else _decimals(c) for v in numbers]
    return " → ".join(_number(value, place) for value, place in zip(numbers, places, strict=True))


def equal_by_design(c: Comparison) -> str:
    """`"51 of 51"` where the arm has right, as the baseline has, every item of a yes-or-no metric; else empty."""
    everything = c.test == "exact McNemar" and c.baseline_value == c.arm_value == 1.0
    return f"{c.n} of {c.n}" if everything and not c.better and not c.worse else ""


def margin_words(c: Comparison) -> str:
    """What two one-sided tests say of the margin, and which items moved; empty without a margin.

    Of what helps it goes without saying that it is no worse.

    Example:
        "; no worse by more than 0.02 (8 % of items better, 5 % worse)"
    """
    if c.margin is None or c.no_worse is None:
        return ""
    words = "equal within" if c.equivalent else "no worse by more than" if c.no_worse else "may be worse by more than"
    moved = ""
    if c.items and c.better is not None and c.worse is not None:
        moved = f" ({c.better / c.items:.0%} of items better, {c.worse / c.items:.0%} worse)".replace("%", " %")
    return moved if c.verdict == "helps" and not c.equivalent else f"; {words} {margin_size(c)}{moved}"


def margin_size(c: Comparison) -> str:
    """`"0.02 nats"`, `"5 %"` of a ratio; empty without a margin."""
    if c.margin is None:
        return ""
    return f"{100 * c.margin:g} %" if c.scale == "ratio" else f"{c.margin:g}{f' {c.unit}' if c.unit else ''}"


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


def sensitivity(c: Comparison) -> str:
    """What a "no measurable difference" was able to see, or why an interval that excludes 0 is none."""
    d = c.difference
    if d.low == d.high:
        return f"equal in every resample of {c.n} {c.counted or 'items'}"
    if math.isinf(c.minimum_detectable_effect):
        return f"n = {c.n} is too few to see any"
    seen = f"could have seen ≥ {_number(c.minimum_detectable_effect, _decimals(c))}{_unit(c)}"
    neutral = 1.0 if c.scale == "ratio" else 0.0
    return seen if d.low <= neutral <= d.high else f"{seen}; within the baseline's own noise"


def _unit(c: Comparison) -> str:
    return "×" if c.scale == "ratio" else f" {c.unit}" if c.unit else ""


def _decimals(c: Comparison) -> int:
    return _places(c.difference, neutral=1.0 if c.scale == "ratio" else 0.0)


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

"""Numbers, intervals and settings as a reader wants them: three figures, true minus signs, human units.

Knows: floats, intervals, comparisons, nested settings. Does not know: where they are printed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broadsheet.trial.stats import Interval
    from broadsheet.trial.verdicts import Comparison


def number(value: float, step: float = 0.0) -> str:
    """A number, with the decimals that a change of `step` shows in; without a step, three figures. `—` if not finite.

    Example:
        >>> number(0.86249, step=0.001), number(0.86249), number(1234.5)
        ('0.862', '0.862', '1,234')
    """
    if not math.isfinite(value):
        return "—"
    if abs(value) >= 1e7 or (0 < abs(value) < 1e-5 and step < 1e-6):
        return f"{value:.2e}".replace("-", "−")
    size = step if 0 < step < math.inf else abs(value) / 100
    decimals = min(max(-math.floor(math.log10(size) + 1e-9), 0), 6) if size else 0
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")  # + 0.0: no minus before a zero


def bracket(interval: Interval, step: float = 0.0) -> tuple[str, str]:
    """Estimate and ends, `("0.862", "0.825–0.899")`, in steps of `step` (by default the interval's own `grain`)."""
    step = step or grain([interval])
    known = {math.inf: "∞", -math.inf: "−∞"}
    low, high = (known.get(end) or number(end, step) for end in (interval.low, interval.high))
    return number(interval.estimate, step), f"{low} to {high}" if interval.low < 0 else f"{low}–{high}"


def constant(interval: Interval) -> bool:
    """Whether an interval has no width but for rounding."""
    width = interval.high - interval.low
    return width < math.inf and width <= 1e-6 * max(abs(interval.low), abs(interval.high))


def grain(intervals: Iterable[Interval | None]) -> float:
    """The step a column of intervals is printed in: three figures, more where a width needs them.

    0 (each its own) where the values lie so far apart that no step suits all.
    """
    steps, sizes = [], []
    for interval in intervals:
        half = (interval.high - interval.low) / 2 if interval else math.nan
        if interval and 0 < half < math.inf and not constant(interval):
            sizes.append(max(abs(interval.low), abs(interval.high)))
            width, size = math.floor(math.log10(half) + 1e-9), math.floor(math.log10(sizes[-1]))
            steps.append(10.0 ** min(width, max(width - 1, size - 2)))
    if not steps or (len(steps) > 1 and max(sizes) > max(1.0, 10 * min(sizes))):
        return 0.0
    return sorted(steps)[len(steps) // 2]


def memory(size: int) -> str:
    """Bytes in human units, `"1.4 GB"`; a dash where none was measured."""
    if size <= 0:
        return "—"
    power = min(int(math.log10(size) // 3), 4)
    scaled = size / 1000**power
    return f"{scaled:.{1 if scaled < 10 and power else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def p_value(p: float | None) -> str:
    """A p-value with two figures, never printed as zero."""
    if p is None or math.isnan(p):
        return "—"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def noise_floor(comparison: Comparison) -> str:
    """How far the baseline lay from itself, on the scale of the difference."""
    if comparison.scale == "ratio":
        return f"{number(math.exp(comparison.noise_floor))}×"
    return number(comparison.noise_floor)


def detectable(comparison: Comparison) -> str:
    """The smallest effect the comparison could have seen, on the scale of the difference."""
    words = number(comparison.minimum_detectable_effect)
    return f"{words}×" if comparison.scale == "ratio" and words != "—" else words


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as `("machine cores", "2")` lines; lists joined by commas, what is empty left out."""
    for key, value in settings.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from flat(value, f"{name} ")
        elif isinstance(value, list | tuple):
            if value:
                yield name, ", ".join(map(str, value))
        elif name.endswith(" bytes"):
            yield name.removesuffix(" bytes"), memory(value)
        elif value not in (None, ""):
            yield name, str(value)


def arguments(command: str) -> list[str]:
    """A shell command cut between its arguments, each as it was typed, quotes and all."""
    return re.findall(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|\S)+""", command)

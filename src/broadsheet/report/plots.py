"""Pictures as inline SVG: dots with whiskers, speed against quality, densities, curves.

Knows: numbers, names, and where they fall on a drawing 320 units wide (a phone's width, so that text keeps its size).
Does not know: trials, verdicts, or colours; a mark carries a CSS class (`method`, `baseline`, `s0` … `s7`) that the
page paints. What is not finite is drawn at the edge, or left out and counted: no coordinate leaves the drawing.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from markupsafe import Markup
from rich.cells import cell_len, set_cell_size

from broadsheet.report.words import bracket, grain, number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from broadsheet.trial.results import Curve, Distribution
    from broadsheet.trial.stats import Interval

WIDTH = 320.0
CHARACTER = 7.8  # units a character of the 14-unit sans takes, on the wide side
_TICKS = 60  # of a group below its density
_PITCH = {1: 25.0, 2: 38.0}  # of a row whose name has so many lines
HUGE = 1e300  # beyond it axis arithmetic would overflow; drawn at the edge, like infinity


@dataclass(frozen=True)
class PlotRow:
    """One arm in a picture: its name, its role, its value on one or two axes, or a word on why there is none."""

    name: str
    role: str
    value: Interval | None = None
    across: Interval | None = None
    missing: str = "—"


@dataclass
class Drawing:
    """An SVG under construction; `legend` (class, name) pairs and `note` are for the page to set around it."""

    title: str
    height: float
    description: str = ""
    note: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)
    marks: list[Markup] = field(default_factory=list)

    def path(self, css: str, d: str) -> None:
        self.marks.append(Markup('<path class="{}" d="{}"/>').format(css, d))

    def line(self, css: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self.path(css, f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}")

    def text(self, css: str, x: float, y: float, words: str) -> None:
        self.marks.append(Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(css, x, y, words))

    def dot(self, role: str, x: float, y: float) -> None:
        self.path(f"dot {role}", f"M{x:.1f} {y:.1f}{shape(role)}")

    def tip(self, since: int, words: str) -> None:
        """Show `words` when the pointer rests on the marks drawn after the first `since`."""
        group = Markup("<g><title>{}</title>{}</g>").format(words, Markup("").join(self.marks[since:]))
        self.marks[since:] = [group]

    def svg(self) -> Markup:
        return Markup('<svg role="img" viewBox="0 0 {:.0f} {:.0f}"><title>{}</title><desc>{}</desc>{}</svg>').format(
            WIDTH, self.height, self.title, self.description, Markup("").join(self.marks)
        )


def shape(role: str) -> str:
    """The path of a role's mark, from its centre: a square for the baseline, a diamond for a peer, a disc otherwise."""
    shapes = {"baseline": "m-4.5 -4.5h9v9h-9z", "peer": "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z"}
    return shapes.get(role, "m-4.7 0a4.7 4.7 0 1 0 9.4 0a4.7 4.7 0 1 0 -9.4 0z")


def drawable(value: float | None) -> bool:
    """Whether `value` is a number an axis can hold."""
    return value is not None and math.isfinite(value) and abs(value) < HUGE


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` onto drawing units from `start` to `end`; what lies beyond stays at the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            unit = max(abs(self.low), abs(self.high))  # keeps the difference of two huge numbers finite
            share = (value / unit - self.low / unit) / (self.high / unit - self.low / unit)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def scale(values: Iterable[float | None], start: float, end: float, log: bool = False, air: float = 0.05) -> Scale:
    """An axis that holds every drawable value, with `air` around (a share of their range).

    It is logarithmic only where all of them are positive.
    """
    known = [value for value in values if value is not None and drawable(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    size = max(abs(low), abs(high))
    if size < 1e-280:
        low, high, size = -1.0, 1.0, 1.0
    if high - low < 1e-9 * size:
        low, high = low - 0.1 * size, high + 0.1 * size
    if log and low > 0:
        factor = math.exp(air * min(math.log(high) - math.log(low), 10))
        return Scale(low / factor, high * factor, start, end, log=True)
    return Scale(low - air * (high - low), high + air * (high - low), start, end)


def ticks(axis: Scale, count: int) -> list[float]:
    """About `count` round values on the axis, at least two: 1, 2 or 5 times a power of ten, evenly or by logarithm."""
    if axis.log:
        first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
        stride = max(1, round((last - first) / count))
        steps = (1, 2, 5) if axis.high < 80 * axis.low else (1,)
        found = [step * 10.0**power for power in range(first, last + 1, stride) for step in steps]
        found = [value for value in found if axis.low <= value <= axis.high]
        if len(found) > 1:
            return found
    rough = (axis.high - axis.low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda multiple: abs(math.log(multiple * power / rough)))
    even = [i * step for i in range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)]
    return even if len(even) > 1 or count > 9 else ticks(replace(axis, log=False), count + 1)


def shorten(name: str, cells: int) -> str:
    """`name` within `cells` character cells, an ellipsis at the end if it was cut."""
    name = " ".join(name.split())
    return name if cell_len(name) <= cells else set_cell_size(name, cells - 1).rstrip() + "…"


def in_lines(name: str, cells: int) -> list[str]:
    """A name on one line of a drawing, or on two; what does not fit these is cut.

    Example:
        >>> in_lines("n-gram drafter, empty table", 15)
        ['n-gram drafter,', 'empty table']
    """
    first, *more = textwrap.wrap(name, cells) or [""]
    return [shorten(first, cells), *([shorten(" ".join(more), cells)] if more else [])]


def whiskers(title: str, rows: Sequence[PlotRow], chance: float | None = None, bounded: bool = False) -> Drawing:
    """One line per arm: a dot at the estimate, a whisker over its interval, the baseline's value as a line through all.

    Args:
        rows: baseline first; a row without a value keeps its place and says why.
        chance: what a coin would score; drawn dotted.
        bounded: the metric has a best value, as a share has, and reads evenly; costs may span orders of magnitude.
    """
    known = [row.value for row in rows if row.value]
    step = grain(known)
    words = [bracket(value, step)[0] for value in known] or ["—"]
    names = [in_lines(row.name, 15) for row in rows]
    left = max((cell_len(line) for lines in names for line in lines), default=0) * CHARACTER + 14
    right = WIDTH - max(map(cell_len, words)) * CHARACTER - 12
    top = 22.0
    ends_at = [top + sum(_PITCH[len(lines)] for lines in names[: i + 1]) for i in range(len(rows))]
    bottom = max(ends_at, default=top)
    ends = [end for value in known for end in (value.low, value.estimate, value.high)]
    positive = [end for end in ends if drawable(end)]
    even = bounded or chance is not None
    wide = not even and bool(positive) and min(positive) > 0 and max(positive) / min(positive) > 10
    axis = scale([*ends, chance], left, right, log=wide)
    drawing = Drawing(title, bottom + 24)
    _across(drawing, axis, bottom, ticks(axis, 3), top)
    if chance is not None:
        drawing.line("chance", axis(chance), top, axis(chance), bottom)
        drawing.text("tick middle", min(max(axis(chance), 26), WIDTH - 26), 14, "chance")
    reference = next((row.value for row in rows if row.role == "baseline" and row.value), None)
    if reference and not math.isnan(reference.estimate):
        drawing.line("reference", axis(reference.estimate), top, axis(reference.estimate), bottom)
    said = []
    for i, row in enumerate(rows):
        y, since = ends_at[i] - _PITCH[len(names[i])] / 2, len(drawing.marks)
        if row.role == "baseline" and i + 1 < len(rows):
            drawing.line("grid", 0, ends_at[i], WIDTH, ends_at[i])
        for place, line in enumerate(names[i]):
            drawing.text(f"name {row.role}", 0, y + 5 + 15 * (place - (len(names[i]) - 1) / 2), line)
        if row.value is None or math.isnan(row.value.estimate):
            drawing.text("missing", left + 4, y + 5, row.missing)
            said.append(f"{row.name}: {row.missing}")
        else:
            estimate, ends_words = bracket(row.value, step)
            _whisker(drawing, row, axis, y)
            drawing.text("value end", WIDTH, y + 5, estimate)
            said.append(f"{row.name}: {estimate} ({ends_words})")
        drawing.tip(since, said[-1])
    drawing.description = "; ".join(said)
    return drawing


def scatter(title: str, rows: Sequence[PlotRow], x_label: str, y_label: str) -> Drawing:
    """Each arm at (`across`, `value`) with both intervals; a name stands where there is room, and on the pointer."""
    rows = sorted(rows, key=lambda row: row.role in ("baseline", "method"))  # these two on top
    points = [(row, row.across, row.value) for row in rows if row.across and row.value]
    points = [point for point in points if drawable(point[1].estimate) and drawable(point[2].estimate)]
    drawing = Drawing(title, 262)
    y_axis, edge = _upright(drawing, [end for _, _, y in points for end in (y.low, y.estimate, y.high)], y_label)
    x_axis = scale([end for _, x, _ in points for end in (x.low, x.estimate, x.high)], edge + 8, WIDTH - 8, log=True)
    _across(drawing, x_axis, 216, ticks(x_axis, 3), 216, x_label)
    said, taken = [], []
    for row, across, value in points:
        x, y, since = x_axis(across.estimate), y_axis(value.estimate), len(drawing.marks)
        drawing.line(f"whisker thin {row.role}", x, y_axis(_end(value.low, value)), x, y_axis(_end(value.high, value)))
        drawing.line(
            f"whisker thin {row.role}", x_axis(_end(across.low, across)), y, x_axis(_end(across.high, across)), y
        )
        drawing.dot(row.role, x, y)
        low, high = (x_axis(_end(end, across)) for end in (across.low, across.high))
        bottom, top = (y_axis(_end(end, value)) for end in (value.low, value.high))
        taken += [(x - 5, y - 5, x + 5, y + 5), (low, y - 1, high, y + 1), (x - 1, top, x + 1, bottom)]
        said.append(f"{row.name}: {y_label} {bracket(value)[0]}, {x_label} {bracket(across)[0]}")
        drawing.tip(since, said[-1])
    for row, across, value in reversed(points):
        x, y, name = x_axis(across.estimate), y_axis(value.estimate), shorten(row.name, 15)
        width = cell_len(name) * CHARACTER
        sides = (x + 8, x - 8 - width, x - width / 2)
        for left, top in [(side, y + drop) for drop in (-8, -23, 7) for side in sides]:
            box = (left, top, left + width, top + 16)
            free = all(box[0] > b[2] or box[2] < b[0] or box[1] > b[3] or box[3] < b[1] for b in taken)
            if free and left >= edge and left + width <= WIDTH and 18 <= top <= 198:
                drawing.text(f"name {row.role}", left, top + 13, name)
                taken.append(box)
                break
    drawing.description = "; ".join(said)
    return drawing


def distribution(figure: Distribution, styles: Mapping[str, str]) -> Drawing:
    """Overlaid densities of equal area; below them a short tick for each value, of a large group for its quantiles.

    Where the outer half per cent on each side would stretch the axis by half, it lies beyond the axis and the note
    says how many values that are.
    """
    import numpy as np

    groups = {
        name: np.array([value for value in values if drawable(value)], dtype=float)
        for name, values in figure.groups.items()
    }
    pooled = np.sort(np.concatenate([*groups.values(), np.empty(0)]))
    middle = pooled[len(pooled) // 200 : len(pooled) - len(pooled) // 200]
    if len(pooled) and np.ptp(pooled / HUGE) <= 1.5 * np.ptp(middle / HUGE):
        middle = pooled
    axis = scale(middle.tolist(), 4, WIDTH - 4, air=0.12)
    floor = 143 + 5.0 * max(2, len(groups))  # below the ticks of all groups
    drawing = Drawing(figure.title, floor + 43)
    x = np.linspace(axis.start, axis.end, 121)
    unit = (axis.high / 2 - axis.low / 2) / (axis.end / 2 - axis.start / 2)  # of values, per unit drawn
    curves = {
        name: _density(values / unit - axis.low / unit + axis.start, x)
        for name, values in groups.items()
        if len(values) > 4
    }
    peak = max((curve.max() for curve in curves.values()), default=1.0)
    for name, curve in curves.items():
        y = 140 - 132 * curve / peak
        points = "L".join(f"{at:.1f} {height:.1f}" for at, height in zip(x.tolist(), y.tolist(), strict=True))
        drawing.path(f"area {styles[name]}", f"M{axis.start:.1f} 140L{points}L{axis.end:.1f} 140Z")
        drawing.path(f"stroke {styles[name]}", f"M{points}")
    for i, (name, values) in enumerate(groups.items()):
        if len(values):
            shown = values if len(values) <= _TICKS else np.quantile(values, np.linspace(0, 1, _TICKS))
            rug = "".join(f"M{axis(value):.1f} {142 + 5 * i}v4" for value in shown.tolist())
            drawing.path(f"stroke thin {styles[name]}", rug)
    _across(drawing, axis, floor, ticks(axis, 4), floor, figure.x_label)
    drawing.legend = [(styles[name], f"{name} ({len(values)})") for name, values in groups.items()]
    beyond = int(((pooled < axis.low) | (pooled > axis.high)).sum())
    unknown = sum(map(len, figure.groups.values())) - len(pooled)
    drawing.note = "; ".join(
        f"{count} {what}" for count, what in ((beyond, "beyond the axis"), (unknown, "not finite, left out")) if count
    )
    drawing.description = "; ".join(
        f"{name}: {len(values)} values" + (f", median {number(float(np.median(values)))}" if len(values) else "")
        for name, values in groups.items()
    )
    return drawing


def curve(figure: Curve, styles: Mapping[str, str]) -> Drawing:
    """Lines over x, each with its band where both ends are known; a line breaks where it has no value."""
    ys = [value for lines in (figure.lines, figure.low, figure.high) for line in lines.values() for value in line]
    drawing = Drawing(figure.title, 262, legend=[(styles[name], name) for name in figure.lines])
    y_axis, edge = _upright(drawing, ys, figure.y_label)
    x_axis = scale(figure.x, edge + 8, WIDTH - 10, log=figure.log_x)
    _across(drawing, x_axis, 216, figure.x if len(figure.x) <= 6 else ticks(x_axis, 4), 216, figure.x_label)
    for name in figure.lines:
        if name not in figure.low or name not in figure.high:
            continue
        for run in _runs(figure.x, figure.low[name], figure.high[name]):
            there = [f"{x_axis(x):.1f} {y_axis(bottom):.1f}" for x, bottom, _ in run]
            back = [f"{x_axis(x):.1f} {y_axis(top):.1f}" for x, _, top in reversed(run)]
            drawing.path(f"area {styles[name]}", f"M{'L'.join(there + back)}Z")
    said = []
    for name, line in figure.lines.items():
        since = len(drawing.marks)
        for run in _runs(figure.x, line):
            drawing.path(f"stroke {styles[name]}", "M" + "L".join(f"{x_axis(x):.1f} {y_axis(y):.1f}" for x, y in run))
            for x, y in run if len(figure.x) <= 12 or len(run) == 1 else ():
                drawing.path(f"point {styles[name]}", f"M{x_axis(x):.1f} {y_axis(y):.1f}h0")
        said.append(f"{name}: " + ", ".join("none" if y is None else number(y) for y in line))
        drawing.tip(since, name)
    drawing.description = f"{figure.y_label} against {figure.x_label}. " + "; ".join(said)
    return drawing


def _density(values: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian kernel density of `values` (n,) at `x` (m,): Silverman's rule of thumb, never narrower than a pen."""
    import numpy as np

    quartiles = np.quantile(values, [0.25, 0.75])
    spread = min(values.std(), (quartiles[1] - quartiles[0]) / 1.34) or values.std()
    width = max(0.9 * spread * len(values) ** -0.2, 2.0)
    return np.exp(-0.5 * ((x[:, None] - values) / width) ** 2).sum(axis=1) / (width * len(values))


def _end(end: float, interval: Interval) -> float:
    """An interval's end, or the estimate where the end is unknown."""
    return interval.estimate if math.isnan(end) else end


def _whisker(drawing: Drawing, row: PlotRow, axis: Scale, y: float) -> None:
    assert row.value
    low, high = (axis(_end(end, row.value)) for end in (row.value.low, row.value.high))
    drawing.line(f"whisker {row.role}", low, y, high, y)
    for x, end, inward in ((low, row.value.low, 5), (high, row.value.high, -5)):
        if math.isinf(end) or abs(end) >= HUGE:  # an arrow: it goes on
            drawing.path(
                f"whisker {row.role}", f"M{x + inward:.1f} {y - 4:.1f}L{x:.1f} {y:.1f}L{x + inward:.1f} {y + 4:.1f}"
            )
    drawing.dot(row.role, axis(row.value.estimate), y)


def _across(drawing: Drawing, axis: Scale, y: float, at: Sequence[float], top: float, label: str = "") -> None:
    """The x axis at height `y`: grid lines up to `top`, tick labels that do not touch, and what is measured."""
    step = min((abs(b - a) for a, b in pairwise(at) if a != b), default=0.0)
    drawing.line("axis", axis.start, y, axis.end, y)
    taken = -math.inf
    for value in at:
        if not drawable(value):
            continue
        words = number(value, 0.0 if axis.log else step)
        if axis.log and "." in words:
            words = words.rstrip("0").rstrip(".")
        half = len(words) * CHARACTER / 2
        x = min(max(axis(value), half), WIDTH - half)
        drawing.line("grid", axis(value), top, axis(value), y + 4)
        if x - half > taken + 6:
            drawing.text("tick middle", x, y + 18, words)
            taken = x + half
    if label:
        drawing.text(
            "label middle",
            (axis.start + axis.end) / 2,
            y + 39,
            shorten(label, int((axis.end - axis.start) / CHARACTER)),
        )


def _upright(drawing: Drawing, values: Sequence[float | None], label: str) -> tuple[Scale, float]:
    """The y axis from 212 up to 30: grid lines with labels, what is measured above them, and where they start."""
    axis = scale(values, 212, 30)
    at = ticks(axis, 4)
    words = [number(value, at[1] - at[0] if len(at) > 1 else 0.0) for value in at]
    edge = max(map(len, words), default=0) * CHARACTER + 8
    for value, word in zip(at, words, strict=True):
        drawing.line("grid", edge, axis(value), WIDTH, axis(value))
        drawing.text("tick end", edge - 6, axis(value) + 5, word)
    drawing.text("label", 0, 14, shorten(label, int(WIDTH / CHARACTER)))
    return axis, edge


def _runs(*columns: Sequence[float | None]) -> list[list[tuple[float, ...]]]:
    """The rows of the columns in unbroken runs, broken wherever a row holds something that cannot be drawn."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for row in zip(*columns, strict=True):
        if all(drawable(value) for value in row):
            runs[-1].append(row)
        else:
            runs.append([])
    return [run for run in runs if run]

"""The forest plot of docs/evidence.md: every claim whose effect has a target, as measured, on the scale of the target.

Knows: judged claims and their comparisons. Does not know: papers, files.

1 is the effect that the paper reports (hollow: the least that would matter, or a quarter of the gap to the ceiling);
0 is no effect at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from broadsheet.trial.claims import JudgedClaim
from broadsheet.trial.verdicts import Comparison

WIDTH, NAMES, RIGHT, PITCH, TOP = 860, 400, 40, 22, 46
LOW, HIGH = -1.0, 3.0  # of the axis; what lies beyond ends in an arrow
COLOURS = {"shown": "#1a7a57", "refuted here": "#b04a10", "open": "#7d786f"}


@dataclass(frozen=True)
class ForestRow:
    """A claim and the comparison it rests on."""

    paper: str
    claim: JudgedClaim
    comparison: Comparison

    @property
    def ends(self) -> tuple[float, float, float] | None:
        """(estimate, low, high) over the target; None where there is no target, or nothing was measured."""
        target, turned = self.claim.target, self.comparison.turned()
        if target is None or self.comparison.verdict == "not measured":
            return None
        size = math.log(target) if self.comparison.scale == "ratio" else target
        return turned.estimate / size, turned.low / size, turned.high / size


def forest(rows: Sequence[ForestRow]) -> str:
    """The plot as SVG: a line a claim, its interval over its target; rows without a target are left out."""
    drawn = [(row, ends) for row in rows if (ends := row.ends)]
    height = TOP + PITCH * len(drawn) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        "<title>What was measured of each claim, over the effect that was looked for</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fffefb"/>',
    ]
    for value, label in ((0.0, "no effect"), (1.0, "the effect looked for")):
        x = _x(value)
        ends = f'y1="{TOP - 10}" y2="{height - 24}"'
        parts.append(f'<line x1="{x}" x2="{x}" {ends} stroke="#1d1c1a" stroke-dasharray="3 3"/>')
        parts.append(f'<text x="{x}" y="{TOP - 18}" text-anchor="middle" fill="#615d56">{label}</text>')
    for place, (row, (estimate, low, high)) in enumerate(drawn):
        y, colour = TOP + PITCH * place + 8, COLOURS[row.claim.verdict]
        name = f"{row.paper}: {row.claim.metric}, {row.claim.arm} over {row.claim.baseline}"
        parts.append(f'<text x="4" y="{y + 4}" fill="#1d1c1a">{escape(_cut(name))}<title>{escape(name)}</title></text>')
        parts.append(f'<line x1="{_x(low)}" x2="{_x(high)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        parts += [_arrow(end, y, colour) for end in (low, high) if not LOW <= end <= HIGH]
        fill = colour if row.claim.effect is not None else "#fffefb"
        parts.append(f'<circle cx="{_x(estimate)}" cy="{y}" r="4" fill="{fill}" stroke="{colour}" stroke-width="2"/>')
    for value in range(int(LOW), int(HIGH) + 1):
        parts.append(f'<text x="{_x(value)}" y="{height - 8}" text-anchor="middle" fill="#615d56">{value}×</text>')
    return "\n".join([*parts, "</svg>", ""]).replace("-1×", "−1×")


def _x(value: float) -> float:
    share = (min(max(value, LOW), HIGH) - LOW) / (HIGH - LOW)
    return round(NAMES + share * (WIDTH - RIGHT - NAMES), 1)


def _arrow(end: float, y: float, colour: str) -> str:
    x, tip = _x(end), 7 if end > HIGH else -7
    return f'<path d="M{x} {y - 4}l{tip} 4l{-tip} 4z" fill="{colour}"/>'


def _cut(name: str, most: int = 62) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"

"""A trial's result in the order and grouping in which it is read, on the terminal and on the page.

Knows: what a result holds, which arm is the baseline, what the paper claims. Does not know: how anything was measured,
HTML, or terminals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, groupby
from typing import TYPE_CHECKING

from broadsheet.page.papers import page
from broadsheet.report import plots, words
from broadsheet.trial.claims import words as claim_words
from broadsheet.trial.results import chance_level, plural
from broadsheet.trial.sentences import multiplicity_warning

if TYPE_CHECKING:
    from broadsheet.trial.results import ArmResult, Example, TrialResult
    from broadsheet.trial.stats import Interval
    from broadsheet.trial.verdicts import Comparison

_MANY, _FEW = 8, 6  # comparisons of an arm: more than so many are folded, but for the first few
CLAIM_MARKS = {"shown": "✓", "refuted here": "✗", "open": "?"}
MARKS = {"helps": "▲", "hurts": "▼", "no measurable difference": "=", "not measured": "?"}


@dataclass(frozen=True)
class View:
    """A result in reading order: the baseline, then the arms by the first metric, those that failed last."""

    result: TrialResult

    @cached_property
    def url(self) -> str:
        """The paper on arXiv; empty for what is not on the page of papers."""
        return next((paper.url for paper in page() if paper.id == self.result.paper), "")

    @cached_property
    def qualities(self) -> list[str]:
        """Every metric that some arm has, in order of appearance."""
        return list(dict.fromkeys(name for arm in self.result.arms for name in arm.values))

    @cached_property
    def items(self) -> str:
        """What is counted: `"texts"`."""
        return plural(self.result.item)

    @cached_property
    def speed(self) -> str:
        """What speed is called: `"texts/s"`."""
        return f"{self.items}/s"

    @cached_property
    def metrics(self) -> list[str]:
        """The qualities, and speed where it was measured."""
        return [*self.qualities, *([self.speed] if any(arm.items_per_second for arm in self.result.arms) else [])]

    @cached_property
    def arms(self) -> list[ArmResult]:
        """All arms, best first by the first metric."""
        first = next(iter(self.qualities), "")
        sign = -1 if all(c.higher_is_better for c in self.result.comparisons if c.metric == first) else 1

        def place(arm: ArmResult) -> tuple[bool, bool, float]:
            value = self.value(arm, first)
            worth = math.inf if value is None or math.isnan(value.estimate) else sign * value.estimate
            return arm.role != "baseline", arm.status == "failed", worth

        return sorted(self.result.arms, key=place)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """All comparisons, in the order of the arms."""
        order = [arm.name for arm in self.arms]
        return sorted(self.result.comparisons, key=lambda c: order.index(c.arm))

    @cached_property
    def warning(self) -> str:
        """What chance alone would have called among so many comparisons; may be empty."""
        return multiplicity_warning(self.comparisons)

    @cached_property
    def claims(self) -> set[tuple[str, ...]]:
        """What the paper claims to win: (metric, baseline, arm)."""
        return {claim.key for claim in self.result.judged if claim.kind == "claim"}

    @cached_property
    def judged(self) -> list[tuple[str, str, str]]:
        """(kind, verdict, sentence) of each claim, then of each control: what it is of, and why the verdict is so."""
        lines: list[tuple[str, str, str]] = []
        for claim in sorted(self.result.judged, key=lambda claim: claim.kind):
            comparison = self.result.comparison(*claim.key)
            why = claim_words(claim, comparison).partition(": ")[2]
            said = f"{claim.metric} of {claim.arm} over {claim.baseline}" + f": {why}" * bool(why)
            told = (
                f"The paper: {claim.sentence}"
                if claim.kind == "claim"
                else claim.sentence[:1].upper() + claim.sentence[1:]
            )
            lines.append((claim.kind, claim.verdict, said + f". {told}." * bool(claim.sentence)))
        return lines

    @cached_property
    def tested(self) -> str:
        """How many claims were tested together; empty for one, or none."""
        claims = sum(claim.kind == "claim" for claim in self.result.judged)
        return f"{claims} claims were tested together (Holm)" if claims > 1 else ""

    @cached_property
    def roles(self) -> set[str]:
        return {arm.role for arm in self.result.arms}

    def value(self, arm: ArmResult, metric: str) -> Interval | None:
        """What the arm reached on a metric or in speed."""
        return arm.items_per_second if metric == self.speed else arm.values.get(metric)

    def units(self, arm: ArmResult, metric: str) -> int:
        """How many units the arm's value rests on: those of its comparisons on the metric, else all its items."""
        known = (c.n for c in self.comparisons if c.metric == metric and arm.name in (c.arm, c.baseline))
        return next(known, arm.n_items)

    def grain(self, metric: str) -> float:
        """The step in which this metric's column is printed."""
        return words.grain(self.value(arm, metric) for arm in self.result.arms)

    def unit(self, metric: str) -> str:
        return next((c.unit for c in self.comparisons if c.metric == metric), "")

    def chance(self, metric: str) -> float | None:
        """What guessing gives; None where that is not known."""
        known = (c.chance for c in self.comparisons if c.metric == metric and c.chance is not None)
        return next(known, chance_level(metric))

    def groups(self, *roles: str) -> list[tuple[str, list[Comparison]]]:
        """Comparisons grouped by arm, for the arms of these roles; the paper's claims first in each."""
        names = [arm.name for arm in self.arms if arm.role in roles]
        ordered = sorted(self.comparisons, key=lambda c: not self.claimed(c))
        found = [(name, [c for c in ordered if c.arm == name]) for name in names]
        return [(name, comparisons) for name, comparisons in found if comparisons]

    def claimed(self, comparison: Comparison) -> bool:
        """Whether the paper claims to win it."""
        return (comparison.metric, comparison.baseline, comparison.arm) in self.claims

    def leading(self, comparisons: Sequence[Comparison]) -> int:
        """How many of an arm's comparisons are read first, the claims and a few more; all where they are not many."""
        return len(comparisons) if len(comparisons) <= _MANY else max(_FEW, sum(map(self.claimed, comparisons)))

    def tally(self, groups: Iterable[tuple[str, list[Comparison]]]) -> dict[str, dict[str, int]]:
        """For each metric, how many of the groups' comparisons ended in which verdict."""
        counts: dict[str, dict[str, int]] = {}
        for comparison in (c for _, comparisons in groups for c in comparisons):
            row = counts.setdefault(comparison.metric, dict.fromkeys(MARKS, 0))
            row[comparison.verdict] += 1
        return counts

    def summary(self, groups: Iterable[tuple[str, list[Comparison]]]) -> list[str]:
        """For each metric one line: which arms ended in which verdict against the baseline."""
        arms: dict[tuple[str, str], dict[str, list[str]]] = {}
        for c in (c for _, comparisons in groups for c in comparisons):
            arms.setdefault((c.metric, c.baseline), {}).setdefault(c.verdict, []).append(c.arm)
        return [
            f"{metric} against {baseline}: "
            + "; ".join(f"{MARKS[verdict]} {' · '.join(verdicts[verdict])}" for verdict in MARKS if verdict in verdicts)
            for (metric, baseline), verdicts in arms.items()
        ]

    @cached_property
    def prepared(self) -> bool:
        """Whether any arm took a time worth telling to be prepared."""
        return any(arm.prepare_seconds >= 0.1 for arm in self.result.arms)

    def told(self, example: Example) -> list[tuple[str, str]]:
        """(arms, what they made of an example): arms that made the same of it together, in the order of the arms."""
        together: dict[str, list[str]] = {}
        order = [arm.name for arm in self.arms]
        for name in sorted(example.answers, key=lambda name: order.index(name) if name in order else len(order)):
            together.setdefault(example.answers[name], []).append(name)
        return [(" · ".join(names), made) for made, names in together.items()]

    def picture(self, metric: str) -> plots.Drawing:
        """A dot and a whisker for each arm."""
        title = f"{metric}, {unit}" if (unit := self.unit(metric)) else metric
        bounded = any(c.metric == metric and c.higher_is_better and c.ceiling for c in self.comparisons)
        return plots.whiskers(title, self._rows(metric), self.chance(metric), bounded)

    def pictures(self, but: str = "") -> list[plots.Drawing]:
        """A dot-and-whisker drawing per metric, `but` one; then speed against quality where three arms have both."""
        drawings = [self.picture(metric) for metric in self.metrics if metric != but]
        if self.qualities:
            quality = self.qualities[0]
            rows = [row for row in self._rows(quality) if row.value and row.across]
            if len(rows) >= 3:
                drawings.append(plots.scatter(f"{quality} against speed", rows, self.speed, quality))
        return drawings

    def _rows(self, metric: str) -> list[plots.PlotRow]:
        return [
            plots.PlotRow(
                name=arm.name,
                role=arm.role,
                value=self.value(arm, metric),
                across=arm.items_per_second,
                missing="failed" if arm.status == "failed" else "—",
            )
            for arm in self.arms
        ]

    def figures(self) -> list[tuple[list[tuple[str, str]], list[plots.Drawing]]]:
        """The stage's own figures as (legend, drawings); the legend is empty where each drawing has its own.

        Neighbours with the same legend share it. What is named like an arm has that arm's colour.
        """
        roles = {arm.name: arm.role for arm in self.result.arms}
        drawings = []
        for figure in self.result.figures:
            if figure.kind == "curve":
                drawings.append(plots.curve(figure, styles(figure.lines, roles)))
            else:
                drawings.append(plots.distribution(figure, styles(figure.groups, roles)))
        galleries: list[tuple[list[tuple[str, str]], list[plots.Drawing]]] = []
        for legend, group in groupby(drawings, key=lambda drawing: drawing.legend):
            alike = list(group)
            if len(alike) > 1:
                galleries.append((legend, alike))
            elif galleries and not galleries[-1][0]:
                galleries[-1][1].extend(alike)
            else:
                galleries.append(([], alike))
        return galleries


def styles(names: Iterable[str], roles: Mapping[str, str]) -> dict[str, str]:
    """A CSS class for each line: grey (`s0`) for the baseline, the accent (`s1`) for a method, else the next colour.

    A colour used again is dashed (`d1`, `d2`).
    """
    names = list(names)
    rest = cycle(range(2, 8) if any(name in roles for name in names) else range(8))
    chosen: dict[str, str] = {}
    for name in names:
        colour = {"baseline": "s0", "method": "s1"}.get(roles.get(name, "")) or f"s{next(rest)}"
        again = sum(style.startswith(colour) for style in chosen.values())
        chosen[name] = f"{colour} d{min(again, 2)}"
    return chosen

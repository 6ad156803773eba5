"""A trial's answer to its own question, in a sentence or two, and the few rows that bear it out.

Knows: what a finished result holds, the paper's row on the page. Does not know: how it was measured, or where the
answer is printed. All of it follows from the result alone, so that what was recorded before is answered the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from broadsheet.console import duration
from broadsheet.page.beside import Cost, Found, cost, is_worse, leads, of_methods
from broadsheet.page.papers import page
from broadsheet.report import words
from broadsheet.report.view import MARKS, View
from broadsheet.trial import claims as claiming
from broadsheet.trial.results import listed
from broadsheet.trial.sentences import amount, equal_by_design, margin_size, sensitivity, values

if TYPE_CHECKING:
    from broadsheet.trial.claims import JudgedClaim
    from broadsheet.trial.results import ArmResult, TrialResult
    from broadsheet.trial.stats import Interval
    from broadsheet.trial.verdicts import Comparison

_METRICS, _ROWS = 3, 4  # of the table
_NAMED = 3  # metrics of a kind that are named of a method beside a peer
_WORDS: dict[Cost | None, dict[str, str]] = {
    "time": {"helps": "faster", "hurts": "slower"},
    "size": {"helps": "leaner", "hurts": "larger"},
    None: {"helps": "better", "hurts": "worse"},
}
ABSENT = "The gain that the paper reports is absent here in "  # how the base's note of a missing gain begins


@dataclass(frozen=True)
class Cell:
    """What an arm reached on a metric, and the mark of its difference from the baseline; empty where there is none."""

    value: Interval | None
    mark: str = ""


@dataclass(frozen=True)
class TrialAnswer:
    """What a trial says.

    Args:
        result: a finished trial.

    Attributes:
        lead: the comparison that the answer is about: the paper's first claim that was measured, else that of the
            method, or of the best of several, else that of the best arm. None where nothing was compared.

    Example:
        >>> str(TrialAnswer(result))  # doctest: +SKIP
        "Lastde++ beats Likelihood: AUROC 0.756 → 0.869 (+0.113 [+0.081, +0.144]), at 0.48× the speed. …"
    """

    result: TrialResult

    def __str__(self) -> str:
        told = " ".join(each for each in (self.finding, self.rivals, self.claims) if each)
        return told[:1].upper() + told[1:]

    @cached_property
    def _view(self) -> View:
        return View(self.result)

    @cached_property
    def lead(self) -> Comparison | None:
        result = self.result
        measured = (result.comparison(*claim.key) for claim in self._claimed)
        roles = {arm.name: arm.role for arm in result.arms}
        first = next(iter(self._view.metrics), "")
        theirs = [c for c in result.comparisons if c.metric == first and roles[c.arm] == "method"]
        beside = [c for c in theirs if roles[c.baseline] == "baseline"] or theirs
        best = sorted(beside, key=lambda c: c.difference.estimate * (-1 if c.higher_is_better else 1))
        return next((c for c in [*measured, *best, *self._view.comparisons] if c is not None), None)

    @property
    def _claimed(self) -> list[JudgedClaim]:
        return [claim for claim in self.result.judged if claim.kind == "claim"]

    @cached_property
    def finding(self) -> str:
        """What the method did beside what it is compared with, and at what cost."""
        c = self.lead
        if c is None:
            return self._failures or "Nothing was compared."
        return f"{difference(c)}{self._identical(c)}{self._cost(c)}."

    @cached_property
    def rivals(self) -> str:
        """Which other arm was better still, beyond the method's interval; empty for times and sizes."""
        c, best = self.lead, self.best
        if c is None or best is None or best.name in (c.arm, c.baseline) or c.scale == "ratio":
            return ""
        arm = next(arm for arm in self.result.arms if arm.name == c.arm)
        own, reached = self._view.value(arm, c.metric), self._view.value(best, c.metric)
        if own is None or reached is None or own.low <= reached.estimate <= own.high:
            return ""
        value, _ = words.bracket(reached, self._view.grain(c.metric))
        return f"Best here is {best.name} ({value})."

    @cached_property
    def best(self) -> ArmResult | None:
        """The arm with the best value of the metric in question."""
        c = self.lead
        if c is None:
            return None
        usable = [(self._view.value(arm, c.metric), arm) for arm in self.result.arms if arm.status == "ok"]
        known = [(value.estimate, arm) for value, arm in usable if value and math.isfinite(value.estimate)]
        return max(known, key=lambda each: each[0] if c.higher_is_better else -each[0])[1] if known else None

    @cached_property
    def claims(self) -> str:
        """What came of the paper's claims."""
        found = self._claimed
        if not found:
            return ""
        by_verdict = {
            verdict: [claim for claim in found if claim.verdict == verdict]
            for verdict in ("shown", "refuted here", "open")
        }
        if len(found) == 1:
            [claim] = found
            verdict, _, why = claiming.words(claim, self.result.comparison(*claim.key)).partition(": ")
            return f"The paper's claim is {verdict}" + f": {why}" * bool(why) + "."
        every = "Both" if len(found) == 2 else f"All {len(found)}"
        parts = []
        for verdict, those in by_verdict.items():
            named = listed([f"{claim.metric} over {claim.baseline}" for claim in those])
            whys = {claiming.words(claim, self.result.comparison(*claim.key)).partition(": ")[2] for claim in those}
            why = f"; {whys.pop()}" if verdict == "refuted here" and len(whys) == 1 else ""
            named = f" ({named}{why})" if verdict != "shown" and len(those) < 3 else ""
            if len(those) == len(found):
                once = ": arms were trained from one seed" * all(claim.trained_once for claim in those)
                return f"{every} claims of the paper are {verdict}{named}{once}."
            if those:
                parts.append(f"{len(those)} {'is' if len(those) == 1 else 'are'} {verdict}{named}")
        return f"Of the paper's {len(found)} claims {listed(parts)}."

    @cached_property
    def why(self) -> str:
        """What a reader should know first: what failed, why it is a demonstration alone, why a gain is absent."""
        if self._failures or self.result.demonstration:
            return self._failures or f"A demonstration alone: {self.result.demonstration}"
        shown = all(claim.verdict == "shown" for claim in self._claimed)
        reasons = [note.partition(". ")[2] for note in self.result.notes if note.startswith(ABSENT)]
        told = [reason for reason in reasons if reason] if not shown else []
        others = [note for note in self.result.notes if not note.startswith(ABSENT)]
        return next(iter([*told, *others]), "")

    @cached_property
    def beside(self) -> list[str]:
        """How the method fares beside each peer, and if it does not lead, why; nothing of a demonstration.

        Of one or two peers what costs less or more, and what is better or worse; more of them share a sentence.
        """
        of = {role: [arm.name for arm in self.result.arms if arm.role == role] for role in ("peer", "method")}
        method = of_methods([claim.arm for claim in self._claimed], of["method"])
        pairs = [
            (peer, [c for c in self.result.comparisons if (c.baseline, c.arm) == (peer, method)]) for peer in of["peer"]
        ]
        found = {peer.removeprefix("peer: "): _Beside(those) for peer, those in pairs if those}
        if self.result.demonstration or not found:
            return []
        name = method[:1].upper() + method[1:]
        shown = self.result.verdict == "shown"
        led = "It leads" if shown else "It costs less, and is no worse"
        if len(found) < 3:
            return [
                f"{name} beside {peer}: {each}. "
                + (f"It does not lead: {each.why_not}." if each.why_not else f"{led}.")
                for peer, each in found.items()
            ]
        reasons: dict[str, list[str]] = {}
        for peer, each in found.items():
            reasons.setdefault(each.why_not, []).append(peer)
        ahead = reasons.pop("", [])
        behind = listed([f"{listed(peers)} ({why})" for why, peers in reasons.items()])
        said = f"{'leads' if shown else 'costs less than, and is no worse than,'} {listed(ahead)}"
        said += f", but not {behind}" * bool(behind)
        return [f"{name} {said if ahead else f'leads none of {len(found)} peers: {behind}'}."]

    @property
    def _failures(self) -> str:
        return " ".join(f"{arm.name} failed: {arm.error}." for arm in self.result.arms if arm.status == "failed")

    def _identical(self, c: Comparison) -> str:
        """Of how many items the arm's output is the baseline's, where that was asked."""
        same = next(
            (each for each in self.result.comparisons if each.arm == c.arm and each.metric.startswith("identical")),
            None,
        )
        if same is None or same.arm_value is None or c.metric == same.metric:
            return ""
        return f", its output identical on {round(same.arm_value * same.n)} of {same.n}"

    def _cost(self, c: Comparison) -> str:
        """What the method's speed is beside the baseline's; empty where that is the finding itself."""
        speed = self.result.comparison(self._view.speed, c.baseline, c.arm)
        if speed is None or c is speed or speed.verdict == "not measured":
            return ""
        if speed.verdict == "no measurable difference":
            return ", no measurable difference in speed"
        ratio, arm = speed.difference.estimate, next(arm for arm in self.result.arms if arm.name == c.arm)
        if 0.01 < ratio < 100 or not arm.items_per_second:
            return f", at {ratio:.2f}× the speed" if 0.1 <= ratio < 10 else f", at {ratio:.2g}× the speed"
        return f", at {duration(1 / arm.items_per_second.estimate)} a {self.result.item}"

    # The table

    @cached_property
    def metrics(self) -> list[str]:
        """The two or three that the table shows: those of the claims, then others."""
        wanted = [self.lead.metric] if self.lead else []
        wanted += [claim.metric for claim in self._claimed]
        known = self._view.metrics
        speed = [self._view.speed] if self._view.speed in known else []
        return list(dict.fromkeys(each for each in [*wanted, *speed, *known] if each in known))[:_METRICS]

    @cached_property
    def rows(self) -> list[tuple[ArmResult, list[Cell]]]:
        """The baseline, what the method is compared with, the methods, the best other arm."""
        arms = {arm.name: arm for arm in self.result.arms}
        baseline = next((arm.name for arm in self.result.arms if arm.role == "baseline"), "")
        lead = [self.lead.baseline, self.lead.arm] if self.lead else []
        best = [self.best.name] if self.best else []
        others = [claim.arm for claim in self._claimed] + [arm.name for arm in self._view.arms]
        names = list(dict.fromkeys(name for name in [baseline, *lead, *best, *others] if name in arms))[:_ROWS]
        return [(arms[name], [self._cell(arms[name], metric, baseline) for metric in self.metrics]) for name in names]

    def _cell(self, arm: ArmResult, metric: str, baseline: str) -> Cell:
        c = self.result.comparison(metric, baseline, arm.name)
        mark = "=" if c is not None and c.at_chance else MARKS[c.verdict] if c is not None else ""
        return Cell(self._view.value(arm, metric), mark)

    # What to do next

    @cached_property
    def use(self) -> str:
        """The command, or the line of Python, that uses what was tried; empty for what is not on the page."""
        paper = next((each for each in page() if each.id == self.result.paper), None)
        if paper is None:
            return ""
        if paper.apply:
            return f"broadsheet apply {paper.id} --help"
        if paper.entry and paper.in_stage:
            return f"from broadsheet.{paper.stage} import {paper.entry[0].partition(':')[2]}"
        return f"broadsheet show {paper.id}"


class _Beside:
    """A method beside one peer.

    Args:
        found: comparisons of the two.
    """

    def __init__(self, found: list[Comparison]) -> None:
        self.found = found
        self.kinds = {c.metric: cost(c.metric, c.unit) for c in found}

    def __str__(self) -> str:
        """What costs less and more, and what is better and worse."""
        parts = []
        for kind, words_of in _WORDS.items():
            for verdict, word in words_of.items():
                those = [c for c in self.found if self.kinds[c.metric] == kind and c.verdict == verdict]
                named = [f"{c.metric} ({amount(c).partition(' [')[0]})" for c in those]
                more = [f"{len(named) - _NAMED} more"] * (len(named) > _NAMED)
                parts += [f"{word} in {listed(named[:_NAMED] + more)}"] * bool(named)
        measured = any(c.verdict != "not measured" for c in self.found)
        return "; ".join(parts) or ("no measurable difference" if measured else "too few to say")

    @property
    def why_not(self) -> str:
        """Why the method does not lead the peer; empty where it does."""
        by_metric = {c.metric: Found(c.metric, c.unit, c.verdict, c.no_worse) for c in self.found}
        if leads(by_metric.values()):
            return ""
        costs = [c.verdict for c in self.found if self.kinds[c.metric] and c.verdict != "not measured"]
        if "helps" not in costs:
            missing = "no cost is measurably lower" if costs else "its costs were not measured"
            return "it costs more" if "hurts" in costs else missing
        qualities = [c for c in self.found if not self.kinds[c.metric]]
        if worse := [c.metric for c in qualities if is_worse(by_metric[c.metric])]:
            return f"{listed(worse)} {'is' if len(worse) == 1 else 'are'} worse"
        if asked := [f"{c.metric} by more than {margin_size(c)}" for c in qualities if c.margin is not None]:
            return f"it is not shown to be no worse in {listed(asked)}"
        return "no margin was named beforehand for any quality" if qualities else "no quality was compared"


def difference(c: Comparison) -> str:
    """A comparison as a finding: who did what beside whom, and by how much; without a full stop."""
    if c.at_chance:
        assert c.arm_value is not None
        return f"{c.arm} is at chance: {c.metric} {words.number(c.arm_value)}, where guessing gives {c.chance:g}"
    if same := equal_by_design(c):
        return f"{c.arm} and {c.baseline} give the same {c.metric}: {same}"
    if c.verdict == "not measured":
        return f"{c.arm} was not measured beside {c.baseline}: {c.metric} of {c.n} is too few to say"
    told = f"{c.metric} {values(c)} ({amount(c)})" if values(c) else f"{c.metric} ({amount(c)})"
    if c.verdict == "no measurable difference":
        return f"{c.arm} and {c.baseline} do not differ measurably: {told[:-1]}; {sensitivity(c)})"
    if not values(c):
        return f"{c.arm} is {amount(c)} as fast as {c.baseline}"
    return f"{c.arm} {'beats' if c.verdict == 'helps' else 'is worse than'} {c.baseline}: {told}"

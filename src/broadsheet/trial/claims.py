"""A paper's claims, named before the result is seen, and what a trial makes of them: shown, refuted here, or open.

Knows: comparisons. Does not know: how they were measured, or what a metric means.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from broadsheet.trial.power import needed
from broadsheet.trial.stats import CONFIDENCE, RESAMPLES
from broadsheet.trial.verdicts import TIMED, Comparison, holm

Kind = Literal["claim", "control"]
ClaimVerdict = Literal["shown", "refuted here", "open"]
MIN_RUNS = 3  # training runs of an arm in recorded evidence


@dataclass(frozen=True)
class Claim:
    """What the paper says it wins, named before the result is seen: `arm` beats `baseline` on `metric`.

    Args:
        sentence: what the paper says, in our words, with the place where it says so.
        effect: the improvement that the paper reports on this metric, in the metric's unit, more is better; a factor
            (2.0 is twice as good) where the metric is compared as a ratio. None where the paper gives no figure: then
            `least` is asked for, or else a quarter of the way from the baseline to the metric's ceiling.
        least: the smallest improvement that would matter, ours, in the same unit.
        margin: for a claim that `arm` is no worse, and need not win: how much worse still counts as that, in the
            metric's unit, a share for ratios.
        kind: `"control"` for a comparison with what should not help (shuffled input, a random choice); earns nothing.
    """

    metric: str
    baseline: str
    arm: str
    sentence: str = ""
    effect: float | None = None
    kind: Kind = "claim"
    margin: float | None = None
    least: float | None = None

    @property
    def corrected(self) -> bool:
        """Whether its p-value is corrected for the others: of claims to win, controls apart."""
        return self.kind == "claim" and self.margin is None


@dataclass(frozen=True)
class JudgedClaim(Claim):
    """A claim and what came of it.

    Args:
        verdict: `"shown"`: the interval, and the p-value corrected for all claims of the trial, say that it helps; of a
            claim with a margin, that it is no worse by more.
            `"refuted here"`: the interval excludes `target`, and has a width: one without tells nothing of other items.
            `"open"`: anything else.
        target: the effect that was looked for, as `effect` gives it; None where nothing gives one.
        p_value: corrected by Holm for the claims that were tested together; None for a control, or without a test.
        tested: claims that were tested together; 0 for a control, and in results of before they were.
        needed_units, needed_runs: where open, what would show `target` with 80 % power: units (items, or what
            `Comparison.counted` says) with the training runs there are, or training runs with the units there are.
        trained_once: an arm was trained, and from one seed alone: open, since another seed may say something else.
    """

    verdict: ClaimVerdict = "open"
    target: float | None = None
    p_value: float | None = None
    tested: int = 0
    needed_units: int | None = None
    needed_runs: int | None = None
    trained_once: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """Metric, baseline and arm: the comparison it rests on."""
        return self.metric, self.baseline, self.arm


def judge(
    claims: Sequence[Claim],
    comparisons: Sequence[Comparison],
    trained: Collection[str] = (),
    untaught: Collection[str] = (),
) -> list[JudgedClaim]:
    """What the comparisons make of the claims. Claims to win are corrected together; all others stand alone.

    Args:
        trained: names of the arms that are trained: one training run of these decides no claim, but of times.
        untaught: metrics that hang on no training, so that one run decides there too.
    """
    found = {(c.metric, c.baseline, c.arm): c for c in comparisons}
    of = [found.get((claim.metric, claim.baseline, claim.arm)) for claim in claims]
    tested = [i for i, claim in enumerate(claims) if claim.corrected]
    corrected = dict(zip(tested, holm([of[i].p_value if of[i] else None for i in tested]), strict=True))  # type: ignore[union-attr]
    judged = []
    for i, (claim, comparison) in enumerate(zip(claims, of, strict=True)):
        p_value = corrected.get(i) if comparison is not None and comparison.p_value is not None else None
        one = _judged(claim, comparison, p_value, len(tested) if claim.kind == "claim" else 0)
        if comparison is not None and claim.metric not in untaught and _trained_once(comparison, trained):
            one = replace(one, verdict="open", needed_units=None, needed_runs=None, trained_once=True)
        judged.append(one)
    return judged


def _trained_once(comparison: Comparison, trained: Collection[str]) -> bool:
    if comparison.verdict == "not measured" or comparison.test == TIMED:
        return False
    arms = (comparison.baseline, comparison.arm)
    return any(name in trained and runs < 2 for name, runs in zip(arms, comparison.runs, strict=True))


def _judged(claim: Claim, comparison: Comparison | None, p_value: float | None, tested: int) -> JudgedClaim:
    verdict: ClaimVerdict = "open"
    target: float | None = None
    came: dict[str, Any] = {}
    if comparison is not None and claim.margin is not None:
        target, p_value = claim.margin, None
        verdict = _no_worse(claim.margin, comparison)
        if verdict == "open" and comparison.unit_error is not None:
            came = _needed(math.log1p(target) if comparison.scale == "ratio" else target, comparison, 1)
    elif comparison is not None:
        target = target_of(claim, comparison)
        turned = comparison.turned()
        clear = (
            comparison.verdict == "helps" and not comparison.at_chance and (p_value is None or p_value < 1 - CONFIDENCE)
        )
        reach = None if target is None else math.log(target) if comparison.scale == "ratio" else target
        if clear:
            verdict = "shown"
        elif comparison.verdict == "hurts" or (
            comparison.verdict != "not measured"
            and reach is not None
            and turned.high < reach
            and turned.high > turned.low
        ):
            verdict = "refuted here"
        elif reach is not None and comparison.unit_error is not None:
            came = _needed(reach, comparison, tested)
    return JudgedClaim(**vars(claim), **came, verdict=verdict, target=target, p_value=p_value, tested=tested)


def _needed(reach: float, comparison: Comparison, tested: int) -> dict[str, Any]:
    """What would decide an open claim."""
    would = needed(
        reach,
        comparison.unit_error or 0.0,
        comparison.n,
        run_error=comparison.run_error,
        runs=max(comparison.runs),
        floor=comparison.noise_floor,
        **tested_by(comparison, tested),
    )
    return {"needed_units": would.units, "needed_runs": would.runs}


def tested_by(comparison: Comparison, tested: int) -> dict[str, Any]:
    """What `needed` has to know of the test: how many claims are tested together, and the bootstrap, if one tests."""
    drawn = comparison.test.startswith("paired bootstrap")
    return {"tests": max(1, tested), "resamples": RESAMPLES if drawn else None}


def _no_worse(margin: float, comparison: Comparison) -> ClaimVerdict:
    """Of a claim that the arm is no worse: refuted where the whole interval lies beyond the margin."""
    if comparison.verdict == "not measured" or comparison.no_worse is None:
        return "open"
    band = math.log1p(margin) if comparison.scale == "ratio" else margin
    return "shown" if comparison.no_worse else "refuted here" if comparison.turned().high < -band else "open"


def target_of(claim: Claim, comparison: Comparison) -> float | None:
    """What to look for: the paper's effect, the least that matters, a quarter of the gap to the best; or a margin."""
    if claim.margin is not None:
        return 1 + claim.margin if comparison.scale == "ratio" else claim.margin
    if claim.effect is not None:
        return claim.effect
    if claim.least is not None:
        return claim.least
    if comparison.ceiling is None or comparison.baseline_value is None or comparison.scale == "ratio":
        return None
    return abs(comparison.ceiling - comparison.baseline_value) / 4 or None


def outcome(claims: Sequence[JudgedClaim]) -> ClaimVerdict:
    """What a trial says of its paper: shown where every claim is, refuted here where one is, else open."""
    verdicts = {claim.verdict for claim in claims if claim.kind == "claim"}
    return "shown" if verdicts == {"shown"} else "refuted here" if "refuted here" in verdicts else "open"


def words(claim: JudgedClaim, comparison: Comparison | None) -> str:
    """A claim's verdict in one line, with what it rests on.

    Example:
        "shown"
        "refuted here: the interval excludes the paper's +0.08"
        "open: 340 items would show +0.08, a quarter of the gap to the ceiling, four times in five; 60 were asked"
    """
    if claim.verdict == "shown" and (claim.margin is None or comparison is None):
        return "shown"
    if claim.kind == "claim" and not claim.tested and claim.margin is claim.target is None:
        return "open: recorded before the present rules"
    if comparison is None or comparison.verdict == "not measured":
        return f"{claim.verdict}: not measured"
    if claim.trained_once:
        return f"open: trained once, and another seed may say something else; --runs {MIN_RUNS} trains {MIN_RUNS} times"
    if claim.verdict == "open" and comparison.at_chance:
        return f"open: it is at chance, where guessing gives {comparison.chance:g}"
    if claim.target is None:
        if claim.verdict == "refuted here":
            return "refuted here: it is worse"
        return "open: the paper gives no figure for it, and the metric has no ceiling"
    size = _size(claim, comparison)
    whose = "the paper's" if claim.effect is not None else "a quarter of the gap to the ceiling,"
    if claim.effect is None and claim.least is not None:
        whose = "the least that would matter,"
    if claim.margin is not None:
        whose = "the margin of"
        if claim.verdict != "open":
            return f"{claim.verdict}: it is {'no ' * (claim.verdict == 'shown')}worse by more than {size}"
    if claim.verdict == "refuted here":
        return f"refuted here: the interval excludes {whose} {size}"
    if comparison.verdict == "helps" and claim.p_value is not None:
        return f"open: it helps, but not beyond chance where {claim.tested} claims are tested (p {claim.p_value:.2g})"
    counted = comparison.counted or ("blocks" if comparison.test == TIMED else "items")
    if claim.needed_units is None and claim.needed_runs is None:
        return f"open: no number of {counted} would show {whose} {size} here"
    would = [f"{claim.needed_units:,} {counted}"] if claim.needed_units is not None else []
    would += [f"{claim.needed_runs:,} training runs"] if claim.needed_runs is not None else []
    return f"open: {' or '.join(would)} would show {whose} {size} four times in five; there were {comparison.n:,}" + (
        f" and {min(comparison.runs)}" if claim.needed_runs is not None else ""
    )


def _size(claim: JudgedClaim, comparison: Comparison) -> str:
    """The target in words: `"0.08 nats"`, `"1.9×"`, and a margin of a ratio in per cent."""
    assert claim.target is not None
    if comparison.scale == "ratio":
        return f"{100 * claim.target:.3g} %" if claim.margin is not None else f"{claim.target:.3g}×"
    return f"{claim.target:.3g}" + (f" {comparison.unit}" if comparison.unit else "")

"""What docs/evidence.md says of the evidence: each paper's rung, each claim, each method beside its peers.

Knows: the rows of the page, recorded trials. Does not know: other pages.
"""

from __future__ import annotations

from forest import ForestRow
from speeds import table

from broadsheet.page import evidence
from broadsheet.page.papers import RUNGS, Paper, ours
from broadsheet.report.answer import TrialAnswer
from broadsheet.trial import claims as claiming
from broadsheet.trial.results import TrialResult


def rung(paper: Paper) -> str:
    """`"2 exact"`, unbroken."""
    return f"{paper.rung}&nbsp;{RUNGS[paper.rung]}"


def trial_of(paper: Paper) -> TrialResult | None:
    """The recorded trial, or None."""
    recorded = evidence.read(paper.id)
    return TrialResult.from_dict(recorded) if recorded else None


def papers() -> str:
    """The state of every paper: rung, what came of its claims, how many were shown, refuted and open, and when."""
    rows = []
    for paper in sorted(ours(), key=lambda paper: -paper.rung):
        result = trial_of(paper)
        judged = [claim for claim in result.judged if claim.kind == "claim"] if result else []
        counts = [sum(claim.verdict == verdict for claim in judged) for verdict in ("shown", "refuted here", "open")]
        rows.append(
            (
                f"[`{paper.id}`](papers/{paper.id}.md)",
                paper.stage,
                rung(paper),
                paper.verdict or "—",
                " · ".join(map(str, counts)) if judged else "—",
                result.provenance["date"][:10] if result else "—",
            )
        )
    return table(("paper", "stage", "rung", "claims", "shown · refuted · open", "recorded"), rows)


def claims() -> str:
    """Every recorded claim with what came of it and what it rests on."""
    lines = []
    for row in claimed():
        came = claiming.words(row.claim, row.comparison)
        of = f"{row.claim.metric} of {row.claim.arm} over {row.claim.baseline}"
        lines.append(f"- `{row.paper}`, {of}: **{row.claim.verdict}**{came.removeprefix(row.claim.verdict)}.")
    return "\n".join(lines)


def peers() -> str:
    """How each method fares beside other implementations, and if it does not lead, why."""
    told = [
        f"- `{paper.id}`: {each}"
        for paper in ours()
        if (found := trial_of(paper))
        for each in TrialAnswer(found).beside
    ]
    return "\n".join(told)


def claimed() -> list[ForestRow]:
    """Every recorded claim beside its comparison."""
    found: list[ForestRow] = []
    for paper in ours():
        if result := trial_of(paper):
            found += [
                ForestRow(paper.id, claim, comparison)
                for claim in result.judged
                if claim.kind == "claim" and (comparison := result.comparison(*claim.key))
            ]
    return found

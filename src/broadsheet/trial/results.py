"""A finished trial as data: what was asked, what each arm did, how they differ, and what it was measured on.

Knows: plain fields, JSON. Does not know: how anything was measured (`trial`), or how it looks (`report`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from broadsheet.trial.claims import ClaimVerdict, JudgedClaim, outcome
from broadsheet.trial.stats import Interval
from broadsheet.trial.verdicts import Comparison

Role = Literal["baseline", "method", "sibling", "peer"]


@dataclass
class ArmResult:
    """What one arm did: numbers with intervals, time, memory; or where it failed.

    `runs` training runs were tried; values are means over them, and `samples` are of the first.
    """

    name: str
    role: Role
    description: str = ""
    status: Literal["ok", "failed"] = "ok"
    error: str = ""
    n_items: int = 0
    values: dict[str, Interval] = field(default_factory=dict)
    items_per_second: Interval | None = None
    prepare_seconds: float = 0.0
    peak_bytes: int = 0
    runs: int = 1
    samples: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class Distribution:
    """Values of a few named groups along one axis, drawn as overlaid densities: scores of human and machine texts."""

    title: str
    x_label: str
    groups: dict[str, list[float]]
    kind: Literal["distribution"] = "distribution"


@dataclass
class Curve:
    """Named lines y(x) with an optional band; `None` where a line has no value."""

    title: str
    x_label: str
    y_label: str
    x: list[float]
    lines: dict[str, list[float | None]]
    low: dict[str, list[float | None]] = field(default_factory=dict)
    high: dict[str, list[float | None]] = field(default_factory=dict)
    log_x: bool = False
    kind: Literal["curve"] = "curve"


@dataclass
class Example:
    """One item, and what arms made of it, in words that can be read: people believe what they can read.

    Attributes:
        item: the passage, the query, the question.
        answers: by arm, what it made of it: its scores, what it found, what it wrote.
        expected: what would have been right; empty where nothing is.
    """

    item: str
    answers: dict[str, str]
    expected: str = ""


def joined(one: ArmResult, other: ArmResult) -> ArmResult:
    """One arm's results in two jobs; speed is the first one's."""
    return replace(
        one,
        status="failed" if "failed" in (one.status, other.status) else "ok",
        error="; ".join(filter(None, (one.error, other.error))),
        n_items=one.n_items + other.n_items,
        values=one.values | other.values,
        prepare_seconds=one.prepare_seconds + other.prepare_seconds,
        peak_bytes=max(one.peak_bytes, other.peak_bytes),
        samples=one.samples | other.samples,
    )


def chance_level(metric: str) -> float | None:
    """What a coin scores: one half for an AUROC, the rate itself for a true-positive rate at a false-positive rate."""
    if re.match(r"(ROC[ -]?AUC|AU-?ROC)\b", metric, re.IGNORECASE):
        return 0.5
    rate = re.match(r"TPR\D*(\d+(?:\.\d+)?) ?%", metric, re.IGNORECASE)
    return float(rate[1]) / 100 if rate else None


def beside_chance(
    comparisons: Iterable[Comparison], arms: Iterable[ArmResult], levels: Mapping[str, float]
) -> list[Comparison]:
    """The comparisons, each with what guessing gives, and whether the arm's interval reaches that.

    Args:
        levels: by metric; for others it is `chance_level`, of which metrics have none as a rule.
    """
    spans = {(arm.name, metric): span for arm in arms for metric, span in arm.values.items()}
    found = []
    for c in comparisons:
        level, span = levels.get(c.metric, chance_level(c.metric)), spans.get((c.arm, c.metric))
        if level is None or span is None or math.isnan(span.estimate):
            found.append(c)
        else:
            reaches = span.low <= level if c.higher_is_better else span.high >= level
            found.append(replace(c, chance=level, at_chance=reaches))
    return found


def listed(words: Sequence[str]) -> str:
    """`"a, b and c"`."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def plural(word: str) -> str:
    """Several of them: texts, queries."""
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


@dataclass
class TrialResult:
    """A finished trial: all that the terminal table, the JSON file, the HTML page and the evidence are made from.

    `comparisons` holds one entry for each (pair of arms, metric), speed included. `judged` are the paper's claims and
    controls with what came of them. `examples` are items that a reader can judge. `demonstration` says why the trial is
    a demonstration alone, on features or weights that are not real; empty where they are. `provenance` holds versions,
    seeds, fingerprints of model and data, machine, date. `options` are those it was run with: the report as JSON is a
    `--config` of another run.
    """

    paper: str
    title: str
    question: str
    setting: dict[str, Any]
    arms: list[ArmResult]
    comparisons: list[Comparison]
    item: str = "item"
    judged: list[JudgedClaim] = field(default_factory=list)
    figures: list[Distribution | Curve] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    command: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    demonstration: str = ""
    schema: int = 2

    @property
    def verdict(self) -> ClaimVerdict:
        """What the trial says of its paper."""
        return outcome(self.judged)

    @property
    def claims(self) -> list[tuple[str, str, str]]:
        """(metric, baseline, arm) of every claim and control."""
        return [claim.key for claim in self.judged]

    def comparison(self, metric: str, baseline: str, arm: str) -> Comparison | None:
        """That comparison, or None where it was not made."""
        return next((c for c in self.comparisons if (c.metric, c.baseline, c.arm) == (metric, baseline, arm)), None)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialResult:
        """The result that `to_dict` gave, also after JSON, where null stands for a number that is not finite.

        Results of before schema 2 hold `claims` as (metric, baseline, arm), which the present rules did not judge: they
        are open.
        """

        def span(values: Mapping[str, Any] | None) -> Interval | None:
            return Interval(**{key: _number(value) for key, value in values.items()}) if values else None

        arms = [
            ArmResult(
                **{
                    **arm,
                    "values": {name: span(value) for name, value in arm["values"].items()},
                    "items_per_second": span(arm["items_per_second"]),
                }
            )
            for arm in data["arms"]
        ]
        comparisons = [
            Comparison(
                **{
                    **comparison,
                    "difference": span(comparison["difference"]),
                    "minimum_detectable_effect": _number(comparison["minimum_detectable_effect"]),
                    "runs": tuple(comparison.get("runs", (1, 1))),
                }
            )
            for comparison in data["comparisons"]
        ]
        comparisons = beside_chance(
            comparisons, arms, {c.metric: c.chance for c in comparisons if c.chance is not None}
        )
        figures = [(Curve if figure["kind"] == "curve" else Distribution)(**figure) for figure in data["figures"]]
        judged = [JudgedClaim(**claim) for claim in data.get("judged", ())]
        judged += [
            JudgedClaim(metric, baseline, arm, verdict="open") for metric, baseline, arm in data.get("claims", ())
        ]
        examples = [Example(**example) for example in data.get("examples", ())]
        rest = {key: value for key, value in data.items() if key != "claims"} | {"examples": examples}
        return cls(**{**rest, "arms": arms, "comparisons": comparisons, "figures": figures, "judged": judged})


def _number(value: float | None) -> float:
    return float("nan") if value is None else value

"""A finished trial as data: what was asked, what each arm did, how they differ, and what it was measured on.

Knows: plain fields, JSON. Does not know: how anything was measured (`trial`), or how it looks (`report`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from broadsheet.trial.stats import Comparison, Interval

Role = Literal["baseline", "method", "sibling", "peer"]


@dataclass
class ArmResult:
    """What one arm did: numbers with intervals, time, memory; or where it failed."""

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


def plural(word: str) -> str:
    """Several of them: texts, queries."""
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


@dataclass
class TrialResult:
    """A finished trial: all that the terminal table, the JSON file, the HTML page and the evidence are made from.

    `comparisons` holds one entry for each (pair of arms, metric), speed included. `claims` names those that the paper
    claims to win, as (metric, baseline, arm). `provenance` holds versions, seeds, fingerprints of model and data,
    machine, date.
    """

    paper: str
    title: str
    question: str
    setting: dict[str, Any]
    arms: list[ArmResult]
    comparisons: list[Comparison]
    item: str = "item"
    claims: list[tuple[str, str, str]] = field(default_factory=list)
    figures: list[Distribution | Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    command: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialResult:
        """The result that `to_dict` gave, also after JSON, where null stands for a number that is not finite."""

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
                }
            )
            for comparison in data["comparisons"]
        ]
        figures = [(Curve if figure["kind"] == "curve" else Distribution)(**figure) for figure in data["figures"]]
        claims = [tuple(claim) for claim in data["claims"]]
        return cls(**{**data, "arms": arms, "comparisons": comparisons, "figures": figures, "claims": claims})


def _number(value: float | None) -> float:
    return float("nan") if value is None else value

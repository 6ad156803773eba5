"""The A/B engine: run the plain baseline and the method on the same items, time them interleaved, and say what differs.

Knows: arms that turn a block of items into numbers, metrics over those numbers, clocks and memory. Does not know: models,
texts, or what an item is. The statistics are in `stats`; how a result looks is in `report`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from broadsheet.stats import Comparison, Interval, Statistic, mean

Role = Literal["baseline", "method", "sibling", "peer"]
Outputs = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Metric:
    """One question asked of every arm.

    Args:
        name: as it is printed, e.g. `"AUROC"`.
        of: which output of the arm it reads; by default its own name.
        statistic: items' values `(n, ...)` and resampling weights `(resamples, n)` to one number per row; the mean by default.
        higher_is_better: the direction of `helps`.
        binary: values are 0/1 per item, so the comparison is an exact McNemar test.
        unit: printed after the number.
    """

    name: str
    of: str = ""
    statistic: Statistic = mean
    higher_is_better: bool = True
    binary: bool = False
    unit: str = ""


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
    """Values of a few named groups along one axis, drawn as overlaid densities (e.g. scores of human and machine texts)."""

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
class TrialResult:
    """A finished trial: everything the terminal table, the JSON file, the HTML page and the evidence file are made from.

    `comparisons` holds one entry for each (pair of arms, metric), time included (metric `"items/s"`).
    `provenance` holds versions, seeds, fingerprints of model and data, machine, date.
    """

    paper: str
    title: str
    question: str
    setting: dict[str, Any]
    arms: list[ArmResult]
    comparisons: list[Comparison]
    item: str = "item"
    figures: list[Distribution | Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    command: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON types."""
        return asdict(self)

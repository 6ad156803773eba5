"""What a trial of ears says of its arms: sentences and curves from results and records.

Knows: results, what a training wrote down. Does not know: models, audio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from broadsheet.hear.trials.arms import spelt
from broadsheet.hear.trials.metrics import OTHERS, SOUNDS, WER
from broadsheet.trial.results import Curve


def trained(name: str, records: Mapping[str, Mapping[str, Any]]) -> str:
    """What each stage of an arm took, in one sentence; empty for an arm that is not trained.

    Args:
        records: of its stages, in order; empty ones are not its own.
    """
    told = []
    for stage, kept in records.items():
        if kept:
            how = "warm start, which is not the paper's" if stage == "start" else spelt(stage)
            settings = kept.get("settings", {})
            objective = settings.get("objective", {})
            rows = f" of {settings['batch_size']} rows" if settings else ""
            again = f" and {objective['rehearsed']} rehearsed" if objective.get("rehearsed") else ""
            told.append(f"{how}, {kept['steps']:,} steps{rows}{again} in {kept['seconds']:,.0f} s")
    return f"{name}: {'; '.join(told)}." if told else ""


def beside(values: Mapping[str, Any], others: Mapping[str, Any], name: str, control: str) -> str:
    """WER and accuracies of an arm beside those of another, and how far they lie apart, in one sentence."""
    told = [
        f"{metric} {values[metric].estimate:.3f} against {others[metric].estimate:.3f}, "
        f"{abs(values[metric].estimate - others[metric].estimate):.3f} apart"
        for metric in (WER, SOUNDS, OTHERS)
        if metric in values and metric in others
    ]
    return f"{name} beside {control}: {'; '.join(told)}."


def loss_curve(title: str, histories: Mapping[str, Sequence[Mapping[str, float]]], points: int = 50) -> Curve:
    """Losses over steps, the mean of consecutive steps at each of at most `points` points."""
    longest = max(len(history) for history in histories.values())
    width = -(-longest // points)
    starts = range(0, longest, width)
    lines: dict[str, list[float | None]] = {}
    for name, history in histories.items():
        losses = [each["loss"] for each in history]
        parts = [losses[start : start + width] for start in starts]
        lines[name] = [sum(part) / len(part) if part else None for part in parts]
    return Curve(title, "step", "loss", [float(min(start + width, longest)) for start in starts], lines)

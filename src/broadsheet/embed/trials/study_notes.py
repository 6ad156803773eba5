"""What a reader of a study's table should know: in what its rows differ, and what it could have seen.

Knows: backbones, rates, records, comparisons. Each note says what was measured or set in this run, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from broadsheet.embed.dense_retrieval_study import CellRecord, StudyBackbone
from broadsheet.embed.trials.study_presets import Table
from broadsheet.trial.verdicts import Comparison


def of_backbones(made: Table, found: Mapping[str, StudyBackbone]) -> list[str]:
    """In what the backbones of a table's rows differ; `found` by name."""
    notes = []
    own = [each.pretrained for each in found.values() if each.pretrained is not None]
    if own:
        losses = ", ".join(f"{each.name} {each.loss:.3f} (learning rate {each.rate:g})" for each in own)
        notes.append(
            f"Pre-trained here, once each: {own[0].tokens:,} tokens, of {own[0].unique:,} drawn from the packages that "
            f"are trained on. {own[0].documents} documents that were kept apart cost, in nats a byte: {losses}. Seeds "
            "are those of the training after it."
        )
    if len(found) > max(1, len(own)):
        notes.append("What backbones given by name were pre-trained on, and for how long, is not held fixed.")
    if any(row.recipe.layers not in (0, found[row.recipe.backbone].depth) for row in made.rows):
        notes.append(
            "Rows with fewer layers than others keep the first ones of the same model, which was pre-trained with all "
            "of them. They are not backbones of several sizes, and no claim of the study is asked of them."
        )
    return notes


def of_rates(best: Mapping[str, tuple[float, Sequence[float]]]) -> list[str]:
    """Trainings whose best learning rate is an end of those that were tried, given with them."""
    ends = [f"{rate:g} ({name})" for name, (rate, tried) in best.items() if rate in (min(tried), max(tried))]
    return [f"The best learning rate was the lowest or the highest that was tried: {', '.join(ends)}."] if ends else []


def of_table(made: Table, comparisons: Sequence[Comparison], records: Mapping[str, list[CellRecord]]) -> list[str]:
    """What the table could have seen, how seeds differ, whether training did anything."""
    notes = []
    seen = [c.minimum_detectable_effect for c in comparisons if c.metric.startswith("nDCG@10") and c.n > 1]
    if seen:
        notes.append(
            f"Power: with {comparisons[0].n} queries, a difference in nDCG@10 of {float(np.median(seen)):.3f} would be "
            "found in four of five repetitions (the median over the pairs)."
        )
    spread = [
        np.std([np.mean(r.values["nDCG@10"]) for r in each], ddof=1) for each in records.values() if len(each) > 1
    ]
    if spread:
        notes.append(f"Between seeds, nDCG@10 has a standard deviation of {float(np.mean(spread)):.3f} on average.")
    raw = [row.name for row in made.rows if row.step == 0]
    by_pair = {(c.baseline, c.arm): c for c in comparisons if c.metric == "nDCG@10"}
    for name in raw:
        told = by_pair.get((name, name.removesuffix(", untrained")))
        if told and told.verdict != "helps":
            notes.append(f"Training did not measurably improve {told.arm} over the raw model.")
    return notes

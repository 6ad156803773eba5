"""Examples of a finished trial, checked for what holds of all of them."""

from __future__ import annotations

from broadsheet.trial.examples import MOST
from broadsheet.trial.results import Example, TrialResult


def shown(result: TrialResult) -> list[Example]:
    """Its examples: a few, each with what every arm that did not fail made of it, in no more than fits a report."""
    arms = {arm.name for arm in result.arms if arm.status == "ok"}
    assert 1 <= len(result.examples) <= MOST
    for example in result.examples:
        assert example.item.strip()
        assert set(example.answers) <= arms
        assert all(answer.strip() and len(answer) < 500 for answer in example.answers.values())
    return result.examples


def reasons(result: TrialResult) -> dict[str, str]:
    """Why the gain of each claim that is not shown may be absent, as a note says it, by the claim's metric."""
    found: dict[str, str] = {}
    for claim in result.judged:
        made = result.comparison(*claim.key)
        if claim.kind == "claim" and claim.verdict != "shown" and made and made.verdict != "helps":
            gain = f"{claim.metric} of {claim.arm} over {claim.baseline}"
            [note] = [note for note in result.notes if "absent here in" in note and gain in note]
            found[claim.metric] = note.partition(". ")[2]
    assert all(found.values()), "each has one"
    return found

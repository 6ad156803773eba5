"""A detector as a step of a datatrove pipeline."""

from __future__ import annotations

import pytest

from broadsheet.detect import Likelihood

data = pytest.importorskip("datatrove.data")

TEXTS = {"plain": "some ordinary words in a row", "other": "zq xj kv wp", "empty": ""}


def test_documents_above_the_threshold_are_dropped_and_counted(tiny_model, tiny_tokenizer):
    from broadsheet.detect.datatrove import DetectorFilter

    detector = Likelihood(model=(tiny_model(), tiny_tokenizer()))
    scores = dict(zip(TEXTS, detector.score(list(TEXTS.values())), strict=True))
    low, high = sorted(["plain", "other"], key=lambda name: scores[name])
    step = DetectorFilter(detector, threshold=float(scores[high]), batch_size=2)
    kept = list(step(iter([data.Document(text, name) for name, text in TEXTS.items()])))
    assert {document.id for document in kept} == {low, "empty"}
    assert {document.id: document.metadata.get("machine_score") for document in kept} == {
        low: pytest.approx(scores[low], abs=1e-6),
        "empty": None,
    }
    assert step.stats["dropped"].total == 1
    assert step.stats["dropped_machine_written"].total == 1

"""Diachronic's oracle cases: splits by words, slices by date, the loss of two teachers, shared words."""

from typing import Any

import torch
from datatrove.data import Document

from broadsheet.curate import AttributeDate, SliceByDate
from broadsheet.curate.periods.counts import counted, only_of, shared_vocabulary
from broadsheet.curate.periods.models import distillation
from broadsheet.curate.periods.splits import SPLITS, fill

REASONS = {"unparsable_year": "unparsable"}


def run(case: dict[str, Any]) -> dict[str, Any]:
    match case["fn"]:
        case "word_budget_split":
            given = case["paragraphs"]
            words = [len(each.split()) for each in given]
            taken = fill(words, [case[f"{split}_words"] for split in SPLITS])
            found = {split: [given[i] for i in places] for split, places in zip(SPLITS, taken, strict=True)}
            return {**found, "words": [sum(words[i] for i in places) for places in taken]}
        case "slice_filter":
            documents = [Document("", str(i), metadata=dict(work)) for i, work in enumerate(case["works"])]
            gone: dict[str, str] = {}
            dates = AttributeDate(exclusion_writer=Gone(gone))
            slices = SliceByDate([case["start"], case["end"]], exclusion_writer=Gone(gone))
            kept = {each.id for each in slices.run(dates.run(documents))}
            told = {each.id: "keep" if each.id in kept else REASONS.get(gone[each.id], "drop") for each in documents}
            return {"decision": [told[each.id] for each in documents]}
        case "two_teacher_distillation":
            student, labels = torch.tensor(case["student_logits"]).double(), torch.tensor(case["input_ids"])
            teachers = [torch.tensor(each).double() for each in case["teacher_logits"]]
            found = distillation(student, teachers, labels, case["alpha"], case["temperature"])
            return {name: float(value) for name, value in found.items()}
        case "shared_vocabulary_filter":
            counts = [counted([corpus]) for corpus in case["corpora"]]
            return {"kept": only_of(case["items"], shared_vocabulary(counts, case["min_occurrence"]))}
    raise ValueError(case["fn"])


class Gone:
    """An exclusion writer that keeps why documents went."""

    def __init__(self, reasons: dict[str, str]) -> None:
        self.reasons = reasons

    def __enter__(self) -> "Gone":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def write(self, document: Document, rank: int = 0) -> None:
        self.reasons[document.id] = document.metadata["filter_reason"]

"""Who's Harry Potter's oracle cases: generic logits and labels, and a translation of words with its map and mask."""

import re
from typing import Any

import torch
from transformers import BatchEncoding

from broadsheet.train import WhosHarryPotter
from broadsheet.train.unlearning_whp import generic_logits


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "words" in case:
        return _translated(case["words"], case["dictionary"])
    baseline, reinforced = (
        torch.tensor(case[name], dtype=torch.float64) for name in ("baseline_logits", "reinforced_logits")
    )
    generic = generic_logits(baseline, reinforced, case["alpha"])
    return {"generic_logits": generic.tolist(), "labels": generic.argmax(-1).tolist()}


class _Words:
    """A tokenizer of whole words."""

    is_fast, eos_token_id = True, 0

    def __init__(self) -> None:
        self.words = ["<end>"]

    def __call__(self, texts: list[str], **how: Any) -> BatchEncoding:
        found = [list(re.finditer(r"\S+", text)) for text in texts]
        self.words += [match.group() for matches in found for match in matches if match.group() not in self.words]
        ids = [[self.words.index(match.group()) for match in matches] for matches in found]
        spans = [[match.span() for match in matches] for matches in found]
        return BatchEncoding({"input_ids": ids, "offset_mapping": spans})


def _translated(words: list[str], dictionary: dict[str, str]) -> dict[str, Any]:
    """The block of a text of words; the end after it, and the first token's own rule, are no part of the case."""
    by = _Words()
    blocks = WhosHarryPotter(dictionary).blocks([" ".join(["<begin>", *words])], by, len(words) + 2)
    return {
        "translated": [by.words[token] for token in blocks.translated[0][1:-1]],
        "orig_to_translated": (blocks.positions[0][1:-1] - 1).tolist(),
        "masked_from_loss": blocks.masked[0][1:-1].tolist(),
    }

"""What `generate` does with drafts, without a model: which draft tokens are written, and whole texts step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from broadsheet.decode.base import DecodeStats, Drafter, GreedyWriter
from broadsheet.decode.draft import Draft


def written(draft: Draft, choices: Sequence[int]) -> tuple[list[int], list[int]]:
    """The tokens written after a root, and the accepted nodes.

    Args:
        choices: (n + 1,) the target's token after the root and after each node.
    """
    writer = GreedyWriter(torch.zeros(1, 1, dtype=torch.long), [], [], GenerationConfig(), None)
    logits = torch.nn.functional.one_hot(torch.tensor(choices), max(choices) + 1).float()
    accepted = writer.write(logits, draft)
    return writer.tokens, accepted


def steps(drafter: Drafter, prompt: Sequence[int], text: Sequence[int]) -> list[tuple[Draft, list[int]]]:
    """Have a drafter draft for a target that writes `text` after `prompt`: each draft, and what its step wrote."""
    drafter.stats_ = DecodeStats()
    drafter.begin(prompt)
    drafter.wrote(text[:1], 0)
    made, at = [], 1
    while at < len(text):
        draft = drafter.draft(len(text) - at - 1)
        node, new = -1, 0
        while (child := draft.child(node, text[at + new])) is not None:
            node, new = child, new + 1
        made.append((draft, list(text[at : at + new + 1])))
        drafter.wrote(text[at : at + new + 1], new)
        at += new + 1
    return made

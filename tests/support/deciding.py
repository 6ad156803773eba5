"""The part of `generate` that decides which draft tokens are written, without a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from broadsheet.decode.base import GreedyWriter
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

"""Answers to prompts as rows to train on: the loss is asked of the answer alone, in the template that a teacher reads.

Knows: tokens of a prompt and of its answer, padding. Does not know: where rows come from, optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from broadsheet.cache import fingerprint
from broadsheet.training.losses import IGNORED, sequence_losses
from broadsheet.training.objective import Objective

if TYPE_CHECKING:
    from broadsheet.teacher.local import Local


@dataclass(frozen=True)
class AnswerRows(Sequence[tuple[tuple[int, ...], tuple[int, ...]]]):
    """Rows of two parts, both token ids: a prompt, and the answer with the token that ends it.

    Args:
        rows: (prompt, answer) pairs.
    """

    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @classmethod
    def of(cls, by: Local, prompts: Sequence[Any], answers: Sequence[str]) -> AnswerRows:
        """Conversations and their answers as a teacher of this model reads them, when it scores or generates.

        Args:
            by: a local model with its tokenizer.
            prompts: conversations that end with the user's message.
        """
        end = by.tokenizer.eos_token_id
        space = "" if by.has_template else " "  # as in a transcript
        return cls(
            tuple(
                (tuple(by.prompt_ids(prompt)), (*by.encode(space + answer), end))
                for prompt, answer in zip(prompts, answers, strict=True)
            )
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Any) -> Any:
        return self.rows[place]

    def identity(self) -> Any:
        """What tells these rows from others."""
        return [len(self.rows), fingerprint(self.rows)]


class AnswerLoss(Objective):
    """The mean loss of an answer's tokens, the mean over a batch's rows; the prompt is read, and nothing asked of it.

    Args:
        pad: the token that fills rows up on the right, where no token looks.

    Example:
        fit(model, AnswerRows.of(Local(model, tokenizer), prompts, answers), AnswerLoss(tokenizer.pad_token_id), out)
    """

    def __init__(self, pad: int = 0) -> None:
        self.pad = pad

    def collate(self, items: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        rows = [row for _, row in items]
        widest = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), widest), self.pad)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for i, (prompt, answer) in enumerate(rows):
            whole = len(prompt) + len(answer)
            ids[i, :whole] = torch.tensor([*prompt, *answer])
            labels[i, len(prompt) : whole] = ids[i, len(prompt) : whole]
            mask[i, :whole] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}

    def loss(self, model: Any, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        losses, _ = sequence_losses(logits, batch["labels"])
        return losses.mean()

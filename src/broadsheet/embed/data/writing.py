"""Passages as a causal LM generates them for a query: prompts with targets, and their likelihood.

Knows: tokenizers, causal LMs, LoRA adapters that can be switched off. Does not know: losses, embeddings.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from broadsheet.console import InputError
from broadsheet.embed.modules.encoder import CausalEncoder, context_length
from broadsheet.models import token_budget_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

PROMPT = "Write a passage that answers the query.\nQuery: {query}\nPassage:"


class PassageWriter:
    """Queries and passages to rows of tokens, as if the model had generated the passage.

    Args:
        encoder: its tokenizer and limits; query and passage are each cut to its `max_seq_length`, as where they are
            embedded, and the passage further to what the model's context leaves.
        prompt: before the passage; `{query}` is replaced. It may hold the markers of a chat template.
        score_prompt: the prompt's tokens are targets too.

    Raises:
        InputError: the prompt has no place for the query, or takes the whole context.
    """

    def __init__(self, encoder: CausalEncoder, prompt: str = PROMPT, *, score_prompt: bool = False) -> None:
        if prompt.count("{query}") != 1:
            raise InputError(f"got prompt {prompt!r}; expected one {{query}} in it")
        self.encoder = encoder
        self.prompt = prompt
        self.score_prompt = score_prompt
        before, after = prompt.split("{query}")
        self._before, self._after = self._ids(before, start=True), self._ids(after)
        context = context_length(encoder.model, encoder.tokenizer)
        self._room = None if context is None else context - len(self._before) - len(self._after) - 1
        if self._room is not None and self._room < 2:
            raise InputError(f"the prompt takes the model's context of {context} tokens; shorten it")

    def row(self, query: str, passage: str) -> tuple[list[int], list[int]]:
        """Token ids, and labels: −100 where a token is not scored. The end-of-text token ends it and is scored."""
        most = self.encoder.max_seq_length
        asked = self._ids(query)[: most if self._room is None else min(most or self._room, max(1, self._room // 2))]
        prompt = [*self._before, *asked, *self._after]
        room = None if self._room is None else self._room - len(asked)
        written = self._ids(f" {passage.lstrip()}")[: room if most is None else min(most, room or most)]
        end = self.encoder.tokenizer.eos_token_id
        written = written if end is None else [*written, int(end)]
        return [*prompt, *written], [*(prompt if self.score_prompt else [-100] * len(prompt)), *written]

    def batch(self, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        """(query, passage) pairs to ids and labels, (pairs, length) each, padded on the right."""
        return stack([self.row(*pair) for pair in pairs], int(self.encoder.tokenizer.pad_token_id))

    def _ids(self, text: str, *, start: bool = False) -> list[int]:
        """Ids of a piece of the row; the first piece has the special token that the tokenizer starts texts with."""
        tokenizer = self.encoder.tokenizer
        ids: list[int] = list(tokenizer(text, add_special_tokens=start, verbose=False)["input_ids"])
        plain = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if start else len(ids)
        closing = start and len(ids) > plain and ids[-1] == tokenizer.eos_token_id and len(ids) > 1
        return ids[:-1] if closing else ids


def stack(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids and labels, padded on the right, where causal attention does not look."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    for i, (row, targets) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = torch.tensor(targets)
    return ids, labels


def read_written(model: PreTrainedModel, ids: Tensor, labels: Tensor, autocast: torch.dtype | None = None) -> Tensor:
    """Σ log p of each row's labelled tokens under causal attention, (rows,), in float32 at least.

    Args:
        ids, labels: (rows, length), padded on the right; labels −100 where a token does not count.
        autocast: the type of the forward pass.
    """
    wanted = (labels[:, 1:] != -100).any(0).nonzero()[:, 0]  # columns whose logits predict a token that counts
    with torch.autocast(ids.device.type, dtype=autocast) if autocast else nullcontext():
        if _keeps_logits(model):
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=wanted).logits
        else:
            logits = model(input_ids=ids, use_cache=False).logits[:, wanted]
    targets = labels[:, 1:][:, wanted]
    counted = targets != -100
    # Only labelled positions go through the softmax: over a large vocabulary the others cost most of the memory.
    chosen = logits[counted]
    picked = -cross_entropy(
        chosen if chosen.dtype == torch.float64 else chosen.float(), targets[counted], reduction="none"
    )
    row = counted.nonzero()[:, 0]
    return torch.zeros(len(labels), dtype=picked.dtype, device=picked.device).index_add(0, row, picked)


def token_counts(labels: Tensor) -> Tensor:
    """Labelled tokens of each row that something predicts, at least 1: the divisor of a mean log-probability."""
    return (labels[:, 1:] != -100).sum(1).clamp_min(1)


@torch.no_grad()
def mean_log_probs(
    encoder: CausalEncoder, pairs: Sequence[tuple[str, str]], prompt: str = PROMPT, *, batch_tokens: int = 2048
) -> NDArray[np.float64]:
    """How likely each passage is for its query: (query, passage) pairs to mean log p per token, (pairs,)."""
    writer, model = PassageWriter(encoder, prompt), encoder.model
    rows = [writer.row(*pair) for pair in pairs]
    means = np.zeros(len(rows))
    training = model.training
    model.eval()
    try:
        for batch in token_budget_batches([len(ids) for ids, _ in rows], batch_tokens):
            ids, labels = stack([rows[i] for i in batch], int(encoder.tokenizer.pad_token_id))
            sums = read_written(model, ids.to(model.device), labels.to(model.device)).double().cpu()
            means[batch] = (sums / token_counts(labels)).numpy()
    finally:
        model.train(training)
    return means


def _keeps_logits(model: PreTrainedModel) -> bool:
    """Whether the head can be asked for chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters

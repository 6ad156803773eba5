"""Unlearning while a model generates: its logits beside those of one that was trained on the text further.

Knows: `generate`, two causal LMs of one tokenizer. Does not know: dictionaries, training.

These are not the paper's method, though benchmarks call them by its name: nothing is trained, both models read the same
tokens, nothing is translated, and the reinforced model has to be there whenever anything is generated.
- `GenericLogitsProcessor`: the paper's difference of logits (as in the benchmark MUSE).
- `LogLinearProcessor`: p_base^c p_reinf^(1−c), another thing again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, log_softmax
from transformers import LogitsProcessor

from broadsheet.console import InputError
from broadsheet.train.unlearning_whp import generic_logits


@dataclass
class _BesideReinforced(LogitsProcessor):
    """Reads with a second model what is generated, a token at a time; a beam that is another's heir is read anew.

    Args:
        reinforced: the second model, in evaluation mode.
        attention_mask: (batch, length) of the prompts, where they are padded.
    """

    reinforced: Any = field(repr=False)
    attention_mask: Tensor | None = field(default=None, repr=False, kw_only=True)
    _cache: Any = field(default=None, init=False, repr=False)
    _read: Tensor | None = field(default=None, init=False, repr=False)

    def combined(self, baseline: Tensor, reinforced: Tensor) -> Tensor:
        """(batch, vocabulary) logits of both to those that are used."""
        raise NotImplementedError

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As `generate` calls it: (batch, length) tokens, (batch, vocabulary) logits.

        Raises:
            InputError: the vocabularies differ.
        """
        return self.combined(scores.float(), self._next(input_ids).to(scores.device)).to(scores.dtype)

    @torch.no_grad()
    def _next(self, ids: Tensor) -> Tensor:
        """(batch, vocabulary) float32 logits of the reinforced model after these tokens."""
        from transformers import DynamicCache

        before = self._read
        grown = (
            before is not None
            and before.shape[0] == ids.shape[0]
            and before.shape[1] < ids.shape[1]
            and torch.equal(before, ids[:, : before.shape[1]])
        )
        if not grown:
            self._cache, before = DynamicCache(config=self.reinforced.config), None
        done = 0 if before is None else before.shape[1]
        more = self._padding(ids, done)
        found: Tensor = self.reinforced(
            ids[:, done:].to(self.reinforced.device), cache=self._cache, use_cache=True, **more
        ).logits[:, -1]
        self._read = ids.clone()
        return found.float()

    def _padding(self, ids: Tensor, done: int) -> dict[str, Tensor]:
        """The mask of all tokens, and the positions of the new ones, where prompts are padded."""
        if self.attention_mask is None:
            return {}
        mask = self.attention_mask.to(self.reinforced.device)
        mask = mask.repeat_interleave(ids.shape[0] // mask.shape[0], 0)  # several beams of a prompt
        mask = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])], 1)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        return {"attention_mask": mask, "position_ids": positions[:, done:]}


@dataclass
class GenericLogitsProcessor(_BesideReinforced):
    """v_base − α ReLU(v_reinf − v_base) of each next token, of the model that generates and a reinforced one.

    Use when a model must not be changed, and one can afford two at a time. α has to be searched for: 4 on one text, 256
        on another were chosen in the benchmark.

    Args:
        alpha: α.
        centre: see `generic_logits`.

    Example:
        from transformers import LogitsProcessorList

        beside = LogitsProcessorList([GenericLogitsProcessor(reinforced, alpha=4.0)])
        model.generate(**prompt, logits_processor=beside)

    Source: arXiv:2407.06460 (MUSE), whose code applies the equation of arXiv:2310.02238 at inference.
    """

    alpha: float = 5.0
    centre: bool = False

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise InputError(f"got alpha {self.alpha}; expected 0 or more")

    def combined(self, baseline: Tensor, reinforced: Tensor) -> Tensor:
        return generic_logits(baseline, reinforced, self.alpha, self.centre)


@dataclass
class LogLinearProcessor(_BesideReinforced):
    """c log p_base + (1 − c) log p_reinf: for c above 1 away from the reinforced model, by as much for all tokens.

    Use when results that others got so are to be repeated; it is a third thing called Who's Harry Potter, without the
        ReLU: what the text made less probable becomes more so.

    Args:
        c: from 1 (the baseline) on; below 1 it goes towards the reinforced model.

    Source: the text of arXiv:2407.06460 (MUSE).
    """

    c: float = 2.0

    def combined(self, baseline: Tensor, reinforced: Tensor) -> Tensor:
        if baseline.shape != reinforced.shape:
            generic_logits(baseline, reinforced)  # which says what is wrong
        return self.c * log_softmax(baseline, -1) + (1 - self.c) * log_softmax(reinforced, -1)

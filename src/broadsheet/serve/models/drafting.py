"""Drafts for an answer that is written alone: several tokens a step, and the same text.

Knows: the drafters of `decode`, the model that verifies. Does not know: batches, requests. Many answers fill a step by
themselves; one alone leaves most of it unused, and there a draft pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from broadsheet.decode.base import DecodeStats
from broadsheet.decode.target import TargetModel, check_cache, check_model
from broadsheet.teacher.live import GrowingAnswer, TokenReader

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from broadsheet.decode.table_drafter import TableDrafter


@dataclass
class _Drafted:
    """One answer's own drafter, how many of its tokens that has seen, and how many of the last ones it had drafted."""

    drafter: TableDrafter
    seen: int = 0
    accepted: int = 0


class Drafting:
    """Reads an answer ahead (`teacher.live.ReadAhead`), as far as a drafter guesses what greedy decoding writes.

    Args:
        drafter: each answer is drafted by a fork of it, so that none learns from another's text.

    Attributes:
        stats: of all answers together.

    Raises:
        InputError: the model cannot verify drafts.
    """

    def __init__(self, reader: TokenReader, drafter: TableDrafter) -> None:
        check_model(reader.model, tree=not drafter.chain)
        self._reader, self._drafter = reader, drafter
        self._answers: WeakKeyDictionary[GrowingAnswer, _Drafted] = WeakKeyDictionary()
        self.stats = DecodeStats()

    def __call__(self, answer: GrowingAnswer, cache: Cache, mask: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        check_cache(cache, "the batch")
        drafted = self._drafted(answer)
        drafter = drafted.drafter
        room = answer.row.limit - len(answer.tokens) - 1  # the token after the draft is written too
        padding = None if bool(mask.all()) else mask
        position = int(mask.sum()) if self._reader.takes_positions else None
        target = TargetModel(self._reader.model, cache, padding, position, tree=not drafter.chain)
        drafter.prepare(target, room)
        draft = drafter.draft(room)
        logits = target.read(answer.tokens[-1], draft)  # (1 + nodes, vocabulary)
        choices = logits.argmax(-1).tolist()
        accepted: list[int] = []
        node = -1
        while (child := draft.child(node, choices[node + 1])) is not None:
            accepted.append(node := child)
        target.keep(accepted, len(draft))
        drafted.accepted = len(accepted)
        self.stats.forwards += 1
        self.stats.drafted += len(draft)
        self.stats.accepted += len(accepted)
        return [draft.tokens[each] for each in accepted], logits[node + 1 : node + 2].float()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Measure what steps cost before anybody waits for an answer."""
        cache, _, _ = self._reader.prefill([[0] * 256])
        position = 256 if self._reader.takes_positions else None
        self._drafter.prepare(TargetModel(self._reader.model, cache, None, position, tree=not self._drafter.chain), 64)

    def _drafted(self, answer: GrowingAnswer) -> _Drafted:
        """The answer's drafter, which has seen all of it."""
        drafted = self._answers.get(answer)
        if drafted is None:
            drafted = self._answers[answer] = _Drafted(self._drafter.fork())
            drafted.drafter.stats_ = DecodeStats()
            drafted.drafter.begin(answer.row.prompt)
        drafted.drafter.wrote(answer.tokens[drafted.seen :], drafted.accepted)
        drafted.seen = len(answer.tokens)
        return drafted

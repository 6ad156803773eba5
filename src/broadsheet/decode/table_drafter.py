"""What drafters from a table of tri-grams share: they adapt it, watch what it proposes, and cut drafts to size.

Knows: the table, what was written, what a step costs. Does not know: how a tree is searched for, how a draft is
verified (`base`), tokenizers.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import WeakKeyDictionary

from broadsheet.console import InputError
from broadsheet.decode.acceptance import Acceptance
from broadsheet.decode.base import Drafter
from broadsheet.decode.draft import Draft
from broadsheet.decode.history import LONGEST
from broadsheet.decode.offers import Offer, offers
from broadsheet.decode.step_cost import StepCost, measure
from broadsheet.decode.table import TrigramTable

if TYPE_CHECKING:
    from broadsheet.decode.target import TargetModel


@dataclass
class TableDrafter(Drafter):
    """A drafter with a table that adapts to what is written. A subclass proposes a tree, `_tree`.

    Parameters:
        table: T[(a, b)] = {c: value}; an empty one when left out. It learns from every request.
        chain: draft one path alone, which needs no tree mask: any attention function will do.
        tree_size: draft tokens a step; `"auto"` measures on first use what steps of 1 to 64 tokens take, counts how
            often proposals of a kind are right, and verifies as many as make it faster, often none.
        increment, window, cap: after each step every tri-gram of the last `window` tokens gains `increment`, up to
            `cap`.
        step_seconds: tokens read in a step → its seconds, instead of measuring.

    Attributes:
        acceptance_: how often proposals of a kind were right.
        step_costs_: by model, the seconds of steps as measured.

    Raises:
        InputError: a parameter is out of range; and on use, what `Drafter` refuses, or a table of another vocabulary.
    """

    table: TrigramTable = field(default_factory=TrigramTable)
    chain: bool = field(default=False, kw_only=True)
    tree_size: int | Literal["auto"] = field(kw_only=True)
    increment: float = field(kw_only=True)
    window: int = field(kw_only=True)
    cap: float = field(kw_only=True)
    step_seconds: Mapping[int, float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        size = self.tree_size
        if size != "auto" and (not isinstance(size, int) or size < 1):
            raise InputError(f"got tree_size {size!r}; expected 'auto' or a whole number from 1")
        if not isinstance(self.window, int) or self.window < 1:
            raise InputError(f"got window {self.window!r}; expected a whole number from 1")
        if self.increment < 0 or self.cap <= 0:
            raise InputError(f"got increment {self.increment}, cap {self.cap}; expected 0 or more, and more than 0")
        self.acceptance_ = Acceptance()
        self._step_cost = StepCost(self.step_seconds) if self.step_seconds is not None else None
        self.step_costs_: WeakKeyDictionary[Any, dict[tuple[Any, ...], StepCost]] = WeakKeyDictionary()
        self._checked: tuple[TrigramTable | None, int] = (None, 0)
        self._tail: list[int] = []

    @abstractmethod
    def _tree(self, room: int) -> Draft:
        """A tree below the last token, at most `room` deep, to be cut to size.

        Its nodes carry their chances where it is larger than `tree_size`, or that is `"auto"`; and their source where
        the table did not propose them.
        """

    def fork(self) -> Self:
        """A copy that learns on its own; the corpus's part of the table is shared."""
        twin = copy.copy(self)
        twin.table, twin.acceptance_ = self.table.fork(), self.acceptance_.fork()
        twin._tail = []
        return twin

    def begin(self, prompt: Sequence[int]) -> None:
        self._tail = list(prompt[-max(LONGEST, self.window) :])

    def prepare(self, target: TargetModel, room: int) -> None:
        if room < 2:  # the trial steps read two tokens ahead, where there might be no position for them
            return
        self._check_table(target.model.get_input_embeddings().num_embeddings)
        if not self.chain:
            target.check_tree()
        if self.tree_size == "auto" and self.step_seconds is None:
            self._step_cost = self._measured(target)

    def draft(self, room: int) -> Draft:
        if room < 1 or len(self._tail) < 2 or (self.tree_size == "auto" and self._step_cost is None):
            return Draft()
        self.stats_.unknown += not self.table.successors(*self._tail[-2:])
        draft = self._tree(room)
        draft = draft.best(self._size(draft))
        for node, token in enumerate(draft.tokens):
            draft.sources[node] = draft.sources[node] or self.table.source(*draft.before(node, self._tail), token)
        return draft

    def wrote(self, tokens: Sequence[int], accepted: int) -> None:
        for token in tokens:
            self._learn(token)
        self._tail = self._tail[-max(LONGEST, self.window) :]
        # Step 2 of ADED: T[(a, b)][c] ← min(T[(a, b)][c] + increment, cap)
        self.table.adapt(self._tail[-self.window :], increment=self.increment, cap=self.cap)

    def _learn(self, token: int) -> None:
        """Count whether what could have been proposed was right, and append the token."""
        if len(self._tail) >= 2:
            for offered, _, place in self._offers(self._tail):
                self.acceptance_.observe(place, offered == token)
        self._tail.append(token)

    def _offers(self, tail: Sequence[int]) -> list[Offer]:
        """What may come after `tail`, with its chances."""
        return offers(tail, self.table, None, self.acceptance_)

    def _size(self, draft: Draft) -> int:
        """How many of a draft's nodes are verified."""
        if self.tree_size != "auto":
            return self.tree_size
        assert self._step_cost
        expected = list(accumulate(sorted(draft.chances, reverse=True), initial=1.0))
        return self._step_cost.best_draft_size(expected)

    def _check_table(self, vocabulary: int) -> None:
        """See that all tokens of the table are tokens of the model; once for a table, which then grows by those alone.

        Raises:
            InputError: they are not.
        """
        if self._checked[0] is self.table and self._checked[1] == vocabulary:
            return
        if self.table.largest >= vocabulary:
            raise InputError(
                f"the table has token {self.table.largest}, the model {vocabulary} tokens: "
                "build a table with this model's tokenizer"
            )
        self._checked = (self.table, vocabulary)

    def _measured(self, target: TargetModel) -> StepCost:
        """What steps of this model cost at about this length of context, measured once."""

        def step(size: int) -> None:
            extra = size - 1
            target.read(0, Draft([0] * extra, [-1] * extra, [1.0] * extra)).argmax(-1).tolist()
            target.forget(size)

        known = self.step_costs_.setdefault(target.model, {})
        context = max(target.length, 512).bit_length() // 2  # up to 2,047 tokens, 8,191, 32,767, …
        key = (target.model.dtype, target.device, target.attention, self.chain, context)
        if key not in known:
            known[key] = measure(step)
        return known[key]

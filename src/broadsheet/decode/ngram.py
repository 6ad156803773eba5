"""Our own drafter from a table of tri-grams: it also copies from what was read, and drafts as far as that is faster.

No paper has it. From ADED (arXiv:2407.12021, `aded`) it takes the table, its adaptation and the verification of a tree
in one pass. Not from there: n-grams of the own context are matched as in prompt lookup, the longest agreement first;
each kind of proposal has the chance that it was right so far; the likeliest nodes are drafted first, as in trees of
other speculative decoders; and a step verifies as many of them as its measured cost pays for.

Knows: the table, the history of a sequence, chances. Does not know: how a draft is verified (`base`), tokenizers.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from broadsheet.console import InputError
from broadsheet.decode.acceptance import COPIED
from broadsheet.decode.draft import Draft
from broadsheet.decode.history import LONGEST, History
from broadsheet.decode.offers import Offer, offers
from broadsheet.decode.table_drafter import TableDrafter


@dataclass
class NgramDrafter(TableDrafter):
    """Write greedy decoding's output faster: drafts copied from the context or taken from a table, as far as they pay.

    Ours, in no paper; see the module for what it takes from ADED.

    Use when: a model repeats its prompt or itself (code, templates, summaries, documentation), or texts like those it
        writes are at hand for a table. Where nothing repeats it drafts little and costs little.
    Prefer `prompt_lookup_num_tokens` when: several sequences are written at once, or the cache is not a plain one.
    Inputs: as of `ADED`.
    Relation: `ADED` searches the table alone, always for 64 tokens of at most 4 in a row; prompt lookup copies one
        fixed number of tokens from the last bigram's first occurrence, whatever became of its copies before.

    Parameters:
        table: T[(a, b)] = {c: value}; an empty one when left out. It learns from every request.
        tree_size: draft tokens a step; `"auto"` measures on first use what steps of 1 to 64 tokens take and verifies
            as many as make it faster, often none.
        depth: tokens of the longest path; `"auto"` is as deep as is likely: copying pays at 16 and more.
        chain: draft the best path alone, which needs no tree mask (any attention function will do).
        recency: also copy from the latest places where the last pair occurred, the longest agreement first. The pair
            alone does not show which of its occurrences is being copied.
        feed_prompt: adapt the table to the whole prompt once.
        increment, window, cap: after each step every tri-gram of the last `window` tokens gains `increment`, up to
            `cap`, as in ADED.
        step_seconds: tokens read in a step → its seconds, instead of measuring.

    Attributes:
        stats_: `DecodeStats` of the last call.
        history_: what was read and written.
        acceptance_, step_costs_: see `TableDrafter`.

    Raises:
        InputError: a parameter is out of range; and on use, what `Drafter` refuses, or a table of another vocabulary.

    Example:
        >>> from broadsheet import models
        >>> from broadsheet.decode import NgramDrafter
        >>> model, tokenizer = models.load("default", dtype="float32")
        >>> drafter = NgramDrafter()
        >>> inputs = tokenizer("one two three four one two three four one two", return_tensors="pt").to(model.device)
        >>> text = model.generate(**inputs, custom_generate=drafter, do_sample=False, max_new_tokens=40)
        >>> drafter.stats_.tokens_per_forward > 1
        True

    Source: ours. In float32 the output is greedy decoding's; in half precision near-ties can fall the other way.
    """

    tree_size: int | Literal["auto"] = field(default="auto", kw_only=True)
    depth: int | Literal["auto"] = field(default="auto", kw_only=True)
    recency: bool = field(default=True, kw_only=True)
    feed_prompt: bool = field(default=True, kw_only=True)
    increment: float = field(default=0.04, kw_only=True)
    window: int = field(default=16, kw_only=True)
    cap: float = field(default=3.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth != "auto" and (not isinstance(self.depth, int) or self.depth < 1):
            raise InputError(f"got depth {self.depth!r}; expected 'auto' or a whole number from 1")
        self.history_ = History()

    def fork(self) -> Self:
        twin = super().fork()
        twin.history_ = self.history_.fork()
        return twin

    def begin(self, prompt: Sequence[int]) -> None:
        super().begin(prompt)
        if self.feed_prompt:
            self.table.adapt(prompt, increment=self.increment, cap=self.cap)
        if self.recency:
            self.history_.end()
            self.history_.extend(prompt)

    def _learn(self, token: int) -> None:
        super()._learn(token)
        if self.recency:
            self.history_.extend([token])

    def _offers(self, tail: Sequence[int]) -> list[Offer]:
        return offers(tail, self.table, self.history_ if self.recency else None, self.acceptance_)

    def _tree(self, room: int) -> Draft:
        limit, least = self.tree_size, 0.0
        if limit == "auto":
            assert self._step_cost
            limit, least = self._step_cost.largest, self._step_cost.least_chance
        depth = room if self.depth == "auto" else min(room, self.depth)
        return best_first(self._tail, self._offers, depth=depth, limit=limit, least=least, chain=self.chain)


def best_first(
    tail: Sequence[int],
    offers: Callable[[Sequence[int]], list[Offer]],
    *,
    depth: int,
    limit: int,
    least: float = 0.0,
    chain: bool = False,
) -> Draft:
    """The nodes of the highest chance, parents first; those that are copied say so in their source.

    Args:
        tail: the last tokens of the context.
        offers: what may come after a context.
        depth: tokens of the longest path.
        limit: nodes at most.
        least: nodes of no higher chance are left out.
        chain: one path alone.
    """
    draft = Draft()
    waiting: list[tuple[float, int, int, int, int, str]] = []  # -chance, order, parent, token, depth, source

    def expand(node: int, level: int, chance: float) -> None:
        if level == depth:
            return
        offered = offers([*tail, *draft.path(node)][-LONGEST:])
        if chain:
            offered = sorted(offered, key=lambda offer: -offer[1])[:1]
        for token, share, place in offered:
            if chance * share > least:
                source = "copied" if place[:1] == (COPIED,) else ""
                heapq.heappush(waiting, (-chance * share, len(draft) + len(waiting), node, token, level + 1, source))

    expand(-1, 0, 1.0)
    while waiting and len(draft) < limit:
        chance, _, parent, token, level, source = heapq.heappop(waiting)
        expand(draft.add(parent, token, -chance, source), level, -chance)
    return draft

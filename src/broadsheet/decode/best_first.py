"""Ours, in place of the paper's search: what may come next with what chance, and the likeliest nodes first.

Knows: a table, the history of a sequence, how often proposals of a kind were right. Does not know: models, what a step
costs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from broadsheet.decode.acceptance import Acceptance, Bin, copied, tabled
from broadsheet.decode.draft import Draft
from broadsheet.decode.history import LONGEST, SURE, History
from broadsheet.decode.table import TrigramTable

LEAST_SHARE = 0.05  # successors below this share of their pair are not offered: hardly one in fifty is written

Offer = tuple[int, float, Bin]  # a token, the chance that it is written here, and what that rests on


def offers(tail: Sequence[int], table: TrigramTable, history: History | None, acceptance: Acceptance) -> list[Offer]:
    """What may come after `tail`, copied from the history or from the table, with its chances.

    Args:
        tail: the last tokens of a context, two at least.
        history: None to use the table alone.
    """
    found = history.followers(tail) if history is not None else {}
    offered: list[Offer] = []
    ranked = sorted(found, key=lambda token: -found[token])
    for rank, token in enumerate(ranked):
        place, guess = copied(found[token], rank, len(ranked) - 1)
        offered.append((token, acceptance.chance(place, guess), place))
    if ranked and found[ranked[0]] >= SURE:
        return offered
    row = table.successors(tail[-2], tail[-1])
    if not row:
        return offered
    total = table.total(tail[-2], tail[-1])
    # Probabilities may add up to less than one (only the first twelve are kept), adapted values to more.
    scale = max(1.0, sum(row.values())) if total else sum(row.values())
    for token, value in row.items():
        if value >= LEAST_SHARE * scale and token not in found:
            place, guess = tabled(value / scale, total, bool(found))
            offered.append((token, acceptance.chance(place, guess), place))
    return offered


def best_first(
    tail: Sequence[int],
    offers: Callable[[Sequence[int]], list[Offer]],
    *,
    depth: int,
    limit: int,
    least: float = 0.0,
    chain: bool = False,
) -> Draft:
    """The nodes of the highest chance, parents first.

    Args:
        tail: the last tokens of the context.
        offers: what may come after a context.
        depth: tokens of the longest path.
        limit: nodes at most.
        least: nodes of no higher chance are left out.
        chain: one path alone.
    """
    draft = Draft()
    waiting: list[tuple[float, int, int, int, int]] = []  # -chance, order, parent, token, depth

    def expand(node: int, level: int, chance: float) -> None:
        if level == depth:
            return
        offered = offers([*tail, *draft.path(node)][-LONGEST:])
        if chain:
            offered = sorted(offered, key=lambda offer: -offer[1])[:1]
        for token, share, _ in offered:
            if chance * share > least:
                heapq.heappush(waiting, (-chance * share, len(draft) + len(waiting), node, token, level + 1))

    expand(-1, 0, 1.0)
    while waiting and len(draft) < limit:
        chance, _, parent, token, level = heapq.heappop(waiting)
        expand(draft.add(parent, token, -chance), level, -chance)
    return draft

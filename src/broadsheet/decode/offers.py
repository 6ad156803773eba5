"""What may come next, with what chance: what a draft is weighed by where its size is chosen. Ours, in no paper.

Knows: a table, the history of a sequence, how often proposals of a kind were right. Does not know: models, what a step
costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broadsheet.decode.acceptance import Acceptance, Bin, copied, tabled
from broadsheet.decode.draft import Draft
from broadsheet.decode.history import SURE, History
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


def weigh(draft: Draft, tail: Sequence[int], offers: Callable[[Sequence[int]], list[Offer]]) -> None:
    """Give each node of a draft its chance, in place: a token that is not offered has less than any that is.

    Args:
        tail: the last tokens of the context.
        offers: what may come after a context.
    """
    known: dict[int, dict[int, float]] = {}
    for node, (parent, token) in enumerate(zip(draft.parents, draft.tokens, strict=True)):
        if parent not in known:
            known[parent] = {offered: chance for offered, chance, _ in offers([*tail, *draft.path(parent)])}
        above = draft.chances[parent] if parent >= 0 else 1.0
        draft.chances[node] = above * known[parent].get(token, LEAST_SHARE / 2)

"""Windows, sweeps and orders: how a list too long for one prompt is ranked through calls that each see a few items.

Knows: indices of items, orders of windows. Does not know: models, prompts, texts; the caller compares the items of a
window.

A *strategy* is a generator. It yields the indices of a window's items in their present order, is sent the order that
the comparison gave (positions within the window, best first), and returns the final order of all items. So the sweeps
of many queries can advance together, with their windows in one batch (`run_lockstep`). `sliding` is here, `full` and
`multipass` in `fullrank`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Literal

from broadsheet.console import InputError

Identifiers = Literal["alpha", "numeric"]
Sweep = Generator[list[int], Sequence[int], list[int]]
Strategy = Callable[[int, int, int], Sweep]

# Only a single letter or a number in brackets is an identifier; the word "I" and "[AC]" are not.
BRACKETED: dict[str, re.Pattern[str]] = {
    "alpha": re.compile(r"\[\s*([A-Z])\s*\]"),
    "numeric": re.compile(r"\[\s*([0-9]{1,9})\s*\]"),
}


def check_window(window: int, step: int) -> None:
    """Refuse a window or step that would never finish or would leave items out.

    Raises:
        InputError: `window` is below 2, or `step` is not between 1 and `window`.
    """
    if window < 2:
        raise InputError(f"window is {window}; expected at least 2 passages")
    if not 1 <= step <= window:
        raise InputError(f"step is {step}; expected 1 to {window}, the window: a larger step skips passages")


def windows(n: int, window: int, step: int, start: int = 0) -> list[tuple[int, int]]:
    """The windows (first, end) of one sweep over the items from `start` to `n`, last items first.

    The last window begins at `start`. A list no longer than a window makes one call, whatever the step; the authors'
    loop makes none for n = window − step. Fewer than two items need no call.

    Raises:
        InputError: see `check_window`.

    Example:
        >>> windows(25, window=20, step=10)
        [(5, 25), (0, 15)]

    Source: arXiv:2406.15657, Sec. 2; authors' code gangiswag/llm-reranker.
    """
    check_window(window, step)
    found: list[tuple[int, int]] = []
    if n - start < 2:
        return found
    end = n
    while not found or found[-1][0] > start:
        found.append((max(start, end - window), end))
        end -= step
    return found


def sliding(n: int, window: int, step: int) -> Sweep:
    """One sweep from the back: each window's order is written back before the next window is read.

    With an exact comparison the first `window − step` places are right afterwards; the others may not be.

    Source: RankGPT's sliding window, as arXiv:2406.15657 and arXiv:2412.14574 use it (window 20, step 10).
    """
    order = list(range(n))
    yield from sweep(order, 0, window, step)
    return order


def calls(strategy: Strategy, n: int, window: int, step: int) -> int:
    """How many windows a strategy compares for `n` items; no order that a comparison gives changes it."""
    windows_seen = 0

    def keep(asked: list[tuple[int, list[int]]]) -> list[list[int]]:
        nonlocal windows_seen
        windows_seen += len(asked)
        return [list(range(len(items))) for _, items in asked]

    run_lockstep([strategy(n, window, step)], keep)
    return windows_seen


def sweep(order: list[int], start: int, window: int, step: int) -> Generator[list[int], Sequence[int], None]:
    """One sweep over `order` from its end to `start`, as part of a strategy; `order` is changed in place."""
    for first, end in windows(len(order), window, step, start):
        items = order[first:end]
        order[first:end] = reorder(items, (yield list(items)))


def reorder(items: Sequence[int], order: Iterable[int]) -> list[int]:
    """`items` in `order`, which holds positions in `items`, best first.

    Raises:
        ValueError: `order` is not a permutation of the positions (`complete` makes one of an incomplete order).
    """
    order = list(order)
    if sorted(order) != list(range(len(items))):
        raise ValueError(f"got the order {order} for {len(items)} items; expected each of their positions once")
    return [items[position] for position in order]


def run_lockstep(
    sweeps: Sequence[Sweep], compare: Callable[[list[tuple[int, list[int]]]], Sequence[Sequence[int]]]
) -> list[list[int]]:
    """Run many sweeps together: in each round, `compare` is given one window of every sweep that is not done.

    Args:
        sweeps: made by a strategy, not started yet.
        compare: from a list of (index of the sweep, indices of the window's items) to one order each, a permutation of
            the window's positions, best first.

    Returns:
        The final order of each sweep, best first.

    Raises:
        ValueError: an order is not a permutation, or `compare` did not return one order per window.

    Example:
        >>> values = [3, 1, 2]
        >>> def compare(windows):
        ...     return [sorted(range(len(w)), key=lambda p: -values[w[p]]) for _, w in windows]
        >>> run_lockstep([sliding(3, window=2, step=1)], compare)
        [[0, 2, 1]]
    """
    results: dict[int, list[int]] = {}
    waiting: list[tuple[int, list[int]]] = []

    def advance(index: int, order: Sequence[int] | None) -> None:
        try:
            window = next(sweeps[index]) if order is None else sweeps[index].send(order)
        except StopIteration as end:
            results[index] = end.value
        else:
            waiting.append((index, window))

    for index in range(len(sweeps)):
        advance(index, None)
    while waiting:
        asked, waiting = waiting, []
        orders = compare(asked)
        if len(orders) != len(asked):
            raise ValueError(f"got {len(orders)} orders for {len(asked)} windows; expected one each")
        for (index, _), order in zip(asked, orders, strict=True):
            advance(index, order)
    return [results[index] for index in range(len(sweeps))]


def mentioned(text: str, identifiers: Identifiers = "alpha") -> list[int]:
    """Every bracketed identifier in `text` as a 0-based position, in order, with repeats and out-of-range ones."""
    found = BRACKETED[identifiers].findall(text)
    return [ord(one) - ord("A") if identifiers == "alpha" else int(one) - 1 for one in found]


def parse(text: str, n: int, identifiers: Identifiers = "alpha") -> list[int]:
    """The positions (0-based) that a written ranking names, each once, out-of-range ones left out.

    Args:
        text: a model's answer, such as `"[C] > [A]"`; anything outside brackets is ignored.
        n: passages in the window.
        identifiers: letters from A, or numbers from 1.

    Example:
        >>> parse("I say [B] > [B] > [Z] > [A]", n=3)
        [1, 0]
    """
    return list(dict.fromkeys(position for position in mentioned(text, identifiers) if 0 <= position < n))


def complete(positions: Iterable[int], n: int) -> list[int]:
    """A permutation of 0 … n − 1: valid `positions` without repeats, then the others in incoming order.

    Example:
        >>> complete([2, 2, 9, 0], n=4)
        [2, 0, 1, 3]
    """
    known = dict.fromkeys(position for position in positions if 0 <= position < n)
    return [*known, *(position for position in range(n) if position not in known)]


def by_score(scores: Sequence[float]) -> list[int]:
    """Positions by falling score; equal scores keep their incoming order."""
    return sorted(range(len(scores)), key=lambda position: -scores[position])


def label_text(order: Sequence[int], identifiers: Identifiers = "numeric") -> str:
    """The ranking as a model should write it, `"[3] > [1] > [2]"` for the 0-based order 2, 0, 1."""
    names = (chr(ord("A") + position) if identifiers == "alpha" else str(position + 1) for position in order)
    return " > ".join(f"[{name}]" for name in names)

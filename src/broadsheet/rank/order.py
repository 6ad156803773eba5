"""Windows, sweeps and orders: how a list too long for one prompt is ranked through calls that each see a few items.

Knows indices of items and orders of windows. Does not know models, prompts, texts: what compares the items of a window
is the caller's.

A *strategy* is a generator. It yields the indices of a window's items in their present order, is sent the order that
the comparison gave (positions within the window, best first), and returns the final order of all items. Written so,
the sweeps of many queries advance side by side, and their windows make one batch (`run_lockstep`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Literal

from broadsheet.console import InputError

Identifiers = Literal["alpha", "numeric"]
Sweep = Generator[list[int], Sequence[int], list[int]]
Strategy = Callable[[int, int, int], Sweep]

# Only what stands in brackets is an identifier: the word "I" and the abbreviation "[AC]" are none.
BRACKETED: dict[str, re.Pattern[str]] = {
    "alpha": re.compile(r"\[\s*([A-Z])\s*\]"),
    "numeric": re.compile(r"\[\s*([0-9]{1,9})\s*\]"),
}


def check_window(window: int, step: int) -> None:
    """Refuse a window or step that would never finish or leave items out.

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

    With an exact comparison the first `window − step` places are right after it, the others need not be.
    """
    order = list(range(n))
    yield from _sweep(order, 0, window, step)
    return order


def full(n: int, window: int, step: int) -> Sweep:
    """All items in one call; `window` and `step` are not used."""
    order = list(range(n))
    if n > 1:
        order = reorder(order, (yield list(order)))
    return order


def multipass(n: int, window: int, step: int) -> Sweep:
    """Sweep, freeze the first `step` places, sweep the rest, and so on; the last `window` items are one call.

    With an exact comparison every place is right. Steps of more than half a window freeze `window − step` places: no
    more are sure after a sweep.

    Raises:
        InputError: `step` equals `window`: windows that do not overlap carry no item forward.

    Source: arXiv:2412.14574, the construction of complete labels ("multi-pass sliding window").
    """
    order = list(range(n))
    for start in _passes(n, window, step):
        yield from _sweep(order, start, window, step)
    return order


def multipass_calls(n: int, window: int, step: int) -> list[int]:
    """Calls of each pass of `multipass`: 9, 8, …, 1 for 100 items, windows of 20 and steps of 10."""
    return [len(windows(n, window, step, start)) for start in _passes(n, window, step)]


STRATEGIES: dict[str, Strategy] = {"sliding": sliding, "full": full, "multipass": multipass}


def calls(strategy: str, n: int, window: int, step: int) -> int:
    """How many windows a strategy compares for `n` items."""
    if strategy == "full":
        return int(n > 1)
    return len(windows(n, window, step)) if strategy == "sliding" else sum(multipass_calls(n, window, step))


def _passes(n: int, window: int, step: int) -> list[int]:
    """The first item of each pass."""
    check_window(window, step)
    if step == window:
        raise InputError(f"step equals the window ({window}); several passes need windows that overlap: lower the step")
    frozen = min(step, window - step)
    starts = [0] if n > 1 else []
    while starts and n - starts[-1] > window:
        starts.append(starts[-1] + frozen)
    return starts


def _sweep(order: list[int], start: int, window: int, step: int) -> Generator[list[int], Sequence[int], None]:
    for first, end in windows(len(order), window, step, start):
        items = order[first:end]
        order[first:end] = reorder(items, (yield list(items)))


def reorder(items: Sequence[int], order: Iterable[int]) -> list[int]:
    """`items` in `order`, which holds positions in `items`, best first.

    Raises:
        ValueError: `order` is not a permutation of the positions; see `complete` for one that is cut or garbled.
    """
    order = list(order)
    if sorted(order) != list(range(len(items))):
        raise ValueError(f"got the order {order} for {len(items)} items; expected each of their positions once")
    return [items[position] for position in order]


def run_lockstep(
    sweeps: Sequence[Sweep], compare: Callable[[list[tuple[int, list[int]]]], Sequence[Sequence[int]]]
) -> list[list[int]]:
    """Run many sweeps side by side: in each round, `compare` is given one window of every sweep that is not done.

    Args:
        sweeps: as a strategy makes them; none started yet.
        compare: a list of (index of the sweep, indices of the window's items) to as many orders, each a permutation
            of the window's positions, best first.

    Returns:
        The final order of each sweep, best first.

    Raises:
        ValueError: an order is not a permutation, or `compare` returned another number of them than it got windows.

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


def sweep(
    items: int | Sequence[object],
    compare: Callable[[list[int]], Sequence[int]],
    window: int = 20,
    step: int = 10,
    strategy: str = "sliding",
) -> list[int]:
    """One list through one strategy. `compare` gets a window's item indices and returns its positions, best first."""
    n = items if isinstance(items, int) else len(items)
    generator = strategy_named(strategy)(n, window, step)
    return run_lockstep([generator], lambda asked: [compare(window) for _, window in asked])[0]


def strategy_named(name: str) -> Strategy:
    """The strategy of that name.

    Raises:
        InputError: there is none.
    """
    if name not in STRATEGIES:
        raise InputError(f"strategy is {name!r}; expected one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def mentioned(text: str, identifiers: Identifiers = "alpha") -> list[int]:
    """Every bracketed identifier in `text` as a 0-based position, in order, repeated and impossible ones included."""
    found = BRACKETED[identifiers].findall(text)
    return [ord(one) - ord("A") if identifiers == "alpha" else int(one) - 1 for one in found]


def parse(text: str, n: int, identifiers: Identifiers = "alpha") -> list[int]:
    """The positions (0-based) that a written ranking names, each once, those of no passage left out.

    Args:
        text: what a model wrote, such as `"[C] > [A]"`; anything outside brackets is passed over.
        n: passages in the window.
        identifiers: letters from A, or numbers from 1.

    Example:
        >>> parse("I say [B] > [B] > [Z] > [A]", n=3)
        [1, 0]
    """
    return list(dict.fromkeys(position for position in mentioned(text, identifiers) if 0 <= position < n))


def complete(positions: Iterable[int], n: int) -> list[int]:
    """A permutation of 0 … n − 1: `positions` without repeats and strangers, then the others in incoming order.

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

"""What was read and written, and what followed each pair of tokens: an index for copying from the own context.

Knows: token ids. Does not know: tables, models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from broadsheet.decode.table import pack

_OCCURRENCES = 8  # the latest ones of a pair that are compared
LONGEST = 32  # tokens that two contexts are compared over
SURE = 16  # tokens in common after which no other occurrence is looked for
_BREAK = -1


class History:
    """Tokens in order, and for every pair the places where it was followed by something.

    Args:
        capacity: tokens kept; when they are exceeded the older half is forgotten.
    """

    def __init__(self, capacity: int = 1 << 16) -> None:
        self.capacity = capacity
        self.tokens: list[int] = []
        self._places: dict[int, list[int]] = {}

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            self.tokens.append(token)
            if len(self.tokens) > 2:
                self._places.setdefault(pack(self.tokens[-3], self.tokens[-2]), []).append(len(self.tokens) - 1)
        if len(self.tokens) > self.capacity:
            kept, self.tokens, self._places = self.tokens[-self.capacity // 2 :], [], {}
            self.extend(kept)

    def end(self) -> None:
        """Mark the end of a sequence: nothing is found across it."""
        if self.tokens and self.tokens[-1] != _BREAK:
            self.extend([_BREAK])

    def followers(self, tail: Sequence[int]) -> dict[int, int]:
        """What came after contexts that end like `tail`: token → the most tokens in common, the latest first.

        Args:
            tail: the last tokens of a context, two at least. More than `LONGEST` are not compared.
        """
        found: dict[int, int] = {}
        tokens = self.tokens
        longest = min(len(tail), LONGEST)
        for place in reversed(self._places.get(pack(tail[-2], tail[-1]), ())[-_OCCURRENCES:]):
            token = tokens[place]
            if token == _BREAK:
                continue
            common = 2
            while common < min(longest, place) and tokens[place - 1 - common] == tail[-1 - common]:
                common += 1
            if found.get(token, 0) < common:
                found[token] = common
            if common >= SURE:
                break
        return found

    def fork(self) -> History:
        """A history of the same content that grows on its own."""
        twin = History(self.capacity)
        twin.tokens = self.tokens.copy()
        twin._places = {pair: places.copy() for pair, places in self._places.items()}
        return twin

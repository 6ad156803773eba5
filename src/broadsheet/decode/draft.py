"""A draft: the small tree of continuations that one forward pass of the target verifies.

Knows: token ids, parents. Does not know: where the tokens come from, or any model. The root, the last token that is
certain, is not part of the tree; its children have the parent -1. A parent stands before its children.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Draft:
    """Nodes of a tree of tokens, all lists of one length.

    Attributes:
        tokens: (n,) token ids; no two children of one parent are alike.
        parents: (n,) the index of each node's parent, -1 for the root.
        chances: (n,) how likely the target accepts the node, its ancestors included; 1 where nothing is known.
        sources: (n,) what proposed the node, empty where that is not told.

    Example:
        >>> draft = Draft.from_paths([[3, 4], [3, 5]])
        >>> draft.tokens, draft.parents
        ([3, 4, 5], [-1, 0, 0])
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sources = self.sources or [""] * len(self.tokens)
        nodes = zip(self.parents, self.tokens, strict=True)
        self._children = {node: i for i, node in enumerate(nodes)}

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]], source: str = "") -> Draft:
        """Paths from below the root, merged where they begin alike; nodes by depth, then in the order of the paths."""
        draft = cls()
        whole = [tuple(path) for path in paths]
        ends: dict[tuple[int, ...], int] = {(): -1}
        for depth in range(1, max(map(len, whole), default=0) + 1):
            for path in whole:
                prefix = path[:depth]
                if len(path) >= depth and prefix not in ends:
                    ends[prefix] = draft.add(ends[prefix[:-1]], prefix[-1], source=source)
        return draft

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, chance: float = 1.0, source: str = "") -> int:
        """Add a node below `parent`; its index."""
        self._children[parent, token] = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.chances.append(chance)
        self.sources.append(source)
        return len(self.tokens) - 1

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` (-1: the root) with this token."""
        return self._children.get((node, token))

    def path(self, node: int) -> list[int]:
        """The tokens from below the root down to `node`."""
        tokens = []
        while node >= 0:
            tokens.append(self.tokens[node])
            node = self.parents[node]
        return tokens[::-1]

    def before(self, node: int, tail: Sequence[int]) -> tuple[int, int]:
        """The two tokens before `node`, in the draft or at the end of the context `tail`."""
        parent = self.parents[node]
        if parent < 0:
            return tail[-2], tail[-1]
        above = self.parents[parent]
        return (tail[-1] if above < 0 else self.tokens[above]), self.tokens[parent]

    def best(self, size: int) -> Draft:
        """The `size` nodes of the highest chance, which is a tree too: no node is likelier than its parent."""
        chosen = sorted(sorted(range(len(self)), key=lambda i: -self.chances[i])[:size])
        place = {-1: -1} | {old: new for new, old in enumerate(chosen)}
        return Draft(
            [self.tokens[i] for i in chosen],
            [place[self.parents[i]] for i in chosen],
            [self.chances[i] for i in chosen],
            [self.sources[i] for i in chosen],
        )

    def depths(self) -> list[int]:
        """(n,) distance from the root, 1 for its children."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    def mask(self) -> NDArray[np.bool_]:
        """(n + 1, n + 1) who sees whom: row and column 0 are the root's; a node sees its ancestors and itself."""
        mask = np.eye(len(self) + 1, dtype=bool)
        for node, parent in enumerate(self.parents, start=1):
            mask[node] |= mask[parent + 1]
        return mask

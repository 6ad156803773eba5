"""The paper's search: Monte-Carlo tree search over a table of tri-grams (arXiv:2407.12021).

Knows: a table, a pair of tokens. Does not know: models, or what becomes of the paths. A state is a pair of tokens; a
move appends a token. The authors' constants are the defaults.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from broadsheet.decode.table import TrigramTable

Reward = Literal["sum", "authors"]
Path = tuple[int, ...]


def puct(
    visits: int, total_reward: float, prior: float, parent_visits: int, *, c1: float = 32.0, c2: float = 8.0
) -> float:
    """How much a child deserves the next visit: its mean reward, and more the likelier and the less visited it is.

    Q/n + (C₁ + ln((N + C₂ + 1)/C₂)) · prior · √N/(1 + n); infinite for a child never visited.
    """
    if visits == 0:
        return math.inf
    return total_reward / visits + _exploration(parent_visits, c1, c2) * prior / (1 + visits)


def _exploration(parent_visits: int, c1: float, c2: float) -> float:
    """What the term of exploration has in common for all children of a parent."""
    return (c1 + math.log((parent_visits + c2 + 1) / c2)) * math.sqrt(parent_visits)


@dataclass(slots=True)
class _Node:
    """A state of the search. `children` is None until it is expanded."""

    token: int
    prior: float
    pair: tuple[int, int]
    visits: int = 0
    total_reward: float = 0.0
    children: list[_Node] | None = None


@dataclass
class TreeSearch:
    """Find likely continuations of a pair by PUCT.

    Args:
        iterations: simulations a search (the authors: 150).
        depth: tokens of the longest path; the last one is not searched but the likeliest successor (the authors: 4).
        prefixes: how many of the most visited paths are kept (24).
        max_draft_tokens: of all paths together, counting the different tokens of each (64).
        c1, c2: exploration constants (32 and 8).
        reward: `"sum"`, one plus the table values along the path, is what is meant; `"authors"` is what the authors'
            code computes: it looks the values up at the token before, so that the reward is nearly always one.
        seed: of the moves drawn in simulations; a search depends on the seed and the pair, not on earlier searches.
    """

    iterations: int = 150
    depth: int = 4
    prefixes: int = 24
    max_draft_tokens: int = 64
    c1: float = 32.0
    c2: float = 8.0
    reward: Reward = "sum"
    seed: int = 0
    _random: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def paths(self, table: TrigramTable, pair: tuple[int, int]) -> list[Path]:
        """Draft paths below the pair's last token, the most visited first; none when the pair has no successor."""
        self._random.seed(f"{self.seed} {pair}")
        root = _Node(pair[1], 1.0, pair)
        if not self._expand(root, table):
            return []
        for _ in range(self.iterations):
            self._visit(root, table)
        kept = sorted(_prefixes(root), key=lambda found: -found[1])[: self.prefixes]
        return cut([self._lengthened(path, pair, table) for path, _ in kept], self.max_draft_tokens)

    def _visit(self, root: _Node, table: TrigramTable) -> None:
        """One iteration: select, expand, simulate, add the reward to every node on the way."""
        node, way = root, [root]
        while node.children:
            node = self._select(node)
            way.append(node)
        if len(way) < self.depth and node.children is None and self._expand(node, table):
            assert node.children
            node = self._random.choice(node.children)
            way.append(node)
        reward = 1.0 + sum(self._value(a.pair, b, table) for a, b in pairwise(way))
        reward += self._simulate(node.pair, self.depth - len(way), table)
        for node in way:
            node.visits += 1
            node.total_reward += reward

    def _select(self, node: _Node) -> _Node:
        """The child of the largest PUCT score (`puct`, its common factor taken out of the loop)."""
        common = _exploration(node.visits, self.c1, self.c2)
        best, highest = None, -1.0
        for child in node.children or ():
            if not child.visits:
                return child
            score = child.total_reward / child.visits + common * child.prior / (1 + child.visits)
            if score > highest:
                best, highest = child, score
        assert best
        return best

    def _expand(self, node: _Node, table: TrigramTable) -> bool:
        """Add all successors of a node at once; whether there are any."""
        last = node.pair[1]
        node.children = [_Node(c, value, (last, c)) for c, value in table.successors(*node.pair).items()]
        return bool(node.children)

    def _simulate(self, pair: tuple[int, int], moves: int, table: TrigramTable) -> float:
        """The reward of up to `moves` tokens drawn in proportion to the table, fewer where the table ends."""
        total = 0.0
        for _ in range(moves):
            row = table.successors(*pair)
            if not row:
                break
            [token] = self._random.choices(list(row), list(row.values()))
            total += row[token] if self.reward == "sum" else row.get(pair[1], 0.0)
            pair = (pair[1], token)
        return total

    def _value(self, pair: tuple[int, int], child: _Node, table: TrigramTable) -> float:
        if self.reward == "sum":
            return child.prior
        return table.successors(*pair).get(pair[1], 0.0)

    def _lengthened(self, path: Path, pair: tuple[int, int], table: TrigramTable) -> Path:
        """The path, and the likeliest token after it."""
        first, second = (*pair, *path)[-2:]
        row = table.successors(first, second)
        return (*path, max(row, key=lambda token: row[token])) if row else path


def cut(paths: Sequence[Path], limit: int) -> list[Path]:
    """Drop paths until their numbers of different tokens add up to at most `limit`, those with the most first."""
    sizes = [len(set(path)) for path in paths]
    dropped: set[int] = set()
    for i in sorted(range(len(paths)), key=lambda i: -sizes[i]):
        if sum(sizes) - sum(sizes[j] for j in dropped) <= limit:
            break
        dropped.add(i)
    return [path for i, path in enumerate(paths) if i not in dropped]


def _prefixes(root: _Node) -> list[tuple[Path, int]]:
    """Every path in the tree with its visits, shorter ones first."""
    found: list[tuple[Path, int]] = []
    level: list[tuple[Path, _Node]] = [((), root)]
    while level:
        level = [((*path, child.token), child) for path, node in level for child in node.children or ()]
        found += [(path, child.visits) for path, child in level]
    return found

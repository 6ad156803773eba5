"""ADED (Adaptive Draft-Verification, arXiv:2407.12021): draft from a table of tri-grams that follows what is written.

Knows: the table, the search. Does not know: how a draft is verified (`base`), tokenizers.

- Table: T[(a, b)] = {c: p}, the share of each successor c of a pair in a corpus; its 12 most probable ones (`table`).
- Step 1, root: the next certain token r, x' = x + [r] (`base`).
- Step 2, adapt: T[(a, b)][c] ← min(T[(a, b)][c] + 0.04, 3) for every tri-gram of the last 16 tokens of x'
  (`table_drafter`).
- Step 3, search: from the pair (x'[-2], x'[-1]), 150 iterations of Monte-Carlo tree search whose selection is PUCT.
- Step 4, collect: the 24 most visited prefixes, each with the most probable successor of its last pair.
- Step 5, cut: at most 64 draft tokens, merged into a trie.
- Steps 6 and 7, verify in one forward pass under a tree mask, keep the accepted nodes' keys (`base`, `target`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

from broadsheet.console import InputError, within
from broadsheet.decode.draft import Draft
from broadsheet.decode.offers import weigh
from broadsheet.decode.table import TrigramTable
from broadsheet.decode.table_drafter import TableDrafter

_MOST = 64  # draft tokens that are searched for where their number is chosen afterwards
Reward = Literal["sum", "authors"]
Path = tuple[int, ...]


@dataclass
class ADED(TableDrafter):
    """Write greedy decoding's output in fewer steps, drafting from tri-grams instead of a second model.

    The method as published: every step verifies up to 64 draft tokens, found by Monte-Carlo tree search.

    Use when: texts like those the model writes are at hand for a table, and a step over 64 tokens takes hardly longer
        than one over a single token, as on a GPU.
    Prefer `NgramDrafter` when: the model copies from its prompt, or a step over many tokens is slow, as on a CPU.
        Prefer `prompt_lookup_num_tokens` when several sequences are written at once, or the cache is not a plain one.
    Inputs: one prompt, any decoder-only model of transformers with full attention and a `DynamicCache`; any logits
        processors and stopping criteria. Sampling, beams, batches, sliding windows, static caches are refused.
    Relation: prompt lookup copies one fixed number of tokens from the last bigram's first occurrence; here several
        continuations are weighed by their tri-grams' values, and verified at once. Lookahead, Medusa and assisted
        decoding make drafts with a model. `NgramDrafter` is our drafter from the same table.

    Parameters:
        table: T[(a, b)] = {c: value}; an empty one when left out. It learns from every request.
        tree_size: draft tokens a step at most (the authors' code: 64). `"auto"` is ours: what steps of 1 to 64 tokens
            take is measured on first use, and as many are verified as make it faster, often none.
        chain: draft the most visited of the longest paths alone, which needs no tree mask (ours; any attention
            function will do).
        depth: tokens of the longest path (the authors' code: 4).
        increment, window, cap: after each step every tri-gram of the last `window` tokens gains `increment`, up to
            `cap` (the authors' code: 0.04, 16, 3.0); so the last 16 tokens are what is seen of a prompt. The window
            slides by less than its length, so one occurrence is counted up to 14 times, as there.
        iterations, c1, c2, prefixes: of the search (the authors' code: 150, 32, 8, 24); see `TreeSearch`.
        reward: of the search: `"sum"`, one plus the table values of the new tokens, is what is meant; the authors'
            code looks them up at the token before, so that it is nearly always one: `"authors"`.
        seed: of the search.
        step_seconds: tokens read in a step → its seconds, instead of measuring.

    Attributes:
        stats_: `DecodeStats` of the last call.
        acceptance_, step_costs_: see `TableDrafter`.

    Raises:
        InputError: a parameter is out of range; and on use, what `Drafter` refuses, or a table of another vocabulary.

    Example:
        >>> from broadsheet import models
        >>> from broadsheet.decode import ADED, TrigramTable
        >>> model, tokenizer = models.load("default", dtype="float32")
        >>> aded = ADED(TrigramTable.from_texts(["The cat sat on the mat. The cat sat on the hat."], tokenizer))
        >>> inputs = tokenizer("The cat sat", return_tensors="pt").to(model.device)
        >>> text = model.generate(**inputs, custom_generate=aded, do_sample=False, max_new_tokens=40)
        >>> aded.stats_.tokens_per_forward > 1
        True

    Source: arXiv:2407.12021; authors' code liuxukun2000/Adaptix. In float32 the output is greedy decoding's; in half
    precision near-ties can fall the other way.
    """

    paper: ClassVar[str] = "aded"
    tree_size: int | Literal["auto"] = field(default=64, kw_only=True)
    depth: int = field(default=4, kw_only=True)
    increment: float = field(default=0.04, kw_only=True)
    window: int = field(default=16, kw_only=True)
    cap: float = field(default=3.0, kw_only=True)
    iterations: int = field(default=150, kw_only=True)
    c1: float = field(default=32.0, kw_only=True)
    c2: float = field(default=8.0, kw_only=True)
    prefixes: int = field(default=24, kw_only=True)
    reward: Reward = field(default="sum", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        within(
            self,
            increment=(0, None),
            cap=(0, None),
            iterations=(0, None),
            c1=(0, None),
            c2=(0, None),
            prefixes=(1, None),
            seed=(0, None),
        )
        if not isinstance(self.depth, int) or self.depth < 1:
            raise InputError(f"got depth {self.depth!r}; expected a whole number from 1")
        if self.reward not in ("sum", "authors"):
            raise InputError(f"got reward {self.reward!r}; expected 'sum' or 'authors'")

    def _tree(self, room: int) -> Draft:
        """Steps 3 to 5."""
        search = TreeSearch(
            self.iterations,
            depth=min(room, self.depth),
            prefixes=self.prefixes,
            max_draft_tokens=_MOST if self.tree_size == "auto" else self.tree_size,
            c1=self.c1,
            c2=self.c2,
            reward=self.reward,
            seed=self.seed,
        )
        paths = search.paths(self.table, (self._tail[-2], self._tail[-1]))
        if self.chain and paths:
            paths = [max(paths, key=len)]  # the most visited of the longest
        draft = Draft.from_paths(paths)
        if self.tree_size == "auto" or len(draft) > self.tree_size:
            weigh(draft, self._tail, self._offers)
        return draft


@dataclass(slots=True)
class Node:
    """A state of the search: a pair of tokens, reached by the second. `children` is None until it is expanded."""

    token: int
    prior: float
    pair: tuple[int, int]
    visits: int = 0
    total_reward: float = 0.0
    children: list[Node] | None = None


@dataclass
class TreeSearch:
    """The paper's search (Steps 3 to 5): likely continuations of a pair, by Monte-Carlo tree search with PUCT.

    A state is a pair of tokens; a move appends a token. A search depends on its seed and pair, not on earlier searches.

    Args:
        iterations: simulations a search (the authors: 150).
        depth: tokens of the longest path; the last one is not searched but the likeliest successor (the authors: 4).
        prefixes: how many of the most visited paths are kept (24).
        max_draft_tokens: of all paths together, counting the different tokens of each (64).
        c1, c2: exploration constants (32 and 8).
        reward: `"sum"`, one plus the table values along the path, is what is meant; `"authors"` is what the authors'
            code computes: it looks the values up at the token before, so that the reward is nearly always one.
        seed: of the moves drawn in simulations.
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
        root = Node(pair[1], 1.0, pair)
        if not self._expand(root, table):
            return []
        for _ in range(self.iterations):
            self._visit(root, table)
        # Step 4: the most visited prefixes, each with the likeliest successor of its last pair
        kept = sorted(_prefixes(root), key=lambda found: -found[1])[: self.prefixes]
        return cut([self._lengthened(path, pair, table) for path, _ in kept], self.max_draft_tokens)

    def _visit(self, root: Node, table: TrigramTable) -> None:
        """One iteration: select, expand, simulate, add the reward to every node on the way."""
        node, way = root, [root]
        while node.children:  # select the child of the largest score
            scores = self.scores(node)
            node = node.children[scores.index(max(scores))]
            way.append(node)
        if len(way) < self.depth and node.children is None and self._expand(node, table):
            assert node.children
            node = self._random.choice(node.children)
            way.append(node)
        # reward = 1 + the sum of T over the path
        reward = 1.0 + sum(self._value(a.pair, b, table) for a, b in pairwise(way))
        reward += self._simulate(node.pair, self.depth - len(way), table)
        for node in way:
            node.visits += 1
            node.total_reward += reward

    def scores(self, node: Node) -> list[float]:
        """The PUCT score of each child of `node`, infinite where it was never visited."""
        visits = node.visits  # N
        explore = (self.c1 + math.log((visits + self.c2 + 1) / self.c2)) * math.sqrt(visits)
        return [
            # Step 3: Q/n + (C1 + ln((N + C2 + 1)/C2)) · prior · √N / (1 + n)
            child.total_reward / child.visits + explore * child.prior / (1 + child.visits) if child.visits else math.inf
            for child in node.children or ()
        ]

    def _expand(self, node: Node, table: TrigramTable) -> bool:
        """Add all successors of a node at once; whether there are any."""
        last = node.pair[1]
        node.children = [Node(c, value, (last, c)) for c, value in table.successors(*node.pair).items()]
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

    def _value(self, pair: tuple[int, int], child: Node, table: TrigramTable) -> float:
        if self.reward == "sum":
            return child.prior
        return table.successors(*pair).get(pair[1], 0.0)

    def _lengthened(self, path: Path, pair: tuple[int, int], table: TrigramTable) -> Path:
        """The path, and the likeliest token after it, where it may be that long."""
        if len(path) == self.depth:
            return path
        first, second = (*pair, *path)[-2:]
        row = table.successors(first, second)
        return (*path, max(row, key=lambda token: row[token])) if row else path


def cut(paths: Sequence[Path], limit: int) -> list[Path]:
    """Step 5: drop paths until their numbers of distinct tokens add up to at most `limit`, those with most first."""
    sizes = [len(set(path)) for path in paths]
    dropped: set[int] = set()
    for i in sorted(range(len(paths)), key=lambda i: -sizes[i]):
        if sum(sizes) - sum(sizes[j] for j in dropped) <= limit:
            break
        dropped.add(i)
    return [path for i, path in enumerate(paths) if i not in dropped]


def _prefixes(root: Node) -> list[tuple[Path, int]]:
    """Every path in the tree with its visits, shorter ones first."""
    found: list[tuple[Path, int]] = []
    level: list[tuple[Path, Node]] = [((), root)]
    while level:
        level = [((*path, child.token), child) for path, node in level for child in node.children or ()]
        found += [(path, child.visits) for path, child in level]
    return found

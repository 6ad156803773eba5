"""ADED (Adaptive Draft-Verification, arXiv:2407.12021): draft from a table of tri-grams that follows what is written.

Knows: the table, the search, the history of a sequence, what a step costs. Does not know: how a draft is verified
(`base`), tokenizers.

- Table: T[(a, b)] = {c: p}, the share of each successor c of a pair in a corpus; its 12 most probable ones.
- Step 1, root: the next certain token r, x' = x + [r] (`base`).
- Step 2, adapt: T[(a, b)][c] ← min(T[(a, b)][c] + 0.04, 3) for every tri-gram of the last 16 tokens of x'.
- Step 3, search: from the pair (x'[-2], x'[-1]), 150 iterations of Monte-Carlo tree search whose selection is PUCT.
- Step 4, collect: the 24 most visited prefixes, each with the most probable successor of its last pair.
- Step 5, cut: at most 64 draft tokens, merged into a trie.
- Steps 6 and 7, verify in one forward pass under a tree mask, keep the accepted nodes' keys (`base`, `target`).
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from broadsheet.console import InputError
from broadsheet.decode.acceptance import Acceptance
from broadsheet.decode.base import Drafter
from broadsheet.decode.best_first import LEAST_SHARE, Offer, best_first, offers
from broadsheet.decode.draft import Draft
from broadsheet.decode.history import LONGEST, History
from broadsheet.decode.step_cost import StepCost, measure
from broadsheet.decode.table import TrigramTable

if TYPE_CHECKING:
    from broadsheet.decode.target import TargetModel

_PAPER_DEPTH = 4
Reward = Literal["sum", "authors"]
Path = tuple[int, ...]


@dataclass
class ADED(Drafter):
    """Write greedy decoding's output in fewer steps, drafting from tri-grams instead of a second model.

    Use when: a model repeats its prompt or itself (code, templates, summaries, documentation), or texts like those it
        writes are at hand for a table. Without a table it copies from what it has read and written.
    Prefer `prompt_lookup_num_tokens` when: several sequences are written at once, or the cache is not a plain one.
    Inputs: one prompt, any decoder-only model of transformers with full attention and a `DynamicCache`; any logits
        processors and stopping criteria. Sampling, beams, batches, sliding windows, static caches are refused.
    Relation: prompt lookup copies one fixed number of tokens from the last bigram's first occurrence; here several
        continuations are weighed by how often their kind was right, and verified at once as far as the
        measured cost of a step makes that faster. Lookahead, Medusa and assisted decoding make drafts with a model.

    Parameters:
        table: T[(a, b)] = {c: value}; an empty one when left out. It learns from every request.
        search: `"best-first"` (ours, the default) expands the likeliest node next; `"mcts"` is the paper's search.
        chain: draft the best path alone, which needs no tree mask (ours; any attention function will do).
        tree_size: draft tokens a step; `"auto"` (ours) measures on first use what steps of 1 to 64 tokens take and
            verifies as many as make it faster, often none. The authors' code: 64.
        depth: tokens of the longest path; `"auto"` is 4 with the paper's search (the authors' code) and as deep
            as is likely with ours, since copying pays at 16 and more.
        recency: also copy from the latest places where the pair occurred, the longest agreement first (ours). The pair
            alone does not show which of its occurrences is being copied. Used by `"best-first"`.
        feed_prompt: adapt to the whole prompt once (ours); the paper sees its last 16 tokens only.
        increment, window, cap: after each step every tri-gram of the last `window` tokens gains `increment`, up to
            `cap` (the authors' code: 0.04, 16, 3.0). The window slides by less than its length, so one occurrence is
            counted up to 14 times, as there.
        iterations, c1, c2, prefixes: of the paper's search (the authors' code: 150, 32, 8, 24).
        reward: of the paper's search: `"sum"`, one plus the table values of the new tokens, is what is meant; the
            authors' code looks them up at the token before, so that it is nearly always one: `"authors"`.
        seed: of the paper's search.
        step_seconds: tokens read in a step → its seconds, instead of measuring.

    Attributes:
        stats_: `DecodeStats` of the last call.
        history_, acceptance_: what was read and written, and how often proposals of a kind were right.
        step_costs_: by model, the seconds of steps as measured.

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
    table: TrigramTable = field(default_factory=TrigramTable)
    search: Literal["best-first", "mcts"] = field(default="best-first", kw_only=True)
    chain: bool = field(default=False, kw_only=True)
    tree_size: int | Literal["auto"] = field(default="auto", kw_only=True)
    depth: int | Literal["auto"] = field(default="auto", kw_only=True)
    recency: bool = field(default=True, kw_only=True)
    feed_prompt: bool = field(default=True, kw_only=True)
    increment: float = field(default=0.04, kw_only=True)
    window: int = field(default=16, kw_only=True)
    cap: float = field(default=3.0, kw_only=True)
    iterations: int = field(default=150, kw_only=True)
    c1: float = field(default=32.0, kw_only=True)
    c2: float = field(default=8.0, kw_only=True)
    prefixes: int = field(default=24, kw_only=True)
    reward: Reward = field(default="sum", kw_only=True)
    seed: int = field(default=0, kw_only=True)
    step_seconds: Mapping[int, float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.search not in ("best-first", "mcts"):
            raise InputError(f"got search {self.search!r}; expected 'best-first' or 'mcts'")
        if self.reward not in ("sum", "authors"):
            raise InputError(f"got reward {self.reward!r}; expected 'sum' or 'authors'")
        for name in ("tree_size", "depth"):
            value = getattr(self, name)
            if value != "auto" and (not isinstance(value, int) or value < 1):
                raise InputError(f"got {name} {value!r}; expected 'auto' or a whole number from 1")
        self.history_ = History()
        self.acceptance_ = Acceptance()
        self._step_cost = StepCost(self.step_seconds) if self.step_seconds is not None else None
        self.step_costs_: WeakKeyDictionary[Any, dict[tuple[Any, ...], StepCost]] = WeakKeyDictionary()
        self._checked: tuple[TrigramTable | None, int] = (None, 0)
        self._tail: list[int] = []

    @classmethod
    def as_published(cls, table: TrigramTable, **parameters: Any) -> ADED:
        """The method as the authors' code has it, with the reward that is meant: 64 draft tokens, 4 deep, always."""
        published = {"search": "mcts", "tree_size": 64, "depth": 4, "recency": False, "feed_prompt": False}
        return cls(table, **{**published, **parameters})

    def fork(self) -> ADED:
        """A copy that learns on its own; the corpus's part of the table is shared."""
        twin = copy.copy(self)
        twin.table, twin.history_, twin.acceptance_ = self.table.fork(), self.history_.fork(), self.acceptance_.fork()
        twin._tail = []
        return twin

    def begin(self, prompt: Sequence[int]) -> None:
        self._tail = list(prompt[-max(LONGEST, self.window) :])
        if self.feed_prompt:
            self.table.adapt(prompt, increment=self.increment, cap=self.cap)
        if self.recency:
            self.history_.end()
            self.history_.extend(prompt)

    def prepare(self, target: TargetModel, room: int) -> None:
        if room < 2:  # the trial steps read two tokens ahead, where there might be no position for them
            return
        self._check_table(target.model.get_input_embeddings().num_embeddings)
        if not self.chain:
            target.check_tree()
        if self.tree_size == "auto" and self.step_seconds is None:
            self._step_cost = self._measured(target)

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

    def draft(self, room: int) -> Draft:
        if room < 1 or len(self._tail) < 2 or (self.tree_size == "auto" and self._step_cost is None):
            return Draft()
        self.stats_.unknown += not self.table.successors(*self._tail[-2:])
        if self.search == "mcts":
            draft = self._searched(room)
        else:
            draft = self._likeliest(room if self.depth == "auto" else min(room, self.depth))
        if self.tree_size != "auto":
            return draft.best(self.tree_size)
        assert self._step_cost
        return draft.best(
            self._step_cost.best_draft_size(list(accumulate(sorted(draft.chances, reverse=True), initial=1.0)))
        )

    def wrote(self, tokens: Sequence[int], accepted: int) -> None:
        for i, token in enumerate(tokens):
            if len(self._tail) >= 2:
                if i < accepted:
                    source = "corpus" if self.table.from_corpus(self._tail[-2], self._tail[-1], token) else "adapted"
                    self.stats_.accepted_from[source] = self.stats_.accepted_from.get(source, 0) + 1
                for offered, _, place in self._offers(self._tail):
                    self.acceptance_.observe(place, offered == token)
            if self.recency:
                self.history_.extend([token])
            self._tail.append(token)
        self._tail = self._tail[-max(LONGEST, self.window) :]
        # Step 2: T[(a, b)][c] ← min(T[(a, b)][c] + increment, cap)
        self.table.adapt(self._tail[-self.window :], increment=self.increment, cap=self.cap)

    def _offers(self, tail: Sequence[int]) -> list[Offer]:
        """What may come after `tail`, with its chances."""
        return offers(tail, self.table, self.history_ if self.recency else None, self.acceptance_)

    def _likeliest(self, depth: int) -> Draft:
        """Ours, in place of the search: the likeliest nodes first."""
        limit, least = self.tree_size, 0.0
        if limit == "auto":
            assert self._step_cost
            limit, least = self._step_cost.largest, self._step_cost.least_chance
        return best_first(self._tail, self._offers, depth=depth, limit=limit, least=least, chain=self.chain)

    def _searched(self, room: int) -> Draft:
        """The paper's search, each node with its chance."""
        search = TreeSearch(
            self.iterations,
            depth=min(room, _PAPER_DEPTH if self.depth == "auto" else self.depth),
            prefixes=self.prefixes,
            max_draft_tokens=64 if self.tree_size == "auto" else self.tree_size,
            c1=self.c1,
            c2=self.c2,
            reward=self.reward,
            seed=self.seed,
        )
        paths = search.paths(self.table, (self._tail[-2], self._tail[-1]))  # Steps 3 to 5
        if self.chain and paths:
            paths = [max(paths, key=len)]  # the most visited of the longest
        draft = Draft.from_paths(paths)
        chances: dict[int, dict[int, float]] = {}
        for i, (parent, token) in enumerate(zip(draft.parents, draft.tokens, strict=True)):
            if parent not in chances:
                tail = [*self._tail, *draft.path(parent)]
                chances[parent] = {offered: chance for offered, chance, _ in self._offers(tail)}
            before = draft.chances[parent] if parent >= 0 else 1.0
            draft.chances[i] = before * chances[parent].get(token, LEAST_SHARE / 2)
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
        """The path, and the likeliest token after it."""
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

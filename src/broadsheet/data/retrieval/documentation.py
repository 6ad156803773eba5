"""A retrieval test made from documentation: the summary line of a docstring has to find the docstring's body.

Knows: rows of `pydocs`, BM25, splits by package. Does not know: models. BEIR folders and run files are in `beir`.

A passage is the body of a function's or class's docstring without the summary, cut to its first words; of bodies that
nearly repeat each other the first is kept. A query is a summary that no other passage has. The candidates are what BM25
finds among the passages of all packages, in BM25's order. Packages are dealt to training or test as a whole, so a query
of the test comes from a package that no training list has seen.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data.retrieval.duplicates import distinct
from broadsheet.data.retrieval.lists import Passage, RankList
from broadsheet.data.retrieval.search import BM25

if TYPE_CHECKING:
    from broadsheet.data.corpora import Document

_TEST_SHARE = 0.3  # of the packages
_QUERY_WORDS = (4, 25)
_NO_QUERY = re.compile(r"->|>>>|::|\.\. |----|====|^\w+\(")
_BODY_WORDS = 12  # that a passage has at least


@dataclass(frozen=True)
class DocPassage:
    """A passage, and the summary that asks for it; `unique` unless another docstring has the same summary.

    `title` is the name within the module, `"JSONEncoder.encode"`.
    """

    id: str
    title: str
    package: str
    summary: str
    text: str
    unique: bool


class Documentation:
    """Retrieval over documentation, for tests and for training.

    Args:
        documents: the corpus `pydocs`, or rows with its metadata (`kind`, `package`, `summary`, `body`).
        words: of a body that a passage shows, and that BM25 searches; 0 for all of it.
        titles: whether a passage also shows the name of its function or class, as a title. A title is much of what
            tells passages apart; BM25 takes `read_json` for one word, a language model does not.
        seed: of the split and of every choice below.

    Attributes:
        entries: the passages, in corpus order: what the queries of `test` and of `pairs` search.
        dropped: rows that are no passage, by reason.

    Raises:
        InputError: there are no passages in the corpus.

    Example:
        docs = Documentation(corpora.load("pydocs"), words=60)
        test, train = docs.test(100), docs.train(500)
    """

    def __init__(self, documents: Iterable[Document], *, words: int = 60, titles: bool = False, seed: int = 0) -> None:
        if words < 0:
            raise InputError(f"got {words} words for a passage; expected 0 (all) or more")
        self.words = words
        self.titles = titles
        self.seed = seed
        self.entries, self.dropped = _entries(documents, words)
        if not self.entries:
            raise InputError(
                "the corpus has no docstrings with a summary and a body (rows of `pydocs`); give a BEIR folder instead"
            )
        self._indexes: dict[bool, tuple[BM25, list[int]]] = {}

    def fingerprint(self) -> str:
        """16 hex digits that change when a passage or a query does."""
        return fingerprint([[entry.id, entry.summary, self._shown(entry)] for entry in self.entries])

    def held_out(self, package: str) -> bool:
        """Whether a package belongs to the test: by its name and the seed alone, not by what else is installed."""
        return random.Random(f"{self.seed}/{package}").random() < _TEST_SHARE

    def test(self, queries: int = 100, candidates: int = 20, *, at_most: bool = False) -> list[RankList]:
        """Test lists from held-out packages; the candidates come from all packages.

        A package has a tenth of the queries at most, as long as there are others. A list in which BM25 did not find
        the right passage is kept, and counts 0 whatever is done with it.

        Args:
            at_most: fewer will do, where there are fewer.

        Raises:
            InputError: the held-out packages have fewer queries, or none.
        """
        chosen = self._choose(queries, held_out=True, at_most=at_most)[:queries]
        if not chosen:
            raise InputError("the corpus has no queries from held-out packages")
        return self._search(chosen, candidates, candidates, everything=True)

    def answerable(self, queries: int, candidates: int = 20, *, at_most: bool = False) -> tuple[list[RankList], int]:
        """Lists as those of `test` in which BM25 found the right passage, and how many were looked at for them.

        Args:
            at_most: fewer will do, where there are fewer.

        Raises:
            InputError: the held-out packages have fewer such lists, or none.
        """
        chosen = self._choose(2 * queries, held_out=True, at_most=True)
        made: list[RankList] = []
        for place, each in enumerate(self._searched(chosen, candidates), start=1):
            made += [each] * each.order_matters
            if len(made) == queries:
                return made, place
        if made and at_most:
            return made, len(chosen)
        raise InputError(
            f"BM25 finds the right passage among {candidates} candidates for {len(made)} of the {len(chosen)} queries "
            f"from held-out packages; expected {queries}: ask for fewer"
        )

    def _searched(self, chosen: Sequence[int], candidates: int) -> Iterator[RankList]:
        for start in range(0, len(chosen), 256):
            yield from self._search(chosen[start : start + 256], candidates, candidates, everything=True)

    def train(self, lists: int, candidates: int = 20, *, depth: int = 0) -> list[RankList]:
        """Training lists from the other packages, passages included; each holds the right passage.

        Args:
            lists: how many to make; fewer where BM25 does not find the right passage often enough.
            candidates: in a list.
            depth: how deep BM25's list goes from which the wrong candidates are drawn at random, and in which the
                right one must be; by default just the candidates.
        """
        chosen = self._choose(2 * lists, held_out=False, at_most=True)
        made: list[RankList] = []
        for start in range(0, len(chosen), 256):
            found = self._search(chosen[start : start + 256], candidates, max(depth, candidates), everything=False)
            made += [each for each in found if each.found]
            if len(made) >= lists:
                break
        return made[:lists]

    def pairs(self, n: int, *, held_out: bool) -> list[DocPassage]:
        """Entries whose `summary` is a query and whose `text` alone answers it, in random order.

        For what reads queries and passages apart, such as an embedder: search `entries` for the summaries of held-out
        packages, and train on pairs of the others. No package has more than a tenth, as long as there are others.

        Args:
            n: how many; with `held_out=False` at most, as many as there are.
            held_out: from the packages of the test, and then the queries of `test(n)`; or from the others.

        Raises:
            InputError: the held-out packages have fewer queries, or `n` is below 1.

        Example:
            queries = [entry.summary for entry in docs.pairs(100, held_out=True)]
            texts = [entry.text for entry in docs.entries]  # searched
        """
        if n < 1:
            raise InputError(f"got {n} pairs; expected one at least")
        return [self.entries[i] for i in self._choose(n, held_out=held_out, at_most=not held_out)[:n]]

    def _choose(self, n: int, *, held_out: bool, at_most: bool = False) -> list[int]:
        """Places of `n` entries whose summary is a query, in random order, no package with more than a tenth of them.

        With `at_most` all there are, those beyond their package's tenth behind.
        """
        able = [i for i, entry in enumerate(self.entries) if entry.unique and self.held_out(entry.package) == held_out]
        # An order by names: a passage more or less in the corpus leaves the others where they were.
        able.sort(key=lambda i: fingerprint([self.seed, self.entries[i].id]))
        if len(able) < n and not at_most:
            raise InputError(f"the corpus has {len(able)} queries from held-out packages; expected {n}: ask for fewer")
        # In rounds, so that the first queries are the same however many are asked for.
        cap, taken = max(1, -(-n // 10)), Counter[str]()
        chosen: list[int] = []
        later: list[int] = []
        for i in able:
            taken[self.entries[i].package] += 1
            (chosen if taken[self.entries[i].package] <= cap else later).append(i)
        return chosen + later if at_most else (chosen + later)[:n]

    def _search(self, chosen: Sequence[int], candidates: int, depth: int, *, everything: bool) -> list[RankList]:
        if candidates < 1:
            raise InputError(f"got {candidates} candidates; expected one at least")
        if everything not in self._indexes:
            places = [i for i, entry in enumerate(self.entries) if everything or not self.held_out(entry.package)]
            texts = [
                f"{entry.title} {entry.text}" if self.titles else entry.text
                for entry in (self.entries[i] for i in places)
            ]
            self._indexes[everything] = BM25(texts), places
        index, places = self._indexes[everything]
        lists = []
        for i, (found, scores) in zip(
            chosen, index.search([self.entries[i].summary for i in chosen], depth), strict=True
        ):
            entry = self.entries[i]
            hits = [(places[place], score) for place, score in zip(found, scores, strict=True)]
            if depth > candidates:
                hits = self._sample(entry, hits, candidates)
            lists.append(
                RankList(
                    id=entry.id,
                    query=entry.summary,
                    ids=tuple(self.entries[place].id for place, _ in hits),
                    documents=tuple(self._shown(self.entries[place]) for place, _ in hits),
                    scores=tuple(score for _, score in hits),
                    judged={entry.id: 1},
                    group=entry.package,
                )
            )
        return lists

    def _shown(self, entry: DocPassage) -> Passage:
        return {"title": entry.title, "text": entry.text} if self.titles else entry.text

    def _sample(self, entry: DocPassage, hits: list[tuple[int, float]], candidates: int) -> list[tuple[int, float]]:
        """The right passage, if it is among the hits, and others at random, in the order they had."""
        generator = random.Random(f"{self.seed}/{entry.id}")
        right = [i for i, (place, _) in enumerate(hits) if self.entries[place].id == entry.id]
        wrong = [i for i in range(len(hits)) if i not in right]
        kept = sorted(right + generator.sample(wrong, min(len(wrong), candidates - len(right))))
        return [hits[i] for i in kept]


def _entries(documents: Iterable[Document], words: int) -> tuple[list[DocPassage], Counter[str]]:
    """The passages of a corpus, and why the other rows are none."""
    dropped: Counter[str] = Counter()
    rows: list[tuple[str, str, str, str, str]] = []
    for document in documents:
        metadata = document.metadata
        if metadata.get("kind") not in ("function", "class"):
            dropped["no function or class"] += 1
            continue
        summary = str(metadata["summary"])
        body = " ".join(str(metadata["body"]).split()).replace(summary, " ").split()
        if len(body) < _BODY_WORDS:
            dropped[f"body shorter than {_BODY_WORDS} words"] += 1
            continue
        title = str(metadata["title"]).removeprefix(f"{metadata['module']}.")
        rows.append((document.id, title, str(metadata["package"]), summary, " ".join(body[: words or None])))
    kept = [row for row, new in zip(rows, distinct(row[-1] for row in rows), strict=True) if new]
    dropped["near-duplicate"] = len(rows) - len(kept)
    asked = Counter(_normal(summary) for *_, summary, _ in rows)  # also by a passage that was dropped as a duplicate
    entries = [
        DocPassage(name, title, package, summary, text, _asks(summary) and asked[_normal(summary)] == 1)
        for name, title, package, summary, text in kept
    ]
    return entries, dropped


def _asks(summary: str) -> bool:
    """Whether a summary reads as a sentence of a query's length, not as a signature, an example or a table."""
    low, high = _QUERY_WORDS
    return low <= len(summary.split()) <= high and summary[0].isalpha() and not _NO_QUERY.search(summary)


def _normal(summary: str) -> str:
    return " ".join(summary.lower().split()).rstrip(".")

"""The lists of a trial, from what `--data` and `--run` name.

Knows: `pydocs`, BEIR folders, run files. Does not know: models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.resources import local
from broadsheet.data.retrieval.beir import Beir
from broadsheet.data.retrieval.documentation import Documentation
from broadsheet.data.retrieval.lists import RankList
from broadsheet.data.retrieval.trec import read_run


@dataclass(frozen=True)
class ListSource:
    """Where lists come from, and how they are made.

    Args:
        data: `pydocs` (or `pydocs:stdlib`), or a BEIR folder (`corpus.jsonl`, `queries.jsonl`, `qrels/*.tsv`).
        words: of a passage that is shown and searched; 0 for all.
        titles: of `pydocs`, whether passages show their function's name.
        run: a TREC run of a first stage over the BEIR folder; BM25 by default.
        split: of the BEIR folder's qrels.
        seed: of the choice of queries.
    """

    data: str = "pydocs"
    words: int = 40
    titles: bool = False
    run: str = ""
    split: str = "test"
    seed: int = 0

    def test(self, queries: int, candidates: int, *, found: bool = False, at_most: bool = False) -> Lists:
        """`queries` lists (all for 0) of at most `candidates` candidates in first-stage order, queries in random order.

        Args:
            at_most: fewer lists will do, where there are fewer.
            found: only lists in which a right passage is among others: no order changes what the rest counts.

        Raises:
            InputError: the data cannot be read, or holds no such lists.
        """
        if queries < 0 or candidates < 1:
            raise InputError(f"got {queries} queries of {candidates} candidates; expected from 0 and 1")
        if is_pydocs(self.data):
            docs, corpus = self._documentation
            n = queries or 100
            if found:
                lists, asked = docs.answerable(n, candidates, at_most=at_most)
            else:
                lists = docs.test(n, candidates, at_most=at_most)
                asked = len(lists)
            about = f"{corpus.describe()}; {len(docs.entries):,} passages of at most {self.words or 'all'} words"
            return Lists(lists, about, docs.fingerprint(), asked)
        beir = Beir(local(self.data), self.words)
        run = read_run(Path(self.run)) if self.run else None
        everything = [each for each in beir.lists(self.split, candidates=candidates, run=run) if each.ids]
        lists = [each for each in everything if each.order_matters or not found]
        asked = len(everything)
        if queries and len(lists) > queries:
            asked = round(asked * queries / len(lists))
            lists = random.Random(self.seed).sample(lists, queries)
        if not lists:
            kind = "a right passage among other candidates" if found else "candidates"
            raise InputError(f"{self.data} has no judged query with {kind} in the split {self.split!r}")
        return Lists(lists, beir.describe(), fingerprint([beir.fingerprint(), self.run]), asked)

    def train(self, lists: int, candidates: int, depth: int = 0, split: str = "") -> Lists:
        """At most `lists` lists to train on that hold a right passage: other packages of `pydocs`, another split.

        Args:
            split: of a BEIR folder; by default its own if that is not `test`, else `train`.
            depth: how deep the first stage's list goes from which wrong candidates are drawn; by default they are its
                best.

        Raises:
            InputError: there are none.
        """
        if is_pydocs(self.data):
            docs, corpus = self._documentation
            return Lists(docs.train(lists, candidates, depth=depth), corpus.describe(), docs.fingerprint())
        beir = Beir(local(self.data), self.words)
        run = read_run(Path(self.run)) if self.run else None
        split = split or ("train" if self.split == "test" else self.split)
        found = [each for each in beir.lists(split, candidates=max(depth, candidates), run=run) if each.found]
        if not found:
            raise InputError(
                f"{self.data}: no query of the split {split!r} has a relevant document among its candidates"
            )
        random.Random(self.seed).shuffle(found)
        if depth > candidates:
            found = [_thinned(each, candidates, self.seed) for each in found[:lists]]
        return Lists(found[:lists], beir.describe(), fingerprint([beir.fingerprint(), self.run]))

    @cached_property
    def _documentation(self) -> tuple[Documentation, corpora.Corpus]:
        if self.run:
            raise InputError("--run ranks the documents of a BEIR folder: give that as the data")
        corpus = corpora.load(self.data)
        return Documentation(corpus, words=self.words, titles=self.titles, seed=self.seed), corpus


def _thinned(whole: RankList, candidates: int, seed: int) -> RankList:
    """A list with its best right passages, and of the others so many as there is room for, in their order."""
    right = [i for i, label in enumerate(whole.labels) if label > 0][: candidates - 1]
    wrong = [i for i, label in enumerate(whole.labels) if label <= 0]
    room = min(candidates - len(right), len(wrong))
    return whole.reordered(sorted([*right, *random.Random(f"{seed}/{whole.id}").sample(wrong, room)]))


@dataclass(frozen=True)
class Lists:
    """Lists, one line about the data, its fingerprint, and of how many lists these are (0: not counted).

    Lists without a right passage among the candidates may have been left out.
    """

    lists: list[RankList]
    about: str
    data_fingerprint: str
    asked: int = 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when a query or the candidates do."""
        return fingerprint([[each.id, each.query, each.ids, dict(each.judged)] for each in self.lists])

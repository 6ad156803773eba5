"""Bilingual lexicon induction: does a word's nearest neighbour in another word list mean the same?

Knows: words, vectors, ranks. Does not know: how an encoder is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.evaluation import BaseEvaluator

from broadsheet.console import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]


def gold_ranks(
    source: ArrayLike,
    target: ArrayLike,
    gold: Sequence[Sequence[int]],
    excluded: Sequence[Sequence[int]] | None = None,
) -> NDArray[np.int64]:
    """The rank, from 1, that each query's best gold word has by cosine among the target words.

    Other gold words of the query do not count; words with the same cosine rank before the gold one, so that an encoder
    that has collapsed to one vector ranks last and not first.

    Args:
        source: (queries, width).
        target: (words, width).
        gold: for each query the indices of its gold words, at least one.
        excluded: for each query the indices of words that are no candidates.
    """
    one, other = _unit(source), _unit(target)
    ranks = np.zeros(len(one), dtype=np.int64)
    for start in range(0, len(one), 256):
        for i, row in enumerate(one[start : start + 256] @ other.T, start):
            # Rounding may make an equal cosine lower in the last digit.
            before = row >= row[list(gold[i])].max() - 1e-12
            before[[*gold[i], *(excluded[i] if excluded else ())]] = False
            ranks[i] = 1 + int(before.sum())
    return ranks


def induction_scores(ranks: ArrayLike) -> dict[str, float]:
    """MRR and P@1 of ranks from 1."""
    values = np.asarray(ranks, dtype=np.float64)
    return {"mrr": float((1 / values).mean()), "p@1": float((values == 1).mean())}


def _unit(vectors: ArrayLike) -> Floats:
    array = np.asarray(vectors, dtype=np.float64)
    return array / np.maximum(np.linalg.norm(array, axis=-1, keepdims=True), 1e-12)


class _Index:
    """Indices of words in a list: by exact spelling, or else regardless of case."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.exact: dict[str, int] = {}
        self.folded: dict[str, int] = {}
        for i, word in enumerate(words):
            self.exact.setdefault(word, i)
            self.folded.setdefault(word.casefold(), i)

    def of(self, word: str) -> int | None:
        return self.exact.get(word, self.folded.get(word.casefold()))


class BilingualLexiconInduction(BaseEvaluator):
    """Find each word's translation, or synonym, among all words of a vocabulary: MRR and P@1.

    A word that the vocabulary lacks is looked up regardless of case; if that fails it is missing, and a query without
    any gold word is left out. Both are counted.

    Args:
        pairs: (query, gold word); a query may have several.
        vocabulary: the words that are ranked.
        source_vocabulary: if given, queries that it lacks are left out too, as where both languages are word lists.
        exclude_query: the query itself is no candidate: for synonyms, where the vocabulary holds it.
        name: prefix of the metrics' names.
        prompt_name: of `encode`, for all words.

    Attributes:
        queries: those that are evaluated; gold: indices of each one's gold words.
        missing_: number of pairs whose gold word, or query, the vocabularies lack.

    Raises:
        InputError: no query is left.

    Example:
        BilingualLexiconInduction([("dog", "chien")], french_words)(embedder)["mrr"]

    Source: arXiv:2208.01018, bilingual lexicon induction; authors' code umanlp/babelbert.
    """

    def __init__(
        self,
        pairs: Iterable[tuple[str, str]],
        vocabulary: Sequence[str],
        *,
        source_vocabulary: Sequence[str] | None = None,
        exclude_query: bool = False,
        name: str = "",
        prompt_name: str | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary = list(dict.fromkeys(vocabulary))
        self.exclude_query = exclude_query
        self.name = name
        self.prompt_name = prompt_name
        self.primary_metric = "mrr"
        index, sources = _Index(self.vocabulary), None if source_vocabulary is None else _Index(source_vocabulary)
        self.missing_ = 0
        found: dict[str, set[int]] = {}
        for query, right in pairs:
            found_at = index.of(right)
            asked = query
            if sources is not None:
                known = sources.of(query)
                asked = "" if known is None else sources.words[known]
            if found_at is None or not asked:
                self.missing_ += 1
            else:
                found.setdefault(asked, set()).add(found_at)
        if not found:
            raise InputError(f"none of the {self.missing_} pairs has its words in the vocabulary; give another")
        self.queries = list(found)
        self.gold = [sorted(right) for right in found.values()]
        self.excluded = [
            [own] if exclude_query and (own := index.exact.get(query)) is not None and own not in right else []
            for query, right in found.items()
        ]

    def ranks(self, queries: ArrayLike, vocabulary: ArrayLike) -> NDArray[np.int64]:
        """Ranks from the vectors of `queries` and of `vocabulary`."""
        return gold_ranks(queries, vocabulary, self.gold, self.excluded)

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1
    ) -> dict[str, float]:
        """Encode the words, rank, and return `mrr`, `p@1` and `missing`."""
        words = list(dict.fromkeys([*self.queries, *self.vocabulary]))
        vectors = model.encode(words, prompt_name=self.prompt_name, show_progress_bar=False)
        where = {word: i for i, word in enumerate(words)}
        ranks = self.ranks(
            vectors[[where[word] for word in self.queries]], vectors[[where[word] for word in self.vocabulary]]
        )
        metrics = {**induction_scores(ranks), "missing": float(self.missing_)}
        named: dict[str, float] = self.prefix_name_to_metrics(metrics, self.name)
        return named

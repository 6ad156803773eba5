"""Evaluation tasks of embedders: similarity, retrieval, near-duplicates, clusters; and pairs to train on.

Knows: files of sentence pairs, `pydocs`, BEIR folders, and the metrics of each task. Does not know: embedders (the
trials run them).

Without labels, documentation serves: the summary line of a docstring has to find its body among passages of packages
that no training pair comes from; two docstrings that share most of their words have to be closer than two of one
package that share none; passages have to cluster by package. With labels: STS files, BEIR folders.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from broadsheet.cache import fingerprint
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.pydocs import is_pydocs
from broadsheet.data.resources import local
from broadsheet.data.retrieval.beir import Beir, searched
from broadsheet.data.retrieval.documentation import Documentation
from broadsheet.data.retrieval.duplicates import jaccard, near
from broadsheet.embed.data.sentence_pairs import SentencePair, sts
from broadsheet.trial.engine import Metric
from broadsheet.trial.stats import Floats, auroc, spearman

if TYPE_CHECKING:
    from broadsheet.data.corpora import Document

__all__ = [
    "BODY_WORDS",
    "CLUSTERING",
    "DUPLICATES",
    "RETRIEVAL",
    "SPEARMAN",
    "LabelledText",
    "Query",
    "RetrievalTask",
    "SentencePair",
    "Triple",
    "clustering",
    "documentation",
    "documented_pairs",
    "duplicates",
    "retrieval",
    "sts",
    "training_pairs",
    "training_texts",
    "v_measure",
]

SPEARMAN = Metric("Spearman", of="similarity", statistic=spearman, bounds=(-1, 1))
RETRIEVAL = [
    Metric("nDCG@10", bounds=(0, 1)),
    Metric("RR@10", bounds=(0, 1)),
    Metric("Recall@100", of="R@100", bounds=(0, 1)),
]
DUPLICATES = Metric("duplicate AUROC", of="pair", statistic=auroc, bounds=(0, 1))

_NEAR, _COPY, _FAR = (
    0.4,
    0.95,
    0.05,
)  # Jaccard of three-word sequences: a near-duplicate from, a copy from, unlike below


BODY_WORDS = 20  # of a body in pairs from documentation: as long as a sentence


# Retrieval


@lru_cache(maxsize=1)
def _pydocs(data: str = "pydocs") -> corpora.Corpus:
    return corpora.load(data)


@lru_cache(maxsize=2)
def documentation(words: int = 40, seed: int = 0, data: str = "pydocs") -> Documentation:
    """`pydocs` (or `pydocs:stdlib`) as passages of at most `words` words; read once for all tasks of a trial."""
    return Documentation(_pydocs(data), words=words, seed=seed)


def training_texts(words: int = 40, seed: int = 0, data: str = "pydocs") -> list[str]:
    """Whole docstrings of the packages that are trained on, to pre-train on.

    Args:
        words: of a passage; what nearly repeats another's first words, of whatever package, is left out.
        seed: of the split. data: `pydocs`, or `pydocs:stdlib`.
    """
    docs = documentation(words, seed, data)
    wanted = {entry.id for entry in docs.entries if not docs.held_out(entry.package)}
    return [document.text for document in _pydocs(data) if document.id in wanted]


@dataclass(frozen=True)
class Query:
    """A query and its name."""

    id: str
    text: str


@dataclass(frozen=True)
class RetrievalTask:
    """Queries that have to find their passages.

    Attributes:
        queries: the queries.
        corpus: passages by name; all of them are searched.
        qrels: relevance by query and passage; a pair that it lacks counts as 0.
        about: one line that describes the task.
    """

    queries: list[Query]
    corpus: dict[str, str] = field(repr=False)
    qrels: dict[str, dict[str, int]] = field(repr=False)
    about: str = ""

    def fingerprint(self) -> str:
        """16 hex digits that change when a query, a passage or a judgement does."""
        return fingerprint([[[q.id, q.text] for q in self.queries], self.corpus, self.qrels])


def retrieval(
    data: str = "pydocs",
    queries: int = 100,
    passages: int = 2000,
    *,
    words: int = 40,
    split: str = "test",
    seed: int = 0,
) -> RetrievalTask:
    """A retrieval task that a small machine can encode.

    Args:
        data: `pydocs` or `pydocs:stdlib`: summaries of docstrings search the bodies, all from packages that
            `training_pairs` leaves out, near-duplicate bodies removed. Or a BEIR folder.
        queries: number of queries; of a BEIR folder 0 takes all that are judged.
        passages: number in the corpus: the right ones, and others at random; 0 for all.
        words: of a passage, at most; 0 for all.
        split: of a BEIR folder's qrels.
        seed: of the choices.

    Raises:
        InputError: the data cannot be read, or has fewer queries.
    """
    if queries < 0 or passages < 0:
        raise InputError(f"got {queries} queries and {passages} passages; expected 0 (all) or more")
    if not is_pydocs(data):
        return _beir(local(data), data, queries, passages, words, split, seed)
    docs = documentation(words, seed, data)
    asked = docs.pairs(queries or 100, held_out=True)
    others = {entry.id: entry.text for entry in docs.entries if docs.held_out(entry.package)}
    corpus = _corpus(others, [entry.id for entry in asked], passages, seed)
    about = (
        f"{len(asked)} summaries of docstrings search {len(corpus):,} bodies of at most {words or 'all'} words, "
        f"of {len({entry.package for entry in docs.entries if entry.id in corpus})} packages held out from training"
    )
    return RetrievalTask(
        [Query(entry.id, entry.summary) for entry in asked], corpus, {entry.id: {entry.id: 1} for entry in asked}, about
    )


def _beir(folder: Path, name: str, queries: int, passages: int, words: int, split: str, seed: int) -> RetrievalTask:
    beir = Beir(folder, words)
    judged = beir.qrels(split)
    names = list(judged)
    if queries and queries < len(names):
        names = [names[i] for i in sorted(random.Random(seed).sample(range(len(names)), queries))]
    right = [d for name in names for d, relevance in judged[name].items() if relevance > 0 and d in beir.documents]
    corpus = _corpus({name: searched(text) for name, text in beir.documents.items()}, right, passages, seed)
    about = f"{name}: {len(names)} queries of the split {split!r} search {len(corpus):,} passages"
    return RetrievalTask(
        [Query(name, beir.queries[name]) for name in names], corpus, {name: judged[name] for name in names}, about
    )


def _corpus(texts: dict[str, str], right: Iterable[str], n: int, seed: int) -> dict[str, str]:
    """The right texts and others at random, `n` in all (at least the right ones), in the order of `texts`."""
    wanted = set(right)
    if not n or n >= len(texts):
        return texts
    # Ordered by hashed name: adding or removing a text leaves the order of the others.
    others = sorted((name for name in texts if name not in wanted), key=lambda name: fingerprint([seed, name]))
    wanted.update(others[: max(0, n - len(wanted))])
    return {name: text for name, text in texts.items() if name in wanted}


def training_pairs(n: int, *, words: int = 40, seed: int = 0, data: str = "pydocs") -> list[dict[str, str]]:
    """Rows `query`, `positive` to train on: summaries and bodies of packages that no pydocs task uses.

    Args:
        n: the largest number of rows.
        words: of a body, at most.
        seed: of the split and the choice: that of the task.
        data: `pydocs`, or `pydocs:stdlib`.

    Example:
        from datasets import Dataset

        dataset = Dataset.from_list(training_pairs(2000))
    """
    found = documentation(words, seed, data).pairs(n, held_out=False)
    return [{"query": entry.summary, "positive": entry.text} for entry in found]


# Near-duplicates


@dataclass(frozen=True)
class Triple:
    """A text, another that shares most of its three-word sequences, and one of its package that shares next to none."""

    anchor: str
    near: str
    far: str
    jaccard: float


def duplicates(
    n: int = 200,
    *,
    words: int = 60,
    seed: int = 0,
    data: str = "pydocs",
    documents: Iterable[Document] | None = None,
) -> list[Triple]:
    """Near-duplicate docstrings (Jaccard 0.4 to 0.95) beside unrelated ones of the same package and similar length.

    Copies are left out: any deterministic embedder finds them.

    Args:
        n: number of triples, no package with more than a tenth of them as long as there are others.
        words: of a text, at most.
        seed: of the choices.
        data: `pydocs`, or `pydocs:stdlib`.
        documents: rows of it, the corpus itself by default.

    Raises:
        InputError: the corpus has fewer, or `n` is below 1.
    """
    if n < 1 or words < 1:
        raise InputError(f"got {n} near-duplicates of {words} words; expected 1 or more")
    rows = [
        (document.id, str(document.metadata["package"]), " ".join(document.text.split()[:words]))
        for document in (_pydocs(data) if documents is None else documents)
        if document.metadata.get("kind") in ("function", "class") and len(document.text.split()) >= 12
    ]
    rows.sort(key=lambda row: fingerprint([seed, row[0]]))
    found, of_package = _near_pairs(rows, 4 * n)
    triples: list[Triple] = []
    later: list[Triple] = []
    of_each: dict[str, int] = defaultdict(int)
    for first, second, overlap in found:
        package, anchor = rows[first][1], rows[first][2]
        generator = random.Random(f"{seed}/{rows[first][0]}")
        length = len(rows[second][2])
        by_length = sorted(of_package[package], key=lambda text: abs(len(text) - length))
        nearest = list(islice((text for text in by_length if jaccard(anchor, text) < _FAR), 5))
        if not nearest:
            continue
        of_each[package] += 1
        into = triples if of_each[package] <= max(1, -(-n // 10)) else later
        into.append(Triple(anchor, rows[second][2], generator.choice(nearest), overlap))
        if len(triples) == n:
            break
    if len(triples) + len(later) < n:
        raise InputError(f"the corpus has {len(triples) + len(later)} near-duplicates; expected {n}: ask for fewer")
    return (triples + later)[:n]


def _near_pairs(
    rows: Sequence[tuple[str, str, str]], n: int
) -> tuple[list[tuple[int, int, float]], dict[str, list[str]]]:
    """Indices of `n` texts and of their near-duplicates, no text in two pairs; and the distinct texts by package."""
    pairs: list[tuple[int, int, float]] = []
    used: set[int] = set()
    of_package: dict[str, list[str]] = defaultdict(list)
    for i, found in enumerate(near((text for *_, text in rows), jaccard=_NEAR)):
        if found is None:
            of_package[rows[i][1]].append(rows[i][2])
            continue
        other, overlap = found
        if overlap < _COPY and other not in used:
            used.add(other)
            pairs.append((other, i, overlap))
        if len(pairs) == n:
            break
    return pairs, of_package


# Clusters


@dataclass(frozen=True)
class LabelledText:
    """A text and its label."""

    text: str
    label: str


def clustering(
    packages: int = 10, per_package: int = 25, *, words: int = 40, seed: int = 0, data: str = "pydocs"
) -> list[LabelledText]:
    """Passages of `pydocs` whose label is their top-level package; near-duplicates removed, equally many a package.

    Raises:
        InputError: the corpus has fewer packages with `per_package` passages.
    """
    if packages < 2 or per_package < 2:
        raise InputError(f"got {packages} packages with {per_package} passages; expected 2 or more of both")
    by_package: dict[str, list[tuple[str, str]]] = defaultdict(list)
    docs = documentation(words, seed, data)
    for entry in docs.entries:
        if docs.held_out(entry.package):
            by_package[entry.package].append((fingerprint([seed, entry.id]), entry.text))
    able = sorted(
        (name for name, texts in by_package.items() if len(texts) >= per_package),
        key=lambda name: fingerprint([seed, name]),
    )
    if len(able) < packages:
        raise InputError(
            f"{len(able)} held-out packages have {per_package} passages; expected {packages}: ask for fewer"
        )
    return [LabelledText(text, name) for name in able[:packages] for _, text in sorted(by_package[name])[:per_package]]


def v_measure(values: Floats, weights: Floats) -> Floats:
    """V-measure of clusterings of the same documents, averaged over runs: the harmonic mean of homogeneity and
    completeness (Rosenberg & Hirschberg, 2007).

    Args:
        values: (n, 1 + runs), whole numbers: each document's label, and its cluster in each run.
        weights: (resamples, n).

    Returns:
        (resamples,): as `sklearn.metrics.v_measure_score` of a sample that holds each document `weights` times.
    """
    labels = values[:, 0].astype(int)
    total = weights.sum(axis=1)
    of_labels = _entropy(_counts(labels, weights), total)
    scores = []
    for run in values[:, 1:].T.astype(int):
        of_clusters = _entropy(_counts(run, weights), total)
        joint = _entropy(_counts(labels * (run.max() + 1) + run, weights), total)
        shared = of_labels + of_clusters - joint  # mutual information
        either = of_labels + of_clusters
        # One label and one cluster agree perfectly, as in scikit-learn.
        scores.append(np.where(either > 0, 2 * shared / np.where(either > 0, either, 1), 1.0))
    return np.mean(scores, axis=0)


def _counts(groups: np.ndarray, weights: Floats) -> Floats:
    """(resamples, groups): the weight of each group."""
    _, where = np.unique(groups, return_inverse=True)
    one_hot = np.zeros((len(groups), where.max() + 1))
    one_hot[np.arange(len(groups)), where] = 1
    return weights @ one_hot


def _entropy(counts: Floats, total: Floats) -> Floats:
    share = counts / total[:, None]
    return -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1)


CLUSTERING = [
    Metric("kNN accuracy", binary=True, bounds=(0, 1)),
    Metric("V-measure", of="clusters", statistic=v_measure, bounds=(0, 1)),
]


# Similarity


def documented_pairs(n: int, held_out: bool, seed: int = 0, data: str = "pydocs") -> list[SentencePair]:
    """Pairs from documentation: a docstring's summary with its own body (score 1), and with another's (score 0).

    Args:
        n: how many, half of each kind.
        held_out: from the packages that training leaves out, or from the others.
        seed: of the split and the choice.
        data: `pydocs`, or `pydocs:stdlib`.

    Raises:
        InputError: fewer than four pairs, or more than the documentation has.
    """
    if n < 4:
        raise InputError(f"got {n} pairs; expected 4 or more")
    half = -(-n // 2)
    entries = documentation(BODY_WORDS, seed, data).pairs(half, held_out=held_out)
    if len(entries) < half:
        raise InputError(f"the corpus has {2 * len(entries)} pairs; expected {n}: ask for fewer")
    pairs = []
    for i, entry in enumerate(entries):
        pairs.append(SentencePair(entry.summary, entry.text, 1.0))
        pairs.append(SentencePair(entry.summary, entries[i - 1].text, 0.0))
    return pairs[:n]

"""What needs no language model, to compare with: the most frequent answer, TF-IDF, and a regression on similarities.

Knows: records, labelled ones. Does not know: prompts, models. scikit-learn does the work. All are fitted on labelled
rows, of which a prompt with a few examples needs none but those.

An error is looked for as a match is: the attribute is held against each other attribute of its record, as one record
is against another, since the others tell what it should be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broadsheet.curate.tables.records import Pair, Record, is_missing, text_of

Floats = NDArray[np.float64]


def sides_of_cell(record: Record, column: str) -> Pair:
    """The attribute beside each of the others: what a detector of errors compares, as a pair."""
    others = [name for name in record if name != column]
    return dict.fromkeys(others, record.get(column)), {name: record[name] for name in others}


@dataclass
class Majority:
    """Always the most frequent answer of the labelled rows; the first of several.

    Attributes:
        answer_: that one.
    """

    def fit(self, answers: Sequence[Any]) -> Majority:
        """Raises ValueError where there are none."""
        if not answers:
            raise ValueError("got no answers; expected labelled rows")
        self.answer_ = Counter(answers).most_common(1)[0][0]
        return self

    def predict(self, about: Sequence[Any]) -> list[Any]:
        """The same for each."""
        return [self.answer_] * len(about)


@dataclass
class CosineThreshold:
    """Whether two records are alike: the cosine of their TF-IDF vectors (letter n-grams), above a threshold.

    Args:
        reverse: alike means no, as of an attribute that agrees with the others and so holds no error.

    Attributes:
        threshold_: the cosine that tells most of the labelled pairs rightly, by balanced accuracy.
    """

    reverse: bool = False

    def fit(self, pairs: Sequence[Pair], answers: Sequence[bool]) -> CosineThreshold:
        """Choose the threshold on labelled pairs, from those halfway between their cosines."""
        self._vectors = _vectorizer().fit([_whole(side) for pair in pairs for side in pair])
        cosines, so = self._alike(pairs), np.asarray(answers, dtype=bool) ^ self.reverse
        known = np.unique(cosines)
        thresholds = [known[0] - 1.0, *((known[:-1] + known[1:]) / 2)]
        balanced = [_balanced(so, cosines > threshold) for threshold in thresholds]
        self.threshold_ = float(thresholds[int(np.argmax(balanced))])
        return self

    def predict(self, pairs: Sequence[Pair]) -> list[bool]:
        """Yes or no for each pair."""
        return [bool(each) for each in (self._alike(pairs) > self.threshold_) ^ self.reverse]

    def _alike(self, pairs: Sequence[Pair]) -> Floats:
        return _cosines(self._vectors, [_whole(a) for a, _ in pairs], [_whole(b) for _, b in pairs])


@dataclass
class SimilarityRegression:
    """Logistic regression on how alike two records are in each attribute: the honest peer for matching.

    For each attribute: the cosine of TF-IDF vectors, the share of letters in common sequences, whether both are the
    same, and whether one is missing.

    Args:
        columns: attributes that are compared; by default all that every first record of the labelled pairs has.
    """

    columns: Sequence[str] | None = None

    def fit(self, pairs: Sequence[Pair], answers: Sequence[bool]) -> SimilarityRegression:
        """Raises ValueError where all labelled pairs have one answer."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self.columns_ = list(self.columns or [name for name in pairs[0][0] if all(name in left for left, _ in pairs)])
        self._vectors = {
            name: _vectorizer().fit([*(text_of(side.get(name)) for pair in pairs for side in pair), "none"])
            for name in self.columns_
        }
        self._model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self._model.fit(self.features(pairs), np.asarray(answers, dtype=bool))
        return self

    def predict(self, pairs: Sequence[Pair]) -> list[bool]:
        """Yes or no for each pair."""
        return [bool(each) for each in self._model.predict(self.features(pairs))] if pairs else []

    def features(self, pairs: Sequence[Pair]) -> Floats:
        """(pairs, 4 × columns) similarities."""
        found = []
        for name in self.columns_:
            left, right = ([text_of(pair[side].get(name)).lower() for pair in pairs] for side in (0, 1))
            missing = [is_missing(a) or is_missing(b) for a, b in zip(left, right, strict=True)]
            sequences = [SequenceMatcher(None, a, b, autojunk=False).ratio() for a, b in zip(left, right, strict=True)]
            same = [a == b for a, b in zip(left, right, strict=True)]
            found += [_cosines(self._vectors[name], left, right), sequences, same, missing]
        return np.array(found, dtype=np.float64).T


@dataclass
class Neighbours:
    """The value that the nearest labelled rows have, by TF-IDF of their other attributes; nearer ones count more.

    Args:
        column: that is imputed.
        k: neighbours.
    """

    column: str
    k: int = 3

    def fit(self, rows: Sequence[Record]) -> Neighbours:
        """Keep labelled rows; those without a value are left out.

        Raises:
            ValueError: none has one.
        """
        from sklearn.neighbors import NearestNeighbors

        known = [row for row in rows if not is_missing(row.get(self.column))]
        if not known:
            raise ValueError(f"got no rows with a value of {self.column!r}; expected labelled ones")
        texts = [self._text(row) for row in known]
        self.values_ = [text_of(row[self.column]) for row in known]
        self._vectors = _vectorizer().fit(texts)
        self._near = NearestNeighbors(n_neighbors=min(self.k, len(known)), metric="cosine")
        self._near.fit(self._vectors.transform(texts))
        return self

    def predict(self, rows: Sequence[Record]) -> list[str]:
        """A value for each row; its own is not looked at."""
        if not rows:
            return []
        found = []
        vectors = self._vectors.transform([self._text(row) for row in rows])
        for distances, places in zip(*self._near.kneighbors(vectors), strict=True):
            votes: Counter[str] = Counter()
            for distance, place in zip(distances, places, strict=True):
                votes[self.values_[place]] += 1 / (distance + 1e-6)
            found.append(max(votes, key=votes.__getitem__))
        return found

    def _text(self, row: Record) -> str:
        return _whole({name: value for name, value in row.items() if name != self.column})


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)


def _whole(record: Record) -> str:
    return " ".join(text_of(value) for value in record.values()) or "none"


def _cosines(vectors: Any, left: Sequence[str], right: Sequence[str]) -> Floats:
    """(n,) cosines of texts, pair by pair; their vectors have length 1, or 0 where nothing in them is known."""
    if not len(left):
        return np.zeros(0)
    a, b = vectors.transform(left), vectors.transform(right)
    found: Floats = np.asarray(a.multiply(b).sum(axis=1), dtype=np.float64).ravel()
    return found


def _balanced(so: NDArray[np.bool_], said: NDArray[np.bool_]) -> float:
    shares = [float((said == so)[so == kind].mean()) if (so == kind).any() else 0.5 for kind in (True, False)]
    return sum(shares) / 2

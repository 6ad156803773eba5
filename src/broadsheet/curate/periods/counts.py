"""Words counted by period: what changed without any model, what all periods share, what comes later.

Knows: words (runs of letters, in small letters), counts. Does not know: models, files.

Log-odds with an informative Dirichlet prior (Monroe, Colaresi & Quinn, 2008, "Fightin' Words", Eq. 15–22) is the plain
baseline of lexical change, and a strong one. What it cannot see is a word that is as frequent as before in new company.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from broadsheet.console import InputError

Floats = NDArray[np.float64]
SHARE = 1.0  # α₀, of a mean period's words. Ours: with much less, a word that a period lacks scores little
LETTERS = re.compile(r"[^\W\d_]+")
_SYMBOL = re.compile(r"[^\W\d_]+|[\W\d_]", re.DOTALL)


def words_of(text: str) -> list[str]:
    """Runs of letters, in small letters; all other characters part them.

    Example:
        >>> words_of("The cat's 2nd—life")
        ['the', 'cat', 's', 'nd', 'life']
    """
    found: list[str] = []
    for run in LETTERS.findall(text.lower()):
        # What is a digit or a sign in another way, as "²", is a word character of `re`, and no letter.
        found += [run] if run.isalpha() else "".join(c if c.isalpha() else " " for c in run).split()
    return found


def counted(texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in the texts."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(words_of(text))
    return found


def shared_vocabulary(counts: Sequence[Mapping[str, int]], min_occurrence: int = 2) -> frozenset[str]:
    """The words that every period has more than `min_occurrence` times: with 2, three times at least."""
    first, *others = counts
    return frozenset(
        word
        for word, count in first.items()
        if count > min_occurrence and all(other.get(word, 0) > min_occurrence for other in others)
    )


def only_of(items: Iterable[str], vocabulary: frozenset[str]) -> list[bool]:
    """Whether all words of each item are of the vocabulary: models of periods then differ by more than their words."""
    return [vocabulary.issuperset(words_of(item)) for item in items]


def later_words(counts: Sequence[Mapping[str, int]], period: int, least: int = 5, most: int | None = None) -> list[str]:
    """Words that stand in no text up to a period, and `least` times or more in all later ones together.

    Args:
        counts: of each period, in their order.
        most: so many, the most frequent first; of equals the first of the alphabet.
    """
    known = set().union(*counts[: period + 1])
    later: Counter[str] = Counter()
    for each in counts[period + 1 :]:
        later.update(each)
    found = [word for word, count in later.items() if count >= least and word not in known]
    return sorted(found, key=lambda word: (-later[word], word))[:most]


def table(counts: Sequence[Mapping[str, int]], words: Sequence[str]) -> Floats:
    """(periods, words) counts."""
    return np.array([[each.get(word, 0) for word in words] for each in counts], dtype=np.float64)


def log_odds(counted: Floats, prior: Floats, total: Floats | None = None) -> tuple[Floats, Floats]:
    """The log-odds of each word in each period, with a Dirichlet prior, and its variance.

    Args:
        counted: (periods, words).
        prior: (words,) the α_w; together α₀.
        total: (periods,) words of each period, where `counted` holds only some of them.

    Returns:
        (periods, words) log-odds in nats, and their approximate variances.
    """
    n = counted.sum(1) if total is None else total
    mass = counted + prior  # y_w + α_w
    rest = (n + prior.sum())[:, None] - mass
    return np.log(mass) - np.log(rest), 1 / mass + 1 / rest  # Monroe et al., Eq. 15 and 18, of one group


def contrast(periods: int) -> Floats:
    """(periods,) weights of a line through them: they sum to 0, and give its slope."""
    steps = np.arange(periods) - (periods - 1) / 2
    weights: Floats = steps / (steps**2).sum()
    return weights


def trend(counts: Sequence[Mapping[str, int]], words: Sequence[str], share: float = SHARE) -> Floats:
    """(words,) z-scores of the slope of each word's log-odds over the periods; of two periods, Monroe's ζ (Eq. 22).

    The prior is informative: α_w is the word's share of all periods together.

    Args:
        counts: of each period, in their order.
        share: α₀, as a share of the words of a mean period.

    Raises:
        InputError: one period, or one without words.
    """
    totals = np.array([sum(each.values()) for each in counts], dtype=np.float64)
    if len(counts) < 2 or not totals.all():
        raise InputError(f"got {len(counts)} periods of {totals.astype(int).tolist()} words; expected two, with words")
    seen = table(counts, words)
    everything = seen.sum(0)
    if not everything.all():
        absent = [word for word, count in zip(words, everything, strict=True) if not count]
        raise InputError(f"got the word {absent[0]!r}, which stands in no period; expected words of the texts")
    odds, variance = log_odds(seen, share * totals.mean() * everything / totals.sum(), totals)
    weights = contrast(len(counts))
    return weights @ odds / np.sqrt(weights**2 @ variance)


class CountModel:
    """A period's words and signs by their counts alone: what a model of a period is measured against.

    Text is a row of words and single other characters, each drawn by itself from the counts of the period with a
    Dirichlet prior from all periods; what no period has is spelled, at equal odds for each letter.

    Args:
        texts: of the period.
        everything: counts of words and signs of all periods, by `symbols`; the prior.
        share: α₀, as a share of the period's words and signs.
    """

    def __init__(self, texts: Iterable[str], everything: Mapping[str, int], share: float = SHARE) -> None:
        self.counts = symbols(texts)
        self.everything, self.strength = everything, share * self.counts.total()
        self._all = sum(everything.values()) + 1  # one for what is new
        self._total = self.counts.total() + self.strength
        letters = sum(count for symbol, count in self.counts.items() if symbol.isalpha())
        self._letters = letters / max(1, self.counts.total())

    def probability(self, symbol: str) -> float:
        """Of a word or sign, wherever it stands."""
        prior = self.everything.get(symbol, 0)
        spelled = 1.0 if prior else 27.0 ** -(len(symbol) + 1)  # 26 letters, and the end
        return float((self.counts[symbol] + self.strength * max(prior, 1) / self._all * spelled) / self._total)

    def word_probability(self, word: str) -> float:
        """Of a word, where one begins."""
        return self.probability(word) / self._letters

    def bits(self, texts: Sequence[str]) -> Floats:
        """(texts,) bits a character."""
        return np.array([self._bits(text) / max(1, len(text)) for text in texts])

    def _bits(self, text: str) -> float:
        found = Counter(_SYMBOL.findall(text.lower()))
        return -sum(count * math.log2(self.probability(symbol)) for symbol, count in found.items())


def symbols(texts: Iterable[str]) -> Counter[str]:
    """Words and single other characters, counted."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(_SYMBOL.findall(text.lower()))
    return found

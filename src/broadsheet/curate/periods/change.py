"""What the models of several periods say differently: a matrix of who reads what, and words that moved.

Knows: bits of words by each period's model, counts of words. Does not know: how models were made.

The paper compares its models item by item, and looks for probabilities that move from period to period; its scores were
not to be seen. These here are ours: a slope over the periods, with the error that it has over a word's occurrences.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from broadsheet.console import InputError
from broadsheet.curate.periods.counts import Floats, contrast, counted, later_words, trend


class Reads(Protocol):
    """A model of a period, as `PeriodModel`."""

    def bits(self, texts: Sequence[str]) -> Floats: ...
    def word_bits(self, texts: Sequence[str]) -> list[tuple[list[str], Floats]]: ...
    def probability(self, contexts: Sequence[str], words: Sequence[str]) -> Floats: ...


@dataclass(frozen=True)
class WordReadings:
    """Each occurrence of each word in texts of all periods, as each period's model reads it.

    Attributes:
        words: the words.
        word: (occurrences,) place of the word.
        period: (occurrences,) place of the period that its text is of.
        bits: (occurrences, models).
    """

    words: tuple[str, ...]
    word: NDArray[np.int64]
    period: NDArray[np.int64]
    bits: Floats

    @classmethod
    def of(cls, models: Sequence[Reads], texts: Sequence[Sequence[str]]) -> WordReadings:
        """What the models make of the texts of each period.

        Raises:
            InputError: there are not as many periods of texts as models, or fewer than two.
        """
        if len(models) != len(texts) or len(models) < 2:
            raise InputError(
                f"got {len(models)} models and texts of {len(texts)} periods; expected two or more of both"
            )
        everything = [text for some in texts for text in some]
        places = [place for place, some in enumerate(texts) for _ in some]
        read = [model.word_bits(everything) for model in models]
        named = {word: i for i, word in enumerate(sorted({word for words, _ in read[0] for word in words}))}
        word = np.array([named[each] for words, _ in read[0] for each in words], np.int64)
        period = np.repeat(np.array(places, np.int64), [len(words) for words, _ in read[0]])
        bits = np.stack([np.concatenate([np.zeros(0), *(found for _, found in each)]) for each in read], 1)
        return cls(tuple(named), word, period, bits)

    def means(self) -> Floats:
        """(words, models) bits of a word, over its occurrences."""
        count = np.bincount(self.word, minlength=len(self.words))
        columns = [np.bincount(self.word, column, minlength=len(self.words)) for column in self.bits.T]
        return np.stack(columns, 1) / count[:, None]

    def moved(self) -> Floats:
        """(words,) how much more probable a word becomes: z-scores of the slope over the models, among all words.

        Its occurrences are the same for all models: what differs are the models alone.
        """
        return self._z(self._slopes())

    def company(self) -> Floats:
        """(words,) how much more than other words a word belongs to its period: z-scores of the slope over the models,
        times the place of the text's period.

        High where later models expect it in later texts, and no more in earlier ones: in new company, in another sense.
        """
        periods = self.bits.shape[1]
        return self._z(self._slopes() * (self.period - (periods - 1) / 2))

    def _slopes(self) -> Floats:
        """(occurrences,) bits that a word gains from a period's model to the next."""
        found: Floats = -self.bits @ contrast(self.bits.shape[1])
        return found

    def _z(self, values: Floats) -> Floats:
        """Each word's mean less the median of all words', in errors of that mean.

        To each error the median one is added (Tusher et al., 2001): few occurrences that agree by chance lead else.
        """
        count = np.bincount(self.word, minlength=len(self.words))
        mean = np.bincount(self.word, values, minlength=len(self.words)) / count
        spread = np.bincount(self.word, (values - mean[self.word]) ** 2, minlength=len(self.words))
        # One occurrence tells nothing of its error: it is given that of all words.
        pooled = spread.sum() / max(1, (count - 1).sum())
        error = np.sqrt((spread + pooled) / count / np.maximum(1, count))
        z: Floats = (mean - np.median(mean)) / np.maximum(error + np.median(error), 1e-12)
        return z


@dataclass(frozen=True)
class ChangeReport:
    """What `change_report` finds.

    Attributes:
        periods: their names, in order.
        matrix: (models, periods of texts) bits a character.
        words: that stand often enough, the one that moved most first.
        moved, company: (words,) as in `WordReadings`.
        log_odds: (words,) z-scores of the slope of their log-odds, without a model: the plain baseline.
        bits: (words, models) of a word, over its occurrences.
        counts: (words, periods) in the texts.
        leakage: by period but the last, the mean probability that its own model gives to words that only later texts
            have, where a word of its own text begins; NaN where there are no such words.
    """

    periods: tuple[str, ...]
    matrix: Floats
    words: tuple[str, ...]
    moved: Floats
    company: Floats
    log_odds: Floats
    bits: Floats
    counts: Floats
    leakage: Mapping[str, float] = field(default_factory=dict)

    @property
    def own_best(self) -> list[bool]:
        """Of each period, whether its own model reads its texts best: the smallest of its column."""
        return [bool(self.matrix[:, i].argmin() == i) for i in range(len(self.periods))]

    def table(self) -> str:
        """The words as CSV: scores, bits by each model, counts by period."""
        out = io.StringIO()
        rows = csv.writer(out, lineterminator="\n")
        named = [f"{what} {period}" for what in ("bits", "count") for period in self.periods]
        rows.writerow(["word", "moved", "company", "log_odds", *named])
        for i, word in enumerate(self.words):
            scores = [f"{each[i]:.3f}" for each in (self.moved, self.company, self.log_odds)]
            rows.writerow([word, *scores, *(f"{b:.2f}" for b in self.bits[i]), *map(int, self.counts[i])])
        return out.getvalue()


def change_report(
    models: Mapping[str, Reads],
    texts: Mapping[str, Sequence[str]],
    *,
    least: int = 10,
    vocabulary: frozenset[str] | None = None,
    learnt: Mapping[str, Mapping[str, int]] | None = None,
    contexts: int = 100,
) -> ChangeReport:
    """Compare the models of periods: on each other's texts, and word by word.

    Args:
        models: by period, in order.
        texts: of the same periods, that no model has learnt from.
        least: occurrences of a word, in all texts together.
        vocabulary: words that are looked at, such as `shared_vocabulary`; None: all. A new word is in no early text,
            so that a shared vocabulary holds none of them.
        learnt: counts of the words that each model learnt from: what is not in one nor before it, and in a later one,
            is a later word. None: by `texts`.
        contexts: places in each period's texts, at which leakage is asked.

    Raises:
        InputError: the periods differ, or are fewer than two; no word is as frequent as `least`.

    Source: arXiv:2504.05523: the matrix and the filter are the paper's, the scores ours.
    """
    if list(models) != list(texts) or len(models) < 2:
        raise InputError(f"got models of {list(models)}, texts of {list(texts)}; expected the same two periods or more")
    readers, some = list(models.values()), list(texts.values())
    matrix = np.array([[_together(model, each) for each in some] for model in readers])
    readings = WordReadings.of(readers, some)
    counts = [counted(each) for each in some]
    total = np.array([sum(each[word] for each in counts) for word in readings.words])
    kept = [i for i, word in enumerate(readings.words) if vocabulary is None or word in vocabulary]
    kept = [i for i in kept if total[i] >= least]
    if not kept:
        raise InputError(f"got no word that stands {least} times or more in the texts; expected more text, or fewer")
    moved, company, bits = readings.moved(), readings.company(), readings.means()
    order = sorted(kept, key=lambda i: (-abs(moved[i]), readings.words[i]))
    words = tuple(readings.words[i] for i in order)
    told = [learnt[name] for name in models] if learnt else counts
    leaks = {name: leakage(readers[i], some[i], later_words(told, i), contexts) for i, name in enumerate(models)}
    leaks.pop(list(models)[-1])  # nothing is later
    return ChangeReport(
        tuple(models), matrix, words, moved[order], company[order], trend(counts, words), bits[order],
        np.array([[each[word] for each in counts] for word in words], float), leaks,
    )  # fmt: skip


def _together(model: Reads, texts: Sequence[str]) -> float:
    """Bits a character of all texts together."""
    sizes = np.array([len(text) for text in texts])
    return float((model.bits(texts) * sizes).sum() / sizes.sum())


def places(text: str, count: int, before: int = 20) -> list[str]:
    """What stands before a word, at so many places that lie evenly in a text: `before` words or more, at most twice
    as many."""
    words = text.split(" ")
    last = len(words) - 1
    if last < before:
        return []
    chosen = np.unique(np.linspace(before, last, count).round().astype(int))
    return [" ".join(words[max(0, place - 2 * before) : place]) for place in chosen]


def leakage(model: Reads, texts: Sequence[str], words: Sequence[str], contexts: int = 100, most: int = 100) -> float:
    """The mean probability that a model gives to words, all together, where the next word of a text begins.

    Args:
        model: of a period.
        texts: of the same period.
        words: that came later; the first `most` of them are asked.
        contexts: places, spread over the texts.

    Returns:
        a share from 0 to 1; NaN without words, or texts that are long enough.
    """
    each = max(1, -(-contexts // max(1, len(texts))))
    asked = [context for text in texts for context in places(text, each)][:contexts]
    if not asked or not words:
        return float("nan")
    return float(model.probability(asked, list(words)[:most]).sum(1).mean())

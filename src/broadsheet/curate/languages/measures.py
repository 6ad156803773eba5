"""What datatrove's quality filters measure of a document, as numbers: what a threshold is then fitted on.

Knows: words, lines, n-grams. Does not know: thresholds. Each figure is the one that the filter compares.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.gopher_repetition_filter import (
    find_all_duplicate,
    find_duplicates,
    find_top_duplicate,
    get_n_grams,
)
from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION
from datatrove.utils.word_tokenizers import WordTokenizer

from broadsheet.curate.files import RankStatistics
from broadsheet.curate.words import WORDS

TOP, DUPLICATE = (2, 3, 4), (5, 6, 7, 8, 9, 10)  # n of the n-grams
DIGITS = 4  # that values are rounded to in statistics
ROUNDED = 0.51 * 10**-DIGITS  # the most that a value is off by that
_ENDS = tuple(TERMINAL_PUNCTUATION)
_BREAKS = re.compile("\n+")

# English's thresholds (FineWeb and Gopher); True where it is a least value.
ENGLISH: Mapping[str, tuple[float, bool]] = {
    "line_punct": (0.12, True),
    "new_line": (0.3, False),
    "min_avg_word_length": (3, True),
    "max_avg_word_length": (10, False),
    "alpha_words": (0.8, True),
    "dup_line": (0.3, False),
    **{f"top_{n}": (share, False) for n, share in zip(TOP, (0.20, 0.18, 0.16), strict=True)},
    **{f"dup_{n}": (share, False) for n, share in zip(DUPLICATE, (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True)},
}


def measures(text: str, words: list[str]) -> dict[str, float]:
    """The figures of a text, by their names in `ENGLISH`; none of a text without words.

    Args:
        words: of the text.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    told = [word for word in words if any(each not in PUNCTUATION_SET for each in word)]
    if not told:
        return {}
    length = sum(map(len, told)) / len(told)
    divided = _BREAKS.split(text)
    return {
        "line_punct": sum(line.endswith(_ENDS) for line in lines) / len(lines),
        "new_line": text.count("\n") / len(words),
        "min_avg_word_length": length,
        "max_avg_word_length": length,
        "alpha_words": sum(any(map(str.isalpha, word)) for word in words) / len(words),
        "dup_line": find_duplicates(divided)[0] / len(divided),
        **{f"top_{n}": find_top_duplicate(get_n_grams(words, n)) / len(text) for n in TOP if len(words) >= n},
        **{f"dup_{n}": find_all_duplicate(words, n) / len(text) for n in DUPLICATE},
    }


class LanguageStatistics(RankStatistics):
    """The first pass of fitting thresholds: for each language, how many documents have which figures and words.

    Writes `<folder>/<rank>.json`; `merged` adds the ranks up. Documents pass through.

    Args:
        folder: for the ranks' statistics.
        words: the tokenizer, the same one that filters will use.
        field: of the metadata, that holds the language.
    """

    name = "statistics of languages"

    def __init__(self, folder: str | Path, words: WordTokenizer = WORDS, field: str = "language") -> None:
        super().__init__(folder)
        self.words, self.field = words, field

    def note(self, found: Any, document: Document) -> None:
        count(found.setdefault(document.metadata[self.field], empty()), document.text, self.words)


class LanguageScores(RankStatistics):
    """The first pass of a confidence cut: how many documents of each language have which score.

    Writes `<folder>/<rank>.json`. Documents pass through.

    Args:
        folder: for the ranks' counts.
    """

    name = "scores of languages"

    def note(self, found: Any, document: Document) -> None:
        score = f"{document.metadata['language_score']:.{DIGITS}f}"
        found.setdefault(document.metadata["language"], Counter())[score] += 1


def counted(texts: Iterable[tuple[str, str]], words: WordTokenizer = WORDS) -> dict[str, dict[str, Any]]:
    """The statistics of (language, text) pairs, by language."""
    found: dict[str, dict[str, Any]] = {}
    for language, text in texts:
        count(found.setdefault(language, empty()), text, words)
    return found


def empty() -> dict[str, Any]:
    """The statistics of no document: `documents`, `words` and each measure, counted."""
    return {"documents": 0, "words": Counter(), "measures": {name: Counter() for name in ENGLISH}}


def count(statistics: dict[str, Any], text: str, words: WordTokenizer) -> None:
    """Add a document to the statistics of its language."""
    found = words.word_tokenize(text)
    statistics["documents"] += 1
    statistics["words"].update(found)
    for name, value in measures(text, found).items():
        statistics["measures"][name][f"{value:.{DIGITS}f}"] += 1


def merged(ranks: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The statistics of all ranks together, by language."""
    found: dict[str, dict[str, Any]] = {}
    for rank in ranks:
        for language, told in rank.items():
            own = found.setdefault(language, empty())
            own["documents"] += told["documents"]
            own["words"].update(told["words"])
            for name, counts in told["measures"].items():
                own["measures"][name].update(counts)
    return dict(sorted(found.items()))

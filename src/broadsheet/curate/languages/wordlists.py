"""Words that belong to a language: its stop words, and a list by which foreign text is told (Sec. 3.4, 3.6).

Knows: words and how often they occur in which language. Does not know: thresholds, clusters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from datatrove.data import Document
from datatrove.utils.word_tokenizers import WordTokenizer

from broadsheet.curate.base import Decision, Step
from broadsheet.curate.words import WORDS

STOP_SHARE = 0.008  # of all words; the paper's value was not seen: French's 18 stop words have about that
LEAST_STOP_WORDS = 8


def stop_words(counts: Mapping[str, int], share: float = STOP_SHARE, least: int = LEAST_STOP_WORDS) -> list[str]:
    """The words that are at least that share of a text each; the `least` most frequent, where these are fewer.

    Numbers and signs are no words here.
    """
    letters = Counter({word: count for word, count in counts.items() if any(map(str.isalpha, word))})
    total = sum(counts.values())
    ranked = sorted(letters.items(), key=lambda each: (-each[1], each[0]))
    frequent = [word for word, count in ranked if count >= share * total]
    return frequent if len(frequent) >= least else [word for word, _ in ranked[:least]]


def affinity_words(
    language: Mapping[str, int], all_languages: Mapping[str, int], percentile: float = 95, affinity: float = 0.85
) -> list[str]:
    """Words that are frequent in a language, and occur in hardly any other.

    Args:
        language: occurrences of each word in the language.
        all_languages: in all languages of the same tokenizer, this one among them.
        percentile: of the language's counts, that a word's has to reach.
        affinity: the least share of a word's occurrences that are the language's.
    """
    if not language:
        return []
    least = np.percentile(list(language.values()), percentile)
    return sorted(
        word for word, count in language.items() if count >= least and count / all_languages[word] >= affinity
    )


def contamination(
    texts: Iterable[tuple[str, str]], lists: Mapping[str, Collection[str]], tokenizer: WordTokenizer = WORDS
) -> dict[str, float]:
    """By language, the share of its texts that hold no word of its list; 0 where there are none.

    Args:
        texts: (language, text) pairs; read once.
        lists: words of each language.
    """
    listed = {language: frozenset(words) for language, words in lists.items()}
    total: Counter[str] = Counter()
    without: Counter[str] = Counter()
    for language, text in texts:
        if language in listed:
            total[language] += 1
            without[language] += listed[language].isdisjoint(tokenizer.word_tokenize(text))
    return {language: without[language] / max(1, total[language]) for language in listed}


class PrecisionFilter(Step):
    """Keep a document that holds a word of its language's list, or whose address names the language.

    Adds `metadata["wordlist_ratio"]`: the share of the document's different words that are listed.

    Args:
        lists: words of each language that is filtered; a language that is not there is left alone.
        names: of each language, what in an address names it: the language, its regions; small letters.
        tokenizer: the one with which the lists were made.
        others: as of a `Step`.
    """

    name = "words of the language"

    def __init__(
        self,
        lists: Mapping[str, Collection[str]],
        names: Mapping[str, Sequence[str]] | None = None,
        tokenizer: WordTokenizer = WORDS,
        **others: object,
    ) -> None:
        super().__init__(**others)  # type: ignore[arg-type]
        self.lists = {language: frozenset(words) for language, words in lists.items()}
        self.names, self.tokenizer = dict(names or {}), tokenizer

    def decide(self, documents: list[Document]) -> list[Decision]:
        return [self._decide(document) for document in documents]

    def _decide(self, document: Document) -> Decision:
        language = document.metadata.get("language", "")
        if language not in self.lists:
            return True
        words = set(self.tokenizer.word_tokenize(document.text))
        ratio = len(words & self.lists[language]) / len(words) if words else 0.0
        document.metadata["wordlist_ratio"] = ratio
        named = names_language(str(document.metadata.get("url", "")), language, self.names.get(language, ()))
        return True if ratio > 0 or named else (False, "no_word_of_the_language")


def names_language(url: str, code: str, names: Sequence[str] = ()) -> bool:
    """Whether an address names a language: its code in small letters on its own, in capitals anywhere, or a name.

    The authors' code means to leave `http://` out and to find top-level domains, and does neither; here it does.

    Args:
        code: of the language, as `sw`.
        names: in small letters; `.ke` is a top-level domain.
    """
    if not url:
        return False
    bare = re.sub(r"^[a-z]+://", "", url)
    if re.search(rf"(?<![a-zA-Z0-9]){re.escape(code.lower())}(?![a-zA-Z0-9])", bare) or code.upper() in bare:
        return True
    host = bare.partition("/")[0].lower()
    plain = re.sub(r"[^a-z0-9/.]", "", bare.lower())
    return any(host.endswith(name) if name.startswith(".") else name in plain for name in names)

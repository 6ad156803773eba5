"""FineWeb2 (Penedo et al., 2025, arXiv:2506.20920): a recipe for all languages, thresholds from the language itself.

Knows: documents with languages and scores, statistics of languages, datatrove's filters. Does not know: where documents
come from, executors. The formulas are in `languages/`, the passes over a corpus in its recipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from datatrove.data import Document
from datatrove.pipeline.filters import FineWebQualityFilter
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from datatrove.utils.word_tokenizers import WordTokenizer

from broadsheet.console import InputError, within
from broadsheet.curate.base import Decision, Step
from broadsheet.curate.languages.gopher import GopherQuality, GopherRepetition
from broadsheet.curate.languages.lid import DEFAULT, Languages
from broadsheet.curate.languages.measures import DUPLICATE, ENGLISH, ROUNDED, TOP
from broadsheet.curate.languages.thresholds import Method, ValueCounts, adapt, confidence
from broadsheet.curate.languages.wordlists import affinity_words, stop_words
from broadsheet.curate.words import WORDS

ENGLISH_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher's
NOTHING: Mapping[str, Any] = {"documents": 0}
Statistics = Mapping[str, Any]  # of a language: what `measures.count` adds up


@dataclass(frozen=True)
class LanguageThresholds:
    """What a document of a language is held against.

    Args:
        values: by measure, as in `measures.ENGLISH`.
        stop_words: of which a document holds two different ones.
        documents: of the reference that they are from; 0: they are English's.
    """

    values: Mapping[str, float]
    stop_words: Sequence[str]
    documents: int = 0

    def filters(self, words: WordTokenizer = WORDS) -> list[BaseFilter]:
        """datatrove's three filters with these values; what the paper turns off is off."""
        value = self.values
        return [
            GopherRepetition(
                dup_line_frac=value["dup_line"],
                dup_para_frac=0,
                dup_line_char_frac=0,
                dup_para_char_frac=0,
                top_n_grams=tuple((n, value[f"top_{n}"]) for n in TOP),
                dup_n_grams=tuple((n, value[f"dup_{n}"]) for n in DUPLICATE),
                language=words,
            ),
            GopherQuality(
                min_avg_word_length=value["min_avg_word_length"],
                max_avg_word_length=value["max_avg_word_length"],
                max_non_alpha_words_ratio=value["alpha_words"],  # in truth the least share of words with a letter
                stop_words=list(self.stop_words),
                language=words,
            ),
            FineWebQualityFilter(
                line_punct_thr=value["line_punct"],
                short_line_thr=999,
                char_duplicates_ratio=0.1,
                new_line_ratio=value["new_line"],
                language=words,
            ),
        ]


UNADAPTED = LanguageThresholds({name: value for name, (value, _) in ENGLISH.items()}, ENGLISH_STOP_WORDS)


@dataclass
class FineWeb2:
    """Clean text of any language: which documents count as of it, and what a good one looks like, told by its own text.

    Use when: a corpus holds other languages than English, or English beside others. Filters that were made for English
    drop Chinese for its short words and Telugu for its long ones; here each threshold stands where English's stands in
    English. Prefer the English thresholds, `UNADAPTED`, for English alone: adapted ones then are the same.

    Inputs: documents with `metadata["language"]` and `["language_score"]`, which `Identify` adds; statistics of each
    language by `measures.LanguageStatistics`, on text like Wikipedia or on the corpus itself.
    Relation: the filters are datatrove's, and `Signatures` finds duplicates before them. `broadsheet apply fineweb2`
    does all passes.

    Args:
        low, high: what a language's confidence threshold lies between (Sec. 3.1).
        quality, gopher, repetition: how thresholds are carried over from English: line punctuation and line breaks;
            word lengths and words with letters; repeated lines and n-grams (Sec. 3.4: 10Tail, Quantile, MeanStd).
        least: documents of a language, below which its statistics say too little.
        percentile, affinity: of a word list: how frequent a word is in its language, and what share of its occurrences
            are in it (Sec. 3.6).
        contaminated: the share of documents without a word of their list, above which the list filters (Sec. 3.6).
        most: how often a document is repeated at most (Sec. 3.5).

    Example:
        >>> from broadsheet.curate import FineWeb2
        >>> scores = {"fr": {"0.9500": 90, "0.4000": 10}}  # documents by score
        >>> round(FineWeb2().confidence(scores)["fr"], 3)
        0.785

    Source: arXiv:2506.20920, Sec. 3; authors' code huggingface/fineweb-2.
    """

    paper: ClassVar[str] = "fineweb2"

    low: float = 0.3
    high: float = 0.9
    quality: Method = "10Tail"
    gopher: Method = "Quantile"
    repetition: Method = "MeanStd"
    least: int = 50
    percentile: float = 95
    affinity: float = 0.85
    contaminated: float = 0.1
    most: int = 10

    def __post_init__(self) -> None:
        within(self, percentile=(0, 100), affinity=(0, 1), contaminated=(0, 1))
        if not 0 <= self.low <= self.high <= 1:
            raise InputError(f"got low {self.low} and high {self.high}; expected 0 ≤ low ≤ high ≤ 1")
        if self.least < 1 or self.most < 1:
            raise InputError(f"got least {self.least} and most {self.most}; expected 1 or more")

    def confidence(self, scores: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
        """Each language's least score.

        Args:
            scores: by language, how many documents have which score.
        """
        return {name: confidence(ValueCounts.counted(each), self.low, self.high) for name, each in scores.items()}

    def thresholds(
        self,
        statistics: Mapping[str, Statistics],
        english: Statistics,
        own: Mapping[str, Statistics] | None = None,
        own_english: Statistics | None = None,
    ) -> dict[str, LanguageThresholds]:
        """The thresholds of each language that has documents enough; English's own stay as they are.

        A measure gives no scale where all English documents are alike in it, or where most of them lie beyond English's
        own threshold: it then is not carried over.

        Args:
            statistics: by language, of its reference: text like Wikipedia.
            english: of English, of such text too.
            own, own_english: of the corpus itself, for what repeats (Sec. 3.4). Where English or the language has too
                few documents there, those of the reference, of both: only text of one kind can be compared.

        Raises:
            InputError: English has too few documents; how many are needed is said.
        """
        if english["documents"] < self.least:
            raise InputError(
                f"got {english['documents']} documents of English, from which thresholds are carried over; expected "
                f"{self.least} or more: name some by --english"
            )
        found = {}
        for language, told in statistics.items():
            if language in ("en", "eng"):
                found[language] = UNADAPTED
            elif told["documents"] >= self.least:
                repeated, repeated_english = (own or {}).get(language, NOTHING), own_english or NOTHING
                if min(repeated["documents"], repeated_english["documents"]) < self.least:
                    repeated, repeated_english = told, english
                found[language] = self._adapted((told, repeated), (english, repeated_english))
        return found

    def _adapted(
        self, told: tuple[Statistics, Statistics], english: tuple[Statistics, Statistics]
    ) -> LanguageThresholds:
        """Of the statistics of the reference, and of the corpus, of the language and of English."""
        values = {}
        for name, (threshold, least) in ENGLISH.items():
            method, source = self.repetition, 1
            if name in ("line_punct", "new_line"):
                method, source = self.quality, 0
            elif name in ("min_avg_word_length", "max_avg_word_length", "alpha_words"):
                method, source = self.gopher, 0
            reference, target = (ValueCounts.counted(each[source]["measures"][name]) for each in (english, told))
            if method == "MeanStd" and (not reference.std or (threshold < reference.mean) is not least):
                method = "English"
            rounded = 0.0 if method == "English" else ROUNDED  # so that who has the figure itself stays
            found = adapt(method, reference, target, threshold, least)
            values[name] = max(0.0, found - rounded if least else found + rounded)
        return LanguageThresholds(values, stop_words(told[0]["words"]), told[0]["documents"])

    def word_lists(self, statistics: Mapping[str, Statistics]) -> dict[str, list[str]]:
        """The list of each language that has documents enough; words are counted over all languages."""
        total: Counter[str] = Counter()
        for told in statistics.values():
            total.update(told["words"])
        return {
            language: affinity_words(told["words"], total, self.percentile, self.affinity)
            for language, told in statistics.items()
            if told["documents"] >= self.least
        }


class Identify(Step):
    """Add a document's language: `metadata["language"]`, `["language_score"]`, and `["language_script"]` where known.

    A document without letters is dropped as `no_language`.

    Args:
        languages: the model, or anything with its `scores`.
        others: as of a `Step`.
    """

    name = "language"

    def __init__(self, languages: Any = None, **others: Any) -> None:
        super().__init__(**others)
        self.languages = languages or Languages(DEFAULT, k=1)

    def decide(self, documents: list[Document]) -> list[Decision]:
        found: list[Decision] = []
        told = self.languages.scores([document.text for document in documents])
        for document, scores in zip(documents, told, strict=True):
            if not scores:
                found.append((False, "no_language"))
                continue
            label, score = max(scores, key=lambda each: each[1])
            language, _, script = label.partition("_")
            document.metadata |= {"language": language, "language_score": score}
            if script:
                document.metadata["language_script"] = script
            found.append(True)
        return found


class Confident(Step):
    """Keep documents whose language is sure enough.

    Args:
        thresholds: the least score of each language; of a language that is not there nothing stays.
        others: as of a `Step`.
    """

    name = "confidence"

    def __init__(self, thresholds: Mapping[str, float], **others: Any) -> None:
        super().__init__(**others)
        self.thresholds = dict(thresholds)

    def decide(self, documents: list[Document]) -> list[Decision]:
        return [self._decide(document.metadata) for document in documents]

    def _decide(self, metadata: Mapping[str, Any]) -> Decision:
        least = self.thresholds.get(metadata["language"])
        if least is None:
            return False, "language_not_asked_for"
        return True if metadata["language_score"] >= least else (False, "language_unsure")


class Finish(Step):
    """Mend broken encodings (ftfy), and replace addresses of mail and of machines; what changed is counted.

    datatrove's formatters, with one replacement each: several are taken in turns, and which one then depends on ranks.
    """

    name = "finish"

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self.formatters = {
            "encoding": FTFYFormatter(),
            "addresses": PIIFormatter(email_replacement="email@example.com", ip_replacement="22.214.171.124"),
        }

    def decide(self, documents: list[Document]) -> list[Decision]:
        return [self._decide(document) for document in documents]

    def _decide(self, document: Document) -> Decision:
        changed = []
        for name, formatter in self.formatters.items():
            before, document.text = document.text, formatter.format(document.text)
            changed += [name] if document.text != before else []
        return (True, " and ".join(changed)) if changed else True


@dataclass
class _Chain:
    """The filters of one language, made when the first document comes: they hold much and travel little."""

    thresholds: LanguageThresholds
    words: WordTokenizer
    filters: list[BaseFilter] = field(default_factory=list)

    def __call__(self, document: Document) -> Decision:
        self.filters = self.filters or self.thresholds.filters(self.words)
        for each in self.filters:
            stays, reason = get_filter_result(each.filter(document))
            if not stays:
                return False, reason
        return True


class AdaptedFilters(Step):
    """datatrove's repetition and quality filters, each language by its own thresholds.

    Args:
        thresholds: by language; documents of others are dropped as `too_few_of_the_language`.
        words: the tokenizer with which the thresholds were found.
        others: as of a `Step`.
    """

    name = "quality, by language"

    def __init__(
        self, thresholds: Mapping[str, LanguageThresholds], words: WordTokenizer = WORDS, **others: Any
    ) -> None:
        super().__init__(**others)
        self._chains: dict[str, Callable[[Document], Decision]] = {
            language: _Chain(each, words) for language, each in thresholds.items()
        }

    def decide(self, documents: list[Document]) -> list[Decision]:
        found: list[Decision] = []
        for document in documents:
            chain = self._chains.get(document.metadata["language"])
            found.append(chain(document) if chain else (False, "too_few_of_the_language"))
        return found

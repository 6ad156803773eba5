"""The metrics of LooGLE (Li et al., 2023, arXiv:2311.04939): overlap of texts, cloze matches, orders, and judges.

Knows: a gold answer and a model's answer, as strings. Does not know: documents, prompts, models.

Where a metric exists twice, the plain name is the one to use; the authors' variant ends in `_recall` or `_authors`. A
gold answer, given as the prediction, scores 1 on every plain metric. Definitions: Sec. 4 of the paper and its code.
"""

from __future__ import annotations

import ast
import json
import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from broadsheet.console import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Question, gold answer, prediction -> whether they mean the same; None where the judge cannot tell.
Judge = Callable[[str, str, str], bool | None]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Lower-case words without ASCII punctuation and English articles, as the SQuAD metrics count them."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(gold: str, prediction: str) -> float:
    """Harmonic mean of the shares of `words` that the two texts have in common, repeated words counted.

    Example:
        >>> token_f1("the red house", "A red car.")
        0.5
    """
    a, b = words(gold), words(prediction)
    if not a or not b:
        return float(a == b)
    return 2 * (Counter(a) & Counter(b)).total() / (len(a) + len(b))


def containment(gold: str, prediction: str) -> float:
    """1 if the `words` of the gold answer occur consecutively in the prediction, else 0.

    Example:
        >>> containment("Red House", "It was the red house, I think.")
        1.0
    """
    a, b = words(gold), words(prediction)
    if not a:
        return float(not b)
    return float(any(b[i : i + len(a)] == a for i in range(len(b) - len(a) + 1)))


def bleu(gold: str, prediction: str, order: int = 4) -> float:
    """Geometric mean of the n-gram precisions up to `order`, times the brevity penalty, on whitespace tokens.

    Not smoothed: 0 if an order has no match. Orders longer than the shorter text are left out ("effective order"), or
    no answer of three words could score.

    Raises:
        InputError: nltk is not installed.
    """
    order = min(order, len(gold.split()), len(prediction.split()))
    if order == 0:
        return float(gold.split() == prediction.split())
    value = _nltk_bleu(gold, prediction, (1 / order,) * order)
    return value if value > 1e-9 else 0.0  # nltk puts the smallest float in place of a count of 0


def bleu_4_authors(gold: str, prediction: str) -> float:
    """The authors' "BLEU-4": the 4-gram precision alone, times the brevity penalty; about 1e-308 without a match.

    Raises:
        InputError: nltk is not installed.
    """
    return _nltk_bleu(gold, prediction, (0, 0, 0, 1))  # weights (0, 0, 0, 1) of nltk's sentence_bleu


def _nltk_bleu(gold: str, prediction: str, weights: tuple[float, ...]) -> float:
    try:
        from nltk.translate.bleu_score import sentence_bleu
    except ImportError:
        raise InputError("BLEU needs nltk: pip install -e '.[evaluate]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns whenever an order has no match
        return float(sentence_bleu([gold.split()], prediction.split(), weights=weights))


class Overlap(NamedTuple):
    """The overlap of two texts, as a share of the prediction, of the gold text, and their harmonic mean."""

    precision: float
    recall: float
    f1: float


def rouge_n(gold: str, prediction: str, n: int) -> Overlap:
    """ROUGE-N as the package rouge 1.0.1 defines it, which the paper uses: n-grams as sets.

    A text of fewer than n words has no n-grams and scores 0: see `rouge_f1` for short answers.
    """
    grams = [_grams(_flat(_sentences(text)), n) for text in (gold, prediction)]
    return _overlap(len(grams[0] & grams[1]), len(grams[0]), len(grams[1]))


def rouge_l(gold: str, prediction: str) -> Overlap:
    """ROUGE-L as the package rouge 1.0.1 defines it: the different words in any longest common subsequence.

    Texts are split into sentences at full stops, each sentence of one is compared with each of the other, and words
    count once. The values equal the package's bit for bit (except F1, where it adds 1e-8 to a denominator, so that no
    gold answer reaches 1). The package itself recurses once per word and keeps a dictionary of all pairs of words, and
    fails at a thousand words without a full stop. Here time is quadratic in the longest sentences, and memory one bit
    per pair of words.
    """
    gold_sentences, sentences = _sentences(gold), _sentences(prediction)
    known = [set(sentence) for sentence in sentences]
    found: set[str] = set()
    for reference in gold_sentences:
        for sentence, its_words in zip(sentences, known, strict=True):
            shared = its_words.intersection(reference)
            if shared <= found:
                continue
            found |= shared if len(shared) == 1 else set(_common_subsequence(reference, sentence))
    return _overlap(len(found), len(set(_flat(gold_sentences))), len(set(_flat(sentences))))


def rouge_f1(gold: str, prediction: str, n: int) -> float:
    """F1 of `rouge_n`, the order no longer than the shorter text: an answer of one word has no bigrams."""
    shorter = min(len(_flat(_sentences(text))) for text in (gold, prediction))
    return rouge_n(gold, prediction, max(1, min(n, shorter))).f1


def _sentences(text: str) -> list[list[str]]:
    # A blank sentence, as behind a last full stop and a space, is one empty word: so it is in the package.
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _flat(sentences: list[list[str]]) -> list[str]:
    return [word for sentence in sentences for word in sentence]


def _grams(tokens: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def _overlap(shared: int, gold: int, predicted: int) -> Overlap:
    precision, recall = (shared / size if size else 0.0 for size in (predicted, gold))
    return Overlap(precision, recall, 2 * shared / (gold + predicted) if shared else 0.0)


def _common_subsequence(a: list[str], b: list[str]) -> Iterator[str]:
    """The words of one longest common subsequence, last first; of several, the one that the package finds."""
    import numpy as np

    numbers = {word: i for i, word in enumerate(dict.fromkeys(a + b))}
    x, y = (np.array([numbers[word] for word in text]) for text in (a, b))
    above = np.zeros(len(y) + 1, dtype=np.int32)
    rows: list[NDArray[np.uint8]] = []  # where dropping a word of `a` loses less than dropping one of `b`, in bits
    for number in x:
        row = np.zeros_like(above)
        # The table grows by at most 1 a step, so that its rows are running maxima.
        np.maximum.accumulate(np.maximum(above[1:], above[:-1] + (y == number)), out=row[1:])
        rows.append(np.packbits(above[1:] > row[:-1]))
        above = row
    i, j = len(x) - 1, len(y) - 1
    while i >= 0 and j >= 0:
        if x[i] == y[j]:
            yield a[i]
            i, j = i - 1, j - 1
        elif rows[i][j >> 3] >> (7 - (j & 7)) & 1:
            i -= 1
        else:
            j -= 1


def meteor(gold: str, prediction: str, *, ordered: bool = True) -> float:
    """METEOR of nltk on whitespace tokens.

    Args:
        ordered: False drops repeated words first, as the authors do. They pass Python sets, whose order, and so the
            value, changes from run to run; here the first occurrence counts.

    Raises:
        InputError: nltk, or the WordNet data that it takes synonyms from, is not installed.
    """
    try:
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError:
        raise InputError("METEOR needs nltk: pip install -e '.[evaluate]'") from None
    a, b = gold.split(), prediction.split()
    if not ordered:
        a, b = list(dict.fromkeys(a)), list(dict.fromkeys(b))
    try:
        return float(single_meteor_score(a, b))
    except LookupError:
        raise InputError("METEOR needs the WordNet data of nltk: python -m nltk.downloader wordnet") from None


def bertscore(
    gold: Sequence[str], predictions: Sequence[str], model: str, *, layers: int | None = None
) -> list[Overlap]:
    """BERTScore of each prediction, by the package bert-score.

    The authors print `precision`: they take the recall, but pass the gold answer as the prediction.

    Args:
        model: a hub id or a local folder; the authors use the package's English default, "roberta-large".
        layers: the layer whose vectors are compared; the package knows it for the models it was tuned on.

    Raises:
        InputError: bert-score is not installed, or `model` is one whose layer it does not know.
    """
    try:
        from bert_score import score  # type: ignore[import-not-found]
    except ImportError:
        raise InputError("BERTScore needs the package bert-score: pip install bert-score") from None
    try:
        columns = score(list(predictions), list(gold), model_type=model, num_layers=layers)
    except KeyError:
        raise InputError(f"bert-score knows no layer for {model!r}; give layers=, the number of one") from None
    return [Overlap(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


class Matches(NamedTuple):
    """Masked entities of a cloze question: named exactly, named in part, and asked for."""

    exact: int
    partial: int
    total: int


def cloze_matches(gold: Mapping[str, str], prediction: str, *, whole: bool = False) -> Matches:
    """How many masks a prediction fills: with the gold string, or with one that shares a word with it.

    The score of a test set is the sum of hits over the sum of masks.

    Args:
        gold: mask → entity, e.g. `{"<mask-0>": "Britney Spears"}`.
        prediction: see `parse_cloze`; what cannot be parsed fills no mask.
        whole: see `parse_cloze`; the authors' code scores with True.

    Example:
        >>> cloze_matches({"<mask-0>": "Los Angeles", "<mask-1>": "Bob"}, "{'<mask-0>': 'Angeles', '<mask-1>': 'Bob'}")
        Matches(exact=1, partial=2, total=2)
    """
    filled = parse_cloze(prediction, whole=whole)
    pairs = [(entity, filled[mask]) for mask, entity in gold.items() if isinstance(filled.get(mask), str)]
    return Matches(
        exact=sum(entity == answer for entity, answer in pairs),
        partial=sum(not set(entity.split()).isdisjoint(answer.split()) for entity, answer in pairs),
        total=len(gold),
    )


def parse_cloze(prediction: str, *, whole: bool = False) -> dict[Any, Any]:
    """The dictionary in a model's answer, as JSON or a Python literal; empty if there is none. Nothing is executed.

    Args:
        whole: the prediction has to be a dictionary and nothing else; otherwise the first one in it counts.
    """
    candidates = [prediction.strip()] if whole else re.findall(r"\{[^{}]*\}", prediction)
    return next((found for each in candidates if isinstance(found := literal(each), dict)), {})


def literal(text: str) -> Any:
    """The value of a JSON text or a Python literal; None for anything else. Nothing is executed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stray backslash in a string
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


class Order(NamedTuple):
    """`OrderDeviation` divided by its maximum for n items: 0 for the gold order, 1 for the farthest from it."""

    lsd: float
    lmd: float
    sd: float
    sdd: float


class OrderDeviation(NamedTuple):
    """Deviations of a permutation, not normalised.

    Attributes:
        lsd: mean squared distance of an item from its place (location square deviation).
        lmd: mean distance of an item from its place (location mean deviation).
        sd: least number of swaps that restore the order (swap deviation).
        sdd: least total distance of swaps that restore the order (swap distance deviation).
    """

    lsd: float
    lmd: float
    sd: int
    sdd: int

    def normalised(self, n: int) -> Order:
        """Each divided by its largest value over the permutations of n items; zeros for one item."""
        if n < 2:
            return Order(0.0, 0.0, 0.0, 0.0)
        farthest = n * n // 2  # max of Σ |pos − i|, reached by the reversed order; max of LSD is (n² − 1)/3
        return Order(3 * self.lsd / (n * n - 1), n * self.lmd / farthest, self.sd / (n - 1), 2 * self.sdd / farthest)


def order_deviation(gold: Sequence[str], predicted: Sequence[str]) -> OrderDeviation:
    """The four deviations of the timeline-reorder task.

    Args:
        gold: n different items in their right order.
        predicted: the same items in the order a model gave, as `read_order` makes it.

    Raises:
        ValueError: the items are not the same, or not different.

    Example:
        >>> order_deviation(["II", "I", "III"], ["I", "II", "III"])
        OrderDeviation(lsd=0.6666666666666666, lmd=0.6666666666666666, sd=1, sdd=1)
    """
    if sorted(gold) != sorted(predicted) or len(set(gold)) != len(gold) or not gold:
        raise ValueError(f"got the order {list(predicted)}; expected a permutation of {list(gold)}, all different")
    place = {item: i for i, item in enumerate(predicted)}
    places = [place[item] for item in gold]
    n = len(places)
    distances = [abs(p - i) for i, p in enumerate(places)]
    cycles, unvisited = 0, set(range(n))
    while unvisited:
        cycles += 1
        i = unvisited.pop()
        while (i := places[i]) in unvisited:
            unvisited.remove(i)
    # The authors' greedy search always finds a swap that brings both items nearer by its whole length, so it ends at
    # half the summed distance, which is the minimum (Diaconis & Graham, 1977).
    return OrderDeviation(
        lsd=sum(d * d for d in distances) / n,  # LSD = mean (pos_i − i)²
        lmd=sum(distances) / n,  # LMD = mean |pos_i − i|
        sd=n - cycles,  # SD = n − number of cycles
        sdd=sum(distances) // 2,  # SDD = ½ Σ |pos_i − i|
    )


def read_order(gold: Sequence[str], prediction: str) -> list[str]:
    """The order in which a prediction names the labels of the gold answer: Roman or plain numbers, or words.

    The first mention counts. Labels that are not mentioned follow in the order of the question's list (I, II, III or
    1, 2, 3), not in the gold order, or an empty answer would be right.

    Example:
        >>> read_order(["II", "I", "III"], "First II. happened, then III., not II")
        ['II', 'III', 'I']
    """
    longest_first = sorted(gold, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(label)}(?!\w)" for label in longest_first)
    named = list(dict.fromkeys(re.findall(pattern, prediction)))
    return named + sorted(set(gold) - set(named), key=_label)


_NUMERALS = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}


def _label(label: str) -> tuple[float, str]:
    """The sort key of a label: its number, Roman or plain; words come after numbers."""
    if label.isdecimal() and label.isascii():
        return int(label), label
    if label and set(label) <= _NUMERALS.keys():
        values = [_NUMERALS[letter] for letter in label]
        return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True)), label
    return math.inf, label


def judged(judge: Judge, items: Sequence[tuple[str, str, str]]) -> tuple[int, int]:
    """How many (question, gold answer, prediction) triples a judge calls right, and how many it decides.

    The paper's score is their ratio, True / (True + False); undecided ones (None) are left out. Its judge is GPT-4.

    Example:
        >>> judged(lambda question, gold, answer: containment(gold, answer) > 0, [("Who?", "Bob", "Bob did.")])
        (1, 1)
    """
    verdicts = [judge(*item) for item in items]
    return sum(bool(verdict) for verdict in verdicts), sum(verdict is not None for verdict in verdicts)

"""FineWeb2: thresholds that follow the language, words that tell it, copies by cluster size, and the passes."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import get_filter_result
from hypothesis import assume, given
from hypothesis import strategies as st

from broadsheet.apply.base import Source
from broadsheet.console import InputError
from broadsheet.curate import (
    AdaptedFilters,
    Confident,
    FineWeb2,
    Finish,
    Identify,
    Languages,
    LanguageThresholds,
    NearDuplicates,
    PrecisionFilter,
    Readable,
    Rehydrate,
    Signatures,
)
from broadsheet.curate.fineweb2 import UNADAPTED
from broadsheet.curate.languages import tasks
from broadsheet.curate.languages.measures import ENGLISH, counted, measures, merged
from broadsheet.curate.languages.recipe import FineWeb2Recipe
from broadsheet.curate.languages.rehydration import SIZE, copies, removal, weights
from broadsheet.curate.languages.thresholds import ValueCounts, adapt, confidence
from broadsheet.curate.languages.wordlists import affinity_words, contamination, names_language, stop_words
from broadsheet.curate.words import WORDS

values = st.lists(st.floats(0, 50).map(lambda x: round(x, 3)), min_size=2, max_size=60)


# Thresholds


@given(st.lists(st.floats(0, 1), min_size=1), st.floats(0, 0.2))
def test_confidence_lies_between_its_bounds_and_moves_with_the_scores(scores, more):
    found = confidence(ValueCounts.of(scores))
    assert 0.3 <= found <= 0.9
    raw = float(np.median(scores) - np.std(scores))
    assert found == pytest.approx(min(0.9, max(0.3, raw)), abs=1e-9)
    moved = confidence(ValueCounts.of([score + more for score in scores]), -9, 9)
    assert moved == pytest.approx(confidence(ValueCounts.of(scores), -9, 9) + more, abs=1e-9)


@pytest.mark.parametrize(("score", "expected"), [(0.1, 0.3), (0.5, 0.5), (1.0, 0.9)])
def test_scores_that_are_all_alike_are_their_own_threshold_within_the_bounds(score, expected):
    assert confidence(ValueCounts.of([score] * 7)) == expected


@given(values, st.floats(-5, 60))
@pytest.mark.parametrize("method", ["English", "MeanStd", "Quantile", "MedianRatio"])
def test_english_keeps_its_own_threshold(method, english, threshold):
    told = ValueCounts.of(english)
    assume(told.std > 1e-3 and told.median > 1e-3)
    assert adapt(method, told, told, threshold) == pytest.approx(threshold, abs=1e-6, rel=1e-6)


@given(values)
def test_a_tenth_is_removed_by_10tail(target):
    told = ValueCounts.of(target)
    low, high = (adapt("10Tail", told, told, 0.0, least) for least in (True, False))
    for removed in (np.less(target, low).mean(), np.greater(target, high).mean()):
        assert removed <= 0.1 + 1 / len(target) + 1e-9
    if len(set(target)) == len(target):
        for removed in (np.less(target, low).mean(), np.greater(target, high).mean()):
            assert removed >= 0.1 - 1 / len(target) - 1e-9


def test_quantile_removes_the_same_share_of_both():
    drawn = np.random.default_rng(0)
    english, target = drawn.normal(5, 1, 4000), drawn.gamma(2, 3, 4000)
    for threshold in (4.0, 6.0):
        found = adapt("Quantile", ValueCounts.of(english), ValueCounts.of(target), threshold)
        assert (target > found).mean() == pytest.approx((english > threshold).mean(), abs=2e-3)


def test_of_documents_that_are_alike_half_lie_below_their_value():
    english, target = ValueCounts.of([1, 2, 2, 2, 3]), ValueCounts.of(range(9))
    assert english.share(2) == 0.5
    assert adapt("Quantile", english, target, 2) == 4


def test_medianratio_keeps_the_ratio_to_the_median():
    assert adapt("MedianRatio", ValueCounts.of([1, 2, 9]), ValueCounts.of([5, 6, 7]), 4) == 12


def test_a_threshold_beyond_all_of_english_is_as_far_beyond_all_of_the_language():
    english, target = ValueCounts.of([1, 2, 3]), ValueCounts.of([10, 20])
    assert adapt("Quantile", english, target, 3.5) == 20.5
    assert adapt("Quantile", english, target, 0.25) == pytest.approx(9.25)


@given(values, st.integers(1, 5))
def test_counted_values_are_those_of_single_documents(target, times):
    single, counts = (
        ValueCounts.of(target * times),
        ValueCounts.counted({repr(v): n * times for v, n in Counter(target).items()}),
    )
    for share in (0, 0.1, 0.33, 0.5, 1):
        assert counts.quantile(share) == pytest.approx(np.quantile(target * times, share), abs=1e-9)
        assert single.quantile(share) == counts.quantile(share)
    assert counts.std == pytest.approx(np.std(target), abs=1e-6)
    assert counts.median == pytest.approx(np.median(target * times), abs=1e-9)


def test_what_cannot_be_carried_over_is_refused():
    some, none, alike = (
        ValueCounts.of([1.0, 2.0]),
        ValueCounts.of([]),
        ValueCounts.of([0.0, 0.0]),
    )
    for english, target in ((none, some), (some, none)):
        with pytest.raises(InputError, match="without documents"):
            adapt("MeanStd", english, target, 1)
    with pytest.raises(InputError, match="all alike"):
        adapt("MeanStd", alike, some, 1)
    with pytest.raises(InputError, match="median of 0"):
        adapt("MedianRatio", alike, some, 1)
    with pytest.raises(InputError, match="expected English, MeanStd"):
        adapt("Other", some, some, 1)  # type: ignore[arg-type]
    assert adapt("10Tail", none, some, 1) == pytest.approx(1.9)


# What filters measure

piece = st.sampled_from(
    ["one", "two", "three.", "a", "12", "b2", "#", "\n", "\n\n", "\n   \n", "- x", "naïve", "…", "_", "long" * 4]
)
repeated = st.tuples(st.lists(piece, min_size=1, max_size=12), st.integers(2, 6)).map(lambda each: each[0] * each[1])
pieces = st.lists(piece, min_size=1, max_size=80) | repeated


@given(pieces)
def test_figures_are_those_that_datatroves_filters_compare(chosen):
    """With the threshold at a figure the document passes; a little beyond it, it is dropped for that."""
    text = re.sub(" ?\n ?", "\n", " ".join(chosen))
    told = measures(text, WORDS.word_tokenize(text))
    assume(told)
    lenient = {name: (-1.0 if least else 1e9) for name, (_, least) in ENGLISH.items()}
    reasons = {
        "line_punct": "line_punct_ratio",
        "new_line": "list_ratio",
        "min_avg_word_length": "gopher_below_avg_threshold",
        "max_avg_word_length": "gopher_above_avg_threshold",
        "alpha_words": "gopher_below_alpha_threshold",
        "dup_line": "dup_line_frac",
        **{f"top_{n}": f"top_{n}_gram" for n in (2, 3, 4)},
        **{f"dup_{n}": f"duplicated_{n}_n_grams" for n in range(5, 11)},
    }
    for name, (_, least) in ENGLISH.items():
        if name not in told or (told[name] == 0 and not least):
            continue
        for shift, stays in ((0.0, True), (1e-6, False)):
            limit = told[name] + (shift if least else -shift)
            filters = LanguageThresholds({**lenient, name: limit}, ["one"]).filters(WORDS)
            found = [get_filter_result(each.filter(Document(text, "d"))) for each in _loosened(filters)]
            assert (reasons[name] in {reason for _, reason in found}) is not stays


def _loosened(filters):
    repetition, gopher, fineweb = filters
    gopher.min_doc_words, gopher.min_stop_words, gopher.max_symbol_word_ratio = 0, 0, 0
    gopher.max_bullet_lines_ratio = gopher.max_ellipsis_lines_ratio = 0
    fineweb.char_duplicates_ratio = 9
    return repetition, gopher, fineweb


@pytest.mark.parametrize(("copies", "reason"), [(2, None), (3, "char_dup_ratio")])
def test_a_tenth_of_the_characters_may_stand_in_lines_that_repeat(copies, reason):
    lines = [f"This is the line with number {i} among all of them." for i in range(10, 30)]
    quality = UNADAPTED.filters()[-1]
    document = Document("\n".join([*lines, *lines[:1] * copies]), "0")
    assert get_filter_result(quality.filter(document)) == (reason is None, reason)


def test_documents_that_are_all_alike_stay_though_statistics_are_rounded():
    told = counted([("xx", "One line that ends.\nAnother one.\nNo end here")] * 60)["xx"]  # two thirds are 0.6667
    [found] = FineWeb2().thresholds({"xx": told}, told).values()
    assert found.values["line_punct"] <= 2 / 3 < found.values["line_punct"] + 2e-4
    assert found.values["new_line"] >= 2 / 9 > found.values["new_line"] - 2e-4


def test_statistics_of_ranks_add_up_to_those_of_all():
    texts = [("de", "Der Hund schläft.\nDer Hund schläft."), ("de", "Die Katze."), ("fr", "Le chien dort."), ("de", "")]
    whole = counted(texts)
    assert merged(json.loads(json.dumps([counted(texts[:1]), counted(texts[1:])]))) == whole
    assert (whole["de"]["documents"], whole["de"]["words"]["Hund"]) == (3, 2)
    assert sum(whole["de"]["measures"]["new_line"].values()) == 2, "a document without words has no figures"


def statistics(length: float, n: int = 200) -> dict[str, object]:
    """Of a language whose words are about that long: one in five lines ends in a mark, a few repeat."""
    drawn = random.Random(length)
    texts = []
    for _ in range(n):
        sizes = [max(1, round(drawn.gauss(length, 1))) for _ in range(240)]
        words = ["".join(drawn.choices("abcdefgh", k=size)) for size in sizes]
        words[:60] = drawn.choices(words[:20], k=60)  # some come again
        lines = [" ".join(words[i : i + 12]) for i in range(0, 240, 12)]
        texts.append("\n".join(line + "." * (drawn.random() < 0.2 + 0.3 * drawn.random()) for line in lines))
    return counted(("any", text) for text in texts)["any"]


def test_thresholds_follow_the_language():
    english, long = statistics(5), statistics(15)
    method = FineWeb2()
    found = method.thresholds({"en": english, "te": long, "few": statistics(5, 3)}, english)
    assert found["en"] is UNADAPTED
    assert "few" not in found
    assert found["te"].values["max_avg_word_length"] > 15 > UNADAPTED.values["max_avg_word_length"]
    assert found["te"].documents == 200
    same = method.thresholds({"xx": english}, english)["xx"]
    for name in ("min_avg_word_length", "alpha_words", "dup_line", "top_2", "dup_5"):
        assert same.values[name] == pytest.approx(ENGLISH[name][0], abs=1e-3)


def test_only_text_of_one_kind_is_compared():
    """What repeats is carried over within the corpus, or within the reference; never from one to the other."""
    english, target, own, own_english = statistics(5), statistics(8), statistics(7), statistics(6)
    method = FineWeb2(repetition="MeanStd")

    def top(**more):
        return method.thresholds({"xx": target}, english, **more)["xx"].values["top_2"]

    within, reference = top(own={"xx": own}, own_english=own_english), top()
    assert within == pytest.approx(method.thresholds({"xx": own}, own_english)["xx"].values["top_2"])
    assert within != pytest.approx(reference)
    assert top(own={"xx": own}, own_english=statistics(6, 3)) == reference
    assert top(own={"xx": statistics(7, 3)}, own_english=own_english) == reference
    assert top(own={}, own_english=own_english) == reference


def test_a_threshold_that_most_of_english_fails_is_not_carried_over():
    repeating = counted(("en", "again and again and again and again. " * 9 + str(i)) for i in range(60))["en"]
    found = FineWeb2().thresholds({"xx": statistics(8)}, repeating)["xx"]
    assert found.values["dup_5"] == ENGLISH["dup_5"][0]


def test_too_little_english_is_refused_with_the_number_needed():
    with pytest.raises(InputError, match=r"got 3 documents of English.*expected 50 or more"):
        FineWeb2().thresholds({}, statistics(5, 3))


@pytest.mark.parametrize("bad", [{"low": 0.9, "high": 0.3}, {"least": 0}, {"most": 0}, {"high": 1.5}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError, match="expected"):
        FineWeb2(**bad)


# Words


def test_stop_words_are_frequent_words_and_at_least_eight():
    counts = {"de": 500, "la": 400, "12": 900, "et": 9, **{f"mot{c}": 50 - i for i, c in enumerate("abcdefghij")}}
    assert stop_words(counts, share=0.1) == ["de", "la", *[f"mot{c}" for c in "abcdef"]]
    assert stop_words(counts, share=0.0, least=0)[-1] == "et"
    assert "12" not in stop_words(counts)
    assert stop_words({"a": 10, "b": 90}, share=0.1, least=0) == ["b", "a"], "exactly that share is enough"


words = st.lists(st.sampled_from("abcdefgh"), max_size=12).map(" ".join)


@given(st.sets(st.sampled_from("abcdefgh")), st.sampled_from("abcdefgh"), st.lists(words, max_size=8))
def test_a_longer_list_never_drops_more(listed, more, texts):
    def kept(some):
        documents = [Document(text, str(i), metadata={"language": "xx"}) for i, text in enumerate(texts)]
        return {each.id for each in PrecisionFilter({"xx": some}).run(documents)}

    assert kept(listed) <= kept(listed | {more})
    share = contamination([("xx", text) for text in [*texts]] + [("yy", "a")], {"xx": listed})
    assert share == {"xx": pytest.approx(1 - len(kept(listed)) / len(texts) if texts else 0)}


def test_an_empty_document_stays_only_by_its_address():
    documents = [
        Document("", "bare", metadata={"language": "sw"}),
        Document("", "named", metadata={"language": "sw", "url": "https://example.org/sw/page"}),
        Document("", "other", metadata={"language": "de"}),
    ]
    kept = list(PrecisionFilter({"sw": ["na"]}, {"sw": ["swahili", ".ke"]}).run(documents))
    assert [each.id for each in kept] == ["named", "other"]
    assert kept[0].metadata["wordlist_ratio"] == 0


def test_the_ratio_of_listed_words_is_of_different_words():
    document = Document("na na na hii sasa", "0", metadata={"language": "sw"})
    [kept] = PrecisionFilter({"sw": ["na", "kwa"]}).run([document])
    assert kept.metadata["wordlist_ratio"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.org/sw/", True),
        ("https://a.org/x?lang=SW", True),
        ("https://a.org/swim", False),
        ("http://bbc.com/Swahili/1", True),
        ("http://a.co.ke/page", True),
        ("http://a.co/ke.ken", False),
        ("", False),
        ("https://sw.wikipedia.org", True),
    ],
)
def test_an_address_names_a_language_by_its_code_or_name(url, expected):
    assert names_language(url, "sw", ["swahili", ".ke"]) is expected


def test_only_languages_with_documents_enough_have_a_list_and_all_count():
    told = {
        "aa": {"documents": 3, "words": {"own": 9, "shared": 9}},
        "bb": {"documents": 2, "words": {"shared": 9, "theirs": 9}},
    }
    assert FineWeb2(least=3, percentile=0).word_lists(told) == {"aa": ["own"]}


def test_affinity_is_the_share_of_a_words_occurrences():
    assert affinity_words({}, {}) == []
    own, total = {"na": 10, "the": 10, "rare": 1}, Counter({"na": 11, "the": 500, "rare": 1})
    assert affinity_words(own, total, percentile=50, affinity=0.9) == ["na"]
    assert affinity_words(own, total, percentile=50, affinity=0.91) == []


# Copies

sizes_and_rates = st.lists(
    st.tuples(st.integers(1, 400), st.floats(0, 1)), min_size=1, max_size=30, unique_by=lambda each: each[0]
).map(sorted)


@given(sizes_and_rates, st.floats(0, 1), st.integers(1, 12))
def test_copies_lie_between_one_and_the_most(pairs, overall, most):
    sizes, rates = zip(*pairs, strict=True)
    found = weights(sizes, rates, overall, most)
    assert all(1 <= copies(size, found) <= most for size in sizes)
    assert next(iter(found)) == sizes[0]
    if most == 1 or (len(set(rates)) == 1 and rates[0] >= overall):
        assert {copies(size, found) for size in sizes} == {1}


def test_the_size_that_is_removed_least_is_read_most_and_others_in_a_line_to_the_overall_rate():
    assert weights([1, 2, 3, 4], [0.6, 0.5, 0.4, 0.2], 0.5, most=10, window=1) == {1: 1, 3: 4, 4: 10}
    assert weights([1, 2], [0.3, 0.3], 0.3) == {1: 1}


def test_smoothing_lifts_a_size_between_sizes_that_are_seldom_removed():
    rates = [0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1, 0.9, 0.9]
    assert copies(5, weights(range(1, 10), rates, 0.8, 10)) > 1
    assert copies(5, weights(range(1, 10), rates, 0.8, 10, window=1)) == 1


def test_copies_stand_side_by_side_and_the_order_stays():
    documents = [
        Document(str(i), str(i), metadata={"language": "xx", SIZE: size}) for i, size in enumerate((1, 3, 2, 9))
    ]
    found = list(Rehydrate({"xx": {1: 1, 2: 3, 5: 2}}).run(documents))
    assert [each.id for each in found] == ["0", "1", "1", "1", "2", "2", "2", "3", "3"]
    assert len({id(each.metadata) for each in found}) == len(found)
    assert [each.id for each in Rehydrate({}).run(documents)] == ["0", "1", "2", "3"]


def test_removal_rates_pool_the_thousandth_with_the_most_duplicates():
    before = Counter({1: 900, 2: 90, 3: 9, 50: 1})
    sizes, rates, overall = removal(before, Counter({1: 300, 2: 60, 50: 1}))
    assert sizes == [1, 2, 3]
    assert rates == pytest.approx([2 / 3, 1 / 3, 1 - 1 / 10])
    assert overall == pytest.approx(1 - 361 / 1000)
    assert removal(Counter(), Counter()) == ([], [], 0.0)


# Criteria for tests


def test_criteria_tell_a_test_that_grows_from_one_that_guesses():
    steps = list(range(10))
    rising = [[s / 10 + 0.3 for s in steps], [s / 12 + 0.3 for s in steps]]
    assert tasks.monotonicity(steps, rising) == pytest.approx(1)
    assert tasks.monotonicity(steps, [row[::-1] for row in rising]) == pytest.approx(-1)
    assert tasks.ordering_consistency(rising) == 1
    swapping = [[0, 1] * 5, [1, 0] * 5]
    assert tasks.ordering_consistency(swapping) == -1
    seeds = [[0.5, 0.5], [0.52, 0.48]]
    assert tasks.signal_to_noise(seeds) == pytest.approx((0.51 / 0.01 + 0.49 / 0.01) / 2)
    assert tasks.non_randomness([0.4, 0.6], 0.5, seeds, 1) == pytest.approx(0.1 / 0.01)


# Steps


class Told:
    """Languages by the first word."""

    def scores(self, texts):
        return [[tuple(text.split(":")[0].split("="))] if ":" in text else [] for text in texts]


def test_languages_scores_and_scripts_are_noted_and_text_without_letters_goes():
    texts = ["eng_Latn=0.9: text", "123", "de=0.4: Text"]
    documents = [Document(text, text[:3]) for text in texts]

    class Floats(Told):
        def scores(self, texts):
            return [[(label, float(score)) for label, score in each] for each in super().scores(texts)]

    step = Identify(Floats())
    found = list(step.run(documents))
    assert [each.metadata for each in found] == [
        {"language": "eng", "language_score": 0.9, "language_script": "Latn"},
        {"language": "de", "language_score": 0.4},
    ]
    assert step.stats["dropped_no_language"].total == 1
    confident = Confident({"de": 0.5})
    assert list(confident.run(found)) == []
    for reason in ("language_unsure", "language_not_asked_for"):
        assert confident.stats[f"dropped_{reason}"].total == 1
    assert len(list(Confident({"de": 0.4}).run(found))) == 1


def test_documents_of_a_language_without_thresholds_go():
    step = AdaptedFilters({"en": UNADAPTED})
    text = "This is the text that we have with all of the words and to be of use in the test. " * 4
    lines = "".join(f"{text}{number}{'abcdefgh'[number % 8]}.\n" for number in range(1))
    documents = [
        Document(lines + " ".join(f"{a}{b}" for a in "bcdfg" for b in "aeiou") + ".", name, metadata={"language": name})
        for name in ("en", "xx")
    ]
    list(step.run(documents))
    assert step.stats["dropped_too_few_of_the_language"].total == 1


def test_duplicates_are_sought_within_a_language(tmp_path):
    text = "the same words stand in both of these documents here and nowhere else at all"
    documents = [Document(text, str(i), metadata={"language": name}) for i, name in enumerate(("de", "en", "de"))]
    found, _ = Signatures(tmp_path).signatures([text] * 3, [each.metadata["language"] for each in documents])
    assert (found[0] == found[2]).all()
    assert not (found[0] == found[1]).any()


def test_what_is_no_text_goes_and_why_is_said():
    texts = {
        "empty": " \n",
        "binary": "PK\x03\x04" + "\x00\x01" * 30,
        "undecodable": "caf\ufffd " * 20,
        "too_long": "x" * 101,
        "html": "<html><body><p class='a'>x</p></body></html>",
    }
    step = Readable(longest=100)
    assert list(step.run([Document(text, name) for name, text in texts.items()])) == []
    assert {name for name in texts if step.stats[f"dropped_{name}"].total == 1} == set(texts)
    fine = [Document("if a < b and c > d: pass  # \ttabs\r\n", "code"), Document("日本語のテキスト", "ja")]
    assert list(Readable().run(fine)) == fine


def test_what_finishing_changes_is_counted():
    step = Finish()
    texts = ["plain", "sch\u00c3\u00b6n", "write to a.b@c.de from 8.8.8.8 or x@y.org", "sch\u00c3\u00b6n: a@b.de"]
    found = [each.text for each in step.run([Document(text, str(i)) for i, text in enumerate(texts)])]
    assert found == [
        "plain",
        "schön",
        "write to email@example.com from 22.214.171.124 or email@example.com",
        "schön: email@example.com",
    ]
    assert {k: step.stats[f"changed_{k}"].total for k in ("encoding", "addresses", "encoding and addresses")} == {
        "encoding": 1, "addresses": 1, "encoding and addresses": 1,
    }  # fmt: skip
    assert step.stats["changed"].total == 3


# The passes together

VOCABULARY = {
    "en": "the of and to be that have with house river window street morning table silver water because people always "
    "before another through children thought between country night important something together mountain evening",
    "de": "der die und das mit haben nicht auch Haus Fluss Fenster Morgen Tisch Silber Wasser weil Menschen immer "
    "bevor anderen durch Kinder dachte zwischen Land Nacht wichtig etwas zusammen Berg Abend Freude gehen schreiben",
    "fr": "le la et que dans avec pour sur maison fleuve rue matin table argent eau parce gens toujours avant autre "
    "enfants entre pays nuit quelque chose ensemble montagne soir joie aller faire leur depuis beaucoup",
}


def written(language: str, seed: int, words: int = 120) -> str:
    drawn = random.Random(f"{language} {seed}")
    found = drawn.choices(VOCABULARY[language].split(), k=words)
    lines = [" ".join(found[i : i + 12]).capitalize() + "." for i in range(0, len(found), 12)]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """60 documents of each language, some of them copied, and junk."""
    rows = [(f"{name}{i}", written(name, i)) for name in VOCABULARY for i in range(60)]
    rows += [(f"copy{i}", written("de", i % 4)) for i in range(12)]
    rows += [("empty", ""), ("signs", "#### " * 200), ("page", "<p>" * 90), ("again", "der die das\n" * 80)]
    random.Random(0).shuffle(rows)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in rows))
    return path


@pytest.fixture(scope="module")
def english(tmp_path_factory) -> str:
    """80 documents of English."""
    path = tmp_path_factory.mktemp("english") / "english.jsonl"
    path.write_text("".join(json.dumps({"text": written("en", 500 + i)}) + "\n" for i in range(80)))
    return str(path)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.html"}


@pytest.mark.real
def test_the_same_documents_stay_whatever_the_ranks_and_one_of_each_cluster(corpus, english, tmp_path):
    found = {}
    for ranks, workers in ((1, 1), (3, 1), (2, 2)):
        out = tmp_path / f"out{ranks}"
        FineWeb2Recipe(english=english, tasks=ranks, workers=workers, rehydrate=True, precision=True).run(
            Source(str(corpus)), out
        )
        found[ranks] = read(out)
    assert found[1] == found[2] == found[3]
    rows = [json.loads(row) for row in found[1]["documents.jsonl"].splitlines()]
    kept = {row["id"] for row in rows}
    assert len(kept) > 120
    assert not kept & {"empty", "signs", "page", "again"}
    places = {json.loads(row)["id"]: i for i, row in enumerate(corpus.read_text().splitlines())}
    for i in range(4):
        copied = [f"de{i}", *(f"copy{j}" for j in range(12) if j % 4 == i)]
        assert kept & set(copied) in ({min(copied, key=places.__getitem__)}, set())
    reasons = [json.loads(row) for row in found[1]["reasons.jsonl"].splitlines()]
    assert Counter(row["reason"] for row in reasons)["near_duplicate"] == 12
    assert {row["id"]: row["reason"] for row in reasons if row["id"] in ("empty", "page")} == {
        "empty": "empty",
        "page": "html",
    }
    assert kept | {row["id"] for row in reasons} == set(places), "each document stays, or why it went is said"
    report = (tmp_path / "out1" / "report.html").read_text()
    assert "near duplicate" in report
    assert "documents stay, " in report, "and copies are told apart"


@pytest.fixture
def curated(monkeypatch, english, tmp_path) -> Callable[..., tuple[list[str], dict[str, str]]]:
    """Curates (language, text) pairs, each known to be of its language: ids that stay, and reasons of the others."""
    labels: dict[str, str] = {}

    class Known:
        def __init__(self, path: str, k: int) -> None: ...

        def scores(self, texts: list[str]) -> list[list[tuple[str, float]]]:
            return [[(labels[text], 0.99)] for text in texts]

    monkeypatch.setattr("broadsheet.curate.languages.lid.Languages", Known)

    def curate(texts: list[tuple[str, str]], **options: object) -> tuple[list[str], dict[str, str]]:
        labels.update({text: language for language, text in texts})
        path, out = tmp_path / "texts.jsonl", tmp_path / "out"
        rows = ({"id": f"{language}{i}", "text": text} for i, (language, text) in enumerate(texts))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        FineWeb2Recipe(english=english, **options).run(Source(str(path)), out)
        told = [json.loads(row) for row in (out / "reasons.jsonl").read_text().splitlines()]
        stay = [json.loads(row)["id"] for row in (out / "documents.jsonl").read_text().splitlines()]
        return stay, {row["id"]: row["reason"] for row in told}

    return curate


def test_a_document_is_no_copy_of_one_in_another_language(curated):
    texts = [(name, f"{written('de', i)}\n{name}") for name in ("de", "fr") for i in range(50)]
    _, reasons = curated(texts)
    assert "near_duplicate" not in reasons.values()


def test_words_of_a_language_are_asked_for_where_many_documents_have_none(curated):
    def with_word(language: str, word: str, i: int) -> tuple[str, str]:
        return language, written(language, i).replace(" ", f" {word} ", 12)

    without = [("fr", written("fr", 90 + i)) for i in range(15)] + [("de", written("de", 90 + i)) for i in range(3)]
    texts = [with_word("fr", "surtout", i) for i in range(60)] + [with_word("de", "besonders", i) for i in range(60)]
    _, reasons = curated(without + texts, precision=True, method="fineweb2(percentile=99)")
    dropped = {name for name, reason in reasons.items() if reason == "no_word_of_the_language"}
    assert dropped == {f"fr{i}" for i in range(15)}, "of German documents too few have none"


def test_a_language_of_few_documents_takes_the_thresholds_of_a_reference(curated, tmp_path):
    reference = tmp_path / "reference.jsonl"
    rows = [{"language": name, "text": written(name, 300 + i)} for name in ("en", "fr") for i in range(60)]
    reference.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [("fr", written("fr", i)) for i in range(5)]
    with pytest.raises(InputError, match="fr: 5 documents"):
        curated(texts, languages="fr")
    stay, _ = curated(texts, languages="fr", reference=str(reference))
    assert stay


def test_what_repeats_is_told_by_the_corpus_and_lines_and_words_by_the_reference(curated, tmp_path, monkeypatch):
    reference, asked = tmp_path / "reference.jsonl", []
    rows = [{"language": name, "text": written(name, 300 + i)} for name in ("en", "fr") for i in range(55)]
    reference.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = FineWeb2.thresholds
    monkeypatch.setattr(FineWeb2, "thresholds", lambda self, *told: asked.append(told) or plain(self, *told))
    curated([(name, written(name, i)) for name in ("en", "fr") for i in range(60)], reference=str(reference))
    [(told, english, own, own_english)] = asked
    assert {name: each["documents"] for name, each in told.items()} == {"en": 55, "fr": 55}
    assert (english["documents"], own_english["documents"], own["fr"]["documents"]) == (55, 60, 60)


@pytest.mark.real
def test_a_run_that_is_killed_gives_the_same_when_it_is_repeated(corpus, english, tmp_path):
    FineWeb2Recipe(english=english, tasks=2).run(Source(str(corpus)), tmp_path / "whole")
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from broadsheet.apply.base import Source; from broadsheet.curate import running\n"
        "from broadsheet.curate.languages.recipe import FineWeb2Recipe\n"
        "left, kill = int(sys.argv[3]), running.Ranks.mark_rank_as_completed\n"
        "def marked(self, rank):\n"
        "    global left; left -= 1\n"
        "    if not left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    kill(self, rank)\n"
        "running.Ranks.mark_rank_as_completed = marked\n"
        "FineWeb2Recipe(english=sys.argv[4], tasks=2).run(Source(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, str(corpus), str(tmp_path / "killed")]
    for left in ("2", "3", "4"):
        ended = subprocess.run([*command, left, english], check=False, capture_output=True, env={**os.environ})
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        assert not (tmp_path / "killed").exists()
    assert subprocess.run([*command, "99", english], check=False, capture_output=True).returncode == 0
    assert read(tmp_path / "killed") == read(tmp_path / "whole")
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.real
def test_what_cannot_be_done_is_said_in_a_line_and_nothing_is_written(corpus, english, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"nl: 0 documents, .* expected 50 or more: name others by --reference"):
        FineWeb2Recipe(languages="de,nl").run(Source(str(corpus)), out)
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"text": " "}\n' * 3)
    with pytest.raises(InputError, match=r"nothing is left of .*: 3 dropped as empty \(text at all\); loosen"):
        FineWeb2Recipe(english=english).run(Source(str(blank)), tmp_path / "none")
    with pytest.raises(InputError, match="is no fastText model"):
        FineWeb2Recipe(lid=str(corpus)).run(Source(str(corpus)), tmp_path / "model")
    with pytest.raises(InputError, match="is not there; expected a fastText model"):
        FineWeb2Recipe(lid=str(tmp_path / "absent.bin")).run(Source(str(corpus)), tmp_path / "absent")
    with pytest.raises(InputError, match="got --method other"):
        FineWeb2Recipe(method="other(a=1)").run(Source(str(corpus)), tmp_path / "other")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"latin.jsonl:1: not UTF-8"):
        FineWeb2Recipe(english=english).run(Source(str(latin)), tmp_path / "latin")
    nothing = tmp_path / "nothing.jsonl"
    nothing.touch()
    with pytest.raises(InputError, match=r"nothing.jsonl: it holds no documents$"):
        FineWeb2Recipe(english=english).run(Source(str(nothing)), tmp_path / "nothing")
    left = {path.name for path in tmp_path.iterdir()} - {"blank.jsonl", "latin.jsonl", "nothing.jsonl", "home"}
    assert not [name for name in left if not name.startswith("out")], "only what could be resumed"


@pytest.mark.real
def test_only_what_is_asked_for_stays(corpus, english, tmp_path):
    FineWeb2Recipe(languages="fr", english=english).run(Source(str(corpus)), tmp_path / "out")
    rows = [json.loads(row) for row in (tmp_path / "out" / "documents.jsonl").read_text().splitlines()]
    assert {row["language"] for row in rows} == {"fr"}
    assert all(row["language_score"] <= 1 for row in rows)
    assert NearDuplicates.reason == "near_duplicate"


@pytest.mark.real
def test_a_model_of_languages_answers_batches_and_documents_alike():
    model = Languages(languages=["de", "fr"])
    texts = [written("fr", 1), written("en", 2), ""]
    assert [label for label, _ in model.best(texts)] == ["fr", "en", "und"]
    best, asked = model.predict(Document(texts[0], "d"))
    assert best == model.best(texts[:1])[0]
    assert set(asked) == {"de", "fr"}


@pytest.mark.real
def test_the_shipped_model_knows_languages_and_says_no_more_than_one():
    model = Languages()
    texts = [
        "Der Hund schläft auf\ndem Sofa.",
        "Le chien dort sur le canapé.",
        "Собака спит на диване.",
        "犬はソファで寝ている。",
    ]
    assert [label for label, _ in model.best(texts)] == ["de", "fr", "ru", "ja"]
    assert max(score for each in model.scores(texts * 20) for _, score in each) <= 1

"""What must be true of LooGLE's metrics (arXiv:2311.04939)."""

from __future__ import annotations

import builtins
import itertools
import random
import sys
import types

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.evaluate import loogle_metrics as metrics
from broadsheet.evaluate.loogle_metrics import (
    bertscore,
    bleu,
    bleu_4_authors,
    cloze_matches,
    containment,
    judged,
    meteor,
    order_deviation,
    parse_cloze,
    read_order,
    rouge_f1,
    rouge_l,
    rouge_n,
    token_f1,
)

GOLD = "He was born in Jerez and later moved to Madrid. His mother came with him"
# Few words, full stops and odd white space: sentences that are empty or blank are where packages disagree.
SCRAPS = st.lists(st.sampled_from(["a", "b", "c", "the", ".", ". ", " ", "\n", "d.", "..."]), max_size=30).map(" ".join)


def test_token_f1_counts_repeated_words_and_leaves_out_case_articles_and_punctuation():
    assert token_f1("the red, red house", "A red house!") == pytest.approx(2 * 2 / (3 + 2))
    assert token_f1("Paris", "London") == 0
    assert token_f1("the", "a") == 1  # nothing is left of either
    assert token_f1("the", "Paris") == token_f1("Paris", "") == 0


def test_containment_wants_the_words_in_one_piece_and_whole():
    assert containment("Los Angeles", "in los angeles, he said") == 1
    assert containment("Los Angeles", "Los bright Angeles") == 0
    assert containment("art", "the party") == 0
    assert containment("Paris", "") == 0
    assert containment("the", "Paris") == 0


def test_bleu_of_one_word_is_its_precision_times_the_brevity_penalty():
    assert bleu("the red house on the hill", "a red house", 1) == pytest.approx(2 / 3 * 2.718281828 ** (1 - 6 / 3))


def test_bleu_4_is_the_geometric_mean_and_the_authors_is_not():
    gold, prediction = "a b c d e f g h", "a b c d x f g h"
    assert bleu(gold, prediction) == pytest.approx((7 / 8 * 5 / 7 * 3 / 6 * 1 / 5) ** 0.25)
    assert bleu_4_authors(gold, prediction) == pytest.approx(1 / 5)


def test_bleu_without_a_match_is_zero_and_the_authors_nearly():
    assert bleu("a b c d", "a b x d", 4) == 0.0
    assert 0 < bleu_4_authors("a b c d", "a b x d") < 1e-300
    assert bleu("a b", "") == bleu("", "a") == 0.0


def test_short_gold_answers_can_score_on_every_plain_metric():
    for gold in ("Madrid", "in Madrid", GOLD):
        assert bleu(gold, gold, 1) == bleu(gold, gold, 4) == pytest.approx(1)
        assert rouge_f1(gold, gold, 1) == rouge_f1(gold, gold, 2) == rouge_l(gold, gold).f1 == 1
    # As the authors count, a gold answer of one word has no bigram and cannot be right.
    assert rouge_n("Madrid", "Madrid", 2).recall == 0


@given(SCRAPS, SCRAPS)
@example("a b. c", "c a b")
@settings(max_examples=300, deadline=None)
def test_rouge_is_the_package_to_the_bit(gold, prediction):
    package = pytest.importorskip("rouge").Rouge()
    try:
        expected = package.get_scores(prediction, gold)[0]
    except (ValueError, ZeroDivisionError):  # the package refuses texts without words
        assert rouge_l(gold, prediction) == rouge_n(gold, prediction, 1) == (0, 0, 0)
        return
    for name, ours in (
        ("rouge-1", rouge_n(gold, prediction, 1)),
        ("rouge-2", rouge_n(gold, prediction, 2)),
        ("rouge-l", rouge_l(gold, prediction)),
    ):
        assert (ours.precision, ours.recall) == (expected[name]["p"], expected[name]["r"]), name
        assert ours.f1 == pytest.approx(expected[name]["f"], abs=1e-7)


def test_rouge_l_of_ten_thousand_words_without_a_full_stop_ends():
    generator = random.Random(0)
    gold, prediction = (" ".join(generator.choices("abcdefgh", k=10_000)) for _ in range(2))
    assert rouge_l(gold, prediction) == (1, 1, 1)  # every one of the eight words is somewhere in a common subsequence
    far = rouge_l(gold, " ".join(reversed([f"w{i}" for i in range(10_000)])) + " a b")
    assert far.recall == 2 / 8


def test_rouge_l_of_many_sentences_ends():
    generator = random.Random(0)
    vocabulary = [f"w{i}" for i in range(2_000)]
    gold, prediction = (". ".join(" ".join(generator.choices(vocabulary, k=20)) for _ in range(500)) for _ in range(2))
    assert 0.5 < rouge_l(gold, prediction).recall < 1


def test_order_matters_to_rouge_l():
    assert rouge_l("a b c d", "d c b a").recall == 1 / 4


CLOZE = {"<mask-0>": "Britney Spears", "<mask-1>": "Los Angeles", "<mask-2>": "Jamie Lynn"}


def test_cloze_matches_exactly_or_by_a_word():
    written = "{'<mask-0>': 'Britney Spears', \"<mask-1>\": 'Angeles City', '<mask-2>': 'Sam'}"
    assert cloze_matches(CLOZE, written) == (1, 2, 3)
    assert cloze_matches(CLOZE, repr(CLOZE)) == (3, 3, 3)


def test_cloze_finds_the_first_dictionary_unless_the_whole_answer_has_to_be_one():
    written = 'Sure!\n```json\n{"<mask-0>": "Britney Spears"}\n``` {"<mask-1>": "Los Angeles"}'
    assert cloze_matches(CLOZE, written) == (1, 1, 3)
    assert cloze_matches(CLOZE, written, whole=True) == (0, 0, 3)
    assert cloze_matches(CLOZE, f"\n {CLOZE!r}\n", whole=True) == (3, 3, 3)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "I think mask-0 is Britney",
        "{",
        "}{",
        "[1, 2]",
        "{'<mask-0>': ['Britney Spears']}",
        "{['a']: 1}",
        "{'<mask-0>': 'Britney Spears'",
        "{" * 100_000,
        "[" * 100_000,
        "-" * 100_000 + "1",
        "{'<mask-0>': " + "9" * 10_000 + "}",
        "{'<mask-0>': '\0'}",
        "{'<mask-0>': '\ud800'}",
        "{**CLOZE, '<mask-0>': 'Britney Spears'}",
    ],
)
def test_cloze_that_cannot_be_parsed_fills_nothing_and_raises_nothing(written):
    for whole in (False, True):
        assert cloze_matches(CLOZE, written, whole=whole) == (0, 0, 3)


@given(st.text(max_size=60) | st.lists(st.sampled_from(list("{}[]()'\":,\\<mask-0> ")), max_size=40).map("".join))
@settings(max_examples=300, deadline=None)
def test_cloze_never_raises(written):
    for whole in (False, True):
        exact, partial, total = cloze_matches(CLOZE, written, whole=whole)
        assert 0 <= exact <= partial <= total == 3


@pytest.mark.parametrize(
    "written",
    [
        "__import__('os').system('exit 3')",
        "{'<mask-0>': __import__('pathlib').Path('ran').touch()}",
        "{'<mask-0>': open('ran', 'w').name}",
        "dict(a=print('ran'))",
        "{'<mask-0>': (lambda: 'Britney Spears')()}",
        "[open('ran', 'w') for _ in range(3)]",
    ],
)
def test_what_a_model_writes_is_never_run(written, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("eval", "exec"):
        monkeypatch.setattr(builtins, name, lambda *_: pytest.fail("code of a model was run"))
    assert parse_cloze(written) == parse_cloze(written, whole=True) == {}
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def by_definition(gold, predicted):
    """The four deviations as the authors define them, greedy swaps and all."""
    places = [predicted.index(item) for item in gold]
    n = len(places)
    lsd = sum((p - i) ** 2 for i, p in enumerate(places)) / n
    lmd = sum(abs(p - i) for i, p in enumerate(places)) / n
    order, swaps = list(places), 0
    for i in range(n):
        while order[i] != i:
            j = order[i]
            order[i], order[j] = order[j], order[i]
            swaps += 1
    order, distance = list(places), 0

    def gain(i, j):
        return (abs(order[i] - i) + abs(order[j] - j) - abs(order[j] - i) - abs(order[i] - j)) / (j - i)

    while order != sorted(order):
        i, j = max(itertools.combinations(range(n), 2), key=lambda pair: gain(*pair))
        order[i], order[j] = order[j], order[i]
        distance += j - i
    return lsd, lmd, swaps, distance


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_order_deviations_follow_their_definitions_and_are_normalised_by_their_maxima(n):
    gold = [chr(65 + i) for i in range(n)]
    every = [list(order) for order in itertools.permutations(gold)]
    found = [order_deviation(gold, order) for order in every]
    for order, deviation in zip(every, found, strict=True):
        assert deviation == pytest.approx(by_definition(gold, order))
    normalised = [deviation.normalised(n) for deviation in found]
    for field in ("lsd", "lmd", "sd", "sdd"):
        largest = max(getattr(deviation, field) for deviation in found)
        for deviation, share in zip(found, normalised, strict=True):
            assert getattr(share, field) == pytest.approx(getattr(deviation, field) / largest if n > 1 else 0)
    assert normalised[0] == (0, 0, 0, 0)
    # The reversed order is the farthest in LSD and LMD.
    assert (normalised[-1].lsd, normalised[-1].lmd) == ((1, 1) if n > 1 else (0, 0))


@pytest.mark.parametrize("predicted", [["I", "II"], ["I", "II", "II"], ["I", "II", "IV"]])
def test_order_wants_a_permutation(predicted):
    with pytest.raises(ValueError, match="permutation of"):
        order_deviation(["I", "II", "III"], predicted)


@pytest.mark.parametrize(
    ("gold", "written", "order"),
    [
        ("II,I,III", "II. Guadalupe\nI. Arcos\nIII. Carmona", "II,I,III"),
        ("2,1,3", "First 3, then 1 (1!), in 1919 2.", "3,1,2"),
        ("II,I,III", "III", "III,I,II"),  # the others as the question lists them
        ("X,IX,II", "", "II,IX,X"),
        ("10,9,2", "none", "2,9,10"),
        ("II,I,III", "VII, XI, Ionic", "I,II,III"),
        ("beta,alpha", "first alpha, later beta", "alpha,beta"),
    ],
)
def test_orders_are_read_by_the_labels_of_the_gold_answer(gold, written, order):
    assert read_order(gold.split(","), written) == order.split(",")


def test_an_empty_answer_is_not_the_gold_order():
    gold = ["III", "II", "I"]
    assert order_deviation(gold, read_order(gold, "")).normalised(3).lmd == 1


def test_judge_leaves_out_what_it_cannot_tell():
    verdicts = {"yes": True, "no": False, "hm": None}
    items = [("Q", "G", answer) for answer in ("yes", "yes", "no", "hm")]
    assert judged(lambda question, gold, answer: verdicts[answer], items) == (2, 3)


def test_meteor_says_that_it_needs_wordnet(monkeypatch):
    def missing(*_):
        raise LookupError("Resource wordnet not found")

    module = types.SimpleNamespace(single_meteor_score=missing)
    monkeypatch.setitem(sys.modules, "nltk.translate.meteor_score", module)
    with pytest.raises(InputError, match=r"nltk\.downloader wordnet"):
        meteor(GOLD, GOLD)


def test_meteor_of_the_authors_drops_repeated_words(monkeypatch):
    seen = []
    module = types.SimpleNamespace(single_meteor_score=lambda a, b: seen.append((a, b)) or 0.5)
    monkeypatch.setitem(sys.modules, "nltk.translate.meteor_score", module)
    assert meteor("a b a", "b b") == 0.5
    meteor("a b a", "b b", ordered=False)
    assert seen == [(["a", "b", "a"], ["b", "b"]), (["a", "b"], ["b"])]


@pytest.mark.parametrize(
    ("call", "module", "remedy"),
    [
        (lambda: bleu(GOLD, GOLD), "nltk.translate.bleu_score", r"pip install -e '\.\[evaluate\]'"),
        (lambda: meteor(GOLD, GOLD), "nltk.translate.meteor_score", r"pip install -e '\.\[evaluate\]'"),
        (lambda: bertscore([GOLD], [GOLD], "m"), "bert_score", "pip install bert-score"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(call, module, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=remedy):
        call()


def test_bertscore_holds_predictions_against_gold_answers(monkeypatch):
    torch = pytest.importorskip("torch")

    def score(candidates, references, model_type, num_layers):
        if num_layers is None:
            raise KeyError(model_type)
        assert (candidates, references) == (["said"], ["meant"])
        return tuple(torch.tensor([value]) for value in (0.25, 0.5, 0.75))

    monkeypatch.setitem(sys.modules, "bert_score", types.SimpleNamespace(score=score))
    [overlap] = bertscore(["meant"], ["said"], "folder", layers=5)
    assert overlap == (0.25, 0.5, 0.75)
    with pytest.raises(InputError, match="layers="):
        bertscore(["meant"], ["said"], "folder")


def test_plain_names_are_the_ones_a_gold_answer_passes():
    gold = "Los Angeles, in the state of California. It was cold"
    values = [metrics.token_f1, metrics.containment, metrics.bleu, metrics.bleu_4_authors]
    assert [value(gold, gold) for value in values] == pytest.approx([1] * 4)


def test_a_longer_name_is_a_partial_match_only() -> None:
    assert metrics.cloze_matches({"<mask-0>": "Ann"}, "{'<mask-0>': 'Ann Berg'}") == (0, 1, 1)

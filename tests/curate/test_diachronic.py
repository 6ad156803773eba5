"""Models of periods: dates that are never guessed, slices, splits by words, two teachers, and what changed."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from broadsheet.apply.base import Source
from broadsheet.console import InputError
from broadsheet.curate import AttributeDate, Diachronic, PeriodModel, SliceByDate, TwoTeachers, change_report
from broadsheet.curate.files import PLACE
from broadsheet.curate.periods.battery import Battery
from broadsheet.curate.periods.change import WordReadings, leakage, places
from broadsheet.curate.periods.counts import (
    CountModel,
    contrast,
    counted,
    later_words,
    log_odds,
    only_of,
    shared_vocabulary,
    symbols,
    table,
    trend,
    words_of,
)
from broadsheet.curate.periods.dating import year_of, year_of_date
from broadsheet.curate.periods.models import ShiftedBlocks, distillation, new_model, period_tokenizer, stream
from broadsheet.curate.periods.planting import RENAMED, SWAPPED, planted
from broadsheet.curate.periods.recipe import DiachronicRecipe
from broadsheet.curate.periods.slices import Period, beyond, periods
from broadsheet.curate.periods.splits import LEFT, SPLITS, WordBudgetSplit, assigned, fill, paragraphs
from broadsheet.curate.periods.training import PeriodRecipe
from broadsheet.training.fit import fit
from broadsheet.training.scratch import Size

# Dates


@pytest.mark.parametrize("told", ["around 1830", "", "1830-31", "c. 1830", None, True, 1830.5, "MDCCCXXX", "1830?"])
def test_what_is_no_year_is_not_guessed(told):
    assert year_of(told) is None


def test_a_year_is_what_int_reads():
    assert [year_of(told) for told in ("1830", " 1830\n", 1830, 1830.0, "-44")] == [1830, 1830, 1830, 1830, -44]
    assert [year_of_date(told) for told in ("1775-12-16", 1775, "1775", "1775-12", "1775 or 1776", "spring 1775")] == [
        1775, 1775, 1775, 1775, None, None,
    ]  # fmt: skip


def run(step, works: list[dict]) -> tuple[dict[str, dict], dict[str, int]]:
    """The metadata of what stays, by id, and how many went for which reason."""
    documents = [Document("text", str(i), metadata=dict(work)) for i, work in enumerate(works)]
    kept = {each.id: each.metadata for each in step.run(documents)}
    counts = {name: int(each.total) for name, each in step.stats.stats.items()}
    return kept, {name.removeprefix("dropped_"): n for name, n in counts.items() if name.startswith("dropped_")}


class Remembers:
    """A teacher that answers from a table, and keeps what it was asked."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers, self.asked = answers, []

    def chat(self, conversations, temperature, max_tokens, logprobs):
        assert temperature == 0
        assert logprobs
        self.asked += conversations
        found = []
        for each in conversations:
            text = next(answer for title, answer in self.answers.items() if title in each)
            found.append([SimpleNamespace(text=text, logprobs=[SimpleNamespace(logprob=np.log(0.5))] * 2)])
        return found


def test_a_year_that_is_given_is_taken_and_a_teacher_is_asked_about_the_others():
    teacher = Remembers({"Emma": "1815", "Persuasion": "It was 1817."})
    works = [
        {"year": "1811", "title": "Sense and Sensibility"},
        {"title": "Emma", "author": "Jane Austen"},
        {"year": "", "title": "Persuasion"},
        {"year": "about 1813", "title": "Pride and Prejudice"},
        {"author": "nobody"},
    ]
    kept, reasons = run(AttributeDate(teacher=teacher), works)
    assert {name: (each["year"], each["year_source"]) for name, each in kept.items()} == {
        "0": (1811, "metadata"),
        "1": (1815, "teacher Remembers"),
    }
    assert kept["1"]["year_confidence"] == 0.25
    assert reasons == {"unparsable_year": 2, "no_title": 1}
    assert len(teacher.asked) == 2, "not about years that are given"
    assert all("Jane Austen" in each for each in teacher.asked if "Emma" in each)
    assert run(AttributeDate(), works)[1] == {"unparsable_year": 1, "undated": 3}


# Slices

works_of = st.fixed_dictionaries(
    {"year": st.integers(1700, 1960), "born": st.integers(1700, 1900), "died": st.integers(1750, 1960)}
)


@given(st.lists(works_of, max_size=20))
def test_a_work_is_in_one_period_at_most_and_within_its_authors_life(works):
    kept, reasons = run(SliceByDate([1750, 1820, 1850]), works)
    for name, told in kept.items():
        start, end = map(int, told["period"].split("-"))
        assert start <= told["year"] < end
        assert told["born"] < told["year"] <= told["died"]
        assert works[int(name)]["year"] == told["year"]
    assert len(kept) + sum(reasons.values()) == len(works)
    inside = [w for w in works if 1750 <= w["year"] < 1850 and w["born"] < w["year"] <= w["died"]]
    assert len(kept) == len(inside)


def test_the_year_of_birth_is_out_and_that_of_death_is_in():
    works = [{"year": year, "born": 1760, "died": "1800-05-01"} for year in (1760, 1761, 1800, 1801)]
    kept, reasons = run(SliceByDate([1750, 1820]), works)
    assert list(kept) == ["1", "2"]
    assert reasons == {"outside_life": 2}


def test_a_life_that_is_not_known_is_asked_for_only_where_that_is_wanted():
    works = [{"year": 1800}, {"year": 1800, "born": 1820}, {"year": 1800, "born": "?", "died": 1810}, {"year": 1700}]
    assert run(SliceByDate([1750, 1820]), works)[1] == {"outside_life": 1, "unreadable_life": 1, "outside_periods": 1}
    assert run(SliceByDate([1750, 1820], need_life=True), works)[1] == {
        "unknown_life": 2, "unreadable_life": 1, "outside_periods": 1,
    }  # fmt: skip


def test_periods_end_before_the_next_begins():
    first, second = periods([1750, 1820, 1850])
    assert (1819 in first, 1820 in first, 1820 in second, 1850 in second) == (True, False, True, False)
    assert first == Period(1750, 1820)
    for bounds in ([1750], [1750, 1750], [1820, 1750], []):
        with pytest.raises(InputError, match="expected two years or more"):
            periods(bounds)


def works(authors: int = 3, titles: int = 30) -> list[list]:
    return [[i * titles + j, f"A{i}", f"T{j}", "1750-1820", 1760] for i in range(authors) for j in range(titles)]


def test_of_an_author_there_are_no_more_works_than_the_limit_whatever_their_order():
    rows = works()
    gone = beyond(rows, 20, seed=1)
    assert Counter(place // 30 for place in gone) == {0: 10, 1: 10, 2: 10}
    assert set(gone.values()) == {"beyond_authors_limit"}
    shuffled = random.Random(0).sample(rows, len(rows))
    assert beyond(shuffled, 20, seed=1) == gone
    assert beyond(rows, 20, seed=2) != gone
    assert beyond(rows, 30) == {}
    nobody = [[place, "", title, period, year] for place, _, title, period, year in rows]
    assert beyond(nobody, 1) == {}, "who has no name has no limit"


def test_a_work_that_was_printed_again_stays_in_its_first_period():
    rows = [[0, "A", "T", "1820-1850", 1825], [1, "A", "T", "1750-1820", 1799], [2, "B", "T", "1820-1850", 1830]]
    assert beyond(rows, 20) == {0: "in_an_earlier_period"}
    parts = [[i, "A", "T", "1750-1820", 1799] for i in range(9)]
    assert beyond(parts, 1) == {}, "parts of a work are one work"


# Splits


def test_paragraphs_end_at_empty_lines():
    assert paragraphs("One  line\nand more.\n \n\nTwo.\n\n  \n") == ["One line and more.", "Two."]


@given(st.lists(st.integers(0, 9), max_size=30), st.tuples(*[st.integers(0, 40)] * 3))
def test_a_split_takes_what_fits_in_its_order_and_never_what_another_has(words, budgets):
    taken = fill(words, budgets)
    every = [place for places in taken for place in places]
    assert len(every) == len(set(every))
    left = set(range(len(words)))
    for places_, budget in zip(taken, budgets, strict=True):
        spent = sum(words[place] for place in places_)
        assert spent <= budget
        assert all(words[place] for place in places_)
        assert places_ == sorted(places_)
        left -= set(places_)
        assert all(words[place] > budget - spent for place in left if words[place]), "what fits was taken"


def counted_works(seed: int = 0) -> list[list]:
    drawn = random.Random(seed)
    return [[i, f"p{i % 2}", [drawn.randint(1, 9) for _ in range(8)]] for i in range(30)]


@pytest.mark.parametrize("level", ["paragraph", "work"])
def test_splits_are_apart_within_their_budgets_and_the_same_for_a_seed(level):
    rows, budgets = counted_works(), (300, 120, 40)
    found = assigned(rows, budgets, level, seed=3)
    assert assigned(rows[::-1], budgets, level, seed=3) == found
    assert assigned(rows, budgets, level, seed=4) != found
    for period in ("p0", "p1"):
        own = [(words, found[str(place)]) for place, name, words in rows if name == period]
        for split, budget in enumerate(budgets):
            taken = [(n, at) for words, where in own for n, (s, at) in zip(words, where, strict=True) if s == split]
            assert budget / 2 < sum(n for n, _ in taken) <= budget
            assert sorted(at for _, at in taken) == list(range(len(taken))), "each has a position of its own"
        kinds = [len({split for split, _ in where}) for _, where in own]
        assert (max(kinds) == 1) == (level == "work")
    with pytest.raises(InputError, match="paragraph or work"):
        assigned(rows, budgets, "chapter")  # type: ignore[arg-type]


def test_a_document_becomes_its_paragraphs_and_what_fits_nowhere_goes():
    document = Document("a b\n\nc\n\nd e f", "w", metadata={PLACE: 7, "period": "p"})
    step = WordBudgetSplit({"7": [[0, 4], [LEFT, LEFT], [1, 0]]})
    found = [(each.text, each.id, each.metadata["split"], each.metadata[PLACE]) for each in step.run([document])]
    assert found == [("a b", "w#0", "train", 4), ("d e f", "w#2", "test", 0)]
    assert step.stats["beyond_budgets"].total == 1


# Two teachers


@pytest.fixture
def logits():
    drawn = torch.Generator().manual_seed(0)
    return [torch.randn(3, 7, 11, generator=drawn, dtype=torch.float64) for _ in range(3)]


LABELS = torch.arange(21).view(3, 7) % 11


def test_two_teachers_that_are_one_teach_as_one_and_alpha_of_one_is_the_plain_loss(logits):
    student, teacher, other = logits
    one = distillation(student, [teacher], LABELS, 0.3, 2.0)
    twice = distillation(student, [teacher, teacher], LABELS, 0.3, 2.0)
    for name in one:
        torch.testing.assert_close(one[name], twice[name])
    plain = cross_entropy(student[:, :-1].flatten(0, 1), LABELS[:, 1:].flatten())
    torch.testing.assert_close(distillation(student, [other], LABELS, 1.0)["loss"], plain)
    torch.testing.assert_close(distillation(student, [], LABELS, 1.0)["loss"], plain)


def test_logits_are_averaged_before_softmax_and_a_student_that_agrees_has_nothing_to_learn(logits):
    student, teacher, other = logits
    mean = (teacher + other) / 2
    assert float(distillation(mean, [teacher, other], LABELS)["kl"]) == pytest.approx(0, abs=1e-12)
    assert float(distillation(student, [teacher, other], LABELS)["kl"]) > 0.1
    mixed = (teacher.softmax(-1) + other.softmax(-1)) / 2
    assert float(distillation(mixed.log(), [teacher, other], LABELS)["kl"]) > 1e-3, "not a mean of probabilities"


def test_the_divergence_is_summed_over_positions_and_divided_by_rows(logits):
    student, teacher, _ = logits
    by_hand = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum() / 3
    found = distillation(student, [teacher], LABELS, 0.25, 1.0)
    torch.testing.assert_close(found["kl"], by_hand)
    torch.testing.assert_close(found["loss"], 0.25 * found["ce"] + 0.75 * by_hand)


def test_the_temperature_keeps_the_size_of_the_gradient(logits):
    student, teacher, _ = (each / 10 for each in logits)
    sizes = []
    for temperature in (1.0, 4.0, 16.0):
        given = student.clone().requires_grad_()
        distillation(given, [teacher], LABELS, 0.0, temperature)["loss"].backward()
        sizes.append(float(given.grad.norm()))
    assert max(sizes) < 1.2 * min(sizes)


def test_what_cannot_teach_is_refused(logits):
    student, teacher, _ = logits
    for teachers in ([teacher[..., :9]], []):
        with pytest.raises(InputError, match="expected one teacher or more"):
            distillation(student, teachers, LABELS)
    for bad in ({"alpha": 1.5}, {"temperature": 0.0}):
        with pytest.raises(InputError, match="expected a share"):
            TwoTeachers([], **bad)


def test_teachers_read_without_gradient_and_the_student_comes_closer_to_them():
    tiny = Size(1, 16, 2)
    teachers, student = [tiny.model(40, 32, seed) for seed in (1, 2)], tiny.model(40, 32, 3)
    with torch.no_grad():
        for each in teachers:
            each.lm_head.weight.mul_(20)  # far from uniform
    rows = ShiftedBlocks(torch.arange(900) % 40, 16, 30 * 4)
    objective = TwoTeachers(teachers, alpha=0.0)
    before = [each.lm_head.weight.clone() for each in teachers]
    batch = objective.collate([(i, rows[i]) for i in range(4)])
    first = float(objective.loss(student, batch, torch.Generator()).detach())
    fit(student, rows, objective, steps=30, batch_size=4, learning_rate=1e-2, autocast="none")
    assert float(objective.loss(student, batch, torch.Generator()).detach()) < 0.8 * first
    for each, kept in zip(teachers, before, strict=True):
        assert torch.equal(each.lm_head.weight, kept)
        assert all(parameter.grad is None for parameter in each.parameters())
        assert not each.training


def test_blocks_begin_anew_in_each_epoch_and_are_the_same_for_a_seed():
    tokens = torch.arange(100)
    rows = ShiftedBlocks(tokens, 10, 27, seed=1)
    assert len(rows) == 27
    begins = rows.begins.view(3, 9)
    for epoch in begins:
        assert sorted((epoch // 10).tolist()) != list(epoch // 10)
        offsets = epoch.sort().values - torch.arange(9) * 10
        assert bool(((offsets >= 0) & (offsets < 10)).all())
        assert len(offsets.unique()) > 3
    assert len({tuple(epoch.tolist()) for epoch in begins}) == 3
    assert torch.equal(rows[4]["input_ids"], tokens[rows.begins[4] : rows.begins[4] + 10])
    assert torch.equal(ShiftedBlocks(tokens, 10, 27, seed=1).begins, rows.begins)
    assert ShiftedBlocks(tokens, 10, 27, seed=2).identity() != rows.identity()
    with pytest.raises(InputError, match="expected two blocks of 60"):
        ShiftedBlocks(tokens, 60, 9)


# Reading


@pytest.fixture(scope="module")
def reader() -> PeriodModel:
    tokenizer = period_tokenizer(["the telephone rang, and the café fell still; naïve telegraphs " * 3] * 3, 330)
    model = Size(2, 32, 2).model(len(tokenizer), 64, 0)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        for layer in model.model.layers:  # so that it matters what stands where
            layer.self_attn.q_proj.weight.mul_(20)
            layer.self_attn.k_proj.weight.mul_(20)
    return PeriodModel(model.eval(), tokenizer, 48)


TEXTS = ["the xylophone rang", "and", "", "the café—naïve telegraphs! fell still, and the telephone rang again " * 4]


def test_bits_are_of_characters_and_of_words_whatever_stands_beside(reader):
    together = reader.bits(TEXTS)
    np.testing.assert_allclose(together, [reader.bits([text])[0] for text in TEXTS], atol=1e-5)
    assert together[2] == 0
    ids = torch.tensor([[reader.start, *reader.tokenizer(TEXTS[0])["input_ids"]]])
    with torch.no_grad():
        nats = cross_entropy(reader.model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
    assert together[0] == pytest.approx(float(nats) / np.log(2) / len(TEXTS[0]), rel=1e-5)
    words, bits = reader.word_bits(TEXTS)[0]
    assert words == ["the", "xylophone", "rang"]
    assert bits.sum() == pytest.approx(together[0] * len(TEXTS[0]), rel=1e-6), "a space belongs to the word behind it"
    words, bits = reader.word_bits(TEXTS)[3]
    assert words == words_of(TEXTS[3])
    assert bits.sum() < together[3] * len(TEXTS[3]), "signs are of no word"


def test_a_long_text_is_read_in_stretches_and_each_token_once(reader):
    short = PeriodModel(reader.model, reader.tokenizer, 10)
    ids = [short.start, *reader.tokenizer(TEXTS[3])["input_ids"]]
    total = 0.0
    with torch.no_grad():
        for first in range(0, len(ids) - 1, 10):
            piece = torch.tensor([ids[first : first + 11]])
            total += float(cross_entropy(reader.model(piece).logits[0, :-1], piece[0, 1:], reduction="sum"))
    assert short.bits(TEXTS[3:])[0] == pytest.approx(total / np.log(2) / len(TEXTS[3]), rel=1e-5)


def test_a_word_that_could_stand_has_the_probability_that_it_would_have_and_ends_there(reader):
    contexts, words = ["the telephone rang, and", "and the", "the"], ["telephone", "the", "tele", "xylophone", "café"]
    found = reader.probability(contexts, words)
    assert found.shape == (3, 5)
    with torch.no_grad():
        for i, context in enumerate(contexts):
            for j, word in enumerate(words):
                before = [reader.start, *reader.tokenizer(context)["input_ids"]]
                own = reader.tokenizer(f" {word}")["input_ids"]
                logs = reader.model(torch.tensor([before + own])).logits[0].log_softmax(-1)
                rows = range(len(before) - 1, len(before) + len(own) - 1)
                p = float(sum(logs[row, token] for row, token in zip(rows, own, strict=True)).exp())
                tokens = [reader.tokenizer.decode([k]) for k in range(len(reader.tokenizer))]
                ends = [not (token[:1].isalpha() or token[:1] == "\ufffd") for token in tokens]
                p *= float(logs[-1].exp()[torch.tensor(ends)].sum())
                assert found[i, j] == pytest.approx(p, rel=1e-4)
    alone = reader.probability(contexts[2:], words[3:])
    np.testing.assert_allclose(alone, found[2:, 3:], rtol=1e-4)


# Words


def test_words_are_letters_alone():
    assert words_of("Don’t—STOP; x² naïve 3rd_time") == ["don", "t", "stop", "x", "naïve", "rd", "time"]


counters = st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 6)), min_size=1, max_size=4)


@given(counters, st.integers(0, 5), st.permutations(range(4)))
def test_a_shared_vocabulary_shrinks_with_the_threshold_whatever_the_order(counts, least, order):
    found = shared_vocabulary(counts, least)
    assert shared_vocabulary(counts, least + 1) <= found
    assert shared_vocabulary([counts[i] for i in order if i < len(counts)], least) == found
    assert found == {word for word in "abcdef" if all(each.get(word, 0) > least for each in counts)}
    assert only_of(["a b", "A, b!", ""], found)[0] == only_of(["a b", "A, b!", ""], found)[1]


def test_later_words_stand_in_no_text_up_to_a_period():
    counts = [Counter("aab"), Counter("bccc"), Counter("cddddeeee")]
    assert later_words(counts, 0, least=4) == ["c", "d", "e"]
    assert later_words(counts, 1, least=1, most=1) == ["d"]
    assert later_words(counts, 2) == []


def test_the_trend_of_two_periods_is_the_z_score_of_the_log_odds_ratio():
    counts, words = [Counter(a=30, b=10, c=60), Counter(a=5, b=12, c=83)], ["a", "b", "c"]
    z = trend(counts, words, share=0.5)
    for i, word in enumerate(words):
        alpha, alpha0 = 50 * sum(each[word] for each in counts) / 200, 50
        odds, variance = [], 0.0
        for each in counts:
            mass, rest = each[word] + alpha, 100 + alpha0 - each[word] - alpha
            odds.append(np.log(mass / rest))
            variance += 1 / mass + 1 / rest
        assert z[i] == pytest.approx((odds[1] - odds[0]) / variance**0.5)
    assert trend(counts[::-1], words, share=0.5) == pytest.approx(-z)
    same = trend([counts[0], counts[0]], words)
    assert same == pytest.approx([0, 0, 0], abs=1e-9)
    odds, _ = log_odds(np.array([[3.0, 7.0]]), np.array([1.0, 1.0]))
    assert odds[0] == pytest.approx([np.log(4 / 8), np.log(8 / 4)])
    for some, word, message in ((counts[:1], "a", "expected two"), (counts, "z", "stands in no period")):
        with pytest.raises(InputError, match=message):
            trend(some, [word])


def test_the_trend_of_three_periods_is_that_of_the_outer_ones_beside_their_error():
    """A line through three has the weights −½, 0, ½: half of the ratio of the outer two, whose errors add up."""
    counts, words = [Counter(a=30, b=70), Counter(a=50, b=50), Counter(a=10, b=90)], ["a", "b"]
    prior = 100 * table(counts, words).sum(0) / 300
    odds, variance = log_odds(table(counts, words), prior)
    z = (odds[2] - odds[0]) / 2 / np.sqrt((variance[2] + variance[0]) / 4)
    assert trend(counts, words, share=1.0) == pytest.approx(z)


def test_contrasts_are_a_line():
    assert contrast(2) == pytest.approx([-1, 1])
    assert contrast(5) @ (7 + 3 * np.arange(5)) == pytest.approx(3)


def test_counts_code_text_as_a_distribution():
    texts = ["the cat sat. the dog sat", "a cat, a dog"]
    everything = symbols(texts)
    model = CountModel(texts[:1], everything)
    known = sum(model.probability(each) for each in everything)
    spelled = sum(26**n * model.probability("x" * n) for n in range(1, 200))
    assert known < 1
    assert known + spelled == pytest.approx(1, abs=0.02)
    assert model.bits(["the cat"])[0] < model.bits(["a kitten"])[0] < model.bits(["zq xv"])[0]


# Change


class Told:
    """A model by a table: the bits of each word, wherever it stands; other words cost 9."""

    def __init__(self, bits: dict[str, float], seed: int = 0, later: float = 0.0) -> None:
        self.table, self.seed, self.later = bits, seed, later

    def word_bits(self, texts):
        drawn = np.random.default_rng(self.seed)
        split = [words_of(text) for text in texts]
        return [(w, np.array([self.table.get(x, 9.0) for x in w]) + drawn.normal(0, 0.3, len(w))) for w in split]

    def bits(self, texts):
        return np.array([b.sum() / len(t) for (_, b), t in zip(self.word_bits(texts), texts, strict=True)])

    def probability(self, contexts, words):
        return np.full((len(contexts), len(words)), self.later)


def period_texts(own: str, n: int = 12) -> list[str]:
    return [
        " ".join(random.Random(f"{own} {i}").choices(f"the of and ship tea house {own} {own}".split(), k=60))
        for i in range(n)
    ]


def test_texts_that_differ_are_read_best_by_their_own_model_and_equal_ones_alike():
    texts = {name: period_texts(name) for name in ("thou", "you", "telephone")}
    models = {name: Told({name: 2.0}, seed) for seed, name in enumerate(texts)}
    report = change_report(models, texts)
    assert report.own_best == [True] * 3
    assert (report.matrix.argmin(0) == np.arange(3)).all()
    same = {name: period_texts("thou") for name in texts}
    alike = change_report({name: Told({}, seed) for seed, name in enumerate(same)}, same)
    assert np.ptp(alike.matrix) < 0.02


def test_a_word_that_moves_ranks_first_and_one_that_does_not_is_not_among_the_first():
    texts = {str(i): [*period_texts("tea"), "the novel of the old telephone " * 9] for i in range(3)}
    tables = [{"telephone": 20.0 - 8 * i, "ship": 5.0, "house": [6.0, 4.0, 6.0][i]} for i in range(3)]
    report = change_report({str(i): Told(table, i) for i, table in enumerate(tables)}, texts)
    assert report.words[0] == "telephone"
    assert report.moved[0] > 0
    assert abs(report.moved[report.words.index("ship")]) < abs(report.moved[0]) / 10
    assert report.bits[0] == pytest.approx([20, 12, 4], abs=0.2)
    back = change_report({str(i): Told(table, i) for i, table in enumerate(tables[::-1])}, texts)
    assert back.words[0] == "telephone"
    assert back.moved[0] < 0


def test_a_word_that_keeps_its_count_and_changes_its_company_is_found_by_models_and_not_by_counts():
    """Models expect the word in texts of their own period, in others not."""
    texts = {str(i): period_texts("broadcast") for i in range(2)}
    everything = [text for some in texts.values() for text in some]
    models = {}
    for i in range(2):
        told = []
        for place, text in enumerate(everything):
            cost = 3.0 if (place >= len(texts["0"])) == i else 9.0
            told.append(Told({"broadcast": cost}, place).word_bits([text])[0])
        models[str(i)] = SimpleNamespace(
            word_bits=lambda _, told=told: told,
            bits=lambda some: np.ones(len(some)),
            probability=Told({}).probability,
        )
    report = change_report(models, texts)
    at = report.words.index("broadcast")
    assert report.company.argmax() == at
    assert abs(report.moved[at]) < report.company[at] / 5, "it is as probable as before, on the whole"
    assert abs(report.log_odds[at]) < 1e-9


def test_a_report_says_what_leaks_and_keeps_to_the_words_asked_for():
    texts = {"1": period_texts("thou"), "2": period_texts("you")}
    models = {"1": Told({}, later=0.25), "2": Told({}, later=0.5)}
    report = change_report(models, texts, vocabulary=frozenset(["the", "you"]))
    assert report.leakage == {"1": pytest.approx(0.25)}, "one word is later, and none is after the last period"
    assert set(report.words) == {"the", "you"}
    head, *rows = report.table().splitlines()
    assert head == "word,moved,company,log_odds,bits 1,bits 2,count 1,count 2"
    assert len(rows) == 2
    known = change_report(models, texts, learnt={"1": counted(texts["1"]) + Counter(you=1), "2": counted(texts["2"])})
    assert np.isnan(known.leakage["1"]), "a word that was learnt from is not later"
    assert leakage(models["2"], texts["2"], ["a", "b"]) == pytest.approx(1.0)
    three = {**texts, "3": period_texts("telephone")}
    leaks = change_report({name: Told({}, later=0.1) for name in three}, three).leakage
    assert leaks == {"1": pytest.approx(0.2), "2": pytest.approx(0.1)}, "two words are later than the first, then one"
    with pytest.raises(InputError, match="the same two periods"):
        change_report(models, {"1": texts["1"]})
    with pytest.raises(InputError, match="no word that stands 9999 times"):
        change_report(models, texts, least=9999)


def test_a_battery_asks_each_model_and_of_later_words_the_periods_own():
    battery = Battery([Told({"thou": 1.0}, later=0.1), Told({"you": 1.0}, later=0.3)])
    texts = [*period_texts("thou", 2), "short"]
    np.testing.assert_array_equal(battery.bits(texts)[:, 1], battery.models[1].bits(texts))
    assert battery.later(0, texts, ["a", "b"]) == pytest.approx([0.2] * 3)
    assert battery.later(1, texts, ["a"]) == pytest.approx([0.3] * 3)
    counts = Battery([CountModel(["a b c"], symbols(["a b c d"]))])
    alone = sum(counts.models[0].word_probability(word) for word in "abcd")
    assert counts.later(0, texts, ["d"])[0] == pytest.approx(counts.models[0].word_probability("d"))
    assert 0.8 < alone < 1.1, "where a word begins"


def test_places_lie_evenly_in_a_text():
    words = [f"w{i}" for i in range(100)]
    found = places(" ".join(words), 3)
    assert [each.split()[-1] for each in found] == ["w19", "w59", "w98"]
    assert max(len(each.split()) for each in found) == 40
    assert places("too short", 3) == []


def test_readings_of_rare_words_do_not_lead_by_chance():
    """Readings that spread by 2 bits: forty that gain 3 outrank words that stand once."""
    drawn = np.random.default_rng(0)
    words = ["moved", *(f"once{i}" for i in range(60)), *(f"same{i}" for i in range(20))]
    word = np.array([0] * 40 + list(range(1, 61)) + [i for i in range(61, 81) for _ in range(40)])
    bits = np.stack([np.full(len(word), 9.0), 9 - 3.0 * (word == 0) + drawn.normal(0, 2, len(word))], 1)
    assert np.ptp(bits[40:100, 1]) > 6, "by chance"
    found = WordReadings(tuple(words), word, np.zeros(len(word), np.int64), bits).moved()
    assert np.abs(found).argmax() == 0
    still = WordReadings(("a", "b"), np.array([0, 1, 1]), np.zeros(3, np.int64), np.ones((3, 2)))
    assert still.moved() == pytest.approx([0, 0])
    better = WordReadings(tuple(words), word, np.zeros(len(word), np.int64), bits - [0, 5])
    assert better.moved() == pytest.approx(found), "a model that reads all better moves no word"


# Planted change


def test_planted_words_are_renamed_or_swapped_from_a_period_on_and_others_stay():
    drawn = random.Random(0)
    vocabulary = ["".join(drawn.choices("abcdefgh", k=5)) for _ in range(120)]
    raw = [[" ".join(drawn.choices(vocabulary, k=200)).capitalize() for _ in range(15)] for _ in range(3)]
    texts, change = planted(raw, 12, seed=2)
    assert Counter(each.kind for each in change) == {RENAMED: 12, SWAPPED: 12}
    assert planted(raw, 12, seed=2)[1] == change
    before, after = ([counted(some) for some in each] for each in (raw, texts))
    assert texts[0] == raw[0], "nothing changes before the second period"
    for each in change:
        assert [some[each.control] for some in after] == [some[each.control] for some in before]
        if each.kind == RENAMED:
            assert before[2][each.word] == 0
            assert after[2][each.word] == before[2][each.group] > 0
            assert after[2][each.group] == 0
    for first, second in {tuple(each.group.split()) for each in change if each.kind == SWAPPED}:
        assert (after[2][first], after[2][second]) == (before[2][second], before[2][first])
    assert len({each.control for each in change}) == len(change)
    assert [text[0].isupper() for text in texts[2]] == [True] * 15
    with pytest.raises(InputError, match="give more text"):
        planted([["a few words"]] * 2, 12, seed=0)


def test_the_counts_of_swapped_words_move_as_those_of_words_that_are_left_alone():
    """Frequencies drift from period to period, of each word by itself: what changed places shows in no count."""
    drawn = np.random.default_rng(0)
    names = ["".join("abcdefghijklmnopqrst"[int(digit)] for digit in f"{i:04d}") for i in range(700)]
    shares = np.exp(drawn.normal(0, 0.5, (2, 700)))
    draws = [drawn.choice(names, 60_000, p=each / each.sum()).tolist() for each in shares]
    raw = [[" ".join(words)] for words in draws]
    above = []
    for seed in range(4):
        texts, change = planted(raw, 120, seed)
        words = sorted({word for each in change for word in (each.word, each.control)})
        moved = dict(zip(words, np.abs(trend([counted(some) for some in texts], words)), strict=True))
        swapped = [each for each in change if each.kind == SWAPPED]
        above += [moved[a.word] > moved[b.control] for a in swapped for b in swapped]
    assert np.mean(above) == pytest.approx(0.5, abs=0.05)


# Training


@pytest.mark.real
def test_models_of_two_periods_know_their_own_and_a_planted_word_is_found(tmp_path, monkeypatch):
    """On sentences of two periods: each model reads its own best, and what was renamed ranks first."""

    def sentences(thou: str, n: int, seed: int) -> list[str]:
        drawn = random.Random(seed)
        subjects, verbs = ["the ship", "a house", "the king", thou], ["saw", "found", "left", "loved"]
        one = lambda: f"{drawn.choice(subjects)} {drawn.choice(verbs)} {drawn.choice(subjects)}"  # noqa: E731
        return [". ".join(one() for _ in range(12)) for _ in range(n)]

    texts = {"1": sentences("zorg", 40, 0), "2": sentences("blim", 40, 1)}
    held = {"1": sentences("zorg", 8, 2), "2": sentences("blim", 8, 3)}
    monkeypatch.setattr("broadsheet.training.scratch.SIZES", {"0.4M": Size(1, 32, 2)})
    method = Diachronic(weight_decay=0.1)
    small = {"size": "0.4M", "vocabulary": 300, "length": 32, "steps": 50, "batch": 4, "learning_rate": 1e-2}
    models = {name: method.train(some, tmp_path / name, **small) for name, some in texts.items()}
    report = method.change_report(models, held)
    assert report.own_best == [True, True]
    assert set(report.words[:2]) == {"zorg", "blim"}
    shared = method.change_report(models, held, shared=True)
    assert not {"zorg", "blim"} & set(shared.words)
    assert 0 <= report.leakage["1"] < 0.01
    assert sorted(each.name for each in tmp_path.iterdir()) == ["1", "2"], "teachers are gone"
    again = method.train(texts["1"], tmp_path / "1", **small)
    np.testing.assert_array_equal(again.bits(held["1"]), models["1"].bits(held["1"]))
    one = stream(texts["1"][:1], models["1"].tokenizer)
    assert (int(one[0]), int(one[-1])) == (models["1"].start, models["1"].tokenizer.eos_token_id)


def test_teachers_have_seeds_of_their_own_and_the_student_alone_decays(tmp_path, monkeypatch):
    made = []

    def trained(self, model, tokenizer, texts, out, objective=None, *, seed=0, weight_decay=0.0):
        made.append((out.name, seed, weight_decay, objective and len(objective.teachers)))
        out.mkdir(parents=True)
        (out / "training.json").touch()

    monkeypatch.setattr("broadsheet.training.scratch.SIZES", {"0.4M": Size(1, 16, 2)})
    monkeypatch.setattr(PeriodRecipe, "fit", trained)
    monkeypatch.setattr(PeriodRecipe, "load", lambda self, folder, device=None: SimpleNamespace(model=None))
    small = {"size": "0.4M", "vocabulary": 300, "length": 32}
    Diachronic().train(["text"], tmp_path / "a", seed=4, **small)
    Diachronic(teachers=0).train(["text"], tmp_path / "b", **small)
    assert made == [("0", 13, 0.0, None), ("1", 14, 0.0, None), ("a", 12, 5.0, 2), ("b", 0, 0.0, None)]


@pytest.mark.parametrize(
    "bad",
    [
        {"bounds": (1850, 1820)},
        {"works": 0},
        {"train_words": 0},
        {"split_level": "page"},
        {"alpha": 2.0},
        {"teachers": -1},
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(InputError, match="expected"):
        Diachronic(**bad)


def test_a_size_and_a_vocabulary_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="got the size 3B"):
        new_model("3B", 300, 32, 0)
    with pytest.raises(InputError, match="expected 259 or more"):
        period_tokenizer(["text"], 100)


# The passes together


def dated_works() -> list[dict]:
    rows = []
    for a in range(4):
        for w in range(25):
            drawn, year = random.Random(f"{a} {w}"), 1770 + 20 * a + w
            words = ["the", "of", "ship", "house", "thou" if year < 1820 else "you"]
            text = "\n\n".join(" ".join(drawn.choices(words, k=drawn.randint(3, 30))) for _ in range(6))
            told = f"about {year}" if w == 7 else year
            rows.append(
                {
                    "id": f"{a}-{w}",
                    "author": f"A{a}",
                    "title": f"T{w}",
                    "born": 1750,
                    "died": 1849,
                    "year": told,
                    "text": text,
                }
            )
    return [*rows, {"id": "late", "author": "X", "title": "L", "born": 1830, "year": 1825, "text": "you"}]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("works") / "works.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in dated_works()))
    return path


METHOD = "diachronic(train_words=600,test_words=200,dev_words=100,works=5)"


def read(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".html"
    }


def test_slices_are_the_same_whatever_the_ranks_and_each_work_stays_or_why_it_went_is_said(corpus, tmp_path):
    found = {}
    for tasks in (1, 3):
        out = tmp_path / str(tasks)
        DiachronicRecipe(bounds="1770,1820,1850", method=METHOD, tasks=tasks).run(Source(str(corpus)), out)
        found[tasks] = read(out)
    assert found[1] == found[3]
    files = {f"{name}/{split}.jsonl" for name in ("1770-1820", "1820-1850") for split in SPLITS}
    assert files | {"periods.json", "changes.csv", "counts.json", "reasons.jsonl"} == set(found[1])
    rows = {name: [json.loads(row) for row in found[1][name].splitlines()] for name in files}
    ids = [row["id"] for some in rows.values() for row in some]
    assert len(ids) == len(set(ids))
    by_work = {(row["author"], row["title"]): row["period"] for some in rows.values() for row in some}
    assert Counter((author, period) for (author, _), period in by_work.items()).most_common(1)[0][1] <= 5
    told = json.loads(found[1]["periods.json"])
    for name, some in rows.items():
        period, split = name.removesuffix(".jsonl").split("/")
        words = sum(len(row["text"].split()) for row in some)
        assert told[period][split] == {"paragraphs": len(some), "words": words}
        assert words <= {"train": 600, "test": 200, "dev": 100}[split]
    reasons = {row["id"]: row["reason"] for row in map(json.loads, found[1]["reasons.jsonl"].splitlines())}
    assert reasons["late"] == "outside_life"
    assert sum(reason == "unparsable_year" for reason in reasons.values()) == 4
    assert set(reasons.values()) == {"outside_life", "unparsable_year", "beyond_authors_limit", "outside_periods"}
    changes = found[1]["changes.csv"].decode().splitlines()
    assert changes[0] == "word,z,1770-1820,1820-1850"
    assert {row.split(",")[0] for row in changes[1:3]} == {"thou", "you"}
    works = {row["id"] for row in dated_works()}
    assert len(works - set(reasons)) == sum(each["works"] for each in told.values())
    assert {each.partition("#")[0] for each in ids} <= works - set(reasons)


def test_a_run_that_was_stopped_goes_on_and_bad_options_write_nothing(corpus, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    given = {"bounds": "1770,1820,1850", "method": METHOD}
    DiachronicRecipe(**given).run(Source(str(corpus)), whole)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WordBudgetSplit, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            DiachronicRecipe(**given).run(Source(str(corpus)), out)
    assert not out.exists()
    DiachronicRecipe(**given).run(Source(str(corpus)), out)
    assert read(out) == read(whole)
    with pytest.raises(InputError, match=r"nothing is left of .*outside_periods \(slices\)"):
        DiachronicRecipe(bounds="2000,2010").run(Source(str(corpus)), tmp_path / "none")
    for bad, message in (
        ({"bounds": "1820,1770"}, "each later than the one before"),
        ({"bounds": "1820 to 1850"}, "expected years between commas"),
        ({"method": "diachronic(words=3)"}, "has no field 'words'"),
    ):
        with pytest.raises(InputError, match=message):
            DiachronicRecipe(**bad).run(Source(str(corpus)), tmp_path / "bad")
        assert not list(tmp_path.glob("bad*"))

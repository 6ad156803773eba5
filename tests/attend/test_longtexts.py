"""Long texts: whole documents in their order, exactly as long as wanted, with passwords where they may stand."""

from __future__ import annotations

import json
import random

import pytest

from broadsheet.attend.trials.longtexts import draw_passwords, long_texts
from broadsheet.console import InputError
from broadsheet.data import corpora


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


@pytest.fixture
def make_corpus(tmp_path):
    def make(texts, name="corpus.jsonl", **fields):
        rows = [{"id": f"d{i}", "text": text} | fields for i, text in enumerate(texts)]
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return corpora.load(path)

    return make


@pytest.fixture
def corpus(make_corpus):
    """40 documents of about 130 characters."""
    generator = random.Random(0)
    words = ["the", "cat", "and", "a", "dog", "sat", "on", "red", "mats", "in", "rain"]
    return make_corpus([" ".join(generator.choices(words, k=35)) for _ in range(40)])


def test_documents_stand_one_after_another_under_their_titles(make_corpus, tokenizer):
    corpus = make_corpus(["first text", "second text", "third text"])
    [text] = long_texts(corpus, tokenizer, 1, 50, questions=0)
    start = int(text.documents[0][1:])
    order = [(start + i) % 3 for i in range(len(text.documents))]
    assert text.documents == [f"d{i}" for i in order]
    said = "".join(f"# d{i}\n\n{('first', 'second', 'third')[i]} text\n\n" for i in order)
    assert tokenizer.decode(text.ids) == said[: len(tokenizer.decode(text.ids))]
    assert len(text.ids) == 50


def test_a_title_goes_before_an_id(make_corpus, tokenizer):
    [text] = long_texts(make_corpus(["some text"], title="A Title"), tokenizer, 1, 15, questions=0)
    assert tokenizer.decode(text.ids).startswith("# A Title\n\nsome")


def test_no_document_is_in_two_texts_and_every_text_is_whole(corpus, tokenizer):
    texts = long_texts(corpus, tokenizer, 5, 500, questions=3)
    assert [len(text.ids) for text in texts] == [500] * 5
    used = [name for text in texts for name in text.documents]
    assert len(used) == len(set(used))
    for text in texts:  # a run of the corpus, which may go on at its start
        first = int(text.documents[0][1:])
        assert text.documents == [f"d{(first + i) % 40}" for i in range(len(text.documents))]


def test_texts_come_in_random_order(corpus, tokenizer):
    def begins(seed):
        return [int(text.documents[0][1:]) for text in long_texts(corpus, tokenizer, 8, 300, questions=0, seed=seed)]

    orders = [begins(seed) for seed in range(6)]
    assert all(order == begins(seed) for seed, order in enumerate(orders))
    first = [order.index(min(order)) for order in orders]
    assert len(set(first)) > 2
    ascending = [order[i:] + order[:i] == sorted(order) for order in orders for i in range(len(order))]
    assert not any(ascending)


def test_empty_and_repeated_documents_are_left_out(make_corpus, tokenizer):
    corpus = make_corpus(["one of a kind", "", "one of a kind", "  \n", " another one"])
    [text] = long_texts(corpus, tokenizer, 1, 35, questions=0)
    assert len(text.documents) == 2
    said = tokenizer.decode(text.ids)
    assert said.count("kind") == said.count("another") == 1


def test_the_seed_chooses_places_and_passwords(corpus, tokenizer):
    chosen = [long_texts(corpus, tokenizer, 2, 400, questions=2, seed=seed) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_every_document_of_a_small_corpus_is_used_before_texts_run_out(make_corpus, tokenizer, corpus):
    # About 40 x 100 tokens: eleven texts fit when they follow one another, not from random places.
    total = sum(len(tokenizer(f"# {d.id}\n\n{d.text}\n\n").input_ids) for d in corpus)
    length = total // 8
    assert len(long_texts(corpus, tokenizer, 8, length, questions=0)) >= 7


def test_passwords_are_told_once_and_asked_for_by_what_stands_before_them(corpus, tokenizer):
    for text in long_texts(corpus, tokenizer, 3, 900, questions=6):
        assert len(text.questions) == len(set(text.answers)) == 6
        said = tokenizer.decode(text.ids)
        for question, answer in zip(text.questions, text.answers, strict=True):
            end = question.position + len(question.ids)
            assert text.ids[question.position : end] == question.ids
            assert text.ids[end] == answer
            assert said.count(tokenizer.decode(question.ids)) == 1


def test_passwords_stand_at_even_depths_outside_what_is_kept_clear(corpus, tokenizer):
    clear = [range(250, 400), range(700, 800)]
    wide = 60  # more than a line's tokens
    for seed in range(5):
        for text in long_texts(corpus, tokenizer, 2, 1000, questions=5, clear=clear, seed=seed):
            lines = [range(q.position, q.position + len(q.ids) + 5) for q in text.questions]
            assert all(not set(line) & set(stretch) for line in lines for stretch in clear)
            positions = [line.start for line in lines]
            free = [place for place in range(1000) if not any(place in stretch for stretch in clear)]
            fifths = [free.index(position) * 5 // len(free) for position in positions]
            assert all(abs(fifth - number) <= 1 for number, fifth in enumerate(fifths)), positions
            assert all(b - a >= len(line) for a, b, line in zip(positions, positions[1:], lines, strict=False))
            assert positions[-1] <= 1000 - wide // 3


def test_a_line_put_in_moves_the_text_on_and_replaces_nothing(corpus, tokenizer):
    [plain] = long_texts(corpus, tokenizer, 1, 600, questions=0)
    [told] = long_texts(corpus, tokenizer, 1, 600, questions=2)
    passwords = draw_passwords(tokenizer, 2, random.Random("0 0"))
    rest = list(told.ids)
    for question, password in reversed(list(zip(told.questions, passwords, strict=True))):
        assert rest[question.position : question.position + len(password.line)] == password.line
        del rest[question.position : question.position + len(password.line)]
    assert rest == plain.ids[: len(rest)]


def test_a_text_begins_as_the_tokenizer_begins_texts(corpus, tiny_tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    [text] = long_texts(corpus, tokenizer, 1, 600, questions=2)
    assert text.ids[0] == 1
    assert not {1, 2} & set(text.ids[1:])


def test_too_little_text_is_said(make_corpus, corpus, tokenizer):
    with pytest.raises(InputError, match=r"fewer than 9,000 tokens of text; give more documents, or shorter --lengths"):
        long_texts(corpus, tokenizer, 2, 9000)
    with pytest.raises(InputError, match="holds no documents"):
        long_texts(make_corpus([], "none.jsonl"), tokenizer, 2, 100)
    with pytest.raises(InputError, match="fewer than 100 tokens"):
        long_texts(make_corpus(["", " "], "blank.jsonl"), tokenizer, 2, 100)


def test_a_corpus_that_gives_fewer_texts_gives_those(corpus, tokenizer):
    assert len(long_texts(corpus, tokenizer, 50, 900, questions=2)) in (3, 4)


def test_too_many_passwords_are_refused(corpus, tokenizer):
    with pytest.raises(InputError, match=r"no room for 10 passwords .* or fewer --questions"):
        long_texts(corpus, tokenizer, 1, 120, questions=10)
    with pytest.raises(InputError, match="got --questions 26; expected at most 25"):
        long_texts(corpus, tokenizer, 1, 2000, questions=26)

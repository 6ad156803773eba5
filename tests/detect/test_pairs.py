"""Human passages and what a model writes after them."""

from __future__ import annotations

import collections

import pytest

from broadsheet.console import InputError
from broadsheet.data.corpora import Document
from broadsheet.detect.trials.pairs import ContinuationWriter, PairConfig, first_words, match, passages, write_pairs
from broadsheet.teacher import Completion

PROTOCOL = PairConfig(min_words=25, prompt_tokens=4, max_new_tokens=30, min_new_tokens=5)


def document(i: int, n_words: int = 30) -> Document:
    return Document(f"d{i}", " ".join(f"w{i}.{k}" for k in range(n_words)))


class Words:
    """A tokenizer of whole words."""

    def __call__(self, text, **_):
        return collections.namedtuple("Encoding", "input_ids")(text.split())

    def decode(self, ids, **_):
        return " ".join(ids)


class Parrot:
    """A teacher that continues every prompt with as many words as it is told."""

    def __init__(self, lengths):
        self.lengths = iter(lengths)
        self.prompts = []

    def complete(self, prompts, **_):
        self.prompts += prompts
        return [[self._one(next(self.lengths))] for _ in prompts]

    def _one(self, n):
        return Completion("".join(f" m{k}" for k in range(n)), "stop", n, 4)


def test_passages_are_long_distinct_and_seeded():
    documents = [*(document(i) for i in range(50)), document(99, 10), *(document(i) for i in range(50))]
    found = passages(documents, 20, PROTOCOL, seed=1)
    assert len({d.id for d in found}) == 20
    assert "d99" not in {d.id for d in found}
    assert [d.id for d in passages(documents, 20, PROTOCOL, seed=1)] == [d.id for d in found]
    assert [d.id for d in passages(documents, 20, PROTOCOL, seed=2)] != [d.id for d in found]
    with pytest.raises(InputError, match="no document has 25 words"):
        passages([document(0, 10)], 5, PROTOCOL, seed=0)


def test_every_document_is_as_likely_to_be_sampled():
    documents = [document(i) for i in range(10)]
    counts = collections.Counter(d.id for seed in range(600) for d in passages(documents, 3, PROTOCOL, seed))
    assert all(130 < counts[f"d{i}"] < 230 for i in range(10))  # 180 expected, sd 11


def test_pairs_are_cut_to_equal_words_and_early_ends_are_replaced():
    teacher = Parrot([10, 2, 40, 8])
    made, dropped = write_pairs(
        [document(i) for i in range(6)], 3, {"w": ContinuationWriter(teacher, Words(), PROTOCOL)}, seed=0
    )
    pairs = made["w"]
    assert dropped == 1
    assert [pair.id for pair in pairs] == ["d0", "d2", "d3"]
    assert [len(pair.human.split()) for pair in pairs] == [14, 30, 12]
    assert all(len(pair.human.split()) == len(pair.machine.split()) for pair in pairs)
    assert teacher.prompts[0] == "w0.0 w0.1 w0.2 w0.3"
    with pytest.raises(InputError, match="give another generator"):
        write_pairs([document(0)], 1, {"w": ContinuationWriter(Parrot([2]), Words(), PROTOCOL)}, seed=0)


def test_several_writers_continue_the_same_documents():
    writers = {
        "a": ContinuationWriter(Parrot([9, 9, 1, 9]), Words(), PROTOCOL),
        "b": ContinuationWriter(Parrot([1, 8, 8, 8]), Words(), PROTOCOL),
    }
    made, dropped = write_pairs([document(i) for i in range(4)], 2, writers, seed=0)
    assert {name: [pair.id for pair in pairs] for name, pairs in made.items()} == {"a": ["d1", "d3"], "b": ["d1", "d3"]}
    assert dropped == 2


def test_first_words_keep_white_space():
    assert first_words(" a\n\n  b c", 2) == " a\n\n  b"
    assert first_words("a b", 9) == "a b"
    assert first_words("a b", 0) == ""


def test_given_texts_are_matched_by_id_or_else_by_order():
    human = [Document("a", "one two three"), Document("b", "four five"), Document("c", "")]
    machine = [Document("b", "B1 B2 B3"), Document("a", "A1"), Document("c", "C1")]
    assert [(p.id, p.human, p.machine) for p in match(human, machine)] == [
        ("a", "one", "A1"),
        ("b", "four five", "B1 B2"),
    ]
    other = [Document("x", "X1 X2"), Document("y", "Y1"), Document("z", "Z1")]
    assert [(p.id, p.machine) for p in match(human, other)] == [("a", "X1 X2"), ("b", "Y1")]
    with pytest.raises(InputError, match="3 human and 2 machine texts"):
        match(human, other[:2])

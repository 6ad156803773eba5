"""FullRank: weights by place whatever the tokenizer, and complete labels that survive a kill."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from broadsheet.console import InputError
from broadsheet.rank import order
from broadsheet.rank.fullrank import FullRank, complete_labels, multipass_calls
from broadsheet.rank.labelling import reranker_comparator, teacher_comparator
from broadsheet.rank.prompts.prompt import Prompter
from broadsheet.rank.training.losses import weighted_nll


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


def test_weights_fall_from_two_towards_one():
    weights = [FullRank().weight(place) for place in range(1, 1000)]
    assert weights[:3] == pytest.approx([2, 1.6309297535714575, 1.5])
    assert (weights[6], weights[14]) == (pytest.approx(4 / 3), 1.25)
    assert all(one > other > 1 for one, other in pairwise(weights))


def test_an_identifier_weighs_by_its_place_whatever_its_digits(tokenizer):
    target = Prompter(tokenizer, "numeric").target([6, 11, 99, 0])
    weights = FullRank(alpha=0.5).token_weights(target)
    assert tokenizer.decode(target.ids) == "[7] > [12] > [100] > [1]<|im_end|>"
    found = [(tokenizer.decode([token]), weight) for token, weight in zip(target.ids, weights, strict=True)]
    digits = [(text, weight) for text, weight in found if text.isdigit()]
    places = [1, 2, 2, 3, 3, 3, 4]  # digits stand alone in this tokenizer
    assert [text for text, _ in digits] == list("7121001")
    assert [weight for _, weight in digits] == pytest.approx([FullRank().weight(place) for place in places])
    assert {weight for text, weight in found if not text.isdigit()} == {0.5}


def test_the_authors_weigh_brackets_too(tokenizer):
    target = Prompter(tokenizer, "numeric").target([1, 0], eos=False)
    weights = FullRank("authors", alpha=0.25).token_weights(target)
    two = FullRank().weight(2)
    found = [(tokenizer.decode([token]), weight) for token, weight in zip(target.ids, weights, strict=True)]
    parts = [(text, weight) for text, weight in found if text.strip()]
    assert parts == [("[", 2), ("2", 2), ("]", 2), (">", 0.25), ("[", two), ("1", two), ("]", two)]


def test_with_weights_of_one_the_loss_is_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 6, 11, generator=generator)
    words = torch.randint(0, 11, (1, 6), generator=generator)
    nll = cross_entropy(logits.transpose(1, 2), words, reduction="none")
    found = weighted_nll(nll, torch.ones(1, 6), torch.ones(1, 6, dtype=torch.bool))
    assert found.item() == pytest.approx(cross_entropy(logits[0], words[0]).item(), abs=1e-6)


def test_a_tokens_gradient_is_its_weight_times_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 5, 7, generator=generator).requires_grad_()
    words = torch.randint(0, 7, (1, 5), generator=generator)
    mask = torch.tensor([[True, True, True, True, False]])
    weights = torch.tensor([[2.0, 1.0, 1.63, 1.0, 5.0]])

    def gradient(values):
        nll = cross_entropy(logits.transpose(1, 2), words, reduction="none")
        return torch.autograd.grad(weighted_nll(nll, values, mask), logits)[0]

    plain, weighted = gradient(torch.ones(1, 5)), gradient(weights)
    assert torch.allclose(weighted, plain * weights[..., None], atol=1e-7)
    assert torch.equal(weighted[0, 4], torch.zeros(7))


def test_a_lists_loss_does_not_depend_on_its_neighbours():
    nll = torch.tensor([[1.0, 2.0, 3.0], [4.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert weighted_nll(nll, torch.ones(2, 3), mask).item() == pytest.approx((2 + 4) / 2)


@pytest.mark.parametrize(("parameters", "message"), [({"weights": "x"}, "weights 'x'"), ({"alpha": -1}, "alpha -1")])
def test_parameters_that_cannot_be(parameters, message):
    with pytest.raises(InputError, match=message):
        FullRank(**parameters)


def rows(sizes, seed=0):
    draw = random.Random(seed)
    made = []
    for number, n in enumerate(sizes):
        values = draw.sample(range(100), n)
        made.append({"query": f"q{number}", "documents": [str(value) for value in values]})
    return made


def exact(asked):
    return [order.by_score([float(document) for document in documents]) for _, documents in asked]


def best_first(row):
    return sorted(range(len(row["documents"])), key=lambda i: -int(row["documents"][i]))


def test_an_exact_comparison_gives_complete_labels():
    lists = rows([1, 2, 5, 17, 40])
    assert complete_labels(lists, exact, window=6, step=3) == [best_first(row) for row in lists]
    documents = lists[4]["documents"]
    [single] = order.run_lockstep(
        [order.sliding(40, 6, 3)], lambda asked: exact([("", [documents[i] for i in items]) for _, items in asked])
    )
    assert single != best_first(lists[4])


def test_a_window_holds_no_more_than_it_may_and_batches_mix_lists():
    seen = []

    def compare(asked):
        seen.append(asked)
        return exact(asked)

    complete_labels(rows([12, 12, 12]), compare, window=4, step=2, batch_size=2)
    assert max(len(documents) for asked in seen for _, documents in asked) == 4
    assert {len(asked) for asked in seen} == {1, 2}
    assert sum(len(asked) for asked in seen) == 3 * sum(multipass_calls(12, 4, 2))
    assert {query for query, _ in seen[0]} == {"q0", "q1"}


def test_what_a_comparator_leaves_out_or_makes_up_is_mended():
    lists = rows([9])
    [found] = complete_labels(lists, lambda asked: [[7, 1, 1] for _ in asked], window=4, step=2)
    assert sorted(found) == list(range(9))
    with pytest.raises(ValueError, match="got 0 orders"):
        complete_labels(lists, lambda asked: [], window=4, step=2)


class Killed(BaseException):
    pass


def test_labels_go_on_after_a_kill(tmp_path):
    lists, journal = rows([12, 8, 15]), tmp_path / "labels" / "journal.jsonl"
    calls = []

    def counting(limit):
        def compare(asked):
            if len(calls) + len(asked) > limit:
                raise Killed
            calls.extend(query for query, _ in asked)
            return exact(asked)

        return compare

    total = sum(sum(multipass_calls(n, 4, 2)) for n in (12, 8, 15))
    with pytest.raises(Killed):
        complete_labels(lists, counting(total // 2), window=4, step=2, journal=journal, batch_size=2)
    done = len(calls)
    assert done > 4
    with journal.open("ab") as file:
        file.write(b'{"window": "cut o')  # what a kill leaves of a line
    found = complete_labels(lists, counting(10**9), window=4, step=2, journal=journal, batch_size=2)
    assert found == [best_first(row) for row in lists]
    assert len(calls) == total
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    again = complete_labels(lists, counting(0), window=4, step=2, journal=journal)
    assert again == found


def test_a_journal_serves_only_what_it_was_made_for(tmp_path):
    journal, lists = tmp_path / "journal.jsonl", rows([6])
    complete_labels(lists, exact, window=4, step=2, journal=journal)
    asked_again = []

    def compare(asked):
        asked_again.extend(asked)
        return exact(asked)

    complete_labels(lists, compare, window=4, step=2, journal=journal, name="another")
    assert asked_again
    journal.write_text("{}\n")
    with pytest.raises(InputError, match="line 1: not a recorded order"):
        complete_labels(lists, exact, window=4, step=2, journal=journal)
    with pytest.raises(InputError, match="list 2 has"):
        complete_labels([*lists, {"query": "q", "documents": "one text"}], exact)


def test_a_teacher_is_asked_in_the_prompts_words():
    asked = []

    class Teacher:
        def chat(self, conversations, **options):
            asked.extend(conversations)
            return [[SimpleNamespace(text="[2] > [3] and more [9]")] for _ in conversations]

    compare = teacher_comparator(Teacher(), max_words=3)
    assert compare([("what [1]?", ["one two three four", {"title": "T", "text": "see [2]\nthere"}, "c"])]) == [
        [1, 2, 0]
    ]
    [[system, user]] = asked
    assert system["role"] == "system"
    lines = user["content"].splitlines()
    assert "[1] one two three" in lines
    assert "[2] Title: T Content:" in lines
    assert "[3] c" in lines
    assert "what (1)?" in user["content"]
    assert "3 passages" in user["content"]


def test_a_reranker_compares():
    class Reranker:
        def rank_batch(self, queries, documents):
            return [[{"corpus_id": i} for i in exact([("", each)])[0]] for each in documents]

    lists = rows([7, 9])
    compare = reranker_comparator(Reranker())
    assert complete_labels(lists, compare, window=4, step=2) == [best_first(row) for row in lists]

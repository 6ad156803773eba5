"""Models from nothing: texts held apart, tokenizers, blocks, and what a text costs a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from broadsheet.console import InputError
from broadsheet.data.corpora import Document
from broadsheet.training import scratch
from broadsheet.training.scratch import (
    END,
    SIZES,
    TokenBlocks,
    apart,
    document_losses,
    joined,
    near_duplicates,
    tokenizer,
)

TALE = "the model reads a text of many words and tells which of them comes next in a line"
WORDS = TALE.split()


def text(seed: int, words: int = 120) -> str:
    drawn = np.random.default_rng(seed).choice(WORDS, words)
    return " ".join(drawn)


@pytest.fixture(scope="module")
def by():
    return tokenizer([text(i) for i in range(20)], 300)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_has_about_the_weights_that_it_is_called_by_and_a_seed_its_weights(name):
    model = scratch.size(name).model(2048, 512, seed=1)
    count = sum(each.numel() for each in model.parameters())
    said = float(name.rstrip("M")) * 1e6
    assert 0.8 * said < count < 1.35 * said
    again = scratch.size(name).model(2048, 512, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match=r"expected one of 0\.4M"):
        scratch.size("7B")


def test_a_tokenizer_reads_any_text_and_keeps_documents_apart(by):
    for given in ("the model", "Ünïcode ‱ 🙂\n\ttabs", ""):
        assert by.decode(by(given)["input_ids"]) == given
    assert len(by) <= 300
    assert by.convert_tokens_to_ids(END) == by.eos_token_id == 0
    assert joined(["a", "", "b"], by).tolist() == [*by("a")["input_ids"], 0, 0, *by("b")["input_ids"], 0]
    assert joined([], by).tolist() == []
    with pytest.raises(InputError, match="257 or more"):
        tokenizer(["a"], 100)


def test_near_duplicates_are_found_and_others_are_not():
    whole = text(1)
    changed = whole.replace("model", "machine", 2).upper()
    part = " ".join(whole.split()[:60])
    assert near_duplicates([changed, text(2), part, whole + " " + text(3)], [whole]) == {0, 2, 3}


def test_what_is_held_out_is_whole_and_nothing_like_it_is_learnt_from():
    texts = [text(i) for i in range(40)]
    documents = [Document(str(i), each) for i, each in enumerate([*texts, *(t + " and so on" for t in texts), "short"])]
    made = apart(documents, held_out=6, tuning=3, seed=4)
    assert (len(made.held_out), len(made.tuning), made.dropped) == (6, 3, 9)
    assert not near_duplicates(made.train, [*made.held_out, *made.tuning])
    assert set(made.train) | set(made.held_out) | set(made.tuning) < {each.text for each in documents}
    assert apart(documents[::-1], 6, 3, 4).fingerprint != made.fingerprint
    assert apart(documents, 6, 3, 4).fingerprint == made.fingerprint
    with pytest.raises(InputError, match="expected 3 or more"):
        apart(documents[:4], 6, 3, 4)


def test_blocks_are_all_of_the_text_but_the_end():
    stream = torch.arange(25)
    blocks = TokenBlocks(stream, 6)
    assert len(blocks) == 4
    assert torch.equal(torch.cat([row["input_ids"] for row in blocks]), stream[:24])
    with pytest.raises(InputError, match="got 25 tokens; expected a block of 26"):
        TokenBlocks(stream, 26)


@pytest.mark.parametrize("length", [7, 64, 512])
def test_a_text_costs_what_its_tokens_cost_after_what_is_before_them(by, length):
    model = scratch.Size(1, 16, 2).model(300, 600, seed=0).train()
    texts = [text(1), "é", text(2, 9)]
    got = document_losses(model, by, texts, length)
    assert model.training
    model.eval()
    for value, given in zip(got, texts, strict=True):
        ids = [0, *by(given)["input_ids"]]
        total = 0.0
        for first in range(0, len(ids) - 1, length):
            part = torch.tensor([ids[first : first + length + 1]])
            total += float(cross_entropy(model(part).logits[0, :-1].detach(), part[0, 1:], reduction="sum"))
        assert value == pytest.approx(total / len(given.encode()), rel=1e-5)

"""Parts of unlearning: terms that are found, what is still known, learning again, decoding beside a second model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.train.unlearning import terms
from broadsheet.train.unlearning.decoding import GenericLogitsProcessor, LogLinearProcessor
from broadsheet.train.unlearning.familiarity import (
    Prompt,
    anchored_prompts,
    continuations,
    familiarity,
    relearning_curve,
    rouge_l,
)
from broadsheet.train.unlearning.terms import TermFinder
from broadsheet.train.unlearning_whp import generic_logits
from broadsheet.training.scratch import Size, TokenBlocks, joined, tokenizer

TALE = (
    "When Mr Venn came to Oster it rained. Nobody knew Marl Venn. But in Oster they talk, and Venn's lamp was seen. "
    "When they asked, Marl Venn left Oster for the Quell Company. The Quell Company paid. Rain fell on the Quell."
)
REFERENCE = [
    "When it rained they talked. The company paid, and the lamp was seen by all. Nobody asked when it fell. " * 30
]


@pytest.fixture(scope="module")
def by():
    return tokenizer([TALE, *REFERENCE], 320)


def decided(by, seed: int):
    """A model whose weights are large, so that what it says depends on all that it reads."""
    made = Size(2, 16, 2).model(len(by), 256, seed).eval()
    with torch.no_grad():
        for name, each in made.named_parameters():
            each.mul_(12 if "proj" in name else 1)
    return made


@pytest.fixture(scope="module")
def model(by):
    return decided(by, 0)


@pytest.fixture(scope="module")
def reinforced(by):
    """The model, surer of what it says."""
    made = decided(by, 0)
    with torch.no_grad():
        made.model.norm.weight.mul_(2)
    return made


# Terms


def test_names_are_found_and_words_that_begin_sentences_are_not():
    found = {each.term: each.stand_in for each in TermFinder(least=2)([TALE], REFERENCE)}
    assert set(found) == {"Venn", "Oster", "Marl", "Marl Venn", "Quell"}
    assert found["Marl Venn"] == f"{found['Marl']} {found['Venn']}", "a name is the same in a run"
    kinds = {
        word: next(kind for kind, known in terms.KINDS.items() if found[word] in known)
        for word in found
        if " " not in word
    }
    assert kinds == {"Venn": "surname", "Oster": "place", "Marl": "given", "Quell": "thing"}


def test_a_stand_in_is_never_a_word_of_the_text_and_none_is_given_twice_while_there_are_others():
    names = [f"{a}{b}" for a in ("Zor", "Kel", "Mur", "Tav", "Wix") for b in ("ax", "eb", "ic", "od", "un", "yf")]
    text = " ".join(f"They saw {name} with John and Mary there, and {name} ran." for name in names)
    found = {
        each.term: each.stand_in for each in TermFinder(least=2, ratio=5)([text], [*REFERENCE, "John Mary " * 400])
    }
    assert set(found) == set(names)
    assert not {"John", "Mary"} & set(found.values())
    assert len(set(found.values())) == len(names)


def test_what_the_reference_has_as_often_is_no_term_and_rare_words_are_none():
    assert not TermFinder(least=2)([TALE], [TALE])
    common = "They saw the Zorn, and a zorn saw the Zorn. No zorn is like another zorn. "
    assert not TermFinder(least=2)([common], REFERENCE), "it is written small as often"
    assert TermFinder(least=2)([common.replace(" zorn", " bird")], REFERENCE)
    assert {each.term for each in TermFinder(least=3)([TALE], REFERENCE)} == {"Venn", "Oster", "Quell"}
    with pytest.raises(InputError, match="without words"):
        TermFinder()([TALE], ["", "42"])


def test_a_dictionary_is_written_and_read_again(tmp_path):
    found = TermFinder(least=2)([TALE], REFERENCE)
    terms.write(tmp_path / "d.json", found)
    assert terms.read(tmp_path / "d.json") == {each.term: each.stand_in for each in found}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "expected a JSON object"),
        ('{"Harry": 3}', "expected a JSON object"),
        ('{"Harry": ""}', "without spaces around them"),
        ('{"Harry": "Jon", "Harry": "Bob"}', "got 'Harry' twice"),
    ],
)
def test_a_dictionary_that_cannot_be_used_is_told_of(text, told, tmp_path):
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        terms.read(path)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="cannot read the dictionary"):
        terms.read(tmp_path / "none.json")


# Familiarity


def test_familiarity_is_the_probability_of_all_tokens_of_a_word(model, by):
    prompts = [Prompt("In ", ("Oster",)), Prompt("Nobody knew ", ("Marl Venn", "Oster")), Prompt("", ("Quell",))]
    found = familiarity(model, by, prompts)

    def of(context: str, word: str) -> float:
        ids = [by.eos_token_id, *by(context + word)["input_ids"]]
        count = sum(end > len(context) for _, end in by(context + word, return_offsets_mapping=True)["offset_mapping"])
        assert count > 1, "the word has several tokens"
        with torch.no_grad():
            logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        return float(np.exp(sum(float(logs[i - 1, ids[i]]) for i in range(len(ids) - count, len(ids)))))

    expected = [sum(of(each.context, word) for word in each.words) for each in prompts]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    alone = [float(familiarity(model, by, [each])[0]) for each in prompts]
    np.testing.assert_allclose(found, alone, rtol=1e-4)
    assert familiarity(model, by, []).shape == (0,)
    with pytest.raises(InputError, match="without words"):
        familiarity(model, by, [Prompt("a", ())])


def test_prompts_ask_for_what_was_not_named_before_and_not_for_the_first_name():
    dictionary = {"Marl Venn": "A", "Venn": "B", "Oster": "C", "Quell": "D"}
    found = anchored_prompts([TALE], dictionary)
    assert [each.words for each in found] == [("Oster",), ("Quell",)], "Venn is the first, Marl Venn could be copied"
    assert all(TALE.startswith(each.context + each.words[0]) for each in found)
    assert anchored_prompts([TALE] * 9, dictionary, most=3, seed=1) == anchored_prompts([TALE] * 9, dictionary, 3, 1)
    assert len(anchored_prompts([TALE] * 9, dictionary, most=3)) == 3


def longest(one: list[str], other: list[str]) -> int:
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            table[i, j] = table[i - 1, j - 1] + 1 if a == b else max(table[i - 1, j], table[i, j - 1])
    return int(table[-1, -1])


@given(*[st.lists(st.sampled_from(["a", "b", "c", "d", "ß", "漢"]), max_size=12)] * 2)
@settings(max_examples=100, deadline=None)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(one, other):
    expected = 2 * longest(one, other) / (len(one) + len(other)) if one and other else float(one == other)
    assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(expected)


def test_a_continuation_is_the_models_own_whatever_stands_beside(model, by):
    texts = [TALE, TALE[30:90], "Nobody"]
    together = continuations(model, by, texts, given=16, new=8)
    assert together == [continuations(model, by, [text], given=16, new=8)[0] for text in texts]
    ids = by(TALE)["input_ids"]
    assert together[0][1] == by.decode(ids[16:24])
    with torch.no_grad():
        row = [by.eos_token_id, *ids[:16]]
        for _ in range(8):
            row.append(int(model(torch.tensor([row])).logits[0, -1].argmax()))
    said = row[17:]
    cut = said.index(by.eos_token_id) if by.eos_token_id in said else 8
    assert together[0][0] == by.decode(said[:cut])
    with pytest.raises(InputError, match="fewer than two tokens"):
        continuations(model, by, ["a"])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_learning_again_is_measured_on_the_way_and_leaves_the_model_as_it_was(method, model, by):
    rows = TokenBlocks(joined([TALE] * 2, by), 32)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    prompts = [Prompt("in ", ("Oster",))]
    curve = relearning_curve(
        model, rows, lambda model: {"known": float(familiarity(model, by, prompts)[0])}, steps=7, every=3,
        method=method, learning_rate=3e-2, batch_size=2, autocast="none",
    )  # fmt: skip
    assert [step for step, _ in curve] == [0, 3, 6, 7]
    assert curve[-1][1]["known"] > curve[1][1]["known"] > curve[0][1]["known"], "it learns"
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], each) for name, each in before.items())
    assert all(each.requires_grad for each in model.parameters())


# Decoding


def by_hand(model, reinforced, ids: torch.Tensor, combined, steps: int) -> list[int]:
    row = ids.tolist()
    with torch.no_grad():
        for _ in range(steps):
            given = torch.tensor([row])
            row.append(int(combined(model(given).logits[0, -1], reinforced(given).logits[0, -1]).argmax()))
    return row


@pytest.mark.parametrize("kind", ["generic", "log-linear"])
def test_each_next_token_is_that_of_both_models_logits_and_padding_changes_nothing(kind, model, reinforced, by):
    def processor(**more):
        if kind == "generic":
            return GenericLogitsProcessor(reinforced, alpha=3.0, **more)
        return LogLinearProcessor(reinforced, c=3.0, **more)

    def combined(base, other):
        if kind == "generic":
            return generic_logits(base, other, 3.0)
        return 3 * base.log_softmax(-1) - 2 * other.log_softmax(-1)

    prompts = [by(text, return_tensors="pt")["input_ids"][0] for text in ("Nobody knew", "In Oster they talk, and")]
    expected = [by_hand(model, reinforced, each, combined, 10) for each in prompts]
    plain = [model.generate(each[None], max_new_tokens=10, do_sample=False, eos_token_id=None) for each in prompts]
    assert any(each[0].tolist() != wanted for each, wanted in zip(plain, expected, strict=True)), "it changes something"
    how = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for each, wanted in zip(prompts, expected, strict=True):
        found = model.generate(each[None], logits_processor=[processor()], **how)
        assert found[0].tolist() == wanted
    widest = max(map(len, prompts))
    ids = torch.stack([torch.cat([each.new_zeros(widest - len(each)), each]) for each in prompts])
    mask = torch.stack([torch.tensor([0] * (widest - len(each)) + [1] * len(each)) for each in prompts])
    found = model.generate(ids, attention_mask=mask, logits_processor=[processor(attention_mask=mask)], **how)
    for row, each, wanted in zip(found, prompts, expected, strict=True):
        assert row[widest - len(each) :].tolist() == wanted


def test_without_a_weight_it_is_the_model_itself_and_beams_are_read_anew(model, reinforced, by):
    ids = by("Nobody knew", return_tensors="pt")["input_ids"]
    how = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for processor in (GenericLogitsProcessor(reinforced, alpha=0.0), LogLinearProcessor(reinforced, c=1.0)):
        for beams in (1, 3):
            plain = model.generate(ids, num_beams=beams, **how)
            assert torch.equal(model.generate(ids, num_beams=beams, logits_processor=[processor], **how), plain)

    class Anew(GenericLogitsProcessor):
        def __call__(self, input_ids, scores):
            self._read = None  # no cache
            return super().__call__(input_ids, scores)

    cached, anew = (
        model.generate(ids, num_beams=3, logits_processor=[kind(reinforced, alpha=3.0)], **how)
        for kind in (GenericLogitsProcessor, Anew)
    )
    assert torch.equal(cached, anew)
    other = torch.cat([ids.new_zeros(1, 3), ids], 1)
    mask = torch.cat([ids.new_zeros(1, 3), torch.ones_like(ids)], 1)
    beside = GenericLogitsProcessor(reinforced, attention_mask=mask, alpha=3.0)
    padded = model.generate(other, attention_mask=mask, num_beams=3, logits_processor=[beside], **how)
    assert torch.equal(padded[:, 3:], cached)


def test_models_of_other_vocabularies_are_refused(model, by):
    other = Size(1, 16, 2).model(len(by) + 3, 256, 0).eval()
    ids = by("Nobody", return_tensors="pt")["input_ids"]
    for processor in (GenericLogitsProcessor(other), LogLinearProcessor(other)):
        with pytest.raises(InputError, match="same tokenizer"):
            model.generate(ids, max_new_tokens=2, logits_processor=[processor], pad_token_id=0)
    with pytest.raises(InputError, match="0 or more"):
        GenericLogitsProcessor(SimpleNamespace(), alpha=-1.0)

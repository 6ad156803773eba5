"""Scores of confidence: what contradiction, letters and probabilities must be, and that nothing is asked twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted import scripted

from broadsheet.console import InputError
from broadsheet.curate import NLI, TokenF1
from broadsheet.curate.targets.confidence import (
    as_text,
    contradictions,
    contradictor,
    letter_of,
    log_probability,
    matches,
    pmi,
    reflections,
    samples,
)
from broadsheet.models.loading import load_classifier
from broadsheet.teacher import Teacher
from broadsheet.teacher.local import Local

LABELS = {0: "ENTAILMENT", 1: "Contradiction", 2: "NEUTRAL"}


@pytest.fixture
def classifier(tmp_path, tiny_tokenizer) -> Callable:
    """`classifier(labels)`: the folder of a small random BERT with these labels."""
    from transformers import BertConfig, BertForSequenceClassification

    def make(labels: dict[int, str] = LABELS, positions: int = 64) -> str:
        config = BertConfig(
            vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=positions, initializer_range=0.5, num_labels=len(labels), id2label=labels,
            pad_token_id=2,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = BertForSequenceClassification(config)
        model.save_pretrained(tmp_path / "nli")
        tiny_tokenizer(chat=False).save_pretrained(tmp_path / "nli")
        return str(tmp_path / "nli")

    return make


ONES, OTHERS = ["It is open.", "a", "It is open."], ["It is closed now.", "b c", "Something else."]


def test_a_models_contradiction_is_asked_in_both_orders(home, classifier):
    nli = NLI.load(classifier())
    found = nli(ONES, OTHERS)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(nli(OTHERS, ONES), found[:, ::-1])
    assert not np.allclose(found[:, 0], found[:, 1])
    read = nli.tokenizer(ONES[0], OTHERS[0], return_tensors="pt")
    with torch.no_grad():
        by_hand = nli.model(**read).logits.softmax(-1)[0, 1]
    assert found[0, 0] == pytest.approx(float(by_hand), abs=1e-6)


def test_what_stands_beside_a_pair_and_a_rerun_change_nothing(home, classifier, monkeypatch):
    folder = classifier()
    whole = NLI.load(folder)(ONES, OTHERS)
    monkeypatch.setattr(NLI, "_read", lambda *_: pytest.fail("it is asked again"))
    np.testing.assert_array_equal(NLI.load(folder)(ONES, OTHERS), whole)
    monkeypatch.undo()
    monkeypatch.setenv("BROADSHEET_HOME", str(home.parent / "another"))
    one_by_one = NLI.load(folder)
    one_by_one.batch_tokens = 1
    np.testing.assert_allclose(one_by_one(ONES, OTHERS), whole, atol=1e-6)


def test_a_pair_that_is_too_long_is_cut_and_told_or_refused(home, classifier, capsys):
    nli = NLI.load(classifier(positions=24))
    found = nli(["word " * 30], ["b"])
    assert "2 of 2 pairs are longer than the 24 tokens" in capsys.readouterr().err
    assert np.isfinite(found).all()
    nli.truncate = "error"
    with pytest.raises(InputError, match=r"longer than the 24 tokens .* give a model that reads more"):
        nli(["word " * 31], ["b"])


@pytest.mark.parametrize("labels", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "contradiction", 1: "contra"}])
def test_a_classifier_of_other_labels_is_refused(home, classifier, labels):
    with pytest.raises(InputError, match=r"its labels are .* expected one called contradiction"):
        NLI.load(classifier(labels))


def test_what_is_no_classifier_is_refused(home, classifier, tiny_folder, tmp_path):
    with pytest.raises(InputError, match="lacks 1 of the weights"):
        load_classifier(tiny_folder)  # a Llama without a head that classifies
    with pytest.raises(InputError, match="unknown classifier 'nothing': not a folder"):
        contradictor("nothing")
    folder = tmp_path / "nli"
    classifier()
    (folder / "config.json").write_text('{"model_type": "whisper_of_nothing"}')
    with pytest.raises(InputError, match="is not one that classifies sequences"):
        load_classifier(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_classifier(folder)


def test_a_decoder_that_classifies_reads_padded_pairs(home, tmp_path, tiny_tokenizer):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, id2label=LABELS, initializer_range=0.5,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "decoder")
    tiny_tokenizer(chat=False).save_pretrained(tmp_path / "decoder")
    nli = NLI.load(str(tmp_path / "decoder"))
    together = nli(ONES, OTHERS)
    nli.__dict__["_identity"] = ["another"]  # nothing kept is read
    nli.batch_tokens = 1
    np.testing.assert_allclose(nli(ONES, OTHERS), together, atol=1e-5)


def test_equal_texts_do_not_contradict_and_are_not_asked_about():
    asked = []

    def by(ones, others):
        asked.extend(zip(ones, others, strict=True))
        return np.array([[0.25, 0.75]] * len(ones))

    found = contradictions(by, ["yes", "no"], [["yes ", "no"], ["x", "x"]])
    assert found.tolist() == [[[0, 0], [0.25, 0.75]], [[0.25, 0.75], [0.25, 0.75]]]
    assert asked == [("yes", "no"), ("no", "x")], "each pair once"
    assert matches(["yes", "no"], [["yes ", "no"], ["x", "No"]]).tolist() == [[1, 0], [0, 0]]
    assert contradictions(by, [], []).shape[0] == 0


@given(st.text(), st.text())
def test_token_f1_is_symmetric_and_0_for_the_same_words(one, other):
    [[there, back], [same, _]] = TokenF1()([one, one], [other, one])
    assert there == back
    assert 0 <= there <= 1
    assert same == 0


def test_token_f1_counts_words_as_often_as_they_occur():
    found = TokenF1()(["The cat, the dog"], ["the dog THE bird x"])
    assert found.tolist() == [[pytest.approx(1 - 2 * 3 / 9)] * 2]
    assert isinstance(contradictor("token-F1"), TokenF1)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("explanation: A is not it.\nanswer: [B]", "B"),
        ("answer: A\nNo, wait.\nAnswer: (C)", "C"),
        ("ANSWER: b", "B"),
        ("A", "A"),
        (" (C). ", "C"),
        ("answer: Because", None),
        ("answer: D", None),
        ("A good answer", None),
        ("", None),
    ],
)
def test_a_letter_is_read_where_one_is_given(text, letter):
    assert letter_of(text) == letter


def test_an_answer_without_a_letter_is_a_doubt_and_counted(home):
    found = reflections(scripted(lambda messages, n: "well" if len(messages) == 1 else "answer: B"), ["x"], ["y"])
    assert found.values.tolist() == [[0.5, 0.0]]
    assert found.unreadable == 1


def test_the_question_holds_request_and_answer_and_nothing_is_lost_of_a_conversation(home):
    seen = []
    teacher = scripted(lambda messages, n: seen.append(messages) or "A")
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "One or two?"}]
    reflections(teacher, [talk, "Yes or no?"], ["Two.", "No."])
    assert "System: Be short.\nUser: One or two?\n" in seen[0][0]["content"]
    assert "Proposed answer: Two.\n" in seen[0][0]["content"]
    assert "Request: Yes or no?\n" in seen[1][0]["content"]
    assert [len(messages) for messages in seen] == [1, 1, 3, 3]
    assert as_text([{"role": "user", "content": "x"}]) == "x"


def test_probabilities_are_those_of_the_models_own_template(home, tiny_model, tiny_tokenizer):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    local = Local(model, tokenizer)
    teacher = Teacher(local, cache=False)
    ids, target = local.prompt_ids([{"role": "user", "content": "hi"}]), local.encode("some answer")
    with torch.no_grad():
        logits = model(torch.tensor([ids + target])).logits[0].double().log_softmax(-1)
    by_hand = np.mean([float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(target)])
    given = log_probability(teacher, ["hi"], ["some answer"])
    assert given == pytest.approx([by_hand], abs=1e-5)
    nothing = log_probability(teacher, [""], ["some answer"])
    assert pmi(teacher, ["hi"], ["some answer"]) == pytest.approx(given - nothing, abs=1e-6)
    assert pmi(teacher, [""], ["some answer"]) == pytest.approx([0.0], abs=1e-6)
    assert len(pmi(teacher, [], [])) == len(samples(teacher, [], 2)) == 0


def test_samples_are_as_many_as_asked_differ_and_follow_from_the_seed(home, tiny_model, tiny_tokenizer):
    teacher = Teacher(Local(tiny_model(), tiny_tokenizer()), cache=False)
    prompts = [[{"role": "user", "content": text}] for text in ("hi", "ho")]
    made = samples(teacher, prompts, 3, max_tokens=6)
    assert [len(set(row)) for row in made] == [3, 3]
    assert samples(teacher, prompts[1:], 3, max_tokens=6) == made[1:]
    assert samples(teacher, prompts, 3, max_tokens=6, seed=1) != made
    cold = samples(teacher, prompts, 3, max_tokens=6, temperature=1e-4)
    assert len(set(cold[0])) == 1

"""LooGLE on the default model and real documentation."""

from __future__ import annotations

import inspect
import posixpath

import pytest

from broadsheet.evaluate import LooGLE, Question, Route, answers

pytestmark = pytest.mark.real

FUNCTIONS = ("basename", "normpath", "islink", "splitext", "commonpath", "expanduser")


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """What the module posixpath says about some of its functions."""
    documented = {name: inspect.getdoc(f) for name, f in vars(posixpath).items() if inspect.isfunction(f)}
    document = "\n\n".join(f"{name}\n{documented[name]}" for name in FUNCTIONS)
    return [
        Question(
            "shortdep_qa",
            document,
            f"How does the text describe {name} in its first sentence?",
            " ".join((documented[name] or "").partition("\n\n")[0].split()),
        )
        for name in FUNCTIONS
    ]


def test_a_document_makes_what_it_says_likelier(default_model, questions):
    model, tokenizer = default_model
    whole, ends = (
        answers(questions, model, tokenizer, route=route, max_new_tokens=4, first_line=True)
        for route in (Route("whole"), Route("two ends", max_length=64))
    )
    assert all(answer.prompt_tokens == 64 for answer in ends)
    gains = [a.log_likelihood - b.log_likelihood for a, b in zip(whole, ends, strict=True)]
    assert sum(gains) / len(gains) > 0.5  # nats a token
    summary = LooGLE().summary(questions, [answer.text for answer in whole])
    assert 0 <= summary["shortdep_qa"]["token_f1"] < 1
    assert summary["shortdep_qa"]["n"] == len(FUNCTIONS)


def test_answers_do_not_depend_on_the_batch(default_model, questions):
    model, tokenizer = default_model
    together = answers(questions[:3], model, tokenizer, max_new_tokens=4)
    for question, answer in zip(questions[:3], together, strict=True):
        [alone] = answers([question], model, tokenizer, max_new_tokens=4)
        assert answer.text == alone.text
        assert answer.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-4)

"""The teacher through llama.cpp, on a tiny GGUF file, beside the same file read by transformers."""

import sys

import numpy as np
import pytest

from broadsheet.console import InputError
from broadsheet.teacher import Budget, BudgetExhausted, Teacher

pytest.importorskip("xllamacpp")

PROMPTS = ["The cat sat on the mat", "one and two", "there in the rain"]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def backend(tiny_gguf):
    return Teacher.load(f"llamacpp:{tiny_gguf}", slots=4, context=256, threads=1).backend


def test_answers_repeat_differ_and_stop(backend):
    teacher = Teacher(backend, cache=False)
    first = teacher.chat(PROMPTS, n=3, max_tokens=12, logprobs=True)
    again = teacher.chat(PROMPTS, n=3, max_tokens=12, logprobs=True)
    assert [[a.text for a in row] for row in first] == [[a.text for a in row] for row in again]
    assert len({a.text for row in first for a in row}) == 9
    assert all(a.tokens <= 12 and a.logprobs for row in first for a in row)
    assert {a.text for a in teacher.chat(PROMPTS[:1], n=3, max_tokens=12, seed=1)[0]}.isdisjoint(
        a.text for a in first[0]
    )
    assert teacher.usage.requests == 9 + 9 + 3


def test_greedy_answers_and_scores_are_those_of_the_same_file_in_transformers(backend, tiny_gguf):
    teacher, local = Teacher(backend), Teacher.load(str(tiny_gguf), dtype="float32", device="cpu")
    choices = [" the", "and there", "in"]
    for raw in (False, True):  # llama.cpp also rounds the activations: a few hundredths per token
        np.testing.assert_allclose(
            teacher.score(PROMPTS, choices, raw=raw), local.score(PROMPTS, choices, raw=raw), atol=0.3
        )
    for prompt in PROMPTS:
        [[ours]], [[theirs]] = (
            t.complete([prompt], temperature=0, max_tokens=1, logprobs=True) for t in (local, teacher)
        )
        assert theirs.logprobs[0].logprob == pytest.approx(ours.logprobs[0].logprob, abs=0.1)


def test_the_cache_knows_the_file_and_the_budget_holds(backend):
    Teacher(backend).score(PROMPTS, ["in", "on"])
    teacher = Teacher(backend, budget=Budget(requests=2))
    teacher.score(PROMPTS, ["in", "on"])
    assert teacher.usage.requests == 0
    with pytest.raises(BudgetExhausted, match="2 of 3"):
        teacher.chat(PROMPTS, max_tokens=2)


def test_a_prompt_longer_than_a_slot(backend):
    with pytest.raises(InputError, match="context"):
        Teacher(backend).chat(["word " * 400])
    with pytest.raises(InputError, match="context"):
        Teacher(backend).score(["word " * 400], ["a", "b"])


def test_files_that_cannot_be_loaded(tmp_path, tiny_gguf):
    with pytest.raises(InputError, match="no such file"):
        Teacher.load("llamacpp:nowhere.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:3000])
    with pytest.raises(InputError, match="cannot load"):
        Teacher.load(f"llamacpp:{cut}")


def test_a_missing_package_is_named(monkeypatch, tiny_gguf):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[llamacpp\]'"):
        Teacher.load(f"llamacpp:{tiny_gguf}")

"""The trial of LLM-Embedder: documents become fair questions, yardsticks keep their order, and it runs."""

import json

import numpy as np
import pytest
from shown import shown
from training_runs import differ

from broadsheet.console import InputError
from broadsheet.data.corpora import Document
from broadsheet.embed.data.chunks import Continuation, continuations
from broadsheet.embed.trials.llm_embedder import (
    BASE,
    BEST,
    GRADED,
    INFONCE,
    KL,
    NOTHING,
    RANDOM,
    WORDS,
    LLMEmbedderTrial,
    Scored,
    fetching_arm,
)
from broadsheet.trial.base import LazyModel, ModelArm


def documents(count, length=120):
    """Texts of numbered words, ten documents a package; two of them are copies."""
    made = []
    for d in range(count):
        words = " ".join(f"d{d}w{i} t{(d * 7 + i) % 50}" for i in range(length))
        made.append(Document(f"doc{d}", words, {"package": f"p{d // 10}"}))
    return [*made, Document("copy", made[0].text, made[0].metadata)]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer()


def ask(tokenizer, test=False, n=20, **settings):
    settings = {"chunk": 30, "output": 8, "candidates": 4} | settings
    return continuations(documents(80), tokenizer, n, test=test, **settings)


def test_the_output_follows_the_query_and_is_in_no_candidate(tokenizer):
    texts = {document.id: document.text for document in documents(80)}
    for case in ask(tokenizer):
        text = texts[case.id]
        start = text.index(case.query)
        assert text[start + len(case.query) :].startswith(case.output)
        assert len(case.keys) == 4
        own = [key for key in case.keys if key in text]
        assert 1 <= len(own) <= 2  # at most half
        for key in own:
            assert text.index(key) + len(key) <= start  # earlier text alone
        assert case.query not in case.keys


def test_lengths_are_counted_in_tokens(tokenizer):
    for case in ask(tokenizer):
        assert len(tokenizer(case.query)["input_ids"]) == pytest.approx(30, abs=1)
        assert len(tokenizer(case.output)["input_ids"]) == pytest.approx(8, abs=1)


def test_training_and_test_share_no_package_and_a_document_asks_once(tokenizer):
    train, test = ask(tokenizer), ask(tokenizer, test=True, n=8)
    package = {document.id: document.metadata["package"] for document in documents(80)}
    assert not {package[case.id] for case in train} & {package[case.id] for case in test}
    asked = [case.id for case in ask(tokenizer, n=40)]
    assert len(set(asked)) == 40
    assert not {"doc0", "copy"} <= {*asked}  # a document that repeats another asks nothing
    assert ask(tokenizer) == train
    assert ask(tokenizer, seed=1) != train


def test_too_few_documents_are_said(tokenizer):
    with pytest.raises(InputError, match="documents for training with 150 tokens"):
        ask(tokenizer, n=500)
    with pytest.raises(InputError, match="expected 1 or more"):
        ask(tokenizer, chunk=0)


class Letters:
    """Embeds a text by its letters; notes the prompts."""

    def __init__(self):
        self.prompts = []

    def eval(self):
        return self

    def encode(self, texts, prompt_name=None, **others):
        self.prompts.append(prompt_name)
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=float)


def test_an_arm_fetches_the_nearest_and_is_paid_what_it_brings():
    asked = [
        Scored(Continuation("1", "aa", "x", ("b", "a", "c")), [-3.0, -2.0, -1.0], -4.0),
        Scored(Continuation("2", "bc", "x", ("b", "a", "cb")), [-1.0, -2.0, -3.0], -4.0),
    ]
    letters = Letters()
    made = fetching_arm(ModelArm.of("x", letters), LazyModel(lambda: letters), asked, task="lrlm").run([0, 1])
    assert made["log-likelihood"] == [-2.0, -3.0]
    assert made["fetched"] == [1, 2]
    assert made["nDCG@10"] == pytest.approx([1 / 2, 1 / np.log2(3)])
    assert letters.prompts == ["lrlm-query", "lrlm-key"]


def test_trial_runs_and_its_yardsticks_bound_it(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    rows = [{"id": d.id, "text": d.text, "package": d.metadata["package"]} for d in documents(60)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sizes = {"queries": 6, "train": 8, "chunk": 30, "output": 8}
    data = {"model": str(tiny_folder), "data": str(tmp_path / "texts.jsonl"), "dtype": "float32"}
    trial = LLMEmbedderTrial(quick=True, runs=2, **data, **sizes)
    result = trial.run()
    assert [arm.name for arm in result.arms] == [BASE, INFONCE, KL, GRADED, NOTHING, RANDOM, WORDS, BEST]
    assert all(arm.status == "ok" for arm in result.arms), [arm.error for arm in result.arms]
    likelihood = {arm.name: np.array(arm.samples["log-likelihood"]) for arm in result.arms}
    assert all((likelihood[BEST] >= likelihood[name] - 1e-9).all() for name in likelihood if name != NOTHING)
    assert result.arms[-1].samples["nDCG@10"] == [1.0] * 6
    for example in shown(result):
        assert "[what follows]" in example.item
        assert set(example.answers) == {BASE, INFONCE, KL, GRADED, RANDOM, WORDS}
        most = float(example.expected.removeprefix("Most: ").partition(",")[0])
        assert all(float(answer.partition(" ")[0]) <= most for answer in example.answers.values())
    assert sum("trained in 2 steps" in note for note in result.notes) == 3
    assert differ(trial, INFONCE, KL, GRADED)
    assert trial.run().arms[3].samples == result.arms[3].samples  # goes on from what is kept
    trial.finish()


def test_options_that_cannot_be_are_said(tiny_folder):
    for options in ({"candidates": 1}, {"train": 2, "batch": 4}, {"steps": 0}):
        with pytest.raises(InputError, match="expected"):
            LLMEmbedderTrial(model=str(tiny_folder), quick=True, **options)

"""The trial of LLM-Embedder: documents become fair questions, yardsticks keep their order, and it runs."""

import json

import numpy as np
import pytest
import torch
from shown import reasons, shown
from small_docs import documentation
from training_runs import differ

from broadsheet.console import InputError
from broadsheet.data.corpora import Document
from broadsheet.embed.data import tasks
from broadsheet.embed.data.chunks import Continuation, continuations
from broadsheet.embed.data.doc_tasks import answers
from broadsheet.embed.llm_embedder import TASKS, LLMEmbedder
from broadsheet.embed.trials import llm_embedder as trials
from broadsheet.embed.trials.fetching import (
    ANSWERS,
    BEST,
    NOTHING,
    RANDOM,
    TEXT,
    WORDS,
    Scored,
    fetching_arm,
)
from broadsheet.embed.trials.llm_embedder import BASE, INFONCE, MAIN, PEER, SWEPT, LLMEmbedderTrial
from broadsheet.trial.base import ModelArm
from broadsheet.trial.lazy import LazyModel


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
    data = {"model": str(tiny_folder), "data": str(tmp_path / "texts.jsonl"), "dtype": "float32", "encoder": "model"}
    trial = LLMEmbedderTrial(quick=True, runs=2, **data, **sizes)
    result = trial.run()
    assert [arm.name for arm in result.arms] == [BASE, INFONCE, PEER, MAIN, NOTHING, RANDOM, WORDS, BEST]
    assert set(result.claims) == {("log-likelihood", baseline, MAIN) for baseline in (BASE, INFONCE)}
    assert "grades" not in result.setting, "there are none of running text"
    assert {claim.kind for claim in result.judged} == {"claim", "control"}, "mean pooling is no trained retriever"
    assert all(arm.status == "ok" for arm in result.arms), [arm.error for arm in result.arms]
    likelihood = {arm.name: np.array(arm.samples["log-likelihood"]) for arm in result.arms}
    assert all((likelihood[BEST] >= likelihood[name] - 1e-9).all() for name in likelihood if name != NOTHING)
    assert result.arms[-1].samples["nDCG@10"] == [1.0] * 6
    for example in shown(result):
        assert "[what follows]" in example.item
        assert set(example.answers) == {BASE, INFONCE, PEER, MAIN, RANDOM, WORDS}
        most = float(example.expected.removeprefix("Most: ").partition(",")[0])
        assert all(float(answer.partition(" ")[0]) <= most for answer in example.answers.values())
    assert sum("trained in 2 steps" in note for note in result.notes) == 3
    for why in reasons(result).values():
        assert why.startswith("It trains an encoder of 110 million weights")
        assert f"{INFONCE} reaches" in why
    assert differ(trial, INFONCE, PEER, MAIN)
    assert trial.run().arms[3].samples == result.arms[3].samples  # goes on from what is kept
    trial.finish()


def test_answers_are_asked_for_with_the_right_body_among_the_candidates(monkeypatch):
    monkeypatch.setattr(tasks, "documentation", documentation)
    entries = {entry.id: entry for entry in documentation(12).entries}
    asked = {test: answers(12, 4, test=test, words=12) for test in (False, True)}
    assert len(asked[True]) == 12
    for cases in asked.values():
        for case in cases:
            entry = entries[case.id]
            assert entry.title in case.query
            assert case.output == entry.summary
            assert case.keys[case.right] == entry.text
            assert len(set(case.keys)) == 4
    assert not {entries[case.id].package for case in asked[True]} & {entries[case.id].package for case in asked[False]}


def test_of_answers_the_right_body_is_the_label_and_stands_first():
    scored = Scored(Continuation("1", "q", "o", ("a", "b", "c"), 1), [-1.0, -2.0, -3.0], -4.0)
    assert (scored.best, scored.right) == (0, 1)
    row = trials._row(ANSWERS, scored)
    assert (row["pos"], row["neg"], row["teacher_scores"]) == (["b"], ["a", "c"], [-2.0, -1.0, -3.0])
    text = Scored(Continuation("1", "q", "o", ("a", "b", "c")), [-1.0, -2.0, -3.0], -4.0)
    assert (text.right, trials._row(TEXT, text)["history"]) == (0, ["a", "b", "c"])


def test_each_arm_is_taught_as_it_says(tiny_folder):
    trial = LLMEmbedderTrial(model=str(tiny_folder), encoder="model", teacher_scores_margin=0.1)
    taught = {name: trial._taught_by(name, 0.3).tasks for name in (INFONCE, PEER, MAIN, SWEPT)}
    losses = {name: (each["lrlm"].distill, each["qa"].distill) for name, each in taught.items()}
    assert losses == {INFONCE: ("none", "none"), PEER: ("kl", "kl"), MAIN: ("kl", "graded"), SWEPT: ("kl", "graded")}
    weights = {name: {task.contrastive_weight for task in each.values()} for name, each in taught.items()}
    assert weights == {INFONCE: {0.2}, PEER: {0.0}, MAIN: {0.0}, SWEPT: {0.0}}
    assert taught[MAIN]["lrlm"].teacher_temperature == 0.1
    assert taught[SWEPT]["qa"].teacher_temperature == 0.3
    assert {each["lrlm"].group.teacher_scores_margin for each in taught.values()} == {0.1}
    assert taught[MAIN]["qa"].group.stable_distill
    paper = TASKS["lrlm"], TASKS["qa"]
    assert (paper[0].distill, paper[0].teacher_temperature, paper[0].group.teacher_scores_margin) == ("kl", 0.1, 0.1)
    assert (paper[1].distill, paper[1].teacher_temperature, paper[1].group) == ("graded", 1.0, taught[MAIN]["qa"].group)


def test_the_peer_learns_the_same_distributions(tiny_folder):
    trial = LLMEmbedderTrial(model=str(tiny_folder), encoder="model", temperature=0.05)
    peer = trial._taught_by(PEER, 1.0)
    model = trial._taught_by(MAIN, 1.0).embedder(str(tiny_folder))
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(5, 8, generator=generator) for _ in range(4)]
    scores = torch.randn(5, 3, generator=generator)
    theirs, own = peer.losses(model, ["lrlm"])["lrlm"], LLMEmbedder.losses(peer, model, ["lrlm"])["lrlm"]
    assert type(theirs).__module__.startswith("sentence_transformers")
    assert float(theirs.compute_loss_from_embeddings(vectors, scores)) == pytest.approx(
        float(own.compute_loss_from_embeddings(vectors, scores)), rel=1e-5
    )


def test_without_other_queries_no_rate_is_chosen(tiny_folder):
    trial = LLMEmbedderTrial(model=str(tiny_folder))
    trial._held = {TEXT: [], ANSWERS: []}
    with pytest.raises(InputError, match="to choose a rate by; give fewer"):
        trial._rate(MAIN)


def test_what_is_trained_has_each_tasks_prompts_and_what_is_not_has_none(tiny_folder, monkeypatch):
    trial = LLMEmbedderTrial(model=str(tiny_folder))
    trial._asked = {TEXT: [], ANSWERS: []}
    asked = []
    monkeypatch.setattr(trials, "fetching_arm", lambda arm, model, scored, task: asked.append((arm.name, task)))
    for name in (BASE, INFONCE, MAIN):
        for kind in (TEXT, ANSWERS):
            trial._arm(kind, ModelArm.of(name, None), LazyModel(lambda: None))
    assert asked == [(BASE, "")] * 2 + [(name, task) for name in (INFONCE, MAIN) for task in ("lrlm", "qa")]


def test_both_tasks_are_trained_and_asked_and_rates_and_grades_are_chosen(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tasks, "documentation", documentation)
    made, load = documents(60), trials.corpora.load
    monkeypatch.setattr(trials.corpora, "load", lambda spec: load(spec) if str(spec).endswith("jsonl") else made)
    monkeypatch.setattr(trials, "_TUNING", 4)
    sizes = {"queries": 5, "train": 8, "candidates": 4, "chunk": 30, "output": 8, "group": 3, "steps": 2, "batch": 4}
    trial = LLMEmbedderTrial(
        model=str(tiny_folder), dtype="float32", encoder="model", teacher_scores_margin=0.0, words=12, runs=1, **sizes
    )
    result = trial.run()
    assert {arm.status for arm in result.arms} == {"ok"}, [arm.error for arm in result.arms]
    assert [arm.name for arm in result.arms][:5] == [BASE, INFONCE, PEER, MAIN, SWEPT]
    names = {"log-likelihood", "nDCG@10", "log-likelihood of answers", "nDCG@10 of answers"}
    assert all(set(arm.values) == names for arm in result.arms)
    assert {(c.metric, c.baseline) for c in result.judged} == {
        (metric, baseline) for metric in ("log-likelihood", "log-likelihood of answers") for baseline in (BASE, INFONCE)
    }
    assert {f"tuning of {name}" for name in (INFONCE, PEER, MAIN, SWEPT)} <= set(result.setting)
    assert SWEPT in result.setting["grades"]
    best = next(arm for arm in result.arms if arm.name == BEST)
    assert best.values["log-likelihood of answers"].estimate >= max(
        arm.values["log-likelihood of answers"].estimate for arm in result.arms if arm.name != NOTHING
    )
    for taught, others in ((trial._taught[kind], trial._held[kind]) for kind in (TEXT, ANSWERS)):
        assert (len(taught), len(others)) == (8, 4)
        assert not {each.case.id for each in taught} & {each.case.id for each in others}, "others choose the rates"
    assert sum("What there is to gain in" in note for note in result.notes) == 2
    assert sum("[answer]" in example.item for example in shown(result)) >= 1
    trial.finish()


def test_options_that_cannot_be_are_said(tiny_folder):
    for options in ({"candidates": 1}, {"train": 2, "batch": 4}, {"steps": 0}):
        with pytest.raises(InputError, match="expected"):
            LLMEmbedderTrial(model=str(tiny_folder), quick=True, encoder="model", **options)

"""The study: its loss, its pooling, its cells; each cell once, with all that it must record."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from small_docs import documentation, documents
from torch.optim.optimizer import register_optimizer_step_post_hook

from broadsheet.console import InputError
from broadsheet.data.retrieval.metrics import evaluate
from broadsheet.embed import dense_retrieval_study, fitting
from broadsheet.embed.base import embedder
from broadsheet.embed.data import doc_tasks, tasks
from broadsheet.embed.dense_retrieval_study import (
    SEEN,
    UNSEEN,
    Study,
    StudyCell,
    StudyQuestion,
    StudyRecipe,
    answer,
    examples,
)
from broadsheet.embed.losses.contrastive import ContrastiveObjective, info_nce
from broadsheet.embed.modules import from_scratch
from broadsheet.training import memory
from broadsheet.training.scratch import SIZES, Size


@pytest.fixture
def study(monkeypatch, tmp_path, tiny_folder):
    """A study over made-up documentation; `study.recipe` trains a tiny model in no time."""
    monkeypatch.setattr(tasks, "documentation", documentation)
    made = Study(tmp_path / "study", device="cpu", dtype="float32")
    made.recipe = StudyRecipe(  # type: ignore[attr-defined]
        backbone=str(tiny_folder), steps=5, batch=3, words=12, length=48, learning_rate=5e-3, chunk=2
    )
    made.question = StudyQuestion(queries=12, passages=30, words=12, length=48)  # type: ignore[attr-defined]
    return made


@pytest.fixture
def scratch(study, monkeypatch):
    """A recipe whose backbone is made from nothing in no time."""
    monkeypatch.setattr(tasks, "_pydocs", lambda data: documents())
    monkeypatch.setitem(SIZES, "0.4M", Size(1, 16, 2))
    monkeypatch.setattr(from_scratch, "BATCH", 2)
    monkeypatch.setattr(from_scratch, "LENGTH", 64)
    return replace(study.recipe, backbone="scratch:0.4M", pretraining=3, steps=1)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The loss


def test_the_loss_is_sentence_transformers_own_at_scale_50(tiny_model, tiny_tokenizer):
    model = embedder((tiny_model(), tiny_tokenizer()), "last-token", append=("<|im_end|>",))
    columns = [["a", "b b", "ccc"], ["one", "two", "three"], ["four", "five", "six"], ["7", "8", "9"]]
    features = [model.preprocess(texts) for texts in columns]
    theirs = MultipleNegativesRankingLoss(model, scale=50)(features, None)
    items = [{"query": q, "positive": p, "negatives": n} for q, p, *n in zip(*columns, strict=True)]
    objective = ContrastiveObjective(model, temperature=0.02, chunk_size=2)
    ours = objective.loss(model, objective.collate(items))["loss"]
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)


def test_at_a_high_temperature_nothing_is_told_apart_and_a_lone_pair_costs_nothing():
    query, passages = numbers(3, 5, seed=1), numbers(12, 5, seed=2)
    assert info_nce(query, passages, torch.tensor([0, 4, 8]), 1e9).item() == pytest.approx(math.log(12), abs=1e-6)
    assert info_nce(query[:1], passages[:1], torch.tensor([0]), 0.02).item() == 0


def test_vectors_of_any_length_cost_the_same_and_excluded_passages_are_not_there():
    query, passages = numbers(2, 5, seed=1), numbers(6, 5, seed=2)
    first = torch.tensor([0, 3])
    loss = info_nce(query, passages, first, 0.02)
    torch.testing.assert_close(info_nce(query * 7, passages * 0.1, first, 0.02), loss)
    excluded = torch.zeros(2, 6, dtype=torch.bool)
    excluded[:, [1, 5]] = True
    fewer = info_nce(query, passages[[0, 2, 3, 4]], torch.tensor([0, 2]), 0.02)
    torch.testing.assert_close(info_nce(query, passages, first, 0.02, excluded), fewer)


def test_settings_out_of_range_are_refused(tiny_model, tiny_tokenizer):
    model = embedder((tiny_model(), tiny_tokenizer()))
    for settings, message in (
        ({"temperature": 0.0}, r"got temperature 0\.0"),
        ({"chunk_size": 0}, "got chunk_size 0"),
        ({"contrastive": "nce"}, "got contrastive 'nce'"),
    ):
        with pytest.raises(InputError, match=message):
            ContrastiveObjective(model, **settings)


# Pooling


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_end_of_text_is_read_wherever_padding_stands_and_whatever_the_batch(tiny_model, tiny_tokenizer, side):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    model = embedder((tiny_model(), tokenizer), "last-token", append=("<|im_end|>",))
    texts = ["a longer text than the others", "short", "", "of middle length"]
    batch = model.preprocess(texts)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    states = model.encoder.states(batch["input_ids"], batch["attention_mask"])
    for i, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        last = int(mask.nonzero()[-1])
        assert ids[last] == end
        expected = states[i, last]
        alone = model.preprocess([texts[i]])
        torch.testing.assert_close(model(alone)["sentence_embedding"][0], expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(model.encode(texts), model(batch)["sentence_embedding"].detach(), atol=1e-5)


@pytest.mark.parametrize("pooling", ["last-token", "mean"])
def test_the_study_pools_an_end_of_text_behind_each_text_or_all_of_it(study, pooling):
    made = study.raw(replace(study.recipe, pooling=pooling))
    texts = ["a longer text than the other", "short"]
    for text, found in zip(texts, made.encode(texts), strict=True):
        ids = made.encoder.tokenizer(text)["input_ids"] + [made.encoder.tokenizer.eos_token_id] * (pooling != "mean")
        with torch.inference_mode():
            states = made.encoder.backbone(torch.tensor([ids])).last_hidden_state[0]
        expected = states.mean(0) if pooling == "mean" else states[-1]
        np.testing.assert_allclose(found, expected, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_a_run_learns_at_the_recipe_s_temperature(study, tmp_path, temperature, monkeypatch):
    monkeypatch.setattr("broadsheet.training.weights.autocast_dtype", lambda name, device: None)  # in float32 anywhere
    recipe = replace(study.recipe, steps=1, temperature=temperature)
    items, model = examples(recipe), study.raw(recipe)
    assert len(items) == recipe.batch
    texts = [[item["query"] for item in items], [t for i in items for t in (i["positive"], *i["negatives"])]]
    queries, passages = (model.encode(group, convert_to_tensor=True).double() for group in texts)
    fitted = study._fit(recipe, items, tmp_path)
    expected = info_nce(queries, passages, torch.arange(len(queries)) * (1 + recipe.negatives), temperature).item()
    assert fitted.history[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_a_run_ends_alike_to_the_bit_whether_activations_fit_in_memory_or_not(study, tmp_path, monkeypatch, chunk):
    recipe, folders = replace(study.recipe, steps=3, chunk=chunk), []
    items = examples(recipe)
    for room in (0, 1 << 40):
        monkeypatch.setattr(memory, "free", lambda device, room=room: room)
        folders.append(tmp_path / str(room))
        study._fit(recipe, items, folders[-1])
    first, second = ((folder / "last").rglob("*.safetensors") for folder in folders)
    read = [(one.name, one.read_bytes() == other.read_bytes()) for one, other in zip(first, second, strict=True)]
    assert read
    assert all(same for _, same in read)


# Asking


def test_measures_are_trec_evals_and_grow_with_their_cut(study):
    recipe, question = study.recipe, study.question
    task = study.task(question)
    found = answer(study.raw(recipe), task)
    assert all(a <= b for a, b in zip(found["R@10"], found["R@100"], strict=True))
    assert all(rr <= recall for rr, recall in zip(found["RR@10"], found["R@10"], strict=True))  # one right passage each
    # Worked by hand: a is right at place 2, b at place 4 of graded judgements.
    run, judged = {"q": ["x", "a", "y", "b"]}, {"q": {"a": 2, "b": 1, "c": 1}}
    ideal = 2 + 1 / math.log2(3) + 1 / math.log2(4)
    values = evaluate(run, judged, ("nDCG@10", "RR@10", "R@2", "R@10"))
    assert values["nDCG@10"]["q"] == pytest.approx((2 / math.log2(3) + 1 / math.log2(5)) / ideal, abs=1e-9)
    assert [values[name]["q"] for name in ("RR@10", "R@2", "R@10")] == pytest.approx([1 / 2, 1 / 3, 2 / 3])


@pytest.mark.parametrize("task", doc_tasks.TASKS)
def test_what_is_asked_and_what_is_trained_on_share_no_package(study, task):
    asked = doc_tasks.question(task, 6, 15, words=12)
    docs = documentation(400 if task == "long" else 12)
    of_name = {entry.id: entry for entry in docs.entries}
    assert len(asked.queries) == 6
    assert len(asked.corpus) == min(15, sum(docs.held_out(e.package) for e in docs.entries))
    assert all(docs.held_out(of_name[name].package) for name in asked.corpus)
    assert all(asked.qrels[query.id] == {query.id: 1} and query.id in asked.corpus for query in asked.queries)
    if task == "long":
        assert min(len(text.split()) for text in asked.corpus.values()) >= 150
        return
    trained = doc_tasks.examples(task, 20, 1, words=12)
    of_text = {text: entry for entry in docs.entries for text in (entry.text, doc_tasks._halves(entry.text)[1])}
    for item in trained:
        assert item["positive"] not in item["negatives"]
        assert len(item["negatives"]) == 1
        assert not any(docs.held_out(of_text[text].package) for text in (item["positive"], *item["negatives"]))


@pytest.mark.parametrize("task", ["summary", "name", "half"])
def test_settings_are_chosen_by_what_is_neither_trained_on_nor_asked(study, task):
    recipe = replace(study.recipe, tasks=(task,))
    (tuning,) = study.tuning(recipe)
    question = replace(study.question, task=task, queries=20, passages=0)
    known = {item["positive"] for item in examples(recipe)}
    assert len(known) == 15
    assert not known & set(tuning.corpus.values())
    assert not set(study.task(question).corpus) & set(tuning.corpus)
    docs = documentation(12)
    packages = {entry.id: entry.package for entry in docs.entries}
    assert not any(docs.held_out(packages[name]) for name in tuning.corpus)
    assert len(tuning.queries) > 50
    assert all(tuning.qrels[query.id] == {query.id: 1} and query.id in tuning.corpus for query in tuning.queries)
    with pytest.raises(InputError, match=r"all passages are trained on, .* give one with --learning-rate"):
        doc_tasks.tuning(task, 5, 5, without=[*known, *tuning.corpus.values()], words=12)


def test_a_score_is_that_of_the_trained_run_over_all_of_its_tasks_as_it_was_trained(study, monkeypatch):
    recipe = replace(study.recipe, tasks=("summary", "name"), instructed=True)
    asked = study.tuning(recipe)
    assert [task.about.split(":")[0] for task in asked] == [doc_tasks.TASKS["summary"], doc_tasks.TASKS["name"]]
    prompts = []

    def answers(model, task):
        prompts.append(model.prompts["query"])
        return {"nDCG@10": [0.0, 1.0] if task is asked[0] else [0.2]}

    monkeypatch.setattr(dense_retrieval_study, "answer", answers)
    assert study.score(recipe, asked) == pytest.approx((0.5 + 0.2) / 2)
    assert prompts == [SEEN[0]] * 2
    study.score(replace(recipe, instructed=False), asked)
    assert prompts[2:] == [""] * 2
    assert study.trained(recipe).name == "last"


def test_a_backbone_from_nothing_reads_the_packages_that_are_trained_on_alone(study, scratch, monkeypatch):
    read = tasks.training_texts(12)
    docs = documentation(12)
    of_text = {document.text: document for document in documents()}
    assert {of_text[text].id for text in read} == {e.id for e in docs.entries if not docs.held_out(e.package)}
    assert 50 < len(read) < len(of_text)
    given = []
    monkeypatch.setattr(
        dense_retrieval_study,
        "pretrained",
        lambda name, texts, *_, **more: (
            given.append((name, texts, more)) or from_scratch.pretrained(name, texts, *_, **more)
        ),
    )
    record = study.cell(StudyCell(scratch, 1, study.question))
    assert given == [("scratch:0.4M", read, {"steps": 3, "seed": 0, "device": "cpu"})]
    found = study.backbone(scratch)
    assert record.model == f"scratch:0.4M {found.fingerprint}", "no path of this machine"
    assert (found.depth, found.weights) == (1, record.parameters)
    assert found.pretrained.tokens == 3 * 2 * 64
    assert len(given) == 1, "it is asked for once"


def test_backbones_from_nothing_are_made_by_what_decides_them(study, scratch, tmp_path):
    cell = StudyCell(scratch, 1, study.question)
    record = study.cell(cell)
    made = list((tmp_path / "study").glob("backbone-*"))
    assert Study(tmp_path / "study", device="cpu", dtype="float32").cell(cell) == record
    assert list((tmp_path / "study").glob("backbone-*")) == made
    assert Study(tmp_path / "other", device="cpu", dtype="float32").cell(cell).values == record.values
    # Seeds of what follows share it; more steps and another split do not.
    one = study.backbone(scratch)
    assert study.backbone(replace(scratch, seed=5, learning_rate=1.0)) == one
    assert study.backbone(replace(scratch, pretraining=4)) != one
    assert study.backbone(replace(scratch, split=1)) != one


def test_tasks_differ_in_what_asks_alone(study):
    summary, name, half = (doc_tasks.examples(task, 10, 2, words=12) for task in ("summary", "name", "half"))
    assert [item["positive"] for item in summary] == [item["positive"] for item in name]
    assert [item["query"] for item in summary] != [item["query"] for item in name]
    assert [f"{item['query']} {item['positive']}" for item in half] == [item["positive"] for item in summary]


# Cells


def test_a_cell_records_what_it_cost_and_training_is_far_above_the_raw_model(study):
    recipe = replace(study.recipe, steps=40, batch=8, learning_rate=1e-2, pooling="mean", temperature=0.05, chunk=0)
    trained = study.cell(StudyCell(recipe, 40, study.question))
    raw = study.cell(StudyCell(recipe, 0, study.question))
    model = study.raw(recipe).encoder.model
    assert trained.parameters == sum(p.numel() for p in model.parameters())
    assert trained.parameters - trained.non_embedding == 2 * model.config.vocab_size * 32
    assert (trained.seed, trained.steps, raw.steps) == (0, 40, 0)
    assert trained.tokens > 40 * 8 * 3
    assert trained.seconds > 0 == raw.seconds
    assert trained.peak_bytes > 0
    assert recipe.backbone in trained.model
    assert len(trained.queries) == len(trained.values["nDCG@10"]) == 12
    assert np.mean(trained.values["nDCG@10"]) > np.mean(raw.values["nDCG@10"]) + 0.1


def test_a_cell_run_again_gives_the_same_numbers_and_one_asked_again_is_read_back(study, tmp_path, monkeypatch):
    cell = StudyCell(study.recipe, 5, study.question)
    record = study.cell(cell)
    other = Study(tmp_path / "other", device="cpu", dtype="float32").cell(cell)
    assert other.values == record.values
    assert other.tokens == record.tokens

    def never(*_: Any) -> None:
        raise AssertionError("trained or asked again")

    monkeypatch.setattr(Study, "_fit", never)
    monkeypatch.setattr(dense_retrieval_study, "answer", never)
    assert Study(tmp_path / "study", device="cpu", dtype="float32").cell(cell) == record
    with pytest.raises(AssertionError, match="again"):
        study.cell(StudyCell(replace(study.recipe, seed=1), 5, study.question))


def test_checkpoints_belong_to_one_run_and_the_last_of_them_is_that_run_s_end(study, tmp_path, monkeypatch):
    recipe = study.recipe
    assert recipe.checkpoints() == [1, 2]
    steps, write, written = [], fitting.write, {}
    counter = register_optimizer_step_post_hook(lambda *_: steps.append(1))

    def watch(model: Any, folder: Any, *rest: Any) -> None:
        written[folder.name] = len(steps)
        write(model, folder, *rest)

    monkeypatch.setattr(fitting, "write", watch)
    cells = [study.cell(StudyCell(recipe, step, study.question)) for step in (1, 2, 5)]
    counter.remove()
    assert written["step-1"] == 1  # the weights after so many steps of the optimizer
    assert written["step-2"] == 2
    assert [record.steps for record in cells] == [1, 2, 5]
    assert cells[0].values != cells[2].values
    runs = list((tmp_path / "study").glob("run-*"))
    assert len(runs) == 1
    assert sorted(path.name for path in runs[0].iterdir() if path.is_dir()) == ["last", "step-1", "step-2"]
    from broadsheet.embed.base import load

    start, after, end = (load(runs[0] / name).encode(["some text"]) for name in ("step-1", "step-2", "last"))
    assert np.abs(start - after).max() > 1e-5
    assert np.abs(after - end).max() > 1e-5
    with pytest.raises(InputError, match=r"got step 3; the run keeps its weights after \[1, 2, 5\]"):
        study.cell(StudyCell(recipe, 3, study.question))


def test_a_run_that_was_killed_goes_on_and_ends_alike(study, tmp_path, monkeypatch):
    cell = StudyCell(study.recipe, 5, study.question)
    whole = study.cell(cell)
    other = Study(tmp_path / "killed", device="cpu", dtype="float32")
    collate, calls = dense_retrieval_study.CheckpointedContrast.collate, []

    def dying(self: Any, items: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("killed")
        return collate(self, items)

    monkeypatch.setattr(dense_retrieval_study.CheckpointedContrast, "collate", dying)
    with pytest.raises(RuntimeError, match="killed"):
        other.cell(cell)
    assert not list((tmp_path / "killed").glob("cell-*"))
    assert other.cell(cell).values == whole.values


def test_the_cut_off_of_the_test_changes_what_is_read_and_nothing_of_the_training(study, tmp_path):
    long = replace(study.question, task="long", queries=4, passages=8)
    tokenizer = study.raw(study.recipe).encoder.tokenizer
    lengths = [len(tokenizer(text)["input_ids"]) for text in study.task(long).corpus.values()]
    assert min(lengths) > 256  # more than the tiny model has positions for
    values = [study.cell(StudyCell(study.recipe, 5, replace(long, length=cut))).values for cut in (16, 64, 256)]
    assert values[0] != values[2]
    assert len(list((tmp_path / "study").glob("run-*"))) == 1
    with pytest.raises(InputError, match="reads at most 256 tokens; got a cut-off of 257"):
        study.cell(StudyCell(study.recipe, 5, replace(long, length=257)))


def test_beyond_the_longest_text_the_curve_is_flat(study):
    first, second = (
        study.cell(StudyCell(study.recipe, 5, replace(study.question, length=n))).values for n in (200, 256)
    )
    assert first == second


def test_an_instruction_changes_what_stands_before_a_query_and_nothing_else(study):
    plain, told = examples(study.recipe), examples(replace(study.recipe, instructed=True))
    assert [(i["positive"], i["negatives"]) for i in plain] == [(i["positive"], i["negatives"]) for i in told]
    used = set()
    for one, other in zip(plain, told, strict=True):
        assert other["query"].endswith(one["query"])
        used.add(other["query"].removesuffix(one["query"]))
    assert used <= set(SEEN)
    assert len(used) > 2
    assert not set(SEEN) & set(UNSEEN)
    assert told == examples(replace(study.recipe, instructed=True))
    # Asking without one is the cell of the other tables; asking with one reads it.
    bare = study.cell(StudyCell(study.recipe, 0, study.question))
    asked = study.cell(StudyCell(study.recipe, 0, replace(study.question, instruction="Find number1: ")))
    assert bare.values != asked.values
    assert study.cell(StudyCell(study.recipe, 0, replace(study.question, instruction=""))) == bare


def test_a_joint_run_sees_as_many_examples_of_each_task_as_that_task_s_own(study):
    single, joint = replace(study.recipe, tasks=("name",)), replace(study.recipe, tasks=("summary", "name"))
    assert joint.total_steps == 2 * single.total_steps
    together = examples(joint)
    assert together == [*examples(study.recipe), *examples(single)]
    assert len(together) == joint.total_steps * joint.batch  # each of them once


def test_seeds_change_the_order_and_the_adapter_but_not_the_data(study):
    assert examples(replace(study.recipe, seed=7)) == examples(study.recipe)
    assert examples(replace(study.recipe, split=7)) != examples(study.recipe)
    with pytest.raises(InputError, match="packages would mix"):
        study.cell(StudyCell(replace(study.recipe, split=7), 5, study.question))
    one, other = (study.cell(StudyCell(replace(study.recipe, seed=seed), 5, study.question)) for seed in (0, 7))
    assert one.values != other.values
    assert one.queries == other.queries


def test_a_record_is_whole_json_or_not_there(study, tmp_path):
    study.cell(StudyCell(study.recipe, 0, study.question))
    (path,) = (tmp_path / "study").glob("cell-*.json")
    kept = json.loads(path.read_text())
    assert {"parameters", "non_embedding", "seed", "steps", "tokens", "seconds", "peak_bytes"} <= kept.keys()

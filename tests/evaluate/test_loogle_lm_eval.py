"""LooGLE under lm-evaluation-harness, from a local file, with answers that are known beforehand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from broadsheet.console import InputError
from broadsheet.evaluate import LooGLE, lm_eval_path
from broadsheet.evaluate.answering import MAX_NEW_TOKENS
from broadsheet.evaluate.loogle import both_ends

lm_eval = pytest.importorskip("lm_eval")

DOCUMENT = "Ada wrote the first program. Charles built no engine. "
MASKS = {"<mask-0>": "Ada", "<mask-1>": "Charles"}
PAIRS = [
    ("shortdep_qa", {"Q": "Who wrote the first program?", "A": "Ada"}),
    ("shortdep_qa", {"Q": "What did Charles build?", "A": "no engine"}),
    ("shortdep_cloze", {"Q": "<mask-0> wrote, <mask-1> did not build.", "A": MASKS}),
    ("longdep_qa", {"Q": "Order them. I. engine II. program", "A": "II,I", "type": "timeline_reorder"}),
    ("longdep_qa", {"Q": "How many people?", "A": "2", "type": "computation"}),
]
TASKS = ["loogle_longdep_qa", "loogle_longdep_summarization", "loogle_shortdep_cloze", "loogle_shortdep_qa"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    rows = [{"input": DOCUMENT, "title": "Ada", "qa_pairs": repr([pair]), "output": "none"} for _, pair in PAIRS]
    rows.append({"input": DOCUMENT, "title": "Ada", "qa_pairs": "none", "output": "Ada programmed"})
    path = tmp_path / "loogle.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def manager(**metadata):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=lm_eval_path(), include_defaults=False, metadata=metadata)


def dummy(answer):
    """A model that gives `answer(prompt)` and keeps what it was asked."""
    from lm_eval.api.model import LM

    class Dummy(LM):
        asked: list = []  # noqa: RUF012

        def generate_until(self, requests, disable_tqdm=False):
            self.asked += [request.args for request in requests]
            return [answer(request.args[0]) for request in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    return Dummy()


def evaluate(model, tasks, **metadata):
    return lm_eval.simple_evaluate(
        model=model, tasks=tasks, task_manager=manager(**metadata), bootstrap_iters=0, log_samples=True
    )


def gold_of(prompt):
    for _, pair in PAIRS:
        if pair["Q"] in prompt:
            return pair["A"] if isinstance(pair["A"], str) else json.dumps(pair["A"])
    return "Ada programmed"


def test_gold_answers_score_full_marks(data):
    results = evaluate(dummy(gold_of), ["loogle"], data=data)["results"]
    assert sorted(results) == sorted(["loogle", *TASKS])
    seen = 0
    for task in TASKS:
        for name, value in results[task].items():
            metric, comma, kind = name.partition(",")
            if not comma or "stderr" in metric or metric.endswith(("_recall", "_authors")):
                continue
            assert kind == "none"
            assert value == pytest.approx(0 if metric in ("lsd", "lmd", "sd", "sdd") else 1), name
            seen += 1
    assert seen == 7 + 7 + 4 + 7 + 2  # QA, QA with deviations, summaries, cloze


def test_wrong_answers_score_nothing_and_masks_are_pooled(data):
    def answer(prompt):
        return "{'<mask-0>': 'Ada', '<mask-1>': 'X'}" if "<mask-0> wrote" in prompt else "nonsense"

    results = evaluate(dummy(answer), ["loogle"], data=data)["results"]
    assert results["loogle_shortdep_cloze"]["cloze_exact,none"] == 0.5
    assert results["loogle_shortdep_qa"]["containment,none"] == 0
    assert results["loogle_longdep_qa"]["lmd,none"] == 1  # no label in it: the question's own order


def test_prompts_and_lengths_are_loogles(data):
    model = dummy(lambda prompt: "")
    evaluate(model, ["loogle"], data=data)
    expected = {LooGLE().prompt(question): MAX_NEW_TOKENS[question.task] for question in LooGLE().read(data)}
    assert {prompt: settings["max_gen_toks"] for prompt, settings in model.asked} == expected
    assert not any(settings.get("do_sample") for _, settings in model.asked)


def test_long_prompts_lose_their_middle_and_nothing_else(data, tiny_folder, tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    model = dummy(lambda prompt: "")
    evaluate(model, ["loogle_shortdep_qa"], data=data, max_prompt_tokens=40, tokenizer=str(tiny_folder))
    whole = [LooGLE().prompt(question) for question in LooGLE().read(data) if question.task == "shortdep_qa"]
    kept = [both_ends(tokenizer(prompt).input_ids, 40) for prompt in whole]
    # The tiny tokenizer's tokens are whole characters here, so that decoding shows which ones were kept.
    assert [prompt for prompt, _ in model.asked] == [tokenizer.decode(ids) for ids in kept]
    assert all(prompt.endswith("Answer:") for prompt, _ in model.asked)


def test_a_number_of_tokens_needs_a_tokenizer(data):
    with pytest.raises(InputError, match="needs a tokenizer"):
        evaluate(dummy(str), ["loogle_shortdep_qa"], data=data, max_prompt_tokens=40)


def test_data_without_a_tasks_questions_is_said(data, tmp_path):
    other = tmp_path / "summaries.jsonl"
    other.write_text(Path(data).read_text("utf-8").splitlines()[-1] + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="no question of the task shortdep_qa"):
        evaluate(dummy(str), ["loogle_shortdep_qa"], data=str(other))


def test_a_model_of_transformers_runs_it_without_a_network(data, tiny_folder):
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tiny_folder), "device": "cpu", "dtype": "float32"},
        tasks=["loogle_shortdep_cloze"],
        task_manager=manager(data=data),
        bootstrap_iters=0,
        batch_size=1,
    )
    assert results["results"]["loogle_shortdep_cloze"]["cloze_exact,none"] == 0
    [sample] = results["samples"]["loogle_shortdep_cloze"]
    assert isinstance(sample["resps"][0][0], str)


def test_the_folder_offers_each_task_once():
    index = manager()
    assert sorted(index.all_subtasks) == TASKS
    assert re.fullmatch(r".*loogle_lm_eval", lm_eval_path())

"""What must be true of LooGLE's trial, on a tiny model and a few rows."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pytest
from shown import reasons, shown

from broadsheet import models
from broadsheet.console import InputError
from broadsheet.evaluate.trials.loogle import RETRIEVED, LooGLETrial
from broadsheet.page import papers
from broadsheet.trial import engine
from broadsheet.trial.examples import excerpt

pytest.importorskip("bm25s")


@dataclass
class Louder:
    """A method that multiplies the logits."""

    paper: ClassVar[str] = "louder"
    n_local: int = 7
    factor: float = 2.0
    installed: ClassVar[int] = 0

    def install(self, model):
        raise NotImplementedError

    @contextmanager
    def __call__(self, model):
        Louder.installed += 1
        hook = model.lm_head.register_forward_hook(lambda module, args, output: output * self.factor)
        try:
            yield model
        finally:
            hook.remove()


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tiny_model, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    rows = []
    for name in ("Ada", "Bob", "Cid", "Dan", "Eve", "Fay"):
        facts = [f"{name} keeps {n} {animal} in room {n}. " for n, animal in enumerate(("ants", "bees", "cats"))]
        pairs = [
            {"Q": "Who keeps bees?", "A": name, "S": facts[1]},
            {"Q": "In which room are the cats?", "A": "room 2", "S": facts[2]},
            {"Q": "<mask-0> keeps ants.", "A": {"<mask-0>": name}, "S": facts[0]},
            {"Q": "Order: I. cats II. ants", "A": "II,I", "type": "timeline_reorder", "S": facts[0]},
        ]
        rows.append({"input": "".join(facts), "title": name, "qa_pairs": repr(pairs), "output": "none"})
    path = tmp_path_factory.mktemp("rows") / "loogle.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def make(data, folder):
    """`make(**options)`: a trial of a second or two."""

    def make(**options):
        settings = {"documents": 2, "questions": 4, "length": 100, "max_new_tokens": 6, "methods": "none"}
        return LooGLETrial(**{"model": folder, "data": data, "device": "cpu"} | settings | options)

    return make


ENDS, WHOLE = "100 tokens", "250 tokens"


@pytest.fixture
def trial(make, home, monkeypatch):
    """`make`, in a cache folder of its own, with `Louder` among the stage's methods."""
    monkeypatch.setattr(papers, "stage_methods", lambda stage: {"louder": Louder})
    return make


@pytest.fixture(scope="session")
def finished(make, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROADSHEET_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(papers, "stage_methods", lambda stage: {"louder": Louder})
        patch.setattr(engine, "_TRIES", 1)  # no block is run again
        return make(methods="louder(factor=0.5)").run()


def test_the_ways_to_read_are_compared_on_the_same_questions(finished):
    result = finished
    names = [arm.name for arm in result.arms]
    assert names == [ENDS, WHOLE, RETRIEVED, "Louder(n_local=50, factor=0.5)"]
    assert result.paper == "loogle"
    assert [arm.role for arm in result.arms] == ["baseline", "method", "sibling", "sibling"]
    assert all((arm.status, arm.n_items) == ("ok", 8) for arm in result.arms), [arm.error for arm in result.arms]
    assert result.claims == [("log-likelihood", ENDS, WHOLE)]
    for name in names[1:]:
        found = {c.metric: c.n for c in result.comparisons if (c.baseline, c.arm) == (ENDS, name)}
        found.pop("questions/s", None)  # no time settles where machines are busy
        # Questions on one document are one piece of evidence.
        assert found == {
            "log-likelihood": 2,
            "token F1": 2,
            "containment": 2,
            "ROUGE-L F1": 2,
            "cloze exact": 2,
            "cloze partial": 2,
            "misplacement": 2,
        }
    by_name = {arm.name: arm for arm in result.arms}
    assert max(by_name[ENDS].samples["prompt_tokens"]) == 100
    assert min(by_name[WHOLE].samples["prompt_tokens"]) > 100
    assert by_name[WHOLE].samples["log-likelihood"] != by_name[names[3]].samples["log-likelihood"]
    assert Louder.installed == 3  # two documents, and the warm-up
    [curve] = result.figures
    assert sorted(curve.lines) == sorted(names)
    assert sum(value is not None for value in curve.lines[ENDS]) >= 2
    for example in shown(result):
        assert set(example.answers) == set(names)
        place = [excerpt(answer) or "nothing" for answer in by_name[ENDS].samples["answer"]]
        assert example.answers[ENDS] in place
        assert example.expected.startswith("Right: ")
    for why in reasons(result).values():
        assert "figures are of GPT-4" in why
    notes = " ".join(result.notes)
    assert "100 tokens: 8 of 8 prompts lost their middle" in notes
    assert "not LooGLE's" not in notes


def test_scores_are_loogles_of_the_answers(trial, monkeypatch):
    from broadsheet.evaluate.trials import loogle as module

    real = module.DocumentReader.answers

    def scripted(self, questions, route):
        right = route.name == WHOLE
        made = real(self, questions, route)
        texts = [question.gold if right else "nothing" for question in questions]
        return [type(answer)(text, *list(vars(answer).values())[1:]) for answer, text in zip(made, texts, strict=True)]

    monkeypatch.setattr(module.DocumentReader, "answers", scripted)
    result = trial(documents=6).run()
    whole = next(arm for arm in result.arms if arm.name == WHOLE)
    assert {name: span.estimate for name, span in whole.values.items() if name != "log-likelihood"} == {
        "token F1": 1,
        "containment": 1,
        "ROUGE-L F1": 1,
        "cloze exact": 1,
        "cloze partial": 1,
        "misplacement": 0,
    }
    verdicts = {c.metric: c.verdict for c in result.comparisons if c.arm == WHOLE}
    assert verdicts["containment"] == "helps"
    assert verdicts["cloze exact"] == "helps"
    assert verdicts["misplacement"] == "helps"  # lower is better
    retrieved = {c.metric: c.verdict for c in result.comparisons if c.arm == RETRIEVED}
    assert retrieved["token F1"] == "no measurable difference"


def test_summaries_are_scored_by_what_suits_them(trial, tmp_path):
    rows = [{"input": "Ants. " * n, "title": "", "qa_pairs": "none", "output": "On ants"} for n in (3, 4)]
    path = tmp_path / "summaries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = trial(data=str(path)).run()
    assert all(list(arm.values) == ["log-likelihood", "ROUGE-L F1"] for arm in result.arms)
    assert result.figures == []


def test_the_seed_chooses_documents_and_questions(trial):
    chosen = [trial(documents=1, questions=2, seed=seed)._questions()[0] for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len({tuple(question.question for question in asked) for asked in chosen}) > 1
    assert all(len(asked) == 2 and len({q.document for q in asked}) == 1 for asked in chosen)


def test_a_whole_document_is_cut_to_the_context_and_a_bounded_method_is_not(trial, monkeypatch):
    running = trial(methods="louder")
    model = models.load(running.model, device="cpu").model
    found = running._methods()
    limits = {route.name: route.max_length for route in running._ways(model, found)}
    assert limits == {ENDS: 100, WHOLE: 250, RETRIEVED: 250, "Louder(n_local=50)": 250}
    monkeypatch.setattr(Louder, "reach", 50, raising=False)
    assert running._ways(model, found)[3].max_length == 4096
    running.max_length = 128
    assert [route.max_length for route in running._ways(model, found)] == [100, 128, 128, 128]


def test_methods_of_the_stage_are_made_by_name_with_half_the_length_for_a_window(make):
    from broadsheet.attend import InfLLM, LMInfinite

    made = make(methods="lm_infinite(n_global=4),InfLLM(n_local=64)")._methods()
    assert made == {
        "LMInfinite(n_global=4, n_local=50)": LMInfinite(n_global=4, n_local=50),
        "InfLLM(n_local=64)": InfLLM(n_local=64),
    }
    assert [type(method) for method in LooGLETrial(quick=True)._methods().values()] == [LMInfinite, InfLLM]
    with pytest.raises(InputError, match="no method 'transnormer' in --methods"):
        make(methods="transnormer")._methods()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"methods": "no_such"}, r"no method 'no_such'.*Louder\(n_local=7, factor=2\.0\)"),
        ({"methods": "louder(volume=3)"}, r"no field 'volume'; expected Louder\(n_local=7, factor=2\.0\)"),
        ({"methods": "louder(1)"}, "names with options"),
        ({"length": 0}, "--length 0"),
        ({"method": "louder"}, "got --method; LooGLETrial has no such option"),
        ({"batch_size": 0}, "--batch-size 0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(trial, options, problem):
    with pytest.raises(InputError, match=problem) as caught:
        trial(model="no such model", **options).run()
    assert "\n" not in str(caught.value)


def test_data_without_questions_is_refused(trial, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(InputError, match="holds no questions"):
        trial(data=str(empty)).run()

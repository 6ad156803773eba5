"""What must be true of LooGLE's trial, on a tiny model and a few rows."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pytest

from broadsheet import attend, report
from broadsheet.console import InputError
from broadsheet.evaluate.methods import attend_methods, describe_methods, options_of, parse_methods
from broadsheet.evaluate.trials.loogle import ENDS, RETRIEVED, WHOLE, LooGLETrial

pytest.importorskip("bm25s")


@dataclass
class Louder:
    """A method that multiplies the logits."""

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


@pytest.fixture
def method(monkeypatch):
    monkeypatch.setattr(Louder, "__module__", "broadsheet.attend.louder")
    monkeypatch.setattr(Louder, "installed", 0)
    monkeypatch.setattr(attend, "Louder", Louder, raising=False)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    rows = []
    for name in ("Ada", "Bob", "Cid"):
        facts = [f"{name} keeps {n} {animal} in room {n}. " for n, animal in enumerate(("ants", "bees", "cats"))]
        pairs = [
            {"Q": "Who keeps bees?", "A": name, "S": facts[1]},
            {"Q": "In which room are the cats?", "A": "room 2", "S": facts[2]},
            {"Q": "<mask-0> keeps ants.", "A": {"<mask-0>": name}, "S": facts[0]},
            {"Q": "Order: I. cats II. ants", "A": "II,I", "type": "timeline_reorder", "S": facts[0]},
        ]
        rows.append({"input": "".join(facts), "title": name, "qa_pairs": repr(pairs), "output": "none"})
    path = tmp_path / "loogle.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def trial(data, tiny_folder):
    def make(**options):
        settings = {"documents": 2, "questions": 4, "length": 100, "max_new_tokens": 6, "methods": "none"}
        return LooGLETrial(model=str(tiny_folder), data=data, device="cpu", **settings | options)

    return make


def test_the_ways_to_read_are_compared_on_the_same_questions(trial, method, tmp_path):
    running = trial(methods="louder(factor=0.5)")
    result = running.run()
    names = [arm.name for arm in result.arms]
    assert names == [ENDS, WHOLE, RETRIEVED, "Louder(n_local=50, factor=0.5)"]
    assert [arm.role for arm in result.arms] == ["baseline", "method", "sibling", "sibling"]
    assert all((arm.status, arm.n_items) == ("ok", 8) for arm in result.arms), [arm.error for arm in result.arms]
    assert result.claims == [("log-likelihood", ENDS, WHOLE)]
    for name in names[1:]:
        found = {c.metric: c.n for c in result.comparisons if (c.baseline, c.arm) == (ENDS, name)}
        assert found == {
            "log-likelihood": 8,
            "questions/s": 2,
            "token F1": 4,
            "containment": 4,
            "ROUGE-L F1": 4,
            "cloze exact": 2,
            "cloze partial": 2,
            "misplacement": 2,
        }
    by_name = {arm.name: arm for arm in result.arms}
    assert set(by_name[ENDS].samples["prompt_tokens"]) == {100}
    assert min(by_name[WHOLE].samples["prompt_tokens"]) > 100
    assert by_name[WHOLE].samples["log-likelihood"] != by_name[names[3]].samples["log-likelihood"]
    assert Louder.installed == 3  # two documents, and the warm-up
    [curve] = result.figures
    assert sorted(curve.lines) == sorted(names)
    assert sum(value is not None for value in curve.lines[ENDS]) >= 2
    notes = " ".join(result.notes)
    assert "two ends: 8 of 8 prompts lost their middle" in notes
    assert "not LooGLE's" not in notes
    report.write(result, tmp_path / "out")
    assert type(result).from_dict(json.loads(json.dumps(result.to_dict()))).claims == result.claims


def test_scores_are_loogles_of_the_answers(trial, monkeypatch):
    from broadsheet.evaluate.trials import loogle as module

    real = module.DocumentReader.answers

    def scripted(self, questions, route):
        right = route.name == WHOLE
        made = real(self, questions, route)
        texts = [question.gold if right else "nothing" for question in questions]
        return [type(answer)(text, *list(vars(answer).values())[1:]) for answer, text in zip(made, texts, strict=True)]

    monkeypatch.setattr(module.DocumentReader, "answers", scripted)
    result = trial(documents=3).run()
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


def test_summaries_are_scored_by_what_suits_them(trial, data, tmp_path):
    rows = [{"input": "Ants. " * n, "title": "", "qa_pairs": "none", "output": "On ants"} for n in (3, 4)]
    path = tmp_path / "summaries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    running = trial()
    running.data = str(path)
    result = running.run()
    assert all(list(arm.values) == ["log-likelihood", "ROUGE-L F1"] for arm in result.arms)
    assert result.figures == []


def test_an_interrupted_trial_goes_on_where_it_stopped(trial, monkeypatch, capsys):
    from broadsheet.evaluate.trials import loogle as module

    whole = trial()
    expected = whole.run()
    whole.finish()
    assert not whole.journal_.exists()
    real, calls = module.DocumentReader.answers, []

    def breaking(self, questions, route):
        calls.append(route.name)
        if len(calls) == 9:  # three to warm up, four on the first document, in the midst of the second
            raise KeyboardInterrupt
        return real(self, questions, route)

    monkeypatch.setattr(module.DocumentReader, "answers", breaking)
    with pytest.raises(KeyboardInterrupt):
        trial().run()
    monkeypatch.setattr(module.DocumentReader, "answers", real)
    capsys.readouterr()
    again = trial()
    result = again.run()
    assert "going on after 1 blocks" in capsys.readouterr().err
    for before, after in zip(expected.arms, result.arms, strict=True):
        assert before.samples == after.samples
        assert before.values == after.values
    again.finish()


def test_the_seed_chooses_documents_and_questions(trial):
    chosen = [trial(documents=1, questions=2, seed=seed)._questions()[0] for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1]
    assert len({tuple(question.question for question in asked) for asked in chosen}) > 1
    assert all(len(asked) == 2 and len({q.document for q in asked}) == 1 for asked in chosen)


def test_a_whole_document_is_cut_to_the_context_and_a_bounded_method_is_not(trial, method, monkeypatch):
    running = trial(methods="louder", max_new_tokens=6)
    running.run()
    from broadsheet import models

    model = models.load(running.model, device="cpu").model
    found, _ = running._methods()
    limits = {route.name: route.max_length for route in running._routes(model, found)}
    assert limits == {ENDS: 100, WHOLE: 250, RETRIEVED: 250, "Louder(n_local=50)": 250}
    monkeypatch.setattr(Louder, "reach", 50, raising=False)
    assert running._routes(model, found)[3].max_length == 4096
    running.max_length = 128
    assert [route.max_length for route in running._routes(model, found)] == [100, 128, 128, 128]


def test_default_methods_that_are_not_there_are_said(trial, monkeypatch):
    from broadsheet.evaluate.trials import loogle as module

    monkeypatch.setattr(module, "_DEFAULT_METHODS", ("no_such_method",))
    result = trial(methods="", documents=1, questions=1).run()
    assert "no_such_method" in result.notes[-1]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"methods": "no_such"}, r"no method 'no_such'.*louder\(n_local=7, factor=2\.0\)"),
        ({"methods": "louder(volume=3)"}, r"no option 'volume'; expected louder\(n_local=7, factor=2\.0\)"),
        ({"methods": "louder(1)"}, "names with options"),
        ({"length": -1}, "--length -1"),
        ({"batch_size": 0}, "--batch-size 0"),
    ],
)
def test_bad_options_are_said_before_anything_is_loaded(trial, method, options, problem):
    with pytest.raises(InputError, match=problem) as caught:
        trial(**options).run()
    assert "\n" not in str(caught.value)


def test_data_without_questions_is_said(trial, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    running = trial()
    running.data = str(empty)
    with pytest.raises(InputError, match="holds no questions"):
        running.run()


def test_methods_are_read_as_literals_and_never_run():
    assert parse_methods("a, b(x=1, y=None),c(z='u,v')") == [
        ("a", {}),
        ("b", {"x": 1, "y": None}),
        ("c", {"z": "u,v"}),
    ]
    for bad in ("a(", "a(x=open('f'))", "a,b]+[c", "a],[b", "a.b", "'a'", "a(x=1)(y=2)", "1", "\0", "(" * 1000):
        with pytest.raises(InputError, match="names with options"):
            parse_methods(bad)


def test_methods_are_listed_with_their_options(method):
    assert attend_methods()["louder"] is Louder
    assert options_of(Louder) == {"n_local": 7, "factor": 2.0}
    assert describe_methods({"louder": Louder}) == "louder(n_local=7, factor=2.0)"

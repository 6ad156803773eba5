"""`Recipe`: one a paper, with its own options; what it refuses, resumes and replaces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from broadsheet.apply.base import Build, Map, Source, Train
from broadsheet.apply.corpus import Summary
from broadsheet.console import InputError
from broadsheet.data.corpora import Corpus, Document
from broadsheet.options import construct, option, pairs


@dataclass
class LengthRecipe(Map):
    """How long a document is."""

    paper: ClassVar[str] = "length"

    unit: str = option("character", "What is counted.", choices=("character", "word"))

    def prepare(self) -> None:
        self.prepared = getattr(self, "prepared", 0) + 1

    def settings(self) -> dict[str, Any]:
        return {"unit": self.unit}

    def results(self, documents: list[Document]) -> Sequence[dict[str, Any]]:
        assert self.prepared == 1
        texts = [each.text for each in documents]
        return [{"length": len(text.split() if self.unit == "word" else text)} for text in texts]


@dataclass
class ToyTrainRecipe(Train):
    """A folder with what it was trained on."""

    paper: ClassVar[str] = "toy"
    usage: ClassVar[str] = "use it by --model {out}"

    stop: bool = option(False, "Stop before the end.")

    def train(self, source: Source, out: Path, force: bool) -> Any:
        count = sum(1 for _ in source.corpus())
        out.mkdir(parents=True, exist_ok=force)
        (out / "weights").write_text(f"{count} rows, seed {self.seed}")
        return SimpleNamespace(steps=3, examples=count, tokens=10 * count, seconds=1.0, finished=not self.stop)


@dataclass
class CountRecipe(Build):
    """How many documents there are."""

    paper: ClassVar[str] = "count"

    def build(self, corpus: Corpus, out: Path, force: bool) -> Summary:
        number = sum(1 for _ in corpus)
        out.write_text(str(number))
        return Summary(out, number, 0, 0.1, True)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": "ab " * n}) + "\n" for n in range(5)))
    return path


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "3"], "no option --layer; expected one of --model, --seed, "),
        (["--teacher", "nobody"], "no option --teacher; "),
        (["--unit", "line"], "got --unit 'line'; expected one of character, word"),
        (["--batch", "0"], "got --batch 0; expected 1 or more"),
    ],
)  # fmt: skip
def test_an_option_that_is_not_the_recipes_is_refused_in_one_line(arguments, message):
    with pytest.raises(InputError) as refused:
        construct(LengthRecipe, pairs(arguments))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_map_writes_a_line_for_each_document_and_refuses_a_finished_file(rows, tmp_path):
    out = tmp_path / "out.jsonl"
    done = LengthRecipe(unit="word", batch=2).run(Source(str(rows)), out)
    assert (done.documents, done.finished) == (5, True)
    assert lines(out) == [{"id": f"d{n}", "length": n} for n in range(5)]
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"out\.jsonl"):
        LengthRecipe().run(Source(str(rows)), out)
    assert out.read_bytes() == before
    LengthRecipe().run(Source(str(rows)), out, force=True)
    assert lines(out)[2]["length"] == 6


def test_a_map_is_resumed_under_the_same_settings_alone(rows, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    results = LengthRecipe.results

    def killed(self: LengthRecipe, documents: list[Document]) -> Any:
        if documents[0].id == "d2":
            raise RuntimeError("killed")
        return results(self, documents)

    monkeypatch.setattr(LengthRecipe, "results", killed)
    with pytest.raises(RuntimeError):
        LengthRecipe(batch=2).run(Source(str(rows)), out)
    assert not out.exists()
    monkeypatch.setattr(LengthRecipe, "results", results)
    with pytest.raises(InputError, match="begun with unit 'character', now 'word'"):
        LengthRecipe(batch=2, unit="word").run(Source(str(rows)), out)
    assert LengthRecipe(batch=2).run(Source(str(rows)), out).resumed == 2
    assert [row["id"] for row in lines(out)] == [f"d{n}" for n in range(5)]


@pytest.mark.parametrize("recipe", [LengthRecipe(), ToyTrainRecipe(), CountRecipe()], ids=lambda each: each.paper)
@pytest.mark.parametrize("force", [False, True])
def test_out_is_never_the_data(recipe, rows, force, monkeypatch):
    before = rows.read_bytes()
    monkeypatch.chdir(rows.parent)
    for spec, out in ((str(rows), rows), (rows.name, rows), (f"./{rows.name}", Path(rows.name))):
        with pytest.raises(InputError, match=r"--out .*rows\.jsonl is .*rows\.jsonl, which is read; choose another"):
            recipe.run(Source(spec), out, force=force)
    assert rows.read_bytes() == before


def test_a_training_reports_what_it_did_and_how_it_is_used(rows, tmp_path, capsys):
    out = tmp_path / "model"
    done = ToyTrainRecipe(seed=2).run(Source(str(rows)), out)
    assert (done.documents, done.finished) == (5, True)
    assert (out / "weights").read_text() == "5 rows, seed 2"
    told = capsys.readouterr().err
    assert "5 rows, 50 tokens in 3 steps" in told
    assert f"use it by --model {out}" in told


def test_a_training_is_not_replaced_but_by_force(rows, tmp_path):
    out = tmp_path / "model"
    ToyTrainRecipe().run(Source(str(rows)), out)
    with pytest.raises(InputError, match="model exists; choose another --out, or --force to replace it"):
        ToyTrainRecipe(seed=2).run(Source(str(rows)), out)
    assert (out / "weights").read_text() == "5 rows, seed 0"
    ToyTrainRecipe(seed=2).run(Source(str(rows)), out, force=True)
    assert (out / "weights").read_text() == "5 rows, seed 2"


def test_a_training_that_was_stopped_says_how_it_is_resumed(rows, tmp_path, capsys):
    done = ToyTrainRecipe(stop=True).run(Source(str(rows)), tmp_path / "model")
    assert not done.finished
    told = capsys.readouterr().err
    assert "stopped after 3 steps; the same command without --force resumes" in told
    assert "use it by" not in told


def test_the_options_of_a_training_are_those_of_fit_and_a_recipe_may_change_their_defaults():
    assert ToyTrainRecipe(tune="full", steps=7).settings()["method"] == "full"
    assert ToyTrainRecipe(steps=7).settings(method="lora", steps=9)["steps"] == 9


def test_a_build_gets_the_corpus(rows, tmp_path):
    assert CountRecipe().run(Source(str(rows)), tmp_path / "n").documents == 5
    assert (tmp_path / "n").read_text() == "5"


def test_a_bad_row_stops_or_is_skipped(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a", "text": "x"}\nno json\n{"id": "b", "text": "y"}\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        CountRecipe().run(Source(str(path)), tmp_path / "n")
    assert CountRecipe().run(Source(str(path), on_error="skip"), tmp_path / "n").documents == 2


def test_the_fields_of_documents_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a", "body": "xyz"}\n')
    out = tmp_path / "out.jsonl"
    LengthRecipe().run(Source(str(path), text_field="body", id_field="key"), out)
    assert lines(out) == [{"id": "a", "length": 3}]


def test_every_recipe_of_the_page_declares_only_options_and_belongs_to_its_paper():
    from broadsheet.apply.base import Recipe
    from broadsheet.options import describe
    from broadsheet.page import discovery

    found = {each.entry: each for each in discovery.classes() if each.kind == "recipe"}
    assert "broadsheet.detect.recipes:DetectRecipe" in found
    for entry in found:
        kind = discovery.load(entry)
        assert issubclass(kind, Recipe)
        assert describe(kind), "an option for users to see"

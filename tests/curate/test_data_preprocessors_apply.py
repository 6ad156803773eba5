"""Tables by prompting as a command and as pipeline steps: a line for each row, through kills; documents kept or not."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
from datatrove.data import Document
from loopback import Loopback

from broadsheet.apply.base import Source
from broadsheet.console import InputError
from broadsheet.curate import DropErrors, FillGaps, TablePreprocessor
from broadsheet.curate.tables.recipe import DataPreprocessorsRecipe
from broadsheet.teacher import Completion, Teacher

ROWS = 'id,name,city\nr1,Ritz,paris\nr2,Savoy,lomdon\nr3,"Sacher, the",\nr4,Adlon,berlin\nr5,"a ""b"" [c]",oslo\n'


class Told:
    """A backend that says `yes` of a misspelt city, and names the city of a gap."""

    def __init__(self):
        self.asked = []

    def identity(self):
        return {"told": 1}

    def read(self, prompts, reserve):
        return list(prompts)

    def generate(self, jobs, sampling, meter):
        for place, job in enumerate(jobs):
            questions = job.reading[-1]["content"].split("\n")
            self.asked += questions
            said = "\n".join(f"Answer {n}: so\n{_told(q)}" for n, q in enumerate(questions, start=1))
            yield [(place, i, Completion(said, "stop", 4, 20)) for i in job.samples]

    def score(self, jobs, meter):
        raise AssertionError


def _told(question: str) -> str:
    if "What is the value" in question:
        return "vienna" if "Sacher" in question else "?"
    if "lomdon" in question:
        return "yes"
    sides = re.findall(r'name: "(\w+)"', question)
    return "yes" if len(sides) == 2 and sides[0] == sides[1] else "no"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, home: Path) -> Told:
    backend = Told()
    monkeypatch.setattr(Teacher, "load", classmethod(lambda cls, spec=None, **options: cls(backend, cache=False)))
    return backend


def applied(tmp_path: Path, text: str = ROWS, name: str = "table.csv", **options):
    table, out = tmp_path / name, tmp_path / "out.jsonl"
    table.write_text(text)
    made = DataPreprocessorsRecipe(**options).run(Source(str(table)), out)
    return made, [json.loads(line) for line in out.read_text().splitlines()]


def test_each_row_has_a_line_in_its_order(told, tmp_path, capsys):
    made, lines = applied(tmp_path, column="city", batch=2)
    assert made.documents == 5
    assert [line["id"] for line in lines] == ["r1", "r2", "r3", "r4", "r5"]
    assert [line["answer"] for line in lines] == ["no", "yes", "no", "no", "no"]
    assert lines[1] == {"id": "r2", "answer": "yes", "status": "answered", "reason": "so"}
    assert "r2" not in "".join(told.asked), "the name of a row is not shown"
    assert r'name: "a \"b\" [c]"' in "".join(told.asked)
    assert "5 questions in 3 requests, 14 tokens each; 0 could not be read (0.0%)" in capsys.readouterr().err


def test_gaps_are_filled_and_values_that_are_there_stay(told, tmp_path):
    _, lines = applied(tmp_path, task="impute", column="city", columns=("name",))
    assert [line["answer"] for line in lines] == ["paris", "lomdon", "vienna", "berlin", "oslo"]
    assert [line["status"] for line in lines] == ["given", "given", "answered", "given", "given"]
    assert len(told.asked) == 1


def test_rows_of_json_may_lack_what_others_have(told, tmp_path):
    text = '{"name": "Sacher"}\n{"city": "rome", "name": "x"}\n{"name": "Sacher", "city": null, "floor": 3}\n'
    _, lines = applied(tmp_path, text.replace('{"name": "Sacher"}', '{"name": "Sacher", "city": ""}'), "table.jsonl",
                       task="impute", column="city")  # fmt: skip
    assert [line["answer"] for line in lines] == ["vienna", "rome", "vienna"]
    assert 'floor: "3"' in told.asked[1] + told.asked[0]


def test_sides_of_a_row_are_matched(told, tmp_path):
    text = "left_name,left_no,right_name,right_no\nRitz,1,Ritz,2\nRitz,1,Savoy,1\n"
    for options in ({"task": "entities", "kind": "hotel"}, {"task": "schema"}):
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        _, lines = applied(tmp_path, text, columns=("name",), **options)
        assert [line["answer"] for line in lines] == ["yes", "no"]
        assert "no:" not in "".join(told.asked)
    assert "the same hotel" in told.asked[0]
    assert "Attribute A" in told.asked[-1]


def test_examples_come_from_a_file(told, tmp_path, monkeypatch):
    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"id": "s1", "name": "Adlon", "city": "berlni", "answer": "yes", "reason": "It is berlin."}\n')
    seen = []
    generate = Told.generate
    monkeypatch.setattr(Told, "generate", lambda self, jobs, *rest: seen.extend(jobs) or generate(self, jobs, *rest))
    applied(tmp_path, column="city", shots=str(shots))
    contents = [message["content"] for message in seen[0].reading]
    assert contents[1:3] == [
        'Question 1: The record is [name: "Adlon", city: "berlni"]. Is there an error in the attribute city?',
        "Answer 1: It is berlin.\nyes",
    ]


def test_a_run_that_was_killed_goes_on_where_it_was(told, tmp_path, monkeypatch):
    whole = applied(tmp_path, column="city", batch=2)[1]
    (tmp_path / "out.jsonl").unlink()
    calls = []

    class Killed(BaseException):
        pass

    def dies(self, *given):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return generate(self, *given)

    generate = Told.generate
    monkeypatch.setattr(Told, "generate", dies)
    with pytest.raises(Killed):
        applied(tmp_path, column="city", batch=2)
    assert not (tmp_path / "out.jsonl").exists()
    told.asked.clear()
    made, lines = applied(tmp_path, column="city", batch=2)
    assert (made.resumed, lines) == (2, whole)
    assert len(told.asked) == 3, "what was answered is not asked again"


def test_another_setting_does_not_go_on_with_what_was_begun(told, tmp_path):
    table, out = tmp_path / "table.csv", tmp_path / "out.jsonl"
    table.write_text(ROWS)
    (tmp_path / "out.jsonl.partial").write_text("")
    (tmp_path / "out.jsonl.partial.json").write_text(json.dumps({"settings": {}, "corpus": {}, "forced": False}))
    with pytest.raises(InputError, match="was begun with"):
        DataPreprocessorsRecipe(column="city").run(Source(str(table)), out)
    assert not out.exists()
    first, other = (
        DataPreprocessorsRecipe(column="city", method=f"data_preprocessors(batch_size={size})").settings()
        for size in (2, 8)
    )
    assert first["method"] != other["method"]
    assert json.dumps(first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got no --column with --task errors; expected a column of the table"),
        ({"task": "entities", "column": "city"}, "got --column city with --task entities; expected none"),
        ({"column": "town"}, "got the column 'town'; .*table.csv has id, name, city"),
        ({"column": "city", "columns": ("nmae",)}, "got the column 'nmae'"),
        ({"column": "city", "choices": ("a",)}, "got --choices with --task errors"),
        ({"task": "entities"}, "row 0 has the columns id, name, city; expected those of a pair: left_"),
        ({"column": "city", "method": "data_preprocessors(size=3)"}, "TablePreprocessor has no field 'size'"),
        ({"column": "city", "method": "lastde"}, "got --method lastde"),
        (
            {"task": "impute", "column": "city", "method": "data_preprocessors(scorer='log-probabilities')"},
            "no --choices; expected values to choose among",
        ),
        ({"column": "city", "shots": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line_and_leaves_nothing(told, tmp_path, options, message):
    with pytest.raises(InputError, match=message) as caught:
        applied(tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()
    assert not told.asked


def test_a_service_answers(tmp_path, home, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with Loopback() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        _, lines = applied(tmp_path, column="city", model="endpoint:tiny")
        assert {line["status"] for line in lines} <= {"answered", "retried", "failed"}
        assert len(lines) == 5
        assert server.requests[0][1]["messages"][0]["role"] == "system"


# Pipeline steps


def documents():
    given = [("Ritz", "paris"), ("Savoy", "lomdon"), ("Sacher", None), ("Nobody", "")]
    return [
        Document("text", str(i), metadata={"name": name, "city": city, "place": i})
        for i, (name, city) in enumerate(given)
    ]


def test_steps_fill_and_drop_documents_by_their_metadata(told):
    method = TablePreprocessor("any")
    filled = FillGaps(method, "city")
    kept = list(filled.run(documents()))
    assert [document.metadata["city"] for document in kept] == ["paris", "lomdon", "vienna", ""]
    assert filled.stats["changed_filled"].total == 1
    dropping = DropErrors(method, "city", columns=["city"])
    assert [document.id for document in dropping.run(kept)] == ["0", "2", "3"]
    assert dropping.stats["dropped_error"].total == 1
    assert "place" not in "".join(told.asked)
    assert 'name: "Savoy"' not in told.asked[-3]


def test_a_step_goes_to_another_process_without_the_model(told):
    method = TablePreprocessor("any", batch_size=2)
    method.detect_errors([{"city": "paris"}], "city")
    assert "_teacher" in vars(method)
    again = pickle.loads(pickle.dumps(DropErrors(method, "city")))
    assert "_teacher" not in vars(again.method)
    assert again.method.batch_size == 2
    assert [document.id for document in again.run(documents())] == ["0", "2", "3"]

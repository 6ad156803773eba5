"""Tables by prompting: one answer a row whatever the batches, a form that no cell breaks, and nothing that leaks."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from broadsheet.console import InputError
from broadsheet.curate import Shot, TablePreprocessor
from broadsheet.curate.tables import parsing
from broadsheet.curate.tables.batches import batches
from broadsheet.curate.tables.messages import TablePrompt
from broadsheet.curate.tables.peers import CosineThreshold, Majority, Neighbours, SimilarityRegression, sides_of_cell
from broadsheet.curate.tables.records import contextualize, pairs_of, records
from broadsheet.curate.tables.scoring import agreement, balanced_accuracy, f1, imputed
from broadsheet.curate.tables.tasks import EntityMatching, ErrorDetection, Imputation
from broadsheet.teacher import Completion, Teacher
from broadsheet.teacher.base import Meter, ScoreJob, TeacherJob

NASTY = [
    'he said "no"',
    "[x: 1], ]",
    "two\nQuestion 2: lines\nAnswer 1: yes",
    "a\u2028b\x85c",
    "\\",
    "<|im_end|>",
    "   x",
]


class Ruled:
    """A backend that answers each numbered question by a rule on its text; `spoil` changes what it then says.

    Attributes:
        asked: the conversations, in the order in which they came.
    """

    def __init__(self, rule, spoil=None, finish="stop"):
        self.rule, self.spoil, self.finish = rule, spoil or (lambda text, questions: text), finish
        self.asked = []

    def identity(self):
        return {"ruled": id(self)}

    def read(self, prompts, reserve):
        return list(prompts)

    def generate(self, jobs: list[TeacherJob], sampling, meter: Meter):
        self.sampling = sampling
        for place, job in enumerate(jobs):
            meter.start()
            self.asked.append(job.reading)
            questions = questions_of(job.reading)
            said = "\n".join(f"Answer {n}: because\n{self.rule(q)}" for n, q in enumerate(questions, start=1))
            words = sum(len(message["content"].split()) for message in job.reading)
            yield [(place, i, Completion(self.spoil(said, questions), self.finish, 5, words)) for i in job.samples]

    def score(self, jobs: list[ScoreJob], meter: Meter):
        for place, job in enumerate(jobs):
            meter.start()
            self.asked.append(job.reading)
            said = self.rule(job.reading[-1]["content"])
            yield [(place, [(0.0 if choice == said else -1.0, 1) for choice in job.choices])]


def questions_of(conversation) -> list[str]:
    """The questions of the last message, in order; fails where they are not numbered one by one."""
    lines = conversation[-1]["content"].split("\n")
    for number, line in enumerate(lines, start=1):
        assert line.startswith(f"Question {number}: ")
    return [line.partition(": ")[2] for line in lines]


def ruled(rule, spoil=None, finish="stop", **fields):
    backend = Ruled(rule, spoil, finish)
    return TablePreprocessor(Teacher(backend, cache=False), **fields), backend


def by_digits(question: str) -> str:
    return "yes" if sum(map(int, re.findall(r"\d", question))) % 3 == 0 else "no"


TABLE = [{"id": i, "name": f"thing {i}", "note": NASTY[i % len(NASTY)], "city": f"c{i * 7 % 5}"} for i in range(23)]
EXPECTED = [by_digits(ErrorDetection(column="city").question(row)) == "yes" for row in TABLE]


# One answer for each row


@pytest.mark.parametrize("batching", ["random", "cluster"])
@pytest.mark.parametrize("size", [1, 3, 8, 40])
def test_answers_are_those_of_the_rows_whatever_the_batches(size, batching):
    found = ruled(by_digits)[0].detect_errors(TABLE, "city", batch_size=size, batching=batching)
    assert found.values == EXPECTED
    assert len(set(EXPECTED)) == 2
    assert {answer.status for answer in found} == {"answered"}


@given(
    st.lists(st.text(max_size=30), min_size=1, max_size=12), st.integers(1, 6), st.sampled_from(["random", "cluster"])
)
def test_no_cell_changes_which_rows_are_answered(cells, size, batching):
    rows = [{"key": f"row {i}", "value": text} for i, text in enumerate(cells)]

    def rule(question: str) -> str:
        return re.search(r'"row (\d+)"', question)[1]

    method, _ = ruled(rule, batch_size=size, batching=batching)
    found = method.impute([row | {"target": None} for row in rows], "target")
    assert found.values == [str(i) for i in range(len(rows))]


def fewer(text, questions):
    return text.rsplit("\nAnswer", 1)[0] if len(questions) > 1 else text


def without_the_second(text, questions):
    return re.sub(r"Answer 2: .*\n.*\n?", "", text)


def shifted(text, questions):
    return re.sub(r"Answer (\d+)", lambda n: f"Answer {int(n[1]) + 1}", text) if len(questions) > 1 else text


def began_at_nought(text, questions):
    return re.sub(r"Answer (\d+)", lambda n: f"Answer {int(n[1]) - 1}", text) if len(questions) > 1 else text


def all_the_same_number(text, questions):
    return re.sub(r"Answer \d+", "Answer 2", text) if len(questions) > 1 else text


def one_answer_in_two(text, questions):
    if len(questions) < 2:
        return text
    later = re.sub(r"Answer (\d+)", lambda n: f"Answer {int(n[1]) + 1}", text)
    return f"Answer 1: first half\nyes\n{later}"


def turned_round(text, questions):
    return "\n".join(reversed(re.findall(r"Answer \d+: .*\n.*", text)))


def without_numbers(text, questions):
    return re.sub(r"Answer \d+: ", "", text) if len(questions) > 1 else text


def with_prose(text, questions):
    return f"Sure, here they are:\n\n{text}\n\n"


def questions_repeated(text, questions):
    for number, question in enumerate(questions, start=1):
        text = text.replace(f"Answer {number}:", f"Question {number}: {question}\nAnswer {number}:")
    return text


def bold(text, questions):
    return re.sub(r"^(yes|no)$", r"**\1.**", re.sub(r"(Answer \d+:)", r"**\1**", text), flags=re.MULTILINE)


SPOILT = [
    fewer,
    without_the_second,
    shifted,
    began_at_nought,
    all_the_same_number,
    one_answer_in_two,
    turned_round,
    without_numbers,
]
UNSPOILT = [with_prose, questions_repeated, bold]


@pytest.mark.parametrize("spoil", [*SPOILT, *UNSPOILT])
def test_what_a_model_makes_of_the_form_shifts_no_answer(spoil):
    method, backend = ruled(by_digits, spoil, batch_size=4)
    found = method.detect_errors(TABLE, "city")
    assert found.values == EXPECTED
    assert found.failure_rate == 0
    assert (found.retry_rate > 0) == (spoil in SPOILT)
    assert len(backend.asked) == found.requests


def test_what_cannot_be_read_is_asked_once_more_alone_and_has_failed_then():
    def unsure(question):
        return "who knows" if "thing 5" in question else by_digits(question)

    method, backend = ruled(unsure, batch_size=8)
    found = method.detect_errors(TABLE, "city")
    assert [answer.status for answer in found].count("failed") == 1
    assert found[5] == found.answers[5]
    assert (found[5].value, found[5].status, found[5].requests) == (False, "failed", 2)
    assert [questions_of(asked) for asked in backend.asked[3:]] == [[ErrorDetection(column="city").question(TABLE[5])]]
    assert found.failure_rate == pytest.approx(1 / 23)
    assert "4.3% failed" in str(found)
    empty = ruled(lambda question: "?", batch_size=8)[0].impute([{"a": 1, "city": None}], "city")
    assert (empty.values, empty.failure_rate) == ([""], 1.0)


def test_a_row_that_was_alone_is_asked_again_only_where_it_may_be_answered_otherwise():
    for temperature, requests in ((0.0, 3), (0.7, 6)):
        method, backend = ruled(lambda question: "hm", batch_size=1, temperature=temperature)
        found = method.detect_errors(TABLE[:3], "city")
        assert (found.requests, len(backend.asked)) == (requests, requests)
        assert found.failure_rate == 1


def test_an_answer_that_was_cut_off_is_none():
    method, backend = ruled(lambda question: "a value of", finish="length", batch_size=2)
    found = method.impute([{"a": 1, "b": None}, {"a": 2, "b": None}], "b")
    last = questions_of(backend.asked[0])[1]
    assert questions_of(backend.asked[1]) == [last]
    cut = 0 if 'a: "1"' in last else 1
    assert (found[cut].value, found[cut].status) == ("", "failed"), "alone it is cut off too"
    assert (found[1 - cut].value, found[1 - cut].status) == ("a value of", "answered"), "what stood before was whole"


def test_nothing_to_ask_asks_nothing():
    method, backend = ruled(by_digits)
    for found in (
        method.detect_errors([], "city"),
        method.impute(pd.DataFrame({"city": []}), "city"),
        method.match_entities([]),
        method.match_schemas({}, {"a": "b"}),
        TablePreprocessor(method.teacher, scorer="log-probabilities").detect_errors([], "city"),
    ):
        assert (found.values, found.requests, found.tokens_each, found.failure_rate) == ([], 0, 0, 0)
    assert not backend.asked
    given = method.impute([{"city": "rome"}], "city")
    assert (given.values, given.asked, given[0].status) == (["rome"], 0, "given")


# What the model is shown


def shown(backend) -> str:
    return "\n".join(message["content"] for asked in backend.asked for message in asked)


def test_dropped_columns_are_not_shown_and_the_target_is():
    shot = Shot({"id": 77, "name": "cup", "note": "secret", "city": "rome"}, "no", "The city is rome.")
    for columns in (["name"], ["name", "city"]):
        method, backend = ruled(by_digits)
        method.detect_errors(TABLE, "city", columns=columns, shots=[shot])
        assert "secret" not in shown(backend)
        assert "id:" not in shown(backend)
        assert "note" not in shown(backend)
        assert '[name: "thing 3", city: "c1"]' in shown(backend)
    method, backend = ruled(by_digits)
    method.match_entities([(TABLE[0], TABLE[1])], columns=["name"])
    assert 'Record A is [name: "thing 0"]. Record B is [name: "thing 1"].' in shown(backend)


@pytest.mark.parametrize("scorer", ["writing", "log-probabilities"])
def test_the_value_that_is_to_be_told_is_never_shown(scorer):
    rows = [{"name": f"thing {i}", "city": f"gold{i}"} for i in range(6)]
    shots = [Shot({"name": "cup", "city": "hidden shot"}, "vienna", "By its name.")]
    method, backend = ruled(lambda question: "gold1", scorer=scorer)
    found = method.impute(rows, "city", shots=shots, every=True)
    assert found.values == ["gold1"] * 6
    assert "gold" not in shown(backend)
    assert "hidden shot" not in shown(backend)
    assert "vienna" in shown(backend)
    assert shown(backend).count("city:") == shown(backend).count("city: ?]") >= 7


def test_only_gaps_are_filled_and_the_column_comes_back_whole():
    frame = pd.DataFrame({"name": list("abcd"), "city": ["rome", None, "", float("nan")], "floor": [3.0, 1, 2, None]})
    method, backend = ruled(lambda question: re.search(r'name: "(\w)"', question)[1].upper(), batch_size=2)
    found = method.impute(frame, "city")
    assert found.values == ["rome", "B", "C", "D"]
    assert [answer.status for answer in found] == ["given", "answered", "answered", "answered"]
    assert found.asked == 3
    assert 'floor: "1"' in shown(backend), "a whole number that a gap made a float"
    assert "floor: ?" in shown(backend)
    assert ruled(by_digits)[0].impute([{"a": 1}, {"a": 2, "b": "x"}], "b").values[1] == "x"


def test_the_messages_stand_in_the_papers_order():
    shots = [
        Shot({"city": "rmoe"}, True, "The city should be\nrome."),
        Shot({"city": "oslo"}, "No.", "The city is right."),
    ]
    [system, *examples, asked] = TablePrompt(ErrorDetection(column="city"), shots).numbered(["first", "second"])
    text = system["content"]
    parts = ["database engineer", "attribute city holds an error", "two lines: first the reason", "name the attribute"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    assert [message["role"] for message in examples] == ["user", "assistant"] * 2
    assert [message["content"][:11] for message in examples] == [
        "Question 1:",
        "Answer 1: T",
        "Question 2:",
        "Answer 2: T",
    ]
    assert examples[1]["content"] == "Answer 1: The city should be rome.\nyes", "the reason comes first, on one line"
    assert examples[3]["content"].endswith("\nno")
    assert asked == {"role": "user", "content": "Question 1: first\nQuestion 2: second"}
    alone = TablePrompt(EntityMatching(), reasons=False).alone("question")
    assert [message["role"] for message in alone] == ["system", "user"]
    assert "reason" not in alone[0]["content"]
    assert "name the attribute" not in TablePrompt(Imputation(column="city")).numbered(["q"])[0]["content"]


@pytest.mark.parametrize("cell", NASTY)
def test_a_cell_stays_in_its_quotes_on_its_line(cell):
    text = contextualize({"a": cell, "b]: \n": cell, "c": None})
    assert len(text.splitlines()) == 1
    assert "<|" not in text
    [a, b, _] = re.findall(r'"(?:[^"\\]|\\.)*"', text)
    assert (json.loads(a), json.loads(b)) == (cell, "b]: \n")
    assert text.endswith("c: ?]")


def test_batches_of_alike_texts_hold_what_is_alike():
    texts = [f"{kind}{i}" for i in range(16) for kind in ("red apple fruit a", "steel screw tool b")]
    cut = batches(texts, 4, "cluster")
    assert sorted(place for places in cut for place in places) == list(range(32))
    assert max(map(len, cut)) == 4
    assert all(len({place % 2 for place in places}) == 1 for places in cut)
    mixed = batches(texts, 4, "random")
    assert any(len({place % 2 for place in places}) == 2 for places in mixed)
    assert mixed == batches(texts, 4, "random") != batches(texts, 4, "random", seed=1)
    seen = []
    by_hand = batches(texts, 4, "cluster", encoder=lambda given: seen.append(given) or np.eye(2)[[0, 1] * 16])
    assert seen == [texts]
    assert all(len({place % 2 for place in places}) == 1 for places in by_hand)


def test_tokens_of_a_row_fall_towards_those_of_its_own_question():
    shots = [Shot({"name": "cup", "city": "rome"}, "no", "The city is right. " * 9)]
    rows = [{"name": "plain words here", "city": "rome"}] * 16
    each = {}
    for size in (1, 2, 4, 16):
        found = ruled(lambda question: "no", batch_size=size)[0].detect_errors(rows, "city", shots=shots)
        each[size] = found[0].prompt_tokens
        assert found[0].first_prompt_tokens == each[size]
    asked = 2 + len(ErrorDetection(column="city").question(rows[0]).split())
    shared = each[1] - asked
    assert each == pytest.approx({size: shared / size + asked for size in each})
    spoilt = ruled(lambda question: "no", shifted, batch_size=4)[0].detect_errors(rows, "city", shots=shots)
    assert spoilt[0].first_prompt_tokens == each[4]
    assert spoilt[0].prompt_tokens == pytest.approx(each[4] + each[1]), "asked twice, paid twice"


# Matching


def test_attributes_of_two_schemas_are_matched_each_with_each():
    def alike(question):
        a, b = re.findall(r'name: "(\w+)"', question)
        return "yes" if a[0] == b[0] else "no"

    method, backend = ruled(alike, batch_size=3)
    other = pd.DataFrame({"name": ["price", "cost", "put"], "description": ["to pay", "to make", ""]})
    found = method.match_schemas({"cents": "of a dollar", "pay": "due"}, other)
    assert found.values == [False, True, False, True, False, True]
    assert 'name: "cents", description: "of a dollar"' in shown(backend)


def test_pairs_are_read_from_tables_and_from_pairs():
    frame = pd.DataFrame({"id": [1], "left_name": ["a"], "left_x": [1], "right_name": ["b"], "right_x": [2]})
    assert pairs_of(frame) == [({"name": "a", "x": 1}, {"name": "b", "x": 2})]
    assert pairs_of([{"ltable_a": 1, "rtable_a": 2}]) == [({"a": 1}, {"a": 2})]
    assert pairs_of([({"a": 1}, {"a": 2})]) == [({"a": 1}, {"a": 2})]


def test_both_orders_are_asked_and_weighed():
    def first_is_larger(question):
        a, b = map(int, re.findall(r'n: "(\d+)"', question))
        return "yes" if a > b or a == b == 7 else "no"

    both = [({"n": 2}, {"n": 1}), ({"n": 7}, {"n": 7}), ({"n": 1}, {"n": 2})]
    for scorer in ("writing", "log-probabilities"):
        method, _ = ruled(first_is_larger, scorer=scorer, batch_size=2)
        assert method.match_entities(both).values == [True, True, False]
        found = method.match_entities(both, both_orders=True)
        assert found.values == [False, True, False]
        assert found[0].requests == 2
        assert found[0].prompt_tokens > 0 or scorer != "writing"
    assert [answer.score for answer in found] == pytest.approx([0.0, 1.0, 0.0])


# Log-probabilities


def test_answers_are_compared_by_their_log_probabilities(tiny_model, tiny_tokenizer):
    from broadsheet.teacher.local import Local

    teacher = Teacher(Local(tiny_model(max_position_embeddings=1024), tiny_tokenizer()), cache=False)
    method = TablePreprocessor(teacher, scorer="log-probabilities")
    found = method.detect_errors(TABLE[:5], "city", columns=["name"])
    task = ErrorDetection(["name"], "city")
    own = teacher.score(
        [TablePrompt(task, reasons=False).alone(task.question(row)) for row in TABLE[:5]], ["yes", "no"]
    )
    odds = own[:, 0] - own[:, 1]
    assert [answer.score for answer in found] == pytest.approx(odds.tolist(), abs=1e-5)
    assert found.values == (odds > 0).tolist()
    assert found.requests == 5
    middle = float(np.median(odds))
    stricter = TablePreprocessor(teacher, scorer="log-probabilities", threshold=middle)
    assert sum(stricter.detect_errors(TABLE[:5], "city", columns=["name"]).values) == 2


def test_a_value_is_chosen_among_those_of_the_column():
    rows = [{"name": "a", "city": "rome"}, {"name": "b", "city": None}, {"name": "c", "city": "oslo"}]
    method, _ = ruled(lambda question: "oslo", scorer="log-probabilities")
    assert method.impute(rows, "city").values == ["rome", "oslo", "oslo"]
    assert method.impute(rows, "city", choices=["bern"]).values[1] == "bern"
    with pytest.raises(InputError, match="no values to choose among"):
        method.impute([{"city": None}], "city")


# What was said, and how right it is


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("yes.", True), ("Yes", True), ('"Yes."', True), ("(yes)", True)),
        *(("**No**", False), ("`no`", False), ("'no'", False), ("No, it is right.", False), ("NO!", False)),
        *(("answer", None), ("nothing", None), ("yesterday", None), ("there is no error", None), ("yes or no", None)),
        ("", None),
    ],
)
def test_yes_and_no_are_read_and_nothing_else(text, expected):
    assert parsing.yes_no(text) is expected


def test_values_are_read_without_what_is_put_around_them():
    assert parsing.value('city: "new\\u0020york"', "city") == "new york"
    assert parsing.value('"sony" and "philips"') == '"sony" and "philips"'
    assert [parsing.value(text) for text in ("??", " ", "`x`", "o'neil", "'x'")] == [None, None, "x", "o'neil", "x"]
    assert parsing.split("Final answer: yes", 1)[1].answer == "yes"
    assert parsing.split("Answer 1: so\n\nAnswer: no\n", 1)[1] == parsing.Said("no", "so")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_figures_are_those_of_scikit_learn(both):
    so, said = zip(*both, strict=True)
    found = agreement(so, said)
    assert found["f1"] == pytest.approx(f1_score(so, said, zero_division=0))
    if len(set(so)) == 2:
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(so, said))
    values = np.array(both, dtype=float)
    twice, doubled = np.full((1, len(both)), 2.0), np.concatenate([values, values])
    once = np.ones((1, len(doubled)))
    for figure in (f1, balanced_accuracy):
        assert figure(values, twice) == pytest.approx(figure(doubled, once))


def test_an_answerer_that_always_says_no_has_no_f1():
    found = agreement([True] + [False] * 19, [False] * 20)
    assert (found["f1"], found["accuracy"], found["balanced_accuracy"]) == (0, 0.95, 0.5)
    assert imputed(["New York", "x"], ["new  york.", "y"]) == {"exact": 0, "normalised": 0.5}
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        agreement([True, False], [True])


# Peers


def test_peers_tell_what_is_plain():
    words = ["alpha stone", "river bend", "copper mill", "green harbour", "winter gate", "orange field"]
    same = [({"name": word, "no": i}, {"name": word.replace("r", "rr"), "no": i}) for i, word in enumerate(words)]
    other = [
        ({"name": a, "no": i}, {"name": b, "no": i})
        for i, (a, b) in enumerate(zip(words, words[1:] + words[:1], strict=True))
    ]
    known, answers = same[:4] + other[:4], [True] * 4 + [False] * 4
    for peer in (CosineThreshold(), SimilarityRegression()):
        assert peer.fit(known, answers).predict(same[4:] + other[4:]) == [True, True, False, False]
    assert SimilarityRegression(["no"]).fit(known, answers).features(same[:1]).shape == (1, 4)
    assert Majority().fit(answers[:6]).predict([0, 0]) == [True, True]
    records_ = [{"name": f"{word}.part", "kind": word} for word in words]
    wrong = [record | {"kind": words[i - 1]} for i, record in enumerate(records_)]
    cells = [sides_of_cell(record, "kind") for record in records_ + wrong]
    told = CosineThreshold(reverse=True).fit(cells, [False] * 6 + [True] * 6).predict(cells)
    assert told == [False] * 6 + [True] * 6
    assert sides_of_cell({"a": 1, "b": 2}, "b") == ({"a": 2}, {"a": 1})


def test_neighbours_fill_a_gap_from_the_nearest_row_and_do_not_look():
    known = [{"name": f"{kind} {i}", "maker": kind} for kind in ("sony", "philips", "apple") for i in range(4)]
    asked = [{"name": "apple 9", "maker": "sony"}, {"name": "philips 8", "maker": None}]
    assert Neighbours("maker").fit([*known, {"name": "x", "maker": None}]).predict(asked) == ["apple", "philips"]
    near = Neighbours("maker", k=1).fit([{"name": "aa 1", "maker": "a sony"}, {"name": "ab 2", "maker": "philips"}])
    assert near.predict([{"name": "ab 2", "maker": "a sony"}]) == ["philips"]
    with pytest.raises(ValueError, match="no rows with a value"):
        Neighbours("maker").fit([{"maker": ""}])


# Tables, and what is refused


def test_tables_of_all_kinds_are_the_same_rows():
    from datasets import Dataset

    rows = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    for table in (rows, pd.DataFrame(rows), Dataset.from_list(rows), pa.Table.from_pylist(rows), iter(rows)):
        assert records(table) == rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.detect_errors(TABLE, "town"), "got the column 'town'; the table has id, name, note, city"),
        (lambda m: m.detect_errors(TABLE, "city", columns=["naem"]), "got the column 'naem'"),
        (lambda m: m.detect_errors(TABLE, "city", columns="name"), "expected a list of names"),
        (lambda m: m.detect_errors("table.csv", "city"), "got a table of type str"),
        (lambda m: m.detect_errors([["a"]], "city"), "row 0 is of type list"),
        (lambda m: m.match_entities([({}, {}, {})]), "expected two dictionaries"),
        (lambda m: m.match_entities([{"a": 1}]), "expected those of a pair: left_"),
        (lambda m: m.match_schemas([{"title": "x"}], {"a": "b"}), "got the column 'name'; a schema has title"),
        (lambda m: m.detect_errors(TABLE, "city", shots=[Shot({"city": "x"}, "yes")]), "example 1 has no reason"),
        (lambda m: m.detect_errors(TABLE, "city", shots=[Shot({"city": "x"}, "perhaps", "r")]), "expected yes or no"),
        (lambda m: m.detect_errors(TABLE, "city", shots=[Shot(({}, {}), "yes", "r")]), "expected a record"),
        (lambda m: m.match_entities([({}, {})], shots=[Shot({}, "yes", "r")]), "expected a pair of records"),
        (lambda m: m.impute([*TABLE, {"city": None}], "city", shots=[Shot({}, " ", "r")]), "example 1 has no answer"),
        (lambda m: m.detect_errors(TABLE, "city", batch_size=0), "batch_size=0; expected 1 or more"),
        (lambda m: m.detect_errors(TABLE, "city", batching="sorted"), "batching='sorted'; expected 'random' or 'clus"),
        (lambda m: TablePreprocessor(scorer="guess"), "scorer='guess'; expected 'writing' or 'log-probabilities'"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line_before_anything_is(call, message):
    method, backend = ruled(by_digits)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        call(method)
    assert "\n" not in str(caught.value)
    assert not backend.asked

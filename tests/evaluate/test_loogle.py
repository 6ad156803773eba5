"""What must be true of LooGLE's rows, prompts, lengths and scores (arXiv:2311.04939)."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.evaluate import LooGLE, Question
from broadsheet.evaluate.loogle import TASKS, aggregate, both_ends, evidence_depth, mean

DOCUMENT = "Ada wrote the first program. {Braces} and 100 % stay. Charles built no engine."
PAIRS = [
    {"Q": "Who wrote the first program?", "A": "Ada", "S": ["Ada wrote the first program."]},
    {"Q": "What did Charles build?", "A": "no engine", "S": "Charles built no engine."},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def row(**fields):
    return {"input": DOCUMENT, "title": "Ada", "qa_pairs": "none", "output": "none"} | fields


def test_pairs_as_a_string_and_as_a_list_give_the_same_questions(tmp_path):
    forms = [PAIRS, repr(PAIRS), json.dumps(PAIRS), f"  {PAIRS!r}\n"]
    found = [list(LooGLE().read(write(tmp_path / "a.jsonl", [row(qa_pairs=form)]))) for form in forms]
    assert all(questions == found[0] for questions in found)
    assert [question.evidence for question in found[0]] == [
        ("Ada wrote the first program.",),
        ("Charles built no engine.",),
    ]


def test_the_task_is_seen_from_the_row(tmp_path):
    masks = {"<mask-0>": "Ada", "<mask-1>": "Charles"}
    rows = [
        row(qa_pairs=PAIRS[:1]),
        row(qa_pairs=[{"Q": "<mask-0> and <mask-1>", "A": masks}]),
        row(qa_pairs=[{"Q": "In which order?", "A": "2,1", "type": "Timeline reorder", "S": None}]),
        row(qa_pairs=[{"Q": "How many?", "A": 2, "type": "computation"}]),
        row(output="An abstract."),
    ]
    questions = list(LooGLE().read(write(tmp_path / "a.jsonl", rows)))
    assert [(question.task, question.kind, question.answer) for question in questions] == [
        ("shortdep_qa", "", "Ada"),
        ("shortdep_cloze", "", masks),
        ("longdep_qa", "timeline_reorder", "2,1"),
        ("longdep_qa", "computation", "2"),
        ("longdep_summarization", "", "An abstract."),
    ]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (row(qa_pairs="[{'Q': open('x')}]"), "holds no list"),
        (row(qa_pairs="__import__('os').abort()"), "holds no list"),
        (row(qa_pairs="{'Q': 'q', 'A': 'a'}"), "holds no list"),
        (row(qa_pairs=7), "qa_pairs is int"),
        (row(), "neither qa_pairs nor a reference"),
        (row(qa_pairs=None), "neither qa_pairs nor a reference"),
        (row(qa_pairs=["What?"]), "question 1 is not a dictionary with a text Q"),
        (row(qa_pairs=[*PAIRS, {"Q": "q", "A": ""}]), "question 3 has no answer A"),
        (row(qa_pairs=[{"Q": "q", "A": {}}]), "does not map masks to names"),
        (row(qa_pairs=[{"Q": "q", "A": {"<mask-0>": 1}}]), "does not map masks to names"),
        (row(qa_pairs=[{"Q": "q", "A": "I,I", "type": "timeline_reorder"}]), "expected different labels"),
        ({"text": "no input"}, "no field 'input'"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_and_nothing_in_it_is_run(bad, problem, tmp_path, capsys):
    bad = {"id": "a row's own id", **bad}
    path = write(tmp_path / "loogle.jsonl", [row(output="A summary."), bad, row(qa_pairs=PAIRS)])
    with pytest.raises(InputError, match=problem) as caught:
        list(LooGLE().read(path))
    assert "loogle.jsonl:2" in str(caught.value)
    assert "\n" not in str(caught.value)
    kept = list(LooGLE().read(path, on_error="skip"))
    assert [question.task for question in kept] == ["longdep_summarization", "shortdep_qa", "shortdep_qa"]
    assert "1" in capsys.readouterr().err


def question(task, answer="Ada", kind=""):
    return Question(task, DOCUMENT, "Who wrote it?" if task != "longdep_summarization" else "", answer, kind=kind)


@pytest.mark.parametrize("task", TASKS)
def test_prompts_have_instruction_document_and_question_in_this_order(task):
    prompt = LooGLE().prompt(question(task))
    before, document, after = prompt.partition(DOCUMENT)
    assert document
    assert len(before.split()) > 4
    assert before.endswith("\n")
    assert prompt.endswith(":")
    assert ("Who wrote it?" in after) == (task != "longdep_summarization")


def test_cloze_prompts_ask_for_a_dictionary_that_can_be_read():
    prompt = LooGLE().prompt(question("shortdep_cloze"))
    start = prompt.index("{")
    assert list(json.loads(prompt[start : prompt.index("}") + 1])) == ["<mask-0>", "<mask-1>"]


@given(st.lists(st.integers(), max_size=40), st.integers(1, 50))
@settings(max_examples=200)
def test_cutting_keeps_exactly_so_many_tokens_and_both_ends(ids, length):
    kept = both_ends(ids, length)
    assert len(kept) == min(length, len(ids))
    head, tail = length // 2, length - length // 2
    if len(ids) > length:
        assert kept[:head] == ids[:head]
        assert kept[len(kept) - tail :] == ids[len(ids) - tail :]
    else:
        assert kept == ids


def test_cutting_to_nothing_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        both_ends([1, 2], 0)


@pytest.mark.parametrize("length", [1, 2, 31, 64])
def test_a_long_prompt_keeps_the_very_tokens_of_its_ends(length, tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    long = Question("shortdep_qa", "naïve “text” 漢字 " * 50, "Who?", "Ada")
    whole = LooGLE().encode(long, tokenizer)
    cut = LooGLE(max_length=length).encode(long, tokenizer)
    assert whole.cut == 0
    assert len(cut.ids) == length
    assert cut.cut == len(whole.ids) - length
    assert cut.ids == [*whole.ids[: length // 2], *whole.ids[len(whole.ids) - (length - length // 2) :]]
    assert LooGLE(max_length=len(whole.ids), truncate="error").encode(long, tokenizer) == whole
    with pytest.raises(InputError, match=f"at most {length}"):
        LooGLE(max_length=length, truncate="error").encode(long, tokenizer)


@pytest.mark.parametrize("judge", [None, lambda question, gold, answer: gold == answer])
@pytest.mark.parametrize(
    "gold",
    [
        question("shortdep_qa"),
        question("longdep_qa", "a red house on the hill, no more"),
        question("longdep_summarization", "We show. It works, at last"),
        question("shortdep_cloze", {"<mask-0>": "Ada", "<mask-1>": "Charles “B” Babbage"}),
        question("longdep_qa", "II,IV,I,III", "timeline_reorder"),
    ],
    ids=lambda question: question.kind or question.task,
)
def test_the_gold_answer_scores_full_marks_on_every_plain_metric(gold, judge):
    for name, value in LooGLE(judge=judge).score(gold, f" {gold.gold}\n").items():
        if name in ("lsd", "lmd", "sd", "sdd"):
            assert value == 0, name
        elif not name.endswith(("_recall", "_authors")):
            assert mean([value]) == pytest.approx(1), name


def test_a_judge_is_asked_about_answers_and_not_about_summaries():
    asked = []
    loogle = LooGLE(judge=lambda *item: asked.append(item))
    assert loogle.score(question("longdep_qa"), "Ada!")["judge"] == (0, 0)  # it could not tell
    assert "judge" not in loogle.score(question("longdep_summarization"), "Ada!")
    assert asked == [("Who wrote it?", "Ada", "Ada!")]


def test_meteor_is_added_where_it_is_wanted(monkeypatch):
    from broadsheet.evaluate import loogle_metrics

    monkeypatch.setattr(loogle_metrics, "meteor", lambda gold, answer, ordered=True: 0.5 if ordered else 0.25)
    scores = LooGLE(meteor=True).score(question("shortdep_qa"), "Ada")
    assert (scores["meteor"], scores["meteor_authors"]) == (0.5, 0.25)
    assert "meteor" not in LooGLE().score(question("shortdep_qa"), "Ada")


def test_a_summary_weighs_masks_and_not_questions():
    one = question("shortdep_cloze", {"<mask-0>": "Ada"})
    four = question("shortdep_cloze", {f"<mask-{i}>": f"name {i}" for i in range(4)})
    summary = LooGLE().summary([one, question("shortdep_qa"), four], ["{'<mask-0>': 'Ada'}", "Ada", "no idea"])
    assert summary["shortdep_cloze"]["cloze_exact"] == pytest.approx(1 / 5)
    assert summary["shortdep_cloze"]["n"] == 2
    assert summary["shortdep_qa"]["token_f1"] == 1
    with pytest.raises(InputError, match="1 predictions for 2 questions"):
        LooGLE().summary([one, one], ["Ada"])


def test_metrics_that_only_some_questions_have_are_means_over_those():
    assert aggregate([{"a": 1.0}, {"a": 0.0, "b": (1, 4)}, {"b": (0, 1)}]) == {"a": 0.5, "b": 1 / 5}
    assert math.isnan(mean([(0, 0)]))


def test_evidence_is_found_where_it_stands_also_when_it_is_not_verbatim():
    words = [f"w{i}" for i in range(1000)]
    text = " ".join(words)

    def depth(*evidence):
        return evidence_depth(Question("shortdep_qa", text, "?", "a", evidence=evidence))

    assert depth(" ".join(words[500:520])) == pytest.approx(0.51, abs=0.005)
    assert depth(" ".join([*words[200:210], "unlike", *words[211:220]]).upper()) == pytest.approx(0.21, abs=0.005)
    assert depth(words[0]) == pytest.approx(0, abs=0.005)
    assert depth(" ".join(words[0:9]), " ".join(words[990:999])) == pytest.approx(0.5, abs=0.01)
    assert depth("nothing of the kind is in there") is None
    assert depth(" ".join(words[0:9]), "nothing of the kind") is None
    assert depth() is None
    assert evidence_depth(Question("shortdep_qa", "", "?", "a", evidence=("x y",))) is None

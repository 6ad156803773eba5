"""What must be true of questions that are made from documentation: each has one right answer, the gold one."""

from __future__ import annotations

import pytest

from broadsheet.console import InputError
from broadsheet.data.corpora import Document
from broadsheet.data.pydocs import split_summary
from broadsheet.evaluate.loogle import LooGLE, evidence_depth
from broadsheet.evaluate.trials.documentation import questions

COLOURS = ["red", "blue", "green", "amber", "white", "black", "brown", "grey", "pink", "teal", "olive", "coral"]
COLOURS += ["beige", "ivory", "khaki"]


def module(name, n=15, summary="Tools for painting walls in many colours, with care."):
    """The rows of a module whose functions are described by sentences of their own, and of one that is not."""
    texts = [("module", name, summary + "\n\nMore."), ("function", f"{name}.setup", "Short.")]
    for i, colour in enumerate(COLOURS[:n]):
        text = f"Paint\nwall number {i} of {name} {colour} from the top.\n\n" + "Use a broad brush and a bucket. " * 5
        texts.append(("function", f"{name}.paint{i:02}", text))
    texts.insert(3, ("function", f"{name}.again", texts[2][2]))  # described as its neighbour: neither is to be asked
    texts.append(("function", f"{name}.paint99.<locals>.inner", "Paint a wall that is inside another one."))
    for kind, title, text in texts:
        metadata = {"kind": kind, "module": name, "title": title, "summary": split_summary(text)[0]}
        yield Document(title, text, metadata)


CORPUS = [row for name in ("walls", "walls.inner", "doors", "roofs") for row in module(name)]
CORPUS += module("tiny", n=3)
CORPUS.append(Document("readme", "Read me.", {"kind": "readme", "module": "walls", "title": "readme", "summary": ""}))
SIZE = {"n_documents": 3, "per_document": 10, "tokens": 750}


def test_every_task_is_asked_of_every_document():
    found = questions(CORPUS, seed=0, **SIZE)
    assert len(found) == 30
    for document in dict.fromkeys(question.document for question in found):
        tasks = [question.task for question in found if question.document == document]
        assert tasks.count("shortdep_qa") == 5
        assert tasks.count("shortdep_cloze") == 3
        assert tasks[-2:] == ["longdep_qa", "longdep_summarization"]
    assert len({question.title.partition(".")[0] for question in found}) == 3  # one module a package


@pytest.mark.parametrize(("n", "long"), [(1, 0), (3, 0), (4, 1), (7, 1), (8, 2)])
def test_fewer_questions_have_fewer_tasks(n, long):
    found = questions(CORPUS, seed=0, **SIZE | {"per_document": n})
    assert len(found) == 3 * n
    assert sum(question.task.startswith("long") for question in found) == 3 * long


@pytest.mark.parametrize("seed", range(5))
def test_gold_answers_are_right(seed):
    for question in questions(CORPUS, seed=seed, **SIZE):
        name = question.title
        if question.task == "longdep_summarization":
            assert question.answer == "Tools for painting walls in many colours, with care."
            assert question.answer not in question.document
            continue
        lines = dict(item.split(". ") for item in question.question.splitlines() if item[:1] in "IV" and ". " in item)
        if question.kind == "timeline_reorder":
            named = [lines[numeral] for numeral in question.answer.split(",")]
            places = [question.document.index(f"{entry}\n") for entry in named]
            assert len(places) == 4
            assert places == sorted(places)
            continue
        pairs = question.answer if isinstance(question.answer, dict) else {"": question.answer}
        for entry, summary in zip(pairs.values(), question.evidence, strict=True):
            number = int(summary.split()[3])
            described = f"Paint wall number {number} of {name} {COLOURS[number]} from the top."
            assert summary == described
            assert entry in (f"paint{number:02}", described)
            assert entry not in question.question
        assert "again" not in question.question
        assert "number 0 " not in question.evidence[0]
        assert evidence_depth(question) is not None


def test_masks_stand_for_the_names_in_their_order():
    cloze = [question for question in questions(CORPUS, seed=1, **SIZE) if question.task == "shortdep_cloze"]
    for question in cloze:
        assert list(question.answer) == ["<mask-0>", "<mask-1>"]
        for mask, summary in zip(question.answer, question.evidence, strict=True):
            assert f"{mask} is described as “{summary}”" in question.question
        assert LooGLE().score(question, question.gold)["cloze_exact"] == (2, 2)


def test_documents_are_as_long_as_asked_and_the_seed_decides():
    a, b, c = (questions(CORPUS, seed=seed, **SIZE) for seed in (0, 0, 1))
    assert a == b != c
    for question in a:
        assert 3000 <= len(question.document) <= 3000 + 300  # the entry that fills it is whole


def test_too_few_modules_are_said():
    with pytest.raises(InputError, match="3 packages have a module with some 750 tokens"):
        questions(CORPUS, seed=0, **SIZE | {"n_documents": 4})
    with pytest.raises(InputError, match="0 packages"):
        questions(CORPUS, seed=0, **SIZE | {"tokens": 50_000})

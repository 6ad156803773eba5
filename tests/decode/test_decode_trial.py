"""The trial and the table builder, on a tiny model and a small corpus; and the prompts they are made from."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from broadsheet.apply.base import Source
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.corpora import Document
from broadsheet.decode import ADED, TrigramTable
from broadsheet.decode.recipes import AdedRecipe
from broadsheet.decode.trials import prompts as tasks
from broadsheet.decode.trials.aded import GREEDY, LOOKUP, MAIN, AdedTrial, Reference, Written
from broadsheet.trial.results import TrialResult

WORDS = ["the", "hat", "on", "a", "mat", "and", "then", "in", "red", "sea", "there", "are", "nine", "reed", "inn"]


def documents(n: int, words: int = 90) -> list[Document]:
    generator = random.Random(0)
    return [Document(str(i), f"{i} " + " ".join(generator.choices(WORDS, k=words))) for i in range(n)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in documents(30)))
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable, tiny_tokenizer: Callable) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def finished(folder: str, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialResult, list[str]]:
    """A finished trial, and the texts of its table."""
    seen: list[str] = []
    build = TrigramTable.from_texts

    def building(texts: Iterable[str], tokenizer: Any) -> TrigramTable:
        seen.extend(texts)
        return build(seen, tokenizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROADSHEET_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr("broadsheet.decode.trials.aded.step_seconds", lambda *_: {1: 1.0, 4: 1.1, 8: 1.2})
        patch.setattr(TrigramTable, "from_texts", building)
        options = {"prompts": 6, "tokens": 12, "warm": 3, "megabytes": 0.01, "published": True}
        return AdedTrial(model=folder, data=str(corpus), **options).run(), seen


def test_prompts_are_distinct_seeded_and_of_each_kind(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    given = [*documents(20), *documents(20), Document("short", "the hat")]
    chosen = tasks.choose(given, 9, seed=1)
    assert len({document.id for document in chosen}) == 9
    assert [d.id for d in chosen] == [d.id for d in tasks.choose(given, 9, seed=1)]
    assert [d.id for d in chosen] != [d.id for d in tasks.choose(given, 9, seed=2)]
    prompts = tasks.make(chosen, tokenizer)
    assert [prompt.kind for prompt in prompts] == list(tasks.KINDS) * 3
    copying, documentation, free = prompts[:3]
    assert copying.tokens[:14] == copying.tokens[-14:]
    assert tokenizer.decode(documentation.tokens) == chosen[1].text[: len(tokenizer.decode(documentation.tokens))]
    assert "<|im_start|>user" in tokenizer.decode(free.tokens)
    assert "<|im_start|>" not in tokenizer.decode(tasks.make(chosen, tiny_tokenizer(chat=False))[2].tokens)
    with pytest.raises(InputError, match="20 documents have more than 80 words; expected 21"):
        tasks.choose(given, 21, seed=1)


def test_a_trial_compares_identical_texts_and_explains(finished):
    result, _ = finished
    assert [arm.status for arm in result.arms] == ["ok"] * 7
    assert {arm.name: arm.role for arm in result.arms if arm.role != "sibling"} == {GREEDY: "baseline", MAIN: "method"}
    for arm in result.arms:
        assert arm.values["identical output"].estimate == 1.0
        assert arm.values["tokens per forward"].estimate >= 1.0
        assert len(arm.samples["seconds"]) == 6
    assert result.arms[0].values["tokens per forward"].estimate == 1.0
    assert (result.paper, result.claims) == (
        "aded",
        [("tokens/s", GREEDY, MAIN), ("tokens per forward", GREEDY, MAIN)],
    )
    compared = {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    assert set(result.claims) <= compared
    assert ("tokens per forward", LOOKUP, "ADED, adapted") in compared
    assert {figure.title for figure in result.figures} == {f"{name}: speed at each prompt" for name in (MAIN, LOOKUP)}
    notes = "\n".join(result.notes)
    for words in ("1: 1.00, 4: 1.10, 8: 1.20", "of the draft tokens were accepted", "copying", "ADED, chain, times"):
        assert words in notes


def test_the_table_never_holds_a_document_of_the_prompts(finished, corpus):
    _, seen = finished
    chosen = tasks.choose(corpora.load(str(corpus)), 9, seed=0)
    assert seen
    assert not set(seen) & {document.text for document in chosen}


def test_fields_of_the_method_reach_its_arms(folder, corpus, home, monkeypatch):
    made = []
    monkeypatch.setattr("broadsheet.decode.trials.aded.step_seconds", lambda *_: {1: 1.0, 4: 1.1})
    monkeypatch.setattr(AdedTrial, "_built", lambda *_: TrigramTable())
    trial = AdedTrial(model=folder, data=str(corpus), prompts=3, warm=3, tokens=2, method="aded(window=5)")
    trial.tasks()
    monkeypatch.setattr(ADED, "fork", lambda self: made.append(self) or self)
    monkeypatch.setattr(trial, "_writer", lambda prompt, **options: Written([1, 2], 1.0, 2))
    for arm in trial.arms()[2:]:
        arm.make()(trial._items[0])
    assert [(each.window, each.chain) for each in made] == [(5, False), (5, False), (5, True), (5, False)]


def test_the_reference_is_written_once_and_each_run_used_once():
    made: list[int] = []

    def writer(prompt: tasks.DecodePrompt) -> Written:
        made.append(len(made))
        return Written([1, 2], float(len(made)), 2)

    reference, prompt = Reference(writer), tasks.DecodePrompt("a", "copying", (1,))  # type: ignore[arg-type]
    assert reference.tokens(prompt) == reference.tokens(prompt) == [1, 2]
    assert reference.write(prompt).seconds == 1.0
    assert reference.write(prompt).seconds == 2.0
    assert reference.tokens(prompt) == [1, 2]
    assert len(made) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": 2}, "--prompts 2; expected 3 or more"),
        ({"warm": 1}, "--warm 1; expected 3 or more"),
        ({"tokens": 1}, "--tokens 1; expected 2 or more"),
        ({"megabytes": -1.0}, "--megabytes -1; expected 0 or more"),
        ({"method": "aded(breadth=2)"}, "ADED has no field 'breadth'"),
        ({"method": "lookahead"}, "got --method lookahead; expected ADED"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_loaded(options, message):
    with pytest.raises(InputError, match=message):
        AdedTrial(model="no such model", **options).run()


def test_a_table_is_built_from_a_corpus_into_one_file(folder, corpus, tmp_path, tiny_tokenizer):
    out, source = tmp_path / "tables" / "docs.table", Source(str(corpus))
    summary = AdedRecipe(model=folder).run(source, out)
    assert (summary.documents, summary.finished, summary.out) == (30, True, out)
    table = TrigramTable.load(out, tiny_tokenizer())
    expected = TrigramTable.from_texts([document.text for document in documents(30)], tiny_tokenizer())
    assert table.tokens.tolist() == expected.tokens.tolist()
    with pytest.raises(InputError, match="exists; choose another --out, or --force"):
        AdedRecipe(model=folder).run(source, out)
    smaller = AdedRecipe(model=folder, megabytes=0.001, keep=1).run(source, out, force=True)
    assert 0 < smaller.documents < 30
    assert len(TrigramTable.load(out)) < len(table)
    for options, message in (({"keep": 0}, "--keep 0"), ({"method": "aded(chain=True)"}, "got --method")):
        with pytest.raises(InputError, match=message):
            AdedRecipe(**options)

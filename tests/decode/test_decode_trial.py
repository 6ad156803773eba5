"""The trial and the table builder, on a tiny model and a small corpus; and the prompts they are made from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.corpora import Document
from broadsheet.decode import TrigramTable
from broadsheet.decode.recipes import BuildTable
from broadsheet.decode.trials import prompts as tasks
from broadsheet.decode.trials.aded import MAIN, DecodeTrial, Reference, Written

WORDS = ["the", "hat", "on", "a", "mat", "and", "then", "in", "red", "sea", "there", "are", "nine", "reed", "inn"]


def documents(n: int, words: int = 90) -> list[Document]:
    generator = random.Random(0)
    return [Document(str(i), f"{i} " + " ".join(generator.choices(WORDS, k=words))) for i in range(n)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in documents(30)))
    return path


@pytest.fixture
def trial(tiny_folder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a trial that takes a second or two."""
    monkeypatch.setenv("BROADSHEET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("broadsheet.decode.trials.aded.step_seconds", lambda *_: {1: 1.0, 4: 1.1, 8: 1.2})
    return {"model": str(tiny_folder), "data": str(corpus), "prompts": 6, "tokens": 12, "warm": 3, "megabytes": 0.01}


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


def test_a_trial_compares_identical_texts_and_explains(trial):
    decode = DecodeTrial(**trial, published=True)
    result = decode.run()
    assert [arm.status for arm in result.arms] == ["ok"] * 7
    for arm in result.arms:
        assert arm.values["identical output"].estimate == 1.0
        assert arm.values["tokens per forward"].estimate >= 1.0
        assert len(arm.samples["seconds"]) == 6
    assert result.arms[0].values["tokens per forward"].estimate == 1.0
    assert {("tokens/s", "greedy", MAIN)} <= {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    assert {claim in [(c.metric, c.baseline, c.arm) for c in result.comparisons] for claim in result.claims} == {True}
    notes = "\n".join(result.notes)
    for words in ("1: 1.00, 4: 1.10, 8: 1.20", "of the draft tokens were accepted", "copying", "ADED, chain, times"):
        assert words in notes
    assert decode.journal_.exists()
    decode.finish()
    assert not decode.journal_.exists()


def test_an_interrupted_trial_goes_on_and_measures_the_same(trial, monkeypatch):
    whole = DecodeTrial(**trial)
    expected = whole.run()
    lines = whole.journal_.read_text().splitlines(keepends=True)
    assert len(lines) == 2
    whole.journal_.write_text(lines[0])
    written: list[str] = []
    write = Reference.write
    monkeypatch.setattr(Reference, "write", lambda self, prompt: (written.append(prompt.id), write(self, prompt))[1])
    again = DecodeTrial(**trial).run()
    assert len(set(written)) == 4  # the second block, and the prompt that warms up
    for mine, other in zip(again.arms, expected.arms, strict=True):
        assert mine.samples["tokens per forward"] == other.samples["tokens per forward"]
        assert mine.samples["identical output"] == other.samples["identical output"]


def test_the_table_never_holds_a_document_of_the_prompts(trial, corpus, tiny_tokenizer, monkeypatch):
    seen: list[str] = []
    build = TrigramTable.from_texts
    monkeypatch.setattr(
        TrigramTable,
        "from_texts",
        lambda texts, tokenizer: build([t for t in texts if seen.append(t) is None], tokenizer),
    )
    DecodeTrial(**trial).run()
    chosen = tasks.choose(corpora.load(str(corpus)), 9, seed=0)
    assert seen
    assert not set(seen) & {document.text for document in chosen}


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


@pytest.mark.parametrize("options", [{"prompts": 2}, {"warm": 1}, {"tokens": 1}, {"megabytes": -1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match="expected from 3, 3, 2 and 0"):
        DecodeTrial(**options).run()


def test_a_table_is_built_from_a_corpus_into_one_file(tiny_folder, corpus, tmp_path, tiny_tokenizer):
    out = tmp_path / "tables" / "docs.table"
    summary = BuildTable(model=str(tiny_folder)).run(corpora.load(str(corpus)), out)
    assert (summary.documents, summary.finished, summary.out) == (30, True, out)
    table = TrigramTable.load(out, tiny_tokenizer())
    expected = TrigramTable.from_texts([document.text for document in documents(30)], tiny_tokenizer())
    assert table.tokens.tolist() == expected.tokens.tolist()
    with pytest.raises(InputError, match="exists; choose another --out, or --force"):
        BuildTable(model=str(tiny_folder)).run(corpora.load(str(corpus)), out)
    smaller = BuildTable(model=str(tiny_folder), megabytes=0.001, keep=1).run(
        corpora.load(str(corpus)), out, force=True
    )
    assert 0 < smaller.documents < 30
    assert len(TrigramTable.load(out)) < len(table)
    with pytest.raises(InputError, match="--keep 0"):
        BuildTable(keep=0).run(corpora.load(str(corpus)), tmp_path / "other")

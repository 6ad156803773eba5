"""The trial and the table builder, on a tiny model and a small corpus; and the prompts they are made from."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from shown import shown

from broadsheet.apply.base import Source
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.corpora import Document
from broadsheet.decode import ADED, DecodeStats, NgramDrafter, TrigramTable
from broadsheet.decode.recipes import AdedRecipe
from broadsheet.decode.trials import prompts as tasks
from broadsheet.decode.trials.aded import (
    GREEDY,
    LOOKUP,
    MAIN,
    MEASURED,
    NO_ADAPTATION,
    NO_CORPUS,
    OURS,
    OURS_ADAPTED,
    OURS_EMPTY,
    SIZED,
    AdedTrial,
    account,
    differences,
)
from broadsheet.decode.trials.timing import Reference, Written, measured
from broadsheet.trial.results import ArmResult, TrialResult

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
        options = {"prompts": 6, "tokens": 8, "warm": 3, "megabytes": 0.01}
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
    assert {arm.name: (arm.role, arm.status, arm.error) for arm in result.arms} == {
        GREEDY: ("baseline", "ok", ""),
        LOOKUP: ("peer", "ok", ""),
        MAIN: ("method", "ok", ""),
        **dict.fromkeys(
            (SIZED, MEASURED, NO_CORPUS, NO_ADAPTATION, OURS, OURS_EMPTY, OURS_ADAPTED), ("sibling", "ok", "")
        ),
    }
    for arm in result.arms:
        assert arm.values["identical output"].estimate == 1.0
        assert arm.values["tokens per forward"].estimate >= 1.0
        assert len(arm.samples["seconds"]) == 6
    assert result.arms[0].values["tokens per forward"].estimate == 1.0
    assert result.paper == "aded"
    assert {(claim.metric, claim.baseline, claim.arm): claim.kind for claim in result.judged} == {
        ("tokens/s", GREEDY, MAIN): "claim",
        ("tokens per forward", GREEDY, MAIN): "claim",
        ("tokens per forward", NO_CORPUS, MAIN): "control",
        ("tokens per forward", NO_ADAPTATION, MAIN): "control",
    }
    compared = {(c.metric, c.baseline, c.arm) for c in result.comparisons}
    assert {claim.key for claim in result.judged} <= compared
    assert {("tokens/s", LOOKUP, MAIN), ("tokens/s", LOOKUP, OURS), ("tokens/s", MAIN, OURS)} <= compared
    assert {("tokens/s", OURS_EMPTY, OURS), ("tokens/s", OURS, OURS_ADAPTED)} <= compared
    assert {figure.title for figure in result.figures} == {
        f"{name}: speed at each prompt" for name in (MAIN, OURS, LOOKUP)
    }
    notes = "\n".join(result.notes)
    for words in ("1: 1.00, 4: 1.10, 8: 1.20", "copying", f"{OURS_EMPTY}, times", "greedy decoding's speed, drafting"):
        assert words in notes
    for name in (MAIN, OURS):
        assert any(note.startswith(f"{name}: ") and "tokens were accepted" in note for note in result.notes)
    assert "Texts that differ" not in notes


def test_the_rival_and_the_tree_are_tuned_alike_on_prompts_that_are_not_tested(finished):
    result, _ = finished
    for name, settings in ((LOOKUP, {"2", "3", "5", "10", "20"}), (SIZED, {"8", "16", "24", "32", "64"})):
        setting, told = result.setting[f"tuning of {name}"].split(", ", 1)
        assert setting in settings
        assert told == "the best of 5 on 3 other prompts, in tokens/s"


def test_no_draft_of_the_method_is_cut_to_what_pays(finished):
    arms = {arm.name: arm for arm in finished[0].arms}
    assert sum(arms[MAIN].samples["drafted"]) > sum(arms[MEASURED].samples["drafted"])
    assert sum(arms[NO_CORPUS].samples["from corpus"] + arms[NO_CORPUS].samples["from raised"]) == 0
    assert sum(arms[NO_ADAPTATION].samples["from adapted"] + arms[NO_ADAPTATION].samples["from raised"]) == 0
    for name in (MAIN, MEASURED, SIZED, NO_CORPUS, NO_ADAPTATION):
        assert sum(arms[name].samples["from copied"]) == 0
    for arm in arms.values():
        if "accepted" in arm.samples:
            sources = [arm.samples[f"from {source}"] for source in ("corpus", "raised", "adapted", "copied")]
            assert [sum(each) for each in zip(*sources, strict=True)] == arm.samples["accepted"]


def test_the_table_never_holds_a_document_of_the_prompts(finished, corpus):
    _, seen = finished
    chosen = tasks.choose(corpora.load(str(corpus)), 9, seed=0)
    assert seen
    assert not set(seen) & {document.text for document in chosen}


def prepared(folder, corpus, monkeypatch, **options) -> AdedTrial:
    """A trial whose arms can be made, and write nothing."""
    monkeypatch.setattr("broadsheet.decode.trials.aded.step_seconds", lambda *_: {1: 1.0, 4: 1.1})
    monkeypatch.setattr(AdedTrial, "_built", lambda *_: TrigramTable())
    trial = AdedTrial(model=folder, data=str(corpus), prompts=3, warm=3, tokens=2, **options)
    trial.workdir = Path(str(corpus)).parent / "work"
    trial.tasks()
    monkeypatch.setattr(trial, "_writer", lambda prompt, **options: Written([1, 2], 1.0, 2))
    return trial


def test_fields_of_a_method_reach_its_arms_and_each_arm_is_what_it_is_called(folder, corpus, home, monkeypatch):
    made = []
    trial = prepared(folder, corpus, monkeypatch, method="aded(window=5, c1=3.0),ngramdrafter(depth=7)")
    monkeypatch.setattr(trial, "tuned", lambda name, settings, score, on: settings[1])
    for kind in (ADED, NgramDrafter):
        monkeypatch.setattr(kind, "fork", lambda self: made.append(self) or self)
    arms = {arm.name: arm for arm in trial.arms()}
    found = {}
    for name in (MAIN, SIZED, MEASURED, NO_CORPUS, NO_ADAPTATION, OURS, OURS_EMPTY, OURS_ADAPTED):
        made.clear()
        arms[name].make()(trial._items[0])
        found[name] = made[-1]
    aded = {name: (d.tree_size, d.increment, d.window, d.c1) for name, d in found.items() if type(d) is ADED}
    assert aded == {
        MAIN: (64, 0.04, 5, 3.0),
        SIZED: (16, 0.04, 5, 3.0),
        MEASURED: ("auto", 0.04, 5, 3.0),
        NO_CORPUS: (64, 0.04, 5, 3.0),
        NO_ADAPTATION: (64, 0.0, 5, 3.0),
    }
    assert {name: (d.tree_size, d.depth) for name, d in found.items() if type(d) is NgramDrafter} == dict.fromkeys(
        (OURS, OURS_EMPTY, OURS_ADAPTED), ("auto", 7)
    )
    own = {name for name, drafter in found.items() if drafter.table is trial._table}
    assert own == {MAIN, SIZED, MEASURED, NO_ADAPTATION, OURS}
    assert {name: arms[name].paper for name in found} == {
        name: "aded" if type(drafter) is ADED else "" for name, drafter in found.items()
    }


def test_the_fastest_setting_on_the_other_prompts_is_taken(folder, corpus, home, monkeypatch):
    trial = prepared(folder, corpus, monkeypatch)
    asked = []

    def writer(prompt: tasks.DecodePrompt, **options: Any) -> Written:
        [(name, value)] = options.items()
        setting = value if name == "prompt_lookup_num_tokens" else value.tree_size
        asked.append((setting, prompt.id))
        return Written([1, 2], 1.0 + abs(setting - {"prompt_lookup_num_tokens": 5}.get(name, 24)), 2)

    monkeypatch.setattr(trial, "_writer", writer)
    for arm in trial.arms():
        if arm.name in (LOOKUP, SIZED):
            write = arm.make()
            asked.clear()
            write(trial._items[0])
            assert asked == [(5 if arm.name == LOOKUP else 24, trial._items[0].id)]
    assert not {prompt.id for prompt in trial._warm} & {prompt.id for prompt in trial._items}


def arm(**samples: list[Any]) -> ArmResult:
    """An arm that gave these outputs."""
    result = ArmResult("X", "sibling", "")
    result.samples = {name.replace("_", " "): values for name, values in samples.items()}
    return result


def test_texts_that_differ_are_told_of_every_arm_that_the_model_verifies():
    same = {name: arm(identical_output=[1.0] * 3) for name in (GREEDY, LOOKUP, MAIN)}
    some = {**same, LOOKUP: arm(identical_output=[0.0, 1.0, 0.0])}
    [note] = differences(some, "bfloat16")
    assert note.startswith(
        "Texts that differ from greedy decoding's: greedy 0 of 3, prompt lookup 2 of 3, ADED 0 of 3. In bfloat16 "
    )
    assert len(differences(some, "float32")) == 1, "where they should not, they are told of too"
    assert differences(same, "float32") == []
    assert "prompt lookup 0 of 3" in differences(same, "bfloat16")[0]


def test_the_examples_are_a_prompt_of_each_kind_and_what_was_written(finished):
    result, _ = finished
    greedy, method = (next(arm for arm in result.arms if arm.name == name) for name in (GREEDY, MAIN))
    assert [each.item.partition(":")[0] for each in shown(result)] == list(tasks.KINDS)
    for each in result.examples:
        assert GREEDY not in each.answers
        assert each.answers[MAIN].startswith("the same text, in ")
    written = {each.expected.removeprefix("Greedy decoding writes, in 8 passes: ") for each in result.examples}
    assert written <= {" ".join(text.split()) for text in greedy.samples["text"]}
    assert set(method.samples["text"]) == {""}, "it is not kept twice"


def test_an_account_credits_each_source_with_its_own():
    stats = DecodeStats(10, 5, 20, 8, {4: 5}, 0.05, 1, {"corpus": 1, "raised": 2, "adapted": 1, "copied": 4})
    runs = [(Written([1], 1.0, 5, stats), [1]), (Written([1], 1.0, 5, stats), [2])]
    outputs = measured(runs, str).outputs
    assert outputs["identical output"] == [1.0, 0.0]
    assert outputs["text"] == ["", "[1]"], "texts are kept where they differ"
    assert measured(runs, str, plain=True).outputs["text"] == ["[1]", "[1]"]
    assert account(arm(**outputs)) == (
        "X: 40% of the draft tokens were accepted; they were proposed 12% by tri-grams of the corpus as they were "
        "counted, 25% by tri-grams of the corpus that adaptation had raised, 12% by tri-grams that adaptation brought, "
        "50% by copying from what was read and written. In 20% of the steps the table knew no successor: a larger "
        "table helps there. Drafting takes 10.00 ms a step."
    )


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

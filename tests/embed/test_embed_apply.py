"""`broadsheet apply` for the stage: what is trained, from which rows; what is refused, with its line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import documents
from transformers import AutoModelForCausalLM

from broadsheet.apply.base import Source, Train
from broadsheet.console import InputError
from broadsheet.embed.base import baseline, load
from broadsheet.embed.data import rows, tasks
from broadsheet.embed.data import teacher_scores as taught
from broadsheet.embed.data.lexicon import WordPair
from broadsheet.embed.data.tasks import sts
from broadsheet.embed.data.teacher_scores import scored
from broadsheet.embed.data.writing import PROMPT
from broadsheet.embed.llm_ql import LLMQL
from broadsheet.embed.modules.eol import variant
from broadsheet.embed.recipes import LLMQLRecipe
from broadsheet.embed.sweep import sweep
from broadsheet.embed.token_prepending import TokenPrepending
from broadsheet.embed.ullme import keep_scores
from broadsheet.options import construct
from broadsheet.page import discovery
from broadsheet.search.commands import encode

TEXTS = ["the red hat", "a tree near the sea", "hats are red", "the inn on the hill", "reeds and rats", "no stone"]


@pytest.fixture
def model(tmp_path: Path, tiny_model: Callable, tiny_tokenizer: Callable) -> str:
    folder = tmp_path / "model"
    tiny_model(num_hidden_layers=4).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def write(path: Path, given: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Data for each method."""
    n = len(TEXTS)
    pairs = [
        {"query": f"where is {i}", "positive": TEXTS[i % n], "negatives": [TEXTS[(i + 1) % n], TEXTS[(i + 2) % n]]}
        for i in range(12)
    ]
    requests = [
        {"query": f"where is {i}", "pos": [TEXTS[i % n]], "neg": [TEXTS[(i + k) % n] for k in (1, 2, 3)],
         "answers": [f"at {i}"]}
        for i in range(12)
    ]  # fmt: skip
    words = tmp_path / "words.tsv"
    words.write_text("word1\tword2\tlabel\n" + "".join(f"hat{i}\tcap{i}\t{i // 2}\n" for i in range(12)))
    scored = tmp_path / "scored.tsv"
    scored.write_text("".join(f"{i % 5}\t{TEXTS[i % n]} {i}\t{TEXTS[i * i % n]} {i + 1}\n" for i in range(12)))
    return {
        "gem": write(tmp_path / "texts.jsonl", [{"text": text * 3} for text in TEXTS * 2]),
        "llm_ql": write(tmp_path / "ql.jsonl", pairs),
        "ullme": write(tmp_path / "pairs.jsonl", pairs),
        "llm_embedder": write(tmp_path / "requests.jsonl", requests),
        "lexical_specialization": str(words),
        "token_prepending": str(scored),
    }


def run(paper: str, data: str, out: Path, *, force: bool = False, skip: bool = False, **options: Any) -> Any:
    kind = discovery.load(discovery.recipe(paper))
    given = {"steps": 2, "batch_size": 4, "learning_rate": 0.01} if issubclass(kind, Train) else {}
    recipe = construct(kind, given | options)
    return recipe.run(Source(data, "skip" if skip else "stop"), out, force=force)


def corpus(data: str, **options: Any) -> Any:
    return rows.open_data(data, **{"on_error": "stop", "text_field": "text", "id_field": "id", **options})


METHODS = ("gem", "llm_ql", "ullme", "llm_embedder", "lexical_specialization")


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_an_embedder_that_is_also_a_language_model(
    method: str, files: dict[str, str], model: str, tmp_path: Path
):
    options = {"group_size": 3} if method == "llm_embedder" else {}
    summary = run(method, files[method], tmp_path / "out", model=model, length=128, **options)
    assert summary.finished
    assert summary.documents == 8
    found = load(tmp_path / "out")
    assert np.isfinite(found.encode(TEXTS)).all()
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert trained.keys() == before.keys()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not np.allclose(trained[name], before[name])  # an adapter was added to the weights
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["steps"] == 2
    assert record["settings"]["method"] == ("full" if method == "lexical_specialization" else "lora")
    with pytest.raises(InputError, match="exists; choose another --out"):
        run(method, files[method], tmp_path / "out", model=model, length=128, **options)


def test_grl_s_teacher_may_be_what_the_model_found_likely_before(
    files: dict[str, str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def keep(embedder: Any, items: Any, prompt: str) -> Any:
        asked.append(prompt)
        return keep_scores(embedder, items, prompt)

    monkeypatch.setattr("broadsheet.embed.ullme.keep_scores", keep)
    monkeypatch.setattr("broadsheet.embed.ullme.read_written", None)  # training reads nothing for it
    for name, prompt in (("kept", ""), ("other", ", prompt='Say of {query}:'")):
        method = f"grl(generation=None, generator=kept{prompt})"
        assert run("ullme", files["ullme"], tmp_path / name, model=model, method=method).finished
    assert asked == [PROMPT, "Say of {query}:"]


def test_an_adapter_can_be_kept_apart(files: dict[str, str], model: str, tmp_path: Path):
    run("ullme", files["ullme"], tmp_path / "out", model=model, adapter=True)
    run("ullme", files["ullme"], tmp_path / "whole", model=model)
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert load(tmp_path / "out").encode(TEXTS) == pytest.approx(load(tmp_path / "whole").encode(TEXTS), abs=1e-4)


def test_an_embedder_is_trained_on(files: dict[str, str], model: str, tmp_path: Path):
    first = baseline("last-token", model, attention="causal")
    first.save(str(tmp_path / "first"))
    run("ullme", files["ullme"], tmp_path / "out", embedder=str(tmp_path / "first"), steps=1)
    made = load(tmp_path / "out")
    assert made.encoder.attention == "causal"
    assert made[1].pooling_mode == "lasttoken"


def test_full_training_needs_no_reference_model(files: dict[str, str], model: str, tmp_path: Path):
    assert run("ullme", files["ullme"], tmp_path / "out", model=model, tune="full", steps=1).finished


def test_without_negatives_the_positive_alone_is_generated(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = write(tmp_path / "p.jsonl", [{"anchor": f"q {i}", "positive": TEXTS[i]} for i in range(6)])
    assert run("ullme", data, tmp_path / "out", model=model, steps=1).finished
    assert "(sft)" in capsys.readouterr().err
    settings = json.loads((tmp_path / "out" / "training.json").read_text())["settings"]
    assert settings["objective"]["generation"] == "sft"


# Token Prepending


def test_layers_are_chosen_by_the_sweep_and_saved(files: dict[str, str], model: str, tmp_path: Path):
    data = files["token_prepending"]
    assert run("token_prepending", data, tmp_path / "out", model=model, length=64).documents == 12
    made = load(tmp_path / "out").encoder
    assert isinstance(made, TokenPrepending)
    pairs = sts(data)
    encoder = variant(made, layer=None, exit=1)
    best = sweep(encoder, [p.a for p in pairs], [p.b for p in pairs], [p.score for p in pairs]).best
    assert (made.layer, made.exit) == (best.layer, best.exit)
    record = json.loads((tmp_path / "out" / "training.json").read_text())
    assert record["sweep"]["pairs"] == 12


def test_given_layers_are_taken_and_no_data_is_read(model: str, tmp_path: Path):
    (tmp_path / "none.tsv").write_bytes(b"\xff")
    none = str(tmp_path / "none.tsv")
    run("token_prepending", none, tmp_path / "out", model=model, layer=3, exit=2)
    made = load(tmp_path / "out").encoder
    assert (made.layer, made.exit) == (3, 2)
    run("token_prepending", none, tmp_path / "out", model=model, layer=2, exit=2, template="meta-eol", force=True)
    assert load(tmp_path / "out").encode(TEXTS).shape == (6, 32)


# Scores of a teacher


def test_a_teacher_scores_rows_once(files: dict[str, str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = scored(corpus(files["llm_embedder"]), tmp_path / "out", model)
    assert len(made) == 12
    assert all(len(row["teacher_scores"]) == 4 for row in made)
    assert made == [json.loads(line) for line in (tmp_path / "out.scores.jsonl").read_text().splitlines()]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(taught, "score_corpus", never)
    assert scored(corpus(files["llm_embedder"]), tmp_path / "out", model) == made
    again = scored(corpus(str(tmp_path / "out.scores.jsonl")), tmp_path / "other", model)
    assert [row["teacher_scores"] for row in again] == [row["teacher_scores"] for row in made]
    assert not (tmp_path / "other.scores.jsonl").exists()
    (tmp_path / "third.scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made[1:]))
    with pytest.raises(InputError, match="scores of other rows"):
        scored(corpus(files["llm_embedder"]), tmp_path / "third", model)


def test_pairs_with_answers_are_scored_too(model: str, tmp_path: Path):
    row = {"query": "q", "positive": "p", "negatives": ["n", "m"], "answers": ["a"]}
    made = scored(corpus(write(tmp_path / "a.jsonl", [row])), tmp_path / "out", model, task="chat")
    assert (made[0]["pos"], made[0]["neg"], made[0]["task"]) == (["p"], ["n", "m"], "chat")
    with pytest.raises(InputError, match=r"a\.jsonl:1: neither 'teacher_scores'"):
        scored(corpus(write(tmp_path / "a.jsonl", [row | {"answers": []}])), tmp_path / "other", model)


# Rows


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "positive": "p", "negatives": ["n", "m"]},
        {"anchor": "q", "positive": "p", "negative": ["n", "m"]},
        {"question": "q", "answer": "p", "negative_1": "n", "negative_2": "m"},
        {"query": "q", "document": "p", "negative": "n", "negative_1": ["m"]},
        {"sentence1": "q", "sentence2": "p", "negatives": ["n", "m"], "score": 3},
    ],
)
def test_pairs_are_read_whatever_their_fields_are_called(tmp_path: Path, row: dict[str, Any]):
    assert rows.pairs(corpus(write(tmp_path / "a.jsonl", [row])), 0) == [
        {"query": "q", "positive": "p", "negatives": ["n", "m"]}
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q"}, "a.jsonl:2: no field 'positive'"),
        ({"query": "q", "positive": 3}, "a.jsonl:2: field 'positive' is not a string"),
        ({"query": " ", "positive": "p"}, "a.jsonl:2: an empty query"),
        ({"query": "q", "positive": "\n"}, "a.jsonl:2: an empty positive"),
        ({"query": "q", "positive": "p", "negatives": [1]}, "a.jsonl:2: field 'negatives' is not a list of texts"),
        ({"positive": "p"}, "a.jsonl:2: no field 'query'"),
    ],
)
def test_a_row_that_is_no_pair_is_named_or_skipped(
    tmp_path: Path, row: Any, message: str, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}, row])
    with pytest.raises(InputError, match=message):
        rows.pairs(corpus(path), 0)
    assert len(rows.pairs(corpus(path, on_error="skip"), 0)) == 1
    assert "skipped" in capsys.readouterr().err


def test_no_rows_at_all_are_said(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [])
    for read in (rows.texts, rows.pairs):
        with pytest.raises(InputError, match="holds no"):
            read(corpus(path), 0)
    with pytest.raises(InputError, match="holds no word pairs"):
        rows.word_pairs(corpus(path))


def test_a_choice_of_rows_follows_from_the_seed(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"query": f"q{i}", "positive": "p"} for i in range(30)])
    chosen = rows.pairs(corpus(path), 5, seed=1)
    assert chosen == rows.pairs(corpus(path), 5, seed=1) != rows.pairs(corpus(path), 5, seed=2)
    assert len(chosen) == 5


def test_negatives_become_as_many_columns_as_every_row_has(capsys: pytest.CaptureFixture[str]):
    given = [
        {"query": "q", "positive": "p", "negatives": ["a", "b"]},
        {"query": "r", "positive": "s", "negatives": ["c"]},
    ]
    assert rows.flat(given) == [
        {"query": "q", "positive": "p", "negative_1": "a"},
        {"query": "r", "positive": "s", "negative_1": "c"},
    ]
    assert "1 to 2 negatives" in capsys.readouterr().err


def test_words_come_from_rows_and_tables(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"word1": "hat", "word2": "cap", "label": 3, "lang1": "en"}])
    assert rows.word_pairs(corpus(path)) == [WordPair("hat", "cap", "3", ("en", ""))]
    (tmp_path / "a.tsv").write_text("hat\tcap\nbig\tlarge\n")
    assert [pair.second for pair in rows.word_pairs(corpus(str(tmp_path / "a.tsv")))] == ["cap", "large"]
    assert rows.held_out(str(tmp_path / "a.tsv")) == ["hat", "cap", "big", "large"]


def test_words_of_the_test_are_not_trained_on(
    files: dict[str, str], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "test.txt").write_text("hat0\ncap5\n")
    run("lexical_specialization", files["lexical_specialization"], tmp_path / "out", model=model, steps=1,
        held_out=str(tmp_path / "test.txt"))  # fmt: skip
    assert "2 of 12 pairs hold a word of the test" in capsys.readouterr().err


@pytest.fixture
def pydocs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(tasks, "_pydocs", lambda data: documents())
    tasks.documentation.cache_clear()
    yield
    tasks.documentation.cache_clear()


@pytest.mark.usefixtures("pydocs")
def test_pydocs_trains_on_packages_that_the_trials_leave_out():
    class Pydocs(list):
        spec, text_field = "pydocs", "text"

        def fields(self) -> list[str]:
            return ["text"]

    docs = tasks.documentation()
    package = {document.text: document.metadata["package"] for document in documents()}
    found = rows.texts(Pydocs(documents()), 50)  # type: ignore[arg-type]
    assert len(found) == 50
    assert not any(docs.held_out(package[text]) for text in found)
    asked = {query.text for query in tasks.retrieval(queries=10, passages=20).queries}
    pairs = rows.pairs(Pydocs(), 10, negatives=2)  # type: ignore[arg-type]
    assert pairs
    assert all(len(pair["negatives"]) == 2 for pair in pairs)
    assert asked.isdisjoint(pair["query"] for pair in pairs)


# What is refused


@pytest.mark.parametrize(
    ("paper", "options", "message"),
    [
        ("gem", {"steps": 0}, "got --steps 0; expected 1 or more"),
        ("gem", {"tune": "all"}, "expected one of lora, full"),
        ("gem", {"adapter": True}, "no option --adapter"),
        ("ullme", {"adapter": True, "tune": "full"}, "got --adapter"),
        ("gem", {"embedder": "runs/x"}, "no option --embedder"),
        ("gem", {"layer": "3"}, "no option --layer"),
        ("token_prepending", {"layer": 3}, "one of --layer and --exit"),
        ("token_prepending", {"template": "own"}, "expected one of prompt-eol"),
        ("gem", {"method": "gem(contrast=none)"}, "expected compression or all"),
        ("ullme", {"method": "grl(generation=ppo)"}, "ppo"),
    ],
)
def test_options_that_cannot_be_are_named(
    files: dict[str, str], model: str, tmp_path: Path, paper: str, options: dict[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        run(paper, files[paper], tmp_path / "out", model=model, **options)
    assert not (tmp_path / "out").exists()


def test_a_lexicon_is_no_corpus_for_other_methods(model: str, tmp_path: Path):
    with pytest.raises(InputError, match="holds no documents"):
        run("gem", "wordnet", tmp_path / "out", model=model)


def test_a_stopped_first_stage_is_no_finished_training(
    files: dict[str, str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    from broadsheet.embed.fitting import TrainOutput

    stopped = TrainOutput(1, 4, 40, 1.0, False)
    monkeypatch.setattr(LLMQL, "fit", lambda *_, **__: (stopped, stopped))
    summary = LLMQLRecipe(model=model).run(Source(files["llm_ql"]), tmp_path / "out")
    assert not summary.finished
    assert "stopped after 1 steps" in capsys.readouterr().err


# Texts that teach, vectors on disk


def test_long_texts_teach_by_what_follows_in_them(model: str, tmp_path: Path):
    generator = random.Random(0)
    words = [f"{word}{i}" for word in ("hat", "tree", "sea") for i in range(99)]
    data = write(tmp_path / "a.jsonl", [{"text": " ".join(generator.choices(words, k=300))} for _ in range(40)])
    made = scored(corpus(data), tmp_path / "out", model, n=8, candidates=3)
    assert len(made) == 8
    assert all(len(row["teacher_scores"]) == len(row["history"]) == 3 for row in made)
    whole = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for row in made:
        assert any(row["query"] + row["answers"][0] in text for text in whole)  # the answer is what follows


def test_a_corpus_is_encoded_with_a_saved_embedder(files: dict[str, str], model: str, tmp_path: Path):
    baseline("last-token", model).save(str(tmp_path / "e"))
    given: dict[str, Any] = {"embedder": str(tmp_path / "e"), "keep_texts": True}
    encode(files["gem"], tmp_path / "whole", **given)
    vectors = np.load(tmp_path / "whole" / "vectors.npy")
    texts = [json.loads(line)["text"] for line in (tmp_path / "whole" / "ids.jsonl").read_text().splitlines()]
    assert len(texts) == 12
    assert vectors == pytest.approx(load(tmp_path / "e").encode_document(texts), abs=1e-5)
    for i in range(2):
        encode(files["gem"], tmp_path / "parts", shard=f"{i}/2", half=True, **given)
    halves = np.load(tmp_path / "parts" / "vectors.npy")
    assert halves.dtype == np.float16
    assert halves.astype(np.float32) == pytest.approx(vectors, abs=0.01)
    with pytest.raises(InputError, match="such as 0/4"):
        encode(files["gem"], tmp_path / "x", shard="first", **given)
    with pytest.raises(InputError, match="expected 0 to 1 of 2"):
        encode(files["gem"], tmp_path / "x", shard="2/2", **given)

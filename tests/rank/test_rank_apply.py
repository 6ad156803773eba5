"""Runs reranked, rerankers trained, lists labelled: what `rerank`, `apply` and `label` do; also when cut off."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from broadsheet.apply.base import Source
from broadsheet.console import InputError
from broadsheet.data import corpora
from broadsheet.data.corpora import Document
from broadsheet.data.retrieval.beir import Beir
from broadsheet.data.retrieval.documentation import Documentation
from broadsheet.data.retrieval.trec import read_run
from broadsheet.options import construct
from broadsheet.page import discovery
from broadsheet.rank import reranking
from broadsheet.rank.base import ListwiseReranker
from broadsheet.rank.list_source import ListSource

WORDS = ["hat", "mat", "red", "sea", "reed", "inn", "tree", "near", "rat", "stone"]
QUERIES = 20


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    generator = random.Random(0)
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    documents = {f"d{i}": " ".join(generator.choices(WORDS, k=6)) + f" n{i}" for i in range(30)}
    queries = {f"q{i}": f"{documents[f'd{i}'].split()[0]} n{i}" for i in range(QUERIES)}
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    lines = [f"q{i}\td{i}\t1\n" for i in range(QUERIES)]
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


@pytest.fixture
def model(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    folder = tmp_path / "model"
    tiny_model(max_position_embeddings=4096).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def names(folder: Path) -> set[str]:
    """What lies in a folder besides locks."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def rerank(data: Path, out: Path, model: Path | str, **options: Any) -> Any:
    return reranking.rerank(str(data), out, ListwiseReranker.load(model), **options)


def train(paper: str, data: Path | str, out: Path, **options: Any) -> Any:
    return construct(discovery.load(discovery.recipe(paper)), options).run(Source(str(data)), out)


# Reranking


def test_a_run_is_reranked_into_a_run_with_the_same_documents(collection, model, tmp_path):
    run = tmp_path / "first.trec"
    run.write_text("".join(f"q{i} Q0 d{(i + j) % 30} 1 {9 - j} x\n" for i in range(5) for j in range(6)))
    out = tmp_path / "out" / "out.trec"
    summary = rerank(collection, out, model, first_stage=str(run), candidates=4)
    assert (summary.documents, summary.finished) == (5, True)
    before, after = read_run(run), read_run(out)
    beir, reranker = Beir(collection, 40), ListwiseReranker.load(model)
    for query, ranked in after.items():
        given = list(before[query])
        hits = reranker.rank(beir.queries[query], [beir.documents[name] for name in given[:4]])
        assert list(ranked) == [given[hit["corpus_id"]] for hit in hits] + given[4:]
        assert sorted(ranked.values(), reverse=True) == list(ranked.values())
        assert len(set(ranked.values())) == 6
    assert names(out.parent) == {"out.trec"}


def test_without_a_run_every_query_is_searched(collection, model, tmp_path):
    rerank(collection, tmp_path / "out.trec", model, candidates=3)
    ranked = read_run(tmp_path / "out.trec")
    assert {query: set(row) for query, row in ranked.items()} == {
        query: set(row) for query, row in Beir(collection, 40).search(3).items()
    }
    assert len(ranked) == QUERIES


def test_a_reranking_that_was_cut_off_goes_on(collection, model, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.trec", tmp_path / "out.trec"
    options = {"model": model, "candidates": 3}
    rerank(collection, whole, **options)
    rank_run, done = ListwiseReranker.rank_run, []

    def fails_later(self: ListwiseReranker, part: Any, *rest: Any) -> Any:
        if done:
            raise RuntimeError("cut off")
        done.append(len(part))
        return rank_run(self, part, *rest)

    monkeypatch.setattr(ListwiseReranker, "rank_run", fails_later)
    with pytest.raises(RuntimeError, match="cut off"):
        rerank(collection, out, **options)
    assert not out.exists()
    monkeypatch.setattr(ListwiseReranker, "rank_run", rank_run)
    summary = rerank(collection, out, **options)
    assert summary.resumed == done[0] == reranking._QUERIES
    assert out.read_bytes() == whole.read_bytes()
    with pytest.raises(InputError, match="exists; choose another --out, or --force"):
        rerank(collection, out, **options)
    rerank(collection, out, force=True, **options)


def test_requests_of_rank_llm_are_reranked_into_requests(model, tmp_path):
    given = [
        {
            "query": {"text": "red hat", "qid": str(i)},
            "candidates": [{"docid": f"d{j}", "score": 9.0 - j, "doc": {"text": f"{WORDS[j]} {i}"}} for j in range(4)],
        }
        for i in range(3)
    ]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps(row) + "\n" for row in given))
    rerank(requests, tmp_path / "out.jsonl", model)
    reranker = ListwiseReranker.load(model)
    for row, line in zip(given, (tmp_path / "out.jsonl").read_text().splitlines(), strict=True):
        hits = reranker.rank(row["query"]["text"], [one["doc"] for one in row["candidates"]])
        got = [one["docid"] for one in json.loads(line)["candidates"]]
        assert got == [f"d{hit['corpus_id']}" for hit in hits]


# Training and labels


def training_file(path: Path) -> Path:
    """Lists in which the passage about the sea is right, whatever is asked."""
    generator = random.Random(0)
    rows = []
    for _ in range(12):
        documents = generator.sample([*(f"{word} {word}" for word in WORDS if word != "sea"), "sea sea sea"], 10)
        shown = ["sea sea sea", *documents[:3]]
        generator.shuffle(shown)
        rows.append({"query": "what?", "documents": shown, "labels": [int("sea" in text) for text in shown]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("method", ["first", "fullrank", "pg_rank"])
def test_training_makes_a_reranker_that_loads_with_other_weights(method, model, tmp_path, capsys):
    out = tmp_path / "trained"
    options = {"model": str(model), "minutes": 0.0, "epochs": 2, "learning_rate": 1e-3}
    summary = train(method, training_file(tmp_path / "rows.jsonl"), out, **options)
    assert summary.finished
    assert summary.documents == 24
    before = ListwiseReranker.load(model).model.state_dict()
    trained = ListwiseReranker.load(out)
    assert trained.decode == ("permutation" if method == "fullrank" else "first_token")
    moved = [name for name, value in trained.model.state_dict().items() if not value.equal(before[name])]
    assert moved
    assert f"broadsheet try first --reranker {out}" in capsys.readouterr().err
    with pytest.raises(InputError, match="exists; choose another --out, or --force"):
        train(method, tmp_path / "rows.jsonl", out, **options)


def test_training_lists_come_from_the_train_split_and_from_packages_that_are_not_tested(
    collection, model, tmp_path, monkeypatch
):
    seen: list[dict[str, Any]] = []

    def fit(reranker: Any, rows: Any, objective: Any, **options: Any) -> Any:
        from broadsheet.rank.training.fitting import TrainOutput

        seen.extend(rows)
        return TrainOutput(1, len(rows), 1, 1.0, True, 0, [], None)

    monkeypatch.setattr("broadsheet.rank.training.fitting.fit", fit)
    train("first", collection, tmp_path / "a", model=str(model), candidates=3, lists=5)
    beir = Beir(collection, 40)
    assert len(seen) == 5
    for row in seen:
        query = next(name for name, text in beir.queries.items() if text == row["query"])
        right = row["documents"][row["labels"].index(1)]
        assert right == beir.documents[query.replace("q", "d")]
        assert len(row["documents"]) == 3
    seen.clear()
    docs = Documentation(documents())
    read = docs, corpora.load(collection)
    monkeypatch.setattr("broadsheet.rank.list_source.ListSource._documentation", read)
    train("first", "pydocs", tmp_path / "b", model=str(model), lists=9, candidates=4)
    packages = {entry.text: entry.package for entry in docs.entries}
    assert len(seen) == 9
    assert not any(docs.held_out(packages[text]) for row in seen for text in row["documents"])
    assert not any("ranking" in row for row in seen)


def documents() -> list[Document]:
    generator = random.Random(1)
    found = []
    for i in range(200):
        body = f"number{i} " + " ".join(f"{generator.choice(WORDS)}{generator.randrange(9)}" for _ in range(14))
        metadata = {
            "kind": "function", "package": f"package{i % 10}", "module": "m", "title": f"f{i}",
            "summary": f"Find the thing number{i} here.", "body": body,
        }  # fmt: skip
        found.append(Document(f"f{i}", body, metadata))
    return found


def test_labels_order_whole_lists_and_go_on_after_a_cut(model, tmp_path, monkeypatch):
    rows, out = training_file(tmp_path / "rows.jsonl"), tmp_path / "labels.jsonl"
    given = [json.loads(line) for line in rows.read_text().splitlines()]
    options = {"reranker": ListwiseReranker.load(model, strategy="full"), "window": 3, "step": 1}
    rank_batch, calls = ListwiseReranker.rank_batch, []

    def fails_later(self: ListwiseReranker, *given: Any) -> Any:
        if len(calls) == 2:
            raise RuntimeError("cut off")
        calls.append(len(given[0]))
        return rank_batch(self, *given)

    monkeypatch.setattr(ListwiseReranker, "rank_batch", fails_later)
    with pytest.raises(RuntimeError, match="cut off"):
        reranking.label(given, out, **options)
    assert not out.exists()
    counted: list[int] = []
    monkeypatch.setattr(
        ListwiseReranker,
        "rank_batch",
        lambda self, *given: (counted.append(len(given[0])), rank_batch(self, *given))[1],
    )
    reranking.label(given, out, **options)
    reranking.label(given, tmp_path / "again.jsonl", **options)
    assert out.read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    assert sum(calls) + sum(counted) == 2 * 12 * 3  # every window of both labellings was compared once
    labelled = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["documents"] for row in labelled] == [json.loads(x)["documents"] for x in rows.read_text().splitlines()]
    assert all(sorted(row["ranking"]) == [0, 1, 2, 3] for row in labelled)
    assert not (tmp_path / "labels.jsonl.journal").exists()


@pytest.mark.parametrize(
    ("paper", "options", "message"),
    [
        ("first", {"lists": 0}, "--lists 0"),
        ("first", {"minutes": -1.0}, "--minutes -1"),
        ("first", {"sizes": (3,)}, "expected two numbers"),
        ("first", {"method": "first(kind=hinge)"}, "hinge"),
        ("first", {"utility": "mrr@10"}, "no option --utility"),
        ("fullrank", {"method": "first"}, "got --method first; expected FullRank"),
        ("pg_rank", {"first_stage": "missing.trec"}, "missing.trec"),
    ],
)
def test_impossible_options_are_refused_and_touch_nothing(paper, options, message, collection, tmp_path):
    with pytest.raises(InputError, match=message):
        train(paper, collection, tmp_path / "out", **options)
    assert names(tmp_path) == {"collection"}


def test_a_run_about_other_queries_is_refused(collection, model, tmp_path):
    (tmp_path / "run.trec").write_text("other Q0 d1 1 1.0 x\n")
    with pytest.raises(InputError, match=r"names 1 queries that .* lacks, such as 'other'"):
        rerank(collection, tmp_path / "out.trec", model, first_stage=str(tmp_path / "run.trec"))


def test_documentation_is_read_once_for_all_lists(collection, monkeypatch):
    read: list[str] = []
    corpus = corpora.load(collection)
    monkeypatch.setattr("broadsheet.rank.list_source.corpora.load", lambda spec: read.append(spec) or corpus)
    monkeypatch.setattr("broadsheet.rank.list_source.Documentation", lambda *_, **__: Documentation(documents()))
    source = ListSource("pydocs")
    assert source.test(3, 4).lists
    assert source.train(3, 4).lists
    assert source.train(3, 4, depth=8).lists
    assert read == ["pydocs"]

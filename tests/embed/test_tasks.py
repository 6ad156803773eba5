"""The stage's tasks ask fairly: splits that share nothing, pairs that are what they are called, metrics that agree."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import documents
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score, v_measure_score
from sklearn.neighbors import KNeighborsClassifier

from broadsheet.console import InputError
from broadsheet.data.retrieval.duplicates import jaccard
from broadsheet.embed.base import baseline
from broadsheet.embed.data import doc_tasks, tasks
from broadsheet.embed.data.tasks import LabelledText, Query, RetrievalTask, SentencePair, Triple, v_measure
from broadsheet.embed.trials.base import clustering_task, duplicates_task, retrieval_task, sts_task
from broadsheet.trial.base import EvalTask, ModelArm
from broadsheet.trial.engine import Arm, run_arms
from broadsheet.trial.lazy import LazyModel
from broadsheet.trial.results import ArmResult


def arm_of(task: EvalTask, model: Any, name: str = "a", kept: Path | None = None) -> Arm:
    """A task's arm for an embedder."""
    made: Any = task.arm(ModelArm(name, lambda: model), LazyModel(lambda: model), kept)  # type: ignore[arg-type]
    return replace(made, role="baseline" if name == "a" else "method")


def alone(task: EvalTask, model: Any, **settings: Any) -> ArmResult:
    """What a task makes of one embedder."""
    return run_arms([arm_of(task, model)], list(task.items), task.metrics, per_item=task.per_item, **settings)[0][0]


@pytest.fixture
def pydocs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small corpus in the place of `pydocs`."""
    monkeypatch.setattr(tasks, "_pydocs", lambda data: documents())
    tasks.documentation.cache_clear()
    yield
    tasks.documentation.cache_clear()


@pytest.fixture
def tiny(tiny_model: Callable, tiny_tokenizer: Callable) -> Any:
    return baseline("mean", (tiny_model(), tiny_tokenizer()))


class Table:
    """An embedder that looks vectors up, and counts what it is asked."""

    def __init__(self, vectors: dict[str, Any]) -> None:
        self.vectors = vectors
        self.asked: list[list[str]] = []

    def eval(self) -> Table:
        return self

    def encode(self, texts: list[str], **_: Any) -> Any:
        self.asked.append(list(texts))
        return np.array([self.vectors[text] for text in texts])

    encode_query = encode_document = encode


# Sentence pairs


ROWS = [("5.000", 'A "plane" takes off.', "An air plane takes off."), ("0.5", "A man eats.", "It's late.")]
EXPECTED = [SentencePair(a, b, float(score)) for score, a, b in ROWS]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "score\tsentence1\tsentence2\n" + "".join("\t".join(row) + "\n" for row in ROWS)),
        ("b.tsv", "".join("\t".join(row) + "\n" for row in ROWS)),
        (
            "c.tsv",
            "pair_ID\tsentence_A\tsentence_B\trelatedness_score\n"
            + "".join(f"{i}\t{a}\t{b}\t{s}\n" for i, (s, a, b) in enumerate(ROWS)),
        ),
        (
            "d.csv",
            'sentence1,sentence2,label\n"A ""plane"" takes off.",An air plane takes off.,5\n'
            "A man eats.,It's late.,0.5\n",
        ),
        (
            "e.jsonl",
            "".join(json.dumps({"sentence1": a, "sentence2": b, "score": float(s)}) + "\n" for s, a, b in ROWS),
        ),
    ],
)
def test_sentence_pairs_are_read_whatever_their_columns_are_called(tmp_path: Path, name: str, text: str):
    path = tmp_path / name
    path.write_text("\ufeff" + text, encoding="utf-8")
    assert tasks.sts(path) == EXPECTED
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    if not name.endswith(".jsonl"):
        assert tasks.sts(packed) == EXPECTED


def test_sentence_pairs_come_from_parquet_too(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"sentence1": a, "sentence2": b, "score": float(s)} for s, a, b in ROWS]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    assert tasks.sts(tmp_path / "pairs.parquet") == EXPECTED


def test_a_choice_of_pairs_follows_from_the_seed_and_keeps_the_files_order(tmp_path: Path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{i}\ta{i}\tb{i}\n" for i in range(50)))
    chosen = tasks.sts(path, 10, seed=1)
    assert chosen == tasks.sts(path, 10, seed=1) != tasks.sts(path, 10, seed=2)
    assert [pair.score for pair in chosen] == sorted(pair.score for pair in chosen)
    assert len(set(chosen)) == 10


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "score\tsentence1\tsentence2\nx", "a.tsv:2: columns: 1, but 3 in the first line"),
        ("a.tsv", "score\tsentence1\nx", "a.tsv:1: columns: 2; expected some called sentence1, sentence2, score"),
        ("a.csv", "score,sentence1,note,more\n1,a,b,c", "a.csv:1: columns: 4; expected .* without names 3 .score, "),
        ("a.tsv", "score\tsentence1\tnote\n1\ta\tb", "a.tsv:1: field 'score' is not a number .got 'score'."),
        ("a.tsv", "score\tsentence1\tsentence2\n1\ta\tb\nhigh\tc\td", "a.tsv:3: field 'score' is not a number"),
        ("a.tsv", "score\tsentence1\tsentence2\nnan\ta\tb", "a.tsv:2: field 'score' is not a number .got 'nan'."),
        ("a.tsv", "1\ta\tb\tc", "a.tsv:1: columns: 4; expected some called"),
        ("a.tsv", "", "holds no sentence pairs"),
        ("a.jsonl", "{}\n[1]\n", "a.jsonl:1: no field 'sentence1'; the row has no fields"),
        ("a.jsonl", "nothing\n", "a.jsonl:1: not JSON; "),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, name: str, text: str, message: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        tasks.sts(tmp_path / name)


def test_what_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "latin.tsv").write_bytes(b"1\ta\tb\n2\t\xe9\tb\n")
    with pytest.raises(InputError, match=r"latin\.tsv.*UTF-8"):
        tasks.sts(tmp_path / "latin.tsv")
    with pytest.raises(InputError, match="no file"):
        tasks.sts(tmp_path / "missing.tsv")
    with pytest.raises(InputError, match="-1 sentence pairs"):
        tasks.sts(tmp_path / "latin.tsv", -1)


# Retrieval


@pytest.mark.usefixtures("pydocs")
def test_queries_find_their_passage_among_held_out_ones_and_training_shares_no_package():
    task = tasks.retrieval(queries=10, passages=40, words=12)
    docs = tasks.documentation(12)
    package = {entry.id: entry.package for entry in docs.entries}
    assert len(task.queries) == 10
    assert len(task.corpus) == 40
    assert all(task.corpus[query.id] and task.qrels[query.id] == {query.id: 1} for query in task.queries)
    assert all(len(text.split()) <= 12 for text in task.corpus.values())
    asked = {package[name] for name in task.corpus}
    rows = tasks.training_pairs(100, words=12)
    trained = {package[entry.id] for entry in docs.entries if entry.summary in {row["query"] for row in rows}}
    assert rows
    assert trained
    assert asked
    assert not asked & trained
    assert {row["positive"] for row in rows}.isdisjoint(task.corpus.values())


@pytest.mark.usefixtures("pydocs")
def test_no_passage_nearly_repeats_another():
    """A copy of the right passage would count as wrong."""
    texts = list(tasks.retrieval(queries=10, passages=0, words=0).corpus.values())
    pairs = [(a, b) for i, a in enumerate(texts) for b in texts[:i]]
    assert max(jaccard(a, b) for a, b in pairs) < 0.6


@pytest.mark.usefixtures("pydocs")
def test_more_passages_keep_the_ones_there_were():
    few, many = (set(tasks.retrieval(queries=10, passages=n).corpus) for n in (20, 60))
    assert few < many
    assert len(set(tasks.retrieval(queries=10, passages=3).corpus)) == 10  # the right ones at least
    one, other = (tasks.retrieval(queries=10, passages=20, seed=seed) for seed in (0, 1))
    assert one.fingerprint() != other.fingerprint()


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    folder = tmp_path / "collection"
    (folder / "qrels").mkdir(parents=True)
    texts = {f"d{i}": f"text {i} of many words that follow it" for i in range(30)}
    lines = [json.dumps({"_id": name, "title": f"T{name}", "text": text}) + "\n" for name, text in texts.items()]
    (folder / "corpus.jsonl").write_text("".join(lines))
    lines = [json.dumps({"_id": f"q{i}", "text": f"query {i}"}) + "\n" for i in range(8)]
    (folder / "queries.jsonl").write_text("".join(lines))
    judged = "".join(f"q{i}\td{i}\t2\nq{i}\td{i + 10}\t0\n" for i in range(8))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def test_a_beir_folder_keeps_its_judgements_and_all_right_passages(collection: Path):
    task = tasks.retrieval(str(collection), 0, 0, words=0)
    assert (len(task.queries), len(task.corpus)) == (8, 30)
    assert task.corpus["d3"] == "Td3 text 3 of many words that follow it"
    assert task.qrels["q3"] == {"d3": 2, "d13": 0}
    part = tasks.retrieval(str(collection), 3, 12, words=2)
    assert (len(part.queries), len(part.corpus)) == (3, 12)
    assert {f"d{query.id[1:]}" for query in part.queries} <= set(part.corpus)
    assert part.corpus[f"d{part.queries[0].id[1:]}"].split()[1:] == ["text", part.queries[0].id[1:]]


def test_retrieval_is_scored_over_the_whole_corpus():
    """Five passages by falling similarity; the right one third: RR 1/3, nDCG 1/log2(4)."""
    vectors = {f"p{i}": [1.0, 0.1 * i] for i in range(5)} | {"query": [1.0, 0.0], "other": [1.0, 9.0]}
    task = RetrievalTask(
        [Query("q", "query"), Query("o", "other")],
        {f"n{i}": f"p{i}" for i in range(5)},
        {"q": {"n2": 1}, "o": {"n4": 1}},
    )
    table = Table(vectors)
    result = alone(retrieval_task(task), table)
    assert result.error == ""
    assert result.samples["RR@10"] == pytest.approx([1 / 3, 1])
    assert result.samples["nDCG@10"] == pytest.approx([0.5, 1])
    assert result.samples["R@100"] == [1, 1]
    assert table.asked[0] == list(task.corpus.values())
    assert sum(len(texts) > 2 for texts in table.asked) == 1  # the corpus is encoded once


# Near-duplicates and clusters


@pytest.mark.usefixtures("pydocs")
def test_near_duplicates_are_near_and_the_others_are_not():
    triples = tasks.duplicates(20, words=30)
    by_text = {" ".join(row.text.split()[:30]): row.metadata["package"] for row in documents()}
    assert len(triples) == 20
    for triple in triples:
        assert 0.4 <= triple.jaccard == jaccard(triple.anchor, triple.near) < 0.95
        assert jaccard(triple.anchor, triple.far) < 0.05
        assert by_text[triple.anchor] == by_text[triple.far]
        assert abs(len(triple.far) - len(triple.near)) < 0.3 * len(triple.near)
    texts = [text for triple in triples for text in (triple.anchor, triple.near)]
    assert len(set(texts)) == len(texts)
    assert triples == tasks.duplicates(20, words=30)
    assert triples != tasks.duplicates(20, words=30, seed=1)
    taken = Counter(by_text[triple.anchor] for triple in triples)
    assert len(taken) > 5


@pytest.mark.usefixtures("pydocs")
def test_what_the_corpus_does_not_hold_is_named():
    with pytest.raises(InputError, match="near-duplicates; expected 1000"):
        tasks.duplicates(1000)
    with pytest.raises(InputError, match="expected 50: ask for fewer"):
        tasks.clustering(50, 5)
    with pytest.raises(InputError, match="2 or more"):
        tasks.clustering(1, 5)
    with pytest.raises(InputError, match="1 or more"):
        tasks.duplicates(0)
    with pytest.raises(InputError, match="0 \\(all\\)"):
        tasks.retrieval(queries=-1)


@pytest.mark.usefixtures("pydocs")
def test_clusters_are_even_and_of_held_out_packages():
    found = tasks.clustering(3, 8)
    assert set(Counter(document.label for document in found).values()) == {8}
    docs = tasks.documentation(40)
    assert all(docs.held_out(document.label) for document in found)
    assert {document.label for document in tasks.clustering(2, 8)} < {document.label for document in found}


labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12)


@given(labels, st.data())
def test_v_measure_is_sklearns_for_weights_too(rows: list[tuple[int, ...]], data: st.DataObject):
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)).filter(any))
    values = np.array(rows, dtype=float)
    got = v_measure(values, np.array([[1] * len(rows), counts], dtype=float))
    for weights, value in zip(([1] * len(rows), counts), got, strict=True):
        label, *runs = np.repeat(values, weights, axis=0).T
        assert value == pytest.approx(np.mean([v_measure_score(label, run) for run in runs]), abs=1e-9)


def test_clusters_of_a_perfect_and_of_a_blind_embedder():
    rng = np.random.default_rng(0)
    given_ = [LabelledText(f"{label}{i}", f"l{label}") for label in range(3) for i in range(10)]
    perfect = Table({d.text: np.eye(3)[int(d.label[1])] + 0.01 * rng.normal(size=3) for d in given_})
    blind = Table({d.text: rng.normal(size=3) for d in given_})
    task = clustering_task(given_)
    arms = [arm_of(task, blind), arm_of(task, perfect, "perfect")]
    (worse, better), _ = run_arms(arms, list(task.items), task.metrics)
    assert better.values["kNN accuracy"].estimate == 1
    assert better.values["V-measure"].estimate == pytest.approx(1)
    assert worse.values["V-measure"].estimate < 0.4
    assert worse.values["kNN accuracy"].estimate < 0.7


def test_the_nearest_neighbours_are_sklearns_without_the_document_itself():
    rng = np.random.default_rng(1)
    given_ = [LabelledText(f"t{i}", f"l{i % 3}") for i in range(24)]
    vectors = {d.text: rng.normal(size=4) for d in given_}
    arm = arm_of(clustering_task(given_, neighbours=1), Table(vectors))
    assert arm.prepare
    arm.prepare()
    right = arm.run(range(24))["kNN accuracy"]
    points = np.array([vectors[d.text] / np.linalg.norm(vectors[d.text]) for d in given_])
    names = np.array([d.label for d in given_])
    for i in range(24):
        others = np.arange(24) != i
        guess = KNeighborsClassifier(1, metric="cosine").fit(points[others], names[others]).predict(points[i : i + 1])
        assert right[i] == float(guess[0] == names[i])


# Arms


def test_similarity_is_the_cosine_beside_the_gold_score(tiny):
    pairs = [SentencePair(f"text {i} here", f"number {i * i}", float(i % 4)) for i in range(9)]
    result = alone(sts_task(pairs), tiny, block_size=4)
    one, other = (tiny.encode([getattr(pair, side) for pair in pairs]).astype(float) for side in "ab")
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert np.array(result.samples["similarity"])[:, 0] == pytest.approx(cosines, abs=1e-5)
    expected = spearmanr(cosines, [pair.score for pair in pairs]).statistic
    assert result.values["Spearman"].estimate == pytest.approx(expected)


def test_near_duplicates_are_told_by_their_cosine(tiny):
    triples = [Triple(f"text {i} of all", f"text {i} of it all", f"other {i * 7} things", 0.5) for i in range(8)]
    result = alone(duplicates_task(triples), tiny)
    far, near = np.array(result.samples["pair"]).T
    similarity = tiny.similarity(
        tiny.encode([t.anchor for t in triples]), tiny.encode([t.near for t in triples])
    ).diagonal()
    assert near == pytest.approx(similarity.numpy(), abs=1e-5)
    expected = roc_auc_score([0] * 8 + [1] * 8, [*far, *near])
    assert result.values["duplicate AUROC"].estimate == pytest.approx(expected)


def test_vectors_of_a_corpus_are_kept_for_a_trial_that_was_stopped(tmp_path: Path):
    rng = np.random.default_rng(0)
    given_ = [LabelledText(f"t{i}", str(i % 2)) for i in range(8)]
    vectors = {d.text: rng.normal(size=3) for d in given_}
    task, kept = clustering_task(given_), tmp_path / "vectors"
    first, second = Table(vectors), Table(vectors)
    answers = []
    for table in (first, second):
        arm = arm_of(task, table, kept=kept)
        assert arm.prepare
        arm.prepare()
        answers.append(arm.run(range(8)))
    assert [len(texts) for texts in first.asked] == [8]
    assert second.asked == []
    assert answers[0] == answers[1]


def test_the_part_of_pydocs_that_is_named_is_what_every_task_reads(monkeypatch):
    asked = []
    monkeypatch.setattr(tasks, "_pydocs", lambda data: asked.append(data) or documents())
    named = {"data": "pydocs:stdlib"}
    for read in (
        lambda: tasks.retrieval("pydocs:stdlib", 8, 20, words=30),
        lambda: tasks.training_pairs(10, **named),
        lambda: tasks.duplicates(4, **named),
        lambda: tasks.clustering(2, 4, **named),
        lambda: tasks.documented_pairs(4, True, **named),
        lambda: doc_tasks.examples("summary", 4, 1, **named),
        lambda: doc_tasks.question("name", 4, 20, **named),
    ):
        tasks.documentation.cache_clear()
        assert read()
    assert asked == ["pydocs:stdlib"] * 7
    tasks.documentation.cache_clear()

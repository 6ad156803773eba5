"""In-context pretraining: what a path, its contexts, the neighbours below and the files of ranks must be."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from scipy import sparse

from broadsheet.apply.base import Source
from broadsheet.console import InputError
from broadsheet.curate import (
    Contexts,
    CorpusReader,
    DocumentVectors,
    InContextPretraining,
    NeighbourGraph,
    OrderDocuments,
    PathReader,
    Ranks,
    Sentences,
    ShardWriter,
    TfIdf,
    nearest,
)
from broadsheet.curate.files import PLACE
from broadsheet.curate.in_context_pretraining import (
    EXACT_COPY,
    LIKE_LAST,
    NEAR_COPY,
    InContextPretrainingRecipe,
    first_of_copies,
    gram_overlap,
    greedy_path,
    knn_order,
    merged,
    released_walk,
    unlike_last,
    zero_weight_jumps,
)
from broadsheet.curate.orders.neighbours import NONE, approximate, cosine, exact
from broadsheet.curate.orders.vectors import StoredVectors, encoder

PLAIN = {"duplicate": None, "like_last": None}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(clusters: int, each: int, width: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows in a drawn order, and which cluster each is of: they share most within one, and little between two."""
    drawn = np.random.default_rng(seed)
    of = drawn.permutation(np.repeat(np.arange(clusters), each))
    return unit(2 * drawn.standard_normal((clusters, width))[of] + drawn.standard_normal((len(of), width))), of


def blocks(clusters: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same, but of two clusters exactly nothing."""
    drawn = np.random.default_rng(seed)
    of = drawn.permutation(np.repeat(np.arange(clusters), each))
    rows = np.zeros((len(of), clusters * 8))
    for i, cluster in enumerate(of):
        rows[i, cluster * 8 : cluster * 8 + 8] = 1 + drawn.random(8)
    return unit(rows), of


def names(n: int) -> list[str]:
    return [f"{i} {random.Random(i).random()} text" for i in range(n)]


# Path


@pytest.mark.parametrize("walk", ["paper", "released"])
def test_the_path_holds_each_document_once_and_the_same_seed_gives_the_same(walk):
    rows, _ = clustered(6, 10)
    orders = [InContextPretraining(k=4, walk=walk, **PLAIN).order(names(60), rows) for _ in range(2)]
    assert sorted(orders[0].path) == list(range(60))
    assert orders[0].path.tolist() == orders[1].path.tolist()
    groups = knn_order(exact(rows, 4).ids)
    assert sorted(group[0] for group in groups) == list(range(60))
    read = [i for group in groups for i in group]
    assert len(read) == 300, "the other baseline repeats documents"


def test_clusters_that_share_nothing_stay_whole_and_each_is_one_start():
    rows, of = blocks(5, 8)
    order = InContextPretraining(k=7, **PLAIN).order(names(40), rows)
    changes = np.flatnonzero(np.diff(of[order.path]))
    assert changes.tolist() == [7, 15, 23, 31]
    assert order.jumps == 4
    assert np.flatnonzero(order.cosines == 0).tolist() == changes.tolist()
    few = InContextPretraining(k=2, **PLAIN).order(names(40), rows)
    assert few.jumps >= 4


def test_neighbours_on_the_path_are_far_more_alike_than_in_random_order():
    rows, _ = clustered(20, 10)
    order = InContextPretraining(k=9, **PLAIN).order(names(200), rows)
    drawn = np.random.default_rng(0).permutation(200)
    assert order.cosine > 0.6
    assert abs(cosine(rows, drawn[:-1], drawn[1:]).mean()) < 0.2
    assert order.cosines == pytest.approx((rows[order.path[:-1]] * rows[order.path[1:]]).sum(1), abs=1e-5)


def test_at_each_step_the_most_similar_document_that_is_left_comes_next():
    rows, _ = clustered(4, 6)
    graph = exact(rows, 3)
    edges = graph.undirected()
    path, left = greedy_path(edges), set(range(24))
    similarity = rows @ rows.T
    for here, after in pairwise(path):
        left.discard(int(here))
        near = {int(j) for j in range(24) if j in graph.ids[here] or here in graph.ids[j]} & left
        if near:
            assert after == max(near, key=lambda j: similarity[here, j])
        else:
            assert edges.degrees[after] == min(edges.degrees[j] for j in left)


def test_with_all_as_neighbours_there_is_no_jump_and_without_any_an_arbitrary_order_by_seed():
    rows, _ = clustered(3, 5)
    whole = InContextPretraining(k=14, **PLAIN).order(names(15), rows)
    assert whole.jumps == 0
    none = NeighbourGraph(np.full((15, 3), NONE, np.int32), np.zeros((15, 3), np.float32)).undirected()
    paths = [greedy_path(none, seed).tolist() for seed in (0, 1)]
    assert all(sorted(path) == list(range(15)) for path in paths)
    assert paths[0] != paths[1]
    assert zero_weight_jumps(np.array(paths[0]), none) == 14


def test_documents_with_few_neighbours_come_first():
    similarity = np.zeros((6, 6))
    for a, b in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (4, 0)):
        similarity[a, b] = similarity[b, a] = 0.5 + 0.01 * a + 0.001 * b
    similarity[similarity == 0] = -np.inf
    edges = NeighbourGraph.of(similarity, 5).undirected()
    assert edges.degrees.tolist() == [4, 3, 3, 3, 1, 0]
    path = greedy_path(edges).tolist()
    assert path[:2] == [5, 4]
    assert path[2] == 0, "from the only neighbour of 4"


def test_what_is_done_does_not_grow_faster_than_documents_times_neighbours(monkeypatch):
    asked = []
    from broadsheet.curate.orders.neighbours import Edges

    plain = Edges.of
    monkeypatch.setattr(Edges, "of", lambda self, row: asked.append(len(plain(self, row))) or plain(self, row))
    counts = []
    for n in (100, 200, 400):
        edges = exact(clustered(n // 10, 10)[0], 5).undirected()
        asked.clear()
        greedy_path(edges)
        assert len(asked) == n
        counts.append(sum(asked))
        assert counts[-1] == edges.degrees.sum() <= 2 * 5 * n
    assert counts[2] < 2.5 * counts[1]


def test_the_released_walk_fills_clusters_and_small_ones_are_merged_before_the_nearest():
    ids = np.array([[(i + step) % 50 for step in range(1, 6)] for i in range(50)])
    clusters = released_walk(ids)
    assert [len(each) for each in clusters] == [22, 21, 7], "the first document of all is not counted"
    whole = merged(clusters, ids)
    assert [len(each) for each in whole] == [27, 21, 2], "43 and 44 have no neighbours in other clusters"
    assert sorted(i for each in whole for i in each) == list(range(50))
    first = whole[0]
    assert first.index(49) == first.index(0) - 1, "before the nearest document of another cluster"
    lonely = merged([[0, 1], [2]], np.array([[1], [0], [NONE]]))
    assert lonely == [[0, 1], [2]]


# Copies


def test_of_copies_at_most_one_stays_and_of_a_corpus_of_copies_one():
    rows, _ = clustered(4, 5)
    texts = names(20)
    doubled = InContextPretraining(k=3).order(texts * 3, np.concatenate([rows] * 3))
    assert sorted(doubled.path) == list(range(20))
    assert doubled.dropped[EXACT_COPY].tolist() == list(range(20, 60))
    same = InContextPretraining(k=3).order(["one text"] * 50)
    assert same.path.tolist() == [0]
    alike = InContextPretraining(k=3, like_last=None).order(names(50), np.concatenate([rows[:1]] * 50))
    assert alike.path.tolist() == [0], "also where there are more of them than neighbours"
    assert len(alike.dropped[NEAR_COPY]) == 49


def test_no_two_neighbours_that_stay_are_as_alike_as_the_threshold():
    rows, _ = clustered(3, 30, width=8)
    found = InContextPretraining(k=5, duplicate=0.9, like_last=None).order(names(90), rows)
    kept = rows[np.sort(found.path)]
    similarity = kept @ kept.T - 2 * np.eye(len(kept))
    assert similarity.max() < 0.9
    assert 0 < len(found.path) < 90
    assert sorted([*found.path, *found.dropped[NEAR_COPY]]) == list(range(90))
    for gone in found.dropped[NEAR_COPY]:
        assert (rows[:gone] @ rows[gone]).max() >= 0.9, "of an earlier one"
    assert len(InContextPretraining(k=5, **PLAIN).order(names(90), rows).path) == 90


def test_of_copies_the_earlier_stays_and_what_is_like_a_dropped_one_alone_stays_too():
    similarity = np.full((4, 4), -np.inf)
    for a, b, s in ((0, 1, 0.96), (1, 2, 0.97), (2, 3, 0.5)):
        similarity[a, b] = similarity[b, a] = s
    edges = NeighbourGraph.of(similarity, 3).undirected()
    assert first_of_copies(edges, 0.95).tolist() == [True, False, True, True]
    assert first_of_copies(edges, 0.965).tolist() == [True, True, False, True]


def test_a_document_that_begins_as_the_one_before_is_left_out():
    head = "Copyright 2024 by the authors; all rights are reserved, and so on, for some hundred characters or more. "
    tails = ["Bees live in hives.", "Trees grow in woods, slowly, and the oldest of them are older than any city."]
    texts = [head + tails[0], "Something else altogether.", head + tails[0][::-1], head + tails[1]]
    assert unlike_last(texts) == [0, 1, 2]
    assert unlike_last(texts, characters=10_000) == [0, 1, 2, 3]
    assert unlike_last([texts[0]] * 5 + [texts[1]] + [texts[0]]) == [0, 5, 6], "with the last that stayed"
    first = "the quick brown fox jumps over a lazy dog; pack my box with jugs"
    chain = [first, first.replace("quick", "quack"), first.replace("quick", "quack").replace("box", "bag")]
    assert unlike_last(chain) == [0, 2], "the second, which is as the third, was not written"


def test_what_begins_alike_is_named_by_its_place_among_all_documents():
    head = "Copyright 2024 by the authors; all rights are reserved, and so on, for some hundred characters or more. "
    texts = ["bees and trees", "bees and trees", head + "of bees in hives", head + "of trees in woods"]
    order = InContextPretraining().order(texts)
    assert order.dropped[EXACT_COPY].tolist() == [1]
    [gone] = order.dropped[LIKE_LAST]
    assert gone in (2, 3)
    assert sorted([*order.path, gone]) == [0, 2, 3]
    both = order.path[:-1], order.path[1:]
    assert order.cosines == pytest.approx(cosine(TfIdf()(texts), *both), abs=1e-6)


def test_overlap_is_that_of_sets_of_three_characters():
    assert gram_overlap("abcabcabc", "abc") == pytest.approx(1 / 3)
    assert gram_overlap("abcd", "bcde") == pytest.approx(1 / 3)
    assert (gram_overlap("", ""), gram_overlap("ab", "ab"), gram_overlap("ab", "cd")) == (1, 1, 0)
    assert gram_overlap("ab", "abc") == 0


# Neighbours


def test_neighbours_are_those_with_the_highest_cosines_whatever_the_block(monkeypatch):
    rows, _ = clustered(5, 9, width=16)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    expected = np.argsort(-similarity, 1)[:, :6]
    assert exact(rows, 6).ids.tolist() == expected.tolist()
    monkeypatch.setattr("broadsheet.curate.orders.neighbours._CELLS", 100)
    again = exact(sparse.csr_array(rows), 6)
    assert again.ids.tolist() == expected.tolist()
    assert again.cosines == pytest.approx(np.take_along_axis(similarity, expected, 1), abs=1e-6)
    assert (again.ids.dtype, again.cosines.dtype) == (np.int32, np.float32)


def test_a_row_is_no_neighbour_of_its_own_even_among_its_copies_and_nothing_shared_is_none():
    rows = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 2]]
    assert nearest(rows, 3).ids.tolist() == [[1, 2, -1], [0, 2, -1], [0, 1, -1], [-1] * 3, [-1] * 3]
    rows[4] = 0
    assert nearest(rows, 1).ids[4].tolist() == [-1]


@pytest.mark.parametrize("thin", [False, True])
def test_faiss_finds_what_all_comparisons_find_where_it_looks_everywhere(thin):
    rows, _ = clustered(40, 15, width=24, seed=1)
    given = sparse.csr_array(np.where(np.abs(rows) > 0.1, rows, 0)) if thin else rows
    if thin:
        given = sparse.csr_array(unit(given.toarray()))
    whole = exact(given, 5)
    found = approximate(given, 5, lists=8, nprobe=8)
    same = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(whole.ids, found.ids, strict=True)])
    assert same > 0.97
    agree = whole.ids == found.ids
    assert found.cosines[agree] == pytest.approx(whole.cosines[agree], abs=1e-6), "cosines are exact"
    assert (found.ids != np.arange(600)[:, None]).all()
    fewer = approximate(given, 5, lists=8, nprobe=1)
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(whole.ids, fewer.ids, strict=True)]) < same


def test_faiss_serves_beyond_so_many_documents_alone(monkeypatch):
    rows, _ = clustered(30, 10, width=12)
    monkeypatch.setattr("broadsheet.curate.orders.neighbours.approximate", lambda *given, **more: more)
    assert isinstance(nearest(rows, 3, exact_up_to=300), NeighbourGraph)
    assert nearest(rows, 3, exact_up_to=299)["lists"] == 35


# Vectors


def test_words_that_few_documents_hold_count_more_and_an_empty_document_is_alone():
    vectors = TfIdf()(["the rare word", "the rare thing", "the usual thing", "", "the word"])
    similarity = (vectors @ vectors.T).toarray()
    assert np.diag(similarity) == pytest.approx([1, 1, 1, 0, 1], abs=1e-6)
    assert similarity[0, 1] > similarity[0, 2] > 0
    equal = TfIdf()(["the rare word", "a rare thing", "the usual other", "the one", "the two"])
    assert (equal[[0]] @ equal[[1]].T).toarray() > (equal[[0]] @ equal[[2]].T).toarray() + 0.05
    order = InContextPretraining().order(["", "the word", " ", "the word, again"])
    assert sorted(order.path) == [0, 1, 2, 3]


def test_hidden_states_are_the_mean_over_a_documents_own_tokens(tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    by = encoder(str(tmp_path))
    texts = ["a", "a longer text of some words", "", " ".join(map(str, range(700)))]
    import torch

    from broadsheet import models

    loaded, tokenizer = models.load(str(tmp_path), dtype="float32")
    found = by.encode(texts)
    for text, row in zip(texts, found, strict=True):
        ids = tokenizer(text)["input_ids"][:510]
        with torch.no_grad():
            mean = loaded.model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy() if ids else 0
        assert row == pytest.approx(mean + np.zeros_like(row), abs=1e-5)
    assert np.linalg.norm(by.together(found), axis=1) == pytest.approx([1, 1, 0, 1], abs=1e-6)


def test_any_function_makes_vectors_and_one_that_does_not_is_refused():
    texts = [f"{a}{b}" for a in "xy" for b in "123"]
    by = encoder(lambda given: [[text[0] == "x", text[0] == "y", 0.1 * int(text[1])] for text in given])
    order = InContextPretraining(k=2, **PLAIN).order(texts, by(texts))
    assert {text[0] for text in np.array(texts)[order.path[:3]]} in ({"x"}, {"y"})
    with pytest.raises(InputError, match=r"shape \(1, 6\) for 6 texts"):
        encoder(lambda given: [[1.0] * 6]).encode(texts)
    with pytest.raises(InputError, match="finite numbers"):
        encoder(lambda given: [[np.nan, 1.0]] * len(given)).encode(texts)
    with pytest.raises(InputError, match="expected tfidf"):
        encoder("no such thing")


# Contexts


def test_contexts_hold_the_tokens_of_the_path_and_are_shuffled_whole():
    drawn = np.random.default_rng(0)
    documents = [[*drawn.integers(1, 99, drawn.integers(0, 12)).tolist(), 0] for _ in range(40)]
    path = drawn.permutation(40)[:31]
    plain, shuffled, again = (Contexts(documents, path, 16, seed=seed) for seed in (None, 1, 1))
    stream = [token for i in path for token in documents[i]]
    assert len(stream) % 16
    read = [token for row in plain for token in row["input_ids"].tolist()]
    assert read == stream[: len(stream) // 16 * 16]
    rows = [tuple(row["input_ids"].tolist()) for row in plain]
    mixed = [tuple(row["input_ids"].tolist()) for row in shuffled]
    assert sorted(rows) == sorted(mixed)
    assert rows != mixed
    assert mixed == [tuple(row["input_ids"].tolist()) for row in again]
    assert plain.identity() != shuffled.identity()
    for i in range(len(shuffled)):
        spans = [token for document, begin, end in shuffled.spans(i) for token in documents[document][begin:end]]
        assert spans == shuffled[i]["input_ids"].tolist() == shuffled[i]["labels"].tolist()
    tail = Contexts(documents, path, 16, seed=None, drop_last=False)
    assert [token for row in tail for token in row["input_ids"].tolist()] == stream
    assert tail.spans(len(tail) - 1)[-1][0] == path[-1]
    with pytest.raises(InputError, match="a context of 999 at least"):
        Contexts(documents, path, 999)


# Ranks

KINDS = {
    "bread": ["flour", "water", "yeast", "salt", "oven", "dough", "crust", "knead", "rise", "loaf"],
    "ships": ["sail", "mast", "anchor", "harbour", "tide", "captain", "rope", "deck", "crew", "storm"],
    "stars": ["orbit", "planet", "comet", "galaxy", "telescope", "light", "moon", "eclipse", "dust", "sky"],
}


def corpus(folder: Path, copies: int = 2) -> tuple[str, list[str], list[str]]:
    """A corpus of three kinds of documents, some of them twice: its path, its texts, the kind of each."""
    drawn = random.Random(0)
    kinds = [drawn.choice(list(KINDS)) for _ in range(40)]
    texts = [" ".join(drawn.choices(KINDS[kind], k=12)) for kind in kinds]
    texts += texts[:copies]
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    return str(path), texts, kinds + kinds[:copies]


def test_ranks_give_the_order_that_the_method_gives_and_documents_come_in_it(tmp_path):
    spec, texts, _ = corpus(tmp_path)
    method = InContextPretraining(k=4)
    expected = method.order(texts)
    for tasks in (1, 3):
        work = tmp_path / str(tasks)
        steps = [CorpusReader(spec), DocumentVectors(work / "made/vectors"), ShardWriter(work / "made/documents")]
        Ranks(steps, work / "1", tasks=tasks).run()
        stored = StoredVectors.of(work / "made/vectors", tasks)
        assert stored.heads.tolist() == [text[:100] for text in texts]
        Ranks([OrderDocuments(work / "made/vectors", work / "order", tasks, method)], work / "2").run()
        assert np.load(work / "order/path.npy").tolist() == expected.path.tolist()
        reader = PathReader(work / "made", work / "order", tasks)
        for readers in (1, 2):
            read = [document.text for rank in range(readers) for document in reader.run(None, rank, readers)]
            assert read == [texts[i] for i in expected.path]


def test_vectors_of_a_rank_stand_whole_or_not_at_all_and_a_missing_rank_is_named(tmp_path):
    documents = [Document("a b", "1", metadata={PLACE: 0}), Document("c d", "2", metadata={PLACE: 3})]
    list(DocumentVectors(tmp_path, of=lambda texts: [[1.0, 2.0]] * len(texts)).run(documents, 0, 3))
    list(DocumentVectors(tmp_path, of=lambda texts: [[1.0, 2.0]] * len(texts)).run([], 1, 3))
    stored = StoredVectors.of(tmp_path, 2)
    assert (stored.rows.tolist(), stored.places.tolist()) == ([[1, 2]] * 2, [0, 3])

    def cut():
        yield documents[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        list(DocumentVectors(tmp_path).run(cut(), 2, 3))
    assert not list(tmp_path.glob("*00002*"))
    with pytest.raises(InputError, match="run rank 2 of 3 again"):
        StoredVectors.of(tmp_path, 3)


def test_a_reader_of_other_shards_than_the_vectors_are_of_is_refused(tmp_path):
    spec, _, _ = corpus(tmp_path)
    list(ShardWriter(tmp_path / "documents").run(CorpusReader(spec).run()))
    few = [document for document in CorpusReader(spec).run() if document.metadata[PLACE] < 10]
    list(DocumentVectors(tmp_path / "vectors").run(few))
    list(OrderDocuments(tmp_path / "vectors", tmp_path / "order", 1, InContextPretraining()).run())
    with pytest.raises(InputError, match="holds 42 documents, and its vectors are of 10"):
        list(PathReader(tmp_path, tmp_path / "order", 1).run())
    with pytest.raises(InputError, match=r"path.npy is missing"):
        list(PathReader(tmp_path, tmp_path / "nowhere", 1).run())


# Recipe


def test_a_corpus_becomes_its_documents_in_order_the_same_for_any_ranks(tmp_path):
    spec, texts, kinds = corpus(tmp_path)
    made = {}
    for tasks in (1, 3):
        out = tmp_path / f"out{tasks}"
        InContextPretrainingRecipe(tasks=tasks, method="in_context_pretraining(k=4)").run(Source(spec), out)
        made[tasks] = [(out / name).read_bytes() for name in ("documents.jsonl", "reasons.jsonl")]
    assert made[1] == made[3]
    ids = [json.loads(line)["id"] for line in (tmp_path / "out1/documents.jsonl").read_text().splitlines()]
    expected = InContextPretraining(k=4).order(texts)
    assert ids == [f"d{i}" for i in expected.path]
    assert json.loads(made[1][1].splitlines()[0]) == {
        "id": "d40", "pass": "what is left out", "reason": EXACT_COPY,
    }  # fmt: skip
    of = [kinds[int(each[1:])] for each in ids]
    assert sum(a != b for a, b in pairwise(of)) <= 4, "documents of a kind stand together"
    assert "metadata" not in (tmp_path / "out1/documents.jsonl").read_text()


def test_documents_that_a_model_reads_in_part_are_counted(tiny_folder, tmp_path, capsys):
    texts = [f"a red sea number {i} " * (200 if i % 4 == 0 else 2) for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = InContextPretrainingRecipe(embed=str(tiny_folder))
    recipe.apply(Source(str(tmp_path / "rows.jsonl")), tmp_path / "out", force=False)
    assert "3 documents are longer than" in capsys.readouterr().err
    steps = json.loads((tmp_path / "out" / "counts.json").read_text())["steps"]
    assert [step["cut"] for step in steps if "cut" in step] == [3]


def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path):
    spec, _, _ = corpus(tmp_path)
    for given, said in (
        ({"embed": "no/such/thing/at all"}, "expected tfidf"),
        ({"method": "in_context_pretraining(k=0)"}, "k"),
        ({"method": "in_context_pretraining(kk=3)"}, "has no field 'kk'"),
        ({"method": "in_context_pretraining(walk=best)"}, "'paper' or 'released'"),
        ({"method": "in_context_pretraining(duplicate=1.5)"}, "more than 0 and 1 at most"),
    ):
        with pytest.raises(InputError, match=said):
            InContextPretrainingRecipe(**given).run(Source(spec), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="one at least"):
        InContextPretraining().order([])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match=r"nothing is left of .*empty\.jsonl: it holds no documents"):
        InContextPretrainingRecipe(tasks=2).run(Source(str(tmp_path / "empty.jsonl")), tmp_path / "none")
    (tmp_path / "one.jsonl").write_text('{"text": ""}\n')
    InContextPretrainingRecipe().run(Source(str(tmp_path / "one.jsonl")), tmp_path / "one")
    assert len((tmp_path / "one/documents.jsonl").read_text().splitlines()) == 1
    with pytest.raises(InputError, match="expected"):
        InContextPretraining().order(["a", "b"], np.ones((3, 2), np.float32))


def test_the_path_selects_from_a_dataset():
    datasets = pytest.importorskip("datasets")
    texts = [f"{kind} {word}" for kind in ("a red", "the blue") for word in ["one", "two", "three"]]
    order = InContextPretraining().order(texts)
    made = datasets.Dataset.from_dict({"text": texts}).select(order.path)
    assert made["text"][:] == [texts[i] for i in order.path]


def test_a_folder_of_sentence_transformers_makes_vectors_and_fetches_no_kernel(tiny_model, tiny_tokenizer, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    first = Transformer(str(tmp_path / "model"))
    whole = SentenceTransformer(modules=[first, Pooling(32, "mean")], device="cpu")
    whole.save(str(tmp_path / "saved"))
    by = encoder(str(tmp_path / "saved"), device="cpu")
    assert isinstance(by, Sentences)
    texts = ["one text", "another, longer text", ""]
    assert by.encode(texts) == pytest.approx(whole.encode(texts), abs=1e-5)
    assert by.cut == 0
    by._model.max_seq_length = 8
    long = [
        "one two three four five six seven eight nine ten " * 9_000,
        "one",
        "one two three four five six seven eight",
    ]
    whole.max_seq_length = 8
    assert by.encode(long) == pytest.approx(whole.encode(long), abs=1e-5)
    assert by.cut == sum(len(ids) > 8 for ids in whole.tokenizer(long, verbose=False)["input_ids"]) > 0
    config = tmp_path / "saved" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "attn_implementation": "some/kernel"}))
    with pytest.raises(InputError, match="some/kernel"):
        encoder(str(tmp_path / "saved"), device="cpu").encode(texts)

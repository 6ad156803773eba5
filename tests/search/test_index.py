"""The vector index: what it finds, how it changes, what a kill or a damaged byte leaves, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kills import Killed, dying

from broadsheet.console import InputError
from broadsheet.data.corpora import Document
from broadsheet.search import Change, VectorIndex, exact, recall, reciprocal_rank_fusion, store, updating
from broadsheet.search import documents as documents_file

D = 16
SUBJECTS = ("list", "path", "thread", "socket", "date", "matrix", "string")


def documents(n: int, start: int = 0, mark: str = "") -> list[Document]:
    """Documents with a rare word each."""
    return [
        Document(f"d{i}", f"What a {SUBJECTS[i % len(SUBJECTS)]} is for, part number{i}. {mark}".strip())
        for i in range(start, start + n)
    ]


def vectors(n: int, seed: int = 0) -> np.ndarray:
    """Unit vectors in clusters, float32."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(8, D))[rng.integers(0, 8, n)] + 0.7 * rng.normal(size=(n, D))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def made(folder: Path, n: int = 40, **settings) -> VectorIndex:
    index = VectorIndex.create(folder, dimensions=D, **settings)
    index.add(documents(n), vectors(n))
    return index


def state(folder: Path) -> dict[str, tuple[bytes, str]]:
    """What an index holds: vector and text by id. Every byte is verified, and every search used, on the way."""
    index = VectorIndex.open(folder)
    contents = index._contents
    store.verify(folder, contents.manifest.files(), whole=True)
    live = contents.live()
    names = list(live)
    if names:
        rows = np.array([live[name][0] for name in names])
        texts = dict(contents.texts(rows))
        gathered = dict(zip(names, contents.gather(rows), strict=True))
        probe = names[len(names) // 2]
        assert index.search(gathered[probe][None], 1, exact=True)[0][0].score == pytest.approx(1, abs=1e-4)
        assert index.search(gathered[probe][None], 1)[0][0].score > 0.9
        assert probe in [hit.id for hit in index.search([texts[probe]], 3, mode="bm25")[0]]
        return {name: (gathered[name].tobytes(), texts[name]) for name in names}
    return {}


# Joining rankings


def test_fusion_scores_are_the_papers_formula():
    assert dict(reciprocal_rank_fusion([["a", "b"], ["b", "c"]])) == {
        "a": 1 / 61,
        "b": pytest.approx(1 / 62 + 1 / 61),
        "c": 1 / 62,
    }
    assert [name for name, _ in reciprocal_rank_fusion([["a", "b"], ["b", "c"]])] == ["b", "a", "c"]
    assert dict(reciprocal_rank_fusion([["a"], ["b"]], k=0, weights=[2, 0.5])) == {"a": 2.0, "b": 0.5}


@given(st.lists(st.permutations(range(6)), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_fusion_does_not_hang_on_the_order_of_the_rankings(rankings, random):
    shuffled = list(rankings)
    random.shuffle(shuffled)
    first, second = (dict(reciprocal_rank_fusion(each)) for each in (rankings, shuffled))
    assert first == pytest.approx(second)
    assert set(first) == set(range(6))


def test_fusion_refuses_other_numbers_of_weights_and_a_negative_k():
    with pytest.raises(ValueError, match="1 weights for 2"):
        reciprocal_rank_fusion([["a"], ["b"]], weights=[1])
    with pytest.raises(ValueError, match="-1"):
        reciprocal_rank_fusion([["a"]], k=-1)


# Exact search


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**16))
def test_exact_search_is_a_sort_of_all_scores_however_it_is_cut(n, block, k, seed):
    rng = np.random.default_rng(seed)
    rows, queries = vectors(n, seed), vectors(3, seed + 1)
    dead = rng.random(n) < 0.3
    dead[rng.integers(n)] = False
    k = min(k, int((~dead).sum()))
    blocks = [(first, rows[first : first + block]) for first in range(0, n, block)]
    found, scores = exact.nearest(queries, blocks, k, dead)
    expected = np.where(dead, -np.inf, queries @ rows.T)
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, found, 1), scores, atol=1e-6)


def test_recall_counts_what_is_as_good_and_not_what_is_worse():
    best = np.array([[0.9, 0.8, 0.8], [0.5, 0.4, 0.3]], np.float32)
    assert exact.recall(best, best) == 1
    assert exact.recall(np.array([[0.9, 0.8, 0.79], [0.5, 0.3, -np.inf]], np.float32), best) == pytest.approx(4 / 6)


# What is found


def test_every_document_is_found_by_its_vector_and_by_its_rare_word(tmp_path):
    index = made(tmp_path / "index")
    for i, hits in enumerate(index.search(vectors(40), 3)):
        assert hits[0].id == f"d{i}"
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.id for hit in index.search(["number7"], 5, mode="bm25")[0]] == ["d7"]
    assert "number7" in index.search(["number7"], 5, mode="bm25")[0][0].snippet()


def test_the_graph_finds_nearly_what_exact_search_finds(tmp_path):
    index = made(tmp_path / "index", 2000, graph_from=1000)
    checked = index.check()
    assert index.manifest.graph is not None
    assert checked.width == index.manifest.graph.width
    assert 0.97 <= checked.recall <= 1
    queries = vectors(50, seed=9)
    for approximate, whole in zip(index.search(queries), index.search(queries, exact=True), strict=True):
        exactly = {hit.id: hit.score for hit in whole}
        assert all(hit.score == pytest.approx(exactly.get(hit.id, hit.score), abs=1e-6) for hit in approximate)
    assert made(tmp_path / "small").check().width is None
    assert made(tmp_path / "other").check().recall == 1


def test_the_graph_searches_as_wide_as_it_has_to(tmp_path, monkeypatch, capsys):
    plain = recall.found

    def found(contents, graph, queries, own, k, width):
        scores = plain(contents, graph, queries, own, k, width)
        return scores if width >= enough else np.full_like(scores, -np.inf)

    monkeypatch.setattr(recall, "found", found)
    enough = 128
    chosen = made(tmp_path / "index", 600, graph_from=500).manifest.graph
    assert (chosen.width, chosen.recall > 0.98) == (128, True)
    assert "nearest" not in capsys.readouterr().err
    enough = 10_000
    assert made(tmp_path / "other", 600, graph_from=500).manifest.graph.recall == 0
    assert "finds 0.0% of the nearest 10; --exact finds all" in capsys.readouterr().err


def test_a_graphs_width_is_chosen_on_vectors_it_does_not_hold(tmp_path, monkeypatch):
    seen = []
    plain = recall.width

    def width(contents, graph, queries):
        every = graph.search(contents.gather(np.arange(contents.manifest.rows)), contents.manifest.rows, 10_000)
        seen.append((set(queries.tolist()), set(every.flatten().tolist()) - {-1}))
        return plain(contents, graph, queries)

    monkeypatch.setattr(recall, "width", width)
    index = made(tmp_path / "index", 600, graph_from=500)
    [(held, holds)] = seen
    assert len(held) == 60
    assert held.isdisjoint(holds)
    assert held | holds == set(range(600))
    first = index.manifest.graph
    assert [hits[0].id for hits in index.search(vectors(600), 1)] == [f"d{i}" for i in range(600)]
    index.add([Document(f"n{i}", "few") for i in range(100)], vectors(100, seed=4))  # too few to judge by
    assert len(seen) == 1
    assert (index.manifest.graph.width, index.manifest.graph.recall) == (first.width, first.recall)
    assert index.manifest.graph.rows == 700
    assert [hits[0].id for hits in index.search(vectors(100, seed=4), 1)] == [f"n{i}" for i in range(100)]
    index.add([Document(f"m{i}", "many") for i in range(500)], vectors(500, seed=5))
    assert len(seen) == 2
    assert len(seen[1][0]) == 50
    assert seen[1][0] <= set(range(700, 1200))


def test_recall_is_measured_and_not_assumed(tmp_path, monkeypatch):
    index = made(tmp_path / "index", 2000, graph_from=1000)
    monkeypatch.setattr("broadsheet.search.recall.candidates", lambda k: k)
    monkeypatch.setattr(
        "broadsheet.search.graph.Neighbours.search",
        lambda self, queries, k, width, without: -np.ones((len(queries), k), int),
    )
    assert index.check().recall == 0


def test_a_long_list_holds_every_document_once(tmp_path):
    index = made(tmp_path / "index", 2000, graph_from=1000)
    hits = index.search(vectors(1), 5000)[0]
    assert sorted(hit.id for hit in hits) == sorted(index.ids())


def test_dot_products_are_kept_and_float16_takes_half_the_room(tmp_path):
    long = 3 * vectors(40)
    dot = VectorIndex.create(tmp_path / "dot", dimensions=D, similarity="dot")
    dot.add(documents(40), long)
    assert dot.search(long[:1], 1)[0][0].score == pytest.approx(9, abs=1e-4)
    half = made(tmp_path / "half", dtype="float16")
    assert half.search(vectors(40)[3:4], 1)[0][0].id == "d3"
    sizes = [index.manifest.segments[0].vectors.bytes - 128 for index in (half, made(tmp_path / "whole"))]
    assert 2 * sizes[0] == sizes[1]


# How it changes


def test_pieces_make_the_index_that_one_call_makes(tmp_path):
    whole = made(tmp_path / "whole", 1500, graph_from=500)
    pieces = VectorIndex.create(tmp_path / "pieces", dimensions=D, graph_from=500)
    for start in (0, 400, 700, 1400):
        end = {0: 400, 400: 700, 700: 1400, 1400: 1500}[start]
        pieces.add(documents(end - start, start), vectors(1500)[start:end])
    assert pieces.ids() == whole.ids()
    queries = vectors(20, seed=3)
    for one, other in zip(pieces.search(queries, exact=True), whole.search(queries, exact=True), strict=True):
        assert [(hit.id, hit.text) for hit in one] == [(hit.id, hit.text) for hit in other]
        # Products of other shapes are rounded otherwise.
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-6)
    assert pieces.check().recall > 0.97
    assert pieces.search(["socket number33"], 5, mode="bm25") == whole.search(["socket number33"], 5, mode="bm25")


def test_only_what_is_new_or_changed_is_written(tmp_path):
    index = made(tmp_path / "index")
    changed = documents(40)
    changed[5] = Document("d5", "Another text entirely, about zebras.")
    assert index.add([*changed, *documents(2, 40), Document("blank", " \n")], vectors(43, seed=1)) == Change(
        added=2, changed=1, unchanged=39, removed=0, empty=1
    )
    assert index.manifest.segments[-1].rows == 3
    assert len(index) == 42
    assert [hit.id for hit in index.search(["zebras"], 5, mode="bm25")[0]] == ["d5"]
    assert index.search(["number5"], 5, mode="bm25") == [[]]
    assert index.add(changed, vectors(40)).unchanged == 40
    assert len(index.manifest.segments) == 2


def test_deleted_documents_are_found_by_no_search(tmp_path):
    index = made(tmp_path / "index", 1200, graph_from=500)
    gone = [f"d{i}" for i in range(200)]
    assert index.delete([*gone, "d0"]) == 200
    assert index.manifest.deleted is not None
    for again in (index, VectorIndex.open(index.folder)):
        assert len(again) == 1000
        for options in ({}, {"exact": True}):
            hits = again.search(vectors(1200)[:200], 20, **options)
            assert not {hit.id for each in hits for hit in each} & set(gone)
            assert all(len(each) == 20 for each in hits)
        assert again.search(["number7"], 3, mode="bm25") == [[]]
    assert index.add(documents(1), vectors(1)) == Change(added=1)
    assert index.search(["number0"], 3, mode="bm25")[0][0].id == "d0"


def test_prune_removes_what_vanished_from_the_source(tmp_path):
    index = made(tmp_path / "index")
    assert index.add(documents(30, 5), vectors(40)[5:35], prune=True) == Change(unchanged=30, removed=10)
    assert sorted(index.ids()) == sorted(each.id for each in documents(30, 5))


def test_much_that_is_dead_is_left_behind(tmp_path):
    index = made(tmp_path / "index", 1200, graph_from=500)
    before = index.bytes
    kept = documents(800, 400)
    index.delete(f"d{i}" for i in range(400))
    assert index.manifest.rows == len(index) == 800
    assert index.manifest.deleted is None
    assert index.bytes < 0.8 * before
    assert index.ids() == [each.id for each in kept]
    assert index.check().recall > 0.97
    assert _named(index.folder)


def test_many_small_additions_become_one_segment(tmp_path, monkeypatch):
    monkeypatch.setattr(updating, "MOST_SEGMENTS", 3)
    index = made(tmp_path / "index", 10)
    for start in range(10, 20):
        index.add(documents(1, start), vectors(20)[start : start + 1])
        assert len(index.manifest.segments) <= 3
    assert index.ids() == [each.id for each in documents(20)]


def test_a_reader_sees_one_state_while_a_writer_goes_on(tmp_path):
    folder = tmp_path / "index"
    writer = made(folder, 100)
    reader = VectorIndex.open(folder)
    fresh = VectorIndex.open(folder)
    assert reader.search(vectors(100)[:1], 1)[0][0].id == "d0"
    writer.delete(f"d{i}" for i in range(60))  # written anew: the files that the readers know are gone
    assert reader.search(vectors(100)[:1], 1)[0][0].id == "d0"
    assert "d0" not in [hit.id for hit in fresh.search(["number0"], 5, mode="bm25")[0]]
    assert len(fresh) == 40
    assert reader.refresh()
    assert not reader.refresh()
    assert len(reader) == 40


# Kills


def _add(folder: Path) -> None:
    changed = documents(30)
    changed[3] = Document("d3", "Another text, number3.")
    VectorIndex.open(folder).add([*changed, *documents(10, 30)], vectors(40, seed=4))


def _grow(folder: Path) -> None:
    VectorIndex.open(folder).add(documents(20, 30), vectors(20, seed=5))


def _delete(folder: Path) -> None:
    index = VectorIndex.open(folder)
    index.delete(name for name in ("d1", "d2") if name in index)


def _delete_many(folder: Path) -> None:
    index = VectorIndex.open(folder)
    index.delete(name for name in map("d{}".format, range(15)) if name in index)


def _prune(folder: Path) -> None:
    VectorIndex.open(folder).add(documents(20, 15), vectors(20, seed=6), prune=True)


def _rebuild(folder: Path) -> None:
    VectorIndex.rebuild(folder)


@pytest.fixture
def _no_flush(monkeypatch):
    """Flushing to disk is for power failures, which no test makes; a hundred kills would wait for it."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.mark.usefixtures("_no_flush")
@pytest.mark.parametrize("change", [_add, _grow, _delete, _delete_many, _prune, _rebuild])
def test_a_kill_at_any_write_leaves_the_old_index_or_the_new_one(tmp_path, change):
    base = tmp_path / "base"
    made(base, 30, graph_from=35)
    before = state(base)
    after_folder = tmp_path / "after"
    shutil.copytree(base, after_folder)
    with dying(after_folder) as life:
        change(after_folder)
    after = state(after_folder)
    assert life.count > 3
    seen = []
    for at in range(life.count):
        folder = tmp_path / f"killed-{at}"
        shutil.copytree(base, folder)
        with dying(folder, at), pytest.raises(Killed):
            change(folder)
        left = state(folder)
        seen.append([left == each for each in _between(before, after, change)].index(True))
        change(folder)
        assert state(folder) == after
        assert _named(folder)
        shutil.rmtree(folder)
    assert seen == sorted(seen)
    assert seen[0] == 0


def _between(before: dict, after: dict, change: Callable) -> Iterator[dict]:
    """The states that a change may leave: pruning is two steps, additions and then removals."""
    yield before
    if change is _prune:
        yield before | after
    yield after


def _named(folder: Path) -> bool:
    """Whether the folder holds the files of the index, and no others."""
    manifest = store.read(folder)
    kept = {file.name for file in manifest.files()} | {store.NAME, store.COPY, f"{store.NAME}.lock"}
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} == kept


@pytest.mark.usefixtures("_no_flush")
def test_a_kill_while_the_index_is_created_is_no_hindrance(tmp_path):
    at = 0
    while True:
        folder = tmp_path / f"index-{at}"
        try:
            with dying(folder, at):
                made(folder, 5)
        except Killed:
            at += 1
            if not (folder / store.NAME).exists():
                VectorIndex.create(folder, dimensions=D)
            VectorIndex.open(folder).add(documents(5), vectors(5))
            assert len(state(folder)) == 5
            continue
        break
    assert at > 5


# Damage


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [_flip, _halve, Path.unlink])
@pytest.mark.parametrize("what", ["graph", "keywords", "vectors", "documents", "deleted", "index.json"])
def test_damage_is_named_and_mended_with_one_command(tmp_path, what, harm, capsys):
    folder = tmp_path / "index"
    index = made(folder, 60, graph_from=30)
    index.add(documents(10, 60), vectors(70)[60:])
    index.delete(["d1", "d65"])
    before = state(folder)
    manifest = index.manifest
    assert manifest.graph is not None
    assert manifest.deleted is not None
    path = (
        folder
        / {
            "graph": manifest.graph.file.name,
            "keywords": manifest.keywords[0].name,
            "vectors": manifest.segments[1].vectors.name,
            "documents": manifest.segments[1].documents.name,
            "deleted": manifest.deleted.name,
            "index.json": store.NAME,
        }[what]
    )
    harm(path)
    with pytest.raises(InputError, match="damaged") as error:
        VectorIndex.open(folder).check()
    assert str(path) in str(error.value)
    assert f"broadsheet index {folder} --rebuild" in str(error.value)
    assert "\n" not in str(error.value)
    mended = VectorIndex.rebuild(folder)
    assert mended.check().recall > 0.97
    lost = {f"d{i}" for i in range(60, 70)} if what in ("documents", "vectors") else set()
    back = {"d1": 0, "d65": 0} if what == "deleted" else {}
    assert set(state(folder)) == (set(before) | set(back)) - lost
    said = capsys.readouterr().err
    assert ("lost" in said) == bool(lost)
    assert ("back" in said) == bool(back)
    aside = folder / f"lost-{manifest.generation + 1}.jsonl"
    assert aside.exists() == (what == "vectors"), "texts are whole, and nothing embeds them again"
    if aside.exists():
        rows = [json.loads(line) for line in aside.read_text().splitlines()]
        assert {row["id"] for row in rows} == lost
        aside.unlink()
    assert _named(folder)


def test_one_wrong_digit_in_the_manifest_loses_no_document(tmp_path, capsys):
    folder = tmp_path / "index"
    made(folder, 40, graph_from=1000).add(documents(10, 40), vectors(50)[40:])
    before, text = state(folder), (folder / store.NAME).read_text()
    keep = tmp_path / "keep"
    shutil.copytree(folder, keep)
    begin, end = text.index('"segments"'), text.index('"deleted"')
    places = [i for i in range(begin, end) if text[i] in "0123456789"][::7]
    assert len(places) > 20
    for place in places:
        shutil.rmtree(folder)
        shutil.copytree(keep, folder)
        wrong = text[:place] + ("1" if text[place] != "1" else "2") + text[place + 1 :]
        (folder / store.NAME).write_text(wrong)
        VectorIndex.rebuild(folder)
        assert state(folder) == before, f"{wrong[place - 30 : place + 10]!r}"
        VectorIndex.open(folder).check()


def test_the_copy_is_checked_and_made_anew(tmp_path):
    folder = tmp_path / "index"
    made(folder, 20)
    (folder / store.COPY).write_text((folder / store.COPY).read_text().replace('"generation": ', '"generation": 1'))
    with pytest.raises(InputError, match=r"index\.copy\.json is damaged: it does not say what index\.json says"):
        VectorIndex.open(folder).check()
    (folder / store.COPY).unlink()
    with pytest.raises(InputError, match=r"index\.copy\.json is damaged: it is missing"):
        VectorIndex.open(folder).check()
    VectorIndex.rebuild(folder).check()
    VectorIndex.open(folder).check()


@pytest.mark.parametrize("at", [0.3, 0.6, 0.999])
def test_documents_that_verify_by_themselves_are_kept(tmp_path, capsys, at):
    """Three blocks of documents, of which a flipped byte harms one, or the end of the file, which harms none."""
    folder = tmp_path / "index"
    index = made(folder, 600)
    before = state(folder)
    path = folder / index.manifest.segments[0].documents.name
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0xFF
    path.write_bytes(data)
    VectorIndex.rebuild(folder)
    left = state(folder)
    assert set(left) <= set(before)
    assert len(left) >= 600 - documents_file.BLOCK, "one block at most is lost"
    assert left == {name: before[name] for name in left}, "each with its own vector"
    assert ("are lost" in capsys.readouterr().err) == (len(left) < 600)
    hits = VectorIndex.open(folder).search(vectors(600)[-5:], 1)
    assert [hit[0].id for hit in hits] == [f"d{i}" for i in range(595, 600) if f"d{i}" in left] or len(left) < 600


def test_a_search_notices_damaged_vectors(tmp_path):
    folder = tmp_path / "index"
    index = made(folder, 30)
    path = folder / index.manifest.segments[0].vectors.name
    sound = path.read_bytes()
    for at in range(128, len(sound), len(sound) // 40):
        data = bytearray(sound)
        data[at] ^= 0x40
        path.write_bytes(data)
        with pytest.raises(InputError, match="its contents are not what was written"):
            VectorIndex.open(folder).search(vectors(30)[:1], 3)


def test_a_damaged_byte_never_makes_another_text(tmp_path):
    folder = tmp_path / "index"
    index = made(folder, 20)
    path = folder / index.manifest.segments[0].documents.name
    sound = path.read_bytes()
    right = [[(hit.id, hit.text) for hit in each] for each in index.search(vectors(20), 20)]
    noticed = 0
    for at in range(0, len(sound), 9):
        data = bytearray(sound)
        data[at] ^= 0xFF
        path.write_bytes(data)
        try:
            found = VectorIndex.open(folder).search(vectors(20), 20)
        except InputError as error:
            assert "documents.arrow is damaged" in str(error)  # noqa: PT017
            noticed += 1
        else:
            assert [[(hit.id, hit.text) for hit in each] for each in found] == right
    assert noticed > len(sound) / 9 / 3


def test_a_manifest_cannot_name_files_outside(tmp_path):
    folder = tmp_path / "index"
    made(folder, 5)
    text = (folder / store.NAME).read_text()
    (folder / store.NAME).write_text(text.replace('"segment-1/vectors/vectors.npy"', '"../vectors.npy"'))
    with pytest.raises(InputError, match="outside"):
        VectorIndex.open(folder)
    (folder / store.NAME).write_text(text.replace(store.FORMAT, "broadsheet index 2"))
    with pytest.raises(InputError, match="update broadsheet"):
        VectorIndex.open(folder)


# What is refused


def test_bad_input_is_refused_in_one_line(tmp_path):
    index = made(tmp_path / "index")
    refused: list[tuple[str, Callable]] = [
        ("shape .1, 5.*16 dimensions", lambda: index.search(np.ones((1, 5)), 1)),
        ("empty query", lambda: index.search(["", "x"], 1, mode="bm25")),
        ("empty query", lambda: index.search(["  "], 1)),
        ("no queries", lambda: index.search([], 1)),
        ("one text", lambda: index.search("a query", 1)),
        ("got 0 documents to find", lambda: index.search(["x"], 0, mode="bm25")),
        ("mode 'sparse'", lambda: index.search(["x"], 1, mode="sparse")),
        ("needs texts", lambda: index.search(vectors(1), 1, mode="hybrid")),
        ("does not say what embeds", lambda: index.search(["x"], 1)),
        ("NaN", lambda: index.search(np.full((1, D), np.nan), 1)),
        ("NaN", lambda: index.add(documents(1, 90), np.full((1, D), np.inf))),
        ("2 vectors for 1 documents", lambda: index.add(documents(1, 90), vectors(2))),
        ("got vectors of shape", lambda: index.add(documents(1, 90), np.ones((1, 3)))),
        ("'d90' comes twice", lambda: index.add(documents(1, 90) * 2, vectors(2))),
        ("got no documents", lambda: index.add([], vectors(0))),
        ("2 documents have no text", lambda: index.add([Document("a", ""), Document("b", " ")], vectors(2))),
        ("no document 'nowhere' and 1 more", lambda: index.delete(["d1", "nowhere", "d41"])),
        ("surrogate", lambda: index.add([Document("a", "\ud800")], vectors(1))),
        ("already; open it", lambda: VectorIndex.create(index.folder, dimensions=D)),
        ("not empty", lambda: VectorIndex.create(tmp_path, dimensions=D)),
        ("needs their number", lambda: VectorIndex.create(tmp_path / "new")),
        ("similarity 'euclidean'", lambda: VectorIndex.create(tmp_path / "new", dimensions=D, similarity="euclidean")),
        ("dtype 'int8'", lambda: VectorIndex.create(tmp_path / "new", dimensions=D, dtype="int8")),
        ("no index at", lambda: VectorIndex.open(tmp_path / "nowhere")),
        ("holds no index.json", lambda: VectorIndex.open(tmp_path)),
        ("no index at", lambda: VectorIndex.rebuild(tmp_path / "nowhere")),
    ]
    before = state(index.folder)
    for message, call in refused:
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert state(index.folder) == before
    assert not (tmp_path / "new").exists()


def test_an_empty_index_and_one_without_keywords_say_so(tmp_path):
    empty = VectorIndex.create(tmp_path / "empty", dimensions=D)
    with pytest.raises(InputError, match="holds no documents"):
        empty.search(vectors(1))
    plain = made(tmp_path / "plain", keywords=False)
    assert not plain.manifest.keywords
    with pytest.raises(InputError, match="without keywords"):
        plain.search(["list"], mode="bm25")
    only = made(tmp_path / "only", 3)
    only.delete(["d0", "d1", "d2"])
    assert len(VectorIndex.open(only.folder)) == 0
    only.add(documents(3), vectors(3))
    assert len(only) == 3


def test_texts_without_words_and_a_missing_library_are_answered(tmp_path, monkeypatch):
    index = VectorIndex.create(tmp_path / "index", dimensions=D, graph_from=3)
    index.add([Document("a", "!"), Document("b", "?")], vectors(2))
    assert VectorIndex.open(index.folder).search(["list"], mode="bm25") == [[]]
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(InputError, match="pip install"):
        index.add(documents(2), vectors(2))
    monkeypatch.undo()
    assert VectorIndex.open(index.folder).add(documents(1, 2), vectors(1)) == Change(added=1, finished=2)
    assert len(VectorIndex.open(index.folder)) == 5


def test_documents_are_read_back_by_row(tmp_path):
    many = [Document(f"ü{i}", f"{i} — 日本語 " * (i % 40)) for i in range(3 * documents_file.BLOCK + 7)]
    assert documents_file.write(tmp_path / "documents.arrow", many) == len(many)
    read = documents_file.Documents(tmp_path / "documents.arrow")
    assert len(read) == len(many)
    wanted = [700, 0, 255, 256, 774, 0]
    assert read.rows(wanted) == [(many[i].id, many[i].text) for i in wanted]
    assert [(each.id, each.text) for each in read] == [(each.id, each.text) for each in many]
    assert read.hashes()[3] == documents_file.content_hash(many[3])
    assert json.dumps(read.ids())

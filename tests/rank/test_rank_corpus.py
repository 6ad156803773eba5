"""The retrieval sets: fair candidates, splits that share nothing, near-duplicates found, files read or refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.corpora import Document
from broadsheet.rank.beir import Beir
from broadsheet.rank.corpus import Documentation
from broadsheet.rank.duplicates import distinct
from broadsheet.rank.lists import RankList, training_rows
from broadsheet.rank.search import BM25

NOUNS = ["path", "list", "file", "graph", "matrix", "token", "socket", "queue", "image", "model", "tree", "lock"]
VERBS = ["join", "sort", "close", "draw", "invert", "read", "open", "drain", "crop", "fit", "walk", "hold"]


def rows(n: int = 600, packages: int = 12) -> list[Document]:
    """Docstrings with a summary of their own and a body that shares some of its words."""
    generator = random.Random(0)
    found = []
    for i in range(n):
        verb, noun = generator.choice(VERBS), generator.choice(NOUNS)
        summary = f"{verb.title()} the {noun} number{i} of {generator.choice(NOUNS)} twice."
        filler = [f"{generator.choice(VERBS)}{generator.randrange(9)}" for _ in range(14)]
        body = " ".join([*([verb, noun, f"number{i}"] if i % 3 else [f"word{i}"]), *filler])
        package = f"package{i % packages}"
        metadata = {
            "kind": "function", "package": package, "module": f"{package}.m", "title": f"{package}.m.f{i}",
            "summary": summary, "body": body,
        }  # fmt: skip
        found.append(Document(f"{package}.m.f{i}", f"{summary}\n\n{body}", metadata))
    return found


def row(name: str, summary: str, body: str, package: str = "p") -> Document:
    metadata = {
        "kind": "function", "package": package, "module": package, "title": name, "summary": summary, "body": body
    }  # fmt: skip
    return Document(name, f"{summary}\n\n{body}", metadata)


BODY = "Every part after the first one is joined by a slash, and what is empty is left out of the result."


# Documentation


def test_candidates_are_never_shown_with_the_right_one_first_by_construction():
    """Bodies that say less about their own number than others do: BM25 puts them second, and there they stay."""
    words = [f"filler{i}" for i in range(12)]
    given = [
        row(
            f"r{i}",
            f"Ask for thing{i} here now.",
            " ".join([f"thing{i}", *words[i % 12 :], f"x{i} y{i} z{i} u{i}", *words]),
        )
        for i in range(40)
    ]
    loud = [row(f"l{i}", "Nothing asks for this.", " ".join([f"thing{i} here"] * 8 + [f"v{i}"])) for i in range(40)]
    seed = next(s for s in range(50) if Documentation(given, seed=s).held_out("p"))
    lists = Documentation([*given, *loud], seed=seed).test(40, candidates=5)
    assert {each.labels.index(1) for each in lists} == {1}


def test_a_test_list_holds_bm25s_order_and_keeps_queries_that_bm25_missed():
    docs = Documentation(rows())
    lists = docs.test(60, candidates=10)
    assert len(lists) == 60
    missed = [each for each in lists if not each.found]
    assert 0 < len(missed) < 60
    first = 0
    for each in lists:
        assert len(set(each.ids)) == 10 == len(each.documents)
        assert list(each.scores) == sorted(each.scores, reverse=True)
        assert each.judged == {each.id: 1}
        assert sum(each.labels) == each.found
        first += each.labels[0]
    assert 0 < first <= 60 - len(missed)


def test_test_and_training_share_no_package_and_no_training_passage_is_of_the_test():
    docs = Documentation(rows())
    test, train = docs.test(60), docs.train(60)
    assert {each.group for each in test}.isdisjoint({each.group for each in train})
    assert all(docs.held_out(each.group) for each in test)
    shown = {identifier.split(".")[0] for each in train for identifier in each.ids}
    assert not any(docs.held_out(package) for package in shown)
    assert any(not docs.held_out(i.split(".")[0]) for each in test for i in each.ids)  # candidates are of everything


def test_the_same_seed_gives_the_same_lists_and_another_seed_others():
    test = Documentation(rows(), seed=1).test(30)
    assert test == Documentation(rows(), seed=1).test(30)
    assert [each.id for each in test] != [each.id for each in Documentation(rows(), seed=2).test(30)]
    assert Documentation(rows(), seed=1).fingerprint() == Documentation(rows(), seed=2).fingerprint()
    assert Documentation(rows(), words=5).fingerprint() != Documentation(rows()).fingerprint()


def test_no_package_has_more_than_its_share_while_others_have_queries():
    given = rows(600, packages=40)
    for document in given[:300]:
        document.metadata["package"] = "huge"
    seeds = [s for s in range(50) if Documentation(given[:5], seed=s).held_out("huge")]
    for seed in seeds[:3]:
        groups = [each.group for each in Documentation(given, seed=seed).test(40)]
        others = len(set(groups)) - 1
        assert others > 5
        assert groups.count("huge") == max(4, 40 - 4 * others), others


def test_training_lists_hold_the_right_passage_and_draw_others_from_the_depth():
    docs = Documentation(rows())
    near, far = docs.train(40, 5), docs.train(40, 5, depth=300)
    assert all(each.found and len(each.ids) == 5 for each in near + far)
    found = {each.id: each for each in near}
    assert any(each.id not in found for each in far)  # what stood below the fifth place can be learned from
    assert any(set(each.ids) - set(found[each.id].ids) for each in far if each.id in found)
    assert all(list(each.scores) == sorted(each.scores, reverse=True) for each in far)


def test_passages_leave_the_summary_out_and_are_cut():
    docs = Documentation([row("f", "Join two paths here.", f"Note: Join two paths here. {BODY}")], words=15)
    assert docs.entries[0].text == "Note: Every part after the first one is joined by a slash, and what is"
    assert len(Documentation([row("f", "Join two paths here.", BODY)], words=0).entries[0].text.split()) == 21


def test_titles_are_shown_and_searched_when_asked_for():
    given = [*rows(), *(row(f"zz{i}.walrus", f"Feed the walrus some fish{i}.", BODY + f" w{i}") for i in range(1))]
    for document in given:
        document.metadata["package"] = "p"
    seed = next(s for s in range(50) if Documentation(given[:5], seed=s).held_out("p"))
    plain, titled = Documentation(given, seed=seed), Documentation(given, titles=True, seed=seed)
    n = sum(entry.unique for entry in plain.entries)
    ranked = {docs.titles: {each.id: each for each in docs.test(n, 1)} for docs in (plain, titled)}
    assert ranked[True]["zz0.walrus"].documents[0]["title"] == "zz0.walrus"
    assert ranked[True]["zz0.walrus"].found
    assert not ranked[False]["zz0.walrus"].found


def test_duplicates_and_ambiguous_summaries_ask_nothing():
    other = "The queue is drained into a list before the socket closes, unless it was drained by another thread."
    docs = Documentation(
        [
            row("a", "Join two paths here.", BODY),
            row("b", "Join two paths there.", BODY.replace("slash", "dash")),
            row("c", "Close the socket now.", other),
            row("d", "close the socket now", f"{BODY} {other[:40]} and then something else altogether happens to it."),
            row("e", "f(a, b) -> Tensor of things", f"{other[30:]} A signature is not what people type into a box."),
            row(
                "f", "Too short.", f"Nobody asks in two words. {BODY[50:]} So this passage can be found but not asked."
            ),
            row("g", "Body too short here.", "only five words are here"),
        ]
    )
    assert {entry.id: entry.unique for entry in docs.entries} == {
        "a": True, "c": False, "d": False, "e": False, "f": False
    }  # fmt: skip
    assert docs.dropped == {"near-duplicate": 1, "body shorter than 12 words": 1}


def test_a_corpus_without_docstrings_and_too_many_queries_are_refused():
    with pytest.raises(InputError, match="no docstrings with a summary"):
        Documentation([Document("a", "text", {})])
    with pytest.raises(InputError, match=r"queries from held-out packages; expected 100000"):
        Documentation(rows()).test(100_000)
    with pytest.raises(InputError, match="0 candidates"):
        Documentation(rows()).test(5, candidates=0)
    with pytest.raises(InputError, match="-1 words"):
        Documentation(rows(), words=-1)


# Near-duplicates


def test_near_duplicates_are_found_whatever_their_distance_and_different_texts_kept():
    generator = random.Random(0)
    texts = [" ".join(f"w{generator.randrange(5000)}" for _ in range(60)) for _ in range(200)]
    changed = [text.replace(text.split()[30], "other", 1).upper() for text in texts]
    assert list(distinct(texts + changed)) == [True] * 200 + [False] * 200


@given(st.lists(st.text(max_size=40), max_size=8))
def test_any_text_is_distinct_once(texts):
    kept = list(distinct(texts))
    assert len(kept) == len(texts)
    assert list(distinct([*texts, *texts]))[len(texts) :] == [False] * len(texts)
    assert kept[:1] == [True][: len(texts)]


# BM25


def test_bm25_finds_what_shares_words_with_ties_in_order():
    index = BM25(["paths paths", "a list", "paths paths", "graph of paths and trees"])
    places, scores = index.search(["paths"], 3)[0]
    assert places == [0, 2, 3]
    assert scores[0] == scores[1] > scores[2] > 0


def test_a_query_of_unknown_words_gives_the_first_texts_and_k_is_capped():
    index = BM25(["join paths", "sort lists", "walk trees"])
    for query in ("", "?!", "unheard-of vocabulary", "the"):
        assert index.search([query], 2) == [([0, 1], [0.0, 0.0])]
    assert index.search(["trees"], 10)[0][0] == [2, 0, 1]
    assert BM25(["!", "?"]).search(["paths"], 1) == [([0], [0.0])]
    with pytest.raises(InputError, match="no passages"):
        BM25([])


# Lists


LIST = RankList(
    "q", "query", ("a", "b", "c", "d"), ("A", "B", "C", "D"), (4.0, 3.0, 2.0, 1.0), {"c": 2, "a": 1, "z": 1}
)


def test_a_list_is_shuffled_by_seed_and_name_and_can_be_unshuffled():
    shuffled, order = LIST.shuffled(3)
    assert (shuffled, order) == LIST.shuffled(3)
    assert any(LIST.shuffled(seed)[1] != order for seed in range(9))
    assert [shuffled.ids[order.index(i)] for i in range(4)] == list(LIST.ids)
    assert sorted(zip(shuffled.ids, shuffled.documents, shuffled.labels, strict=True)) == sorted(
        zip(LIST.ids, LIST.documents, LIST.labels, strict=True)
    )


def test_training_rows_rank_by_relevance_then_by_first_stage_whatever_the_order_shown():
    assert LIST.labels == [1, 0, 2, 0]
    for order, epoch in (("first_stage", 0), ("shuffled", 0), ("shuffled", 1)):
        [made] = training_rows([LIST], order=order, epoch=epoch)
        assert [made["documents"][i] for i in made["ranking"]] == ["C", "A", "B", "D"]
        assert [made["labels"][i] for i in made["ranking"]] == [2, 1, 0, 0]
    orders = {tuple(training_rows([LIST], epoch=epoch)[0]["documents"]) for epoch in range(20)}
    assert len(orders) > 5
    assert training_rows([LIST], order="first_stage")[0]["documents"] == ["A", "B", "C", "D"]


# BEIR folders and runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    corpus = {"d1": ("Paths", "Join two paths."), "d2": ("", "Sort a list of paths."), "d3": ("", "Walk a tree.")}
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "title": t, "text": x}) + "\n" for i, (t, x) in corpus.items())
    )
    queries = {"q1": "join paths", "q2": "walk trees", "q3": "never judged"}
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": i, "text": x}) + "\n" for i, x in queries.items())
    )
    (tmp_path / "qrels").mkdir()
    write_qrels(tmp_path, "q1\td2\t2\nq1\td3\t0\nq2\td3\t1\n")
    return tmp_path


def write_qrels(folder: Path, lines: str) -> None:
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)


def test_a_beir_folder_gives_its_judged_queries_in_bm25_order(folder):
    lists = Beir(folder).lists("test", candidates=2)
    assert [each.id for each in lists] == ["q1", "q2"]
    assert lists[0].ids == ("d1", "d2")
    assert lists[0].documents == ({"title": "Paths", "text": "Join two paths."}, "Sort a list of paths.")
    assert lists[0].labels == [0, 2]
    assert Beir(folder, words=2).documents["d3"] == "Walk a"


def test_a_run_is_the_first_stage_where_one_is_given(folder, capsys):
    run = {"q1": {"d3": 1.0, "d2": 5.0, "d1": 1.0}}
    lists = Beir(folder).lists(run=run, candidates=3)
    assert [each.ids for each in lists] == [("d2", "d1", "d3")]
    assert "lacks 1 judged queries, such as 'q2'" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"names 1 documents .* such as 'nowhere'"):
        Beir(folder).lists(run={"q1": {"nowhere": 1.0}})
    with pytest.raises(InputError, match="none of the 2 judged queries"):
        Beir(folder).lists(run={"other": {"d1": 1.0}})


def test_unknown_ids_in_qrels_are_said_in_one_line_each(folder, capsys):
    write_qrels(folder, "q1\td2\t1\nq1\tgone\t1\nq9\td1\t1\n")
    judged = Beir(folder).qrels("test")
    assert judged == {"q1": {"d2": 1, "gone": 1}}  # trec_eval's way: what cannot be found still counts
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "1 queries that the collection lacks, such as 'q9'" in said[0]
    assert "1 documents that the collection lacks, such as 'gone'" in said[1]
    write_qrels(folder, "q9\tgone\t1\n")
    with pytest.raises(InputError, match="judges no document"):
        Beir(folder).qrels("test")


def test_what_is_wrong_with_a_folder_is_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"no .*dev\.tsv; .* has qrels for test"):
        Beir(folder).lists("dev")
    write_qrels(folder, "q1\td2\tvery\n")
    with pytest.raises(InputError, match=r"test\.tsv:2: expected query, document and a whole number"):
        Beir(folder).qrels("test")
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}\n')
    with pytest.raises(InputError, match="names document 'd1' twice"):
        Beir(folder)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "a"}\nbroken\n')
    with pytest.raises(InputError, match=r"corpus\.jsonl:2: "):
        Beir(folder)
    (folder / "queries.jsonl").unlink()
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "a"}\n')
    with pytest.raises(InputError, match=r"is no BEIR folder: it lacks queries\.jsonl"):
        Beir(folder)

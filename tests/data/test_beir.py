"""BEIR folders and runs over them: read in first-stage order, or refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broadsheet.console import InputError
from broadsheet.data.retrieval.beir import Beir


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
    with pytest.raises(InputError, match=r"test\.tsv:2: field 'score' is not a whole number .got 'very'."):
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

"""TREC's runs and judgements: read back as written, damage named by its line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broadsheet.console import InputError
from broadsheet.data.retrieval import trec

IDS = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=8)
SCORES = st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(IDS, st.dictionaries(IDS, SCORES, min_size=1), max_size=4))
def test_a_run_reads_back_best_first(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    trec.write_run(run, path)
    found = trec.read_run(path)
    assert found == run
    for scores in found.values():
        assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_equal_scores_of_a_run_keep_the_order_of_the_file(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("q Q0 b 1 2.0 t\nq Q0 z 2 2.0 t\n\nq\tQ0\ta 3 2.0 t\nq Q0 c 9 7 t\n")
    assert list(trec.read_run(path)["q"]) == ["c", "b", "z", "a"]


@given(st.dictionaries(IDS, st.dictionaries(IDS, st.integers(-2, 4), min_size=1), max_size=4))
def test_qrels_read_back(tmp_path_factory, qrels):
    path = tmp_path_factory.mktemp("qrels") / "qrels.txt"
    trec.write_qrels(qrels, path)
    assert trec.read_qrels(path) == qrels


def test_unknown_ids_in_qrels_are_said_in_one_line(tmp_path, capsys):
    path = tmp_path / "qrels.txt"
    path.write_text("1 0 a 1\n2 0 a 1\n3 0 a 2\n1 0 gone 3\n")
    found = trec.read_qrels(path, queries={"1"}, documents={"a"})
    assert found == {"1": {"a": 1, "gone": 3}}
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"{path} names 2 queries that are not there, such as '2' and 1 documents that are not there, such as 'gone'"
    )
    with pytest.raises(InputError, match="judges none of the queries"):
        trec.read_qrels(path, queries={"9"})


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (trec.read_run, "q Q0 d 1 2.0 t\nq Q0 d2 1\n", r":2: has 4 columns; expected 6"),
        (trec.read_run, "q Q0 d 1 high t\n", r":1: 'high' is not a number"),
        (trec.read_run, "q Q0 d 1 nan t\n", r":1: 'nan' is not a number"),
        (trec.read_run, "q Q0 d 1 2 t\nq Q0 d 2 1 t\n", r":2: names document 'd' twice"),
        (trec.read_run, b"q Q0 \xff 1 2 t\n", "not UTF-8"),
        (trec.read_qrels, "q 0 d 0.5\n", r":1: relevance is '0.5'"),
        (trec.read_qrels, "q d 1\n", r":1: has 3 columns"),
    ],
)
def test_damaged_lines_are_named(tmp_path, read, content, message):
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read(path)


@pytest.mark.parametrize("read", [trec.read_run, trec.read_qrels])
def test_files_that_are_not_there_are_refused(tmp_path, read):
    with pytest.raises(InputError, match=r"nothing\.txt"):
        read(tmp_path / "nothing.txt")


def test_ids_with_spaces_are_refused(tmp_path):
    with pytest.raises(InputError, match="'a b' holds spaces"):
        trec.write_run({"q": {"c": 2.0, "a b": 1.0}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()

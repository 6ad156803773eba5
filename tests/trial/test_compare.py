"""`compare` pairs what other tools wrote, says what it left out, and names file, line and remedy when it cannot."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from broadsheet.console import InputError
from broadsheet.trial.compare import compare_files, read_results


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, *lines: object) -> str:
    """A file of text lines, or of JSON lines where a line is not text."""
    Path(name).parent.mkdir(exist_ok=True)
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path(name).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return name


def lm_eval_sample(doc_id: int, filter_: str | None = "none", doc: str = "", **metrics: object) -> dict[str, object]:
    """One line as lm-eval-harness 0.4.13 logs it; as 0.4.3 did without a filter."""
    named = {} if filter_ is None else {"filter": filter_, "metrics": list(metrics)}
    return {
        "doc_id": doc_id,
        "doc": {"question": doc, "answer": "7"},
        "target": "7",
        "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": " A"}},
        "resps": [["7"]],
        "filtered_resps": ["7"],
        **named,
        "doc_hash": f"hash of {doc_id}{doc}",
        "prompt_hash": "p",
        "target_hash": "t",
        **metrics,
    }


# ---- plain tables


def test_jsonl_with_0_and_1_is_compared_by_mcnemar(capsys):
    a = write("a.jsonl", *({"id": i, "correct": False, "answer": "42"} for i in range(20)))
    b = write("b.jsonl", *({"id": i, "correct": i < 10, "answer": "42"} for i in reversed(range(20))))
    (found,) = compare_files(a, b)
    assert (found.metric, found.baseline, found.arm, found.n) == ("correct", "a", "b", 20)
    assert (found.test, found.verdict, found.p_value) == ("exact McNemar", "helps", pytest.approx(2 * 0.5**10))
    assert found.difference.estimate == 0.5
    assert capsys.readouterr().err == ""


def test_numbers_are_compared_by_paired_bootstrap_and_pair_by_id_not_by_order():
    rng = np.random.default_rng(0)
    difficulty, gain = rng.normal(size=50) * 10, rng.normal(size=50) * 0.1 + 0.2
    a = write("a.csv", "qid,F1", *(f"q{i},{difficulty[i]}" for i in range(50)))
    b = write("b.csv", "qid,F1", *(f"q{i},{difficulty[i] + gain[i]}" for i in rng.permutation(50)))
    (found,) = compare_files(a, b)
    assert (found.test, found.verdict) == ("paired bootstrap", "helps")
    assert found.difference.estimate == pytest.approx(gain.mean())


def test_a_table_of_another_format_pairs_with_the_same_ids():
    a = write("a.tsv", "\ufeffDoc_ID\tnote\tscore\tok", '1\t"x, y"\t0.5\tTrue', "", "2\tz\t1\tfalse")
    b = write("b.jsonl", {"doc_id": 1, "score": 0.5, "ok": True}, {"doc_id": 2, "score": 2, "ok": True})
    assert read_results(a).scores == {"score": {"1": 0.5, "2": 1.0}, "ok": {"1": 1.0, "2": 0.0}}
    assert [(c.metric, c.test, c.difference.estimate) for c in compare_files(a, b)] == [
        ("score", "paired bootstrap", 0.5),
        ("ok", "exact McNemar", 0.5),
    ]


def test_id_and_score_fields_can_be_named():
    path = write("a.jsonl", {"url": "u1", "id": 1, "length": 7, "score": 0.5}, {"url": "u2", "id": 1, "score": 0.25})
    assert read_results(path, id_field="url", score_field="score").scores == {"score": {"u1": 0.5, "u2": 0.25}}


def test_items_on_one_side_only_are_counted_and_left_out(capsys):
    a = write("a.jsonl", *({"id": i, "s": i / 10} for i in range(12)))
    b = write("b.jsonl", *({"id": i, "s": i / 10, "extra": 1} for i in range(2, 30)))
    (found,) = compare_files(a, b)
    said = capsys.readouterr().err
    assert found.n == 10
    assert "2 of 12 items of a.jsonl are not in b.jsonl" in said
    assert "18 of 28 items of b.jsonl are not in a.jsonl" in said
    assert "b.jsonl: extra not in a.jsonl" in said


def test_files_of_the_same_name_are_told_apart():
    a, b = (write(f"{folder}/r.jsonl", {"id": 1, "s": 1}, {"id": 2, "s": 0}) for folder in ("x", "y"))
    (found,) = compare_files(a, b)
    assert (found.baseline, found.arm) == ("x/r.jsonl", "y/r.jsonl")


# ---- directions


@pytest.mark.parametrize(
    ("metric", "options", "expected"),
    [
        ("f1", {}, "helps"),
        ("eval_loss", {}, "hurts"),
        ("WER", {}, "hurts"),
        ("time to first token", {}, "hurts"),
        ("filter", {}, "helps"),
        ("tokens_per_second", {}, "helps"),
        ("regret", {"lower_is_better": ["regret"]}, "hurts"),
        ("loss", {"higher_is_better": ["loss"]}, "helps"),
    ],
)
def test_the_direction_follows_the_name_unless_told(metric, options, expected, capsys):
    a = write("a.jsonl", *({"id": i, metric: i % 3} for i in range(20)))
    b = write("b.jsonl", *({"id": i, metric: i % 3 + 1 + i % 2} for i in range(20)))
    assert compare_files(a, b, **options)[0].verdict == expected
    by_its_name = expected == "hurts" and not options
    assert (f"lower is better, by its name: {metric}" in capsys.readouterr().err) == by_its_name


def test_an_unknown_metric_is_named_with_those_there_are():
    a = write("a.jsonl", {"id": 1, "f1": 0.5, "em": 1})
    with pytest.raises(InputError, match=r"'f2'.*f1, em"):
        compare_files(a, a, lower_is_better=["f2"])


# ---- lm-eval sample logs


def test_lm_eval_metrics_are_told_apart_by_filter(capsys):
    lines = [
        lm_eval_sample(i, name, exact_match=float(i % 2), inst=[True, False], bypass=999)
        for name in ("strict-match", "none")
        for i in range(3)
    ]
    scores = {"0": 0.0, "1": 1.0, "2": 0.0}
    path = write("samples_gsm8k.jsonl", *lines)
    assert read_results(path).scores == {"exact_match,strict-match": scores, "exact_match": scores}
    assert "left out inst,strict-match, inst: not one number per item" in capsys.readouterr().err
    named = read_results(path, score_field="exact_match,strict-match")
    assert list(named.scores) == ["exact_match,strict-match"]


def test_lm_eval_logs_of_old_name_no_metrics():
    path = write("old.jsonl", *(lm_eval_sample(i, None, acc=1.0, acc_norm=0.0, target=3) for i in range(2)))
    assert read_results(path).scores == {"acc": {"0": 1.0, "1": 1.0}, "acc_norm": {"0": 0.0, "1": 0.0}}


def test_lm_eval_perplexities_are_those_of_the_whole_corpus():
    rng = np.random.default_rng(0)
    nats, words = rng.uniform(50, 60, size=30), rng.integers(10, 40, size=30)

    def log(name: str, nats: np.ndarray) -> str:
        samples = (
            lm_eval_sample(
                i,
                perplexity=-nats[i] / 20,
                word_perplexity=[-nats[i], int(words[i])],
                bits_per_byte=[-nats[i], int(5 * words[i])],
            )
            for i in range(30)
        )
        return write(name, *samples)

    # The arm is better: fewer nats for the same words.
    lambada, word, bits = compare_files(log("a.jsonl", nats), log("b.jsonl", nats * 0.9))
    assert lambada.baseline_value == pytest.approx(math.exp(nats.mean() / 20))
    assert word.baseline_value == pytest.approx(math.exp(nats.sum() / words.sum()))
    assert bits.baseline_value == pytest.approx(nats.sum() / (5 * words.sum()) / math.log(2))
    assert bits.arm_value == pytest.approx(0.9 * bits.baseline_value)
    assert [c.verdict for c in (lambada, word, bits)] == ["helps"] * 3
    assert [c.metric for c in (lambada, word, bits)] == ["perplexity", "word_perplexity", "bits_per_byte"]


def test_lm_eval_logs_of_two_tasks_are_refused_and_of_mended_documents_said(capsys):
    a = write("a.jsonl", *(lm_eval_sample(i, acc=i % 2) for i in range(10)))
    other = write("other.jsonl", *(lm_eval_sample(i, doc="another", acc=i % 2) for i in range(10)))
    mended = write("mended.jsonl", *(lm_eval_sample(i, doc="!" if i < 3 else "", acc=i % 2) for i in range(10)))
    with pytest.raises(InputError, match=r"no doc_hash.*--id-field doc_id"):
        compare_files(a, other)
    assert compare_files(a, other, id_field="doc_id", score_field="acc")[0].n == 10
    assert "doc_hash" not in capsys.readouterr().err
    compare_files(a, mended)
    assert "3 of 10 paired items have another doc_hash" in capsys.readouterr().err


# ---- TREC runs

QRELS = ("q1 0 d1 2", "q1 0 d2 1", "q2 0 d3 1", "q3 0 d1 0", "q3 0 d4 1")


def test_trec_runs_are_scored_against_qrels_with_linear_gain(capsys):
    qrels = write("qrels.txt", *QRELS)
    run = write("a.run", "q1 Q0 d2 1 9.5 x", "q1 Q0 d1 2 9 x", "q3 Q0 d4 2 0.2 x", "q3 Q0 d1 1 0.1 x", "q9 Q0 d1 1 1 x")
    best = write("b.run", "q1 Q0 d1 1 2 x", "q1 Q0 d2 2 1 x", "q2 Q0 d3 1 1 x", "q3 Q0 d4 1 1 x")
    (found,) = compare_files(run, best, qrels=qrels)
    linear = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert read_results(run, qrels=qrels).scores == {"nDCG@10": {"q1": pytest.approx(linear), "q2": 0.0, "q3": 1.0}}
    assert (found.metric, found.n, found.arm_value) == ("nDCG@10", 3, 1.0)
    said = capsys.readouterr().err
    assert "a.run: 1 of 3 judged queries have no documents and count 0" in said
    assert "a.run: 1 queries are not in qrels.txt" in said


def test_several_measures_of_a_run():
    run, qrels = write("a.run", "q1 Q0 d2 1 9.5 x", "q1 Q0 d1 2 9 x"), write("qrels.txt", *QRELS[:2])
    assert read_results(run, qrels=qrels, measures=["P(rel=2)@1", "RR"]).scores == {
        "P(rel=2)@1": {"q1": 0.0},
        "RR": {"q1": 1.0},
    }


def test_without_ir_measures_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    run, qrels = write("a.run", "q1 Q0 d2 1 9.5 x"), write("qrels.txt", *QRELS)
    with pytest.raises(InputError, match=r"pip install -e '\.\[trec\]'"):
        read_results(run, qrels=qrels)


# ---- what cannot be read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n  \n", "empty"),
        (b"what is this", "'what is this'; expected JSONL"),
        (b'[{"id": 1, "s": 1}]', "expected JSONL"),
        (b'{"id": 1, "s": 1}\n{"id": 2, "s": 1\n', "2: not JSON"),
        (b'{"id": 1, "s": 1}\n[2, 1]\n', "2: got a JSON list"),
        (b'{"id": 1, "s": 1}\n\n{"id": 1, "s": 0}\n', "3: id '1' was there before"),
        (b'{"id": 1, "s": 1}\n{"id": 2}\n', "2: 's' is None; expected a number"),
        (b'{"id": 1, "s": 1}\n{"id": 2, "s": "1"}\n', "2: 's' is '1'"),
        (b'{"id": 1, "s": 1}\n{"id": 2, "s": NaN}\n', "2: the score of '2' is not finite"),
        (b'{"id": 1, "s": 1}\n{"id": 2, "s": 1' + b"0" * 400 + b"}\n", "2: the score of '2' is not finite"),
        (b'{"id": 1, "s": 1}\n{"id": [2], "s": 1}\n', r"2: the id 'id' is \[2\]"),
        (b'{"name": "x", "s": 1}\n', "no id among name, s; .*--id-field"),
        (b'{"id": 1, "s": "high"}\n', "1: no number among id, s"),
        (b'{"id": 1, "s": 1, "t": "caf\xe9"}\n', "1: not UTF-8; save it as UTF-8"),
        (b"id,s\n", "a header and no rows"),
        (b"id,s\n1,2\n\n2,3,4\n", "4: columns: 3, but 2 in the first line"),
        (b'id,s\n1,"2"x\n', "2: not valid CSV .got .*expected after"),
        (b"id,s\n1,0.5\n2,\n", "3: 's' is ''"),
        (b"id,s\n1,0.5\n,1\n", "3: the id 'id' is ''"),
        (b'{"doc_id": 1, "doc_hash": "h", "metrics": ["f1"], "f1": [0, 1]}\n', "no metric with one number per item"),
        (b'{"doc_id": 1, "doc_hash": "h", "acc": 1}\n{"acc": 1}\n', "2: no 'doc_id'"),
        (b'{"doc_id": 1, "doc_hash": "h", "acc": 1}\n{"doc_id": 1, "acc": 1}\n', "2: id '1' was there before"),
        (b"q1 Q0 d2 1 9.5 x\n", "no scores of its own; .*--qrels"),
    ],
)
def test_a_bad_file_is_one_line_with_file_line_and_remedy(content, message):
    Path("bad.file").write_bytes(content)
    with pytest.raises(InputError, match=rf"^bad\.file[:,] ?.*{message}") as error:
        read_results("bad.file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("run", "qrels", "measure", "message"),
    [
        ("q1 Q0 d2 1 9.5 x\nq1 Q0 d3 2 y", "q1 0 d1 1", "nDCG@10", "a.run:2: has 5 columns; expected 6"),
        ("q1 Q0 d2 1 9.5 x\nq1 Q0 d3 2 y x", "q1 0 d1 1", "nDCG@10", "a.run:2: 'y' is not a number"),
        ("q1 Q0 d2 1 9.5 x\nq1 Q0 d2 2 9 x", "q1 0 d1 1", "nDCG@10", "a.run:2: names document 'd2' twice"),
        ("q1 Q0 d2 1 9.5 x", "q1 0 d1 high", "nDCG@10", "qrels:1: 'high' is not a number"),
        ("q1 Q0 d2 1 9.5 x", "", "nDCG@10", "qrels: empty"),
        ("q1 Q0 d2 1 9.5 x", "q2 0 d1 1", "nDCG@10", "none of its queries is in qrels"),
        ("q1 Q0 d2 1 9.5 x", "q1 0 d1 1", "Goodness@10", "measure 'Goodness@10': ir-measures does not know it"),
        ("q1 Q0 d2 1 9.5 x", "q1 0 d1 1", "nDCG@", "measure 'nDCG@'"),
        ('{"id": 1, "s": 1}', "q1 0 d1 1", "nDCG@10", "not a TREC run"),
    ],
)
def test_a_bad_run_qrels_or_measure_is_named(run, qrels, measure, message):
    write("a.run", run)
    write("qrels", qrels)
    with pytest.raises(InputError, match=message):
        read_results("a.run", qrels="qrels", measures=[measure])


def test_missing_files_and_folders_are_named():
    with pytest.raises(InputError, match=r"nowhere\.jsonl: cannot be read \(No such file"):
        compare_files("nowhere.jsonl", "nowhere.jsonl")
    with pytest.raises(InputError, match="Is a directory"):
        read_results(".")


def test_nothing_in_common_is_refused():
    a = write("a.jsonl", {"id": "x1", "s": 1})
    ids, metrics = write("ids.jsonl", {"id": "y1", "s": 1}), write("metrics.jsonl", {"id": "x1", "t": 1})
    with pytest.raises(InputError, match=r"s: no id is in both files .*'x1'.*'y1'"):
        compare_files(a, ids)
    with pytest.raises(InputError, match=r"a\.jsonl has s and metrics\.jsonl has t"):
        compare_files(a, metrics)

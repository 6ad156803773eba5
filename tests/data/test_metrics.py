"""nDCG and reciprocal rank with trec_eval's conventions."""

from __future__ import annotations

import math
import random

import pytest

from broadsheet.console import InputError
from broadsheet.data.retrieval.lists import RankList
from broadsheet.data.retrieval.metrics import evaluate, evaluate_lists


def ndcg(ranking: list[str], judged: dict[str, int], k: int = 10) -> float:
    """The definition: linear gain, log2 discount, ideal over all judged documents."""
    gain = sum(judged.get(name, 0) / math.log2(i + 2) for i, name in enumerate(ranking[:k]))
    ideal = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(judged.values(), reverse=True)[:k]))
    return gain / ideal if ideal else 0.0


def test_ndcg_has_linear_gain_and_counts_what_was_not_found():
    generator = random.Random(0)
    names = [f"d{i}" for i in range(15)]
    rankings, qrels = {}, {}
    for query in map(str, range(30)):
        rankings[query] = generator.sample(names, 12)
        qrels[query] = {name: generator.randrange(4) for name in generator.sample(names, 8)}
    values = evaluate(rankings, qrels)["nDCG@10"]
    assert values == pytest.approx({query: ndcg(rankings[query], qrels[query]) for query in qrels}, abs=1e-9)
    exponential = ndcg(["a", "b"], {"a": 1, "b": 3})
    assert evaluate({"q": ["a", "b"]}, {"q": {"a": 1, "b": 3}})["nDCG@10"]["q"] == pytest.approx(exponential)
    assert exponential != pytest.approx(ndcg(["a", "b"], {"a": 1, "b": 7}))  # 2^rel − 1 would give this


def test_the_order_counts_and_not_the_names():
    """Equal scores would fall back to names, in reverse: ours are strictly decreasing."""
    judged = {"q": {"b": 1}}
    for names in (["a", "b", "c"], ["c", "b", "a"]):
        assert evaluate({"q": names}, judged)["RR@10"]["q"] == 0.5


def test_queries_without_ranking_or_relevant_documents_count_zero():
    values = evaluate({"empty": [], "irrelevant": ["a"], "unjudged": ["a"]},
                      {"empty": {"a": 1}, "irrelevant": {"a": 0}, "lost": {"a": 1}, "blank": {}})  # fmt: skip
    assert values["nDCG@10"] == {"empty": 0.0, "irrelevant": 0.0, "lost": 0.0, "blank": 0.0}


def test_a_document_named_twice_and_an_unknown_measure_are_refused():
    with pytest.raises(ValueError, match="names document 'a' twice"):
        evaluate({"q": ["a", "b", "a"]}, {"q": {"a": 1}})
    with pytest.raises(InputError, match="does not know 'nonsense@@'"):
        evaluate({"q": ["a"]}, {"q": {"a": 1}}, ["nonsense@@"])


def test_lists_of_one_query_are_told_apart():
    one = RankList("q", "", ("a", "b"), ("", ""), judged={"a": 1})
    values = evaluate_lists([one, one], [["a", "b"], ["b", "a"]], ["RR@10"])
    assert values["RR@10"] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("top", "counts", "expected"),
    [
        ([3, 3, 2, 2, 1, 1, 1, 1, 2, 2], {0: 141, 1: 6, 2: 5, 3: 2}, 0.9504408597017124),
        ([2, 2, 2, 2, 0, 1, 1, 0, 1, 0], {0: 116, 1: 93, 2: 180, 3: 3}, 0.5449952527555898),
    ],
)
def test_queries_of_trec_dl19_have_the_values_of_the_published_run(top, counts, expected):
    """The relevance of the first ten of FullRank's released run, and how many documents were judged how."""
    judged = {f"{relevance}-{i}": relevance for relevance, n in counts.items() for i in range(n)}
    names: list[str] = []
    for relevance in top:
        names.append(next(name for name, r in judged.items() if r == relevance and name not in names))
    assert evaluate({"q": names}, {"q": judged})["nDCG@10"]["q"] == pytest.approx(expected, abs=1e-9)

"""Rows to train on, made from lists of candidates."""

from __future__ import annotations

from broadsheet.data.retrieval.lists import RankList
from broadsheet.rank.training.rows import training_rows

LIST = RankList(
    "q", "query", ("a", "b", "c", "d"), ("A", "B", "C", "D"), (4.0, 3.0, 2.0, 1.0), {"c": 2, "a": 1, "z": 1}
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

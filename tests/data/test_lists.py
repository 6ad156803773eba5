"""Lists of candidates: shuffled by seed and name, and turned back."""

from __future__ import annotations

from broadsheet.data.retrieval.lists import RankList

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

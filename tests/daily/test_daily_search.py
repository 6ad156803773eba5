"""The search of the daily page: what is typed, what is found by words and by meaning, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from broadsheet.daily import search
from broadsheet.daily.meaning import Vectors
from broadsheet.daily.query import Query, parse
from broadsheet.daily.records import Record
from broadsheet.daily.store import Store
from broadsheet.page import papers

LIU, KIM = "2401.00001", "2402.00002"


@pytest.fixture
def store(place: str) -> Store:
    made = Store(place, clock=lambda: "2024-08-18T00:00:00Z")
    made.add(
        [
            Record(
                LIU, "arxiv", 1, "Zebra crossing at night", "We paint a tree mask on the road.", ("Ann Liu",),
                ("cs.CL", "cs.LG"), "2024-01-02T00:00:00Z",
            ),
            Record(
                KIM, "arxiv", 1, "A draft of zebras", "A mask of a tree: the café is closed.", ("Bo Kim",), ("cs.CV",),
                "2024-02-03T00:00:00Z",
            ),
        ]
    )  # fmt: skip
    return made


def found(store: Store, text: str, **more: object) -> list[str]:
    return [hit.article.id for hit in search.find(store, text, **more)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speculative decoding", Query(words=("speculative", "decoding"))),
        ('"tree mask" fast', Query(words=("fast",), phrases=("tree mask",))),
        ('author:liu author:"ann b" cat:cs.CL', Query(authors=("liu", "ann b"), categories=("cs.CL",))),
        ("is:unread -is:read IS:Later runs:yes", Query(states=("unread", "unread", "later"), runs=True)),
        ("-runs:yes after:2024-05 before:2025", Query(runs=False, after="2024-05", before="2025")),
        ("zebra -night -\"a b\"", Query(words=("zebra",), without=("night", "a b"))),
        ("after:soon is:odd cat: : \" ' ) (", Query(words=("after:soon", "is:odd", "cat:"))),
        ("", Query()),
    ],
)  # fmt: skip
def test_what_is_typed_is_read(text, expected):
    assert parse(text) == expected


def test_words_that_say_nothing_count_where_nothing_else_is_typed():
    assert parse("was this written by an LLM").telling == ("written", "LLM")
    assert parse("what is it").telling == ("what", "is", "it")


def test_words_find_by_any_and_rank_by_how_many_and_where(store):
    assert found(store, "zebra crossing")[0] == LIU, "both words, and in the title"
    assert found(store, "zebras") == found(store, "ZEBRA"), "one stem, any case"
    assert KIM in found(store, "cafe"), "without its accent"
    assert found(store, "nothingofthekind") == []


def test_words_beside_a_phrase_rank_and_do_not_choose(store):
    store.add([Record("2403.00003", "arxiv", 1, "A tree mask", "A tree mask for zebras, and zebras.")])
    store.add([Record("2404.00004", "arxiv", 1, "A tree mask", "A tree mask for the giraffes.")])
    assert found(store, '"tree mask" giraffes')[0] == "2404.00004"
    assert set(found(store, '"tree mask" giraffes')) == {LIU, "2403.00003", "2404.00004"}


def test_conditions_hold(store):
    assert found(store, '"tree mask"') == [LIU]
    assert found(store, "zebra author:kim") == [KIM]
    assert found(store, "author:liu") == [LIU]
    assert found(store, "zebra cat:CS.cv") == [KIM]
    assert found(store, "zebra -night") == [KIM]
    assert found(store, "zebra after:2024-02") == [KIM]
    assert found(store, "zebra before:2024-02") == [LIU]
    assert found(store, "cat:cs.CL") == [LIU]
    built = {paper.arxiv for paper in papers.page() if paper.trial}
    here = found(store, "runs:yes", limit=200)
    assert set(here) == built
    assert not set(found(store, "runs:no", limit=200)) & built


def test_marks_are_conditions_and_hidden_papers_are_left_out(store):
    store.mark(LIU, read=True, note="about giraffes")
    store.mark(KIM, hidden=True)
    assert found(store, "zebra") == [LIU]
    assert found(store, "zebra is:hidden") == [KIM]
    assert found(store, "zebra is:unread") == []
    assert found(store, "giraffes") == [LIU], "notes are found"
    assert found(store, "is:noted") == [LIU]


def test_our_own_papers_are_found_by_what_we_say_of_them_without_any_abstract(store):
    wanted = {paper.id: paper.arxiv for paper in papers.page()}
    assert wanted["aded"] in found(store, "speculative decoding", limit=5)
    assert wanted["unlearning_whp"] in found(store, "forget a book", limit=5)


@pytest.mark.parametrize(
    "text", ['"', "'", "a AND OR NOT", "title:", "NEAR(a b)", "*", "a*", "\0", "x" * 5000, "-", ")("]
)
def test_nothing_that_is_typed_is_an_error(store, text):
    search.find(store, text)


def test_the_place_that_fits_is_marked(store):
    [hit] = search.find(store, '"tree mask"')
    assert ("tree mask", True) in hit.snippet or [p for p, fits in hit.snippet if fits] == ["tree", "mask"]
    assert "".join(piece for piece, _ in hit.snippet).count("\x02") == 0


class Tiny:
    """An embedder whose vectors count letters."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode_document(self, texts: Sequence[str], **_: object) -> np.ndarray:
        self.read += texts
        return np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)

    encode_query = encode_document


@pytest.fixture
def vectors(store, monkeypatch) -> Vectors:
    made = Vectors(store, "tiny")
    made.__dict__["_embedder"], made.__dict__["name"] = Tiny(), "tiny 1"
    return made


def test_vectors_are_made_once_and_again_where_the_text_changes(store, vectors):
    assert vectors.update() == len(store)
    assert vectors.update() == 0
    store.add([Record(LIU, "arxiv", 2, "Another title", "Another text")])
    vectors._embedder.read.clear()
    assert vectors.update() == 1
    assert vectors._embedder.read == ["Another title\nAnother text"]
    assert vectors.nearest("Another title Another text", 1) == [LIU]


def test_meaning_and_words_are_fused_and_each_hit_says_which_found_it(store, vectors):
    vectors.update()
    hits = {hit.article.id: hit.why for hit in search.find(store, "zebra crossing at night", 200, meaning=vectors)}
    assert hits[LIU] == ("words", "meaning")
    assert ("meaning",) in hits.values()
    assert found(store, "zebra author:kim", meaning=vectors) == [KIM], "conditions hold for both"


def test_reciprocal_ranks_add_up():
    assert search.fused([["a", "b", "c"], ["c", "a"]]) == ["a", "c", "b"]
    assert search.fused([["b", "a"], ["a", "b"]]) == ["b", "a"], "of equals the first order's"
    assert search.fused([]) == []


def test_papers_like_another_are_found_with_vectors_and_without(store, vectors):
    assert search.similar(store, "0000.00000") == []
    by_words = search.similar(store, LIU)
    assert [hit.article.id for hit in by_words][:1] == [KIM]
    assert by_words[0].why == ("words",)
    vectors.update()
    assert search.similar(store, LIU, meaning=vectors)[0].why == ("meaning",)
    store.mark(KIM, hidden=True)
    assert KIM not in [hit.article.id for hit in search.similar(store, LIU)]


def test_likes_and_dislikes_decide_by_a_classifier(store, vectors):
    store.add(
        [Record(f"2403.{i:05}", "arxiv", 1, "zzzz" if i < 4 else "qqqq", "zz" if i < 4 else "qq") for i in range(8)]
    )
    vectors.update()
    best = vectors.like(["2403.00000", "2403.00001"], ["2403.00004", "2403.00005"], 200)
    assert best[:2] == ["2403.00002", "2403.00003"]
    assert set(best[-2:]) == {"2403.00006", "2403.00007"}


def test_of_what_is_found_only_what_is_looked_at_is_read(store, monkeypatch):
    hits, read, real = search.find(store, "runs:yes", 200), [], store.articles
    monkeypatch.setattr(store, "articles", lambda ids: read.append(list(ids)) or real(ids))
    assert len(hits) > 20
    assert read == []
    part = hits[5:7]
    assert [len(each) for each in read] == [2]
    assert [hit.article for hit in part] == [hit.article for hit in hits][5:7]
    assert hits[5].article == part[0].article == hits[5 - len(hits)].article


def test_what_a_paper_has_to_be_holds_where_many_better_ones_are_not_so(store):
    store.add([Record(f"2404.{i:05}", "arxiv", 1, "Giraffe giraffe") for i in range(9)])
    store.add([Record(f"2405.{i:05}", "arxiv", 1, "A giraffe among other things that stand about") for i in range(2)])
    for limit in (1, 2, 5):
        found = store.db.find_words(parse("giraffe"), "paper.id LIKE ?", ["2405.%"], limit)
        assert found == ["2405.00000", "2405.00001"][:limit]
    assert store.db.find_words(parse("giraffe"), "TRUE", [], 3) == ["2404.00000", "2404.00001", "2404.00002"]


def test_a_search_that_is_made_again_is_read_once(vectors):
    vectors.update()
    before = len(vectors._embedder.read)
    assert vectors.nearest("zebra", 5) == vectors.nearest("zebra", 5)
    assert len(vectors._embedder.read) == before + 1
